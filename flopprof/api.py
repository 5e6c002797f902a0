"""Run the stages in order and return a `Run`: the only module that knows their order."""

import copy
import functools
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import pandas as pd

from flopprof.assemble import Witnesses, as_call, assemble
from flopprof.capture.alone import alone
from flopprof.capture.call import (
    Inputs,
    are_sizes,
    as_inputs,
    autocasting,
    guarded,
    home,
    is_size,
    meta_twin,
    unchanged,
    using_threads,
)
from flopprof.capture.describe import (
    Origin,
    describe_environment,
    describe_source,
    describe_telemetry,
    main_dtype,
)
from flopprof.capture.foreign import foreign_work
from flopprof.capture.passes import (
    Train,
    against_eager,
    as_training,
    compile_and_trace,
    count_and_trace,
    gzipped,
    observer_effect,
    read_traces,
    trace_again,
)
from flopprof.errors import FlopprofError, UsageError
from flopprof.provenance import Called, CallProvenance, CountProvenance, DeviceFacts, Spread, Timing
from flopprof.run import Count, Run
from flopprof.tables import ROOFLINES

if TYPE_CHECKING:
    from torch import nn


REPEATS, WARMUP = 10, 3
TRACES = 5
"""Calls traced, of which each site's time is the median."""
Progress = Callable[[str], None]


