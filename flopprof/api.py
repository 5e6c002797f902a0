"""The four front doors: `load`, `count_flops`, `profile` and `analyse_traces`.

The first three take a module, or what the command line takes for MODEL, and options (`Settings`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, overload

import msgspec
import pandas as pd

from flopprof._version import __version__
from flopprof.assemble import Witnesses, as_call, assemble, assemble_job
from flopprof.capture.alone import alone
from flopprof.capture.call import are_sizes, home, is_size, using_threads
from flopprof.capture.decoding import measure_generation
from flopprof.capture.describe import (
    describe_call,
    describe_environment,
    describe_source,
    describe_telemetry,
    describe_timing,
    main_dtype,
    now,
    what_is_missing,
)
from flopprof.capture.graph import count_graph, is_graph
from flopprof.capture.steps import steps_told
from flopprof.capture.subject import Subject, find_subject, training_of, with_gradients
from flopprof.capture.watch import Watched, on_device, watch
from flopprof.collector import import_quickly
from flopprof.counted import counted_run, memory_of
from flopprof.errors import GradientsError, ModelError
from flopprof.formulas.external import loaded_files
from flopprof.jobs import Reading, TracesRead, captured, loads_of, read_traces
from flopprof.judge.hidden import hidden_gaps
from flopprof.judge.spread import TracedCall
from flopprof.provenance import (
    COMMAND,
    Called,
    CallProvenance,
    DeviceFacts,
    Environment,
    Source,
    TraceProvenance,
    Warned,
    warned,
)
from flopprof.run import Count, Run
from flopprof.settings import Options, Progress, Settings, silent
from flopprof.tables import MODULE_CALLS, ROOFLINES
from flopprof.trace.collectives import collective_facts
from flopprof.trace.ranks import add_up_ranks, described_gpu, groups_of
from flopprof.trace.read import Trace
from flopprof.trace.remote import base_name, named_traces
from flopprof.trace.window import Window, WindowOptions
from flopprof.trace.workers import Workers
from flopprof.units import file_text

if TYPE_CHECKING:
    from torch import nn

    from flopprof.ceilings.ceiling import Ceilings
    from flopprof.devices import Device


def load(
    what: "str | Path | nn.Module",
    inputs: Any = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    **options: Unpack[Options],
) -> Subject:
    """Return the model that `what` names and inputs that it takes, ready to call.

    Args:
        what: A model file or a Hugging Face folder; code, "torchvision:resnet50", "timm:NAME",
            "my_net.py:build"; or a module.
        inputs: As for `count_flops`; the architecture's own where it is known, unless given.
        kwargs: Keyword inputs.
        options: The fields of `Settings`.

    Raises:
        FlopprofError: The file, the architecture or the input is not usable.
    """
    settings = Settings.of(options)
    if not isinstance(what, str | Path):
        return find_subject(what, inputs, kwargs, settings)
    from flopprof.devices import find_device

    device = find_device(settings.device or "cpu")
    return find_subject(what, inputs, kwargs, settings, device=device.torch_device)


@overload
def count_flops(
    what: Any,
    inputs_or_size: list[Any],
    *,
    kwargs: Mapping[str, Any] | None = None,
    progress: Progress = silent,
    **options: Unpack[Options],
) -> Any: ...
@overload
def count_flops(
    what: Any,
    inputs_or_size: Any = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    progress: Progress = silent,
    **options: Unpack[Options],
) -> Count: ...
def count_flops(
    what: Any,
    inputs_or_size: Any = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    progress: Progress = silent,
    **options: Unpack[Options],
) -> Any:
    """Return the FLOPs of one call of a model, counted from shapes on the meta device.

    In eval mode and without gradients, unless it is trained, whatever its mode. The model is left
    as it was, and is itself called only where it cannot run on the meta device.

    Args:
        what: A module on any device, or what `load` takes: no weights of a file are read.
        inputs_or_size: A tensor, a tuple of inputs, a size such as (1, 3, 224, 224), a text
            "1x3x224x224"; or a list of sizes, for a DataFrame with one row per size.
        kwargs: Keyword inputs.
        progress: Called with the name of each stage as it begins.
        options: The fields of `Settings` that say how the model is found and called; with
            `train`, a training step is counted.

    Raises:
        UsageError: The inputs are of no usable kind, or do not fit the model.
        ModelError: The model raised.
    """
    settings = Settings.of(options)
    if are_several(inputs_or_size):
        runs = [run_count(what, size, kwargs, settings, progress) for size in inputs_or_size]
        return pd.DataFrame(map(_row, runs))
    return Count.of(run_count(what, inputs_or_size, kwargs, settings, progress))


def are_several(inputs_or_size: Any) -> bool:
    """Return whether these are several sizes, each for a call of its own."""
    return (
        isinstance(inputs_or_size, list)
        and not is_size(inputs_or_size)
        and all(isinstance(s, str) or is_size(s) or are_sizes(s) for s in inputs_or_size)
    )


def _row(run: Run, *more: str) -> dict[str, Any]:
    """Return a run's input, counts and more of its totals, as a row of a table of runs."""
    names = ("matmul_flops", "vector_flops", "flops", "flops_at_most", *more)
    totals = run.totals
    figures = {name: getattr(totals, name) for name in names}
    return {"input": run.provenance.called.input} | figures


