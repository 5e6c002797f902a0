"""Keep the garbage collector out of what it would only slow: imports, long reads, what is timed."""

import gc
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def not_collecting(wanted: bool = True) -> Iterator[None]:
    """Collect no garbage inside; without `wanted`, change nothing."""
    collecting = gc.isenabled() and wanted
    if collecting:
        gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def import_quickly(name: str) -> Any:
    """Return a module, imported without collecting: modules are no garbage, and many objects.

    The collector walks these again and again: a fifth of the time that torch and torchvision take.
    """
    with not_collecting():
        return importlib.import_module(name)
