"""What contractions have in common: where arguments are, their work, masks of gradients."""

import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from flopprof.dtypes import is_complex, is_floating, itemsize
from flopprof.formulas import OpCall, Work
from flopprof.formulas.ops._elements import formula_for, moved_bytes, number, ops

_NO_ARGUMENT = 99  # no op has so many


class Places(dict[str, Any]):
    """Where an op has its arguments, and what else its row says; 99 for an argument it has not."""

    def __missing__(self, _name: str) -> int:
        return _NO_ARGUMENT


PLACES: dict[str, list[Places]] = json.loads(
    Path(__file__).with_name("places.json").read_text(), object_hook=Places
)
"""Families of ops: a row names `ops` alike, and under a role's name the place of that argument.

Of an op with overloads, those with more `arguments` come first.
"""


FormulaOfPlaces = Callable[[OpCall, Places], Work | None]


def formula_with_places(family: str, *, kind: str) -> Callable[[FormulaOfPlaces], FormulaOfPlaces]:
    """Register a formula for the ops of a family in `places.json`, told where the arguments are.

    Args:
        family: A key of `places.json`.
        kind: As for `op_formula`.
    """

    def add(formula: FormulaOfPlaces) -> FormulaOfPlaces:
        rows: dict[str, list[Places]] = {}
        for row in PLACES[family]:
            for name in ops(row["ops"]):
                rows.setdefault(name, []).append(row)

        @wraps(formula)
        def of_call(call: OpCall) -> Work | None:
            count = len(call.shapes)
            fitting = (row for row in rows[call.op] if count >= row.get("arguments", 0))
            return formula(call, next(fitting))

        for name, overloads in rows.items():
            looks_below = any("looks_below" in row for row in overloads)
            formula_for(name, kind=kind, looks_below=looks_below)(of_call)
        return formula

    return add


# Bytes of an element, by PyTorch's numbers for element types: int32, float16, float32, float64, …
_RESULT_BYTES = {3: 4, 5: 2, 6: 4, 7: 8, 15: 2}


def contraction(
    call: OpCall,
    multiply_adds: int,
    written: int,
    operands: tuple[int, ...],
    *,
    adds: int = 0,
    scalings: int = 0,
    result_type_at: int | None = None,
    quantised: bool = False,
) -> Work:
    """Return the work of a contraction: a multiply-add is two FLOPs, a complex one eight.

    Args:
        call: The call.
        multiply_adds: Multiply-adds of the contraction.
        written: Elements of the result.
        operands: The arguments read, those that are there; the first gives the type.
        adds: Additions to the result: one FLOP each, two if complex, none on integers.
        scalings: Multiplications of the result: one FLOP each, six if complex, none on integers.
        result_type_at: The argument that names the result's element type; else as the first.
        quantised: Integers stand for real numbers: additions and multiplications count.
    """
    dtype = call.dtype(operands[0])
    add, multiply, both = (2, 6, 8) if is_complex(dtype) else (1, 1, 2)
    integer = itemsize(dtype) is not None and not is_floating(dtype) and not quantised
    result_bytes = call.itemsize_of(operands[0])
    if result_type_at is not None:
        result_type = call.integer(result_type_at)
        result_bytes = _RESULT_BYTES.get(-1 if result_type is None else result_type, result_bytes)
    return Work(
        matmul_flops=both * multiply_adds,
        vector_flops=0 if integer else add * adds + multiply * scalings,
        min_bytes=moved_bytes(call, *operands) + written * result_bytes,
    )


def bounded(least: Work, most: Work) -> Work:
    """Return `least`, with the FLOPs of `most` as upper bound."""
    return Work(
        least.matmul_flops,
        least.vector_flops,
        least.min_bytes,
        flops_at_most=most.matmul_flops + most.vector_flops,
    )


def is_sparse(call: OpCall, *indices: int) -> bool:
    """Return whether one of the arguments has a shape but no strides, as sparse tensors have."""
    return any(i < len(call.strides) and call.shape(i) and not call.strides[i] for i in indices)


def flags(call: OpCall, index: int) -> tuple[bool, ...] | None:
    """Return argument `index`, "[True, False]", as booleans, or None if it is no such list."""
    text = call.value(index)
    if not text.startswith("["):
        return None
    return tuple(part.strip() in ("True", "1") for part in text.strip("[]").split(","))


def factor(call: OpCall, index: int) -> float:
    """Return argument `index` as a factor: 1 where it is not recorded, NaN if it is complex."""
    value = number(call, index) if call.value(index) else 1.0
    return float("nan") if value is None else value
