"""Formulas of convolutions, forward and backward, under every name a backend gives them.

An output element sums in_channels ÷ groups × filter taps multiply-adds, also over padding; a
transposed convolution sends each input element into out_channels ÷ groups × filter taps. A bias is
one add per output element.
"""

from math import prod

from flopprof.formulas import OpCall, OpFormula, Shape, Work
from flopprof.formulas.ops._elements import elements, formula_for, rows
from flopprof.formulas.ops._shapes import bounded, contraction, factor, flags

# Where an op has its arguments: input | filter | bias | stride | padding | dilation | transposed |
# output padding | groups; "-" for none, "T" for one that is always transposed.
_FORWARD = """
0 | 1 | 2 | 3 | 4 | 5 | - | - | 6 | conv1d conv2d conv3d _convolution_mode
    cudnn_convolution_relu miopen_convolution_relu
0 | 1 | 2 | 3 | 4 | 7 | T | 5 | 6 | conv_transpose1d conv_transpose2d conv_transpose3d
0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8 | convolution _convolution convolution_overrideable
0 | 1 | 2 | 4 | 3 | 5 | - | - | 6 | mkldnn_convolution miopen_convolution _mps_convolution
    miopen_depthwise_convolution
0 | 1 | 2 | 5 | 3 | 6 | T | 4 | 7 | miopen_convolution_transpose
    mkldnn::_convolution_transpose_pointwise
0 | 1 | - | 3 | 2 | 4 | - | - | 5 | cudnn_convolution
0 | 1 | - | 4 | 2 | 5 | T | 3 | 6 | cudnn_convolution_transpose _mps_convolution_transpose
0 | 1 | 4 | 5 | 6 | 7 | - | - | 8 | cudnn_convolution_add_relu miopen_convolution_add_relu
0 | 1 | 3 | 4 | 5 | - | - | - | - | thnn_conv2d _slow_conv2d_forward slow_conv3d
    slow_conv3d_forward
0 | 1 | 3 | 4 | 5 | 6 | - | - | - | slow_conv_dilated2d slow_conv_dilated3d _conv_depthwise2d
    conv_depthwise3d
0 | 1 | 3 | 4 | 5 | 7 | T | 6 | - | slow_conv_transpose2d slow_conv_transpose3d
0 | 1 | 2 | 4 | 3 | - | - | - | - | _nnpack_spatial_convolution
"""
_NONE, _ALWAYS = -1, -2
_POINTWISE = (0, 1, 2, 4, 3, 5, _NONE, _NONE, 6)
_POINTWISE_BINARY = (0, 2, 3, 5, 4, 6, _NONE, _NONE, 7)
_QUANTISED = (0, 3, 6, 7, 8, 9, _NONE, _NONE, 10)
_QUANTISED_BINARY = (0, 3, 7, 8, 9, 10, _NONE, _NONE, 11)


def _places(columns: list[str]) -> tuple[int, ...]:
    return tuple({"-": _NONE, "T": _ALWAYS}.get(text) or int(text) for text in columns)


def _per_axis(call: OpCall, at: int, dims: int, default: int) -> Shape | None:
    """Return a per-axis argument, one number standing for all; None where it is not recorded."""
    if at == _NONE:
        return (default,) * dims
    found = call.integers(at)
    if found is None or len(found) not in (1, dims):
        return None
    return found * dims if len(found) == 1 else found


def _is_transposed(call: OpCall, at: int) -> bool | None:
    """Return whether the convolution is a transposed one, or None where it is not recorded."""
    return at == _ALWAYS if at < 0 else call.flag(at)


