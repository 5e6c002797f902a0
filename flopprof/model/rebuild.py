"""Rebuild a pickled module of an installed library: its code is the library's, not the file's."""

from dataclasses import replace
from typing import Any

from torch import nn

from flopprof.errors import FlopprofError
from flopprof.model import Loaded, Request
from flopprof.model.architectures import find_architecture, input_hint
from flopprof.model.compare import give_weights
from flopprof.model.fitted import fit_architecture
from flopprof.model.recognise import LIBRARIES, alternatives, recognise
from flopprof.model.weights import read_weights


def rebuild(request: Request) -> Loaded | None:
    """Return a model equal to the pickled one in all that its FLOPs depend on; None if none is.

    Equal are keys, shapes, the class of every module and its plain attributes (stride, groups, …).
    The values of the weights are read as those of a state_dict.
    """
    contents = request.contents
    if not contents.top_class.startswith(LIBRARIES):
        return None
    match = recognise({key: info.shape for key, info in contents.tensors.items()})
    for first in match.candidates if match else ():
        for entry in (first,) if match and match.exact else (first, *alternatives(first)):
            if entry.cls != contents.top_class:
                continue
            try:
                architecture = find_architecture(entry.name)
                model, fitted = fit_architecture(architecture, replace(request, meta=True))
                if fitted.differences or not _same_modules(model, contents.modules):
                    continue
                if not request.meta:
                    model, fitted = fit_architecture(architecture, request)
            except FlopprofError:
                continue
            notes = [
                f"{name} = {value}, as the file says" for name, value in fitted.overrides.items()
            ]
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


def _same_modules(model: nn.Module, pickled: dict[str, tuple[str, dict[str, Any]]]) -> bool:
    built = dict(model.named_modules())
    if built.keys() != pickled.keys():
        return False
    for path, (cls, attributes) in pickled.items():
        mine = built[path]
        if f"{type(mine).__module__}.{type(mine).__qualname__}" != cls:
            return False
        own = vars(mine)
        if any(name not in own or own[name] != value for name, value in attributes.items()):
            return False
    return True
