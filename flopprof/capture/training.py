"""One training step of a model: forward, loss, backward, optimizer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flopprof.capture.call import Inputs
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
    """

    loss: Callable[[Any], "torch.Tensor"] | None = None
    optimizer: "str | Callable[[list[nn.Parameter]], torch.optim.Optimizer]" = "sgd"

    def of(self, model: "nn.Module", inputs: Inputs) -> "Step":
        """Return the inputs whose `call` takes a whole training step of `model`.

        Raises:
            UsageError: There is no such optimizer.
        """
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = self._make_optimizer(parameters) if parameters else None
        return Step(inputs.args, inputs.kwargs, self.loss or sum_of_outputs, optimizer)

    def _make_optimizer(self, parameters: "list[nn.Parameter]") -> "torch.optim.Optimizer | None":
        from torch import optim

        if not isinstance(self.optimizer, str):
            return self.optimizer(parameters)
        known: dict[str, Callable[[], optim.Optimizer | None]] = {
            "sgd": lambda: optim.SGD(parameters, lr=0.01),
            "momentum": lambda: optim.SGD(parameters, lr=0.01, momentum=0.9),
            "adam": lambda: optim.Adam(parameters),
            "adamw": lambda: optim.AdamW(parameters),
            "none": lambda: None,
        }
        if self.optimizer not in known:
            raise UsageError(
                f"there is no optimizer {self.optimizer!r}",
                remedy=f"known: {', '.join(OPTIMIZERS)}; or give a function of the parameters",
            )
        return known[self.optimizer]()


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
