"""Run the stages in order and return a `Run`: the only module that knows their order."""

import copy
import dataclasses
import datetime
import math
import platform
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import pandas as pd

import flopprof
from flopprof.capture.call import (
    Inputs,
    are_sizes,
    as_inputs,
    autocasting,
    first_float,
    guarded,
    home,
    is_size,
    meta_twin,
    unchanged,
    using_threads,
)
from flopprof.errors import FlopprofError, UsageError
from flopprof.run import Count, Run
from flopprof.tables import KERNELS, ROOFLINES

if TYPE_CHECKING:
    from torch import nn

    from flopprof.capture.record import Recording
    from flopprof.capture.training import Training
    from flopprof.devices import Device
    from flopprof.trace.read import Trace

REPEATS, WARMUP = 10, 3
CONFIRMATIONS = 3  # more traces at most, to tell hidden work from interruptions by the machine
DRIFT = 1.0  # of the fastest bare call: less is a busy machine's everyday
Progress = Callable[[str], None]


@overload
def count_flops(
    model: "nn.Module",
    inputs_or_size: list[Any],
    *,
    kwargs: Mapping[str, Any] | None = None,
    train: "bool | Training" = False,
) -> Any: ...
@overload
def count_flops(
    model: "nn.Module",
    inputs_or_size: Any = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    train: "bool | Training" = False,
) -> Count: ...
def count_flops(
    model: "nn.Module",
    inputs_or_size: Any = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    train: "bool | Training" = False,
) -> Any:
    """Return the FLOPs of one call of `model`, counted from shapes on the meta device.

    In eval mode and without gradients, unless it is trained, whatever its mode. The model is left
    as it was, and is itself called only where it cannot run on the meta device.

    Args:
        model: Any module, on any device.
        inputs_or_size: A tensor, a tuple of inputs, a size such as (1, 3, 224, 224), a text
            "1x3x224x224"; or a list of sizes, for a DataFrame with one row per size.
        kwargs: Keyword inputs.
        train: Whether to count a training step: forward, loss (the sum of the outputs), backward
            and an SGD step; or a `Training` that says which loss and optimizer.

    Raises:
        UsageError: The inputs are of no usable kind, or do not fit the model.
        ModelError: The model raised.
    """
    if (
        isinstance(inputs_or_size, list)
        and not is_size(inputs_or_size)
        and all(isinstance(s, str) or is_size(s) or are_sizes(s) for s in inputs_or_size)
    ):
        return _count_sizes(model, inputs_or_size, kwargs, train)
    return Count.of(run_count(model, as_inputs(inputs_or_size, kwargs, model), train=train))


def _count_sizes(
    model: "nn.Module",
    sizes: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    train: "bool | Training",
) -> pd.DataFrame:
    rows = []
    for size in sizes:
        run = run_count(model, as_inputs(size, kwargs, model), train=train)
        names = ("matmul_flops", "vector_flops", "flops", "flops_at_most")
        rows.append({"input": run.meta["input"]} | {n: getattr(run.totals, n) for n in names})
    return pd.DataFrame(rows)


def run_count(
    model: "nn.Module",
    inputs: Inputs,
    *,
    train: "bool | Training" = False,
    meta: dict[str, Any] | None = None,
    progress: Progress = lambda _stage: None,
) -> Run:
    """Return a `Run` without times: hooks and formulas over one call on the meta device."""
    import torch

    progress("counting")
    traced, doubts = None, []
    if home(model)[0] != "meta" and (twin := meta_twin(model)) is not None:
        try:
            where, traced = "meta", _count_and_trace(twin, inputs.to("meta"), train)
        except FlopprofError:
            # What the model says on its own device is clearer, or it runs there.
            doubts = [
                "the model needs values: it was counted for these; work outside PyTorch, such as "
                "numpy's, is only seen where time is: flopprof run"
            ]
    if traced is None:
        where = home(model)[0]
        given = inputs.to("meta") if where == "meta" else inputs
        traced = _count_and_trace(model, given, train)
    trace, module_calls = traced
    return _assemble(
        model,
        inputs,
        module_calls,
        trace,
        ROOFLINES.empty(),
        meta={"device": {"name": where, "kind": where}, **(meta or {}), "torch": torch.__version__},
        timed=False,
        doubts=doubts,
    )


