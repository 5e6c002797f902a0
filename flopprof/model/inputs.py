"""Turn the text of an input, "1x3x224x224:float16" or "sr=16000", into what a model is given."""

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from flopprof import dtypes
from flopprof.errors import UsageError
from flopprof.units import shape_text

if TYPE_CHECKING:
    from torch import Tensor

_SHORT_NAMES = {
    "half": "float16",
    "fp16": "float16",
    "bf16": "bfloat16",
    "float": "float32",
    "fp32": "float32",
    "double": "float64",
    "int": "int32",
    "long": "int64",
}
_IDS = (0, 1)  # rows of every embedding, and off and on in a mask
_WORDS = {"None": None, "null": None, "True": True, "true": True, "False": False, "false": False}
_NUMBER = re.compile(r"[+-]?(\d+|(\d+\.\d*|\.\d+)([eE][+-]?\d+)?|\d+[eE][+-]?\d+)")
_TEXT = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)
_RANGE = re.compile("(-?[0-9]{1,18})-(-?[0-9]{1,18})")
_SIZE = re.compile("0*[1-9][0-9]{0,14}")
_MAX_DEPTH = 20  # of lists in lists
_SHOWN_LETTERS = 50  # of a text among the inputs
_BRACKETS = {"[": 1, "(": 1, "{": 1, "]": -1, ")": -1, "}": -1}  # how each changes the depth


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One example tensor: random values; True where bool, which as a mask hides nothing."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    name: str | None = None  # the keyword it is passed by
    low: int = _IDS[0]
    high: int = _IDS[1]  # the last integer that occurs

    @property
    def text(self) -> str:
        """Return the spec in its shortest form; `parse_input(spec.text) == spec`."""
        name = f"{self.name}=" if self.name else ""
        bounds = "" if (self.low, self.high) == _IDS else f":{self.low}-{self.high}"
        is_plain = self.dtype == "float32" and len(self.shape) != 1  # a lone size is a number
        dtype = "" if is_plain else f":{self.dtype}"
        return f"{name}{shape_text(self.shape)}{dtype}{bounds}"


