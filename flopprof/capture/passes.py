"""The passes of one call: counted, traced, timed, compiled; what measuring changed."""

import gzip
import math
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from flopprof.capture.call import Inputs, guarded, home, unchanged
from flopprof.capture.training import Training
from flopprof.collector import not_collecting
from flopprof.errors import UsageError
from flopprof.provenance import Compiled, Observer, Warned
from flopprof.settings import Progress, silent
from flopprof.stages import stepping

if TYPE_CHECKING:
    from torch import nn

    from flopprof.capture.record import Recording
    from flopprof.devices import Device
    from flopprof.trace.read import Trace

DRIFT = 1.0  # of the fastest bare call: less is a busy machine's everyday


def count_and_trace(
    model: "nn.Module",
    inputs: Inputs,
    training: Training | None,
    progress: Progress = silent,
) -> tuple["Trace", pd.DataFrame, dict[str, str]]:
    """Call the model once, on the device where it is; `progress` is told how far it is.

    Returns:
        Its trace, its module calls, and the modules that compute past PyTorch.
    """
    import torch

    from flopprof.capture.closed import holds_script, name_inner_modules
    from flopprof.capture.foreign import CallsSeen, foreign_modules
    from flopprof.capture.meta import fused_attention
    from flopprof.capture.modules import module_calls_of, module_rows
    from flopprof.capture.record import record_untimed
    from flopprof.trace.read import read_trace

    besides = training.besides if training else ()
    is_on_meta = home(model)[0] == "meta"
    with (
        unchanged(model, inputs, training=training is not None, besides=besides) as snapshot,
        # Compiled code does the same mathematics. A stance holds from its making on, not from here:
        # made before the `with`, it would stay where an input is refused.
        torch.compiler.set_stance("force_eager"),
        _watching_ops(model, inputs),
        fused_attention(),
        not_collecting(is_on_meta),  # no tensor takes memory there, and walking all objects long
        tempfile.TemporaryDirectory(prefix="flopprof-") as folder,
    ):
        path = Path(folder) / "trace.json"
        call = guarded(model, training.of(model, inputs) if training else inputs, snapshot)
        if training:
            call()  # an optimizer's first step makes its state
        if holds_script(model):
            call()  # in its first two calls, TorchScript compares constants while it optimises
            call()
        # Nothing is timed, so one call serves both witnesses.
        step = stepping(progress, "counting", sum(1 for _ in model.modules()))
        with (
            module_rows(model, ranges=True, step=step) as rows,
            CallsSeen(model) as seen,
        ):
            recording = record_untimed(call, path, with_paths=holds_script(model))
        progress("reading what was counted")
        trace = read_trace(path, profiler_flops=recording.profiler_flops, timed=False)
        trace = name_inner_modules(trace, model, recording.inner)
    return trace, module_calls_of(rows), foreign_modules(model, seen)


def _watching_ops(model: "nn.Module", inputs: Inputs) -> AbstractContextManager[Any]:
    """Return the mode that ops of a count run under.

    TorchScript's interpreter cannot call some ops under any: it has none without sparse tensors.
    """
    from flopprof.capture.closed import holds_script
    from flopprof.capture.meta import ShapesOnce
    from flopprof.capture.sparse import StoredElements, holds_sparse

    if home(model)[0] == "meta":
        return ShapesOnce()
    if holds_script(model) and not holds_sparse(model, inputs):
        return nullcontext()
    return StoredElements()


def observer_effect(
    recording: "Recording",
    times_us: list[float],
    call: Callable[[], Any],
    place: "Device",
    before: dict[str, Any],
) -> tuple[Observer, list[Warned]]:
    """Return what our measuring changed, and what of it makes the result doubtful."""
    from flopprof.capture.record import time_calls

    again_us = time_calls(call, device=place, warmup=1, repeats=min(len(times_us), 3))
    drift = min(again_us) / min(times_us) - 1
    changed = recording.changed_ops
    doubts = []
    if changed:
        examples = ", ".join(f"{op} {times:+d}" for op, times in list(changed.items())[:5])
        text = f"tracing by module changed which ops run: {examples}"
        doubts.append(Warned(code="changed_ops", text=text))
    was, now = (described.get("threads") for described in (before, place.describe()))
    if was != now:
        text = f"the model set torch from {was} threads to {now}: passes do not compare"
        doubts.append(Warned(code="threads", text=text))
    if drift > DRIFT:
        slower = f"bare calls took {drift + 1:.1f} times as long after tracing as before"
        text = f"{slower}: clock or load changed, and the passes do not compare"
        doubts.append(Warned(code="drift", text=text))
    return Observer(changed_ops=changed, drift_frac=drift), doubts


def read_traces(
    recordings: Sequence["Recording"], model: "nn.Module | None" = None
) -> list["Trace"]:
    """Return what traces hold; the profiler's FLOPs of the first, which is kept.

    Of a model's, ops inside closed modules get the paths of the modules there.
    """
    from flopprof.capture.closed import name_inner_modules
    from flopprof.trace.read import read_trace

    traces = []
    for number, recording in enumerate(recordings):
        flops = {} if number else recording.profiler_flops
        trace = read_trace(recording.path, profiler_flops=flops)
        trace.info["waited_us"] = recording.waited_us
        if model is not None:
            trace = name_inner_modules(trace, model, recording.inner)
        traces.append(trace)
    return traces


def trace_again(
    model: "nn.Module", call: Callable[[], Any], folder: Path, place: "Device", times: int
) -> list["Trace"]:
    """Return more traces of the call, whatever time they take."""
    from flopprof.capture.record import record_trace

    paths = (folder / f"again{number}.json" for number in range(times))
    return read_traces(
        [record_trace(model, call, path, device=place, attempts=1) for path in paths], model
    )


def compile_and_trace(
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
        "graph_breaks": dict(compiled.graph_breaks),
        "min_bytes": float(compiled.min_bytes or math.nan),
    }
    return facts, read_trace(recording.path)


def against_eager(
    facts: dict[str, Any], trace: "Trace", eager: pd.DataFrame
) -> tuple[Compiled, list[Warned]]:
    """Return what was fused into what and the bytes that this saved, if known; and doubts."""
    from flopprof.capture.compiled import kernels_of, program_of

    doubts = []
    if not facts["graphs"]:
        text = "torch.compile compiled nothing: the compiled times are of eager code"
        doubts.append(Warned(code="not_compiled", text=text))
    if facts["recompilations"]:
        text = f"the model was compiled again {facts['recompilations']} times while timed"
        doubts.append(Warned(code="recompiled", text=text))
    counted = trace.ops[trace.ops["counted"]]
    eager_bytes = float(eager.loc[eager["counted"], "min_bytes"].sum(skipna=False))
    compiled = Compiled(
        **facts,
        kernels=tuple(kernels_of(trace.ops, trace.kernels)),
        extern_calls=int((counted["matmul_flops"] > 0).sum()),
        extern_matmul_flops=float(counted["matmul_flops"].sum()),
        program=program_of(trace.ops, on_device=len(trace.kernels) > 0),
        eager_min_bytes=eager_bytes,
        saved_bytes=eager_bytes - facts["min_bytes"],
    )
    return compiled, doubts


def gzipped(path: Path) -> bytes:
    """Return the file, compressed, the same bytes for the same file."""
    return gzip.compress(path.read_bytes(), compresslevel=6, mtime=0)
