"""Find the architecture that `--arch` names, and build it."""

import copy
import inspect
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from flopprof.errors import UsageError
from flopprof.model import Loaded
from flopprof.model.building import limited_modules, without_memory
from flopprof.model.libraries import LIBRARIES, no_such
from flopprof.model.spelling import CodeName, parse_code_name
from flopprof.model.usercode import foreign_code, import_code
from flopprof.units import safe_text

_BUILT_ON_META = ("torchvision:", "timm:", "transformers:", "diffusers:")  # as they are tested to


@dataclass(frozen=True, slots=True)
class Architecture:
    """Code that makes a model."""

    text: str  # its name, "torchvision:resnet18", as `--arch` takes it
    make: Callable[..., Any]
    input: str | None = None  # its registry's own, "1x3x224x224"; several with spaces between
    adapts: bool = False  # takes overrides, such as num_classes
    classes: int = 0  # that it has unless told, where known


def find_architecture(arch: str) -> Architecture:
    """Return what `arch` names; no folder is added to sys.path for it.

    Raises:
        UsageError: It names nothing that is there and can be called with its arguments.
        ModelError: Its code raised while it was imported.
    """
    code = parse_code_name(arch)
    if code.place in LIBRARIES:
        with foreign_code(arch):
            entry = LIBRARIES[code.place](code)
        return Architecture(code.text, *entry)
    module = import_code(code.place)
    make = _attribute(module, code)
    if isinstance(make, nn.Module):  # made when its module was imported
        return Architecture(code.text, partial(copy.deepcopy, make))
    try:
        inspect.signature(make).bind(*code.args, **code.kwargs)
    except (TypeError, ValueError) as error:
        raise _other_arguments(code, make, error) from error
    return Architecture(code.text, partial(make, *code.args, **code.kwargs))


def _attribute(module: ModuleType, code: CodeName) -> Any:
    """Return what `code` names in the module."""
    attribute: Any = module
    for part in code.name.split("."):
        attribute = getattr(attribute, part, None)
    if callable(attribute):
        return attribute
    inside = f"{module.__name__}."
    for name, other in sorted(sys.modules.items()):
        if name.startswith(inside) and callable(getattr(other, code.name, None)):
            fact = f"{code.place} has no {code.name!r}, and {name} has"
            raise UsageError(fact, remedy=f"--arch {name}:{code.name}")
    names = [
        name
        for name, value in vars(module).items()
        if _makes_models(value, module) and not name.startswith("_")
    ]
    raise no_such(code.place, code.name, names)


def _other_arguments(code: CodeName, make: Callable[..., Any], error: Exception) -> UsageError:
    """Return the error for code that takes other arguments, with its signature."""
    name_of_code = f"{code.place}:{code.name}"
    try:
        signature = inspect.signature(make)
    except (TypeError, ValueError):
        fact = f"{name_of_code} does not tell its arguments: {error}"
        return UsageError(fact, remedy="name a function of your own: --arch my_net.py:build")
    arguments = code.text.removeprefix(name_of_code)
    how_called = f"with {arguments}" if arguments else "without arguments"
    takes = safe_text(signature, 400)
    fact = f"{name_of_code} cannot be called {how_called}: {error}; it takes {takes}"
    needed = [
        f"{name}=…"
        for name, parameter in signature.parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    remedy = (
        f'give them, literals only: --arch "{name_of_code}({", ".join(needed)})", or --arch-args'
    )
    return UsageError(fact, remedy=f"{remedy}; else name a function without arguments")


def _makes_models(value: Any, module: ModuleType) -> bool:
    is_own = str(getattr(value, "__module__", "")).startswith(module.__name__)
    is_class = isinstance(value, type) and issubclass(value, nn.Module)
    return is_own and (is_class or inspect.isfunction(value))


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
    is_library = architecture.text.startswith(_BUILT_ON_META)
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
        if "=" in spec:  # made from the config, for the very weights
            hints.append(spec)
            continue
        batch, channels, *sizes = spec.split("x")
        side = overrides.get("image_size") or getattr(model, "image_size", None)
        if isinstance(side, int) and architecture.adapts:
            sizes = [str(side)] * len(sizes)
        hints.append("x".join([batch, str(overrides.get("channels", channels)), *sizes]))
    return " ".join(hints)
