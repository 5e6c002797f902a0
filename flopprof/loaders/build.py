"""Build the architecture that `--arch` names."""

import importlib
import importlib.util
import inspect
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from flopprof.errors import FlopprofError, ModelError, UsageError
from flopprof.loaders.detect import safe_text

_EXAMPLES = "--arch torchvision:resnet18, --arch my_net.py:build or --arch package.module:build"


@dataclass(frozen=True, slots=True)
class Architecture:
    """Code that makes a model.

    Attributes:
        text: As `--arch` names it.
        make: Returns the model; torchvision's takes overrides such as num_classes.
        image_size: Height and width of the images it is for; None where it is for none.
        adapts: Whether `make` takes overrides.
    """

    text: str
    make: Callable[..., Any]
    image_size: int | None = None
    adapts: bool = False


def find_architecture(arch: str) -> Architecture:
    """Return what `arch` names; no folder is added to sys.path for it.

    Raises:
        UsageError: There is no such file, module or attribute, or it cannot be called without
            arguments.
        ModelError: The user's code raised while it was imported.
    """
    place, colon, name = arch.rpartition(":")
    if not colon or not place or not name:
        raise UsageError(f"--arch {arch!r} names no architecture", remedy=_EXAMPLES)
    if place == "torchvision":
        return _torchvision(name)
    module = _import(place)
    make = getattr(module, name, None)
    if not callable(make):
        names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        near = get_close_matches(name, names, n=3, cutoff=0.3) or names[:3]
        raise UsageError(
            f"{place} has no function or class {name!r}",
            remedy=f"it has: {', '.join(near) or 'none'}",
        )
    try:
        inspect.signature(make).bind()
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"{arch} cannot be called without arguments: {error}",
            remedy="name a function without arguments that returns the model",
        ) from error
    return Architecture(arch, make)


def _import(place: str) -> ModuleType:
    file = Path(place)
    if place.endswith(".py") and not file.is_file():
        raise UsageError(f"there is no file {place}", remedy=f"name one that exists: {_EXAMPLES}")
    try:
        if not file.is_file():
            return importlib.import_module(place)
        spec = importlib.util.spec_from_file_location(f"flopprof_arch_{file.stem}", file)
        if spec is None or spec.loader is None:
            raise UsageError(f"{place} is no Python file", remedy=_EXAMPLES)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses and pickle look a class's module up there
        spec.loader.exec_module(module)
    except FlopprofError:
        raise
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        if isinstance(error, ModuleNotFoundError) and error.name and place.startswith(error.name):
            raise UsageError(f"there is no module {error.name!r}", remedy=_EXAMPLES) from error
        raise _raised(place, error) from error
    return module


def _raised(what: str, error: BaseException) -> ModelError:
    return ModelError(
        f"{what} raised {type(error).__name__}: {safe_text(error)}",
        remedy="make it run in Python by itself; its folder is not on Python's path",
    )


def _torchvision(name: str) -> Architecture:
    try:
        from torchvision import models
    except ImportError as error:
        raise UsageError(
            f"--arch torchvision:{name} needs torchvision: {error}",
            remedy="pip install torchvision",
        ) from error
    try:
        builder = models.get_model_builder(name)
    except ValueError as error:
        near = get_close_matches(name.lower(), models.list_models(), n=3, cutoff=0.5)
        shown = ", ".join(f"--arch torchvision:{match}" for match in near)
        raise UsageError(
            f"torchvision has no model {name!r}",
            remedy=shown or "its names: torchvision.models.list_models()",
        ) from error
    fixed: dict[str, Any] = {"weights": None}
    if "weights_backbone" in inspect.signature(builder).parameters:
        fixed["weights_backbone"] = None  # the default downloads them
    if name.endswith(("googlenet", "inception_v3")):
        fixed["init_weights"] = False  # the default takes minutes
    weights = list(models.get_model_weights(name))
    transforms = getattr(weights[0], "transforms", None) if weights else None
    is_image = getattr(getattr(transforms, "func", None), "__name__", "") == "ImageClassification"
    size = transforms.keywords.get("crop_size") if transforms is not None and is_image else None
    return Architecture(f"torchvision:{name}", partial(builder, **fixed), size, adapts=True)


class _Weightless(TorchFunctionMode):
    """Puts what `torch.empty` makes on meta: modules' parameters, and little else."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def build(architecture: Architecture, *, real: bool = False, **overrides: Any) -> nn.Module:
    """Return the model with parameters on meta where its code allows, or with all `real`.

    The global random state stays as it is.

    Raises:
        ModelError: The code raised.
        UsageError: It returned no module.
    """
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.default_generator.manual_seed(0)
        try:
            if real:
                model = architecture.make(**overrides)
            else:
                with _Weightless():
                    model = architecture.make(**overrides)
        except (Exception, SystemExit) as error:  # the architecture's code may raise anything
            if not real:  # it computes with what is on meta
                return build(architecture, real=True, **overrides)
            raise _raised(architecture.text, error) from error
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"{architecture.text} returned a {type(model).__name__}, not an nn.Module",
            remedy="name a function that returns the model, or its class",
        )
    return model


def is_real(model: nn.Module) -> bool:
    """Return whether no tensor of the model, plain attributes included, is on meta."""
    held = [value for module in model.modules() for value in vars(module).values()]
    tensors = [*model.parameters(), *model.buffers(), *held]
    return not any(isinstance(t, torch.Tensor) and t.is_meta for t in tensors)
