"""Kernels that TorchInductor generated: the ops that their names list, once per element."""

import re
from functools import cache
from math import prod

from flopprof.dtypes import is_floating, itemsize
from flopprof.formulas import FREE_OPS, OP_FORMULAS, OpCall, Work, kind_of

GENERATED = re.compile(r"triton_(?:poi|red|per)_fused_(.+)_\d+$")
"""Pointwise and reduction kernels; a `tem` is a whole product, whose sizes no argument tells."""
_PRODUCTS = ("matmul", "convolution", "attention", "recurrent")
_MOST_OPERANDS = 4  # what formulas of fused ops read: lerp, addcmul and where have three


def generated(call: OpCall) -> Work | None:
    """Each op that the name lists, once per element of the iteration space; tensors moved once.

    The space is the last arguments, numbers, behind symbols for sizes. An op that occurs twice
    stands in the name once, and what works on reduced axes only is taken for the whole: a figure
    near the truth, and no bound. Products in the name ran before or after.
    """
    fused = _fused_ops(call)
    sizes = _sizes(call)
    if not fused or not sizes:
        return None
    tensors = [index for index, dtype in enumerate(call.dtypes) if itemsize(dtype)]
    largest = max((prod(call.shape(index)) for index in tensors), default=0)
    while len(sizes) > 1 and prod(sizes) > largest:
        del sizes[0]
    dtype = next((dtype for dtype in call.dtypes if is_floating(dtype)), "int64")
    flops = 0
    for op in fused:
        if kind_of(op) in (*_PRODUCTS, "free"):
            continue
        of_op = OpCall(
            op,
            shapes=(tuple(sizes),) * _MOST_OPERANDS,
            dtypes=(dtype,) * _MOST_OPERANDS,
            values=("",) * _MOST_OPERANDS,
        )
        try:
            work = OP_FORMULAS.require(op)(of_op)
        except (IndexError, ValueError, TypeError, KeyError, ZeroDivisionError):
            work = None  # it takes other arguments than its operands
        flops += work.vector_flops if work else prod(sizes)
    moved = 0
    for index in tensors:
        moved += _elements_moved(call, index, fused, prod(sizes)) * call.itemsize_of(index)
    return Work(0, flops, moved)


def _fused_ops(call: OpCall) -> tuple[str, ...]:
    """Return the ops in a generated kernel's name; none of another's."""
    match = GENERATED.match(call.op)
    return ops_in_name(match[1]) if match else ()


def _sizes(call: OpCall) -> list[int]:
    """Return the arguments that are integers."""
    integers = map(call.integer, range(len(call.shapes)))
    return [integer for integer in integers if integer is not None]


_GATHERS = re.compile(r"aten::(index|gather|take|embedding|nll_loss|scatter|put|select_scatter)")
_PARTS = frozenset(
    f"aten::{name}"
    for name in ("select", "slice", "narrow", "split", "split_with_sizes", "unbind", "chunk")
)


def _elements_moved(call: OpCall, index: int, fused: tuple[str, ...], space: int) -> int:
    """Return the elements of an operand that are moved; a gather takes one for each it makes."""
    whole = prod(call.shape(index))
    return min(whole, space) if any(map(_GATHERS.match, fused)) else whole


def knows_bytes(call: OpCall) -> bool:
    """Return whether it is known how much of its operands a generated kernel moves.

    Not where a view of a part is among its ops and an operand is larger than what it runs over: it
    may read that part, or several.
    """
    sizes = _sizes(call)
    if not sizes or not _PARTS & set(_fused_ops(call)):
        return True
    tensors = [index for index, dtype in enumerate(call.dtypes) if itemsize(dtype)]
    return all(prod(call.shape(index)) <= prod(sizes) for index in tensors)


@cache
def ops_in_name(text: str) -> tuple[str, ...]:
    """Return the ops in a kernel's name, longest first: `_to_copy_add` is _to_copy and add."""
    ops = []
    parts = text.split("_")
    start = 0
    while start < len(parts):
        for end in range(len(parts), start, -1):
            op = "aten::" + "_".join(parts[start:end])
            if op in OP_FORMULAS or op in FREE_OPS:
                ops.append(op)
                start = end - 1
                break
        start += 1
    return tuple(ops)
