"""Formulas against loops over scalars that count each of their own operations.

Each loop is an op's definition, written out for any shape. A comparison-select counts one, a
function of one argument one, and a sum starts at its neutral element, as ARCHITECTURE.md has it.
"""

import math
from collections.abc import Iterable, Iterator
from itertools import product
from math import prod
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.formulas._calls import formula


class Tally:
    """Counts the operations on the numbers it made."""

    def __init__(self) -> None:
        self.operations = 0

    def number(self, value: float = 1.0) -> "Number":
        return Number(self, value)

    def numbers(self, count: int) -> list["Number"]:
        return [self.number(1.0 + index) for index in range(count)]


class Number:
    """A float whose every operation is counted."""

    def __init__(self, tally: Tally, value: float) -> None:
        self.tally, self.value = tally, value

    def _operation(self, value: float) -> "Number":
        self.tally.operations += 1
        return Number(self.tally, value)

    def __add__(self, other: Any) -> "Number":
        return self._operation(self.value + _value(other))

    def __sub__(self, other: Any) -> "Number":
        return self._operation(self.value - _value(other))

    def __mul__(self, other: Any) -> "Number":
        return self._operation(self.value * _value(other))

    def __truediv__(self, other: Any) -> "Number":
        return self._operation(self.value / (_value(other) or 1.0))

    def __neg__(self) -> "Number":
        return self._operation(-self.value)

    def function(self) -> "Number":
        """Return any function of one argument."""
        return self._operation(math.tanh(self.value))

    def greater(self, other: Any) -> "Number":
        return self._operation(max(self.value, _value(other)))


def _value(other: Any) -> float:
    return other.value if isinstance(other, Number) else float(other)


def summed(numbers: Iterable[Number], tally: Tally) -> Number:
    total = tally.number(0.0)
    for number in numbers:
        total = total + number
    return total


def largest(numbers: Iterable[Number], tally: Tally) -> Number:
    found = tally.number(-math.inf)
    for number in numbers:
        found = number.greater(found)
    return found


shapes = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)
steady = settings(max_examples=30, deadline=None)


def vector_flops(op: str, *arguments: Any, **values: str) -> int:
    work = formula(f"aten::{op}", *arguments, **values)
    assert work is not None
    assert work.matmul_flops == 0
    return work.vector_flops


def rows(shape: tuple[int, ...], tally: Tally) -> Iterator[list[Number]]:
    """Yield the rows along the last axis."""
    for _ in range(prod(shape[:-1])):
        yield tally.numbers(shape[-1])


@steady
@given(shapes)
def test_softmax(shape):
    tally = Tally()
    for row in rows(shape, tally):
        top = largest(row, tally)
        powers = [(x - top).function() for x in row]
        whole = summed(powers, tally)
        _ = [x / whole for x in powers]

    assert vector_flops("_softmax", shape, (), (), _1="-1") == tally.operations


@steady
@given(shapes)
def test_softmax_backward(shape):
    tally = Tally()
    for out, grad in zip(rows(shape, tally), rows(shape, tally), strict=True):
        whole = summed((g * y for g, y in zip(grad, out, strict=True)), tally)
        _ = [y * (g - whole) for g, y in zip(grad, out, strict=True)]

    found = vector_flops("_softmax_backward_data", shape, shape, (), (), _2="-1")
    assert found == tally.operations


def normalised(row: list[Number], weight: bool, bias: bool, tally: Tally) -> None:
    """Normalise; a root and two divisions per row are left out, as the conventions say."""
    mean = Number(tally, summed(row, tally).value / len(row))
    centred = [x - mean for x in row]
    square = summed((c * c for c in centred), tally)
    scale = Number(tally, 1 / math.sqrt(square.value / len(row) + 1e-5))
    for c in centred:
        y = c * scale
        if weight:
            y = y * 2.0
        if bias:
            y = y + 1.0


@steady
@given(shapes, st.booleans(), st.booleans())
def test_layer_norm(shape, weight, bias):
    tally = Tally()
    for row in rows(shape, tally):
        normalised(row, weight, bias, tally)
    last = (shape[-1],)

    found = vector_flops(
        "native_layer_norm", shape, (), last if weight else None, last if bias else None, ()
    )

    assert found == tally.operations


