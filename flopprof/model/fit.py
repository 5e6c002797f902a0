"""Fit weights to an architecture, and find the one whose weights they are."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn

from flopprof import dtypes
from flopprof.errors import UnknownArchitectureError, UsageError
from flopprof.model import Loaded, Request
from flopprof.model.architectures import Architecture, build, find_architecture, input_hint
from flopprof.model.pickles import NAMES, TensorInfo
from flopprof.model.recognise import Entry, Match, alternatives, named_first, recognise
from flopprof.units import safe_text, shape_text

BESIDE = 0.1  # share of tensors outside the model's prefix, at most, for it to be recognised


class Fit(NamedTuple):
    """How weights and a model compare, key by key."""

    pairs: dict[str, tuple[torch.Tensor, TensorInfo, str]]  # by the model's key; the file's key
    wrong: dict[str, list[str]]  # keys in words, by what is wrong with them
    left_out: int


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
        raise UsageError(
            f"{safe_text(request.contents.path)} does not fit {architecture.text}: of its keys are "
            f"{fitted.differences}",
            remedy="name the architecture that was saved; a changed one as --arch my_net.py:build",
        )
    return _filled(model, fitted, request, source, read, ())


def _filled(
    model: nn.Module,
    fitted: "Fitted",
    request: Request,
    source: str,
    read: Callable[[], Mapping[str, torch.Tensor]],
    others: tuple[Entry, ...],
) -> Loaded:
    fit, overrides = fitted.fit, fitted.overrides
    give_weights(fit, None if request.meta else read())
    notes = [f"{name} = {value}, as the weights say" for name, value in overrides.items()]
    if fit.left_out:
        notes.append(f"{fit.left_out} of the file's tensors are not this model's and were left out")
    return Loaded(
        model,
        fitted.architecture.text,
        source,
        input_hint=input_hint(fitted.architecture, model, overrides),
        warnings=tuple(notes),
        recognised_by="keys, shapes and name" if fitted.by_name else "keys and shapes",
        alternatives=others,
    )


def give_weights(fit: "Fit", weights: Mapping[str, torch.Tensor] | None) -> None:
    """Give a model the weights, by the file's keys; on meta, where there are none, their types."""
    for tensor, info, name in fit.pairs.values():  # as data: parameters that are one stay one
        if weights is None:
            tensor.data = torch.empty(info.shape, dtype=getattr(torch, info.dtype), device="meta")
        else:
            tensor.data = weights[name].detach()


class Fitted(NamedTuple):
    """A model that was told what the weights say of it, and how it compares with them."""

    architecture: Architecture
    fit: "Fit"
    overrides: dict[str, Any]
    differences: str  # in words; '' where all keys and shapes are equal
    by_name: bool = False  # what it is called decided between models of equal weights


def fit_architecture(architecture: Architecture, request: Request) -> tuple[nn.Module, Fitted]:
    """Return the model, told what the weights say of it, and how they compare."""
    tensors = request.contents.tensors
    model = build(architecture, meta=request.meta)
    fit = first = _compare(model, tensors)
    if overrides := _overrides(architecture, model, fit, tensors) if architecture.adapts else {}:
        model = build(architecture, meta=request.meta, **overrides)
        fit = _compare(model, tensors)
    wrong = {what: keys for what, keys in first.wrong.items() if keys and any(fit.wrong.values())}
    differences = "; ".join(
        f"{len(keys)} {what} ({safe_text(', '.join(keys[:3]))}{', …' if len(keys) > 3 else ''})"
        for what, keys in wrong.items()
    )
    return model, Fitted(architecture, fit, overrides, differences)


