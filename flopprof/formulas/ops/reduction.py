"""Formulas of reductions, cumulative ops, pooling, and of scatters that add."""

import re
from dataclasses import replace
from functools import partial
from math import gcd, prod

from flopprof.formulas import OpCall, Shape, Work
from flopprof.formulas.ops import _elements as el

op_formula = partial(el.formula_for, kind="reduction")


@op_formula("max min")
def maximum(call: OpCall) -> Work | None:
    """All of a tensor or one of its axes: n; of two tensors: one per output element."""
    if call.has(1):
        return el.elementwise(call, 1, 2)
    return el.reduced(call, 1 if el.counts(call) else 0, 1)


@op_formula("dist allclose pairwise_distance")
def dist(call: OpCall) -> Work | None:
    """Per broadcast element: subtract, norm: 3 (pairwise: and ε, 4); isclose's 6.

    On integers and complex numbers the ops that they are composed of count.
    """
    if not el.is_real(call, 2):
        return None
    flops = {"aten::dist": 3, "aten::allclose": 6}.get(call.op, 4)
    return el.vector_work(call, flops * el.size_of(call, 2), 0, 1)


@op_formula("equal")
def equal(call: OpCall) -> Work:
    """One comparison per element, two if complex."""
    return el.vector_work(call, el.additions(call, 2) * el.size_of(call, 2), 0, 1)


@op_formula("histc histogram bincount")
def histogram(call: OpCall) -> Work:
    """Each element's bin, `(x − min)·scale`: 2n; of integers, the adds of their weights."""
    flops = 2 if el.counts(call) else 0
    if call.op == "aten::bincount":
        flops = call.count(1)
    return el.vector_work(call, flops * el.elements(call, 0), 0, 1)


# Pooling: a window's size per output element (an average: its adds, and one division).


def _axes(call: OpCall, index: int) -> Shape | None:
    """Return argument `index`, one number for each axis that `avg_pool2d` names, or None."""
    sizes = call.integers(index)
    if not sizes:
        return None
    return sizes * _dimensions(call) if len(sizes) == 1 else sizes


def _dimensions(call: OpCall) -> int:
    return int(re.findall(r"(\d)d", call.op)[0])


