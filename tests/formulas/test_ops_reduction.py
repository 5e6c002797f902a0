"""Formulas of reductions, pooling and scatters that add."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812  # its usual name

from flopprof.formulas import OpCall, Work
from flopprof.formulas.ops.reduction import pooled
from tests.formulas._walk import vector_flops, work_of

X = torch.linspace(-1, 1, 2 * 4 * 6 * 6).reshape(2, 4, 6, 6)  # n = 288
ROWS = torch.linspace(0, 1, 15).reshape(5, 3)
INDEX = torch.tensor([0, 2, 2, 4])


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (lambda: X.sum(), 288),
        (lambda: X.mean((2, 3)), 288),
        (lambda: X.amax(1), 288),
        (lambda: X.max(), 288),
        (lambda: X.max(1), 288),
        (lambda: torch.max(X, X[:1]), 288),  # of two tensors: per output
        (lambda: X.argmax(1), 288),
        (lambda: X.prod(0), 288),
        (lambda: X.std(1), 4 * 288),
        (lambda: torch.var_mean(X), 4 * 288),
        (lambda: X.logsumexp(1), 4 * 288),
        (lambda: X.norm(), 2 * 288),
        (lambda: torch.linalg.vector_norm(X, dim=1), 2 * 288),
        (lambda: X.aminmax(), 2 * 288),
        (lambda: X.cumsum(1), 288),
        (lambda: X.logcumsumexp(1), 4 * 288),
        (lambda: torch.dist(X, X), 3 * 288),
        (lambda: F.pairwise_distance(ROWS, ROWS), 4 * 15),  # subtract, ε, norm
        (lambda: (X > 0).any(), 288),  # the comparison; booleans are free
        (lambda: INDEX.sum(), 0),
        (lambda: X.sort(1), 0),
        (lambda: X.topk(2), 0),
        (lambda: torch.complex(ROWS, ROWS).sum(), 2 * 15),
        (lambda: torch.complex(ROWS, ROWS).mean(0), 2 * 15),
        (lambda: torch.complex(ROWS, ROWS).prod(0), 6 * 15),  # a complex product each
        (lambda: torch.complex(ROWS, ROWS).norm(), 4 * 15),  # two squares, their sum, the sum
        # 3 × 3 outputs of 2 × 2, of 8 planes
        (lambda: F.max_pool2d(X, 2), 8 * 9 * 4),
        (lambda: F.avg_pool2d(X, 2), 8 * 9 * 4),
        # (6 + 2 − 3)/2 rounded up, + 1 = 4 outputs; the 4th begins at 6 < 6 + 1, inside the padding
        (lambda: F.avg_pool2d(X, 3, 2, 1, ceil_mode=True), 8 * 16 * 9),
        (lambda: F.max_pool2d(X, (1, 3), stride=1, dilation=(1, 2)), 8 * 6 * 2 * 3),
        (lambda: F.max_pool1d(X[0], 3), 4 * 6 * 2 * 3),
        (lambda: F.avg_pool3d(X, 2), 2 * 2 * 3 * 3 * 8),
        (lambda: F.adaptive_avg_pool2d(X, 1), 288),
        # 6 → 4: windows 0–2, 1–3, 3–5, 4–6 of 2 each: 8 along each axis
        (lambda: F.adaptive_avg_pool2d(X, 4), 8 * 8 * 8),
        (lambda: F.adaptive_max_pool2d(X, (4, 6)), 8 * 8 * 6),
        (lambda: F.fractional_max_pool2d(X, 2, 3), 8 * 9 * 4),
        (lambda: ROWS.index_add(0, INDEX, ROWS[:4]), 12),
        (lambda: ROWS.index_add(0, INDEX, ROWS[:4], alpha=2), 24),
        (lambda: ROWS.scatter_add(0, INDEX[:, None], ROWS), 4),
        (lambda: ROWS.scatter_reduce(0, INDEX[:, None], ROWS, "amax"), 4),
        (lambda: ROWS.scatter(0, INDEX[:, None], ROWS), 0),
        (lambda: ROWS.index_put((INDEX,), ROWS[:4], accumulate=True), 12),
        (lambda: ROWS.index_put((INDEX,), ROWS[:4]), 0),
        (lambda: F.embedding_bag(INDEX[None], ROWS), 12),  # 4 rows of 3
        (
            lambda: F.embedding_bag(
                INDEX[None], ROWS, per_sample_weights=ROWS[:4, 0][None], mode="sum"
            ),
            24,
        ),
        (lambda: F.fold(torch.ones(1, 4, 4), (3, 3), 2), 16),
        (lambda: torch.bincount(INDEX, ROWS[:4, 0]), 4),
        (lambda: torch.histc(ROWS), 30),
    ],
)
def test_flops_of_reductions_pools_and_scatters(run: Callable[[], Any], expected: int) -> None:
    assert vector_flops(run) == expected


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: F.max_pool2d(x, 2), 72),  # one add of each of 8·3·3 gradients
        (lambda x: F.adaptive_max_pool2d(x, 4), 128),
        (lambda x: F.avg_pool2d(x, 2), 72 * 5),  # a division and four adds
        (lambda x: F.adaptive_avg_pool2d(x, 4), 128 + 8 * 8 * 8),
        (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), 8 * 64),
    ],
)
def test_backward_of_pools(function: Callable[..., Any], expected: int) -> None:
    x = X.clone().requires_grad_()
    y = function(x)

    assert vector_flops(lambda: y.backward(torch.ones_like(y))) == expected


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_scatter_told_to_reduce_adds():
    assert vector_flops(lambda: ROWS.scatter(0, INDEX[:, None], ROWS, reduce="add")) == 4


def test_an_embedding_s_gradient_is_one_add_per_incoming_element():
    weight = ROWS.clone().requires_grad_()
    y = F.embedding(INDEX, weight)

    assert vector_flops(lambda: y.backward(torch.ones_like(y))) == 12


def test_a_pool_without_values_is_not_determined():
    assert work_of(OpCall("aten::max_pool2d", ((1, 3, 8, 8), ()), dtypes=("float32", ""))) is None


def test_how_often_a_lone_value_is_put_is_not_determined():
    types, values = ("float32", "", "float32", "Scalar"), ("", "", "", "True")
    call = OpCall("aten::index_put_", ((5, 3), (), (), ()), dtypes=types, values=values)

    assert work_of(call) is None


def test_a_reduction_writes_the_axes_that_stay():
    types, values = ("float16", "ScalarList", "Scalar", ""), ("", "[-1, 0]", "False", "")
    call = OpCall("aten::sum", ((2, 3, 4), (), (), ()), dtypes=types, values=values)

    # 24 elements read, 3 written.
    assert work_of(call) == Work(vector_flops=24, min_bytes=27 * 2)


@settings(deadline=None, max_examples=80)
@given(
    st.integers(1, 12),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(0, 2),
    st.integers(1, 3),
    st.booleans(),
)
def test_a_pooled_axis_has_torch_s_length(
    size: int, window: int, stride: int, padding: int, dilation: int, ceil_mode: bool
) -> None:
    assume(padding <= window // 2 and size + 2 * padding >= dilation * (window - 1) + 1)

    x = torch.zeros(1, 1, size)
    expected = F.max_pool1d(x, window, stride, padding, dilation, ceil_mode).shape[-1]

    found = pooled(
        size, window, stride=stride, padding=padding, dilation=dilation, ceil_mode=ceil_mode
    )
    assert found == expected


@settings(deadline=None, max_examples=40)
@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9)), st.tuples(st.integers(1, 5), st.integers(1, 5))
)
def test_adaptive_windows_are_those_that_torch_averages(
    image: tuple[int, int], out: tuple[int, int]
) -> None:
    # A window's elements are the inputs with a gradient from its output alone.
    covered = 0
    for row, column in product(range(out[0]), range(out[1])):
        x = torch.zeros(1, 1, *image, requires_grad=True)
        F.adaptive_avg_pool2d(x, out)[0, 0, row, column].backward()
        assert x.grad is not None
        covered += int((x.grad != 0).sum())
    text = str(list(out))
    call = OpCall("aten::_adaptive_avg_pool2d", ((1, 1, *image), ()), values=("", text))

    work = work_of(call)

    assert work is not None
    assert work.vector_flops == covered
