"""Build an architecture as the weights tell it, and compare the two."""

from typing import Any, NamedTuple

from torch import nn

from flopprof.model import Request
from flopprof.model.architectures import Architecture, build
from flopprof.model.compare import Fit, compare
from flopprof.model.overrides import find_overrides
from flopprof.units import safe_text


class Fitted(NamedTuple):
    """A model that was told what the weights say of it, and how it compares with them."""

    architecture: Architecture
    fit: Fit
    overrides: dict[str, Any]
    differences: str  # in words; '' where all keys and shapes are equal
    by: str = "keys and shapes"  # what said which model it is
    note: str = ""


def fit_architecture(architecture: Architecture, request: Request) -> tuple[nn.Module, Fitted]:
    """Return the model, told what the weights say of it, and how they compare."""
    tensors = request.contents.tensors
    model = build(architecture, meta=request.meta)
    fit = first = compare(model, tensors)
    if (
        overrides := find_overrides(architecture, model, fit, tensors)
        if architecture.adapts
        else {}
    ):
        model = build(architecture, meta=request.meta, **overrides)
        fit = compare(model, tensors)
    wrong = {what: keys for what, keys in first.wrong.items() if keys and any(fit.wrong.values())}
    differences = "; ".join(
        f"{len(keys)} {what} ({safe_text(', '.join(keys[:3]))}{', …' if len(keys) > 3 else ''})"
        for what, keys in wrong.items()
    )
    return model, Fitted(architecture, fit, overrides, differences)
