"""Step ops through one CPU thread, and compare what it executes with what is counted."""

import csv
import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flopprof.errors import FlopprofError, ModelError, UsageError
from flopprof.executed.blas import one_blas_thread
from flopprof.executed.decode import Operations
from flopprof.executed.explain import UNKNOWN, Counted, Explained, explain, matmul_class
from flopprof.executed.measured import MeasuredGaps, MeasuredOp, OwnWork, own_work
from flopprof.executed.stepping import (
    PER_SECOND,
    Stepped,
    check_can_step,
    others_work,
    others_work_in_parts,
    step,
    step_parts,
)
from flopprof.formulas import OpCall, Work, looks_below
from flopprof.settings import Progress, Settings, silent
from flopprof.stages import Stage
from flopprof.units import counted as number_of
from flopprof.units import safe_text, shapes_text

if TYPE_CHECKING:
    from flopprof.capture.between import Switch
    from flopprof.capture.dispatched import OpOfModel
    from flopprof.capture.subject import Subject
    from flopprof.capture.training import Training
    from flopprof.capture.uncounted import KeptCalls

LIMIT_S = 60
"""What takes longer is refused, unless it is forced."""

_FLOPS_PER_INSTRUCTION = 32  # of AVX-512: 16 float32 multiplied and added
_INSTRUCTIONS_AROUND = 15_000  # of a call: Python, dispatcher, allocator
_NO_LIMIT = 1 << 62
_TOO_LONG = f"stepping took {LIMIT_S} seconds (--force goes on)"
_OTHERS = "other threads work in it, which are not seen"


@dataclass(frozen=True, slots=True)
class SteppedOp:
    """What one op executed in one thread, beside what is counted for it.

    Attributes:
        op: Dispatcher name.
        shapes: Of its arguments, as text.
        dtype: Of its first tensor.
        module_path: Of a model: where it is called first.
        phase: Likewise: forward, backward, optimizer.
        calls: Of a model: how many calls are like this one.
        counted_matmul_flops: By its formula; None without one.
        counted_vector_flops: Likewise.
        executed: What was executed; None where that is not known.
        conclusion: Verdict and reason.
    """

    op: str
    shapes: str
    dtype: str
    module_path: str
    phase: str
    calls: int
    counted_matmul_flops: int | None
    counted_vector_flops: int | None
    executed: Operations | None
    conclusion: Explained

    @property
    def ratio(self) -> float:
        """Executed over counted: of multiply-adds where there are products, else of all FLOPs."""
        if self.executed is None:
            return math.nan
        if self.counted_matmul_flops:
            return matmul_class(self.executed) / self.counted_matmul_flops
        if self.counted_vector_flops:
            return self.executed.flops / self.counted_vector_flops
        return math.nan