def recognise_weights(request: Request) -> tuple[nn.Module, Fitted, tuple[Entry, ...]]:
    """Return the model whose keys and shapes these weights have, and those that have them too.

    Candidates come from the index; one is taken only when it is built and compared.

    Raises:
        UnknownArchitectureError: None is; or several are that do not count the same, and the user
            wants no choice made.
    """
    tensors, path = request.contents.tensors, safe_text(request.contents.path)
    by_hand = "name its code: --arch torchvision:resnet18, or --arch my_net.py:build"
    match = recognise({key: info.shape for key, info in tensors.items()})
    closest = lacking = ""
    fits: dict[Entry, int] = {}  # and how many tensors each leaves out
    for entry in _tried(match) if match else ():
        if fits and match and match.exact:
            break  # equal fingerprints: the others fit as well
        try:
            architecture = find_architecture(entry.name)
        except UsageError as error:
            lacking = lacking or f"{path} is {entry.name.replace(':', ' ')}: {error.problem}"
            if match and match.exact:
                continue
            closest = closest or f"closest is {entry.name}, which cannot be built: {error.problem}"
            continue
        _, fitted = fit_architecture(architecture, replace(request, meta=True))
        beside = fitted.fit.left_out / max(len(tensors), 1)  # such as a loss's weights
        if fitted.overrides.get("num_classes") == 0 and beside:
            beside = 1.0  # what lies beside a model without head is the head of another
        if not fitted.differences and beside <= BESIDE:
            fits |= dict.fromkeys((entry, *alternatives(entry)), fitted.fit.left_out)
            continue
        closest = closest or f"closest is {entry.name}, differs in {fitted.differences}"
    if fitting := [entry for entry, left_out in fits.items() if left_out == min(fits.values())]:
        first, *others = fitting
        differ = [o for o in others if (o.gflops, o.input) != (first.gflops, first.input)]
        if request.strict and differ:
            named = ", ".join(f"{o.name} ({o.gflops} GFLOPs)" for o in (first, *differ)[:6])
            fact = f"{path} may be any of {named}: their weights have equal keys and shapes"
            raise UnknownArchitectureError(fact, remedy="name one: --arch …")
        for choice in dict.fromkeys((*named_first(fitting, request.contents.texts), first)):
            model, fitted = fit_architecture(find_architecture(choice.name), request)
            if not fitted.differences:  # its head, too, is as the file's
                break
        others = [entry for entry in fitting if entry != choice]
        return model, fitted._replace(by_name=choice != first), tuple(others)
    if match and match.exact and lacking:
        library = match.candidates[0].name.partition(":")[0]
        raise UnknownArchitectureError(lacking, remedy=f"pip install {library}")
    count = f"{len(tensors)} tensor{'s' * (len(tensors) != 1)}"
    fact = f"{path} holds {count} (a state_dict) of an unknown architecture"
    raise UnknownArchitectureError(f"{fact}; {closest}" if closest else fact, remedy=by_hand)


def _tried(match: Match) -> Iterator[Entry]:
    """Yield the candidates; behind torchvision's the same of timm, which also makes headless."""
    for entry in match.candidates:
        yield entry
        if not match.exact and entry.name.startswith("torchvision:"):
            yield from [e for e in alternatives(entry) if e.name.startswith("timm:")][:1]


