"""Recognise ports: a known model's shapes in its order, below keys that are spelled otherwise."""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from torch import nn

from flopprof.errors import UsageError
from flopprof.model import Request
from flopprof.model.architectures import Architecture, build, find_architecture
from flopprof.model.compare import compare
from flopprof.model.fitted import Fitted, fit_architecture
from flopprof.model.pickles import TensorInfo
from flopprof.model.recognise import Entry, in_order, named_first, same_order

_OWN_FRAC = 0.3  # share of keys in common from which on the spelling is the library's own
_MAX_BUILT = 6  # models of the same shapes that are built
_HEAD_TENSORS = 6  # tensors at the end, of a head that was given another name


class Port(NamedTuple):
    """A model whose weights these are but for their keys."""

    entry: Entry
    model: nn.Module
    fitted: Fitted
    others: tuple[Entry, ...]  # of the same shapes in the same order


def find_port(request: Request) -> Port | None:
    """Return the model with these shapes in this order; None where none is, or it is a variant.

    A file that has most keys of a model, and not all, is that library's own with changed blocks:
    its order says nothing more. Nor is the module inside of a wrapper the wrapper.
    """
    tensors = request.contents.tensors
    shapes = {key: info.shape for key, info in tensors.items()}
    entries = named_first(same_order(shapes), request.contents.texts)
    built = []
    for entry in entries[:_MAX_BUILT]:
        try:
            architecture = find_architecture(entry.name)
        except UsageError:  # its library is not installed
            continue
        model = build(architecture, meta=True)
        if _is_variant(model, tensors) or _is_inner(model, tensors):
            return None
        built.append((entry, architecture, list(in_order(_shapes(model)))))
    for entry, architecture, keys in built:
        fitting = _fitted(architecture, keys, request)
        if fitting is not None:
            model, fitted = fitting
            others = tuple(other for other in entries if other != entry)
            return Port(entry, model, fitted, others)
    return None


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def _is_variant(model: nn.Module, tensors: Mapping[str, TensorInfo]) -> bool:
    """Return whether the keys are the model's own, and some that are no head's are lacking."""
    fit = compare(model, tensors)
    keys = list(in_order(_shapes(model)))
    common = {key for key in keys if key in fit.pairs}
    if len(common) < _OWN_FRAC * len(keys):
        return False
    return any(key not in common for key in keys[:-_HEAD_TENSORS])


def _is_inner(model: nn.Module, tensors: Mapping[str, TensorInfo]) -> bool:
    """Return whether the file is a module that the model is made round, by that module's own keys.

    Such a module is a model of its own, and does with its weights what no key tells.
    """
    keys = [key.partition(".") for key in model.state_dict()]
    if len({outer for outer, _, _ in keys}) != 1:
        return False
    return set(tensors) <= {inner for _, _, inner in keys}


def _fitted(
    architecture: Architecture, keys: list[str], request: Request
) -> tuple[nn.Module, Fitted] | None:
    """Return the model with the file's tensors in their order; None where a shape differs."""
    tensors = request.contents.tensors
    file_keys = list(in_order({key: info.shape for key, info in tensors.items()}))
    if len(file_keys) > len(keys):
        return None
    names = dict(zip(keys, file_keys, strict=False))
    renamed = {key: tensors[name] for key, name in names.items()}
    by_order = replace(request, contents=replace(request.contents, tensors=renamed))
    model, fitted = fit_architecture(architecture, by_order)
    if fitted.differences or fitted.fit.left_out:
        return None
    pairs = {
        key: (tensor, info, names[name]) for key, (tensor, info, name) in fitted.fit.pairs.items()
    }
    note = "its keys are not this code's: tensors were matched by shape and order"
    fit = replace(fitted.fit, pairs=pairs)
    return model, fitted._replace(fit=fit, by="shapes in their order", note=note)