def _count_and_trace(
    model: "nn.Module", inputs: Inputs, train: "bool | Training"
) -> tuple["Trace", pd.DataFrame]:
    import torch

    from flopprof.capture.meta import ShapesOnce
    from flopprof.capture.modules import count_modules
    from flopprof.capture.record import Recording, record_trace
    from flopprof.devices import find_device
    from flopprof.trace.read import read_trace

    eager = torch.compiler.set_stance("force_eager")  # compiled code does the same mathematics
    training = _training(train)
    with (
        unchanged(model, training=bool(train)),
        eager,
        ShapesOnce() if home(model)[0] == "meta" else nullcontext(),
        tempfile.TemporaryDirectory(prefix="flopprof-") as folder,
    ):
        path = Path(folder) / "trace.json"
        call = guarded(model, training.of(model, inputs) if training else inputs)
        if training:
            call()  # an optimizer's first step makes its state
        device = find_device("cpu")  # the meta device records as host ops
        # Nothing is timed, so one call serves both witnesses.
        recordings: list[Recording] = []
        module_calls = count_modules(
            model,
            lambda: recordings.append(
                record_trace(model, call, path, device=device, attempts=1, timed=False)
            ),
        )
        trace = read_trace(path, profiler_flops=recordings[0].profiler_flops)
    return trace, module_calls


def profile(
    model: "nn.Module",
    inputs: Any = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    train: "bool | Training" = False,
    device: str | None = None,
    threads: int | None = None,
    repeats: int = REPEATS,
    warmup: int = WARMUP,
    ceilings: bool | str | Path = True,
    tf32: bool = False,
    autocast: str | None = None,
    compile: bool | str = False,
    meta: dict[str, Any] | None = None,
    progress: Progress = lambda _stage: None,
) -> Run:
    """Count, trace and time one call of `model`, and reconcile the three.

    In eval mode and without gradients, unless it is trained. The model is left as it was: hooks,
    modes, parameters, gradients, buffers, random state.

    Args:
        model: Any module.
        inputs: As for `count_flops`.
        kwargs: Keyword inputs.
        train: As for `count_flops`.
        device: "cpu", "cuda", "cuda:1", "auto"; the model's own unless given.
        threads: CPU threads for the passes; torch's own setting unless given.
        repeats: Bare calls that are timed.
        warmup: Calls before them.
        ceilings: Whether to find the device's ceilings (measured once on a CPU, for the dtypes of
            this run, then cached); or a ceilings file, whose entries go before all others.
        tf32: Whether float32 products on a GPU may round to TF32; torch's own setting unless so.
        autocast: Element type that `torch.autocast` runs products in, such as "bfloat16".
        compile: Whether to time the model as `torch.compile` makes it, or the mode to compile in.
            FLOPs and sites are those of the eager call: the mathematics is the same.
        meta: More provenance to store with the run.
        progress: Called with the name of each stage as it begins.

    Raises:
        UsageError: No such device or ceilings file, or the inputs do not fit the model.
        LoadError: The ceilings file is damaged.
        ModelError: The model raised.
    """
    import torch

    from flopprof.capture.modules import count_modules
    from flopprof.capture.record import record_trace, summarise_times, time_calls
    from flopprof.ceilings import find_ceilings
    from flopprof.devices import find_device
    from flopprof.judge.reconcile import hidden_gaps, lasting_gaps
    from flopprof.trace.read import read_trace

    if repeats < 1 or warmup < 0 or (threads is not None and threads < 1):
        fact = f"repeats is {repeats}, warmup {warmup}, threads {threads}"
        raise UsageError(fact, remedy="give repeats and threads of at least 1")
    place = find_device(device or home(model)[0])
    given = as_inputs(inputs, kwargs, model)
    if home(model)[0] != place.torch_device and home(model)[0].split(":")[0] != place.torch_device:
        model = copy.deepcopy(model).to(place.torch_device)
    given = given.to(place.torch_device)
    dtype = autocast or home(model)[1] or first_float(given) or "float32"
    with ExitStack() as stack:
        stack.enter_context(using_threads(threads))
        if tf32:
            stack.enter_context(place.tf32())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flopprof-")))
        stack.enter_context(unchanged(model, training=bool(train)))
        training = _training(train)

        def calling(called: "nn.Module") -> Callable[[], Any]:
            call = guarded(called, training.of(called, given) if training else given)
            return autocasting(call, place.torch_device, autocast) if autocast else call

        call, fused, described = calling(model), None, place.describe()
        if compile:  # before any hook of ours: Dynamo would trace it
            progress("compiling")
            fused = _compiled(model, calling, compile, place, folder, repeats)
        progress("warming up")
        call()
        progress(f"timing {repeats} calls")
        with place.telemetry() as telemetry:
            times_us = time_calls(call, device=place, warmup=max(warmup - 1, 0), repeats=repeats)
        progress("tracing")
        recording = record_trace(model, call, folder / "trace.json", device=place)
        progress("counting")
        module_calls = count_modules(model, call)
        observer, noticed = _observer_effect(recording, times_us, call, place, described)
        progress("reading the trace")
        trace = read_trace(recording.path, profiler_flops=recording.profiler_flops)
        packed = _gzip(recording.path)
        for _ in range(CONFIRMATIONS):
            if not len(hidden_gaps(trace.ops, trace.gaps)):
                break
            progress("tracing again: is the hidden time there each time?")
            again = record_trace(model, call, folder / "again.json", device=place, attempts=1)
            lasting = lasting_gaps(trace.gaps, read_trace(again.path).gaps)
            trace = dataclasses.replace(trace, gaps=lasting)
        rooflines, doubts = ROOFLINES.empty(), noticed
        if ceilings:
            progress("finding the device's ceilings")
            works = trace.ops[["matmul_flops", "vector_flops"]].gt(0).any(axis=1)
            wanted = dict.fromkeys((dtype, *trace.ops.loc[works, "dtype"].unique()))
            user = None if isinstance(ceilings, bool) else ceilings
            found = find_ceilings(place, user_file=user, dtypes=wanted, progress=progress)
            rooflines, doubts = found.rooflines(), [*noticed, *found.warnings]
    wall = summarise_times(times_us)
    compiled: dict[str, Any] = {}
    if fused:
        compiled = _against_eager(*fused, trace.ops)
        doubts += compiled.pop("doubts")
    progress("reconciling")
    return _assemble(
        model,
        given,
        module_calls,
        trace,
        rooflines,
        meta={
            "device": described,
            "torch": torch.__version__,
            "wall_us": wall,
            "traced_us": recording.traced_us,
            "slowdown_frac": recording.traced_us / wall["median"] - 1,
            "observer": observer,
            "repeats": repeats,
            "train": bool(train),
            "dtype": dtype,
            "tf32": tf32,
            "autocast": autocast,
            "telemetry": {**telemetry, "calls": max(warmup - 1, 0) + repeats} if telemetry else {},
            **({"wall_us": compiled["wall_us"], "eager_wall_us": wall} if compiled else {}),
            "compiled": compiled,
            **(meta or {}),
        },
        doubts=doubts,
        packed=packed,
    )


