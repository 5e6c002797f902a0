"""Formulas of the ops in per_element.csv: so many FLOPs for each element of something.

Its columns are explained in `flopprof.formulas`.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

from flopprof import dtypes
from flopprof.formulas import OpCall, Work
from flopprof.formulas.ops import _elements as el
from flopprof.formulas.ops import linalg, losses

Row = dict[str, str]


def _asked_for(call: OpCall, row: Row) -> OpCall:
    """Return the call as if its input had the element type that it asks to compute in."""
    dtype = el.type_asked_for(call, row["dtype_at"])
    if not dtype:
        return call
    return replace(call, dtypes=(dtype, *call.dtypes[1:]))


def _may_be_asked_for(call: OpCall, row: Row) -> bool:
    """Return whether an unrecorded argument may ask an op on integers to compute in another type.

    Traces before Concrete Inputs have no values.
    """
    places = map(int, row["dtype_at"].split())
    return not call.values and any(place < len(call.shapes) for place in places)


def _output(call: OpCall, row: Row) -> Work | None:
    """Per element of the result, its operands broadcast."""
    operands = int(row["arguments"])
    asked = _asked_for(call, row)
    flops = row["flops"]
    if dtypes.is_complex(el.compute_dtype(asked, operands)):
        flops = row["complex_flops"]
    if not flops:
        return None
    work = el.elementwise(asked, int(flops), operands, result=row["result"])
    if asked is not call:  # read in its own type
        own = el.moved_bytes(call, 0) - el.moved_bytes(asked, 0)
        return replace(work, min_bytes=work.min_bytes + own)
    if not el.counts(call, operands) and not work.vector_flops and _may_be_asked_for(call, row):
        return replace(work, flops_at_most=int(flops) * el.size_of(call, operands))
    return work


def _input(call: OpCall, row: Row) -> Work | None:
    """Per element of one argument, such as the gradient that comes in."""
    flops, *optional = map(int, row["flops"].split("?"))
    counted, *others = map(int, row["arguments"].split())
    dtype = call.dtype(counted)
    if dtypes.is_complex(dtype) and flops:
        if not row["complex_flops"]:
            return None
        flops = int(row["complex_flops"])
    integer = dtypes.itemsize(dtype) and not dtypes.is_floating(dtype)
    flops = 0 if integer else flops + call.count(*optional)
    return el.vector_work(call, flops * el.elements(call, counted), counted, *others)


def _list(call: OpCall, row: Row) -> Work:
    """Per element of a list of tensors, whose type no trace tells: integers, real or complex.

    So it is bounded: "float" computes in floating point even on integers.
    """
    least = int(row["flops"]) if row["result"] == "float" else 0
    most = int(row["complex_flops"] or row["flops"])
    counted, *others = map(int, row["arguments"].split())
    return el.listed(call, least, int(row["flops"]), most, counted, *others)


def _axes(call: OpCall, row: Row) -> Work:
    """Per element of the input, some axes of which go."""
    asked = _asked_for(call, row)
    dtype = el.compute_dtype(asked)
    real = int(row["flops"])
    if dtypes.is_complex(dtype):
        flops = int(row["complex_flops"])
    else:
        flops = real if el.counts(asked) else 0
    bounded = not flops and _may_be_asked_for(call, row)
    work = el.reduced(
        asked, flops, int(row["arguments"]), row["result"], at_most=real if bounded else None
    )
    own = el.moved_bytes(call, 0) - el.moved_bytes(asked, 0)  # it is read in its own type
    return replace(work, min_bytes=work.min_bytes + own)


def _loss(call: OpCall, row: Row) -> Work | None:
    """Per element that the operands broadcast to, and its reduction: how many, and where.

    On integers and complex numbers it is composed of other ops, each counted by its own type.
    """
    operands, reduction_at = map(int, row["arguments"].split())
    if not el.is_real(call, operands):
        return None
    return losses.elementwise_loss(call, int(row["flops"]), operands, reduction_at)


def _matrix(call: OpCall, row: Row) -> Work:
    """For each matrix; four numbers are those with and those without vectors (argument 2)."""
    a, b, *without = map(int, row["flops"].split())
    if without and call.flag(2) is False:
        a, b = without
    return linalg.factorisation(call, a, b)


_PER = {
    "output": _output,
    "input": _input,
    "list": _list,
    "axes": _axes,
    "loss": _loss,
    "matrix": _matrix,
}

_COMPOSED = ("_safe_softmax",)
"""Ops that call others, and so are known by them where a nested tensor hides their sizes."""

for _row in el.read_table(Path(__file__).with_name("per_element.csv")):
    _looks_below = _row["per"] == "list" or _row["op"] in _COMPOSED
    _register = el.formula_for(_row["op"], kind=_row["kind"], looks_below=_looks_below)
    _register(partial(_PER[_row["per"]], row=_row))
