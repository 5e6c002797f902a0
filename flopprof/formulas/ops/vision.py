"""Formulas of interpolation, grid sampling and torchvision's own ops."""

import re
from dataclasses import replace
from functools import partial
from math import prod

from flopprof.formulas import OpCall, Shape, Work
from flopprof.formulas.ops import _elements as el

op_formula = partial(el.formula_for, kind="other")

# Per output element: a lerp is three FLOPs, bilinear three lerps, trilinear seven; bicubic five
# sums of four products. Backward, each gradient times a weight is added to each of its taps, two
# along an axis (bicubic: four); nearest: one add.
_FLOPS = {"nearest": 0, "linear": 3, "bilinear": 9, "trilinear": 21, "bicubic": 35}
_BACKWARD_FLOPS = {"nearest": 1, "linear": 4, "bilinear": 8, "trilinear": 16, "bicubic": 32}
# Half the width of the antialiasing filter, in pixels of the coarser of the two images.
_SUPPORT = {"bilinear": 1, "bicubic": 2, "lanczos": 3}


def _mode(call: OpCall) -> str:
    return str(re.findall(r"upsample_([a-z]+)", call.op)[0])


def _output_size(call: OpCall) -> Shape | None:
    """Return the size asked for, or the input's times the factors asked for, rounded down."""
    if size := call.integers(1):
        return size
    lists = (el.numbers(call, index) for index in range(1, len(call.shapes)))
    factors = next(filter(None, lists), None)
    if factors is None:
        return None
    sizes = call.shape(0)[-len(factors) :]
    return tuple(int(size * by) for size, by in zip(sizes, factors, strict=True))


@op_formula("{upsample_nearest,_upsample_nearest_exact}{1,2,3}d{,_backward}")
@op_formula("upsample_{linear1,bilinear2,trilinear3,bicubic2}d{,_backward}")
def upsample(call: OpCall) -> Work | None:
    """Nearest 0, linear 3, bilinear 9, trilinear 21, bicubic 35 per output element.

    Backward, per gradient, 1, 4, 8, 16, 32.
    """
    backward = call.op.endswith("backward")
    size = call.integers(2) if backward else _output_size(call)
    if size is None:
        return None
    written = prod(size) if backward else prod((*call.shape(0)[:2], *size))
    counted = el.elements(call, 0) if backward else written
    mode = _mode(call)
    each = _BACKWARD_FLOPS[mode] if backward else _FLOPS[mode]
    flops = each * counted if el.counts(call) else 0
    return el.vector_work(call, flops, 0, written=written)


def _antialias_taps(size: int, out: int, support: int) -> int:
    """Return the filter taps of all outputs along one axis.

    Output i is centred on c = (i + ½)·s with s = size/out; its window reaches support·max(s, 1) to
    either side, rounded to pixels, cut at the image.
    """
    scale = size / out
    reach = support * max(scale, 1.0)
    centres = [(i + 0.5) * scale for i in range(out)]
    return sum(min(int(c + reach + 0.5), size) - max(int(c - reach + 0.5), 0) for c in centres)


@op_formula("_upsample_{bilinear,bicubic,lanczos}2d_aa{,_backward}")
def upsample_antialias(call: OpCall) -> Work | None:
    """Along the rows, then the columns: each output a sum of products over its filter's taps.

    k taps are 2k − 1 FLOPs; backward, where each gradient is added to its taps, 2k.
    """
    backward = call.op.endswith("backward")
    inputs = call.integers(2) if backward else call.shape(0)
    size = call.integers(1) if backward else _output_size(call)
    if size is None or inputs is None:
        return None
    *_, height, width = inputs
    out_height, out_width = size
    support = _SUPPORT[_mode(call)]
    taps = height * _antialias_taps(width, out_width, support)
    taps += out_width * _antialias_taps(height, out_height, support)
    sums = 0 if backward else (height + out_height) * out_width
    planes = prod(inputs[:-2])
    result = inputs if backward else (planes, *size)
    flops = planes * (2 * taps - sums) if el.counts(call) else 0
    return el.vector_work(call, flops, 0, written=prod(result))


_GRID_MODES = {0: "bilinear", 1: "nearest", 2: "bicubic"}  # by PyTorch's numbers


@op_formula("grid_sampler grid_sampler_2d grid_sampler_3d cudnn_grid_sampler")
def grid_sampler(call: OpCall) -> Work | None:
    """Interpolation of each output element, and each coordinate's way from −1 … 1 to pixels.

    `((x + 1)·size − 1)/2` is four operations; with aligned corners `(x + 1)/2·(size − 1)` is three.
    """
    mode = 0 if "cudnn" in call.op else call.integer(2)
    axes = len(call.shape(1)) - 2
    if mode not in _GRID_MODES:
        return None
    cost = _FLOPS[_GRID_MODES[mode]]
    if mode == 0 and axes != 2:
        cost = _FLOPS["trilinear"]
    points = prod(call.shape(1)[:-1])
    outputs = points * call.shape(0)[1]
    aligned = "cudnn" in call.op or bool(call.flag(4))
    flops = cost * outputs + (3 if aligned else 4) * points * axes
    return el.vector_work(call, flops, 0, 1, written=outputs)