@steady
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.booleans())
def test_group_norm(batch, groups, channels_each, pixels, affine):
    tally = Tally()
    for _ in range(batch * groups):
        normalised(tally.numbers(channels_each * pixels), affine, affine, tally)
    channels = groups * channels_each
    parameter = (channels,) if affine else None

    found = vector_flops(
        "group_norm", (batch, channels, pixels), (), parameter, parameter, (), (), _1=str(groups)
    )

    assert found == tally.operations


@steady
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.booleans(), st.booleans())
def test_batch_norm_in_training_and_in_eval(batch, channels, pixels, weight, training):
    tally = Tally()
    for _ in range(channels):
        pixels_of_all = tally.numbers(batch * pixels)
        if training:
            normalised(pixels_of_all, weight, weight, tally)
        else:  # mean, variance, weight and bias folded into one scale and one shift
            _ = [x * 2.0 + 1.0 for x in pixels_of_all]
    parameter, own = (channels,) if weight else None, (channels,)

    found = vector_flops(
        "batch_norm",
        (batch, channels, pixels),
        *(parameter, parameter, own, own, (), (), (), ()),
        _5=str(training),
    )

    assert found == tally.operations


@steady
@given(shapes, st.booleans())
def test_rms_norm(shape, weight):
    tally = Tally()
    for row in rows(shape, tally):
        square = summed((x * x for x in row), tally)
        scale = Number(tally, 1 / math.sqrt(square.value))
        for x in row:
            y = x * scale
            if weight:
                y = y * 2.0
    last = (shape[-1],) if weight else None

    assert vector_flops("rms_norm", shape, (), last, ()) == tally.operations


@steady
@given(shapes, st.data())
@pytest.mark.parametrize(
    ("op", "definition"),
    [
        ("sum", lambda row, t: summed(row, t)),
        ("amax", lambda row, t: largest(row, t)),
        ("var", lambda row, t: _variance(row, t)),
        ("logsumexp", lambda row, t: _logsumexp(row, t)),
    ],
)
def test_reductions_over_some_axes(op, definition, shape, data):
    axes = data.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))
    kept = [size for axis, size in enumerate(shape) if axis not in axes]
    reduced = [size for axis, size in enumerate(shape) if axis in axes]
    tally = Tally()
    for _ in range(prod(kept)):
        definition(tally.numbers(prod(reduced)), tally)

    assert vector_flops(op, shape, (), (), _1=str(sorted(axes))) == tally.operations


def _variance(row: list[Number], tally: Tally) -> None:
    mean = Number(tally, summed(row, tally).value / len(row))
    centred = [x - mean for x in row]
    summed((c * c for c in centred), tally)


def _logsumexp(row: list[Number], tally: Tally) -> None:
    top = largest(row, tally)
    summed([(x - top).function() for x in row], tally)


@steady
@given(
    st.tuples(st.integers(1, 7), st.integers(1, 7)),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from(["max_pool2d", "avg_pool2d"]),
)
def test_pools_without_padding(image, window, stride, op):
    assume(min(image) >= window)
    tally = Tally()
    for top, left in product(*(range(0, size - window + 1, stride) for size in image)):
        taps = [Number(tally, top + left) for _ in range(window * window)]
        if op.startswith("max"):
            largest(taps, tally)
        else:  # k - 1 additions and one division
            total = taps[0]
            for tap in taps[1:]:
                total = total + tap
            _ = total / (window * window)

    found = vector_flops(
        op,
        (1, 1, *image),
        *((), (), (), (), ()),
        _1=f"[{window}, {window}]",
        _2=f"[{stride}, {stride}]",
        _3="[0, 0]",
        _4="[1, 1]" if op.startswith("max") else "False",
        _5="False" if op.startswith("max") else "True",
    )

    assert found == tally.operations


