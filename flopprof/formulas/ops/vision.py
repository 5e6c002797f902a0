"""Formulas of interpolation, grid sampling and torchvision's own ops."""

import re
from math import prod

from flopprof.formulas import OpCall, Shape, Work
from flopprof.formulas.ops._elements import (
    counts,
    elements,
    formula_for,
    moved_bytes,
    numbers,
    per_input,
)

# Per output element: a lerp is three FLOPs, bilinear three lerps, trilinear seven; bicubic five
# sums of four products. Backward, each gradient times a weight is added to each of its taps.
_FORWARD = {"nearest": 0, "linear": 3, "bilinear": 9, "trilinear": 21, "bicubic": 35}
_TAPS = {"linear": 2, "bilinear": 4, "trilinear": 8, "bicubic": 16}
# Half the width of the antialiasing filter, in pixels of the coarser of the two images.
_SUPPORT = {"bilinear": 1, "bicubic": 2, "lanczos": 3}
_UPSAMPLE = """
    upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d
    _upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d
    upsample_trilinear3d upsample_bicubic2d
"""
# Boxes are compared, but which pairs the values decide; boxes count none.
per_input(__name__, "0 | 0 | 0 1 | torchvision::nms torchvision::qnms")


def _mode(call: OpCall) -> str:
    return str(re.findall(r"upsample_([a-z]+)", call.op)[0])


def _output_size(call: OpCall) -> Shape | None:
    """Return the size asked for, or the input's times the factors asked for, rounded down."""
    if size := call.integers(1):
        return size
    factors = next(filter(None, (numbers(call, i) for i in range(1, len(call.shapes)))), None)
    if factors is None:
        return None
    return tuple(
        int(size * by) for size, by in zip(call.shape(0)[-len(factors) :], factors, strict=True)
    )


@formula_for(_UPSAMPLE)
def upsample(call: OpCall) -> Work | None:
    """Nearest 0, linear 3, bilinear 9, trilinear 21, bicubic 35 per output element."""
    size = _output_size(call)
    if size is None:
        return None
    outputs = prod(call.shape(0)[:2]) * prod(size)
    return Work(
        vector_flops=_FORWARD[_mode(call)] * outputs * counts(call),
        min_bytes=moved_bytes(call, 0) + outputs * call.itemsize_of(0),
    )


@formula_for(" ".join(f"{name}_backward" for name in _UPSAMPLE.split()))
def upsample_backward(call: OpCall) -> Work | None:
    """A multiply and an add per tap of each gradient; nearest: one add."""
    taps = _TAPS.get(_mode(call))
    inputs = call.integers(2)
    if inputs is None:
        return None
    return Work(
        vector_flops=(2 * taps if taps else 1) * elements(call, 0),
        min_bytes=moved_bytes(call, 0) + prod(inputs) * call.itemsize_of(0),
    )


def _antialias_taps(size: int, out: int, support: int) -> int:
    """Return the filter taps of all outputs along one axis.

    Output i is centred on c = (i + ½)·s with s = size/out; its window reaches support·max(s, 1) to
    either side, rounded to pixels, cut at the image.
    """
    scale = size / out
    reach = support * max(scale, 1.0)
    centres = [(i + 0.5) * scale for i in range(out)]
    return sum(min(int(c + reach + 0.5), size) - max(int(c - reach + 0.5), 0) for c in centres)


_AA = "_upsample_bilinear2d_aa _upsample_bicubic2d_aa _upsample_lanczos2d_aa"


@formula_for(" ".join(f"{name} {name}_backward" for name in _AA.split()))
def upsample_antialias(call: OpCall) -> Work | None:
    """Along the rows, then the columns: each output a sum of products over its filter's taps.

    k taps are 2k − 1 FLOPs; backward, where each gradient is added to its taps, 2k.
    """
    backward = call.op.endswith("backward")
    inputs = call.integers(2) if backward else call.shape(0)
    size = call.integers(1) if backward else _output_size(call)
    if size is None or inputs is None:
        return None
    (*_, height, width), (out_height, out_width) = inputs, size
    support = _SUPPORT[_mode(call)]
    taps = height * _antialias_taps(width, out_width, support)
    taps += out_width * _antialias_taps(height, out_height, support)
    sums = 0 if backward else (height + out_height) * out_width
    planes = prod(inputs[:-2])
    result = inputs if backward else (planes, *size)
    return Work(
        vector_flops=planes * (2 * taps - sums) * counts(call),
        min_bytes=moved_bytes(call, 0) + prod(result) * call.itemsize_of(0),
    )


