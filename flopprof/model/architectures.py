"""Build the architecture that `--arch` names, and fit weights to it."""

import importlib
import inspect
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from flopprof import dtypes
from flopprof.errors import UnknownArchitectureError, UsageError
from flopprof.model import Loaded, Request
from flopprof.model.pickles import NAMES, TensorInfo
from flopprof.model.recognise import Entry, Match, alternatives, named_first, recognise
from flopprof.model.usercode import foreign_code, import_code
from flopprof.units import safe_text, shape_text

BESIDE = 0.1  # share of tensors outside the model's prefix, at most, for it to be recognised
_EXAMPLES = "--arch torchvision:resnet18, --arch my_net.py:build or --arch package.module:build"


@dataclass(frozen=True, slots=True)
class Architecture:
    """Code that makes a model."""

    text: str
    make: Callable[..., Any]
    input: str | None = None  # its registry's own, "1x3x224x224"; several with spaces between
    adapts: bool = False  # takes overrides, such as num_classes
    classes: int = 0  # that it has unless told, where known


def find_architecture(arch: str) -> Architecture:
    """Return what `arch` names; no folder is added to sys.path for it."""
    place, _, name = arch.rpartition(":")
    if not place or not name:
        raise UsageError(f"--arch {arch!r} names no architecture", remedy=_EXAMPLES)
    if place in _REGISTRIES:
        return _REGISTRIES[place](name)
    module = import_code(place)
    make = getattr(module, name, None)
    if not callable(make):
        own = [n for n, v in vars(module).items() if _makes_models(v, module) and n[0] != "_"]
        raise _no_such(place, name, own)
    try:
        inspect.signature(make).bind()
    except (TypeError, ValueError) as error:
        fact = f"{arch} cannot be called without arguments: {error}"
        raise UsageError(fact, remedy="name a function without arguments") from error
    return Architecture(arch, make)


def _makes_models(value: Any, module: ModuleType) -> bool:
    is_own = str(getattr(value, "__module__", "")).startswith(module.__name__)
    is_class = isinstance(value, type) and issubclass(value, nn.Module)
    return is_own and (is_class or inspect.isfunction(value))


def _no_such(place: str, name: str, names: list[str]) -> UsageError:
    near = get_close_matches(name.lower(), names, n=6, cutoff=0.0)
    shown = " or ".join([f"--arch {place}:{match}" for match in near[:1]] + near[1:])
    remedy = shown or "define a function there that returns the model"
    return UsageError(f"{place} has no model {name!r}", remedy=remedy)


def _torchvision(name: str) -> Architecture:
    models = _library("torchvision", name, "torchvision.models")
    if name not in models.list_models():
        raise _no_such("torchvision", name, models.list_models())
    builder = models.get_model_builder(name)
    fixed: dict[str, Any] = {"weights": None}
    if "weights_backbone" in inspect.signature(builder).parameters:
        fixed["weights_backbone"] = None  # the default downloads them
    if name.endswith(("googlenet", "inception_v3")):
        fixed["init_weights"] = False  # the default takes minutes
    weights = next(iter(models.get_model_weights(name)), None)
    transforms = getattr(getattr(weights, "transforms", None), "keywords", {})
    spec = _torchvision_input(builder.__module__, transforms)
    make = partial(_make_torchvision, builder, **fixed)
    classes = len(weights.meta.get("categories", ())) if weights else 0
    return Architecture(f"torchvision:{name}", make, spec, adapts=True, classes=classes)


def _torchvision_input(module: str, transforms: Mapping[str, Any]) -> str | None:
    """Return the input of a family of models: crops of its transforms; 16 frames of a video."""
    size = transforms.get("crop_size") or transforms.get("resize_size")
    side = size[-1] if isinstance(size, tuple | list) else size
    if "detection" in module:
        return "1x3x800x800"
    if "optical_flow" in module:
        return "1x3x512x512 1x3x512x512"
    frames = "16x" if "video" in module else ""
    return f"1x3x{frames}{side}x{side}" if side else None


def _timm(name: str) -> Architecture:
    timm = _library("timm", name, "timm")
    if name not in timm.list_models():
        raise _no_such("timm", name, timm.list_models())
    config = timm.get_pretrained_cfg(name)
    size = getattr(config, "input_size", None)
    spec = "x".join(map(str, (1, *size))) if size else None
    make = partial(_make_timm, timm.create_model, name)
    return Architecture(f"timm:{name}", make, spec, adapts=True)


def _make_timm(create: Callable[..., Any], name: str, **options: Any) -> Any:
    spelled = {"channels": "in_chans", "image_size": "img_size"}
    named = {spelled.get(key, key): value for key, value in options.items()}
    return create(name, pretrained=False, **named)


