"""One training step of a model: forward, loss, backward, optimizer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flopprof.capture.call import Inputs
from flopprof.capture.restore import held_by
from flopprof.errors import UsageError
from flopprof.tables import LOSS

if TYPE_CHECKING:
    import torch
    from torch import nn


OPTIMIZERS = ("sgd", "momentum", "adam", "adamw", "none")


@dataclass(frozen=True, slots=True)
class Training:
    """How a training step goes on after the forward pass.

    Attributes:
        loss: Maps the model's output to a scalar; the sum of all floating-point outputs if None.
        optimizer: One of `OPTIMIZERS`, or a function from parameters to an optimizer.
        step: A whole training step of one's own, in place of all this: a function of the model and
            its inputs (a tensor, or a tuple or dict of several). What it uses besides them,
            optimizers, scalers, other models, is afterwards as it was.
    """

    loss: Callable[[Any], "torch.Tensor"] | None = None
    optimizer: "str | Callable[[list[nn.Parameter]], torch.optim.Optimizer]" = "sgd"
    step: "Callable[[nn.Module, Any], object] | None" = None

    @property
    def besides(self) -> list[Any]:
        """What a step of one's own uses besides model and inputs."""
        return held_by(self.step) if self.step else []

    def of(self, model: "nn.Module", inputs: Inputs) -> "Step | OwnStep":
        """Return the inputs whose `call` takes a whole training step of `model`.

        Raises:
            UsageError: There is no such optimizer.
        """
        if self.step:
            return OwnStep(inputs.args, inputs.kwargs, step=self.step)
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = self._make_optimizer(parameters) if parameters else None
        loss = self.loss or sum_of_outputs
        return Step(inputs.args, inputs.kwargs, loss=loss, optimizer=optimizer)

    def _make_optimizer(self, parameters: "list[nn.Parameter]") -> "torch.optim.Optimizer | None":
        from torch import optim

        if not isinstance(self.optimizer, str):
            return self.optimizer(parameters)
        makers: dict[str, Callable[[], optim.Optimizer | None]] = {
            "sgd": lambda: optim.SGD(parameters, lr=0.01),
            "momentum": lambda: optim.SGD(parameters, lr=0.01, momentum=0.9),
            "adam": lambda: optim.Adam(parameters),
            "adamw": lambda: optim.AdamW(parameters),
            "none": lambda: None,
        }
        if self.optimizer not in makers:
            raise UsageError(
                f"there is no optimizer {self.optimizer!r}",
                remedy=f"known: {', '.join(OPTIMIZERS)}; or give a function of the parameters",
            )
        return makers[self.optimizer]()


@dataclass(frozen=True, slots=True)
class Step(Inputs):
    """Inputs that a model is trained on for one step when it is called with them."""

    loss: Callable[[Any], "torch.Tensor"] | None = None
    optimizer: "torch.optim.Optimizer | None" = None

    def call(self, model: "nn.Module") -> None:
        """Take the step: forward, loss, backward, and the optimizer's, if there is one."""
        import torch
        from torch._C._profiler import _RecordFunctionFast

        if self.optimizer:
            self.optimizer.zero_grad()
        with torch.enable_grad():
            output = model(*self.args, **self.kwargs)
            with _RecordFunctionFast(f"flopprof:{LOSS}"):
                value = (self.loss or sum_of_outputs)(output)
        if value.requires_grad:
            value.backward()
        if self.optimizer:
            self.optimizer.step()


@dataclass(frozen=True, slots=True)
class OwnStep(Inputs):
    """Inputs that the user's own function trains the model on when it is called with them."""

    step: "Callable[[nn.Module, Any], object]" = print  # always given: a field after defaults

    def call(self, model: "nn.Module") -> None:
        """Take the step, with gradients."""
        import torch

        inputs: Any = self.args if len(self.args) != 1 else self.args[0]
        if self.kwargs:
            inputs = dict(self.kwargs) if not self.args else (*self.args, dict(self.kwargs))
        with torch.enable_grad():
            self.step(model, inputs)


def sum_of_outputs(output: Any) -> "torch.Tensor":
    """Return the sum of every floating-point tensor in `output` that has a gradient.

    Raises:
        UsageError: There is none.
    """
    from flopprof.capture.hooks import tensors_in

    values = [t.sum() for t in tensors_in(output) if t.is_floating_point() and t.requires_grad]
    if not values:
        raise UsageError(
            "no output of the model has a gradient",
            remedy="profile it without training, or give a loss",
        )
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total


if TYPE_CHECKING:
    Train = bool | Training | Callable[[nn.Module, Any], object]
