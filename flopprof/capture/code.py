"""The code that a module's call runs: its functions, what they refer to, what they may change."""

import dis
import functools
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePath
from types import CellType, CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

LIBRARIES = ("torch.", "torchvision.", "timm.", "transformers.", "diffusers.")
"""Where modules are from whose code is known: it keeps no state elsewhere that a call changes, and
uses numpy and its like for sizes, and for masks of a training step, only."""

_UNNAMED = ("__init__", "__call__", "forward", "backward", "setup_context", "jvp", "vjp")
"""Methods that code calls without their names: a class's, an object's, an `autograd.Function`'s."""
_MOST_FUNCTIONS = 200  # of one module's code that are looked into


def is_of_library(module: "nn.Module") -> bool:
    """Return whether a module's class is one of `LIBRARIES`."""
    return type(module).__module__.startswith(LIBRARIES)


def functions_of(module: "nn.Module") -> list[FunctionType]:
    """Return `forward` and what of the user's code it calls, in its own file or another.

    That are functions, methods, what the module has in attributes, methods of objects there and
    of classes, and both passes of an `autograd.Function`.
    """
    kind = type(module)
    held = list(vars(module).values())
    todo: list[Any] = [getattr(kind, "forward", None), *held]
    functions: dict[int, FunctionType] = {}
    while todo and len(functions) < _MOST_FUNCTIONS:
        function = _function_in(todo.pop())
        if function is None or id(function) in functions:
            continue
        functions[id(function)] = function
        names = set(_names_in(function.__code__))
        used = [value for _, value in used_by(function, kind)]
        for value in (*used, *held):
            todo += _called_of(value, names, function.__module__)
        if "super" in function.__code__.co_names:
            todo += _inherited(kind, function.__code__.co_names)
    return list(functions.values())


def _function_in(value: Any) -> FunctionType | None:
    """Return the function that is called where this is called; None where it is none of Python."""
    while isinstance(value, functools.partial):
        value = value.func
    value = getattr(value, "__func__", value)  # of methods, static ones as well
    return value if isinstance(value, FunctionType) else None


def _called_of(value: Any, names: set[str], file: str) -> Iterator[Any]:
    """Yield what code of these names may call of a value that it has, if that is the user's.

    Args:
        value: A function, a class, an object.
        names: Those in the code.
        file: The module that the code is of.
    """
    if function := _function_in(value):
        if function.__module__ == file or is_of_user(function.__module__):
            yield function
        return
    kind = value if isinstance(value, type) else type(value)
    if kind.__module__ != file and not is_of_user(kind.__module__):
        return
    for base in kind.__mro__:
        if base.__module__ == file or is_of_user(base.__module__):
            methods = vars(base)
            yield from (methods[name] for name in (*names, *_UNNAMED) if name in methods)


@functools.cache
def is_of_user(name: str) -> bool:
    """Return whether a Python module, by its full name, is neither Python's nor installed."""
    root = name.partition(".")[0]
    if root in sys.stdlib_module_names or root == "flopprof" or f"{root}." in LIBRARIES:
        return root == "__main__"
    file = getattr(sys.modules.get(name), "__file__", None) or ""
    return not {"site-packages", "dist-packages"} & set(PurePath(file).parts)


def _inherited(kind: type, names: Iterable[str]) -> list[Any]:
    """Return what a class's own bases have by these names: what `super()` may call."""
    bases = [base for base in kind.__mro__ if not base.__module__.startswith(LIBRARIES)]
    return [vars(base)[name] for base in bases for name in names if name in vars(base)]


def used_by(function: FunctionType, kind: type) -> Iterator[tuple[str, Any]]:
    """Yield the names in a function's code, and what they are: globals, methods, or None.

    Those of the function around it, which it closes over, have no name. Of the user's own Python
    modules come what the code has the names of, too.
    """
    names = list(_names_in(function.__code__))
    for name in names:
        value = function.__globals__.get(name)
        if value is None and name in _imported_by(function.__code__):
            value = sys.modules.get(name)
        yield name, getattr(kind, name, None) if value is None else value
        if isinstance(value, ModuleType) and is_of_user(value.__name__):
            there = vars(value)
            yield from ((inner, there[inner]) for inner in names if inner in there)
    for cell in function.__closure__ or ():
        yield "", _held_in(cell)


def _names_in(code: CodeType) -> Iterator[str]:
    """Yield the names that code refers to, and those of the functions and loops inside it."""
    for inner in codes_in(code):
        yield from inner.co_names


@functools.cache
def _imported_by(code: CodeType) -> frozenset[str]:
    """Return the Python modules that code imports when it runs."""
    steps = (step for inner in codes_in(code) for step in dis.get_instructions(inner))
    return frozenset(str(step.argval) for step in steps if step.opname == "IMPORT_NAME")


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
