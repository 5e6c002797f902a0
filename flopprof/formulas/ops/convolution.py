"""Formulas of convolutions, forward and backward, under every name a backend gives them.

An output element sums in_channels ÷ groups × filter taps multiply-adds, also over padding; a
transposed convolution sends each input element into out_channels ÷ groups × filter taps. A bias is
one add per output element.
"""

from functools import partial
from math import prod

from flopprof.formulas import OpCall, Shape, Work
from flopprof.formulas.ops._elements import elements, formula_for
from flopprof.formulas.ops._shapes import (
    Places,
    bounded,
    contraction,
    factor,
    flags,
    formula_with_places,
)

op_formula = partial(formula_for, kind="convolution")


def _per_axis(call: OpCall, at: Places, name: str, dims: int) -> Shape | None:
    """Return a per-axis argument, one number standing for all; None where it is not recorded."""
    if name in at:
        sizes = call.integers(at[name])
    else:
        sizes = (1,) if name in ("stride", "dilation") else (0,)
    if sizes is None or len(sizes) not in (1, dims):
        return None
    return sizes * dims if len(sizes) == 1 else sizes


def _is_transposed(call: OpCall, at: Places) -> bool | None:
    """Return whether the convolution is a transposed one, or None where it is not recorded."""
    where = at.get("transposed")
    return call.flag(where) if isinstance(where, int) else where == "always"