def step_ops(
    ops: Sequence[str],
    *,
    shapes: Sequence[str] = (),
    dtype: str | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> list[SteppedOp]:
    """Return what ops execute in one thread at small sizes.

    Args:
        ops: Dispatcher names, such as "aten::mm".
        shapes: Arguments, for each op in turn: "32x32,32x32" or "1x16x8x8,16x16x3x3,None,[2,2]";
            those of default_shapes.csv where there are none.
        dtype: Of tensors of floating point.
        force: Whether to step what takes more than a minute.
        progress: Called with the name of each op as it begins.

    Raises:
        UsageError: An op or its arguments are not known, calls cannot be stepped here, or it would
            take too long.
        ModelError: An op raised.
    """
    from flopprof.capture.dispatched import op_with_arguments, overloads

    check_can_step()
    calls: list[OpOfModel] = []
    for op in ops:
        overloads(op)  # first of all, is there such an op
        texts = shapes or _default_arguments(op)
        calls.extend(op_with_arguments(op, text, dtype) for text in texts)
    return step_calls(calls, force=force, progress=progress)


def step_model(
    model: Any, settings: Settings, *, force: bool = False, progress: Progress = silent
) -> list[SteppedOp]:
    """Return what each distinct op of one call of a model executes in one thread.

    The model is called once, in eval mode and without gradients, or trained for a step; then its
    ops are stepped one by one, those that only view or move data left out.

    Args:
        model: A module, or what `load` takes.
        settings: How it is found, and its inputs.
        force: Whether to step what takes more than a minute.
        progress: Called with the name of each stage as it begins.

    Raises:
        UsageError: The model or its input is not usable, calls cannot be stepped here, or it would
            take too long.
        ModelError: The model raised.
    """
    from flopprof.capture.dispatched import ops_of_call
    from flopprof.capture.subject import find_subject, training_of

    check_can_step()
    progress("calling the model")
    calls = ops_of_call(find_subject(model, None, None, settings), training_of(settings))
    return step_calls(calls, force=force, progress=progress)


def step_calls(
    calls: "Sequence[OpOfModel]", *, force: bool = False, progress: Progress = silent
) -> list[SteppedOp]:
    """Step calls one after another, within the limit of time in all.

    Raises:
        UsageError: They would take too long.
        ModelError: An op raised.
    """
    counted = [count_call(call) for call in calls]
    left = _NO_LIMIT if force else LIMIT_S * PER_SECOND
    _refuse_what_takes_long(counted, left)
    rows = []
    with _one_thread():
        for number, (call, count) in enumerate(zip(calls, counted, strict=True), 1):
            name = f"stepping {count.op} ({number} of {len(calls)})"
            progress(Stage(name, done=number - 1, total=len(calls)))
            row, instructions = _row(call, count, left)
            left = max(0, left - instructions)
            rows.append(row)
    return rows


@contextmanager
def _one_thread() -> Iterator[None]:
    """Have calls made by one thread, without gradients, and random states put back."""
    import torch

    from flopprof.capture.alone import alone
    from flopprof.capture.call import using_threads

    with ExitStack() as stack:
        stack.enter_context(alone())
        stack.enter_context(using_threads(1))
        stack.enter_context(one_blas_thread())
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(torch.no_grad())
        yield


def measure_uncounted(
    subject: "Subject",
    wanted: Collection[tuple[str, str]],
    paths: Collection[str] = (),
    *,
    training: "Training | None" = None,
    force: bool = False,
    progress: Progress = silent,
) -> tuple[list[MeasuredOp], dict[str, MeasuredGaps]]:
    """Return what of one call of a model executed that nothing counts.

    That is of ops their own work, without that of the ops below them; and of modules what their own
    code does between ops, such as with numpy.

    Args:
        subject: The model and its inputs.
        wanted: Dispatcher names and shapes of the ops that are meant, as sites have them.
        paths: Of the modules that are meant.
        training: How the model is trained, of a training step.
        force: Whether to step what takes more than a minute.
        progress: Called with the name of each op or module as it begins.

    Raises:
        UsageError: The input is not usable, or calls cannot be stepped here.
        ModelError: The model raised.
    """
    from flopprof.capture.uncounted import wanted_calls

    check_can_step()
    progress("calling the model")

    def is_wanted(call: OpCall) -> bool:
        return (call.op, shapes_text(call.shapes)) in wanted

    kept = wanted_calls(subject, is_wanted, training)
    stepper = _OwnStepper(wanted, _NO_LIMIT if force else LIMIT_S * PER_SECOND)
    total = len(kept) + len(paths)
    with _one_thread():
        for number, calls in enumerate(kept, 1):
            name = f"stepping {calls.first.recorded.op} ({number} of {total})"
            progress(Stage(name, done=number - 1, total=total))
            stepper.measure(calls)
        gaps = {}
        for number, path in enumerate(paths, len(kept) + 1):
            name = f"stepping between ops of {path or 'the model'} ({number} of {total})"
            progress(Stage(name, done=number - 1, total=total))
            gaps[path] = stepper.measure_gaps(subject, path, training)
    return stepper.measured, gaps


class _OwnStepper:
    """Steps ops, the ops that they call, and what lies between, within a limit in all.

    Attributes:
        measured: What was found out so far.
    """

    def __init__(self, wanted: Collection[tuple[str, str]], most: int) -> None:
        self.wanted = wanted
        self.left = most
        self.measured: list[MeasuredOp] = []
        self.stepped: dict[OpCall, tuple[Operations, str]] = {}

    def measure(self, calls: "KeptCalls") -> None:
        """Step the first of calls that are alike, and the ops that nothing counts below it."""
        from flopprof.capture.uncounted import calls_below

        whole, reason = self._step(calls.first)
        below = [] if reason else calls_below(calls.first)
        parts = []
        for inner in below:
            times = inner.paths.total()
            operations, why = self._step(inner.first)
            reason = reason or why
            parts.append((operations, times))
            recorded = inner.first.recorded
            if (recorded.op, shapes_text(recorded.shapes)) in self.wanted:
                for path, calls_of_path in calls.paths.items():
                    inner_paths = Counter({path: calls_of_path * times})
                    self.measure(replace(inner, paths=inner_paths))
        work: OwnWork | None = None
        if not reason:
            work, reason = own_work(whole, parts)
        recorded = calls.first.recorded
        for path, number in calls.paths.items():
            self.measured.append(
                MeasuredOp(
                    op=recorded.op,
                    shapes=shapes_text(recorded.shapes),
                    module_path=path,
                    calls=number,
                    executed=work,
                    reason=reason,
                )
            )

    def measure_gaps(
        self, subject: "Subject", path: str, training: "Training | None"
    ) -> MeasuredGaps:
        """Step what a module's own code does between ops in one call of the model."""
        from flopprof.capture.between import call_between

        if self.left <= 0:
            return MeasuredGaps(None, _TOO_LONG)

        def call(switch: "Switch") -> None:
            call_between(subject, path, switch, training)

        if others_work_in_parts(call):  # these calls are also those by which code is made
            return MeasuredGaps(None, _OTHERS)
        stepped = step_parts(call, most=self.left)
        self.left = max(0, self.left - stepped.operations.instructions)
        if stepped.why_stopped:
            return MeasuredGaps(None, stepped.why_stopped)
        return MeasuredGaps(*own_work(stepped.operations, []))

    def _step(self, call: "OpOfModel") -> tuple[Operations, str]:
        """Return what a call executes, those below it too, and why that is not known."""
        if call.recorded in self.stepped:
            return self.stepped[call.recorded]
        if self.left <= 0:
            return Operations(), _TOO_LONG
        stepped = _step_or_raise(call, self.left)
        if not stepped.why_stopped and others_work(call):
            stepped = Stepped(stepped.operations, _OTHERS)
        self.left = max(0, self.left - stepped.operations.instructions)
        self.stepped[call.recorded] = (stepped.operations, stepped.why_stopped)
        return self.stepped[call.recorded]


def _step_or_raise(call: "OpOfModel", most: int) -> Stepped:
    """Step a call.

    Raises:
        ModelError: It raised.
    """
    with _raised_by(call):
        return step(call, most=most)


@contextmanager
def _raised_by(call: "OpOfModel") -> Iterator[None]:
    """Turn what an op raises into `ModelError`."""
    try:
        yield
    except FlopprofError:
        raise
    except Exception as error:
        first_line = safe_text(str(error).partition("\n")[0])
        raise ModelError(
            f"{call.recorded.op} raised {type(error).__name__}: {first_line}",
            remedy='give it other arguments: --shapes "32x32,32x32"',
        ) from error


def _row(call: "OpOfModel", counted: Counted, most: int) -> tuple[SteppedOp, int]:
    """Step one call; also return how many instructions were stepped."""
    if most <= 0:
        why = f"the ops before it took {LIMIT_S} seconds (--force goes on)"
        executed: Operations | None = None
        conclusion = explain(counted, Operations(), why)
        instructions = 0
    else:
        stepped = _step_or_raise(call, most)
        conclusion = explain(counted, stepped.operations, stepped.why_stopped)
        executed = None if conclusion.verdict == UNKNOWN else stepped.operations
        instructions = stepped.operations.instructions
    row = SteppedOp(
        op=counted.op,
        shapes=shapes_text(counted.shapes),
        dtype=call.dtype,
        module_path=call.module_path,
        phase=call.phase,
        calls=call.calls,
        counted_matmul_flops=counted.matmul_flops,
        counted_vector_flops=counted.vector_flops,
        executed=executed,
        conclusion=conclusion,
    )
    return row, instructions


def count_call(call: "OpOfModel") -> Counted:
    """Return what is counted for a call; None of what is not, or between bounds."""
    from flopprof.formulas import load_op_formulas

    load_op_formulas()
    work = _work_of(call)
    if work is not None and work.flops_at_most is not None:
        work = None
    return Counted(
        op=call.recorded.op,
        shapes=call.recorded.shapes,
        values=call.recorded.values,
        matmul_flops=None if work is None else work.matmul_flops,
        vector_flops=None if work is None else work.vector_flops,
    )


def _work_of(call: "OpOfModel") -> Work | None:
    """Return what an op's formula counts; where it leaves that to them, the ops below.

    So does the formula of `einsum`, whose equation decides which products there are. Of sparse
    tensors the elements count that are stored.
    """
    from flopprof.capture.sparse import has_sparse, stored_call
    from flopprof.formulas.external import find_op_formula

    formula = find_op_formula(call.recorded.op)
    if formula is None:
        return None
    if not has_sparse(call.args):
        return formula(call.recorded) or _work_below(call)
    stored = stored_call(call.recorded.op, call.args, call.kwargs)
    of_stored = None if stored is None else find_op_formula(stored.op)
    if stored is None or of_stored is None:
        return _work_below(call)
    return of_stored(stored)


def _work_below(call: "OpOfModel") -> Work | None:
    """Return what is counted for the ops that a call makes.

    None where one of them has no count, or the call may do work of its own.
    """
    from flopprof.capture.uncounted import calls_below

    if not looks_below(call.recorded.op):
        return None
    matmul_flops = 0
    vector_flops = 0
    with _raised_by(call):
        below = calls_below(call)
    for inner in below:
        work = _work_of(inner.first)
        if work is None or work.flops_at_most is not None:
            return None
        matmul_flops += inner.paths.total() * work.matmul_flops
        vector_flops += inner.paths.total() * work.vector_flops
    return Work(matmul_flops, vector_flops) if below else None


def _refuse_what_takes_long(counted: Sequence[Counted], most: int) -> None:
    """Raise `UsageError` where the counted FLOPs alone take more instructions than `most`."""
    flops = sum((each.matmul_flops or 0) + (each.vector_flops or 0) for each in counted)
    least = flops // _FLOPS_PER_INSTRUCTION + _INSTRUCTIONS_AROUND * len(counted)
    if least > most:
        raise UsageError(
            f"{number_of(len(counted), 'op')}, {flops:,} FLOPs, take {least / PER_SECOND:,.0f} "
            "seconds or more to step",
            remedy="give a smaller input (--batch 1, --input-size 32, --shapes), or add --force",
        )


def _default_arguments(op: str) -> list[str]:
    """Return the small arguments that an op is tried with.

    Raises:
        UsageError: There are none for it.
    """
    arguments = [text for name, text in default_calls() if name == op]
    if not arguments:
        raise UsageError(
            f"{safe_text(op)} has no default sizes",
            remedy=f'give its arguments: flopprof verify {safe_text(op)} --shapes "32x32,32x32"',
        )
    return arguments


@cache
def default_calls() -> tuple[tuple[str, str], ...]:
    """Return the ops with default arguments, and these, as default_shapes.csv has them."""
    file = Path(__file__).parent / "executed" / "default_shapes.csv"
    with file.open(encoding="utf-8") as lines:
        return tuple((row["op"], row["arguments"]) for row in csv.DictReader(lines))