@op_formula("grid_sampler_2d_backward grid_sampler_3d_backward")
def grid_sampler_backward(call: OpCall) -> Work | None:
    """Bilinear 22, trilinear 61, nearest 1 per gradient; bicubic is not derived.

    Into the input two operations per tap. Into the grid, for each axis: the difference of its taps,
    interpolated over the other axes, times the gradient, summed. Plane: 4 taps 8, and 2 × (2
    differences, lerp 3, multiply, add) 14. Space: 8 taps 16, and 3 × (4 differences, bilinear 9,
    multiply, add) 45.
    """
    mode = call.integer(3)
    if mode not in (0, 1):
        return None
    linear = 22 if "2d" in call.op else 61
    cost = linear if mode == 0 else 1
    return el.vector_work(call, cost * el.elements(call, 0), 0, 1, 2, 1, 2)


@op_formula("affine_grid_generator affine_grid_generator_backward")
def affine_grid(call: OpCall) -> Work | None:
    """Every point of the base grid with a 1, times θ: (d + 1)·d multiply-adds, forward and back.

    The base grid's axes, where corners are not aligned: two operations per coordinate.
    """
    size = call.integers(1)
    if size is None:
        return None
    axes = len(size) - 2
    points = size[0] * prod(size[2:])
    moved = points * axes + size[0] * axes * (axes + 1)  # the grid, and θ
    work = el.vector_work(call, 0 if call.flag(2) else 2 * sum(size[2:]), written=moved)
    return replace(work, matmul_flops=2 * points * axes * (axes + 1))


@op_formula("torchvision::deform_conv2d")
def deform_conv2d(call: OpCall) -> Work:
    """2·outputs·(in ÷ groups)·taps, of inputs that are sampled first (vector class).

    Of each output's kh·kw·Cin samples: bilinear 9, + 1 with a mask; of each offset one add to its
    position; and the bias, which torchvision always hands over.
    """
    filters, per_group, *kernel = call.shape(1)
    batch, channels, *_ = call.shape(0)
    area = prod(call.shape(2)[-2:])
    outputs = batch * filters * area
    window = prod(kernel)
    masked = call.flag(13) is not False and el.elements(call, 3) > 0
    samples = batch * channels * window * area
    each = 10 if masked else 9
    flops = each * samples + el.elements(call, 2) + outputs
    work = el.vector_work(call, flops, 0, 1, 2, 3, 4, written=outputs)
    return replace(work, matmul_flops=2 * outputs * per_group * window)


def _sampled(
    call: OpCall, flops: int, maps: int, grid: Shape, image: Shape, ratio: int | None
) -> Work:
    """Return the work of `flops` per sample of `maps` grids of bins, the traffic left out.

    With a sampling ratio r > 0 a bin has r × r samples. Else its box decides: at least one sample,
    or none without a ratio (its pixels), and at most those of a box as large as the image: along H
    in h bins no more than H + h − 1, be it h·⌈H/h⌉ or the sum of ⌊i·H/h⌋ … ⌈(i + 1)·H/h⌉.
    """
    least = maps * prod(grid) * (0 if ratio is None else max(ratio, 1) ** 2)
    most = maps * prod(size + bins - 1 for size, bins in zip(image, grid, strict=True))
    if not el.counts(call):
        flops = 0
    exact = ratio is not None and ratio > 0
    return Work(vector_flops=flops * least, flops_at_most=None if exact else flops * most)


@op_formula("torchvision::roi_align torchvision::ps_roi_align torchvision::qroi_align")
@op_formula("torchvision::roi_pool torchvision::ps_roi_pool")
def roi_pool(call: OpCall) -> Work | None:
    """Of each sample: bilinear 9 where it aligns, and its part in the mean or maximum.

    Position-sensitive pooling takes each of its h·w places from channels of its own.
    """
    grid = (call.integer(3) or 0, call.integer(4) or 0)
    if not prod(grid):
        return None
    maps = call.shape(1)[0] * call.shape(0)[1] // (prod(grid) if "::ps" in call.op else 1)
    ratio = None
    flops = 1
    if "align" in call.op:
        ratio = call.integer(7 if "::q" in call.op else 5) or 0
        flops = 10
    work = _sampled(call, flops, maps, grid, call.shape(0)[-2:], ratio)
    moved = el.moved_bytes(call, 0, 1) + maps * prod(grid) * call.itemsize_of(0)
    return replace(work, min_bytes=moved)


@op_formula("torchvision::_roi_align_backward torchvision::_ps_roi_align_backward")
def roi_align_backward(call: OpCall) -> Work:
    """Of each sample: a multiply and an add into 4 taps, and the mean's division."""
    sensitive = "_ps_" in call.op
    grid = call.shape(0)[-2:]
    image_at = 7 if sensitive else 5
    sizes = tuple(call.integer(image_at + axis) or 0 for axis in range(4))
    ratio = call.integer(6 if sensitive else 9) or 0
    maps = prod(call.shape(0)[:-2])
    work = _sampled(call, 9, maps, grid, sizes[-2:], ratio)
    return replace(work, min_bytes=el.moved_bytes(call, 0, 1) + prod(sizes) * call.itemsize_of(0))
