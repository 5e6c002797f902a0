"""Element counts, compute types, bytes, and formulas made from tables of op names."""

from collections.abc import Callable, Iterator
from functools import wraps
from math import prod
from typing import Any

from flopprof import dtypes
from flopprof.formulas import OpCall, OpFormula, Shape, Work, op_formula

# Real operations of one complex operation; those of any other are not known.
_COMPLEX = {"mul": 6, "multiply": 6, "square": 6, "outer": 6, "ger": 6, "reciprocal": 6}
_COMPLEX |= {"div": 11, "divide": 11, "true_divide": 11, "lerp": 10, "neg": 2, "eq": 2, "ne": 2}
_COMPLEX |= {"conj_physical": 1, "_conj_physical": 1, "abs": 4, "angle": 1, "exp": 5}
_COMPLEX |= {"cumsum": 2, "cumprod": 6}


def ops(names: str) -> tuple[str, ...]:
    """Return the dispatcher names in `names`: `relu~` is aten::relu and in-place aten::relu_."""
    full = [name if "::" in name else f"aten::{name}" for name in names.split()]
    return tuple(n for f in full for n in ((f[:-1], f[:-1] + "_") if f.endswith("~") else (f,)))


def rows(table: str) -> Iterator[tuple[list[str], str]]:
    """Yield (columns, op names) of a table's rows: `column | column | names`, names on and on."""
    columns: list[str] = []
    names = ""
    for line in [*table.strip().splitlines(), "|"]:
        *start, rest = (part.strip() for part in line.split("|"))
        if start and names:
            yield columns, names
        columns, names = (start, rest) if start else (columns, f"{names} {rest}")


def formula_for(names: str) -> Callable[[OpFormula], OpFormula]:
    """Register a formula for the ops `names`, which a call without shapes does not determine.

    Nor does one whose first argument has no type: that is how a trace shows a nested tensor, a
    subclass's tensor, or None. The ops below such a call work on the tensors inside.
    """

    def add(formula: OpFormula) -> OpFormula:
        @wraps(formula)
        def of_shapes(call: OpCall) -> Work | None:
            nested = call.dtypes and not call.dtype(0)
            return None if nested or not call.shapes else formula(call)

        op_formula(*ops(names))(of_shapes)
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


def given(call: OpCall, index: int) -> bool:
    """Return whether argument `index` is there and not None."""
    return bool(call.dtype(index) or call.value(index) or call.shape(index))


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
    found = []
    for index in range(min(operands, len(call.dtypes))):
        dtype, text = call.dtype(index), call.value(index)
        if dtype == "Scalar":
            truth = "bool" if text in ("True", "False") else ""
            dtype = truth or ("float32" if set(text) & set(".en") else "int64")  # 0.5, 1e8, nan
        if size := dtypes.itemsize(dtype):
            rank = 3 if dtypes.is_complex(dtype) else 2 * dtypes.is_floating(dtype)
            found.append((rank or dtype != "bool", bool(call.shape(index)), size, dtype))
    if not found:
        return ""
    rank, dimensions, _, dtype = max(found)
    if rank >= 2 and not dimensions and any(with_dimensions for _, with_dimensions, *_ in found):
        return "complex64" if rank == 3 else "float32"
    return dtype


def counts(call: OpCall, operands: int = 1) -> bool:
    """Return whether arithmetic on the arguments is floating point, or of unknown type."""
    dtype = compute_dtype(call, operands)
    return dtype == "" or dtypes.is_floating(dtype)


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
            floating point even on integers.
    """
    size = prod(broadcast(*(call.shape(index) for index in range(operands))))
    dtype = compute_dtype(call, operands)
    floating = counts(call, operands)
    if result == "float":
        dtype, floating, result = (dtype if floating else "float32"), True, ""
    written = dtypes.itemsize(result or dtype) or call.itemsize
    return Work(
        vector_flops=flops * size * floating,
        min_bytes=moved_bytes(call, *range(operands)) + size * written,
        flops_at_most=None if at_most is None else at_most * size * floating,
    )


def per_output(module: str, table: str) -> None:
    """Register, for `module`, rows of `FLOPs per output element | operands | result | names`."""
    for (flops, operands, result), names in rows(table):
        _register(module, names, _per_output(int(flops), int(operands), result))


def _per_output(flops: int, operands: int, result: str) -> OpFormula:
    def formula(call: OpCall) -> Work | None:
        dtype = compute_dtype(call, operands)
        if not dtypes.is_complex(dtype):
            return elementwise(call, flops, operands, result=result)
        name = call.op.rpartition(":")[2].rstrip("_")
        real = {"complex64": "float32", "complex128": "float64"}.get(dtype, "float16")
        written = real if name in ("abs", "angle") else result.replace("float", "")
        known = _COMPLEX.get(name)
        return None if known is None else elementwise(call, known, operands, result=written)

    return formula


def per_input(module: str, table: str) -> None:
    """Register, for `module`, rows of `FLOPs per element | argument | traffic | names`.

    The FLOPs "5?2?3" are 5, and one more for each of the arguments 2 and 3 that is a tensor. They
    are spent on each element of `argument`. `traffic` lists the arguments read or written, one that
    is both twice.
    """
    for (flops, argument, traffic), names in rows(table):
        cost = [int(term) for term in flops.split("?")]
        _register(module, names, _per_input(cost, int(argument), *map(int, traffic.split())))


def _per_input(cost: list[int], argument: int, *traffic: int) -> OpFormula:
    def formula(call: OpCall) -> Work:
        flops = cost[0] + sum(call.has(index) for index in cost[1:])
        integer = dtypes.itemsize(call.dtype(argument)) and not dtypes.is_floating(
            call.dtype(argument)
        )
        return Work(
            vector_flops=0 if integer else flops * elements(call, argument),
            min_bytes=moved_bytes(call, *traffic),
        )

    return formula


def _register(module: str, names: str, formula: OpFormula) -> None:
    formula.__module__ = module  # the family that `kind_of` reports
    formula_for(names)(formula)
