"""Build the architecture that `--arch` names, and fit weights to it."""

import importlib
import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from flopprof.errors import UsageError
from flopprof.model import Loaded
from flopprof.model.building import limited_modules, without_memory
from flopprof.model.usercode import foreign_code, import_code

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
    its_options = {spelled.get(key, key): value for key, value in options.items()}
    return create(name, pretrained=False, **its_options)


def _library(library: str, name: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        fact = f"{library}:{name} needs {library}: {error}"
        raise UsageError(fact, remedy=f"pip install {library}") from error


_LIBRARIES = ("torchvision:", "timm:", "transformers:", "diffusers:")
_REGISTRIES = {"torchvision": _torchvision, "timm": _timm}


def _make_torchvision(builder: Callable[..., Any], *, channels: int = 3, **options: Any) -> Any:
    """Return the model; its first convolution takes `channels`, which no builder can be told."""
    model = builder(**options)
    if channels != 3:
        conv = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
        shape = (conv.out_channels, channels, *conv.kernel_size)
        conv.in_channels = channels
        conv.weight = nn.Parameter(conv.weight.new_empty(shape))
    return model


def build(architecture: Architecture, *, meta: bool = False, **overrides: Any) -> nn.Module:
    """Return the model, on meta if asked; the global random state stays as it is.

    Raises:
        ModelError: Its code raised.
        UsageError: It makes no model, or more modules than any model has.
    """
    with (
        torch.random.fork_rng(devices=[]),
        warnings.catch_warnings(action="ignore"),
        foreign_code(architecture.text),
        limited_modules(architecture.text),
    ):
        torch.default_generator.manual_seed(0)
        model = _make_empty(architecture, overrides) if meta else None
        if model is None:
            model = architecture.make(**overrides)
    if not isinstance(model, nn.Module):
        fact = f"{architecture.text} returned what is of type {type(model).__name__}"
        remedy = "name a function that returns the nn.Module, or its class"
        raise UsageError(fact, remedy=remedy)
    if any(is_lazy(parameter) for parameter in model.parameters()):
        fact = f"{architecture.text} has lazy parameters, without shapes until it is called"
        raise UsageError(fact, remedy="call it once in the function that makes it")
    return model.to("meta") if meta else model


def _make_empty(architecture: Architecture, overrides: Mapping[str, Any]) -> Any:
    """Return what its code makes, its parameters on meta; None where it computes with values.

    What code of the user's keeps for itself (caches, tables of a library that it imports) stays
    real: only parameters are emptied. Libraries build all on meta, as they are tested to.
    """
    is_library = architecture.text.startswith(_LIBRARIES)
    try:
        with torch.device("meta") if is_library else without_memory():
            return architecture.make(**overrides)
    except Exception as error:  # whatever its code says to tensors without values
        if is_library or "allocate" not in str(error):
            return None
    try:
        with torch.device("meta"):  # one tensor is larger than all memory
            return architecture.make(**overrides)
    except Exception:  # as above
        return None


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
