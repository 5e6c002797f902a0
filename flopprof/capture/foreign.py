"""Say which of a model's modules compute past PyTorch, where no count sees them."""

from collections.abc import Iterator, Mapping
from types import CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

_COMPUTING = (
    "numpy", "scipy", "numba", "cupy", "jax", "tensorflow", "onnxruntime", "sklearn", "cv2",
    "ctypes", "cffi",
)  # fmt: skip
"""Packages that do floating-point work of their own, or call what does."""
_SIZING = ("torch.", "torchvision.", "timm.", "transformers.", "diffusers.")
"""Where modules are from that use such packages for sizes and for masks of a training step only."""
_LEAVES_PYTORCH = {"numpy": "numpy", "from_numpy": "numpy", "__array__": "numpy"}
"""Attributes of tensors, and of torch, that hand their values to such a package."""
_MOST_FUNCTIONS = 200  # of one module's code that are looked into


def foreign_modules(model: "nn.Module") -> dict[str, str]:
    """Return path → "Kind uses numpy" of the modules whose code names such a package.

    Their code is `forward` and what of the same file it calls: functions, methods, what it has in
    attributes. Modules that hold arrays of such a package are named, too.
    """
    modules = {}
    for path, module in model.named_modules():
        kind = type(module)
        if kind.__module__.startswith(_SIZING):
            continue
        names = _named_by(module) | _held_by(module)
        if names:
            modules[path] = f"{kind.__qualname__} uses {', '.join(sorted(names))}"
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
    kind = type(module)
    todo: list[Any] = [getattr(kind, "forward", None), *vars(module).values()]
    seen: set[int] = set()
    packages: set[str] = set()
    while todo and len(seen) < _MOST_FUNCTIONS:
        function = todo.pop()
        if not isinstance(function, FunctionType) or id(function) in seen:
            continue
        seen.add(id(function))
        for name, value in _uses(function, kind):
            package = _package(value)
            if package in _COMPUTING:
                packages.add(package)
            elif value is None and name in _LEAVES_PYTORCH:
                packages.add(_LEAVES_PYTORCH[name])
            elif isinstance(value, FunctionType) and value.__module__ == function.__module__:
                todo.append(value)
    return packages


def _uses(function: FunctionType, kind: type) -> Iterator[tuple[str, Any]]:
    """Yield the names in a function's code, and what they are: globals, methods, or None."""
    for name in _names_in(function.__code__):
        value = function.__globals__.get(name)
        yield name, getattr(kind, name, None) if value is None else value
    for cell in function.__closure__ or ():
        try:
            yield "", cell.cell_contents
        except ValueError:  # empty
            continue


def _names_in(code: CodeType) -> Iterator[str]:
    """Yield the names that code refers to, and those of the functions and loops inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)


def _held_by(module: "nn.Module") -> set[str]:
    roots = (type(value).__module__.partition(".")[0] for value in vars(module).values())
    return {root for root in roots if root in _COMPUTING}


def _package(value: Any) -> str:
    """Return the package that a module is of, or that a function or class comes from."""
    name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", "")
    return str(name).partition(".")[0]
