"""Rebuild a pickled module of an installed library: its code is the library's, not the file's."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from flopprof.errors import FlopprofError
from flopprof.model import Loaded, Request
from flopprof.model.architectures import find_architecture, input_hint
from flopprof.model.compare import give_weights
from flopprof.model.contents import Contents
from flopprof.model.fitted import fit_architecture
from flopprof.model.recognise import LIBRARIES, Entry, alternatives, recognise
from flopprof.model.weights import read_weights


def rebuild(request: Request) -> Loaded | None:
    """Return a model equal to the pickled one in all that its FLOPs depend on; None if none is.

    Equal are keys, shapes, the class of every module and its plain attributes (stride, groups, …).
    The values of the weights are read as those of a state_dict.
    """
    contents = request.contents
    if not contents.top_class.startswith(LIBRARIES):
        return None
    for entry in _candidates(contents):
        try:
            architecture = find_architecture(entry.name)
            model, fitted = fit_architecture(architecture, replace(request, meta=True))
            if fitted.differences or not _same_modules(model, contents.modules):
                continue
            if not request.meta:
                model, fitted = fit_architecture(architecture, request)
        except FlopprofError:
            continue
        notes = [f"{name} = {value}, as the file says" for name, value in fitted.overrides.items()]
        if not request.meta:
            give_weights(fitted.fit, read_weights(contents))
        return Loaded(
            model,
            entry.name,
            "pickled nn.Module, rebuilt without its code, of",
            input_hint=input_hint(architecture, model, fitted.overrides),
            recognised_by="class, keys, shapes and attributes",
            warnings=tuple(notes),
        )
    return None


def _candidates(contents: Contents) -> Iterator[Entry]:
    """Yield the models of the index that are of the pickled class and have weights like these."""
    match = recognise({key: info.shape for key, info in contents.tensors.items()})
    if match is None:
        return
    for nearest in match.candidates:
        # An exact match has its alternatives among the candidates.
        entries = (nearest,) if match.exact else (nearest, *alternatives(nearest))
        for entry in entries:
            if entry.cls == contents.top_class:
                yield entry


def _same_modules(model: nn.Module, pickled: dict[str, tuple[str, dict[str, Any]]]) -> bool:
    """Return whether a model's modules have the paths, classes and attributes of pickled ones."""
    built_modules = dict(model.named_modules())
    if built_modules.keys() != pickled.keys():
        return False
    for path, (pickled_class, attributes) in pickled.items():
        built = built_modules[path]
        if f"{type(built).__module__}.{type(built).__qualname__}" != pickled_class:
            return False
        own = vars(built)
        if any(name not in own or own[name] != value for name, value in attributes.items()):
            return False
    return True
