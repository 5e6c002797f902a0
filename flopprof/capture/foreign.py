"""Say which of a model's modules compute past PyTorch, where no count sees them."""

import dis
import sys
import threading
from collections.abc import Iterator, Mapping
from itertools import pairwise
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, Self

from flopprof.capture.code import codes_in, functions_of, is_of_library, used_by

if TYPE_CHECKING:
    from torch import nn

_COMPUTING = (
    "numpy", "scipy", "numba", "cupy", "jax", "tensorflow", "onnxruntime", "sklearn", "cv2",
    "ctypes", "cffi",
)  # fmt: skip
"""Packages that do floating-point work of their own, or call what does."""
_LEAVES_PYTORCH = {"numpy": "numpy", "from_numpy": "numpy", "__array__": "numpy"}
"""Attributes of tensors, and of torch, that hand their values to such a package."""
_FOR_SIZES = {
    "prod", "ceil", "floor", "sqrt", "log2", "gcd", "lcm", "isscalar", "pi", "e", "inf", "nan",
    "newaxis", "ndarray", "generic", "integer", "floating", "dtype", "finfo", "iinfo", "float16",
    "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool_",
}  # fmt: skip
"""What of numpy works out sizes and factors, or names a type: no arrays come of plain numbers."""

_OF_NAMES = ("LOAD_GLOBAL", "LOAD_NAME")


class CallsSeen:
    """Notes which of a model's functions run in a block, where its code names such a package.

    What a function that did not run names is no work. Where calls may be in threads that cannot be
    seen, all is taken to have run: others of Python's, those of a backward pass on a GPU.
    """

    def __init__(self, model: "nn.Module") -> None:
        import torch

        on_gpu = any(p.device.type not in ("cpu", "meta") for p in model.parameters())
        self._may_miss = on_gpu and model.training
        self._hands_over = torch.Tensor.__array__.__code__
        self._in_doubt = {self._hands_over}
        for module in _own_modules(model):
            functions = functions_of(module)
            if any(_named_in(function, type(module)) for function in functions):
                self._in_doubt.update(*(codes_in(function.__code__) for function in functions))
        self._seen: set[CodeType] = set()
        self._sees_all = False

    def __enter__(self) -> Self:
        self._before = sys.getprofile(), threading.getprofile()
        is_alone = threading.active_count() == 1 and self._before == (None, None)
        self._sees_all = is_alone and not self._may_miss
        if self._sees_all and len(self._in_doubt) > 1:
            threading.setprofile(self._note)
            sys.setprofile(self._note)
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._sees_all and len(self._in_doubt) > 1:
            self._sees_all = sys.getprofile() == self._note  # else the model set one of its own
            sys.setprofile(self._before[0])
            threading.setprofile(self._before[1])

    def _note(self, frame: FrameType, event: str, _argument: Any) -> None:
        if event == "call" and frame.f_code in self._in_doubt:
            self._seen.add(frame.f_code)

    def ran(self, function: FunctionType) -> bool:
        """Return whether a function, or one inside it, may have run.

        So may one that was not there to be watched: the call itself imported it.
        """
        codes = list(codes_in(function.__code__))
        is_watched = not self._in_doubt.isdisjoint(codes)
        return not (self._sees_all and is_watched) or not self._seen.isdisjoint(codes)

    @property
    def handed_over(self) -> bool:
        """Whether a tensor may have been given to a function of numpy."""
        return not self._sees_all or self._hands_over in self._seen


def foreign_modules(model: "nn.Module", calls: CallsSeen) -> dict[str, str]:
    """Return path → "Kind uses numpy" of the modules whose code computes with such a package.

    Their code is what ran of `forward` and what of the same file it calls: functions, methods, what
    it has in attributes. Modules that hold arrays of such a package are named, too. Functions of
    numpy that work out sizes do not count, unless a tensor was given to one.

    Args:
        model: What was called.
        calls: What was seen of the call.
    """
    modules = {}
    for path, module in model.named_modules():
        if is_of_library(module):
            continue
        names = _named_by(module, calls) | _held_by(module)
        if names:
            modules[path] = f"{type(module).__qualname__} uses {', '.join(sorted(names))}"
    return modules


def _own_modules(model: "nn.Module") -> "Iterator[nn.Module]":
    """Yield one module of each class that is of no known library, and those with functions."""
    seen: set[type] = set()
    for module in model.modules():
        has_functions = any(isinstance(value, FunctionType) for value in vars(module).values())
        if not is_of_library(module) and (has_functions or type(module) not in seen):
            seen.add(type(module))
            yield module


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


def _named_by(module: "nn.Module", calls: CallsSeen) -> set[str]:
    """Return the packages that what ran of a module's own code names."""
    packages: set[str] = set()
    for function in functions_of(module):
        if calls.ran(function):
            packages_of_function = _named_in(function, type(module))
            if (
                packages_of_function == {"numpy"}
                and not calls.handed_over
                and _is_for_sizes(function, type(module))
            ):
                continue
            packages |= packages_of_function
    return packages


def _named_in(function: FunctionType, kind: type) -> set[str]:
    """Return the packages that a function's code names, by whatever name it knows them."""
    packages: set[str] = set()
    for name, value in used_by(function, kind):
        package = _package(value)
        if package in _COMPUTING:
            packages.add(package)
        elif value is None and name in _LEAVES_PYTORCH:
            packages.add(_LEAVES_PYTORCH[name])
    return packages


def _is_for_sizes(function: FunctionType, kind: type) -> bool:
    """Return whether all that a function names of numpy works out sizes, or is a type."""
    for name, value in used_by(function, kind):
        if value is None and name in _LEAVES_PYTORCH:
            return False  # tensors' values leave, or numpy is imported inside
        is_module = isinstance(value, ModuleType) and name in function.__globals__
        if is_module or _package(value) not in _COMPUTING:
            continue
        if getattr(value, "__name__", "") not in _FOR_SIZES:
            return False
    return _attributes_of_modules(function) <= _FOR_SIZES


def _attributes_of_modules(function: FunctionType) -> set[str]:
    """Return what a function uses of numpy where it has it as a global; "" for the whole of it."""
    names = set()
    for code in codes_in(function.__code__):
        for step, following in pairwise(dis.get_instructions(code)):
            value = function.__globals__.get(step.argval) if step.opname in _OF_NAMES else None
            if isinstance(value, ModuleType) and _package(value) in _COMPUTING:
                is_attribute = following.opname in ("LOAD_ATTR", "LOAD_METHOD")
                names.add(str(following.argval) if is_attribute else "")
    return names


def _held_by(module: "nn.Module") -> set[str]:
    roots = (type(value).__module__.partition(".")[0] for value in vars(module).values())
    return {root for root in roots if root in _COMPUTING}


def _package(value: Any) -> str:
    """Return the package that a module is of, or that a function, class or array comes from."""
    if isinstance(value, ModuleType):
        name = value.__name__
    else:  # arrays and ufuncs do not tell their module
        name = getattr(value, "__module__", None) or type(value).__module__
    return str(name).partition(".")[0]
