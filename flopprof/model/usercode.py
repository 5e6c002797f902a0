"""Run the user's own code: a file or module that an argument names."""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from flopprof.errors import FlopprofError, ModelError, UsageError
from flopprof.model.pickles import NAMES
from flopprof.units import safe_text


def import_code(place: str) -> ModuleType:
    """Return the module that `place` names: FILE.py or a dotted name.

    Raises:
        UsageError: There is none.
        ModelError: It raised.
    """
    file = Path(place)
    if file.suffix == ".py" and not file.is_file():
        raise UsageError(f"there is no file {place}", remedy="check the path")
    with foreign_code(place):
        if file.suffix == ".py":
            module = ModuleType(f"flopprof_user_{file.stem}")
            module.__file__ = place
            sys.modules[module.__name__] = module  # dataclasses and pickle look it up there
            SourceFileLoader(module.__name__, place).exec_module(module)
            return module
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name and place.startswith(error.name):
                raise UsageError(
                    f"there is no module {error.name!r}",
                    remedy=f"install it: pip install {pip_name(error.name)}; or name a FILE.py",
                ) from error
            raise


@contextmanager
def foreign_code(code_name: str) -> Iterator[None]:
    """Turn whatever the user's code raises, sys.exit's too, into an error that says what to do.

    Raises:
        UsageError: A module that it imports is not installed.
        ModelError: It raised, or tried to reach the network.
    """
    try:
        yield
    except (FlopprofError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise _explained(code_name, error) from error


def _explained(code_name: str, error: BaseException) -> FlopprofError:
    """Return the error that says what the user's code wants."""
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ModuleNotFoundError) and cause.name:
            return _lacks(code_name, cause.name)
    message = f"{type(error).__name__}: {safe_text(error)}"
    if any(map(_is_network, causes)):
        return ModelError(
            f"{code_name} tries to download something: {message}",
            remedy="give arguments that load nothing, such as pretrained=False or weights=None: "
            '--arch "PLACE:NAME(pretrained=False)"; else run it once where there is a network',
        )
    remedy = "make it run in Python by itself; its folder is not on Python's path"
    return ModelError(f"{code_name} raised {message}", remedy=remedy)


def _lacks(code_name: str, module: str) -> UsageError:
    """Return the error for code that imports what is not there."""
    fact = f"{code_name} needs the module {safe_text(module)!r}, which is not installed"
    place = Path(code_name.rpartition(".py")[0] + ".py")
    beside = place.parent / module.partition(".")[0]
    if place.is_file() and (beside.is_dir() or beside.with_suffix(".py").is_file()):
        remedy = f"it lies beside {place.name}: PYTHONPATH={place.parent} flopprof …"
    else:
        remedy = f"pip install {pip_name(module)}"
    return UsageError(fact, remedy=remedy)


def pip_name(module: str) -> str:
    """Return the name that pip has for the package of a module."""
    top = module.partition(".")[0]
    return str(NAMES["pip_names"].get(top, safe_text(top)))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error, then the one that it came of, and so on."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


def _is_network(error: BaseException) -> bool:
    """Return whether libraries raise this where something cannot be fetched."""
    names = {f"{cls.__module__.partition('.')[0]}.{cls.__name__}" for cls in type(error).__mro__}
    return bool(names & set(NAMES["network_errors"]))


def find_function(spec: str, option: str) -> Callable[..., Any]:
    """Return the function that `spec`, FILE.py:FUNCTION, names.

    Args:
        spec: What the user gave.
        option: The flag that it was given with, for messages.

    Raises:
        UsageError: It names none.
        ModelError: The file raised.
    """
    place, _, name = spec.rpartition(":")
    if not place:
        raise UsageError(f"{option} {spec} names no function", remedy=f"{option} FILE.py:FUNCTION")
    function = getattr(import_code(place), name, None)
    if not callable(function):
        raise UsageError(f"{place} has no function {name!r}", remedy=f"{option} FILE.py:FUNCTION")
    named_function: Callable[..., Any] = function
    return named_function