def _observer_effect(
    recording: "Recording",
    times_us: list[float],
    call: Callable[[], Any],
    place: "Device",
    before: dict[str, Any],
) -> tuple[dict[str, Any], list[str]]:
    """Return what our measuring changed, and what of it makes the result doubtful."""
    from flopprof.capture.record import time_calls

    again_us = time_calls(call, device=place, warmup=1, repeats=min(len(times_us), 3))
    drift = min(again_us) / min(times_us) - 1
    changed, doubts = recording.changed_ops, []
    if changed:
        named = ", ".join(f"{op} {times:+d}" for op, times in list(changed.items())[:5])
        doubts.append(f"tracing by module changed which ops run: {named}")
    was, now = (described.get("threads") for described in (before, place.describe()))
    if was != now:
        doubts.append(f"the model set torch from {was} threads to {now}: passes do not compare")
    if drift > DRIFT:
        slower = f"bare calls took {drift + 1:.1f} times as long after tracing as before"
        doubts.append(f"{slower}: clock or load changed, and the passes do not compare")
    return {"changed_ops": changed, "drift_frac": drift}, doubts


def _compiled(
    model: "nn.Module",
    calling: Callable[[Any], Callable[[], Any]],
    mode: bool | str,
    place: "Device",
    folder: Path,
    repeats: int,
) -> tuple[dict[str, Any], "Trace"]:
    """Compile the model, warm it up, time it and trace it, none of it under hooks of ours."""
    from flopprof.capture.compiled import compile_model, warm_up
    from flopprof.capture.record import record_trace, summarise_times, time_calls
    from flopprof.trace.read import read_trace

    if hasattr(model, "_orig_mod"):
        raise UsageError("the model is compiled already", remedy="give the eager model to compile")
    compiled = compile_model(model, mode)
    call = calling(compiled.model)
    warm_up(compiled, call)
    graphs = compiled.graphs
    times_us = time_calls(call, device=place, warmup=1, repeats=repeats)
    recording = record_trace(None, call, folder / "compiled.json", device=place)
    facts = {
        "mode": compiled.mode,
        "wall_us": summarise_times(times_us),
        "graphs": graphs,
        "recompilations": compiled.graphs - graphs,
        "graph_breaks": compiled.graph_breaks,
        "min_bytes": compiled.min_bytes or math.nan,
    }
    return facts, read_trace(recording.path)


