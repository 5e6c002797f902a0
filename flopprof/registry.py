"""Map names to implementations via decorators, and refuse duplicates."""

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from functools import cache
from typing import Generic, TypeVar

from flopprof.errors import UsageError

T = TypeVar("T")


class Registry(Generic[T]):
    """Named implementations of one thing, filled by decorators when their files are imported.

    Args:
        noun: The singular noun for messages, such as "op formula".
    """

    def __init__(self, noun: str) -> None:
        self.noun = noun
        self._items: dict[str, T] = {}

    def register(self, *names: str) -> Callable[[T], T]:
        """Return a decorator that files its argument under each of `names`.

        Raises:
            ValueError: A name is taken already.
        """

        def add(item: T) -> T:
            for name in names:
                if name in self._items:
                    raise ValueError(f"two implementations of the {self.noun} {name!r}")
                self._items[name] = item
            return item

        return add

    def get(self, name: str) -> T | None:
        """Return what is registered as `name`, or None."""
        return self._items.get(name)

    def require(self, name: str) -> T:
        """Return what is registered as `name`.

        Raises:
            UsageError: Nothing is; the remedy lists what there is.
        """
        if name not in self._items:
            names = ", ".join(sorted(self._items))
            raise UsageError(f"there is no {self.noun} {name!r}", remedy=f"known: {names}")
        return self._items[name]

    def items(self) -> Iterator[tuple[str, T]]:
        """Yield (name, implementation), sorted by name."""
        yield from sorted(self._items.items(), key=lambda pair: pair[0])

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __len__(self) -> int:
        return len(self._items)


@cache
def import_all(package: str) -> None:
    """Import every module of `package`, so that their decorators run; once."""
    for info in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{info.name}")
