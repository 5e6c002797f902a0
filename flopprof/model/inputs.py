"""Turn an input spec, "1x3x224x224:float16", into example tensors."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flopprof import dtypes
from flopprof.errors import UsageError
from flopprof.units import shape_text

if TYPE_CHECKING:
    from torch import Tensor

_SHORT_NAMES = {"half": "float16", "fp16": "float16", "bf16": "bfloat16", "float": "float32"}
_SHORT_NAMES |= {"fp32": "float32", "double": "float64", "int": "int32", "long": "int64"}
_IDS = (0, 2)  # 0 and 1 are rows of every embedding, and mean off and on in a mask


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One example input: random values; True where bool, which as a mask hides nothing."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    name: str | None = None  # the keyword it is passed by
    low: int = _IDS[0]
    high: int = _IDS[1]  # the first integer that does not occur

    @property
    def text(self) -> str:
        """Return the spec in its shortest form; `parse_input(spec.text) == spec`."""
        name = f"{self.name}=" if self.name else ""
        bounds = "" if (self.low, self.high) == _IDS else f":{self.low}-{self.high}"
        dtype = f":{self.dtype}" if self.dtype != "float32" else ""
        return f"{name}{shape_text(self.shape)}{dtype}{bounds}"


def parse_input(spec: str) -> InputSpec:
    """Return what `[name=]shape[:dtype[:low-high]]` says; "()" is the shape of a scalar."""
    try:
        return _parse(spec)
    except ValueError as error:
        raise UsageError(
            f"input {spec!r}: {error}",
            remedy="write [name=]shape[:dtype[:low-high]], such as --input 1x3x224x224:float16 "
            "or --input ids=1x128:int64:0-1000",
        ) from error


def _parse(spec: str) -> InputSpec:
    name, equals, rest = spec.strip().rpartition("=")
    if equals and not name.isidentifier():
        raise ValueError(f"{name!r} is not the name of an argument")
    sizes, dtype_name, bounds = [*rest.split(":", 2), "", ""][:3]
    parts = [] if sizes == "()" else re.split("[x×X,]", sizes)
    for part in parts:
        if not re.fullmatch("0*[1-9][0-9]{0,14}", part):
            raise ValueError(f"{part!r} is not a size")
    dtype = _SHORT_NAMES.get(dtype_name, dtype_name or "float32")
    if not dtypes.itemsize(dtype) or dtype.startswith(("q", "float4", "float8_e8")):
        raise ValueError(f"{dtype!r} is not an element type, such as float16, bfloat16 or int64")
    if bounds and (dtypes.is_floating(dtype) or dtype == "bool"):
        raise ValueError(f"a range is for integers, not for {dtype}")
    match = re.fullmatch("([0-9]{1,18})-([0-9]{1,18})", bounds or "{}-{}".format(*_IDS))
    low, high = map(int, match.groups()) if match else (0, 0)
    if low >= high:
        raise ValueError(f"{bounds!r} is not a range low-high with low < high")
    bits = 8 * (dtypes.itemsize(dtype) or 8)
    if not dtype.startswith("u"):
        bits -= 1  # of the sign
    if high > 1 << bits:
        raise ValueError(f"{dtype} does not reach {high}")
    return InputSpec(tuple(int(part) for part in parts), dtype, name or None, low, high)


def make_inputs(
    specs: Sequence[InputSpec], *, device: str, dtype: str | None = None, seed: int = 0
) -> tuple[tuple["Tensor", ...], dict[str, "Tensor"]]:
    """Return (positional, by name) example tensors; the global random state stays as it is.

    Values depend on `seed` alone, not on the device. `dtype` replaces every floating dtype.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    args: list[Tensor] = []
    kwargs: dict[str, Tensor] = {}
    for spec in specs:
        if spec.name in kwargs:
            fact = f"two inputs are called {spec.name!r}"
            raise UsageError(fact, remedy="give each --input its own name")
        kind = dtype if dtype and dtypes.is_floating(spec.dtype) else spec.dtype
        try:
            tensor = _tensor(spec, getattr(torch, kind), device, generator)
        except RuntimeError as error:  # torch's out of memory is one, on every device
            said = str(error).partition("\n")[0]
            fact = f"input {spec.text!r} cannot be made on {device}: {said}"
            raise UsageError(fact, remedy="make it smaller, for example with batch 1") from error
        if spec.name is None:
            args.append(tensor)
        else:
            kwargs[spec.name] = tensor
    return tuple(args), kwargs


def _tensor(spec: InputSpec, dtype: Any, device: str, generator: Any) -> "Tensor":
    import torch

    if torch.device(device).type == "meta":
        return torch.empty(spec.shape, dtype=dtype, device=device)
    if dtypes.is_floating(spec.dtype):
        base = dtype if dtype.is_complex or dtype == torch.float64 else torch.float32
        return torch.randn(spec.shape, dtype=base, generator=generator).to(device, dtype)
    low, high = (1, 2) if dtype == torch.bool else (spec.low, spec.high)
    return torch.randint(low, high, spec.shape, generator=generator).to(device, dtype)


def describe_inputs(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Return the inputs as specs, "1x3x224x224, mask=1x128:bool"; what is no tensor by its type."""
    keywords = [f"{name}={_describe(value)}" for name, value in kwargs.items()]
    return ", ".join([_describe(value) for value in args] + keywords)


def _describe(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{describe_inputs(value, {})}]"
    if getattr(value, "is_nested", False):  # whose sizes differ, and may not even be asked for
        return f"nested tensor of {len(value.unbind())}"
    if not hasattr(value, "dtype") or not hasattr(value, "shape"):
        return type(value).__name__
    return InputSpec(tuple(value.shape), str(value.dtype).removeprefix("torch.")).text