def _library(library: str, name: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        fact = f"{library}:{name} needs {library}: {error}"
        raise UsageError(fact, remedy=f"pip install {library}") from error


_REGISTRIES = {"torchvision": _torchvision, "timm": _timm}


def _make_torchvision(builder: Callable[..., Any], *, channels: int = 3, **options: Any) -> Any:
    """Return the model; its first convolution takes `channels`, which no builder can be told."""
    model = builder(**options)
    if channels != 3:
        conv = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
        shape = (conv.out_channels, channels, *conv.kernel_size)
        conv.in_channels, conv.weight = channels, nn.Parameter(conv.weight.new_empty(shape))
    return model


def build(architecture: Architecture, *, meta: bool = False, **overrides: Any) -> nn.Module:
    """Return the model, on meta if asked; the global random state stays as it is."""
    with (
        torch.random.fork_rng(devices=[]),
        warnings.catch_warnings(action="ignore"),
        foreign_code(architecture.text),
    ):
        torch.default_generator.manual_seed(0)
        try:
            with torch.device("meta") if meta else nullcontext():
                model = architecture.make(**overrides)
        except Exception:  # it may compute with its tensors
            if not meta:
                raise
            model = architecture.make(**overrides)
    if not isinstance(model, nn.Module):
        fact = f"{architecture.text} returned what is of type {type(model).__name__}"
        remedy = "name a function that returns the nn.Module, or its class"
        raise UsageError(fact, remedy=remedy)
    if any(is_lazy(parameter) for parameter in model.parameters()):
        fact = f"{architecture.text} has lazy parameters, without shapes until it is called"
        raise UsageError(fact, remedy="call it once in the function that makes it")
    return model.to("meta") if meta else model


def load_code(text: str, *, meta: bool) -> Loaded:
    """Return the model that code makes, with the random weights that it makes it with."""
    architecture = find_architecture(text)
    model = build(architecture, meta=meta)
    return Loaded(
        model,
        architecture.text,
        "random weights by",
        weights="random",
        input_hint=input_hint(architecture, model, {}),
        recognised_by="its name",
    )


class _Fit(NamedTuple):
    pairs: dict[str, tuple[torch.Tensor, TensorInfo, str]]  # by the model's key; the file's key
    wrong: dict[str, list[str]]  # keys in words, by what is wrong with them
    left_out: int


def fit_weights(
    request: Request, source: str, read: Callable[[], Mapping[str, torch.Tensor]]
) -> Loaded:
    """Return the model that `--arch` names, or whose weights these are; on meta, their shapes."""
    path = safe_text(request.contents.path)
    if request.arch is None:
        model, fitted, others = recognise_weights(request)
    else:
        model, fitted = fit_architecture(find_architecture(request.arch), request)
        others = ()
        if fitted.differences:
            raise UsageError(
                f"{path} does not fit {fitted.architecture.text}: of its keys are "
                f"{fitted.differences}",
                remedy="name the architecture that was saved; a changed one as --arch "
                "my_net.py:build",
            )
    fit, overrides = fitted.fit, fitted.overrides
    found = {} if request.meta else read()
    for tensor, info, name in fit.pairs.values():  # as data: parameters that are one stay one
        empty = torch.empty(info.shape, dtype=getattr(torch, info.dtype), device="meta")
        tensor.data = empty if request.meta else found[name].detach()
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


def input_hint(
    architecture: Architecture, model: nn.Module, overrides: Mapping[str, Any]
) -> str | None:
    """Return the architecture's own input, of the size and channels that the weights have."""
    if architecture.input is None:
        return None
    hints = []
    for spec in architecture.input.split():
        batch, channels, *sizes = spec.split("x")
        side = overrides.get("image_size") or getattr(model, "image_size", None)
        if isinstance(side, int) and architecture.adapts:
            sizes = [str(side)] * len(sizes)
        hints.append("x".join([batch, str(overrides.get("channels", channels)), *sizes]))
    return " ".join(hints)


class _Fitted(NamedTuple):
    architecture: Architecture
    fit: "_Fit"
    overrides: dict[str, Any]
    differences: str  # in words; '' where all keys and shapes are equal
    by_name: bool = False  # what it is called decided between models of equal weights


def fit_architecture(architecture: Architecture, request: Request) -> tuple[nn.Module, _Fitted]:
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
    return model, _Fitted(architecture, fit, overrides, differences)


def recognise_weights(request: Request) -> tuple[nn.Module, _Fitted, tuple[Entry, ...]]:
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


def _compare(model: nn.Module, tensors: Mapping[str, TensorInfo]) -> _Fit:
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
    return _Fit(pairs, wrong, len(tensors) - len(inside))


def _overrides(
    architecture: Architecture, model: nn.Module, fit: _Fit, tensors: Mapping[str, TensorInfo]
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
