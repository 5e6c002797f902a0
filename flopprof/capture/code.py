"""The code that a module's call runs: its functions, what they refer to, what they may change."""

import dis
import functools
import sys
from collections.abc import Callable, Iterable, Iterator
from types import CellType, CodeType, FunctionType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

LIBRARIES = ("torch.", "torchvision.", "timm.", "transformers.", "diffusers.")
"""Where modules are from whose code is known: it keeps no state elsewhere that a call changes, and
uses numpy and its like for sizes, and for masks of a training step, only."""

_MOST_FUNCTIONS = 200  # of one module's code that are looked into


def is_of_library(module: "nn.Module") -> bool:
    """Return whether a module's class is one of `LIBRARIES`."""
    return type(module).__module__.startswith(LIBRARIES)


def functions_of(module: "nn.Module") -> list[FunctionType]:
    """Return `forward` and what of the same file it calls: functions, methods, attributes."""
    kind = type(module)
    todo: list[Any] = [getattr(kind, "forward", None), *vars(module).values()]
    functions: dict[int, FunctionType] = {}
    while todo and len(functions) < _MOST_FUNCTIONS:
        function = todo.pop()
        if not isinstance(function, FunctionType) or id(function) in functions:
            continue
        functions[id(function)] = function
        for _, value in used_by(function, kind):
            if isinstance(value, FunctionType) and value.__module__ == function.__module__:
                todo.append(value)
        if "super" in function.__code__.co_names:
            todo += _inherited(kind, function.__code__.co_names)
    return list(functions.values())


def _inherited(kind: type, names: Iterable[str]) -> list[Any]:
    """Return what a class's own bases have by these names: what `super()` may call."""
    bases = [base for base in kind.__mro__ if not base.__module__.startswith(LIBRARIES)]
    return [vars(base)[name] for base in bases for name in names if name in vars(base)]


def used_by(function: FunctionType, kind: type) -> Iterator[tuple[str, Any]]:
    """Yield the names in a function's code, and what they are: globals, methods, or None.

    Those of the function around it, which it closes over, have no name.
    """
    for name in _names_in(function.__code__):
        value = function.__globals__.get(name)
        yield name, getattr(kind, name, None) if value is None else value
    for cell in function.__closure__ or ():
        yield "", _held_in(cell)


def _names_in(code: CodeType) -> Iterator[str]:
    """Yield the names that code refers to, and those of the functions and loops inside it."""
    for inner in codes_in(code):
        yield from inner.co_names


def codes_in(code: CodeType) -> Iterator[CodeType]:
    """Yield code, and that of the functions and loops inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes_in(constant)


def _held_in(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty
        return None


def outer_state(modules: "Iterable[nn.Module]") -> tuple[list[Any], list[Callable[[], None]]]:
    """Return what the modules' code uses outside them, and what binds its names there again.

    That are attributes of their classes, globals, and variables of the functions around their own.
    """
    objects: list[Any] = []
    put_back: list[Callable[[], None]] = []
    seen_ids: set[int] = set()  # classes and functions
    for module in modules:
        if is_of_library(module):
            continue
        kind = type(module)
        for base in kind.__mro__:
            if id(base) in seen_ids or base.__module__.partition(".")[0] in ("torch", "builtins"):
                continue
            seen_ids.add(id(base))
            values = {name: value for name, value in vars(base).items() if _is_data(name, value)}
            objects += values.values()
            put_back.append(functools.partial(_bind_attributes, base, values))
        for function in functions_of(module):
            if id(function) in seen_ids:
                continue
            seen_ids.add(id(function))
            objects += [value for _, value in used_by(function, kind)]
            put_back += [_binding_cell(cell) for cell in function.__closure__ or ()]
            put_back += [_binding_global(function, name) for name in _set_by(function.__code__)]
    return _without_torchs_own(objects), put_back


def _without_torchs_own(values: list[Any]) -> list[Any]:
    """Return the values but for PyTorch's own, such as the registry of hooks that we are in."""
    containers = {id(value) for value in values if isinstance(value, dict | list | set)}
    if not containers:
        return values
    of_torch: set[int] = set()
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "torch":
            of_torch |= containers & set(map(id, vars(module).values()))
    return [value for value in values if id(value) not in of_torch]


def _is_data(name: str, value: Any) -> bool:
    return not (name.startswith("__") or callable(value) or hasattr(value, "__get__"))


def _bind_attributes(kind: type, values: dict[str, Any]) -> None:
    present = {name: value for name, value in vars(kind).items() if _is_data(name, value)}
    for name in present.keys() - values.keys():
        delattr(kind, name)
    for name, value in values.items():
        if present.get(name) is not value:
            setattr(kind, name, value)


def _binding_cell(cell: CellType) -> Callable[[], None]:
    value = _held_in(cell)

    def put_back() -> None:
        if _held_in(cell) is not value:
            cell.cell_contents = value

    return put_back


def _binding_global(function: FunctionType, name: str) -> Callable[[], None]:
    names = function.__globals__
    was_there = name in names
    value = names.get(name)

    def put_back() -> None:
        if was_there:
            names[name] = value
        else:
            names.pop(name, None)

    return put_back


def _set_by(code: CodeType) -> set[str]:
    """Return the globals that code binds anew."""
    return {
        str(step.argval) for step in dis.get_instructions(code) if step.opname == "STORE_GLOBAL"
    }
