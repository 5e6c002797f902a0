"""Build an architecture as the weights tell it, and compare the two."""

from collections.abc import Sequence
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
    fit_as_named = compare(model, tensors)
    fit = fit_as_named
    overrides = {}
    if architecture.adapts:
        overrides = find_overrides(architecture, model, fit, tensors)
    if overrides:
        model = build(architecture, meta=request.meta, **overrides)
        fit = compare(model, tensors)
    differences = ""
    if any(fit.wrong.values()):
        differences = "; ".join(
            _difference(fault, keys) for fault, keys in fit_as_named.wrong.items() if keys
        )
    return model, Fitted(architecture, fit, overrides, differences)


def _difference(fault: str, keys: Sequence[str]) -> str:
    """Return how many keys are wrong in this way, and the first of them."""
    shown = safe_text(", ".join(keys[:3]))
    more = ", …" if len(keys) > 3 else ""
    return f"{len(keys)} {fault} ({shown}{more})"
