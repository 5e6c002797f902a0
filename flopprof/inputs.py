"""Turn an input spec, "1x3x224x224:float16", into example tensors."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flopprof import dtypes
from flopprof.errors import UsageError
from flopprof.units import shape_text

if TYPE_CHECKING:
    from torch import Tensor

_EXAMPLE = "such as --input 1x3x224x224:float16 or --input ids=1x128:int64:0-1000"
_SHORT_NAMES = {"half": "float16", "fp16": "float16", "bf16": "bfloat16", "float": "float32"}
_SHORT_NAMES |= {"fp32": "float32", "double": "float64", "int": "int32", "long": "int64"}
_MAX_ELEMENTS = 1 << 48  # more than any machine holds
IDS = (0, 2)
"""Default range of integers: 0 and 1 are rows of every embedding, and mean off and on in a mask."""


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One example input.

    Attributes:
        shape: Sizes; `()` for a scalar.
        dtype: Element type. Floating: normal random values. Integers: uniform random values of
            the range. bool: all True, which as an attention mask hides nothing.
        name: The keyword it is passed by; None for a positional argument.
        low: Smallest integer.
        high: First integer that no longer occurs: a vocabulary's size.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    name: str | None = None
    low: int = IDS[0]
    high: int = IDS[1]

    @property
    def text(self) -> str:
        """Return the spec in its shortest form; `parse_input(spec.text) == spec`."""
        name = f"{self.name}=" if self.name else ""
        dtype = "" if self.dtype == "float32" else f":{self.dtype}"
        bounds = "" if (self.low, self.high) == IDS else f":{self.low}-{self.high}"
        return f"{name}{shape_text(self.shape)}{dtype}{bounds}"


def parse_input(spec: str) -> InputSpec:
    """Return what `[name=]shape[:dtype[:low-high]]` says.

    Sizes are joined by x, as in "1x3x224x224"; "()" is a scalar. The range is for integers and
    does not include its end: "ids=1x128:int64:0-1000" for a vocabulary of 1000.

    Raises:
        UsageError: A part is something else.
    """
    name, equals, rest = spec.strip().rpartition("=")
    shape_part, *more = rest.split(":")
    if equals and not name.isidentifier():
        raise _odd(spec, f"{name!r} is not the name of an argument")
    if len(more) > 2:
        raise _odd(spec, f"{':'.join(more[2:])!r} comes after the range")
    shape = _shape(spec, shape_part)
    dtype = _SHORT_NAMES.get(more[0], more[0]) if more else "float32"
    if not dtypes.itemsize(dtype) or dtype.startswith(("q", "float4", "float8_e8")):
        raise _odd(spec, f"{dtype!r} is not an element type, such as float16, bfloat16 or int64")
    low, high = _bounds(spec, dtype, more[1]) if len(more) == 2 else IDS
    return InputSpec(shape, dtype, name or None, low, high)


def _shape(spec: str, text: str) -> tuple[int, ...]:
    if text == "()":
        return ()
    parts = re.split("[x×X,]", text)
    odd = next((part for part in parts if not re.fullmatch("[0-9]{1,15}", part)), None)
    if odd is not None:
        raise _odd(spec, f"{odd!r} is not a size")
    shape = tuple(int(part) for part in parts)
    if math.prod(shape) > _MAX_ELEMENTS:
        raise _odd(spec, f"{math.prod(shape):.1e} elements fit into no memory")
    return shape


def _bounds(spec: str, dtype: str, text: str) -> tuple[int, int]:
    if dtypes.is_floating(dtype) or dtype == "bool":
        raise _odd(spec, f"a range is for integers, not for {dtype}")
    found = re.fullmatch("([0-9]{1,18})-([0-9]{1,18})", text)
    if not found or not int(found[1]) < int(found[2]):
        raise _odd(spec, f"{text!r} is not a range low-high with low < high")
    bits = 8 * (dtypes.itemsize(dtype) or 8) - (not dtype.startswith("u"))
    if int(found[2]) > 1 << bits:
        raise _odd(spec, f"{dtype} does not reach {found[2]}")
    return int(found[1]), int(found[2])


def _odd(spec: str, fact: str) -> UsageError:
    return UsageError(
        f"input {spec!r}: {fact}",
        remedy=f"write [name=]shape[:dtype[:low-high]], {_EXAMPLE}",
    )


def make_inputs(
    specs: Sequence[InputSpec], *, device: str, dtype: str | None = None, seed: int = 0
) -> tuple[tuple["Tensor", ...], dict[str, "Tensor"]]:
    """Return (positional, by name) example tensors; the global random state stays as it is.

    Values depend on `seed` alone, not on the device. `dtype` replaces every floating dtype.

    Raises:
        UsageError: Two inputs have one name, or they do not fit into memory.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    args: list[Tensor] = []
    kwargs: dict[str, Tensor] = {}
    for spec in specs:
        if spec.name in kwargs:
            raise UsageError(
                f"two inputs are called {spec.name!r}", remedy="give each --input its own name"
            )
        kind = dtype if dtype and dtypes.is_floating(spec.dtype) else spec.dtype
        try:
            tensor = _tensor(spec, getattr(torch, kind), device, generator)
        except RuntimeError as error:  # torch's out of memory is one, on every device
            raise UsageError(
                f"input {spec.text!r} cannot be made on {device}: {str(error).splitlines()[0]}",
                remedy="make it smaller, for example with batch 1",
            ) from error
        if spec.name is None:
            args.append(tensor)
        else:
            kwargs[spec.name] = tensor
    return tuple(args), kwargs


def _tensor(spec: InputSpec, dtype: Any, device: str, generator: Any) -> "Tensor":
    import torch

    if torch.device(device).type == "meta":
        return torch.empty(spec.shape, dtype=dtype, device=device)
    if dtype == torch.bool:
        return torch.ones(spec.shape, dtype=dtype, device=device)
    if dtypes.is_floating(spec.dtype):
        base = dtype if dtype.is_complex or dtype == torch.float64 else torch.float32
        return torch.randn(spec.shape, dtype=base, generator=generator).to(device, dtype)
    return torch.randint(spec.low, spec.high, spec.shape, generator=generator).to(device, dtype)


def describe_inputs(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Return the inputs as specs, "1x3x224x224, mask=1x128:bool"; what is no tensor by its type."""
    named = [f"{name}={_describe(value)}" for name, value in kwargs.items()]
    return ", ".join([_describe(value) for value in args] + named)


def _describe(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_describe(inner) for inner in value) + "]"
    if not hasattr(value, "dtype") or not hasattr(value, "shape"):
        return type(value).__name__
    dtype = str(value.dtype).removeprefix("torch.")
    return InputSpec(tuple(value.shape), dtype).text
