"""Build models without memory for their parameters, and stop what makes too many modules."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flopprof.errors import UsageError
from flopprof.model.configs import MAX_MODULES
from flopprof.units import si


@contextmanager
def without_memory() -> Iterator[None]:
    """Put parameters on meta as modules take them; all else that the block makes is real.

    Under `torch.device("meta")` whatever else runs in the block would be on meta, too, and stay
    so: class attributes of a library that is imported there, cached tables. Memory that is
    allocated and not written to costs nothing, so `nn.Linear` of any size may be made.
    """
    register = nn.Module.register_parameter
    emptied: dict[int, tuple[weakref.ref[nn.Parameter], nn.Parameter]] = {}

    def register_empty(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if type(param) is not nn.Parameter or param.device.type != "cpu":
            return register(self, name, param)
        shared = emptied.get(id(param))
        if shared and shared[0]() is param:
            return register(self, name, shared[1])
        empty = nn.Parameter(torch.empty_like(param, device="meta"), param.requires_grad)
        vars(empty).update(vars(param))
        emptied[id(param)] = weakref.ref(param), empty
        return register(self, name, empty)

    nn.Module.register_parameter = register_empty  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


@contextmanager
def limited_modules(name: str) -> Iterator[None]:
    """Stop the block where it makes more modules than any model has."""
    initialise = nn.Module.__init__
    count = 0

    def initialise_counted(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        nonlocal count
        count += 1
        if count > MAX_MODULES:
            raise UsageError(
                f"{name} has more than {MAX_MODULES:,} modules",
                remedy="ask for fewer layers: no known model has as many",
            )
        initialise(self, *args, **kwargs)

    nn.Module.__init__ = initialise_counted  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__init__ = initialise  # type: ignore[method-assign]


def check_room(model: nn.Module, path: str) -> None:
    """Refuse a model, on meta, whose tensors are larger than the memory that is there.

    Raises:
        UsageError: They are.
    """
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    needed_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    available_bytes = _available_bytes()
    if available_bytes and needed_bytes > available_bytes:
        raise UsageError(
            f"{path}: the model takes {si(float(needed_bytes), 'B')} of memory, and "
            f"{si(float(available_bytes), 'B')} are there",
            remedy="flopprof count needs no memory for weights",
        )


def _available_bytes() -> int:
    """Return the memory that can be had; 0 where the system does not tell."""
    try:
        text = Path("/proc/meminfo").read_text()
        return 1024 * int(text.partition("MemAvailable:")[2].split()[0])
    except (OSError, ValueError, IndexError):
        return 0