def run_count(
    model_or_name: Any,
    inputs: Any,
    kwargs: Mapping[str, Any] | None,
    settings: Settings,
    progress: Progress = silent,
) -> Run:
    """Return a `Run` without times: hooks and formulas over one call on the meta device."""
    if not isinstance(model_or_name, str | Path):
        return _count(find_subject(model_or_name, inputs, kwargs, settings), settings, progress)
    progress("loading")
    import_quickly("torch")
    settings = replace(settings, partial=True)  # shapes are the code's, whatever weights there are
    if is_graph(model_or_name):
        graph = count_graph(Path(model_or_name), inputs, settings)
        witnesses = Witnesses(MODULE_CALLS.empty(), [TracedCall(*graph.tables)])
        doubts = warned("model", graph.doubts)
        return assemble(witnesses, ROOFLINES.empty(), graph.provenance, doubts=doubts)
    subject = find_subject(model_or_name, inputs, kwargs, settings, meta=True)
    try:
        run = _count(subject, settings, progress)
        warnings = (
            *run.provenance.warnings,
            *warned("model", steps_told(subject.model, run.sites)),
        )
        run.provenance = msgspec.structs.replace(run.provenance, warnings=warnings)
        return run
    except ModelError:  # values decide its path, and the meta device has none
        progress("loading the weights: the model needs values")
        return _count(find_subject(model_or_name, inputs, kwargs, settings), settings, progress)


@alone()
def _count(subject: Subject, settings: Settings, progress: Progress) -> Run:
    progress("counting")
    try:
        return counted_run(subject, settings, progress)
    except GradientsError:
        return counted_run(with_gradients(subject), settings, progress)


@overload
def profile(
    what: Any,
    inputs: list[Any],
    *,
    kwargs: Mapping[str, Any] | None = None,
    progress: Progress = silent,
    **options: Unpack[Options],
) -> Any: ...
@overload
def profile(
    what: Any,
    inputs: Any = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    progress: Progress = silent,
    **options: Unpack[Options],
) -> Run: ...
def profile(
    what: Any,
    inputs: Any = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    progress: Progress = silent,
    **options: Unpack[Options],
) -> Any:
    """Count, trace and time one call of a model, and reconcile the three: a `Run`.

    In eval mode and without gradients, unless it is trained. The model is left as it was: hooks,
    modes, parameters, gradients, buffers, random state.

    Args:
        what: A module, or what `load` takes.
        inputs: As for `count_flops`; a list of sizes gives a DataFrame with one row per size, its
            `Run` in the column `run`.
        kwargs: Keyword inputs.
        progress: Called with the name of each stage as it begins.
        options: The fields of `Settings`.

    Raises:
        UsageError: No such device or ceilings file, or the inputs do not fit the model.
        LoadError: The file, or the ceilings file, is damaged.
        ModelError: The model raised.
    """
    settings = Settings.of(options)
    if are_several(inputs):
        runs = [run_profile(what, size, kwargs, settings, progress) for size in inputs]
        return pd.DataFrame([_row(run, "wall_us", "coverage_frac") | {"run": run} for run in runs])
    return run_profile(what, inputs, kwargs, settings, progress)