@steady
@given(shapes, st.integers(0, 2))
@pytest.mark.parametrize(
    ("op", "definition"),
    [
        ("mse_loss", lambda x, t: _squared(x - t)),
        ("l1_loss", lambda x, t: (x - t).function()),
        ("kl_div", lambda x, t: t.function() - t * x),  # t·log t is the one function xlogy
        ("soft_margin_loss", lambda x, t: (-t * x).function().function()),
    ],
)
def test_elementwise_losses(op, definition, shape, reduction):
    tally = Tally()
    losses = [
        definition(x, t)
        for x, t in zip(tally.numbers(prod(shape)), tally.numbers(prod(shape)), strict=True)
    ]
    if reduction:
        summed(losses, tally)

    assert vector_flops(op, shape, shape, (), _2=str(reduction)) == tally.operations


def _squared(x: Number) -> Number:
    return x * x


def _lerp(a: Number, b: Number, weight: Number) -> Number:
    return a + (b - a) * weight


def _interpolated(axes: int, tally: Tally) -> Number:
    """Blend the 2^axes neighbours of a point, axis by axis."""
    corners = tally.numbers(2**axes)
    for _ in range(axes):
        pairs = zip(corners[::2], corners[1::2], strict=True)
        corners = [_lerp(a, b, tally.number(0.5)) for a, b in pairs]
    return corners[0]


@steady
@given(st.integers(1, 3), st.lists(st.integers(1, 4), min_size=3, max_size=3), st.integers(1, 2))
def test_linear_interpolation_in_one_two_and_three_axes(axes, sizes, channels):
    out = sizes[:axes]
    tally = Tally()
    for _ in range(channels * prod(out)):
        _interpolated(axes, tally)
    name = ["upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d"][axes - 1]

    found = vector_flops(name, (1, channels, *[2] * axes), (), (), (), _1=str(out), _2="False")

    assert found == tally.operations


@steady
@given(st.integers(1, 4), st.integers(1, 4))
def test_bicubic_interpolation(height, width):
    tally = Tally()
    for _ in range(height * width):
        lines = []
        for _line in range(5):  # four rows of four taps, then the four results
            taps = [x * 0.25 for x in tally.numbers(4)]
            total = taps[0]
            for tap in taps[1:]:
                total = total + tap
            lines.append(total)

    found = vector_flops(
        "upsample_bicubic2d", (1, 1, 3, 3), (), (), (), _1=f"[{height}, {width}]", _2="False"
    )

    assert found == tally.operations


@steady
@given(st.integers(0, 6))
def test_a_fourier_transform_of_a_power_of_two(exponent):
    # Radix 2: log2 n stages of n/2 butterflies, each one complex product and two complex sums.
    tally = Tally()
    length = 2**exponent
    for _ in range(exponent):
        for _butterfly in range(length // 2):
            a, b, c, d, wr, wi = tally.numbers(6)
            real, imaginary = c * wr - d * wi, c * wi + d * wr
            _ = a + real, b + imaginary, a - real, b - imaginary

    work = formula(
        "aten::_fft_c2c", (length,), (), (), (), dtypes="complex64", _1="[0]", _2="0", _3="True"
    )

    assert work is not None
    assert work.vector_flops == tally.operations


def eliminated(n: int, tally: Tally) -> None:
    """Factorise an n × n matrix into a lower and an upper one."""
    matrix = [[tally.number(1.0 + (i == j) * n) for j in range(n)] for i in range(n)]
    for k in range(n):
        for i in range(k + 1, n):
            factor = matrix[i][k] / matrix[k][k]
            for j in range(k + 1, n):
                matrix[i][j] = matrix[i][j] - factor * matrix[k][j]


def cholesky(n: int, tally: Tally) -> None:
    """Factorise a symmetric n × n matrix, its lower half alone."""
    matrix = [[tally.number(1.0 + (i == j) * n) for j in range(n)] for i in range(n)]
    for k in range(n):
        matrix[k][k] = matrix[k][k].function()
        for i in range(k + 1, n):
            matrix[i][k] = matrix[i][k] / matrix[k][k]
        for j in range(k + 1, n):
            for i in range(j, n):
                matrix[i][j] = matrix[i][j] - matrix[i][k] * matrix[j][k]


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 24))
@pytest.mark.parametrize(
    ("op", "algorithm"), [("linalg_lu_factor", eliminated), ("linalg_cholesky", cholesky)]
)
def test_factorisations_are_their_leading_term(op, algorithm, n):
    tally = Tally()
    algorithm(n, tally)

    # What the leading term leaves out is of the order of n².
    assert abs(vector_flops(op, (n, n), ()) - tally.operations) <= 2 * n * n