def _convolve(
    call: OpCall, places: tuple[int, ...], *, fused: int = 0, also_read: int = _NONE
) -> Work | None:
    """Return the work, `fused` FLOPs per output element more; None where a value is missing."""
    input_at, filter_at, bias_at, *per_axis, transposed_at, extra_at, groups_at = places
    x, taps = call.shape(input_at), call.shape(filter_at)
    dims = len(taps) - 2
    stride, padding, dilation, extra = (
        _per_axis(call, at, dims, default)
        for at, default in zip((*per_axis, extra_at), (1, 0, 1, 0), strict=True)
    )
    groups = 1 if groups_at == _NONE else call.integer(groups_at)
    transposed = _is_transposed(call, transposed_at)
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
        channels, multiply_adds = per_group * groups, prod(x) * per_group * prod(taps[2:])
    else:
        out, channels = [(i + 2 * p - r - 1) // s + 1 for i, s, p, r, _ in sizes], taps[0]
        multiply_adds = batch * channels * prod(out) * prod(taps[1:])
    written = batch * channels * prod(out)
    read = tuple(at for at in (bias_at, also_read) if at != _NONE and call.has(at))
    quantised = call.op.startswith("onednn::")
    return contraction(
        call,
        multiply_adds,
        written,
        (input_at, filter_at, *read),
        adds=((bias_at in read) + fused) * written,
        result_type_at=places[-1] + 3 if quantised else None,
        quantised=quantised,
    )


def _forward(places: tuple[int, ...]) -> OpFormula:
    def formula(call: OpCall) -> Work | None:
        """Count from shapes, stride, padding and dilation; None if one is not recorded.

        A fused `add_relu` adds α·z and is an activation, `relu` an activation.
        """
        if call.op.endswith("_add_relu"):
            return _convolve(call, places, fused=2 + (factor(call, 3) != 1), also_read=2)
        return _convolve(call, places, fused=int(call.op.endswith("_relu")))

    return formula


for _columns, _names in rows(_FORWARD):
    formula_for(_names)(_forward(_places(_columns)))


@formula_for("mkldnn::_convolution_pointwise mkldnn::_convolution_pointwise_")
def pointwise_convolution(call: OpCall) -> Work | None:
    """(x, filter, …), or with a second operand (x, other, filter, …) and one FLOP per output.

    In place it is (other, x, filter, …). A fused activation is left out: its name is not recorded.
    """
    if len(call.shapes) < 13:
        return _convolve(call, _POINTWISE)
    x, other = (1, 0) if call.op.endswith("_") else (0, 1)
    return _convolve(call, (x, *_POINTWISE_BINARY[1:]), fused=1, also_read=other)


@formula_for("onednn::qconv_pointwise onednn::qconv1d_pointwise onednn::qconv2d_pointwise")
@formula_for("onednn::qconv3d_pointwise")
def quantised_convolution(call: OpCall) -> Work | None:
    """(x, scale, zero point, filter, its scales, its zero points, …), perhaps a second operand.

    Scaling to and from integers, and a fused activation, are left out.
    """
    if len(call.shapes) < 19:
        return _convolve(call, _QUANTISED)
    return _convolve(call, _QUANTISED_BINARY, fused=1, also_read=6)


@formula_for("conv_tbc")
def conv_tbc(call: OpCall) -> Work | None:
    """[time, batch, in] with filter [taps, in, out]: one axis of stride 1, padded on both ends."""
    (time, batch, _), (taps, channels, width) = call.shapes[:2]
    padding = call.integer(3)
    if padding is None:
        return None
    written = (time + 2 * padding - taps + 1) * batch * width
    return contraction(call, written * taps * channels, written, (0, 1, 2), adds=written)


# grad_output | input | transposed | mask of the gradients wanted; the filter is 2.
_BACKWARD = """
0 | 1 | 7 | 10 | convolution_backward
0 | 1 | 6 | 9 | convolution_backward_overrideable
0 | 1 | - | 6 | _slow_conv2d_backward
1 | 0 | - | 7 | mps_convolution_backward
1 | 0 | T | 8 | mps_convolution_transpose_backward
"""


def _backward(grad_at: int, input_at: int, transposed_at: int, mask_at: int) -> OpFormula:
    def formula(call: OpCall) -> Work | None:
        """The input's and the filter's gradient cost the forward's products, as far as wanted.

        The bias's is one add per output element. Where the mask is not recorded, at least one
        product is done, at most both and the bias; nor may it be known which way the filter went.
        """
        grad, x, taps = elements(call, grad_at), elements(call, input_at), call.shape(2)
        transposed = _is_transposed(call, transposed_at)
        fewest, most = (min(grad, x), max(grad, x)) if transposed is None else (grad, grad)
        if transposed:
            fewest = most = x

        def work(outputs: int, of_input: bool, of_filter: bool, of_bias: bool = False) -> Work:
            multiply_adds = outputs * prod(taps[1:]) * (of_input + of_filter)
            channels = call.shape(grad_at)[1 - len(taps)]
            written = x * of_input + prod(taps) * of_filter + channels * of_bias
            read = (grad_at, *[input_at] * of_filter, *[2] * of_input)
            return contraction(call, multiply_adds, written, read, adds=grad * of_bias)

        mask = flags(call, mask_at)
        if mask is None:
            return bounded(work(fewest, False, True), work(most, True, True, True))
        exact = transposed is not None
        return work(most, *mask) if exact else bounded(work(fewest, *mask), work(most, *mask))

    return formula


for _columns, _names in rows(_BACKWARD):
    formula_for(_names)(_backward(*_places(_columns)))


@formula_for("cudnn_convolution_backward mkldnn_convolution_backward miopen_convolution_backward")
@formula_for("miopen_depthwise_convolution_backward thnn_conv2d_backward")
def backward_of_old(_call: OpCall) -> None:
    """Not determined: these names come without values (PyTorch before 1.11); see the ops below."""


@formula_for("cudnn_convolution_backward_input mkldnn_convolution_backward_input")
@formula_for("miopen_convolution_backward_input miopen_depthwise_convolution_backward_input")
def backward_input(call: OpCall) -> Work:
    """The input's gradient costs what the forward does: (input size, grad_output, filter, …)."""
    written = call.integers(0)  # not recorded: left out of the bytes
    multiply_adds = elements(call, 1) * prod(call.shape(2)[1:])
    return contraction(call, multiply_adds, prod(written) if written else 0, (1, 2))