def _against_eager(facts: dict[str, Any], trace: "Trace", eager: pd.DataFrame) -> dict[str, Any]:
    """Return `facts`, what was fused into what, and the bytes that this saved, if known."""
    from flopprof.capture.compiled import kernels_of

    doubts = []
    if not facts["graphs"]:
        doubts.append("torch.compile compiled nothing: the compiled times are of eager code")
    if facts["recompilations"]:
        doubts.append(f"the model was compiled again {facts['recompilations']} times while timed")
    counted = trace.ops[trace.ops["counted"]]
    eager_bytes = eager.loc[eager["counted"], "min_bytes"].sum(skipna=False)
    return facts | {
        "doubts": doubts,
        "kernels": kernels_of(trace.ops, trace.kernels),
        "extern_calls": int((counted["matmul_flops"] > 0).sum()),
        "extern_matmul_flops": counted["matmul_flops"].sum(),
        "eager_min_bytes": eager_bytes,
        "saved_bytes": eager_bytes - facts["min_bytes"],
    }


def _assemble(
    model: "nn.Module",
    inputs: Inputs,
    module_calls: pd.DataFrame,
    trace: "Trace",
    rooflines: pd.DataFrame,
    *,
    meta: dict[str, Any],
    timed: bool = True,
    doubts: Sequence[str] = (),
    packed: bytes | None = None,
) -> Run:
    """Reconcile what the passes found and return it as a `Run` with its provenance."""
    from flopprof.capture.hooks import module_paths
    from flopprof.judge.reconcile import reconcile
    from flopprof.judge.roofs import roof_doubts

    dtype = meta.get("dtype") or home(model)[1] or first_float(inputs) or "float32"
    called = set(module_calls["module_path"])
    never = [
        path
        for module, path in module_paths(model).items()
        if path not in called and type(module).__name__ not in ("ModuleList", "ModuleDict")
    ]
    sites = reconcile(
        module_calls,
        trace.ops,
        trace.gaps,
        trace.kernels if timed else KERNELS.empty(),
        rooflines,
        dtype=dtype,
        never_called=never,
        timed=timed,
    )
    ops = trace.ops
    if not timed:
        ops = ops.assign(cpu_us=math.nan, self_cpu_us=math.nan, device_us=math.nan)
    hidden_us = sites.loc[sites["op"] == "(gap)", "time_us"].sum()
    gaps_us = trace.gaps["duration_us"].sum() - hidden_us if timed else math.nan
    provenance = {
        "model": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "input": inputs.text,
        "dtype": dtype,
        "flopprof": flopprof.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["flopprof", *sys.argv[1:]]) if sys.argv else "",
        "never_called": never,
        "host_overhead_us": gaps_us,
        "device_busy_us": trace.info.get("device_busy_us", math.nan),
        **meta,
        "warnings": [
            *meta.get("warnings", []),
            *doubts,
            *trace.info["warnings"],
            *roof_doubts(sites),
        ],
    }
    run = Run(module_calls, ops, trace.kernels, rooflines, sites, provenance, packed)
    totals = run.totals
    provenance["totals"] = {
        name: getattr(totals, name)
        for name in ("matmul_flops", "vector_flops", "flops", "flops_at_most", "coverage_frac")
    }
    return run


def _training(train: "bool | Training") -> "Training | None":
    from flopprof.capture.training import Training

    return Training() if train is True else train or None


def _gzip(path: Path) -> bytes:
    import gzip

    return gzip.compress(path.read_bytes(), compresslevel=6, mtime=0)
