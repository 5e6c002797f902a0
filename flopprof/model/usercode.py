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
                    f"there is no module {error.name!r}", remedy="install it, or name a FILE.py"
                ) from error
            raise


@contextmanager
def foreign_code(what: str) -> Iterator[None]:
    """Turn whatever the user's code raises, sys.exit's too, into a `ModelError`."""
    try:
        yield
    except (FlopprofError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise ModelError(
            f"{what} raised {type(error).__name__}: {safe_text(error)}",
            remedy="make it run in Python by itself; its folder is not on Python's path",
        ) from error


def find_function(spec: str, option: str) -> Callable[..., Any]:
    """Return the function that `spec`, FILE.py:FUNCTION, names.

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
    found: Callable[..., Any] = function
    return found