@formula_for("grid_sampler grid_sampler_2d grid_sampler_3d cudnn_grid_sampler")
def grid_sampler(call: OpCall) -> Work | None:
    """Interpolation of each output element, and each coordinate's way from −1 … 1 to pixels.

    `((x + 1)·size − 1)/2` is four operations; with aligned corners `(x + 1)/2·(size − 1)` is three.
    """
    mode = 0 if "cudnn" in call.op else call.integer(2)
    axes = len(call.shape(1)) - 2
    if mode not in (0, 1, 2):
        return None
    cost = ((9 if axes == 2 else 21), 0, 35)[mode]
    points = prod(call.shape(1)[:-1])
    outputs = points * call.shape(0)[1]
    aligned = "cudnn" in call.op or bool(call.flag(4))
    return Work(
        vector_flops=cost * outputs + (3 if aligned else 4) * points * axes,
        min_bytes=moved_bytes(call, 0, 1) + outputs * call.itemsize_of(0),
    )


@formula_for("grid_sampler_2d_backward grid_sampler_3d_backward")
def grid_sampler_backward(call: OpCall) -> Work | None:
    """Bilinear 22, trilinear 61, nearest 1 per gradient; bicubic is not derived.

    Into the input two operations per tap. Into the grid, for each axis: the difference of its taps,
    interpolated over the other axes, times the gradient, summed. Plane: 4 taps 8, and 2 × (2
    differences, lerp 3, multiply, add) 14. Space: 8 taps 16, and 3 × (4 differences, bilinear 9,
    multiply, add) 45.
    """
    nearest = call.integer(3) == 1
    if call.integer(3) not in (0, 1):
        return None
    cost = 1 if nearest else 22 if "2d" in call.op else 61
    return Work(vector_flops=cost * elements(call, 0), min_bytes=moved_bytes(call, 0, 1, 2, 1, 2))


@formula_for("affine_grid_generator affine_grid_generator_backward")
def affine_grid(call: OpCall) -> Work | None:
    """Every point of the base grid with a 1, times θ: (d + 1)·d multiply-adds, forward and back.

    The base grid's axes, where corners are not aligned: two operations per coordinate.
    """
    size = call.integers(1)
    if size is None:
        return None
    axes = len(size) - 2
    points = size[0] * prod(size[2:])
    grid = points * axes * call.itemsize_of(0)
    theta = size[0] * axes * (axes + 1) * call.itemsize_of(0)
    return Work(
        matmul_flops=2 * points * axes * (axes + 1),
        vector_flops=0 if call.flag(2) else 2 * sum(size[2:]),
        min_bytes=grid + theta,
    )


@formula_for("torchvision::deform_conv2d")
def deform_conv2d(call: OpCall) -> Work:
    """A convolution (matmul class) of sampled inputs.

    Of each output's kh·kw·Cin samples: bilinear 9, + 1 with a mask; of each offset one add to its
    position; and the bias, which torchvision always hands over.
    """
    filters, per_group, *kernel = call.shape(1)
    batch, channels, *_ = call.shape(0)
    area = prod(call.shape(2)[-2:])
    outputs, window = batch * filters * area, prod(kernel)
    masked = call.flag(13) is not False and elements(call, 3) > 0
    samples = batch * channels * window * area
    return Work(
        matmul_flops=2 * outputs * per_group * window,
        vector_flops=(9 + masked) * samples + elements(call, 2) + outputs,
        min_bytes=moved_bytes(call, 0, 1, 2, 3, 4) + outputs * call.itemsize_of(0),
    )


@formula_for("torchvision::roi_align torchvision::ps_roi_align torchvision::qroi_align")
def roi_align(call: OpCall) -> Work | None:
    """r² samples of each output: bilinear 9, and their mean r². r ≤ 0 leaves it to the values.

    Position-sensitive pooling takes each of its h·w places from channels of its own.
    """
    height, width = call.integer(3), call.integer(4)
    ratio = call.integer(7 if "::q" in call.op else 5)
    if not height or not width or not ratio or ratio < 0:
        return None
    outputs = call.shape(1)[0] * call.shape(0)[1] * height * width
    if "::ps" in call.op:
        outputs //= height * width
    return Work(
        vector_flops=10 * ratio**2 * outputs * counts(call),
        min_bytes=moved_bytes(call, 0, 1) + outputs * call.itemsize_of(0),
    )


@formula_for("torchvision::_roi_align_backward")
def roi_align_backward(call: OpCall) -> Work | None:
    """Of each sample: a multiply and an add into 4 taps, and the mean's division."""
    ratio = call.integer(9)
    if not ratio or ratio < 0:
        return None
    inputs = prod(call.integer(index) or 0 for index in (5, 6, 7, 8)) * call.itemsize_of(0)
    return Work(
        vector_flops=9 * ratio**2 * elements(call, 0), min_bytes=moved_bytes(call, 0, 1) + inputs
    )
