"""Fit weights to an architecture, and say what of the two is not in the other."""

from collections.abc import Callable, Mapping

import torch
from torch import nn

from flopprof.errors import UsageError
from flopprof.model import Loaded, Request
from flopprof.model.account import add_up
from flopprof.model.architectures import Architecture, find_architecture, input_hint
from flopprof.model.compare import Fit, belongs_together, give_weights, whole_parts
from flopprof.model.fitted import Fitted, fit_architecture
from flopprof.model.identify import recognise_weights
from flopprof.model.pickles import TensorInfo
from flopprof.model.recognise import Entry
from flopprof.units import counted, percent, safe_text


def fit_weights(
    request: Request, source: str, read: Callable[[], Mapping[str, torch.Tensor]]
) -> Loaded:
    """Return the model that `--arch` names, or whose weights these are; on meta, their shapes."""
    if request.arch is not None:
        return fit_to(find_architecture(request.arch), request, source, read)
    model, fitted, others = recognise_weights(request)
    return _filled(model, fitted, request, source, read, others)


def fit_to(
    architecture: Architecture,
    request: Request,
    source: str,
    read: Callable[[], Mapping[str, torch.Tensor]],
) -> Loaded:
    """Return the model of this architecture with the weights.

    Raises:
        UsageError: They do not fit it.
    """
    model, fitted = fit_architecture(architecture, request)
    if fitted.differences:
        _allow(model, fitted, request)
    return _filled(model, fitted, request, source, read, ())


def _allow(model: nn.Module, fitted: Fitted, request: Request) -> None:
    """Raise unless what differs is keys that are missing or unexpected, and may be.

    Raises:
        UsageError: Shapes differ, most of the two does not belong together, or all is wanted.
    """
    fit = fitted.fit
    tensors = request.contents.tensors
    name = fitted.architecture.text
    fact = (
        f"{safe_text(request.contents.path)} does not fit {name}: of its keys are "
        f"{fitted.differences}"
    )
    remedy = "name the architecture that was saved; a changed one as --arch my_net.py:build"
    if fit.misshaped or not belongs_together(fit, model, tensors):
        raise UsageError(fact, remedy=remedy)
    if not request.take.partial:
        remedy = "run --partial: what is missing stays random; flopprof count needs no weights"
        raise UsageError(fact, remedy=remedy)


def _notes(model: nn.Module, fitted: Fitted, tensors: Mapping[str, TensorInfo]) -> list[str]:
    """Return in words how model and weights differ."""
    fit = fitted.fit
    notes = [f"{name} = {value}, as the weights say" for name, value in fitted.overrides.items()]
    if fitted.note:
        notes.append(fitted.note)
    if fit.part:
        notes.append(f"the file holds the part {fit.part!r} of {fitted.architecture.text}")
    elif fit.missing and not fit.unexpected and (parts := whole_parts(model, fit)):
        notes.append(
            f"the file holds a part of {fitted.architecture.text}: {safe_text(', '.join(parts))}"
        )
    if fit.unexpected:
        notes.append(_unexpected(fit, tensors))
    if fit.left_out:
        notes.append(f"{fit.left_out} of the file's tensors are not this model's and were left out")
    return notes


def _unexpected(fit: Fit, tensors: Mapping[str, TensorInfo]) -> str:
    """Return what the keys of the file that the model does not have amount to."""
    stored = add_up(tensors)
    used_names = {name for _, _, name in fit.pairs.values()}
    others = [weight for weight in stored.tensors if weight.name not in used_names]
    parameters = sum(weight.parameters for weight in others)
    flops = sum(weight.matmul_flops_per_position or 0 for weight in others)
    of_parameters = percent(parameters / max(stored.parameters, 1))
    of_flops = percent(flops / max(stored.matmul_flops_per_position, 1))
    shown = safe_text(", ".join(fit.unexpected[:3])) + (", …" if len(fit.unexpected) > 3 else "")
    return (
        f"{counted(len(fit.unexpected), 'tensor')} of the file "
        f"{'is' if len(fit.unexpected) == 1 else 'are'} unexpected ({shown}): {of_parameters} of "
        f"its parameters, {of_flops} of its matmul FLOPs at one position; left out"
    )


def _filled(
    model: nn.Module,
    fitted: Fitted,
    request: Request,
    source: str,
    read: Callable[[], Mapping[str, torch.Tensor]],
    others: tuple[Entry, ...],
) -> Loaded:
    fit = fitted.fit
    notes = _notes(model, fitted, request.contents.tensors)
    give_weights(fit, None if request.meta else read())
    return Loaded(
        model,
        fitted.architecture.text,
        source,
        input_hint=input_hint(fitted.architecture, model, fitted.overrides),
        warnings=tuple(notes),
        missing=tuple(fit.missing),
        recognised_by=fitted.by,
        alternatives=others,
    )
