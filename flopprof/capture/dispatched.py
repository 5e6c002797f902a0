"""Ops that can be called again: those of one call of a model, or one by its name."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator, OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.module_tracker import ModuleTracker

from flopprof.capture.call import SEED, guarded, unchanged
from flopprof.capture.meta import recorded_call
from flopprof.errors import UsageError
from flopprof.formulas import FREE_OPS, OpCall, load_op_formulas
from flopprof.model.inputs import InputSpec, ValueSpec, make_inputs, parse_input
from flopprof.units import safe_text

if TYPE_CHECKING:
    from flopprof.capture.subject import Subject
    from flopprof.capture.training import Training


@dataclass(slots=True)
class OpOfModel:
    """A call of an op that can be made again.

    Attributes:
        function: The op.
        args: Its arguments; tensors are copied for each call if the op changes them.
        kwargs: Those by name.
        recorded: The call as a formula takes it.
        module_path: The module that called it first; "" for the model itself or none.
        phase: Of that call: forward, backward, optimizer.
        calls: How many calls of the model are like it.
    """

    function: OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    recorded: OpCall = field(init=False)
    module_path: str = ""
    phase: str = "forward"
    calls: int = 1

    def __post_init__(self) -> None:
        self.recorded = recorded_call(self.function, self.args, self.kwargs)
        if self.function._schema.is_mutable:
            self.args, self.kwargs = tree_map(_copied, (self.args, self.kwargs))

    def __call__(self) -> Any:
        """Make the call."""
        return self.function(*self.args, **self.kwargs)

    @property
    def dtype(self) -> str:
        """Element type of the first tensor; "" without one."""
        tensors = [v for v in tree_leaves((self.args, self.kwargs)) if isinstance(v, Tensor)]
        return str(tensors[0].dtype).removeprefix("torch.") if tensors else ""


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


class _Keeping(TorchDispatchMode):
    """Keeps each distinct call of an op that does arithmetic, by phase."""

    def __init__(self, tracker: ModuleTracker) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        load_op_formulas()
        self.tracker = tracker
        self.kept: dict[tuple[OpCall, str], OpOfModel] = {}
        self.has_been_backward = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        is_op = not isinstance(func, HigherOrderOperator)
        if is_op and not func.is_view and func._schema.name not in FREE_OPS:
            call = OpOfModel(func, args, kwargs)
            call.phase = self._phase()
            call.module_path = path_of(self.tracker)
            first = self.kept.setdefault((call.recorded, call.phase), call)
            if first is not call:
                first.calls += 1
        return func(*args, **kwargs)

    def _phase(self) -> str:
        """Return the phase of a training step that it is in."""
        if torch._C._current_graph_task_id() != -1:
            self.has_been_backward = True
            return "backward"
        is_in_module = len(self.tracker.parents) > 1  # "Global" is always there
        return "optimizer" if self.has_been_backward and not is_in_module else "forward"


def path_of(tracker: ModuleTracker) -> str:
    """Return the path of the module that is called; "" for the model itself or none."""
    names = tracker.parents - {"Global"}
    return max(names, key=len, default="").partition(".")[2]


@contextmanager
def calling(subject: "Subject", training: "Training | None") -> Iterator[Callable[[], object]]:
    """Yield a call of a model, or a training step of it; afterwards all is as it was.

    A step runs once before: the optimizer's first one makes its state. On a CPU the backward pass
    runs in the thread that asks for it, so that modes see its ops.
    """
    besides = training.besides if training else ()
    is_training = training is not None
    with unchanged(
        subject.model, subject.inputs, training=is_training, besides=besides
    ) as snapshot:
        inputs = training.of(subject.model, subject.inputs) if training else subject.inputs
        call = guarded(subject.model, inputs)
        if is_training:
            call()
            snapshot.restore()  # here, where no mode sees it
        yield call


def ops_of_call(subject: "Subject", training: "Training | None" = None) -> list[OpOfModel]:
    """Return the distinct ops of one call of a model, without those that view or move data.

    Of a training step those of the backward pass and the optimizer, too.

    Raises:
        UsageError: The input is at fault.
        ModelError: The model raised.
    """
    tracker = ModuleTracker()
    keeping = _Keeping(tracker)
    with calling(subject, training) as call, torch.no_grad(), tracker, keeping:
        call()
    return list(keeping.kept.values())


def op_with_arguments(op: str, text: str, dtype: str | None) -> OpOfModel:
    """Return a call of an op by its name, with random tensors.

    Args:
        op: Dispatcher name, such as "aten::mm", perhaps with an overload: "aten::add.Tensor".
        text: Its arguments, with commas between them: sizes, None, numbers, lists.
        dtype: Of tensors of floating point; float32 for None.

    Raises:
        UsageError: There is no such op, or its arguments do not fit.
    """
    try:
        spec = parse_input(f"[{text}]")
    except UsageError as error:
        raise UsageError(
            f"--shapes {safe_text(text)}: {safe_text(error.__cause__)}",
            remedy='write sizes, numbers, texts, None and lists: --shapes "32x32,32x32:int8,[2,2]"',
        ) from error
    arguments = list(spec.value) if isinstance(spec, ValueSpec) else []
    for overload in overloads(op):
        specs = _fitted(overload, arguments)
        if specs is not None:
            (args,), _ = make_inputs([ValueSpec(specs)], device="cpu", dtype=dtype, seed=SEED)
            return OpOfModel(overload, tuple(args))
    schemas = "; ".join(str(overload._schema) for overload in overloads(op)[:3])
    raise UsageError(
        f"{safe_text(op)} takes other arguments than {safe_text(text)}",
        remedy=f"give them in the order of its schema: {safe_text(schemas, 600)}",
    )


def overloads(op: str) -> list[OpOverload]:
    """Return the overloads of an op by its name, or the one that is named.

    Raises:
        UsageError: There is no such op.
    """
    namespace, _, name = op.partition("::")
    name, _, overload = name.partition(".")
    packet = getattr(getattr(torch.ops, namespace, None), name, None) if name else None
    if not isinstance(packet, torch._ops.OpOverloadPacket):
        raise UsageError(
            f"there is no op {safe_text(op)}",
            remedy="write it as NAMESPACE::NAME, such as aten::mm; import what defines it by "
            "--formulas FILE.py",
        )
    names = [overload] if overload in packet.overloads() else packet.overloads()
    return [getattr(packet, each) for each in names]


def _fitted(overload: OpOverload, arguments: list[Any]) -> list[Any] | None:
    """Return the arguments as an overload takes them: a bare 16 as the size of a tensor."""
    positional = [argument for argument in overload._schema.arguments if not argument.kwarg_only]
    needed = [
        argument for argument in overload._schema.arguments if not argument.has_default_value()
    ]
    if len(arguments) > len(positional) or any(argument.kwarg_only for argument in needed):
        return None
    if len(arguments) < len(needed):
        return None
    specs = []
    for value, argument in zip(arguments, positional, strict=False):
        kind = str(argument.type)
        takes_tensors = "Tensor" in kind
        if kind in ("Tensor", "Optional[Tensor]"):
            value = _sized(value)
        if takes_tensors and isinstance(value, list):
            value = [_sized(each) for each in value]
        is_tensor = isinstance(value, InputSpec)
        is_list_of_tensors = isinstance(value, list) and any(
            isinstance(v, InputSpec) for v in value
        )
        if value is not None and takes_tensors != (is_tensor or is_list_of_tensors):
            return None
        specs.append(value)
    return specs


def _sized(value: Any) -> Any:
    """Return a bare number as the size of a tensor; anything else as it is."""
    if type(value) is int and value > 0:
        return InputSpec((value,), "float32")
    return value