def pooled(
    size: int, window: int, *, stride: int, padding: int, dilation: int, ceil_mode: bool
) -> int:
    """Return the outputs of a pooling window along one axis.

    `⌊(size + 2·padding − dilation·(window − 1) − 1)/stride⌋ + 1`; in ceil mode rounded up, unless
    the last window would begin beyond the input and its left padding.
    """
    room = size + 2 * padding - dilation * (window - 1) - 1
    if not ceil_mode:
        return room // stride + 1
    steps = -(-room // stride)
    return steps if steps * stride >= size + padding else steps + 1


def _pool_work(call: OpCall, flops: int, outputs: int) -> Work:
    outer = prod(call.shape(0)[: -_dimensions(call)])
    counted = outer * flops if el.counts(call) else 0
    return el.vector_work(call, counted, 0, written=outer * outputs)


@op_formula("max_pool{1,2,3}d{,_with_indices} mkldnn_max_pool{2,3}d quantized_max_pool{1,2,3}d")
@op_formula("quantized::max_pool{1,2}d avg_pool{1,2,3}d")
def pool(call: OpCall) -> Work | None:
    """Arguments: input, window, stride, padding, (of a maximum) dilation, ceil mode."""
    window = _axes(call, 1)
    axes = _dimensions(call)
    if window is None:
        return None
    dilated = "max" in call.op
    stride = _axes(call, 2) or window
    padding = _axes(call, 3) or (0,) * axes
    dilation = (_axes(call, 4) if dilated else None) or (1,) * axes
    ceil_mode = bool(call.flag(5 if dilated else 4))
    sizes = zip(call.shape(0)[-axes:], window, stride, padding, dilation, strict=True)
    outputs = prod(
        pooled(size, width, stride=step, padding=pad, dilation=gap, ceil_mode=ceil_mode)
        for size, width, step, pad, gap in sizes
    )
    return _pool_work(call, prod(window) * outputs, outputs)


def _adaptive_windows(inputs: Shape, outputs: Shape) -> int:
    """Return the windows' sizes, summed: along an axis window i is ⌊i·in/out⌋ … ⌈(i+1)·in/out⌉.

    They cover in elements, and two neighbours share one wherever i·in/out is no integer.
    """
    pairs = zip(inputs, outputs, strict=True)
    return prod(size + out - gcd(size, out) for size, out in pairs)


@op_formula("{,_}adaptive_avg_pool{2,3}d adaptive_avg_pool1d mkldnn_adaptive_avg_pool2d")
@op_formula("adaptive_max_pool{1,2,3}d fractional_max_pool{2,3}d")
def sized_pool(call: OpCall) -> Work | None:
    """As many outputs as asked for: the sum of the real window sizes, or of windows given."""
    fractional = "fractional" in call.op
    window = _axes(call, 1)
    outputs = _axes(call, 2 if fractional else 1)
    if window is None or outputs is None:
        return None
    adaptive = _adaptive_windows(call.shape(0)[-len(outputs) :], outputs)
    sizes = prod(window) * prod(outputs) if fractional else adaptive
    return _pool_work(call, sizes, prod(outputs))


@op_formula("_adaptive_avg_pool{2,3}d_backward adaptive_avg_pool3d_backward")
@op_formula("mkldnn_adaptive_avg_pool2d_backward avg_pool{2,3}d_backward")
def avg_pool_backward(call: OpCall) -> Work | None:
    """Each gradient is divided once, and added to each element of its window."""
    gradient = call.shape(0)
    axes = _dimensions(call)
    adaptive = "adaptive" in call.op
    window = _axes(call, 2)
    adds = prod(window or ()) * prod(gradient)
    if adaptive:
        adds = prod(gradient[:-axes]) * _adaptive_windows(call.shape(1)[-axes:], gradient[-axes:])
    elif window is None:
        return None
    return el.vector_work(call, prod(gradient) + adds, 0, 1)


def _adds(call: OpCall, incoming: int, flops: int) -> Work:
    """Return the work of `flops` for each element of argument `incoming`, added to argument 0."""
    size = el.elements(call, incoming)
    read = range(1, incoming + 1)
    return el.vector_work(call, flops * el.additions(call) * size, *read, written=2 * size)


@op_formula("scatter~ scatter_add~ scatter_reduce~")
def scatter(call: OpCall) -> Work:
    """One add per element of the index; plain `scatter` only where told to `reduce` (argument 4).

    That is text, which a trace leaves empty; a tensor there is the output.
    """
    plain = call.op in ("aten::scatter", "aten::scatter_")
    adds = not plain or (len(call.shapes) > 4 and not call.has(4))
    return _adds(call, 2, 1 if adds else 0)


@op_formula("index_add~ index_reduce~")
def index_add(call: OpCall) -> Work:
    """One operation per element of the source; two for `index_add` with alpha ≠ 1."""
    scaled = "add" in call.op and call.value(4) not in ("", "1", "1.")
    return _adds(call, 3, 2 if scaled else 1)


@op_formula("index_put~ _index_put_impl~ _unsafe_index_put put~")
def index_put(call: OpCall) -> Work | None:
    """Moves data; with `accumulate` one add per value. A trace does not tell the places.

    A lone value may go to any number of places: then the adds are not determined.
    """
    accumulate = call.flag(3)
    anywhere = call.op not in ("aten::put", "aten::put_")  # there as many places as values
    if accumulate and anywhere and el.elements(call, 2) <= 1:
        return None
    work = _adds(call, 2, 1 if accumulate else 0)
    if call.values:
        return work
    return replace(work, flops_at_most=el.additions(call) * el.elements(call, 2))


@op_formula("embedding_backward embedding_dense_backward")
def embedding_backward(call: OpCall) -> Work:
    """One add per gradient that comes in (into a sparse result none); all rows are written."""
    sparse = call.op == "aten::embedding_backward" and bool(call.flag(5))
    if sparse:
        return el.vector_work(call, 0, 0, 1)
    written = (call.integer(2) or 0) * call.shape(0)[-1]
    return el.vector_work(call, el.elements(call, 0), 0, 1, written=written)


@op_formula("embedding_bag _embedding_bag _embedding_bag_forward_only")
def embedding_bag(call: OpCall) -> Work:
    """Sum, mean or maximum of each bag: a row of D operations per index, D more with weights.

    Bytes: a row per index, and a row per bag.
    """
    width = call.shape(0)[-1]
    indices = el.elements(call, 1)
    rows = indices + el.elements(call, 2)
    flops = indices * width * (1 + call.count(6))
    return el.vector_work(call, flops, 1, 2, 6, written=rows * width)


@op_formula("_embedding_bag_{,dense_,per_sample_weights_}backward embedding_renorm_")
def embedding_bag_backward(call: OpCall) -> Work:
    """A row of D adds per index; for the weights' gradient a dot product, 2D.

    `embedding_renorm_` takes norm 2D and scale D once per distinct index: at most 3D of each.
    """
    weights = "per_sample" in call.op
    index = 2 if weights else 1
    size = el.elements(call, index) * call.shape(0)[-1]
    if call.op == "aten::embedding_renorm_":
        return el.vector_work(call, 0, 1, at_most=3 * size)
    return el.vector_work(call, (2 if weights else 1) * size, 0, index, written=size)
