"""Formulas of the ops in per_element.csv: so many FLOPs for each element of something.

Its columns:
    op: Name; `relu~` is aten::relu and in-place aten::relu_.
    family: The file of formulas that it belongs to.
    per: What the elements are those of: a key of `_PER`, whose functions say more.
    flops: FLOPs per element; "5?2?3" is 5, and one more for each of arguments 2 and 3 given.
    arguments: The arguments meant.
    result: Element type of the result, where it is not that of the input.
    complex_flops: FLOPs per element of complex numbers, where known.
    definition: The operations that `flops` adds up, where they are more than one.
"""

from functools import partial
from pathlib import Path

from flopprof import dtypes
from flopprof.formulas import OpCall, Work
from flopprof.formulas.ops import _elements as el
from flopprof.formulas.ops import linalg, losses

Row = dict[str, str]


def _output(call: OpCall, row: Row) -> Work | None:
    """Per element of the result, its operands broadcast."""
    operands, flops = int(row["arguments"]), row["flops"]
    if dtypes.is_complex(el.compute_dtype(call, operands)):
        flops = row["complex_flops"]
    return el.elementwise(call, int(flops), operands, result=row["result"]) if flops else None


def _input(call: OpCall, row: Row) -> Work:
    """Per element of one argument, such as the gradient that comes in."""
    flops, *optional = map(int, row["flops"].split("?"))
    counted, *others = map(int, row["arguments"].split())
    dtype = call.dtype(counted)
    integer = dtypes.itemsize(dtype) and not dtypes.is_floating(dtype)
    flops = 0 if integer else flops + sum(map(call.has, optional))
    return el.vector_work(call, flops * el.elements(call, counted), counted, *others)


def _axes(call: OpCall, row: Row) -> Work:
    """Per element of the input, some axes of which go."""
    flops = int(row["flops"]) * el.counts(call)
    if dtypes.is_complex(el.compute_dtype(call)):
        flops = int(row["complex_flops"])
    return el.reduced(call, flops, int(row["arguments"]), row["result"])


def _loss(call: OpCall, row: Row) -> Work:
    """Per element that the operands broadcast to, and its reduction: how many, and where."""
    operands, reduction_at = map(int, row["arguments"].split())
    return losses.elementwise_loss(call, int(row["flops"]), operands, reduction_at)


def _matrix(call: OpCall, row: Row) -> Work:
    """For each matrix; four numbers are those with and those without vectors (argument 2)."""
    a, b, *without = map(int, row["flops"].split())
    if without and call.flag(2) is False:
        a, b = without
    return linalg.factorisation(call, a, b)


_PER = {"output": _output, "input": _input, "axes": _axes, "loss": _loss, "matrix": _matrix}

for _row in el.read_table(Path(__file__).with_name("per_element.csv")):
    el.formula_for(_row["op"], family=_row["family"])(partial(_PER[_row["per"]], row=_row))