@steady
@given(shapes, st.booleans(), st.booleans())
def test_sgd_with_decay_and_momentum(shape, decay, momentum):
    tally = Tally()
    for p, g, b in zip(*(tally.numbers(prod(shape)) for _ in range(3)), strict=True):
        step = g
        if decay:
            step = step + p * 0.01
        if momentum:
            step = b * 0.9 + step
        _ = p - step * 0.1
    values = {"_3": "0.01" if decay else "0.", "_4": "0.9" if momentum else "0.", "_5": "0.1"}
    flags = {"_6": "0.", "_7": "False", "_8": "False", "_9": "False"}

    tensors = ((shape,), (shape,), (shape,) if momentum else ())
    found = vector_flops("_fused_sgd_", *tensors, *[()] * 7, **values, **flags)

    assert found == tally.operations


@steady
@given(shapes)
def test_adam(shape):
    tally = Tally()
    for p, g, m, v in zip(*(tally.numbers(prod(shape)) for _ in range(4)), strict=True):
        m = _lerp(m, g, tally.number(0.1))
        v = v * 0.999 + g * g * 0.001
        root = v.function() / 0.5 + 1e-8
        _ = p - m * 0.001 / root
    values = {"_6": "1e-3", "_7": "0.9", "_8": "0.999", "_9": "0.", "_10": "1e-8"}
    flags = {"_11": "False", "_12": "False"}

    lists = [(shape,)] * 4
    found = vector_flops("_fused_adam_", *lists, (), ((),), *[()] * 7, **values, **flags)

    assert found == tally.operations


@steady
@given(shapes, st.data())
@pytest.mark.parametrize(
    ("op", "definition"),
    [
        ("add", lambda a, b: a + b),
        ("mul", lambda a, b: a * b),
        ("maximum", lambda a, b: a.greater(b)),
        ("div", lambda a, b: a / b),
    ],
)
def test_elementwise_operations_of_broadcast_operands(op, definition, shape, data):
    other = tuple(data.draw(st.sampled_from([1, size])) for size in shape)
    other = other[data.draw(st.integers(0, len(shape) - 1)) :]
    tally = Tally()
    for _ in product(*map(range, shape)):
        definition(tally.number(), tally.number())

    extra = ((),) if op == "add" else ()
    values = {"_2": "1"} if op == "add" else {}
    assert vector_flops(op, shape, other, *extra, **values) == tally.operations


@steady
@given(shapes)
@pytest.mark.parametrize(
    ("op", "definition"),
    [
        ("sigmoid_backward", lambda g, y: g * y * (-(y - 1.0))),
        ("tanh_backward", lambda g, y: g - g * y * y),
        ("threshold_backward", lambda g, y: y.greater(g)),
    ],
)
def test_activations_backward(op, definition, shape):
    # 1 - y is one operation: here a difference and a sign.
    signs = prod(shape) if op == "sigmoid_backward" else 0
    tally = Tally()
    for g, y in zip(*(tally.numbers(prod(shape)) for _ in range(2)), strict=True):
        definition(g, y)

    extra, values = (((),), {"_2": "0"}) if op == "threshold_backward" else ((), {})
    assert vector_flops(op, shape, shape, *extra, **values) == tally.operations - signs


@steady
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3))
def test_pairwise_euclidean_distances(first, second, coordinates):
    tally = Tally()
    for _pair in range(first * second):
        pairs = zip(tally.numbers(coordinates), tally.numbers(coordinates), strict=True)
        summed((_squared(a - b) for a, b in pairs), tally).function()

    found = vector_flops(
        "_cdist_forward",
        *((first, coordinates), (second, coordinates), (), ()),
        _2="2.",
        _3="2",
    )

    assert found == tally.operations
