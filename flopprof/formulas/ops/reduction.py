"""Formulas of reductions, cumulative ops, pooling, and of scatters that add."""

import re
from math import prod

from flopprof import dtypes
from flopprof.formulas import OpCall, OpFormula, Shape, Work
from flopprof.formulas.ops._elements import (
    broadcast,
    compute_dtype,
    counts,
    elements,
    elementwise,
    formula_for,
    moved_bytes,
    per_input,
    per_output,
    rows,
)

# FLOPs per input element (a complex one counts as two) | argument with the dims | bytes of a
# result, 0 where it is like the input | names. var: mean, subtract, square, sum; logsumexp: max,
# subtract, exp, sum; norm: power, sum.
_REDUCTIONS = """
    1 | 1 | 0 | sum nansum prod amax amin mean nanmean linalg__powsum trace
    1 | 1 | 8 | argmax argmin count_nonzero
    1 | 1 | 1 | all any _is_all_true _is_any_true
    2 | 1 | 0 | aminmax _aminmax frobenius_norm
    4 | 1 | 0 | var std var_mean std_mean logsumexp special_logsumexp
    2 | 2 | 0 | norm linalg_vector_norm
"""
per_output(
    __name__,
    """
    1 | 1 | | cumsum~ cumprod~ cummax cummin _cummax_helper _cummin_helper segment_reduce
    4 | 1 | | logcumsumexp _logcumsumexp
    """,
)
# Scatters that add: one add per element that comes in. Quantisation's range: minimum and maximum.
# How often sorting and searching compare, the values decide: none are counted.
per_input(
    __name__,
    """
    1 | 0 | 0 1 | max_pool2d_with_indices_backward max_pool3d_with_indices_backward
        max_pool2d_backward mkldnn_max_pool2d_backward mkldnn_max_pool3d_backward
        adaptive_max_pool2d_backward adaptive_max_pool3d_backward fractional_max_pool2d_backward
        fractional_max_pool3d_backward reflection_pad1d_backward reflection_pad2d_backward
        reflection_pad3d_backward replication_pad1d_backward replication_pad2d_backward
        replication_pad3d_backward cummaxmin_backward
    1 | 0 | 0 0 | unfold_backward col2im
    2 | 0 | 0 | _choose_qparams_per_tensor
    0 | 0 | 0 0 | sort argsort msort topk median nanmedian mode kthvalue unique_dim _unique _unique2
        unique_consecutive unique_dim_consecutive nonzero nonzero_numpy nonzero_static argwhere
    0 | 0 | 0 1 0 | isin searchsorted bucketize
    """,
)


def _kept(call: OpCall, dims_at: int) -> int:
    """Return the elements of a reduction's result: those of the axes that stay."""
    shape, dims = call.shape(0), call.integers(dims_at)
    single = call.integer(dims_at)  # of two arguments only, it is no axis but a type
    if dims is None and single is not None and len(call.shapes) > 2:
        dims = (single,)
    gone = {dim % len(shape) for dim in dims or range(len(shape)) if shape}
    return prod(size for axis, size in enumerate(shape) if axis not in gone)


def _reduction(flops: int, dims_at: int, result_bytes: int) -> OpFormula:
    def formula(call: OpCall) -> Work:
        scale = 2 if dtypes.is_complex(compute_dtype(call)) else counts(call)
        written = _kept(call, dims_at) * (result_bytes or call.itemsize_of(0))
        return Work(
            vector_flops=flops * scale * elements(call, 0),
            min_bytes=moved_bytes(call, 0) + written,
        )

    return formula


for _columns, _names in rows(_REDUCTIONS):
    formula_for(_names)(_reduction(*map(int, _columns)))


@formula_for("max min")
def maximum(call: OpCall) -> Work | None:
    """All of a tensor or one of its axes: n; of two tensors: one per output element."""
    return elementwise(call, 1, 2) if call.has(1) else _reduction(1, 1, 0)(call)


@formula_for("dist equal allclose pairwise_distance")
def dist(call: OpCall) -> Work:
    """Per broadcast element: subtract, norm: 3 (pairwise: and ε, 4); compare 1; isclose's 6."""
    flops = {"aten::dist": 3, "aten::equal": 1, "aten::allclose": 6}.get(call.op, 4)
    size = prod(broadcast(call.shape(0), call.shape(1)))
    return Work(vector_flops=flops * size * counts(call, 2), min_bytes=moved_bytes(call, 0, 1))


