"""NVTX ranges around each op of a call, by which a profiler of kernels tells whose they are.

A range is `flopprof#ID#OP`: the number that the op has in the table of ops of a run, and its name
without colons, at which such profilers split. Ops are seen where PyTorch dispatches them to Python:
below autograd, forward and backward, each op that is not merely made of others.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pandas as pd
from torch.utils._python_dispatch import TorchDispatchMode

from flopprof.capture.alone import alone
from flopprof.capture.call import unchanged, using_threads
from flopprof.capture.subject import Subject, training_of
from flopprof.capture.watch import call_of
from flopprof.errors import UsageError
from flopprof.executed.names import range_name

if TYPE_CHECKING:
    from flopprof.devices import Device
    from flopprof.settings import Settings

WHOLE = "flopprof#model"
"""The range around the whole call."""


class _Dispatched(TorchDispatchMode):
    """Hands the name of each op to `around`, which returns what ends it."""

    def __init__(self, around: Callable[[str, str], Callable[[], None]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self._around = around

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        end = self._around(func.name().partition(".")[0], str(func))
        try:
            return func(*args, **(kwargs or {}))
        finally:
            end()


def dispatched_ops(call: Callable[[], object]) -> list[str]:
    """Call once, and return the names of the ops that were dispatched, `aten::mm`, in order."""
    names: list[str] = []

    def around(name: str, _: str) -> Callable[[], None]:
        names.append(name)
        return _nothing

    with _Dispatched(around):
        call()
    return names


def _nothing() -> None:
    pass


def align(names: Sequence[str], ops: pd.DataFrame) -> list[int]:
    """Return the op of a traced call that each dispatched one is; -1 where none is.

    The dispatched ones are the outermost of their names in the tree of ops, in the same order. A
    name that is not there equally often has no numbers: autograd's own `detach` is dispatched, and
    no profiler records it. All are -1 where the rest is not in the same order.

    Args:
        names: By `dispatched_ops`, of another call of the same model and input.
        ops: Table OPS of a traced call.
    """
    recorded = _outermost(ops, set(names))
    texts = ops["op"].astype("str").tolist()
    dispatched_counts = Counter(names)
    recorded_counts = Counter(texts[op] for op in recorded)
    rows = [op for op in recorded if recorded_counts[texts[op]] == dispatched_counts[texts[op]]]
    places = [
        at for at, name in enumerate(names) if recorded_counts[name] == dispatched_counts[name]
    ]
    numbers = [-1] * len(names)
    if [texts[op] for op in rows] == [names[at] for at in places]:
        for at, op in zip(places, rows, strict=True):
            numbers[at] = op
    return numbers


def _outermost(ops: pd.DataFrame, names: set[str]) -> list[int]:
    """Return the ops of these names that lie in no other of them, by their start."""
    texts = ops["op"].astype("str").tolist()
    parents = ops["parent_op_id"].tolist()
    inside = [False] * len(texts)
    outermost = []
    for op, parent in enumerate(parents):  # a parent comes first
        if parent >= 0 and inside[parent]:
            inside[op] = True
        elif texts[op] in names:
            inside[op] = True
            outermost.append(op)
    starts = ops["start_us"].tolist()
    return sorted(outermost, key=lambda op: (starts[op], op))


def call_in_ranges(
    call: Callable[[], object], names: Sequence[str], numbers: Sequence[int]
) -> bool:
    """Call once, each op inside a range that tells its number; return whether all had their turn.

    Args:
        call: What to call.
        names: What it dispatches, by `dispatched_ops`.
        numbers: The op of the run that each is; one that is not known gets a range without number.

    Raises:
        UsageError: This build of PyTorch has no NVTX.
    """
    push, pop = _nvtx()
    place = 0
    agrees = True

    def around(name: str, full_name: str) -> Callable[[], None]:
        nonlocal place, agrees
        agrees = agrees and place < len(names) and names[place] == name
        number = numbers[place] if agrees else -1
        place += 1
        push(f"flopprof#{number if number >= 0 else '-'}#{range_name(full_name)}")
        return pop

    push(WHOLE)
    try:
        with _Dispatched(around):
            call()
    finally:
        pop()
    return agrees and place == len(names)


def _nvtx() -> tuple[Callable[[str], Any], Callable[[], Any]]:
    """Return what begins and ends a range."""
    import torch

    try:
        torch.cuda.nvtx.range_push(WHOLE)
        torch.cuda.nvtx.range_pop()
    except RuntimeError as error:
        raise UsageError(
            f"this build of PyTorch ({torch.__version__}) has no NVTX ranges",
            remedy="install one for CUDA: pip install torch",
        ) from error
    return torch.cuda.nvtx.range_push, torch.cuda.nvtx.range_pop


@alone()
def profile_in_ranges(
    subject: Subject, device: "Device", settings: "Settings", ops: pd.DataFrame
) -> bool:
    """Make the call that a profiler watches: one, in ranges, between its start and its stop.

    Two calls go before it: one warms up, one tells what is dispatched.

    Args:
        subject: The model, on `device`, and its inputs.
        device: Where it is.
        settings: How it is called.
        ops: Table OPS of a profiled run of the same model and input.

    Returns:
        Whether every op's number is known.
    """
    training = training_of(settings)
    besides = training.besides if training else ()
    with ExitStack() as stack:
        stack.enter_context(using_threads(settings.threads))
        if settings.tf32:
            stack.enter_context(device.tf32())
        snapshot = stack.enter_context(
            unchanged(subject.model, subject.inputs, training=training is not None, besides=besides)
        )
        call = call_of(subject.model, subject, snapshot, device, settings)
        call()
        call.prepare()
        names = dispatched_ops(call)
        numbers = align(names, ops)
        call.prepare()
        device.synchronize()
        with _watched():
            same = call_in_ranges(call, names, numbers)
            device.synchronize()
    return same and any(number >= 0 for number in numbers)


@contextmanager
def _watched() -> Iterator[None]:
    """Let a profiler that waits for it watch what runs inside."""
    import torch

    if not torch.cuda.is_available():
        yield
        return
    torch.cuda.profiler.start()
    try:
        yield
    finally:
        torch.cuda.profiler.stop()
