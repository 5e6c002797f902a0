"""Call the model under torch.profiler and export the trace; time bare calls."""

import gc
import math
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flopprof.capture.call import Call
from flopprof.capture.closed import holds_script, inner_paths
from flopprof.capture.hooks import PREFIX, module_ranges
from flopprof.capture.load import thread_waited_s
from flopprof.collector import not_collecting
from flopprof.devices import Device, find_device
from flopprof.errors import UsageError
from flopprof.tables import AHEAD_OF_TIME

if TYPE_CHECKING:
    from torch import nn

ATTEMPTS = 3
"""Calls traced at most; the fastest is kept, so that one interruption by the machine is no gap."""
ATTEMPTS_BUDGET_S = 3.0


TRACES_BUDGET_S = 2.0
"""Fewer calls are traced than asked for where they would take longer; one always."""
LEAST_TO_CONFIRM = 3
"""Calls traced at least where one has hidden time: it counts only if most of them have it."""


@dataclass(frozen=True, slots=True)
class Recording:
    """One traced call.

    Attributes:
        path: The Chrome trace, `.json`.
        profiler_flops: External id of an op → FLOPs by `with_flops`; 0 means none or no formula.
        traced_us: Wall time of the traced call.
        waited_us: How long of it the calling thread was ready and had no core.
        inner: External id of an op → path inside the TorchScript module that it ran in.
        changed_ops: Op → calls more (or fewer) with our ranges than without; empty where the same,
            None where not compared, or where the model's ops differ from call to call anyway.
    """

    path: Path
    profiler_flops: dict[int, float]
    traced_us: float
    changed_ops: dict[str, int] | None = None
    waited_us: float = 0.0
    inner: dict[int, str] = field(default_factory=dict)


def record_traces(
    model: "nn.Module",
    call: Callable[[], object],
    folder: Path,
    *,
    device: Device,
    traces: int,
) -> list[Recording]:
    """Trace several calls of the model, each for itself, and export them into `folder`.

    The one of median time comes first, the others follow as they were called. They are as many as
    `traces`, or as `TRACES_BUDGET_S` allows.

    Raises:
        UsageError: A trace cannot be written.
    """
    recordings: list[Recording] = []
    started = time.perf_counter()
    profiler: Any = None
    with_paths = holds_script(model)
    with module_ranges(model):
        for number in range(traces):
            with _no_garbage_collection():
                elapsed_us, waited_us, profiler = _trace_once(call, device, with_paths=with_paths)
            recordings.append(
                exported(
                    profiler,
                    elapsed_us,
                    waited_us,
                    folder / f"trace{number}.json",
                    with_paths=with_paths,
                )
            )
            traced = number + 1
            if (time.perf_counter() - started) * (traced + 1) / traced > TRACES_BUDGET_S:
                break
    changed = _changed_ops(profiler, call, device)
    recordings = [replace(recording, changed_ops=changed) for recording in recordings]
    median = sorted(recordings, key=lambda recording: recording.traced_us)[
        (len(recordings) - 1) // 2
    ]
    return [median, *(recording for recording in recordings if recording is not median)]


def record_trace(
    model: "nn.Module | None",
    call: Callable[[], object],
    path: Path,
    *,
    device: Device,
    attempts: int = ATTEMPTS,
) -> Recording:
    """Trace one call of the model, every module call named by a range, and export it to `path`.

    Without `model` there are no ranges and no hooks: compiled code is called as it is. Garbage is
    collected before, and not inside.

    Raises:
        UsageError: The trace cannot be written.
    """
    best: tuple[float, float, Any] | None = None
    started = time.perf_counter()
    with_paths = model is not None and holds_script(model)
    with module_ranges(model) if model is not None else nullcontext():
        for _ in range(attempts):
            with _no_garbage_collection():
                elapsed_us, waited_us, profiler = _trace_once(call, device, with_paths=with_paths)
            if best is None or elapsed_us < best[0]:
                best = elapsed_us, waited_us, profiler
            if time.perf_counter() - started > ATTEMPTS_BUDGET_S:
                break
    assert best is not None  # attempts is at least 1
    traced_us, waited_us, profiler = best
    return exported(profiler, traced_us, waited_us, path, with_paths=with_paths)


