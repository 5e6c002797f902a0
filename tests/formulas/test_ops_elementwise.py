"""Formulas of elementwise ops; n = 12 where not said: the input is 3 × 4."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812  # its usual name

from flopprof.formulas import OpCall, Work, kind_of
from flopprof.formulas.ops._elements import broadcast, compute_dtype
from tests.formulas._walk import counted, roots, vector_flops, work_of

X = torch.linspace(0.1, 0.9, 12).reshape(3, 4)
ROW = torch.ones(4)
C = torch.complex(X, X)
N = torch.arange(12).reshape(3, 4)
DISTANCES = ("aten::_euclidean_dist", "aten::_cdist_forward")
LIST = [torch.ones(3, 4), torch.ones(5)]  # 17 elements


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (lambda: X.relu(), 12),
        (lambda: F.gelu(X), 12),  # an activation is one, whatever its definition
        (lambda: F.hardtanh_(X.clone()), 12),
        (lambda: F.prelu(X, ROW), 12),
        (lambda: F.glu(X), 12),  # 6 sigmoids, 6 products
        (lambda: X.exp(), 12),
        (lambda: torch.polygamma(1, X), 12),
        (lambda: N.sqrt(), 12),  # of integers, in floating point
        (lambda: X * 2, 12),
        (lambda: X * ROW, 12),
        (lambda: X[:, :1] * ROW, 12),  # [3, 1] and [4] make [3, 4]
        (lambda: X + X, 12),
        (lambda: torch.add(X, X, alpha=2), 24),  # product, add
        (lambda: 1 - X, 12),
        (lambda: X.pow(2), 12),
        (lambda: 2**X, 12),
        (lambda: X > 0.5, 12),
        (lambda: X.clamp(0, 1), 24),
        (lambda: X.clamp(min=0), 12),
        (lambda: X.clamp(max=ROW), 12),
        (lambda: X.lerp(X, 0.3), 36),
        (lambda: X.addcmul(X, X), 24),
        (lambda: X.addcmul(X, X, value=3), 36),
        (lambda: X.addcdiv(X, X, value=0.5), 36),
        (lambda: torch.where(X > 0.5, X, X), 12),  # the comparison alone
        (lambda: F.dropout(X, 0.5), 24),  # mask, scale
        (lambda: F.dropout(X, 0.5, training=False), 0),
        (lambda: F.dropout(X, 0.0), 0),  # hands its input on
        (lambda: F.dropout(X, 1.0), 12),  # times zero
        (lambda: F.alpha_dropout(X, 0.0, training=True), 0),
        (lambda: torch.native_dropout(X, 0.0, True), 24),
        (lambda: torch.isclose(X, X), 72),  # |a − b| ≤ atol + rtol·|b|: six
        (lambda: torch.linalg.cross(X[:, :3], X[:, :3]), 27),  # 9 components of 3
        (lambda: torch.fake_quantize_per_tensor_affine(X, 0.1, 0, 0, 255), 72),  # 2 + 2 + 2
        (lambda: C + C, 24),
        (lambda: C * C, 72),  # four products, two adds
        (lambda: C.abs(), 48),  # two squares, add, root
        (lambda: torch.polar(X, X), 48),  # cos, sin, two products
        (lambda: C - C, 24),
        (lambda: torch.add(C, C, alpha=2), 48),  # a real factor: two products, two adds
        (lambda: C * X, 72),
        (lambda: C / C, 132),  # six products, three adds, two quotients
        (lambda: C.exp(), 60),  # exp, cos, sin, two products
        (lambda: C.abs().square(), 48 + 12),
        (lambda: torch.absolute(C), 48),
        (lambda: C == C, 24),
        (lambda: C.cumsum(0), 24),
        (lambda: torch.outer(X[0], X[:, 0]), 4 * 3),
        (lambda: torch.ger(torch.ones(8), torch.ones(8)), 64),
        (lambda: torch.outer(C[0], X[0]), 6 * 16),
        (lambda: torch.outer(N[0], N[0]), 0),
        (lambda: torch.cdist(X, X), 9 * 13),  # 9 pairs: 4 × (subtract, square, sum), root
        (lambda: torch.cdist(X, X, p=1.0), 9 * 13),  # 9 pairs: 4 × (3) + 1
        (lambda: torch.cdist(X.expand(2, 3, 4), X[:2]), 2 * 6 * 13),
        (lambda: F.pdist(X), 3 * 13),  # 3·2/2 pairs
    ],
)
def test_one_flop_per_output_element_and_operation(run: Callable[[], Any], expected: int) -> None:
    assert vector_flops(run) == expected


def test_many_euclidean_distances_are_a_product_of_matrices():
    many = torch.ones(30, 4)
    (found,) = [work for call, work in counted(roots(lambda: torch.cdist(many, X))) if work]

    # 30·3 pairs, 4 + 2 columns: 90·6 multiply-adds. 30·4 squares, sums, products with −2; 3·4
    # squares and sums; 90 maxima and roots.
    assert (found.matmul_flops, found.vector_flops) == (1080, 360 + 24 + 180)


@pytest.mark.parametrize("mode", ["use_mm_for_euclid_dist", "use_mm_for_euclid_dist_if_necessary"])
@pytest.mark.parametrize("points", [3, 25, 26])
def test_distances_count_as_the_ops_below_them(points: int, mode: str) -> None:
    many = torch.ones(2, points, 4)
    (node,) = roots(lambda: torch.cdist(many, X, compute_mode=mode))
    *_, below = (n for n in node.children if n.call.op in DISTANCES)
    product = below.call.op == "aten::_euclidean_dist"
    parts = [work for _, work in counted(below.children if product else [below])]

    whole = work_of(node.call)

    assert product == (points > 25 or mode == "use_mm_for_euclid_dist")
    assert whole is not None
    assert whole.vector_flops == sum(work.vector_flops for work in parts if work)
    assert whole.matmul_flops == sum(work.matmul_flops for work in parts if work)


@pytest.mark.parametrize(
    "run",
    [
        lambda: N + N,
        lambda: N * 2,
        lambda: N > 3,
        lambda: N // 2,
        lambda: ~(N > 3),
        lambda: N.abs(),
        lambda: N & N,
        lambda: N.clamp(0, 3),
        lambda: F.relu(N),
    ],
)
def test_integer_and_boolean_work_is_zero_flops_with_known_bytes(run: Callable[[], Any]) -> None:
    assert vector_flops(run) == 0


@pytest.mark.parametrize(
    ("run", "expected"),
    [(lambda: N * 0.5, 12), (lambda: N / 2, 12), (lambda: N**0.5, 12), (lambda: N + 0.5, 12)],
)
def test_integers_that_become_floating_point_count(run: Callable[[], Any], expected: int) -> None:
    assert vector_flops(run) == expected


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (F.relu, 12),  # keep the gradient or not
        (F.hardtanh, 12),
        (F.gelu, 24),  # derivative, product
        (F.silu, 24),
        (F.leaky_relu, 24),
        (torch.sigmoid, 36),  # g·y·(1 − y)
        (torch.tanh, 36),  # g·(1 − y²)
        (F.glu, 36),  # 6 of each of the 6 output elements
    ],
)
def test_backward_of_an_activation(function: Callable[..., Any], expected: int) -> None:
    x = X.clone().requires_grad_()
    y = function(x)

    assert vector_flops(lambda: y.backward(torch.ones_like(y))) == expected


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (lambda: torch._foreach_sqrt(LIST), 17),
        (lambda: torch._foreach_mul(LIST, 0.5), 17),
        (lambda: torch._foreach_add(LIST, LIST), 17),
        (lambda: torch._foreach_add(LIST, LIST, alpha=0.1), 34),
        (lambda: torch._foreach_add(LIST, 1), 17),
        (lambda: torch._foreach_lerp(LIST, LIST, 0.1), 51),
        (lambda: torch._foreach_addcmul(LIST, LIST, LIST), 34),
        # a + b/c of the first, a − 0.1·b/c of the other.
        (lambda: torch._foreach_addcdiv(LIST, LIST, LIST, [1.0, -0.1]), 12 * 2 + 5 * 3),
        (lambda: torch._foreach_norm(LIST), 34),  # squares, sum
        (lambda: torch._foreach_neg_([t.clone() for t in LIST]), 17),
    ],
)
def test_foreach_ops_count_every_element_of_their_lists(
    run: Callable[[], Any], expected: int
) -> None:
    assert vector_flops(run) == expected


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_quantising_and_dequantising_are_two_flops_each():
    assert vector_flops(lambda: torch.quantize_per_tensor(X, 0.1, 0, torch.qint8)) == 24
    back = torch.quantize_per_tensor(X, 0.1, 0, torch.qint8)
    assert vector_flops(back.dequantize) == 24


def test_without_values_an_unknown_alpha_is_a_bound():
    call = OpCall("aten::add", ((3, 4), (3, 4), ()), dtypes=("float32", "float32", "Scalar"))

    # 12 adds at least, 12 products more at most; two operands and a result of 48 B.
    assert work_of(call) == Work(vector_flops=12, min_bytes=144, flops_at_most=24)


@pytest.mark.filterwarnings("ignore:.*prototype")
def test_a_nested_tensor_is_left_to_the_ops_on_the_tensors_inside():
    nested = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)])

    # The outer relu has no shape; the inner one works on 6 + 12 elements.
    assert vector_flops(nested.relu) == 18


def test_without_shapes_nothing_is_determined():
    assert work_of(OpCall("aten::relu")) is None


def test_a_comparison_writes_booleans():
    call = OpCall("aten::gt", ((3, 4), ()), dtypes=("float16", "Scalar"), values=("", "0"))

    assert work_of(call) == Work(vector_flops=12, min_bytes=12 * 2 + 12)


def test_without_types_a_tensor_is_taken_for_floating_point():
    assert work_of(OpCall("aten::relu", ((3, 4),), itemsize=2)) == Work(0, 12, 48)


def test_broadcast_operands_are_read_once_and_the_result_written_in_full():
    call = OpCall("aten::mul", ((3, 1), (4,)), dtypes=("float32", "float32"))

    # 3 + 4 elements read, 3·4 written.
    assert work_of(call) == Work(vector_flops=12, min_bytes=(3 + 4 + 12) * 4)


def test_the_kind_is_what_the_formula_is_registered_as():
    assert kind_of("aten::relu") == "elementwise"
    assert kind_of("aten::_softmax") == "normalisation"
    assert kind_of("aten::sum") == "reduction"
    assert kind_of("aten::mse_loss") == "other"


sizes = st.lists(st.integers(1, 4), max_size=4)


@settings(deadline=None, max_examples=60)
@given(sizes, st.data())
def test_broadcast_is_torch_s(shape: list[int], data: st.DataObject) -> None:
    other = [data.draw(st.sampled_from([size, 1])) for size in shape]
    other = other[data.draw(st.integers(0, len(other))) :]

    expected = tuple(torch.broadcast_shapes(tuple(shape), tuple(other)))

    assert broadcast(tuple(shape), tuple(other)) == expected


KINDS = [torch.float16, torch.float32, torch.float64, torch.int64, torch.bool, torch.complex64]


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(KINDS), st.sampled_from(KINDS), st.booleans(), st.booleans())
def test_promotion_is_torch_s(a: torch.dtype, b: torch.dtype, a_sized: bool, b_sized: bool) -> None:
    shapes = ((2,) if a_sized else (), (2,) if b_sized else ())
    call = OpCall("aten::add", shapes, dtypes=(str(a)[6:], str(b)[6:]))
    expected = torch.result_type(torch.ones(shapes[0], dtype=a), torch.ones(shapes[1], dtype=b))

    found = compute_dtype(call, 2)

    # A 0-d tensor may be a number: then its kind alone counts, and the width is the default's.
    kinds = ("float", "complex", "int", "bool")
    assert [k for k in kinds if found.startswith(k)] == [k for k in kinds if k in str(expected)[6:]]
    if a_sized and b_sized and {a, b} != {torch.float64, torch.complex64}:
        assert found == str(expected)[6:]


def test_a_quantised_activation_does_no_floating_point_work():
    call = OpCall("aten::hardsigmoid", ((2, 4),), 1, ("quint8",))

    work = work_of(call)

    assert work == Work(vector_flops=0, min_bytes=2 * 4 + 2 * 4)  # a byte each, read and written