def run_profile(
    model_or_name: Any,
    inputs: Any,
    kwargs: Mapping[str, Any] | None,
    settings: Settings,
    progress: Progress = silent,
) -> Run:
    """Do what `profile` does, with settings that are checked already."""
    if settings.distributed is not None:
        from flopprof.distributed import run_job

        return run_job(model_or_name, inputs, kwargs, settings, progress)
    user_ceilings = ceilings_of_user(settings)  # a fault in the file is told before long work
    subject, device = find_to_profile(model_or_name, inputs, kwargs, settings, progress)
    return profile_subject(subject, device, settings, user_ceilings, progress)


def find_to_profile(
    model_or_name: Any,
    inputs: Any,
    kwargs: Mapping[str, Any] | None,
    settings: Settings,
    progress: Progress = silent,
) -> "tuple[Subject, Device]":
    """Return what `profile` is about, and the device that it is on."""
    from flopprof.devices import find_device

    if isinstance(model_or_name, str | Path):
        progress("loading torch")
        import_quickly("torch")
        device = find_device(settings.device or "cpu")
        progress(f"loading {model_or_name}")
        subject = find_subject(model_or_name, inputs, kwargs, settings, device=device.torch_device)
        return subject, device
    subject = find_subject(model_or_name, inputs, kwargs, settings)
    device = find_device(settings.device or home(subject.model)[0])
    return on_device(subject, device, training_of(settings)), device


def profile_subject(
    subject: Subject,
    device: "Device",
    settings: Settings,
    user_ceilings: "Ceilings | None",
    progress: Progress = silent,
) -> Run:
    """Return the run of a model that is ready to be called.

    Args:
        subject: The model and its inputs.
        device: Where they are.
        settings: How the model is called.
        user_ceilings: Those of `settings`.
        progress: Called with the name of each stage as it begins.
    """
    try:
        watched = watch(subject, device, settings, hides_work=_hides_work, progress=progress)
    except GradientsError:
        subject = with_gradients(subject)
        watched = watch(subject, device, settings, hides_work=_hides_work, progress=progress)
    dtype = settings.autocast or main_dtype(subject.model, subject.inputs)
    ceilings = ceilings_of(device, watched.trace, dtype, settings, user_ceilings, progress)
    return run_of(subject, device, watched, settings, ceilings, progress)


def run_of(
    subject: Subject,
    device: "Device",
    watched: Watched,
    settings: Settings,
    ceilings: "Ceilings",
    progress: Progress,
) -> Run:
    """Return the run that the watched call makes; what else is asked for is measured for it.

    Args:
        subject: The model and its inputs.
        device: Where they are.
        watched: What the passes found.
        settings: How the model was called.
        ceilings: What the device can do.
        progress: Called with the name of each stage as it begins.
    """
    progress("reconciling")
    dtype = settings.autocast or main_dtype(subject.model, subject.inputs)
    provenance = CallProvenance(
        source=describe_source(subject.model, watched.module_calls, subject.origin),
        called=describe_call(subject.model, subject.inputs, subject.origin, settings, dtype),
        device=DeviceFacts(**watched.device),
        environment=describe_environment(),
        timing=describe_timing(watched, settings),
        telemetry=describe_telemetry(
            watched.telemetry, max(settings.warmup - 1, 0) + settings.repeats
        ),
        compiled=watched.compiled[0] if watched.compiled else None,
        memory=memory_of(subject, settings),
        generate=measure_generation(subject, device, settings, counted_run, progress),
    )
    traced = [as_call(trace, watched.foreign) for trace in (watched.trace, *watched.others)]
    witnesses = Witnesses(watched.module_calls, traced)
    doubts = _doubts_of_profile(subject, watched, ceilings)
    return assemble(
        witnesses, ceilings.rooflines(), provenance, doubts=doubts, trace=watched.packed
    )


def _doubts_of_profile(subject: Subject, watched: Watched, ceilings: "Ceilings") -> list[Warned]:
    calls = watched.module_calls
    missing = what_is_missing(subject.origin, subject.model, calls, is_count=False)
    return [
        *warned("model", [*subject.origin.warnings, *missing]),
        *watched.doubts,
        *warned("ceilings", ceilings.warnings),
        *warned("trace", watched.trace.info["warnings"]),
    ]


def ceilings_of_user(settings: Settings) -> "Ceilings | None":
    """Return the content of the user's ceilings file; None without one."""
    from flopprof.ceilings.ceiling import load_ceilings

    return None if isinstance(settings.ceilings, bool) else load_ceilings(settings.ceilings)


def _hides_work(trace: "Trace") -> bool:
    return len(hidden_gaps(as_call(trace))) > 0