def record_untimed(call: Callable[[], object], path: Path, *, with_paths: bool) -> Recording:
    """Trace one call whose time is not wanted, under whatever hooks there are, and export it.

    The host's ops are recorded, and those on the meta device are among them.

    Raises:
        UsageError: The trace cannot be written.
    """
    elapsed_us, waited_us, profiler = _trace_once(call, find_device("cpu"), with_paths=with_paths)
    return exported(profiler, elapsed_us, waited_us, path, with_paths=with_paths)


def exported(
    profiler: Any, traced_us: float, waited_us: float, path: Path, *, with_paths: bool = False
) -> Recording:
    """Write a trace to `path`, and return it with what only the process knows of it.

    Of one recorded `with_paths`, what it tells of modules of TorchScript is read.

    Raises:
        UsageError: The trace cannot be written.
    """
    with _quiet_kineto():
        _export(profiler, path)
    flops = {
        event.correlation_id(): float(count)
        for event in profiler.profiler.kineto_results.events()
        if (count := event.flops())
    }
    inner = inner_paths(path) if with_paths else {}
    return Recording(path, flops, traced_us, waited_us=waited_us, inner=inner)


def _changed_ops(ranged: Any, call: Callable[[], object], device: Device) -> dict[str, int] | None:
    """Return the ops that ran otherwise under our ranges than in a call traced without them."""
    bare = _op_names(_trace_once(call, device)[2])
    changed = _op_names(ranged)
    changed.subtract(bare)
    differing = {name: times for name, times in changed.items() if times}
    if differing and _op_names(_trace_once(call, device)[2]) != bare:
        return None  # it takes another path each time, with ranges or without
    return differing


def _op_names(profiler: Any) -> Counter[str]:
    from torch._C._autograd import DeviceType
    from torch._library.custom_ops import OPDEFS

    # A kernel's name has "::", too, and libraries may choose another one in each call.
    events = profiler.profiler.kineto_results.events()
    names = (event.name() for event in events if event.device_type() == DeviceType.CPU)
    only_ours = (PREFIX, AHEAD_OF_TIME, *OPDEFS)  # OPDEFS: seen only where we call them by name
    return Counter(n for n in names if "::" in n and not n.startswith(only_ours))


@dataclass(slots=True)
class Traced:
    """What was traced; times in µs are known once it is over.

    Attributes:
        profiler: Torch's, which holds the trace.
        elapsed_us: Wall time.
        waited_us: How long of it the calling thread was ready and had no core.
    """

    profiler: Any
    elapsed_us: float = math.nan
    waited_us: float = math.nan


def _trace_once(
    call: Callable[[], object], device: Device, *, with_paths: bool = False
) -> tuple[float, float, Any]:
    """Return the call's wall time in µs, how much of it the thread had no core, and the trace."""
    _prepare(call)
    with tracing(device, with_paths=with_paths) as traced:
        call()
    return traced.elapsed_us, traced.waited_us, traced.profiler


