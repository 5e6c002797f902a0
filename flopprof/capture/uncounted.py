"""Calls of ops that nothing counts, kept so that they can be made again."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.module_tracker import ModuleTracker

from flopprof.capture.dispatched import OpOfModel, calling, path_of
from flopprof.formulas import OpCall

if TYPE_CHECKING:
    from flopprof.capture.subject import Subject
    from flopprof.capture.training import Training

_BACKENDS = ("QuantizedCPU", "SparseCPU", "SparseCsrCPU", "MkldnnCPU", "CPU")
"""Keys of the dispatcher by which kernels for a CPU are chosen, that of plain tensors last."""

Wanted = Callable[[OpCall], bool]
"""Whether calls like this one are to be kept."""


@dataclass(slots=True)
class KeptCalls:
    """Calls that are alike: of one op, at the same shapes, types and values.

    Attributes:
        first: The first of them.
        paths: How many of them each module made.
    """

    first: OpOfModel
    paths: Counter[str] = field(default_factory=Counter)


class _Keeper:
    """Keeps what is wanted, whichever mode sees it."""

    def __init__(self, is_wanted: Wanted, tracker: ModuleTracker | None = None) -> None:
        self.is_wanted = is_wanted
        self.tracker = tracker
        self.kept: dict[OpCall, KeptCalls] = {}

    def keep(self, func: OpOverload, args: Any, kwargs: dict[str, Any]) -> None:
        call = OpOfModel(func, args, kwargs)
        if self.is_wanted(call.recorded):
            entry = self.kept.setdefault(call.recorded, KeptCalls(call))
            entry.paths["" if self.tracker is None else path_of(self.tracker)] += 1


class _Dispatched(TorchDispatchMode):
    """Sees ops that have a kernel of their own."""

    def __init__(self, keeper: _Keeper) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keeper = keeper

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, HigherOrderOperator) and not func.is_view:
            self.keeper.keep(func, args, kwargs)
        return func(*args, **kwargs)


class _Called(TorchFunctionMode):
    """Sees ops that Python calls and whose one kernel is for all devices: no dispatch mode does."""

    def __init__(self, keeper: _Keeper) -> None:
        super().__init__()
        self.keeper = keeper

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        op = _overload(func)
        if op is not None and _is_composite(op):
            self.keeper.keep(op, args, kwargs)
        return func(*args, **kwargs)


def _overload(func: Any) -> OpOverload | None:
    """Return the op that is called; None for what is none, and for one of several overloads."""
    if isinstance(func, OpOverloadPacket):
        names = func.overloads()
        return getattr(func, names[0]) if len(names) == 1 else None
    return func if isinstance(func, OpOverload) else None


def _is_composite(op: OpOverload) -> bool:
    key = "CompositeImplicitAutograd"
    return torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), key)


def wanted_calls(
    subject: "Subject", is_wanted: Wanted, training: "Training | None" = None
) -> list[KeptCalls]:
    """Return the calls that are wanted of one call of a model, those that are alike together.

    Args:
        subject: The model and its inputs.
        is_wanted: Whether calls like one are.
        training: How it is trained, of a training step.

    Raises:
        UsageError: The input is at fault.
        ModelError: The model raised.
    """
    tracker = ModuleTracker()
    keeper = _Keeper(is_wanted, tracker)
    with (
        calling(subject, training) as call,
        torch.no_grad(),
        tracker,
        _Dispatched(keeper),
        _Called(keeper),
    ):
        call()
    return list(keeper.kept.values())


def calls_below(call: OpOfModel) -> list[KeptCalls]:
    """Return the calls of ops that a call on a CPU makes itself, those that are alike together."""
    keeper = _Keeper(lambda _: True)
    with torch.no_grad(), _Dispatched(keeper):
        call.function.redispatch(_backend_of(call), *call.args, **call.kwargs)
    return list(keeper.kept.values())


def _backend_of(call: OpOfModel) -> torch._C.DispatchKeySet:
    """Return the key of the kernel that a call's tensors choose."""
    tensors = [t for t in tree_leaves((call.args, call.kwargs)) if isinstance(t, Tensor)]
    keys = [torch._C._dispatch_keys(tensor) for tensor in tensors]
    backends = [torch._C._dispatch_key_parse(name) for name in _BACKENDS]
    of_call = (backend for backend in backends if any(each.has(backend) for each in keys))
    return torch._C.DispatchKeySet(next(of_call, torch._C.DispatchKey.CPU))
