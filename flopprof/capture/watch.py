"""One call watched on its device: compiled, timed, traced and counted, one pass after another."""

import copy
import gc
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from flopprof.capture.alone import alone
from flopprof.capture.call import (
    Call,
    autocasting,
    guarded,
    home,
    telling_of_memory,
    unchanged,
    using_threads,
)
from flopprof.capture.load import busy_warning, host_load
from flopprof.capture.passes import (
    against_eager,
    compile_and_trace,
    gzipped,
    observer_effect,
    read_traces,
    trace_again,
)
from flopprof.capture.restore import Snapshot
from flopprof.capture.subject import Subject, training_of
from flopprof.capture.training import Training
from flopprof.devices import Device
from flopprof.errors import UsageError
from flopprof.provenance import Compiled, Observer, Spread, Warned
from flopprof.settings import Progress, Settings
from flopprof.stages import stepping
from flopprof.trace.read import Trace

if TYPE_CHECKING:
    from torch import nn


@dataclass(slots=True)
class Watched:
    """What the passes found.

    Attributes:
        module_calls: What the hooks saw, table MODULE_CALLS.
        trace: The traced call of median time.
        others: The other traced calls.
        packed: The trace file of the first, gzipped.
        traced_us: Wall time of that call.
        times_us: Wall times of the bare calls.
        device: What the device said of itself before.
        telemetry: What it said while the bare calls ran.
        observer: What measuring changed.
        foreign: Module path → which package it computes with, past PyTorch.
        compiled: What torch.compile made of the model, and its wall times in µs.
        doubts: What makes figures doubtful.
    """

    module_calls: pd.DataFrame
    trace: Trace
    others: list[Trace]
    packed: bytes
    traced_us: float
    times_us: list[float]
    device: dict[str, Any]
    telemetry: dict[str, Any]
    observer: Observer
    foreign: dict[str, str]
    compiled: tuple[Compiled, Spread] | None = None
    doubts: list[Warned] = field(default_factory=list)


@alone()
def watch(
    subject: Subject,
    device: Device,
    settings: Settings,
    *,
    hides_work: Callable[[Trace], bool],
    progress: Progress,
) -> Watched:
    """Call the subject's model, which is on `device`, under every pass; then all is as before.

    Args:
        subject: The model and its inputs.
        device: Where it is.
        settings: How it is called.
        hides_work: Whether a trace has time that no op accounts for: then others must confirm it.
        progress: Called with the name of each stage as it begins.

    Raises:
        UsageError: The inputs do not fit the model, or the model is compiled already.
        ModelError: The model raised, or memory ran out.
    """
    model = subject.model
    gc.collect()  # once: before each pass, what is young is enough
    with ExitStack() as stack:
        stack.enter_context(telling_of_memory("the model's state was copied, to be put back"))
        stack.enter_context(using_threads(settings.threads))
        if settings.tf32:
            stack.enter_context(device.tf32())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flopprof-")))
        training = training_of(settings)
        besides = training.besides if training else ()
        snapshot = stack.enter_context(
            unchanged(model, subject.inputs, training=training is not None, besides=besides)
        )

        def calling(called: "nn.Module") -> Call:
            return call_of(called, subject, snapshot, device, settings)

        call = calling(model)
        described = device.describe()
        fused = None
        if settings.compile:  # before any hook of ours: Dynamo would trace it
            progress("compiling")
            fused = compile_and_trace(
                model, calling, settings.compile, device, folder, settings.repeats
            )
        watched = _eager_passes(
            model, call, folder, device, settings, described, hides_work, progress
        )
    if fused:
        _add_compiled(watched, *fused)
    return watched


def _eager_passes(
    model: "nn.Module",
    call: Call,
    folder: Path,
    device: Device,
    settings: Settings,
    described: dict[str, Any],
    hides_work: Callable[[Trace], bool],
    progress: Progress,
) -> Watched:
    """Time, trace and count the call of a model, which is not compiled."""
    import torch

    from flopprof.capture.foreign import CallsSeen, foreign_modules
    from flopprof.capture.modules import count_modules
    from flopprof.capture.record import LEAST_TO_CONFIRM, record_traces, time_calls

    progress("warming up")
    call()
    warmup = max(settings.warmup - 1, 0)
    step = stepping(progress, f"timing {settings.repeats} calls", warmup + settings.repeats)
    with device.telemetry() as telemetry, host_load() as load:
        times_us = time_calls(
            call, device=device, warmup=warmup, repeats=settings.repeats, step=step
        )
    progress("tracing")
    recordings = record_traces(model, call, folder, device=device, traces=settings.traces)
    progress("counting")
    seen = CallsSeen(model)
    with seen:
        module_calls = count_modules(model, call)
    observer, doubts = observer_effect(recordings[0], times_us, call, device, described)
    progress(f"reading {len(recordings)} traces")
    trace, *others = read_traces(recordings, model)
    packed = gzipped(recordings[0].path)
    if len(recordings) < LEAST_TO_CONFIRM and hides_work(trace):
        progress("tracing again: is the hidden time there each time?")
        missing = LEAST_TO_CONFIRM - len(recordings)
        others += trace_again(model, call, folder, device, missing)
    if busy := busy_warning(load, torch.get_num_threads()):
        doubts.append(Warned(code="load", text=busy))
    return Watched(
        module_calls,
        trace,
        others,
        packed,
        recordings[0].traced_us,
        times_us,
        described,
        telemetry,
        observer,
        foreign_modules(model, seen),
        doubts=doubts,
    )


def call_of(
    model: "nn.Module", subject: Subject, snapshot: Snapshot, device: Device, settings: Settings
) -> Call:
    """Return the call that each pass makes: a forward pass, or a training step."""
    training = training_of(settings)
    inputs = training.of(model, subject.inputs) if training else subject.inputs
    call = guarded(model, inputs, snapshot)
    if settings.autocast:
        return autocasting(call, device.torch_device, settings.autocast)
    return call


def _add_compiled(watched: Watched, facts: dict[str, Any], trace: Trace) -> None:
    wall_us = Spread(**facts.pop("wall_us"))
    compiled, doubts = against_eager(facts, trace, watched.trace.ops)
    watched.compiled = (compiled, wall_us)
    watched.doubts += doubts


def on_device(subject: Subject, device: Device, training: Training | None) -> Subject:
    """Return the subject with model and inputs on `device`; the caller's own stay as they are.

    Raises:
        UsageError: The model would have to move, and a step of the user's own trains it.
        ModelError: The device has not the memory.
    """
    model = subject.model
    where = home(model)[0]
    if device.torch_device not in (where, where.split(":")[0]):
        if training and training.step:
            raise UsageError(
                f"the model is on {where}, and a step of your own trains it there",
                remedy=f"move it first: model.to({device.torch_device!r})",
            )
        with telling_of_memory(f"the model moved to {device.torch_device}"):
            model = copy.deepcopy(model).to(device.torch_device)
    with telling_of_memory(f"the inputs moved to {device.torch_device}"):
        inputs = subject.inputs.to(device.torch_device)
    return Subject(model, inputs, subject.origin)