@contextmanager
def tracing(device: Device, *, with_paths: bool = False) -> Iterator[Traced]:
    """Trace what runs inside, once; whatever it raises, no profiler is left at work.

    In a trace `with_paths` each op tells which modules of TorchScript it ran in.

    Raises:
        UsageError: It starts or stops a profiler itself.
    """
    import torch
    from torch._C._profiler import _ExperimentalConfig
    from torch.profiler import profile

    profiler = profile(
        activities=device.activities(),
        record_shapes=True,
        with_flops=True,
        with_modules=with_paths,
        acc_events=False,
        experimental_config=_ExperimentalConfig(profile_all_threads=True),
    )
    traced = Traced(profiler)
    with ExitStack() as cleanup:
        with _quiet_kineto(), warnings.catch_warnings():
            # torch 2.10 says so of every profiler; ours has a single cycle.
            warnings.filterwarnings("ignore", "Warning: Profiler clears events")
            warnings.filterwarnings("ignore", "with_modules is deprecated")  # with TorchScript
            profiler.start()
        cleanup.callback(_stop, profiler)
        cleanup.enter_context(warnings.catch_warnings())
        # Of with_flops, on nested tensors: no concern of the model's.
        warnings.filterwarnings("ignore", "Failed to save extra arguments for flops")
        device.synchronize()
        waited_s = thread_waited_s()
        start = time.perf_counter()
        yield traced
        device.synchronize()
        traced.elapsed_us = (time.perf_counter() - start) * 1e6
        traced.waited_us = (thread_waited_s() - waited_s) * 1e6
        if not torch.autograd.profiler._is_profiler_enabled:
            raise UsageError(
                "the model starts or stops a profiler of PyTorch, which runs one at a time",
                remedy="take torch.profiler out of its forward",
            )


def _prepare(call: Callable[[], object]) -> None:
    """Have a `Call` make its inputs before the clock runs; a plain function has none to make."""
    if isinstance(call, Call):
        call.prepare()


def _stop(profiler: Any) -> None:
    import torch

    stopped_by_model = not torch.autograd.profiler._is_profiler_enabled
    with _quiet_kineto():
        try:
            profiler.stop()
        except RuntimeError:  # of torch 2.10, where nothing is left to stop: the user is told so
            if not stopped_by_model:
                raise


def _export(profiler: Any, path: Path) -> None:
    """Export and check that the file is whole: torch prints an error and returns if it is not."""
    profiler.export_chrome_trace(str(path))
    tail = b""
    if path.exists():
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 64))
            tail = file.read()
    if not tail.rstrip().endswith(b"}"):
        raise UsageError(
            f"the trace could not be written to {path.parent}",
            remedy="free space there, or set TMPDIR to a folder with more",
        )


def time_calls(
    call: Callable[[], object],
    *,
    device: Device,
    warmup: int,
    repeats: int,
    step: Callable[[], None] = lambda: None,
) -> list[float]:
    """Return the times of `repeats` bare calls in µs, after `warmup` calls: wall, or events'.

    `step` is called between them.
    """
    times_us = []
    with _no_garbage_collection():
        for index in range(warmup + repeats):
            _prepare(call)
            device.synchronize()
            elapsed_us = device.elapsed_us(call)
            if index >= warmup:
                times_us.append(elapsed_us)
            step()
    return times_us


def summarise_times(times_us: list[float]) -> dict[str, float]:
    """Return median, 5th and 95th percentile of the times, in µs."""
    if len(times_us) == 1:
        return dict.fromkeys(("median", "p5", "p95"), times_us[0])
    steps = statistics.quantiles(times_us, n=20, method="inclusive")
    return {"median": statistics.median(times_us), "p5": steps[0], "p95": steps[-1]}


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Collect now and not inside: a pause would look like work that no op accounts for.

    What older calls left was collected when `watch` began: walking all objects takes 0.2 s.
    """
    gc.collect(1)
    with not_collecting():
        yield


@contextmanager
def _quiet_kineto() -> Iterator[None]:
    """Hold back what kineto writes to stderr about missing GPUs; pass on everything else."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as captured:
        stderr_copy = os.dup(2)
        os.dup2(captured.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr_copy, 2)
            os.close(stderr_copy)
            captured.seek(0)
            noise = (b"USDT:", b"gpuGetDeviceCount failed", b"ActivityProfiler")
            for line in captured:
                if not any(word in line for word in noise):
                    os.write(2, line)