def ceilings_of(
    device: "Device",
    trace: "Trace",
    dtype: str,
    settings: Settings,
    user: "Ceilings | None",
    progress: Progress,
) -> "Ceilings":
    """Return the device's ceilings for the dtypes that the traced call computed in."""
    from flopprof.ceilings import find_ceilings
    from flopprof.ceilings.ceiling import Ceilings

    if not settings.ceilings:
        return Ceilings({})
    progress("finding the device's ceilings")
    works = trace.ops[["matmul_flops", "vector_flops"]].gt(0).any(axis=1)
    dtypes = dict.fromkeys((dtype, *trace.ops.loc[works, "dtype"].unique()))
    with using_threads(settings.threads):
        return find_ceilings(device, user=user, dtypes=dtypes, progress=progress)


def analyse_traces(
    paths: str | Path | Sequence[str | Path],
    *,
    gpu: str | None = None,
    ceilings: str | Path | None = None,
    capture: str | Path | None = None,
    workers: int | Workers = 1,
    progress: Progress = silent,
    **window: Unpack[WindowOptions],
) -> Run:
    """Return the `Run` of one trace, or of several ranks' traces of one job together.

    The sites of all ranks are added up; `provenance.ranks` has each rank's part. Of several ranks,
    the tables `ops` and `kernels` are empty, `op_sums` and `kernel_sums` hold what they add up to;
    one that is damaged is a rank with its `fault`. No torch is imported.

    Args:
        paths: Chrome traces by torch.profiler, `.json` or `.json.gz`: files, addresses that fsspec
            knows (`s3://…`), or patterns (`ranks/*.json.gz`).
        gpu: Name of the GPU whose ceilings count, in place of the one that the trace names.
        ceilings: A ceilings file, whose entries go before the tables'.
        capture: The trace of the capture of graphs that are replayed here: their kernels get its
            ops, by order and name.
        workers: How many processes read ranks; or `Workers(dask=ADDRESS)`, a Dask cluster's.
            Formulas of files go there too, those that this process registered itself do not.
        progress: Called with the name of each stage as it begins.
        window: `skip_steps`, how many profiler steps to leave out from the start; `steps`, only
            those of these numbers, the last left out ("3:8" is 3 to 7); `from_s` and `to_s`, only
            calls that begin between these seconds from the trace's first op.

    Raises:
        UsageError: No such file, GPU or step, or nothing lies in the window.
        LoadError: No file is a trace that can be read.
    """
    from flopprof.ceilings import ceilings_of_trace

    files = named_traces([paths] if isinstance(paths, str | Path) else paths)
    if capture is not None:
        progress(f"reading {file_text(Path(capture).name)}")
        captured(capture)  # a fault in it is told before long work
    reading = Reading(Window(**window), loaded_files(), capture)
    told = read_traces(files, reading, workers, progress)
    job = told.job
    progress("reconciling")
    limits = ceilings_of_trace(dict(job.main.device), gpu, ceilings, on_gpu=job.on_gpu)
    provenance = _provenance_of(told, files, gpu)
    doubts = [*warned("trace", job.warnings), *warned("ceilings", limits.warnings)]
    if told.sites is not None:
        return assemble_job(told.sites, limits.rooflines(), provenance, doubts=doubts)
    assert told.call is not None  # it is one or the other
    witnesses = Witnesses(MODULE_CALLS.empty(), [told.call])
    return assemble(witnesses, limits.rooflines(), provenance, doubts=doubts)


def _provenance_of(
    told: TracesRead, files: Sequence[str | Path], gpu: str | None
) -> TraceProvenance:
    from flopprof.ceilings.links import link_of

    job = told.job
    name = base_name(files[0]).removesuffix(".gz").removesuffix(".json")
    return TraceProvenance(
        source=Source(model=file_text(name)),
        called=Called(dtype=told.dtype),
        device=described_gpu(job, gpu),
        environment=Environment(flopprof=__version__, date=now(), command=COMMAND.get()),
        trace=add_up_ranks(job, files),
        ranks=tuple(sorted(job.ranks, key=lambda rank: rank.rank)),
        steps=tuple(job.steps),
        collectives=collective_facts(told.collectives),
        groups=groups_of(job),
        loads=() if told.sites is None else loads_of(told.sites, job),
        link=link_of(gpu or str(job.main.device.get("name") or "")),
    )
