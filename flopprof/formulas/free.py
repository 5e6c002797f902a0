"""Ops without arithmetic: views, queries, allocation, moves, random numbers, communication.

They count zero FLOPs; the bytes are what a move reads and writes, and zero for a view. Left out:
the random numbers' own arithmetic, and the additions of a collective reduction, which run on the
way. Where a trace does not tell how much moved (`index`: its indices are not recorded), the bytes
are those that it does tell.
"""

from functools import partial
from math import ceil, prod
from pathlib import Path

from flopprof import dtypes, formulas
from flopprof.formulas import OpCall, Work
from flopprof.formulas.ops._elements import (
    elements,
    moved_bytes,
    number,
    ops,
    read_table,
    scalar_type,
    size_of,
)

free_op = partial(formulas.free_op, source="formula")


def _listed(call: OpCall, *, row: dict[str, str]) -> Work:
    if row["created_dtype"]:
        return _created(call, row["created_dtype"])
    return Work(min_bytes=moved_bytes(call, *map(int, row["moves"].split())))


def _created(call: OpCall, default: str) -> Work:
    """A tensor made by a size is written; the last four arguments are type, layout, device, pin."""
    type_at = len(call.shapes) - 4
    if type_at < -3:  # the trace has no shapes
        return Work()
    sizes = next(filter(None, map(call.integers, range(max(type_at, 1)))), None)
    if sizes is None:
        places = _places_of_sizes(call.op, type_at)
        sizes = tuple(call.integer(index) or 0 for index in places)
    return Work(min_bytes=prod(sizes) * _itemsize(call, type_at, default))


def _places_of_sizes(op: str, type_at: int) -> tuple[int, ...]:
    """Return which arguments are sizes: linspace(start, end, steps), eye(n) or (n, m)."""
    if "space" in op:
        return (2,)
    if "eye" in op:
        return (0, min(1, type_at - 1))
    return (0,)


def _itemsize(call: OpCall, dtype_at: int, default: str) -> int:
    """Return the bytes of the type asked for, else of the first argument's, else the default's."""
    dtype = scalar_type(call.integer(dtype_at) if dtype_at > 0 else None)
    sizes = (dtypes.itemsize(one) for one in (dtype, call.dtype(0), default))
    return next(filter(None, sizes), call.itemsize)


# Its columns are explained in `flopprof.formulas`.
for _row in read_table(Path(__file__).with_name("free.csv")):
    free_op(*ops(_row["op"]))(partial(_listed, row=_row))


@free_op("aten::arange", "aten::range")
def arange(call: OpCall) -> Work:
    """`⌈(end − start)/step⌉` numbers of an (end), a (start, end) or a (start, end, step)."""
    if not call.shapes:
        return Work()
    type_at = len(call.shapes) - 4 or 3  # four arguments are start, end, step and the output
    limits = [number(call, index) or 0.0 for index in range(type_at)]
    if type_at <= 1:
        limits = [0.0, *limits, 1.0]
    elif type_at == 2:
        limits = [*limits, 1.0]
    start, end, step = limits[:3]
    default = "float32" if any("." in call.value(i) for i in range(type_at)) else "int64"
    count = max(ceil((end - start) / step), 0) if step else 0
    return Work(min_bytes=count * _itemsize(call, type_at, default))


@free_op(*ops("to _to_copy type_as _autocast_to_full_precision _autocast_to_reduced_precision"))
def to(call: OpCall) -> Work:
    """Read in one type, written in another; nothing where the type asked for is there already."""
    if call.op == "aten::type_as" or call.has(1):
        asked_type = call.dtype(1)
    else:
        numbered = next((call.integer(i) for i in (1, 2) if call.integer(i) is not None), None)
        asked_type = scalar_type(numbered)
    if asked_type == call.dtype(0) and call.op != "aten::_to_copy":
        return Work()
    written = dtypes.itemsize(asked_type) or call.itemsize_of(0)
    return Work(min_bytes=elements(call, 0) * (call.itemsize_of(0) + written))


@free_op(*ops("gather index_select take take_along_dim embedding index _unsafe_index"))
@free_op(*ops("repeat_interleave"))
def gather(call: OpCall) -> Work:
    """The index read; each element found read and written."""
    at = 2 if call.op in ops("gather index_select take_along_dim") else 1
    index = elements(call, at)
    shape = call.shape(0)
    axis = call.integer(1)
    row = 1
    if call.op == "aten::embedding":
        row = prod(shape[-1:])
    elif call.op == "aten::index_select" and axis is not None and shape:
        row = prod(shape) // max(shape[axis], 1)
    return Work(min_bytes=moved_bytes(call, at) + 2 * index * row * call.itemsize_of(0))


@free_op("aten::where")
def where(call: OpCall) -> Work:
    """The condition and both sides read, one of their broadcast shape written."""
    itemsize = max(call.itemsize_of(1) if call.has(1) else 1, call.itemsize_of(2))
    return Work(min_bytes=moved_bytes(call, 0, 1, 2) + size_of(call, 3) * itemsize)


@free_op(*ops("repeat tile one_hot"))
def repeat(call: OpCall) -> Work:
    """The input read, and written as often as asked."""
    times = call.integer(1) if call.op == "aten::one_hot" else prod(call.integers(1) or ())
    return Work(min_bytes=moved_bytes(call, 0) * (1 + max(times or 1, 1)))


@free_op(*ops("pad constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d"))
@free_op(*ops("replication_pad1d replication_pad2d replication_pad3d _pad_enum _pad_circular"))
def pad(call: OpCall) -> Work:
    """The input read, the larger output written; paddings come in pairs from the last axis."""
    sizes = list(call.shape(0))
    pads = call.integers(1) or ()
    for axis in range(len(pads) // 2):
        sizes[-1 - axis] += pads[2 * axis] + pads[2 * axis + 1]
    return Work(min_bytes=moved_bytes(call, 0) + prod(sizes) * call.itemsize_of(0))
