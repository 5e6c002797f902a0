"""Say which of a model's modules compute past PyTorch, where no count sees them."""

from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

_COMPUTING = (
    "numpy", "scipy", "numba", "cupy", "jax", "tensorflow", "onnxruntime", "sklearn", "cv2",
    "ctypes", "cffi",
)  # fmt: skip
"""Packages that do floating-point work of their own, or call what does."""


def foreign_work(model: "nn.Module") -> list[str]:
    """Return texts on the modules whose code names such a package, or that hold its arrays."""
    texts: dict[str, str] = {}
    for path, module in model.named_modules():
        kind = type(module)
        if kind.__module__.startswith("torch."):
            continue
        names = _named_by(getattr(kind, "forward", None)) | _held_by(module)
        if names:
            text = f"{kind.__qualname__} uses {', '.join(sorted(names))}"
            texts.setdefault(text, path or "(model)")
    return [
        f"{path}: {text}, whose work is in no count; where time is measured it is seen: "
        "flopprof run"
        for text, path in texts.items()
    ]


def _named_by(function: Any) -> set[str]:
    """Return the packages that a function's own code names, by whatever name it knows them."""
    if not isinstance(function, FunctionType):
        return set()
    known = function.__globals__
    values = [known.get(name) for name in function.__code__.co_names]
    return {root for root in map(_package, values) if root in _COMPUTING}


def _held_by(module: "nn.Module") -> set[str]:
    roots = (type(value).__module__.partition(".")[0] for value in vars(module).values())
    return {root for root in roots if root in _COMPUTING}


def _package(value: Any) -> str:
    name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", "")
    return str(name).partition(".")[0]
