"""Element counts, compute types, bytes; what every file of formulas uses."""

import csv
from collections.abc import Callable
from functools import wraps
from math import prod
from pathlib import Path
from typing import Any

from flopprof import dtypes
from flopprof.formulas import OpCall, OpFormula, Shape, Work, op_formula


def read_table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def ops(names: str) -> tuple[str, ...]:
    """Return the dispatcher names in `names`, spelt as a shell spells alternatives.

    `max_pool{1,2}d` is aten::max_pool1d and aten::max_pool2d; `relu~`, short for `relu{,_}`, is
    aten::relu and in-place aten::relu_. A name with a capital is that of an autograd function.
    """
    spelt_out: list[str] = []
    for name in names.split():
        whole = "::" in name or name.lstrip("_")[:1].isupper()
        full = name if whole else f"aten::{name}"
        spelt_out += _alternatives(full.replace("~", "{,_}"))
    return tuple(spelt_out)


def _alternatives(name: str) -> list[str]:
    start, brace, rest = name.partition("{")
    if not brace:
        return [name]
    choices, _, end = rest.partition("}")
    ends = _alternatives(end)
    return [f"{start}{choice}{end}" for choice in choices.split(",") for end in ends]


def formula_for(
    names: str, *, kind: str, looks_below: bool = False
) -> Callable[[OpFormula], OpFormula]:
    """Register a formula of this package, by `op_formula`, for ops whose calls have shapes.

    A call without shapes does not determine it. Nor does one whose first argument has no type: that
    is how a trace shows a nested tensor, a subclass's tensor, or None. The ops below such a call
    work on the tensors inside.

    Args:
        names: As for `ops`.
        kind: As for `op_formula`.
        looks_below: As for `op_formula`.
    """

    def add(formula: OpFormula) -> OpFormula:
        @wraps(formula)
        def of_shapes(call: OpCall) -> Work | None:
            nested = call.dtypes and not call.dtype(0)
            return None if nested or not call.shapes else formula(call)

        register = op_formula(*ops(names), kind=kind, source="formula", looks_below=looks_below)
        register(of_shapes)
        return formula

    return add


def number(call: OpCall, index: int) -> float | None:
    """Return argument `index` as a number, or None if it is not one."""
    try:
        return float(call.value(index))
    except ValueError:
        return None


def numbers(call: OpCall, index: int) -> tuple[float, ...] | None:
    """Return argument `index`, "[2., 2.]", as numbers, or None if it is no such list."""
    text = call.value(index)
    try:
        return tuple(map(float, text[1:-1].split(","))) if text.startswith("[") else None
    except ValueError:
        return None


def is_given(call: OpCall, index: int) -> bool:
    """Return whether argument `index` is there and not None."""
    return bool(call.dtype(index) or call.value(index) or call.shape(index))


# PyTorch's numbers for element types, as they stand in traces.
_SCALAR_TYPES = (
    *("uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"),
    *("complex32", "complex64", "complex128", "bool", "qint8", "quint8", "qint32", "bfloat16"),
)


def scalar_type(number: int | None) -> str:
    """Return the element type that PyTorch numbers so; "" for None and numbers that are none."""
    if number is None or not 0 <= number < len(_SCALAR_TYPES):
        return ""
    return _SCALAR_TYPES[number]


def type_asked_for(call: OpCall, places: str) -> str:
    """Return the element type that a `dtype` argument, or behind it the output, asks for; else "".

    Args:
        call: The call.
        places: Where overloads have that argument, such as "1 3": it is at the last that there is.
    """
    there = [int(place) for place in places.split() if int(place) < len(call.shapes)]
    if not there:
        return ""
    output = call.dtype(there[-1] + 1) if call.has(there[-1] + 1) else ""
    return scalar_type(call.integer(there[-1])) or output


def elements(call: OpCall, index: int) -> int:
    """Return the elements of argument `index`, a tensor or list of tensors; 0 if it is neither."""
    shape: tuple[Any, ...] = call.shape(index)
    if call.dtype(index) == "TensorList" or (shape and isinstance(shape[0], tuple | list)):
        return sum(prod(one) for one in shape)
    return prod(shape) if call.has(index) else 0


def moved_bytes(call: OpCall, *indices: int) -> int:
    """Return the bytes of arguments `indices`: name an argument once per reading and writing."""
    return sum(elements(call, index) * call.itemsize_of(index) for index in indices)


def broadcast(*shapes: Shape) -> Shape:
    """Return the shape that `shapes` broadcast to."""
    width = max(map(len, shapes), default=0)
    padded = [(1,) * (width - len(shape)) + tuple(shape) for shape in shapes]
    return tuple(next((s for s in sizes if s != 1), 1) for sizes in zip(*padded, strict=True))


def compute_dtype(call: OpCall, operands: int = 1) -> str:
    """Return the type that PyTorch promotes the first `operands` arguments to; "" if not known.

    The highest of bool < int < float < complex wins; within it a tensor with dimensions wins over
    one without, and the wider over the narrower. A number, or a 0-d tensor (which may be a
    number in disguise), that alone is floating point makes the default type.
    """
    ranked = []  # the highest wins
    for index in range(min(operands, len(call.dtypes))):
        dtype = call.dtype(index)
        if dtype == "Scalar":
            dtype = _number_dtype(call.value(index))
        if size := dtypes.itemsize(dtype):
            ranked.append((_category(dtype), bool(call.shape(index)), size, dtype))
    if not ranked:
        return ""
    category, dimensions, _, dtype = max(ranked)
    if category >= _FLOAT and not dimensions and any(has_axes for _, has_axes, *_ in ranked):
        return "complex64" if category == _COMPLEX else "float32"
    return dtype


