"""Build the architecture that `--arch` names, and fit weights to it."""

import inspect
import math
import re
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from flopprof import dtypes
from flopprof.errors import UnknownArchitectureError, UsageError
from flopprof.loaders import Loaded, Request
from flopprof.loaders.inert import NAMES, TensorInfo
from flopprof.units import safe_text, shape_text
from flopprof.usercode import foreign_code, import_code

_EXAMPLES = "--arch torchvision:resnet18, --arch my_net.py:build or --arch package.module:build"


@dataclass(frozen=True, slots=True)
class Architecture:
    """Code that makes a model."""

    text: str
    make: Callable[..., Any]
    image_size: int | None = None
    adapts: bool = False  # takes overrides, such as num_classes


def find_architecture(arch: str) -> Architecture:
    """Return what `arch` names; no folder is added to sys.path for it."""
    place, _, name = arch.rpartition(":")
    if not place or not name:
        raise UsageError(f"--arch {arch!r} names no architecture", remedy=_EXAMPLES)
    if place == "torchvision":
        return _torchvision(name)
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
    try:
        from torchvision import models
    except ImportError as error:
        fact = f"--arch torchvision:{name} needs torchvision: {error}"
        raise UsageError(fact, remedy="pip install torchvision") from error
    if name not in models.list_models():
        raise _no_such("torchvision", name, models.list_models())
    builder = models.get_model_builder(name)
    fixed: dict[str, Any] = {"weights": None}
    if "weights_backbone" in inspect.signature(builder).parameters:
        fixed["weights_backbone"] = None  # the default downloads them
    if name.endswith(("googlenet", "inception_v3")):
        fixed["init_weights"] = False  # the default takes minutes
    transforms = next((weights.transforms for weights in models.get_model_weights(name)), None)
    size = getattr(transforms, "keywords", {}).get("crop_size")  # two of a video's frames
    image_size = size if isinstance(size, int) else None
    make = partial(_make_torchvision, builder, **fixed)
    return Architecture(f"torchvision:{name}", make, image_size, adapts=True)


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


class _Fit(NamedTuple):
    pairs: dict[str, tuple[torch.Tensor, TensorInfo, str]]  # by the model's key; the file's key
    wrong: dict[str, list[str]]  # keys in words, by what is wrong with them
    left_out: int


def fit_weights(
    request: Request, source: str, read: Callable[[], Mapping[str, torch.Tensor]]
) -> Loaded:
    """Return the model that `--arch` names with the file's weights; on meta, their shapes."""
    tensors, path = request.contents.tensors, safe_text(request.contents.path)
    if request.arch is None:
        raise UnknownArchitectureError(
            f"{path} holds {len(tensors)} tensor{'s' * (len(tensors) != 1)} (a state_dict) and no "
            "code to run them with",
            remedy=f"flopprof run {path} --arch torchvision:resnet18, or with your own function or "
            "class: --arch my_net.py:build",
        )
    architecture = find_architecture(request.arch)
    model = build(architecture, meta=request.meta)
    fit = first = _compare(model, tensors)
    if overrides := _overrides(model, fit) if architecture.adapts else {}:
        model = build(architecture, meta=request.meta, **overrides)
        fit = _compare(model, tensors)
    if any(fit.wrong.values()):
        differences = "; ".join(
            f"{len(keys)} {what} ({safe_text(', '.join(keys[:3]))}{', …' if len(keys) > 3 else ''})"
            for what, keys in first.wrong.items()
            if keys
        )
        raise UsageError(
            f"{path} does not fit {architecture.text}: of its keys are {differences}",
            remedy="name the architecture that was saved; a changed one as --arch my_net.py:build",
        )
    found = {} if request.meta else read()
    for tensor, info, name in fit.pairs.values():  # as data: parameters that are one stay one
        empty = torch.empty(info.shape, dtype=getattr(torch, info.dtype), device="meta")
        tensor.data = empty if request.meta else found[name].detach()
    notes = [f"{name} = {value}, as the weights say" for name, value in overrides.items()]
    if fit.left_out:
        notes.append(f"{fit.left_out} of the file's tensors are not this model's and were left out")
    size = overrides.get("image_size", architecture.image_size)
    hint = f"1x{overrides.get('channels', 3)}x{size}x{size}" if size else None
    return Loaded(model, architecture.text, source, input_hint=hint, warnings=tuple(notes))


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
        f"{key} is {shape_text(info.shape)} {info.dtype}, not {shape_text(tensor.shape)}"
        for key, (tensor, info, _) in pairs.items()
        if tensor.shape != info.shape
        or dtypes.is_floating(info.dtype) != (tensor.is_floating_point() or tensor.is_complex())
    ]
    wrong = {"missing": missing, "unexpected": unexpected, "of another shape or type": misshaped}
    return _Fit(pairs, wrong, len(tensors) - len(inside))


def _overrides(model: nn.Module, fit: _Fit) -> dict[str, Any]:
    """Return what torchvision's models can be told, so that the shapes come out as saved."""
    overrides: dict[str, Any] = {}
    shapes = {key: (tensor.shape, info.shape) for key, (tensor, info, _) in fit.pairs.items()}
    pairs = [(want, found) for want, found in shapes.values() if want != found]
    heads = [found[0] for want, found in pairs if found and found[1:] == want[1:]]
    if heads:
        overrides["num_classes"] = min(heads)  # a detector's box head has four for each class
    conv = next((n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)), "")
    built, saved = shapes.get(f"{conv}.weight", ((), ()))
    if built[1:2] != saved[1:2]:
        overrides["channels"] = saved[1]
    if "encoder.pos_embedding" in shapes and isinstance(patch := model.patch_size, int):
        built, saved = shapes["encoder.pos_embedding"]
        if built != saved and built[::2] == saved[::2]:
            overrides["image_size"] = patch * math.isqrt(max(saved[1] - 1, 1))
    missing, unexpected = fit.wrong["missing"], fit.wrong["unexpected"]
    if missing and all(key.startswith(("aux1.", "aux2.", "AuxLogits.")) for key in missing):
        overrides["aux_logits"] = False
    if unexpected and all(key.startswith("aux_classifier.") for key in unexpected):
        overrides["aux_loss"] = True
    return overrides
