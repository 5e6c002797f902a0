"""One call of a model counted, not timed: hooks and formulas, by shapes where these say all."""

from typing import TYPE_CHECKING

import pandas as pd

from flopprof.assemble import Witnesses, as_call, assemble
from flopprof.capture.call import home
from flopprof.capture.decoding import count_generation
from flopprof.capture.describe import (
    describe_call,
    describe_environment,
    describe_source,
    main_dtype,
    what_is_missing,
)
from flopprof.capture.foreign import foreign_work
from flopprof.capture.passes import count_and_trace
from flopprof.capture.subject import Subject, training_of
from flopprof.errors import FlopprofError
from flopprof.provenance import CountProvenance, DeviceFacts, Memory, Warned, warned
from flopprof.run import Run
from flopprof.settings import Progress, Settings, silent
from flopprof.tables import ROOFLINES
from flopprof.trace.read import Trace

if TYPE_CHECKING:
    from flopprof.capture.training import Training


def counted_run(subject: Subject, settings: Settings, progress: Progress = silent) -> Run:
    """Return the run of one call that is counted and not timed; on the meta device where it can be.

    Args:
        subject: The model and its inputs.
        settings: How it is called.
        progress: Called with the name of each stage as it begins.

    Raises:
        GradientsError: The model asks for gradients, which no call outside training records.
        ModelError: It raised.
    """
    training = training_of(settings)
    doubts = warned("model", subject.origin.warnings)
    traced = _count_on_meta(subject, training, progress)
    where = "meta"
    if isinstance(traced, FlopprofError):
        # What the model says on its own device is clearer, or it runs there.
        text = (
            "the model needs values: it was counted for these; work outside PyTorch, such as "
            "numpy's, is only seen where time is: flopprof run"
        )
        doubts.append(Warned(code="values", text=text))
        traced = None
    if traced is None:
        where = home(subject.model)[0]
        inputs = subject.inputs.to("meta") if where == "meta" else subject.inputs
        traced = count_and_trace(subject.model, inputs, training, progress)
    trace, module_calls, foreign = traced
    missing = what_is_missing(subject.origin, subject.model, module_calls, is_count=True)
    doubts += warned("model", missing)
    provenance = CountProvenance(
        source=describe_source(subject.model, module_calls, subject.origin),
        called=describe_call(
            subject.model,
            subject.inputs,
            subject.origin,
            settings,
            main_dtype(subject.model, subject.inputs),
        ),
        device=DeviceFacts(name=where, kind=where),
        environment=describe_environment(),
        memory=memory_of(subject, settings),
        generate=count_generation(subject, settings, counted_run),
    )
    doubts += warned("foreign", foreign_work(foreign))
    doubts += warned("trace", trace.info["warnings"])
    witnesses = Witnesses(module_calls, [as_call(trace, foreign)])
    return assemble(witnesses, ROOFLINES.empty(), provenance, doubts=doubts)


def memory_of(subject: Subject, settings: Settings) -> Memory | None:
    """Return what the call needs of memory, where that was asked for."""
    if not settings.memory:
        return None
    from flopprof.capture.memory import describe_memory  # which imports torch

    return describe_memory(subject.model, subject.inputs, training_of(settings))


def _count_on_meta(
    subject: Subject, training: "Training | None", progress: Progress
) -> "tuple[Trace, pd.DataFrame, dict[str, str]] | FlopprofError | None":
    """Return what a copy of the model did on the meta device, or why it could not run there.

    None is for what is there already, or what shapes do not tell: nested and sparse inputs (how
    many elements they store is lost on the meta device), a step that trains this very model.
    """
    from flopprof.capture.sparse import holds_sparse  # which import torch
    from flopprof.capture.twin import meta_twin

    model = subject.model
    if home(model)[0] == "meta" or (training is not None and training.step is not None):
        return None
    if not subject.inputs.has_shapes or holds_sparse(model, subject.inputs):
        return None
    twin = meta_twin(model)
    if twin is None:
        return None
    try:
        return count_and_trace(twin, subject.inputs.to("meta"), training, progress)
    except FlopprofError as error:
        return error