_BOOL = 0
_INT = 1
_FLOAT = 2
_COMPLEX = 3


def _category(dtype: str) -> int:
    """Return where an element type stands in PyTorch's promotion."""
    if dtypes.is_complex(dtype):
        return _COMPLEX
    if dtypes.is_floating(dtype):
        return _FLOAT
    return _BOOL if dtype == "bool" else _INT


def _number_dtype(text: str) -> str:
    """Return the element type of a number, by how a trace writes it: 0.5, 1e8, nan."""
    if text in ("True", "False"):
        return "bool"
    return "float32" if set(text) & set(".en") else "int64"


def counts(call: OpCall, operands: int = 1) -> bool:
    """Return whether arithmetic on the arguments is floating point, or of unknown type."""
    dtype = compute_dtype(call, operands)
    return dtype == "" or dtypes.is_floating(dtype)


def is_real(call: OpCall, operands: int = 1) -> bool:
    """Return whether arithmetic on the arguments is on real numbers in floating point."""
    return counts(call, operands) and not dtypes.is_complex(compute_dtype(call, operands))


def additions(call: OpCall, operands: int = 1) -> int:
    """Return the FLOPs of adding two elements: 2 if complex, 1 if real, none of integers."""
    if dtypes.is_complex(compute_dtype(call, operands)):
        return 2
    return 1 if counts(call, operands) else 0


def has_unrecorded_number(call: OpCall, operands: int) -> bool:
    """Return whether one of the operands may be a number whose value, so its type, is missing.

    In place, integers stay integers.
    """
    if call.values or call.op.endswith("_"):
        return False
    places = range(min(operands, len(call.shapes)))
    return any(call.dtype(index) in ("", "Scalar") for index in places)


def vector_work(
    call: OpCall, flops: int, *read: int, written: int = 0, at_most: int | None = None
) -> Work:
    """Return vector FLOPs and their traffic: arguments read, elements of the first's type written.

    Args:
        call: The call.
        flops: The FLOPs.
        read: Arguments that are read, or written.
        written: Elements written besides.
        at_most: FLOPs at most, where values not in the call decide.
    """
    moved = moved_bytes(call, *read) + written * call.itemsize_of(0)
    return Work(vector_flops=flops, min_bytes=moved, flops_at_most=at_most)


def listed(call: OpCall, least: int, real: int, most: int, *moved: int) -> Work:
    """Return the work of an op on lists of tensors.

    Args:
        call: The call.
        least: FLOPs per element at least: 0 where integers are possible.
        real: FLOPs per element of real numbers.
        most: FLOPs per element at most: those of complex numbers, where they are possible.
        moved: Arguments that are read or written; the first is the list counted.
    """
    size = elements(call, moved[0])
    dtype = call.list_dtype
    if not dtype:
        at_most = None if least == most else most * size
        return vector_work(call, least * size, *moved, at_most=at_most)
    each = real if dtypes.is_floating(dtype) else least
    return vector_work(call, size * (most if dtypes.is_complex(dtype) else each), *moved)


def size_of(call: OpCall, operands: int) -> int:
    """Return the elements of what the first `operands` arguments broadcast to."""
    return prod(broadcast(*(call.shape(index) for index in range(operands))))


def elementwise(
    call: OpCall, flops: int, operands: int = 1, *, at_most: int | None = None, result: str = ""
) -> Work:
    """Return the work of an op that maps its first `operands` arguments, broadcast, to one result.

    Args:
        call: The call.
        flops: FLOPs per output element; integer and boolean work counts none.
        operands: How many leading arguments may be tensors.
        at_most: FLOPs per output element at most, where values not in the call decide.
        result: Element type of the result: "" is the type computed in; "float" computes in
            floating point even on integers, but for quantised ones; "real" halves a complex
            element.
    """
    size = size_of(call, operands)
    dtype = compute_dtype(call, operands)
    quantised = result == "float" and dtype.startswith("q")
    if "float" in result and not counts(call, operands) and not quantised:
        dtype = "float32"
    floating = dtype == "" or dtypes.is_floating(dtype)
    written = dtypes.itemsize(result) or dtypes.itemsize(dtype) or call.itemsize
    if "real" in result and dtypes.is_complex(dtype):
        written //= 2
    moved = moved_bytes(call, *range(operands)) + size * written
    if not floating:
        # Unless a number that is not recorded is no integer.
        most = max(flops, at_most or 0) * size if has_unrecorded_number(call, operands) else None
        return Work(vector_flops=0, min_bytes=moved, flops_at_most=most or None)
    return Work(
        vector_flops=flops * size,
        min_bytes=moved,
        flops_at_most=None if at_most is None else at_most * size,
    )


def reduced(
    call: OpCall, flops: int, dims_at: int, result: str = "", *, at_most: int | None = None
) -> Work:
    """Return the work of a reduction of some axes.

    Args:
        call: The call.
        flops: FLOPs per element of the input.
        dims_at: The argument with the axes that go: a list, or one; all without.
        result: Element type of the result: "" is that of the input.
        at_most: FLOPs per element of the input at most, where values not in the call decide.
    """
    shape = call.shape(0)
    dims = call.integers(dims_at)
    single = call.integer(dims_at)  # of two arguments only, it is no axis but a type
    if dims is None and single is not None and len(call.shapes) > 2:
        dims = (single,)
    gone = {dim % len(shape) for dim in dims or range(len(shape)) if shape}
    kept = prod(size for axis, size in enumerate(shape) if axis not in gone)
    written = kept * (dtypes.itemsize(result) or call.itemsize_of(0))
    return Work(
        vector_flops=flops * elements(call, 0),
        min_bytes=moved_bytes(call, 0) + written,
        flops_at_most=None if at_most is None else at_most * elements(call, 0),
    )
