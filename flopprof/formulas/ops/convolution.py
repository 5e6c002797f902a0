"""Formulas of convolutions, forward and backward, under every name a backend gives them.

An output element sums in_channels ÷ groups × filter taps multiply-adds; a transposed convolution
sends each input element into out_channels ÷ groups × filter taps. A bias is one add per output.
"""

from math import prod

from flopprof.dtypes import is_complex
from flopprof.formulas import OpCall, OpFormula, Shape, Work
from flopprof.formulas.ops._elements import elements, formula_for, moved_bytes, rows

# Where an op has its arguments: bias | stride | padding | dilation | transposed | output padding |
# groups; "-" for none, "T" for one that is always transposed. Input and filter are 0 and 1.
_LAYOUTS = """
2 | 3 | 4 | 5 | - | - | 6 | conv1d conv2d conv3d _convolution_mode cudnn_convolution_relu
2 | 3 | 4 | 7 | T | 5 | 6 | conv_transpose1d conv_transpose2d conv_transpose3d
2 | 3 | 4 | 5 | 6 | 7 | 8 | convolution _convolution convolution_overrideable
2 | 4 | 3 | 5 | - | - | 6 | mkldnn_convolution miopen_convolution miopen_depthwise_convolution
    mkldnn::_convolution_pointwise mkldnn::_convolution_pointwise_
2 | 5 | 3 | 6 | T | 4 | 7 | miopen_convolution_transpose
    mkldnn::_convolution_transpose_pointwise
- | 3 | 2 | 4 | - | - | 5 | cudnn_convolution
- | 4 | 2 | 5 | T | 3 | 6 | cudnn_convolution_transpose
4 | 5 | 6 | 7 | - | - | 8 | cudnn_convolution_add_relu
3 | 4 | 5 | - | - | - | - | thnn_conv2d _slow_conv2d_forward slow_conv3d slow_conv3d_forward
3 | 4 | 5 | 6 | - | - | - | slow_conv_dilated2d slow_conv_dilated3d _conv_depthwise2d
    conv_depthwise3d
3 | 4 | 5 | 7 | T | 6 | - | slow_conv_transpose2d slow_conv_transpose3d
2 | 4 | 3 | - | - | - | - | _nnpack_spatial_convolution
"""


def _per_axis(call: OpCall, where: str, dims: int, default: int) -> Shape | None:
    """Return a per-axis argument, one number standing for all; None where it is not recorded."""
    if where == "-":
        return (default,) * dims
    found = call.integers(int(where))
    if found is None or len(found) not in (1, dims):
        return None
    return found * dims if len(found) == 1 else found


def _forward(layout: list[str]) -> OpFormula:
    bias, stride_at, padding_at, dilation_at, transposed_at, extra_at, groups_at = layout

    def formula(call: OpCall) -> Work | None:
        """Count from input, filter, stride, padding and dilation; None if one is not recorded."""
        x, taps = call.shape(0), call.shape(1)
        dims = len(taps) - 2
        stride, padding = (_per_axis(call, at, dims, 1) for at in (stride_at, padding_at))
        dilation = _per_axis(call, dilation_at, dims, 1)
        if dims < 1 or stride is None or padding is None or dilation is None:
            return None
        transposed = transposed_at == "T" or (
            transposed_at != "-" and call.flag(int(transposed_at)) is True
        )
        reach = [d * (k - 1) for d, k in zip(dilation, taps[2:], strict=True)]
        sizes = list(zip(x[-dims:], stride, padding, reach, strict=True))
        if transposed:
            extra = _per_axis(call, extra_at, dims, 0) or (0,) * dims
            out = [
                (i - 1) * s - 2 * p + r + e + 1
                for (i, s, p, r), e in zip(sizes, extra, strict=True)
            ]
            groups = 1 if groups_at == "-" else call.integer(int(groups_at)) or 1
            channels = taps[1] * groups
        else:
            out, channels = [(i + 2 * p - r - 1) // s + 1 for i, s, p, r in sizes], taps[0]
        batch = x[0] if len(x) == dims + 2 else 1
        written = batch * channels * prod(out)
        multiply_adds = (prod(x) if transposed else written) * prod(taps[1:])
        has_bias = bias != "-" and call.has(int(bias))
        return _work(call, multiply_adds, written if has_bias else 0, written)

    return formula


def _work(call: OpCall, multiply_adds: int, adds: int, written: int) -> Work:
    read = moved_bytes(call, *(i for i in range(len(call.shapes)) if call.has(i)))
    each = 8 if is_complex(call.dtype(0)) else 2
    return Work(each * multiply_adds, adds, read + written * call.itemsize_of(0))


for _layout, _names in rows(_LAYOUTS):
    formula_for(_names)(_forward(_layout))


# grad_output | input | filter | transposed | mask of the gradients wanted
_BACKWARD = """
0 | 1 | 2 | 7 | 10 | convolution_backward convolution_backward_overrideable
1 | 0 | 2 | - | 7 | mkldnn_convolution_backward
1 | 0 | 2 | - | 9 | cudnn_convolution_backward miopen_convolution_backward
    miopen_depthwise_convolution_backward
1 | 0 | 2 | T | 10 | cudnn_convolution_transpose_backward miopen_convolution_transpose_backward
0 | 1 | 2 | - | 6 | _slow_conv2d_backward slow_conv2d_backward
"""


def _backward(layout: list[str]) -> OpFormula:
    grad_at, input_at, filter_at = map(int, layout[:3])
    transposed_at, mask_at = layout[3], int(layout[4])

    def formula(call: OpCall) -> Work | None:
        """Count the gradients asked for: input and filter as the forward, bias one add an output.

        A backend that says which of two gradients it computes, and leaves the bias to a sum.
        """
        mask = call.value(mask_at).strip("[]").replace(" ", "").split(",")
        if len(mask) < 2:
            return None
        wanted = [flag in ("True", "1") for flag in mask] + [False]
        transposed = transposed_at == "T" or (
            transposed_at != "-" and call.flag(int(transposed_at)) is True
        )
        ends = elements(call, input_at if transposed else grad_at)
        multiply_adds = ends * prod(call.shape(filter_at)[1:]) * sum(wanted[:2])
        written = elements(call, input_at) * wanted[0] + elements(call, filter_at) * wanted[1]
        return _work(call, multiply_adds, elements(call, grad_at) * wanted[2], written)

    return formula


for _layout, _names in rows(_BACKWARD):
    formula_for(_names)(_backward(_layout))


@formula_for("conv_tbc")
def conv_tbc(call: OpCall) -> Work | None:
    """[time, batch, in] with filter [taps, in, out]: one axis of stride 1."""
    (time, batch, _), (taps, channels, width) = call.shapes[:2]
    padding = call.integer(3)
    if padding is None:
        return None
    written = (time + 2 * padding - taps + 1) * batch * width
    return _work(call, written * taps * channels, written, written)


@formula_for("cudnn_convolution_backward_input mkldnn_convolution_backward_input")
def backward_input(call: OpCall) -> Work:
    """The input's gradient costs what the forward does: (input size, grad_output, filter, …)."""
    multiply_adds = elements(call, 1) * prod(call.shape(2)[1:])
    return _work(call, multiply_adds, 0, prod(call.integers(0) or ()))