def _compare(model: nn.Module, tensors: Mapping[str, TensorInfo]) -> Fit:
    state = model.state_dict(keep_vars=True)
    expected = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}
    is_torchvision = type(model).__module__.startswith("torchvision.")
    spelled = {}  # the file's keys as the model would spell them, but for a prefix
    for key in tensors:
        plain = key.replace("_orig_mod.", "")  # by torch.compile
        for pattern, new in NAMES["torchvision_keys"] if is_torchvision else ():
            plain = re.sub(pattern, new, plain)  # as its own checkpoints of densenet and ViT spell
        spelled[plain] = key
    anchors = sorted(expected, key=len)[-20:]  # long keys: few of the file's end in them by chance
    prefixes = {k.removesuffix(a) for a in anchors for k in spelled if k.endswith("." + a)}
    prefix = max(["", *sorted(prefixes)], key=lambda p: sum(p + k in spelled for k in expected))
    named = {key: spelled[prefix + key] for key in expected if prefix + key in spelled}
    pairs = {key: (expected[key], tensors[name], name) for key, name in named.items()}
    inside = [key for key in spelled if key.startswith(prefix)]
    if len(spelled) - len(inside) > len(pairs):  # the model is the smaller part of the file
        inside = list(spelled)
    given = {id(expected[key]) for key in pairs}  # a tied parameter may be saved once
    absent = [key for key, tensor in expected.items() if id(tensor) not in given]
    missing = [key for key in absent if not key.endswith("num_batches_tracked")]
    unexpected = [key for key in inside if key.removeprefix(prefix) not in expected]
    misshaped = [
        f"{key} is {shape_text(info.shape)} {info.dtype}, not {shape_text(tensor.shape)} "
        f"{str(tensor.dtype).removeprefix('torch.')}"
        for key, (tensor, info, _) in pairs.items()
        if tensor.shape != info.shape
        or (
            dtypes.is_floating(info.dtype) != (tensor.is_floating_point() or tensor.is_complex())
            and not key.endswith("num_batches_tracked")  # which half() of a whole file casts too
        )
    ]
    wrong = {"missing": missing, "unexpected": unexpected, "of another shape or type": misshaped}
    return Fit(pairs, wrong, len(tensors) - len(inside))


def _overrides(
    architecture: Architecture, model: nn.Module, fit: Fit, tensors: Mapping[str, TensorInfo]
) -> dict[str, Any]:
    """Return what a registry's models can be told, so that the shapes come out as saved."""
    overrides: dict[str, Any] = {}
    shapes = {key: (tensor.shape, info.shape) for key, (tensor, info, _) in fit.pairs.items()}
    pairs = [(want, found) for want, found in shapes.values() if want != found]
    # A detector's heads have four outputs for each class, or as many for each anchor.
    heads = [
        found[0] * architecture.classes // want[0] or found[0]
        for want, found in pairs
        if found and want[0] and found[1:] == want[1:]
    ]
    if heads:
        overrides["num_classes"] = min(heads)
    conv = next((n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)), "")
    built, saved = shapes.get(f"{conv}.weight", ((), ()))
    if built[1:2] != saved[1:2]:
        overrides["channels"] = saved[1]
    if side := _image_size(model, shapes):
        overrides["image_size"] = side
    missing, unexpected = fit.wrong["missing"], fit.wrong["unexpected"]
    head = getattr(model, "pretrained_cfg", {}).get("classifier")  # of timm
    head = (head,) if isinstance(head, str) else tuple(head or ())
    if missing and head and all(key.startswith(head) for key in missing):
        overrides["num_classes"] = 0
    if unexpected and head and all(key.rpartition(".")[0].endswith(head) for key in unexpected):
        weights = [i.shape[0] for k, i in tensors.items() if k.endswith(f"{head[0]}.weight")]
        overrides["num_classes"] = min(weights, default=0)  # a head where there is none
    if missing and all(key.startswith(("aux1.", "aux2.", "AuxLogits.")) for key in missing):
        overrides["aux_logits"] = False
    if unexpected and all(key.startswith("aux_classifier.") for key in unexpected):
        overrides["aux_loss"] = True
    return overrides


def _image_size(model: nn.Module, shapes: Mapping[str, tuple[Any, Any]]) -> int | None:
    """Return the image side that a vision transformer's position embedding was saved for."""
    patch = getattr(model, "patch_size", None) or getattr(
        getattr(model, "patch_embed", None), "patch_size", None
    )
    patch = patch[0] if isinstance(patch, tuple) else patch
    for key in ("encoder.pos_embedding", "pos_embed"):
        built, saved = shapes.get(key, ((), ()))
        if built != saved and len(saved) == 3 and built[::2] == saved[::2] and patch:
            extra = 1 if key.startswith("encoder") else getattr(model, "num_prefix_tokens", 0)
            extra = 0 if getattr(model, "no_embed_class", False) else extra
            return int(patch) * math.isqrt(max(saved[1] - extra, 1))
    return None