@overload
def count_flops(
    model: "nn.Module",
    inputs_or_size: list[Any],
    *,
    kwargs: Mapping[str, Any] | None = None,
    train: Train = False,
) -> Any: ...
@overload
def count_flops(
    model: "nn.Module",
    inputs_or_size: Any = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    train: Train = False,
) -> Count: ...
def count_flops(
    model: "nn.Module",
    inputs_or_size: Any = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    train: Train = False,
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
            and an SGD step; or a `Training` that says which loss and optimizer; or a function of
            model and inputs that takes a whole step of your own: accumulation, scaler, EMA.

    Raises:
        UsageError: The inputs are of no usable kind, or do not fit the model.
        ModelError: The model raised.
    """
    if _are_several(inputs_or_size):
        return _count_sizes(model, inputs_or_size, kwargs, train)
    return Count.of(run_count(model, as_inputs(inputs_or_size, kwargs, model), train=train))


def _are_several(inputs: Any) -> bool:
    """Return whether `inputs` is a list of sizes, each for a call of its own."""
    return (
        isinstance(inputs, list)
        and not is_size(inputs)
        and all(isinstance(s, str) or is_size(s) or are_sizes(s) for s in inputs)
    )


def _count_sizes(
    model: "nn.Module",
    sizes: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    train: Train,
) -> pd.DataFrame:
    rows = []
    for size in sizes:
        run = run_count(model, as_inputs(size, kwargs, model), train=train)
        names = ("matmul_flops", "vector_flops", "flops", "flops_at_most")
        figures = {name: getattr(run.totals, name) for name in names}
        rows.append({"input": run.provenance.called.input} | figures)
    return pd.DataFrame(rows)


@alone()
def run_count(
    model: "nn.Module",
    inputs: Inputs,
    *,
    train: Train = False,
    origin: Origin | None = None,
    progress: Progress = lambda _stage: None,
) -> Run:
    """Return a `Run` without times: hooks and formulas over one call on the meta device."""
    from flopprof.capture.sparse import holds_sparse

    progress("counting")
    traced = None
    doubts = []
    training = as_training(train)
    own_step = training is not None and training.step is not None  # of this model, not of a twin
    # How many elements a sparse tensor stores is lost on the meta device.
    has_shapes = inputs.has_shapes and not holds_sparse(model, inputs)
    can_be_twin = home(model)[0] != "meta" and has_shapes and not own_step
    if can_be_twin and (twin := meta_twin(model)) is not None:
        try:
            traced = count_and_trace(twin, inputs.to("meta"), train)
            where = "meta"
        except FlopprofError:
            # What the model says on its own device is clearer, or it runs there.
            doubts = [
                "the model needs values: it was counted for these; work outside PyTorch, such as "
                "numpy's, is only seen where time is: flopprof run"
            ]
    if traced is None:
        where = home(model)[0]
        traced = count_and_trace(model, inputs.to("meta") if where == "meta" else inputs, train)
    trace, module_calls = traced
    origin = origin or Origin()
    provenance = CountProvenance(
        source=describe_source(model, module_calls, origin),
        called=Called(
            dtype=main_dtype(model, inputs),
            input=inputs.text,
            input_source=origin.input_source,
            train=bool(train),
        ),
        device=DeviceFacts(name=where, kind=where),
        environment=describe_environment(),
    )
    witnesses = Witnesses(module_calls, trace.ops, trace.gaps, trace.kernels)
    doubts = [*origin.warnings, *doubts, *foreign_work(model), *trace.info["warnings"]]
    return assemble(witnesses, ROOFLINES.empty(), provenance, doubts=doubts)


def _table_of_runs(runs: Sequence[Run]) -> pd.DataFrame:
    """Return one row per run: input, counts, wall time, coverage, and the run itself."""
    names = ("matmul_flops", "vector_flops", "flops", "flops_at_most", "wall_us", "coverage_frac")
    rows = []
    for run in runs:
        figures = {name: getattr(run.totals, name) for name in names}
        rows.append({"input": run.provenance.called.input} | figures | {"run": run})
    return pd.DataFrame(rows)


@overload
def profile(
    model: "nn.Module",
    inputs: list[Any],
    *,
    kwargs: Mapping[str, Any] | None = None,
    train: Train = False,
    device: str | None = None,
    threads: int | None = None,
    repeats: int = REPEATS,
    warmup: int = WARMUP,
    traces: int = TRACES,
    ceilings: bool | str | Path = True,
    tf32: bool = False,
    autocast: str | None = None,
    compile: bool | str = False,
    origin: Origin | None = None,
    progress: Progress = lambda _stage: None,
) -> Any: ...
@overload
def profile(
    model: "nn.Module",
    inputs: Any = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    train: Train = False,
    device: str | None = None,
    threads: int | None = None,
    repeats: int = REPEATS,
    warmup: int = WARMUP,
    traces: int = TRACES,
    ceilings: bool | str | Path = True,
    tf32: bool = False,
    autocast: str | None = None,
    compile: bool | str = False,
    origin: Origin | None = None,
    progress: Progress = lambda _stage: None,
) -> Run: ...
def profile(
    model: "nn.Module",
    inputs: Any = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    train: Train = False,
    device: str | None = None,
    threads: int | None = None,
    repeats: int = REPEATS,
    warmup: int = WARMUP,
    traces: int = TRACES,
    ceilings: bool | str | Path = True,
    tf32: bool = False,
    autocast: str | None = None,
    compile: bool | str = False,
    origin: Origin | None = None,
    progress: Progress = lambda _stage: None,
) -> Any:
    """Count, trace and time one call of `model`, and reconcile the three: a `Run`.

    In eval mode and without gradients, unless it is trained. The model is left as it was: hooks,
    modes, parameters, gradients, buffers, random state.

    Args:
        model: Any module.
        inputs: As for `count_flops`; a list of sizes gives a DataFrame with one row per size, its
            `Run` in the column `run`.
        kwargs: Keyword inputs.
        train: As for `count_flops`.
        device: "cpu", "cuda", "cuda:1", "auto"; the model's own unless given.
        threads: CPU threads for the passes; torch's own setting unless given.
        repeats: Bare calls that are timed.
        warmup: Calls before them.
        traces: Calls that are traced, of which each site's time is the median; fewer where they
            would take more than two seconds.
        ceilings: Whether to find the device's ceilings (measured once on a CPU, for the dtypes of
            this run, then cached); or a ceilings file, whose entries go before all others.
        tf32: Whether float32 products on a GPU may round to TF32; torch's own setting unless so.
        autocast: Element type that `torch.autocast` runs products in, such as "bfloat16".
        compile: Whether to time the model as `torch.compile` makes it, or the mode to compile in.
            FLOPs and sites are those of the eager call: the mathematics is the same.
        origin: Where model and inputs come from, if not from Python.
        progress: Called with the name of each stage as it begins.

    Raises:
        UsageError: No such device or ceilings file, or the inputs do not fit the model.
        LoadError: The ceilings file is damaged.
        ModelError: The model raised.
    """
    import torch

    from flopprof.capture.load import busy_warning, host_load
    from flopprof.capture.modules import count_modules
    from flopprof.capture.record import LEAST_TO_CONFIRM, record_traces, summarise_times, time_calls
    from flopprof.ceilings import find_ceilings
    from flopprof.devices import find_device
    from flopprof.judge.hidden import hidden_gaps

    if _are_several(inputs):
        one = functools.partial(
            profile, model, kwargs=kwargs, train=train, device=device, threads=threads,
            repeats=repeats, warmup=warmup, traces=traces, ceilings=ceilings, tf32=tf32,
            autocast=autocast, compile=compile, origin=origin, progress=progress,
        )  # fmt: skip
        return _table_of_runs([one(size) for size in inputs])
    if repeats < 1 or traces < 1 or warmup < 0 or (threads is not None and threads < 1):
        fact = f"repeats is {repeats}, traces {traces}, warmup {warmup}, threads {threads}"
        raise UsageError(fact, remedy="give repeats, traces and threads of at least 1")
    training = as_training(train)
    place = find_device(device or home(model)[0])
    given = as_inputs(inputs, kwargs, model)
    if home(model)[0] != place.torch_device and home(model)[0].split(":")[0] != place.torch_device:
        if training and training.step:
            raise UsageError(
                f"the model is on {home(model)[0]}, and a step of your own trains it there",
                remedy=f"move it first: model.to({place.torch_device!r})",
            )
        model = copy.deepcopy(model).to(place.torch_device)
    given = given.to(place.torch_device)
    dtype = autocast or main_dtype(model, given)
    with ExitStack() as stack:
        stack.enter_context(alone())
        stack.enter_context(using_threads(threads))
        if tf32:
            stack.enter_context(place.tf32())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flopprof-")))
        held = training.held if training else ()
        snapshot = stack.enter_context(unchanged(model, given, training=bool(train), held=held))

        def calling(called: "nn.Module") -> Callable[[], Any]:
            call = guarded(called, training.of(called, given) if training else given, snapshot)
            return autocasting(call, place.torch_device, autocast) if autocast else call

        call, fused, described = calling(model), None, place.describe()
        if compile:  # before any hook of ours: Dynamo would trace it
            progress("compiling")
            fused = compile_and_trace(model, calling, compile, place, folder, repeats)
        progress("warming up")
        call()
        progress(f"timing {repeats} calls")
        with place.telemetry() as telemetry, host_load() as load:
            times_us = time_calls(call, device=place, warmup=max(warmup - 1, 0), repeats=repeats)
        progress("tracing")
        recordings = record_traces(model, call, folder, device=place, traces=traces)
        recording = recordings[0]
        progress("counting")
        module_calls = count_modules(model, call)
        observer, noticed = observer_effect(recording, times_us, call, place, described)
        progress(f"reading {len(recordings)} traces")
        trace, *others = read_traces(recordings)
        packed = gzipped(recording.path)
        if len(recordings) < LEAST_TO_CONFIRM and len(hidden_gaps(as_call(trace))):
            progress("tracing again: is the hidden time there each time?")
            others += trace_again(model, call, folder, place, LEAST_TO_CONFIRM - len(recordings))
        rooflines, doubts = ROOFLINES.empty(), noticed
        if ceilings:
            progress("finding the device's ceilings")
            works = trace.ops[["matmul_flops", "vector_flops"]].gt(0).any(axis=1)
            wanted = dict.fromkeys((dtype, *trace.ops.loc[works, "dtype"].unique()))
            user = None if isinstance(ceilings, bool) else ceilings
            found = find_ceilings(place, user_file=user, dtypes=wanted, progress=progress)
            rooflines, doubts = found.rooflines(), [*noticed, *found.warnings]
        used_threads = torch.get_num_threads()
    if busy := busy_warning(load, used_threads):
        doubts = [*doubts, busy]
    wall = Spread(**summarise_times(times_us))
    eager_wall = None
    compiled = None
    if fused:
        facts, compiled_trace = fused
        eager_wall = wall
        wall = Spread(**facts.pop("wall_us"))
        compiled, noticed = against_eager(facts, compiled_trace, trace.ops)
        doubts += noticed
    progress("reconciling")
    origin = origin or Origin()
    provenance = CallProvenance(
        source=describe_source(model, module_calls, origin),
        called=Called(
            dtype=dtype,
            input=given.text,
            input_source=origin.input_source,
            train=bool(train),
            tf32=tf32,
            autocast=autocast,
        ),
        device=DeviceFacts(**described),
        environment=describe_environment(),
        timing=Timing(
            wall_us=wall,
            eager_wall_us=eager_wall,
            repeats=repeats,
            traces=1 + len(others),
            traced_us=recording.traced_us,
            slowdown_frac=recording.traced_us / (eager_wall or wall).median - 1,
            device_busy_us=trace.info.get("device_busy_us", math.nan),
            observer=observer,
        ),
        telemetry=describe_telemetry(telemetry, max(warmup - 1, 0) + repeats),
        compiled=compiled,
    )
    witnesses = Witnesses(module_calls, *as_call(trace), [*map(as_call, others)])
    doubts = [*origin.warnings, *doubts, *trace.info["warnings"]]
    return assemble(witnesses, rooflines, provenance, doubts=doubts, trace=packed)
