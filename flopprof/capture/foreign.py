"""Say which of a model's modules compute past PyTorch, where no count sees them."""

from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

from flopprof.capture.code import functions_of, is_of_library, used_by

if TYPE_CHECKING:
    from torch import nn

_COMPUTING = (
    "numpy", "scipy", "numba", "cupy", "jax", "tensorflow", "onnxruntime", "sklearn", "cv2",
    "ctypes", "cffi",
)  # fmt: skip
"""Packages that do floating-point work of their own, or call what does."""
_LEAVES_PYTORCH = {"numpy": "numpy", "from_numpy": "numpy", "__array__": "numpy"}
"""Attributes of tensors, and of torch, that hand their values to such a package."""


def foreign_modules(model: "nn.Module") -> dict[str, str]:
    """Return path → "Kind uses numpy" of the modules whose code names such a package.

    Their code is `forward` and what of the same file it calls: functions, methods, what it has in
    attributes. Modules that hold arrays of such a package are named, too.
    """
    modules = {}
    for path, module in model.named_modules():
        if is_of_library(module):
            continue
        names = _named_by(module) | _held_by(module)
        if names:
            modules[path] = f"{type(module).__qualname__} uses {', '.join(sorted(names))}"
    return modules


def foreign_work(modules: Mapping[str, str]) -> list[str]:
    """Return texts on these modules, one for each kind."""
    first: dict[str, str] = {}
    for path, text in modules.items():
        first.setdefault(text, path or "(model)")
    return [
        f"{path}: {text}, whose work is in no count; where time is measured it is seen: "
        "flopprof run"
        for text, path in first.items()
    ]


def _named_by(module: "nn.Module") -> set[str]:
    """Return the packages that a module's own code names, by whatever name it knows them."""
    packages: set[str] = set()
    for function in functions_of(module):
        for name, value in used_by(function, type(module)):
            package = _package(value)
            if package in _COMPUTING:
                packages.add(package)
            elif value is None and name in _LEAVES_PYTORCH:
                packages.add(_LEAVES_PYTORCH[name])
    return packages


def _held_by(module: "nn.Module") -> set[str]:
    roots = (type(value).__module__.partition(".")[0] for value in vars(module).values())
    return {root for root in roots if root in _COMPUTING}


def _package(value: Any) -> str:
    """Return the package that a module is of, or that a function or class comes from."""
    name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", "")
    return str(name).partition(".")[0]