@formula_for("histc histogram bincount")
def histogram(call: OpCall) -> Work:
    """Each element's bin, `(x − min)·scale`: 2n; of integers, the adds of their weights."""
    flops = call.has(1) if call.op == "aten::bincount" else 2 * counts(call)
    return Work(vector_flops=flops * elements(call, 0), min_bytes=moved_bytes(call, 0, 1))


# Pooling: a window's size per output element (an average: its adds, and one division).


def _axes(call: OpCall, index: int) -> Shape | None:
    """Return argument `index`, one number for each axis that `avg_pool2d` names, or None."""
    given = call.integers(index)
    return (given * _dimensions(call) if len(given) == 1 else given) if given else None


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
    outputs = -(-room // stride) + 1 if ceil_mode else room // stride + 1
    return outputs - (ceil_mode and (outputs - 1) * stride >= size + padding)


def _pool_work(call: OpCall, flops: int, outputs: int) -> Work:
    outer = prod(call.shape(0)[: -_dimensions(call)])
    written = outer * outputs * call.itemsize_of(0)
    return Work(vector_flops=outer * flops * counts(call), min_bytes=moved_bytes(call, 0) + written)


@formula_for(
    """
    max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices
    max_pool3d_with_indices mkldnn_max_pool2d mkldnn_max_pool3d quantized_max_pool1d
    quantized_max_pool2d quantized_max_pool3d quantized::max_pool1d quantized::max_pool2d
    avg_pool1d avg_pool2d avg_pool3d
    """
)
def pool(call: OpCall) -> Work | None:
    """Arguments: input, window, stride, padding, (of a maximum) dilation, ceil mode."""
    window, axes = _axes(call, 1), _dimensions(call)
    if window is None:
        return None
    dilated = "max" in call.op
    stride, padding = _axes(call, 2) or window, _axes(call, 3) or (0,) * axes
    dilation = (_axes(call, 4) if dilated else None) or (1,) * axes
    ceil_mode = bool(call.flag(5 if dilated else 4))
    sizes = zip(call.shape(0)[-axes:], window, stride, padding, dilation, strict=True)
    outputs = prod(
        pooled(size, width, stride=step, padding=pad, dilation=gap, ceil_mode=ceil_mode)
        for size, width, step, pad, gap in sizes
    )
    return _pool_work(call, prod(window) * outputs, outputs)


@formula_for("fractional_max_pool2d fractional_max_pool3d")
def fractional_max_pool(call: OpCall) -> Work | None:
    """The window's size per output element; how many there are is given."""
    window, outputs = _axes(call, 1), _axes(call, 2)
    if window is None or outputs is None:
        return None
    return _pool_work(call, prod(window) * prod(outputs), prod(outputs))


def _adaptive_windows(inputs: Shape, outputs: Shape) -> int:
    """Return the windows' sizes, summed: along an axis window i is ⌊i·in/out⌋ … ⌈(i+1)·in/out⌉."""
    return prod(
        sum(-(-(i + 1) * size // out) - i * size // out for i in range(out))
        for size, out in zip(inputs, outputs, strict=True)
    )


@formula_for(
    """
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d
    _adaptive_avg_pool3d mkldnn_adaptive_avg_pool2d adaptive_max_pool1d adaptive_max_pool2d
    adaptive_max_pool3d
    """
)
def adaptive_pool(call: OpCall) -> Work | None:
    """The sum of the real window sizes."""
    outputs = _axes(call, 1)
    if outputs is None:
        return None
    windows = _adaptive_windows(call.shape(0)[-len(outputs) :], outputs)
    return _pool_work(call, windows, prod(outputs))


@formula_for(
    """
    _adaptive_avg_pool2d_backward _adaptive_avg_pool3d_backward avg_pool2d_backward
    adaptive_avg_pool3d_backward mkldnn_adaptive_avg_pool2d_backward avg_pool3d_backward
    """
)
def avg_pool_backward(call: OpCall) -> Work | None:
    """Each gradient is divided once, and added to each element of its window."""
    gradient, axes = call.shape(0), _dimensions(call)
    if "adaptive" in call.op:
        adds = prod(gradient[:-axes]) * _adaptive_windows(call.shape(1)[-axes:], gradient[-axes:])
    else:
        window = _axes(call, 2)
        if window is None:
            return None
        adds = prod(window) * prod(gradient)
    return Work(vector_flops=prod(gradient) + adds, min_bytes=moved_bytes(call, 0, 1))


def _adds(call: OpCall, incoming: int, flops: int) -> Work:
    """Return the work of `flops` for each element of argument `incoming`, added to argument 0."""
    size = elements(call, incoming)
    return Work(
        vector_flops=flops * counts(call) * size,
        min_bytes=moved_bytes(call, *range(1, incoming + 1)) + 2 * size * call.itemsize_of(0),
    )


@formula_for("scatter~ scatter_add~ scatter_reduce~")
def scatter(call: OpCall) -> Work:
    """One add per element of the index; plain `scatter` only where told to `reduce` (argument 4).

    That is text, which a trace leaves empty; a tensor there is the output.
    """
    plain = call.op in ("aten::scatter", "aten::scatter_")
    return _adds(call, 2, int(not plain or (len(call.shapes) > 4 and not call.has(4))))


@formula_for("index_add~ index_reduce~")
def index_add(call: OpCall) -> Work:
    """One operation per element of the source; two for `index_add` with alpha ≠ 1."""
    scaled = "add" in call.op and call.value(4) not in ("", "1", "1.")
    return _adds(call, 3, 1 + scaled)


@formula_for("index_put~ _index_put_impl~ _unsafe_index_put put~")
def index_put(call: OpCall) -> Work | None:
    """Moves data; with `accumulate` one add per value. A trace does not tell the places.

    A lone value may go to any number of places: then the adds are not determined.
    """
    accumulate = call.flag(3)
    if accumulate and elements(call, 2) <= 1:
        return None
    work = _adds(call, 2, int(bool(accumulate)))
    if accumulate is None and not call.values:
        return Work(min_bytes=work.min_bytes, flops_at_most=elements(call, 2))
    return work


@formula_for("embedding_backward embedding_dense_backward")
def embedding_backward(call: OpCall) -> Work:
    """One add per gradient that comes in (into a sparse result none); all rows are written."""
    sparse = call.op == "aten::embedding_backward" and bool(call.flag(5))
    written = 0 if sparse else (call.integer(2) or 0) * call.shape(0)[-1] * call.itemsize_of(0)
    return Work(
        vector_flops=0 if sparse else elements(call, 0),
        min_bytes=moved_bytes(call, 0, 1) + written,
    )


@formula_for("embedding_bag _embedding_bag _embedding_bag_forward_only")
def embedding_bag(call: OpCall) -> Work:
    """Sum, mean or maximum of each bag: a row of D operations per index, D more with weights.

    Bytes: a row per index, and a row per bag.
    """
    width, indices = call.shape(0)[-1], elements(call, 1)
    moved = (indices + elements(call, 2)) * width * call.itemsize_of(0)
    return Work(
        vector_flops=indices * width * (1 + call.has(6)),
        min_bytes=moved + moved_bytes(call, 1, 2, 6),
    )


@formula_for(
    """
    _embedding_bag_backward _embedding_bag_dense_backward embedding_renorm_
    _embedding_bag_per_sample_weights_backward
    """
)
def embedding_bag_backward(call: OpCall) -> Work:
    """A row of D adds per index; for the weights' gradient a dot product, 2D.

    `embedding_renorm_` takes norm 2D and scale D once per distinct index: at most 3D of each.
    """
    weights = "per_sample" in call.op
    indices = elements(call, 2 if weights else 1)
    size = indices * call.shape(0)[-1]
    moved = moved_bytes(call, 0, 2 if weights else 1)
    if call.op == "aten::embedding_renorm_":
        return Work(min_bytes=moved_bytes(call, 1), flops_at_most=3 * size)
    return Work(vector_flops=(1 + weights) * size, min_bytes=moved + size * call.itemsize_of(0))
