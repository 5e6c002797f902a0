"""A case: a model, its inputs, and the FLOPs of its contractions, derived by hand."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True, slots=True)
class Subject:
    """What a tool is given.

    Attributes:
        model: In eval mode, unless the case trains it.
        args: Positional inputs.
        kwargs: Keyword inputs.
        step: A function of model and inputs that is counted in place of a plain call: a training
            step. Tools that take only modules are given one whose forward is this step.
    """

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    step: Callable[..., Any] | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the comparison.

    Attributes:
        name: Unique.
        flops: What is right, in matmul-class FLOPs: two for each multiply-add of a contraction,
            eight for a complex one. Of a published figure, twice its multiply-adds.
        derivation: The arithmetic in words.
        build: Makes model and inputs, anew at each call.
        needs: What a tool must see to be right, in one word; explanations go by it.
        vector_flops: The most that the elementwise work of the case can be. Tools that add it to
            their multiply-adds, and offer no way of leaving it out, may be as much above `flops`.
        also: Other figures that are right by a convention as good as ours, such as half of a causal
            attention.
        family: The page's heading; the file's name.
        within: How far from `flops` a count may be, as a fraction: published figures are rounded.
        rounding_flops: And by how many FLOPs.
        elementwise_frac: The most of a published figure that may be elementwise work, which its
            source counted as well: a count of contractions may be as far below.
        library: What `build` imports beside torch.
        device: `cpu`, or `meta` where values would take minutes.
    """

    name: str
    flops: int
    derivation: str
    build: Callable[[], Subject]
    needs: str = ""
    vector_flops: int = 0
    also: tuple[int, ...] = ()
    family: str = ""
    within: float = 0.0
    rounding_flops: int = 0
    elementwise_frac: float = 0.0
    library: str = ""
    device: str = "cpu"


class Calls(nn.Module):
    """A module whose forward is the function given: of itself and its inputs.

    It has a parameter of its own, since some tools ask the first one where the model is.
    """

    def __init__(self, forward: Callable[..., Any], **held: Any) -> None:
        super().__init__()
        self.function = forward
        self.place = nn.Parameter(torch.zeros(1), requires_grad=False)
        for name, value in held.items():
            setattr(self, name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self.function(self, *args, **kwargs)


class Steps(nn.Module):
    """A module whose forward is a whole training step of another one."""

    def __init__(self, model: nn.Module, step: Callable[..., Any]) -> None:
        super().__init__()
        self.model = model
        self.step = step

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Take the step, with gradients, whatever mode the tool calls in."""
        with torch.enable_grad():
            return self.step(self.model, *args, **kwargs)


def calling(model: nn.Module, *args: Any, **kwargs: Any) -> Subject:
    """Return a plain call of the model in eval mode."""
    return Subject(model.eval(), args, kwargs)


def training(model: nn.Module, *args: Any, step: Callable[..., Any] | None = None) -> Subject:
    """Return a training step: forward, the outputs' sum as loss, backward, unless one is given."""
    return Subject(model.train(), args, step=step or forward_and_backward)


def forward_and_backward(model: nn.Module, *args: Any) -> torch.Tensor:
    """Call the model, and propagate the sum of its output back."""
    output = model(*args)
    total = output.sum()
    total.backward()
    return total


def weight(*size: int) -> nn.Parameter:
    """Return a parameter of normal numbers."""
    return nn.Parameter(torch.randn(*size))


def randn(*size: int) -> torch.Tensor:
    """Return normal numbers."""
    return torch.randn(*size)