@formula_with_places("convolution", kind="convolution")
def convolution(call: OpCall, at: Places) -> Work | None:
    """2·outputs·(in_channels ÷ groups)·taps, outputs = batch·out_channels·sizes; bias 1 per output.

    Transposed, each input meets out_channels ÷ groups × taps. None if stride, padding or dilation
    is not recorded (a padding in words never is).

    A fused relu is one FLOP per output element, and so is the adding of another operand, with a
    factor one more. Left out are activations by name, which is not recorded, and a quantised
    convolution's scaling to and from integers.
    """
    x = call.shape(at["input"])
    taps = call.shape(at["filter"])
    if "result_type" in at and len(taps) == 4 and len(x) == 3:
        taps = (
            *taps[:2],
            taps[3],
        )  # quantised, along one axis: packed as if along two, the first 1
    dims = len(taps) - 2
    stride = _per_axis(call, at, "stride", dims)
    padding = _per_axis(call, at, "padding", dims)
    dilation = _per_axis(call, at, "dilation", dims)
    extra = _per_axis(call, at, "output_padding", dims)
    groups = call.integer(at["groups"]) if "groups" in at else 1
    transposed = _is_transposed(call, at)
    if stride is None or padding is None or dilation is None or extra is None or dims < 1:
        return None
    if groups is None or transposed is None:
        return None
    reach = [d * (k - 1) for d, k in zip(dilation, taps[2:], strict=True)]
    sizes = list(zip(x[-dims:], stride, padding, reach, extra, strict=True))
    batch = x[0] if len(x) == dims + 2 else 1
    if transposed:
        out = [(i - 1) * s - 2 * p + r + e + 1 for i, s, p, r, e in sizes]
        # [in, out ÷ groups, …], but oneDNN's reordered filters are [out, in ÷ groups, …].
        per_group = taps[1] if taps[0] == x[-dims - 1] else taps[0] // groups
        channels = per_group * groups
        multiply_adds = prod(x) * per_group * prod(taps[2:])
    else:
        out = [(i + 2 * p - r - 1) // s + 1 for i, s, p, r, _ in sizes]
        channels = taps[0]
        multiply_adds = batch * channels * prod(out) * prod(taps[1:])
    written = batch * channels * prod(out)
    adds = call.count(at["bias"]) + at.get("fused", 0)
    if factor(call, at["factor"]) != 1:
        adds += 1
    return contraction(
        call,
        multiply_adds,
        written,
        (at["input"], at["filter"], at["bias"], at["other"]),
        adds=adds * written,
        result_type_at=at["result_type"],
        quantised="result_type" in at,
    )


@op_formula("conv_tbc")
def conv_tbc(call: OpCall) -> Work | None:
    """[time, batch, in] with filter [taps, in, out]: one axis of stride 1, padded on both ends."""
    (time, batch, _), (taps, channels, width) = call.shapes[:2]
    padding = call.integer(3)
    if padding is None:
        return None
    written = (time + 2 * padding - taps + 1) * batch * width
    return contraction(call, written * taps * channels, written, (0, 1, 2), adds=written)


@formula_with_places("convolution_backward", kind="convolution")
def convolution_backward(call: OpCall, at: Places) -> Work:
    """The forward's 2·outputs·(in ÷ groups)·taps for each gradient wanted, of input and filter.

    The bias's is one add per output element. Where the mask is not recorded, at least one product
    is done, at most both and the bias; nor may it be known which way the filter went.
    """
    grad = elements(call, at["grad"])
    x = elements(call, at["input"])
    taps = call.shape(2)
    transposed = _is_transposed(call, at)

    def work(outputs: int, of_input: bool, of_filter: bool, of_bias: bool = False) -> Work:
        read = [at["grad"]]
        written = 0
        products = 0
        if of_filter:
            read.append(at["input"])
            written += prod(taps)
            products += 1
        if of_input:
            read.append(2)
            written += x
            products += 1
        if of_bias:
            written += call.shape(at["grad"])[1 - len(taps)]  # the channels
        multiply_adds = products * outputs * prod(taps[1:])
        adds = grad if of_bias else 0
        return contraction(call, multiply_adds, written, tuple(read), adds=adds)

    if transposed is None:
        fewest = min(grad, x)
        most = max(grad, x)
    else:
        fewest = x if transposed else grad
        most = fewest
    mask = flags(call, at["mask"])
    if mask is None:
        return bounded(work(fewest, False, True), work(most, True, True, True))
    return work(most, *mask) if fewest == most else bounded(work(fewest, *mask), work(most, *mask))


@formula_with_places("undetermined_convolution", kind="convolution")
def undetermined(_call: OpCall, _at: Places) -> None:
    """Not determined by the call.

    The names of old, before PyTorch 1.11, come without values; see the ops below. Of a quantised
    filter, packed with its strides, a trace shows nothing.
    """


@op_formula("cudnn_convolution_backward_input mkldnn_convolution_backward_input")
@op_formula("miopen_convolution_backward_input miopen_depthwise_convolution_backward_input")
def backward_input(call: OpCall) -> Work:
    """The forward's 2·outputs·(in ÷ groups)·taps: (input size, grad_output, filter, …)."""
    written = call.integers(0)  # not recorded: left out of the bytes
    multiply_adds = elements(call, 1) * prod(call.shape(2)[1:])
    return contraction(call, multiply_adds, prod(written) if written else 0, (1, 2))


def output_shape(call: OpCall) -> Shape | None:
    """Return the shape of what `aten::convolution` returns; None where it is not determined."""
    x = call.shape(0)
    taps = call.shape(1)
    dims = len(taps) - 2
    if dims < 1 or len(x) != len(taps) or call.flag(6) is not False:
        return None
    stride, padding, dilation = (_for_each_axis(call.integers(i), dims) for i in (3, 4, 5))
    if not len(stride) == len(padding) == len(dilation) == dims:
        return None
    sizes = zip(x[2:], taps[2:], stride, padding, dilation, strict=True)
    spatial = ((i + 2 * p - d * (k - 1) - 1) // s + 1 for i, k, s, p, d in sizes)
    return (x[0], taps[0], *spatial)


def _for_each_axis(sizes: Shape | None, dims: int) -> Shape:
    """Return an argument's numbers, a single one for every axis; `()` where it is not recorded."""
    if sizes is None:
        return ()
    return sizes * dims if len(sizes) == 1 else sizes


def of_output(call: OpCall, output: Shape) -> Work:
    """(input, filter, bias, …), whose output's shape is known from elsewhere."""
    written = prod(output)
    adds = written * call.count(2)
    return contraction(call, written * prod(call.shape(1)[1:]), written, (0, 1, 2), adds=adds)


def of_filter_gradient(call: OpCall, taps: Shape) -> Work:
    """(filter size, grad_output, input, …), the filter's shape known from elsewhere."""
    return contraction(call, elements(call, 1) * prod(taps[1:]), prod(taps), (1, 2))