@dataclass(frozen=True, slots=True)
class ValueSpec:
    """An input that is given by its value: a number, text, None; a list or dict of inputs."""

    value: Any  # in lists, tuples and dicts of it: `InputSpec`, `TensorSpec` and plain values
    name: str | None = None

    @property
    def text(self) -> str:
        """Return the spec; `parse_input(spec.text) == spec`."""
        return f"{self.name}={_value_text(self.value)}" if self.name else _value_text(self.value)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor of these values: a number, or lists of numbers."""

    values: Any
    dtype: str | None = None  # torch's choice for the values, unless said


Spec = InputSpec | ValueSpec


def parse_input(spec: str) -> Spec:
    """Return what `[name=]VALUE` says.

    VALUE is `shape[:dtype[:low-high]]` for a tensor of random values ("()" is the shape of one
    without dimensions, `high` the last integer that occurs), `tensor(5)` for given ones, a number,
    'text', True, False, None, or a list, tuple or dict of VALUEs.
    """
    try:
        return _parse(spec)
    except ValueError as error:
        raise UsageError(
            f"input {spec!r}: {error}",
            remedy="write [name=]shape[:dtype[:low-high]], such as --input 1x3x224x224:float16 "
            "or --input ids=1x128:int64:0-999; or a value: --input sr=16000, --input flag=True, "
            "--input \"mode='fast'\", --input [1x3x8x8,1x3x4x4]",
        ) from error


def _parse(spec: str) -> Spec:
    text = spec.strip()
    name: str | None = None
    equals = re.match(r"([^=\[({'\":]*)=", text)
    if equals:
        name = equals[1].strip()
        if not name.isidentifier():
            raise ValueError(f"{name!r} is not the name of an argument")
        text = text[equals.end() :].strip()
    reader = _Reader(text)
    value = reader.value(depth=0)
    if reader.rest:
        raise ValueError(f"{reader.rest[:40]!r} stands behind it")
    if isinstance(value, InputSpec):
        return replace(value, name=name)
    return ValueSpec(value, name)


class _Reader:
    """Reads one value off a text, from the left."""

    def __init__(self, text: str) -> None:
        self.rest = text

    def value(self, depth: int) -> Any:
        """Return the next value; lists are `depth` deep around it."""
        if depth > _MAX_DEPTH:
            raise ValueError(f"lists are more than {_MAX_DEPTH} deep")
        if self.rest.startswith("tensor("):
            return self._tensor(depth)
        if self.rest[:1] == "[":
            return list(self._items("]", depth))
        if self.rest[:1] == "(" and not re.match(r"\(\s*\)", self.rest):
            return tuple(self._items(")", depth))
        if self.rest[:1] == "{":
            return dict(self._items("}", depth, self._entry))
        if text := _TEXT.match(self.rest):
            self._take(text.end())
            return ast.literal_eval(text[0])
        word = re.match(r"(\(\s*\))?[^,\])}]*" if depth else r"(\(\s*\))?.*", self.rest, re.DOTALL)
        letters = word[0] if word else ""
        self._take(len(letters))
        return _word(letters.strip())

    def _take(self, letters: int) -> str:
        taken = self.rest[:letters]
        self.rest = self.rest[letters:].lstrip()
        return taken

    def _items(
        self, end: str, depth: int, read_item: Callable[[int], Any] | None = None
    ) -> "list[Any]":
        """Return the items up to the bracket `end`, with commas between them."""
        self._take(1)
        items = []
        while not self.rest.startswith(end):
            items.append((read_item or self.value)(depth + 1))
            if self.rest.startswith(","):
                self._take(1)
            elif not self.rest.startswith(end):
                raise ValueError(f"a comma or {end!r} is wanted before {self.rest[:40]!r}")
        self._take(1)
        return items

    def _entry(self, depth: int) -> tuple[Any, Any]:
        """Return a key and a value of a dict."""
        key = re.match(rf"({_TEXT.pattern}|\w+)\s*:", self.rest, re.DOTALL)
        if key is None:
            raise ValueError(f"a dict has 'key: value', not {self.rest[:40]!r}")
        self._take(key.end())
        name: Any = key[1]
        if name[0] in "'\"" or name.isdecimal():
            name = ast.literal_eval(name)
        return name, self.value(depth)

    def _tensor(self, depth: int) -> TensorSpec:
        self._take(len("tensor"))
        values = self._items(")", depth)
        if len(values) != 1 or not _are_numbers(values[0]):
            raise ValueError("tensor(…) takes a number, or a list of numbers")
        dtype = re.match(r":(\w+)", self.rest)
        if dtype:
            self._take(dtype.end())
        return TensorSpec(values[0], _dtype(dtype[1]) if dtype else None)


def _are_numbers(values: Any) -> bool:
    if isinstance(values, list):
        return all(map(_are_numbers, values))
    return isinstance(values, int | float)


def _word(word: str) -> Any:
    """Return what a word without brackets or quotes says: None, True, a number, a tensor."""
    if word in _WORDS:
        return _WORDS[word]
    if _NUMBER.fullmatch(word):
        return float(word) if re.search("[.eE]", word) else int(word)
    if word.isidentifier() and ":" not in word and not re.search("[0-9]", word):
        raise ValueError(f"{word!r} is not a size; a text needs quotes: \"'{word}'\"")
    return _random_tensor(word)


def _random_tensor(word: str) -> InputSpec:
    """Return what `shape[:dtype[:low-high]]` says.

    Raises:
        ValueError: A part of it is no such thing, or the range is beyond the dtype's.
    """
    sizes, _, after = word.partition(":")
    dtype_name, _, bounds = after.partition(":")
    parts = [] if re.fullmatch(r"\(\s*\)", sizes) else re.split("[x×X,]", sizes)
    for part in parts:
        if not _SIZE.fullmatch(part):
            raise ValueError(f"{part!r} is not a size")
    dtype = _dtype(dtype_name or "float32")
    if bounds and (dtypes.is_floating(dtype) or dtype == "bool"):
        raise ValueError(f"a range is for integers, not for {dtype}")
    low, high = _range(bounds) if bounds else _IDS
    is_unsigned = dtype.startswith("u")
    bits = 8 * (dtypes.itemsize(dtype) or 8) - (0 if is_unsigned else 1)
    least = 0 if is_unsigned else -(1 << bits)
    for bound in (low, high):
        if not least <= bound < 1 << bits:
            raise ValueError(f"{dtype} does not reach {bound}")
    return InputSpec(tuple(int(part) for part in parts), dtype, None, low, high)


def _range(bounds: str) -> tuple[int, int]:
    match = _RANGE.fullmatch(bounds)
    if match is None or int(match[1]) > int(match[2]):
        raise ValueError(f"{bounds!r} is not a range low-high with low ≤ high")
    return int(match[1]), int(match[2])


def _dtype(name: str) -> str:
    """Return an element type by its name or short name; raise ValueError for no such."""
    dtype = _SHORT_NAMES.get(name, name)
    if not dtypes.itemsize(dtype) or dtype.startswith(("q", "float4", "float8_e8")):
        raise ValueError(f"{dtype!r} is not an element type, such as float16, bfloat16 or int64")
    return dtype


def specs_of(inputs: Any) -> list[Spec]:
    """Return the specs in a text, or those of a size (1, 3, 224, 224) or of several sizes."""
    if isinstance(inputs, str):
        return [parse_input(text) for text in split_specs(inputs)]
    sizes = [inputs] if isinstance(inputs[0], int) else inputs
    return [_random_tensor("x".join(map(str, size))) for size in sizes]


def split_specs(text: str) -> list[str]:
    """Return the specs in a text; spaces outside of brackets and quotes separate them."""
    specs: list[str] = []
    depth = 0
    for part in re.findall(rf"{_TEXT.pattern}|\s+|[\[({{]|[\])}}]|[^\s\[\](){{}}'\"]+|.", text):
        if part.isspace() and not depth:
            specs.append("")
            continue
        depth += _BRACKETS.get(part, 0)
        specs = specs or [""]
        specs[-1] += part
    return [spec.rstrip(",") for spec in specs if spec.rstrip(",")]


def with_floats(spec: Spec, dtype: str) -> Spec:
    """Return the spec with `dtype` for float32, which is what a spec has unless it says another."""
    if isinstance(spec, InputSpec):
        return replace(spec, dtype=dtype) if spec.dtype == "float32" else spec
    return replace(spec, value=_mapped(spec.value, lambda leaf: _with_floats(leaf, dtype)))


def _with_floats(leaf: Any, dtype: str) -> Any:
    return with_floats(leaf, dtype) if isinstance(leaf, InputSpec) else leaf


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return `value`, in whose lists, tuples and dicts every other thing is changed."""
    if isinstance(value, dict):
        return {key: _mapped(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_mapped(item, change) for item in value)
    return change(value)


def make_inputs(
    specs: Sequence[Spec], *, device: str, dtype: str | None = None, seed: int = 0
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return (positional, by name) example inputs; the global random state stays as it is.

    Values depend on `seed` alone, not on the device. `dtype` replaces every floating dtype.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    args: list[Any] = []
    kwargs: dict[str, Any] = {}

    def make(leaf: Any) -> Any:
        if isinstance(leaf, InputSpec):
            return _random(leaf, dtype, device, generator)
        return _filled(leaf, dtype, device) if isinstance(leaf, TensorSpec) else leaf

    for spec in specs:
        if spec.name in kwargs:
            fact = f"two inputs are called {spec.name!r}"
            raise UsageError(fact, remedy="give each --input its own name")
        try:
            value = _mapped(spec if isinstance(spec, InputSpec) else spec.value, make)
        except (RuntimeError, ValueError, TypeError, OverflowError) as error:  # out of memory, too
            reason = str(error).partition("\n")[0]
            fact = f"input {spec.text!r} cannot be made on {device}: {reason}"
            raise UsageError(fact, remedy="make it smaller, for example with batch 1") from error
        if spec.name is None:
            args.append(value)
        else:
            kwargs[spec.name] = value
    return tuple(args), kwargs


def _random(spec: InputSpec, floats: str | None, device: str, generator: Any) -> "Tensor":
    import torch

    name = floats if floats and dtypes.is_floating(spec.dtype) else spec.dtype
    dtype = getattr(torch, name)
    if torch.device(device).type == "meta":
        return torch.empty(spec.shape, dtype=dtype, device=device)
    if dtypes.is_floating(spec.dtype):
        base = dtype if dtype.is_complex or dtype == torch.float64 else torch.float32
        return torch.randn(spec.shape, dtype=base, generator=generator).to(device, dtype)
    low, high = (1, 1) if dtype == torch.bool else (spec.low, spec.high)
    return torch.randint(low, high + 1, spec.shape, generator=generator).to(device, dtype)


def _filled(spec: TensorSpec, floats: str | None, device: str) -> "Tensor":
    import torch

    tensor = torch.tensor(spec.values, dtype=getattr(torch, spec.dtype) if spec.dtype else None)
    if floats and tensor.is_floating_point():
        tensor = tensor.to(getattr(torch, floats))
    return tensor.to(device)


def describe_inputs(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Return the inputs as specs, "1x3x224x224, mask=1x128:bool"; other objects by their type."""
    keywords = [f"{name}={_describe(value)}" for name, value in kwargs.items()]
    return ", ".join([_describe(value) for value in args] + keywords)


def _describe(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{describe_inputs(value, {})}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_describe(item)}' for key, item in value.items())}}}"
    if getattr(value, "is_nested", False):  # whose sizes differ, and may not even be asked for
        return f"nested tensor of {len(value.unbind())}"
    if value is None or type(value) in (bool, int, float):
        return repr(value)
    if type(value) is str and len(value) < _SHOWN_LETTERS:
        return repr(value)
    if not hasattr(value, "dtype") or not hasattr(value, "shape"):
        return type(value).__name__
    return InputSpec(tuple(value.shape), str(value.dtype).removeprefix("torch.")).text


def _value_text(value: Any) -> str:
    """Return a value as `parse_input` reads it."""
    if isinstance(value, InputSpec):
        return value.text
    if isinstance(value, TensorSpec):
        return f"tensor({value.values!r}){f':{value.dtype}' if value.dtype else ''}"
    if isinstance(value, dict):
        items = [f"{key!r}: {_value_text(item)}" for key, item in value.items()]
        return f"{{{', '.join(items)}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_value_text, value))}]"
    if isinstance(value, tuple):
        return f"({', '.join(map(_value_text, value))},)" if value else "()"
    return repr(value)
