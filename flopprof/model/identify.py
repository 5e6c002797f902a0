"""Find the architecture whose weights these are: the index proposes, comparison decides."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

from torch import nn

from flopprof.errors import UnknownArchitectureError, UsageError
from flopprof.model import Request
from flopprof.model.architectures import find_architecture
from flopprof.model.beside import is_by_library
from flopprof.model.fitted import Fitted, fit_architecture
from flopprof.model.ports import find_port
from flopprof.model.recognise import (
    Entry,
    Match,
    alternatives,
    named_first,
    near_by_steps,
    recognise,
)
from flopprof.units import counted, safe_text

_BY_HAND = "name its code: --arch package.module:Class, or --arch my_net.py:build"
_ARRAYS = ("npz", "array_pickle")
_SHOWN_CHOICES = 6
BESIDE = 0.1  # share of tensors outside the model's prefix, at most, for it to be recognised


def recognise_weights(request: Request) -> tuple[nn.Module, Fitted, tuple[Entry, ...]]:
    """Return the model whose keys and shapes these weights have, and those that have them too.

    Candidates come from the index; one is taken only when it is built and compared.

    Raises:
        UnknownArchitectureError: None is; or several are that do not count the same, and the user
            wants no choice made.
    """
    tensors = request.contents.tensors
    match = recognise({key: info.shape for key, info in tensors.items()})
    tries = _try(match, request) if match else _Tries({}, "", "", "")
    least = min(tries.fits.values(), default=0)
    fitting = [entry for entry, left_out in tries.fits.items() if left_out == least]
    if fitting:
        return _chosen(fitting, request)
    path = safe_text(request.contents.path)
    if match and match.exact and tries.lacking:
        library = match.candidates[0].name.partition(":")[0]
        raise UnknownArchitectureError(tries.lacking, remedy=f"pip install {library}")
    port = find_port(request)
    if port is not None:
        if request.take.strict:
            _refuse_choice(path, [port.entry, *port.others])
        return port.model, port.fitted, port.others
    count = counted(len(tensors), "tensor")
    kind = "NumPy arrays" if request.contents.kind in _ARRAYS else "a state_dict"
    fact = f"{path} holds {count} ({kind}) of an unknown architecture"
    closest = tries.closest or _near(request) or tries.farther
    remedy = _BY_HAND
    if is_by_library(request.contents.path) and not request.contents.config:
        remedy = f"put its config.json beside it, or {_BY_HAND}"
    raise UnknownArchitectureError(f"{fact}; {closest}" if closest else fact, remedy=remedy)


class _Tries(NamedTuple):
    """What comparing the candidates gave."""

    fits: dict[Entry, int]  # those that fit, and how many of the file's tensors each leaves out
    closest: str  # in words, one that takes most of the weights, and why it does not fit
    farther: str  # as `closest`, of one that takes fewer of them
    lacking: str  # in words, what is not installed


def _try(match: Match, request: Request) -> _Tries:
    """Build candidate after candidate, and compare it with the weights."""
    tensors = request.contents.tensors
    path = safe_text(request.contents.path)
    closest = ""
    farther = ""
    lacking = ""
    fits: dict[Entry, int] = {}
    for entry in _candidates(match):
        if fits and match.exact:
            break  # equal fingerprints: the others fit as well
        try:
            architecture = find_architecture(entry.name)
        except UsageError as error:
            lacking = lacking or f"{path} is {entry.name.replace(':', ' ')}: {error.problem}"
            if not match.exact:
                unbuilt = f"closest is {entry.name}, which cannot be built: {error.problem}"
                closest = closest or unbuilt
            continue
        _, fitted = fit_architecture(architecture, replace(request, meta=True))
        beside = fitted.fit.left_out / max(len(tensors), 1)  # such as a loss's weights
        if fitted.overrides.get("num_classes") == 0 and beside:
            beside = 1.0  # what lies beside a model without head is the head of another
        if not fitted.differences and beside <= BESIDE:
            fits |= dict.fromkeys((entry, *alternatives(entry)), fitted.fit.left_out)
            continue
        differing = f"closest is {entry.name}, differs in {fitted.differences}"
        if len(fitted.fit.pairs) > len(tensors) / 2:
            closest = closest or differing
        else:
            farther = farther or differing
    return _Tries(fits, closest, farther, lacking)


def _chosen(fitting: list[Entry], request: Request) -> tuple[nn.Module, Fitted, tuple[Entry, ...]]:
    """Return the plainest of models that fit, or the one that the file is named after."""
    first, *others = fitting
    if request.take.strict:
        _refuse_choice(safe_text(request.contents.path), fitting)
    for choice in dict.fromkeys((*named_first(fitting, request.contents.texts), first)):
        model, fitted = fit_architecture(find_architecture(choice.name), request)
        if not fitted.differences:  # its head, too, is as the file's
            break
    others = [entry for entry in fitting if entry != choice]
    by = "keys and shapes" if choice == first else "keys, shapes and name"
    return model, fitted._replace(by=by), tuple(others)


def _refuse_choice(path: str, fitting: list[Entry]) -> None:
    """Raise where several fit that do not count the same."""
    first, *others = fitting
    differ = [
        other for other in others if (other.gflops, other.input) != (first.gflops, first.input)
    ]
    if differ:
        shown = ", ".join(
            f"{entry.name} ({entry.gflops} GFLOPs)" for entry in (first, *differ)[:_SHOWN_CHOICES]
        )
        fact = f"{path} may be any of {shown}: their weights have equal keys and shapes"
        raise UnknownArchitectureError(fact, remedy="name one: --arch …")


def _near(request: Request) -> str:
    """Return in words which models have like shapes in the same order, whatever their keys."""
    shapes = {key: info.shape for key, info in request.contents.tensors.items()}
    near = near_by_steps(shapes)[:3]
    names = ", ".join(entry.name for entry in near)
    return f"by the shapes of its weights near {names}" if near else ""


def _candidates(match: Match) -> Iterator[Entry]:
    """Yield the candidates; after one of torchvision's timm's, which is also made without head."""
    for entry in match.candidates:
        yield entry
        if not match.exact and entry.name.startswith("torchvision:"):
            of_timm = (other for other in alternatives(entry) if other.name.startswith("timm:"))
            yield from islice(of_timm, 1)
