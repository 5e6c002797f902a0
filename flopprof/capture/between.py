"""One call of a model, watched where a module's own code runs, outside of its ops and modules."""

from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn
from torch._ops import OpOverload, OpOverloadPacket
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from flopprof.capture.dispatched import calling
from flopprof.capture.hooks import watch_modules

if TYPE_CHECKING:
    from flopprof.capture.subject import Subject
    from flopprof.capture.training import Training


class Switch(Protocol):
    """What is turned on where the module's own code runs, and off where it does not."""

    def on(self) -> None:
        """Begin, or go on."""

    def off(self) -> None:
        """Stop for now."""


class _Gate:
    """Turns a switch on in calls of one module, outside of the ops and modules that it calls."""

    def __init__(self, switch: Switch, path: str) -> None:
        self.switch = switch
        self.path = path
        self.is_inside = False  # the innermost module that is called is the one of `path`
        self.ops = 0  # that are being called, one inside the other

    def enter(self, _module: nn.Module, path: str, _around: bool | None) -> bool:
        """Enter a module; return whether the one around it is the one that is meant."""
        before = self.is_inside
        self._set(is_inside=path == self.path)
        return before

    def leave(self, before: bool, *_call: Any) -> None:
        """Leave a module."""
        self._set(is_inside=before)

    def _set(self, *, is_inside: bool) -> None:
        if self.is_inside and not self.ops:
            self.switch.off()
        self.is_inside = is_inside
        if self.is_inside and not self.ops:
            self.switch.on()

    def call(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Call an op with the switch off."""
        if self.is_inside and not self.ops:
            self.switch.off()
        self.ops += 1
        try:
            return func(*args, **kwargs)
        finally:
            self.ops -= 1
            if self.is_inside and not self.ops:
                self.switch.on()


class _Dispatched(TorchDispatchMode):
    """Sees ops that have a kernel of their own."""

    supports_higher_order_operators = True

    def __init__(self, gate: _Gate) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.gate = gate

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self.gate.call(func, args, kwargs or {})


class _Called(TorchFunctionMode):
    """Sees ops that Python calls, those too whose one kernel is for all devices."""

    def __init__(self, gate: _Gate) -> None:
        super().__init__()
        self.gate = gate

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, OpOverload | OpOverloadPacket):
            return self.gate.call(func, args, kwargs)
        return func(*args, **kwargs)


def call_between(
    subject: "Subject", path: str, switch: Switch, training: "Training | None" = None
) -> None:
    """Call the model, or train it for a step; the switch is on in the forward code of a module.

    That is the one at `path`, its own code alone.

    Raises:
        UsageError: The input is at fault.
        ModelError: The model raised.
    """
    gate = _Gate(switch, path)
    with (
        calling(subject, training) as call,
        torch.no_grad(),
        _Dispatched(gate),
        _Called(gate),
        watch_modules(subject.model, gate.enter, gate.leave),
    ):
        call()
