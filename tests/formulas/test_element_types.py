"""The type that an op computes in: by its arguments, its `dtype`, its output, its lists."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional

from flopprof.formulas import OpCall
from tests.formulas._calls import formula, total
from tests.formulas._walk import vector_flops, work_of

INTEGERS = torch.ones(4, 5, dtype=torch.int64)
BOOLEANS = torch.ones(4, 5, dtype=torch.bool)
REAL = torch.full((4, 5), 0.5)
COMPLEX = torch.full((4, 5), 0.5 + 0.5j)
N = 20


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        # Integers that are rounded stay integers; without rounding their quotient is real.
        (lambda: torch.div(INTEGERS, 2, rounding_mode="floor"), 0),
        (lambda: torch.div(INTEGERS, INTEGERS, rounding_mode="trunc"), 0),
        (lambda: INTEGERS.clone().div_(2, rounding_mode="floor"), 0),
        (lambda: INTEGERS // 2, 0),
        (lambda: torch.div(INTEGERS, 2), N),
        (lambda: torch.div(INTEGERS, 2.5, rounding_mode="floor"), N),
        (lambda: torch.div(REAL, 2, rounding_mode="floor"), N),
        # A reduction computes in the type that `dtype`, or its output, asks for.
        (lambda: INTEGERS.sum(), 0),
        (lambda: BOOLEANS.sum(), 0),
        (lambda: INTEGERS.sum(dtype=torch.float32), N),
        (lambda: INTEGERS.sum(0, dtype=torch.float64), N),
        (lambda: BOOLEANS.sum(1, dtype=torch.float32), N),
        (lambda: INTEGERS.sum(dtype=torch.complex64), 2 * N),
        (lambda: REAL.sum(dtype=torch.int64), 0),
        (lambda: torch.sum(INTEGERS, 0, out=torch.empty(5)), N),
        (lambda: INTEGERS.mean(dtype=torch.float32), N),
        (lambda: INTEGERS.mean(1, dtype=torch.float32), N),
        (lambda: INTEGERS.prod(dtype=torch.float32), N),
        (lambda: INTEGERS.prod(1, dtype=torch.float32), N),
        (lambda: INTEGERS.nansum(dtype=torch.float32), N),
        (lambda: INTEGERS.cumsum(0, dtype=torch.float32), N),
        (lambda: INTEGERS.cumsum(0), 0),
        (lambda: INTEGERS.cumprod(0, dtype=torch.float32), N),
        (lambda: INTEGERS.softmax(1, dtype=torch.float32), 5 * N),
        (lambda: INTEGERS.log_softmax(1, dtype=torch.float32), 5 * N),
        (lambda: torch.linalg.vector_norm(REAL, dtype=torch.float64), 2 * N),
        # What integers are compared, clamped or combined with decides as well.
        (lambda: INTEGERS + INTEGERS, 0),
        (lambda: INTEGERS * 2, 0),
        (lambda: INTEGERS * 0.5, N),
        (lambda: INTEGERS < 3, 0),
        (lambda: INTEGERS.clamp(0, 3), 0),
        (lambda: torch.equal(INTEGERS, INTEGERS), 0),
        (lambda: torch.dist(INTEGERS.float(), REAL), 3 * N),
        (lambda: functional.l1_loss(INTEGERS, INTEGERS, reduction="sum"), 0),
        (lambda: torch.zeros(4, 5).scatter_add_(0, INTEGERS - 1, REAL), N),
        (lambda: torch.zeros(5, dtype=torch.int64).index_add_(0, INTEGERS[0], INTEGERS[0]), 0),
    ],
)  # fmt: skip
def test_the_type_computed_in_decides_whether_work_counts(
    run: Callable[[], Any], expected: int
) -> None:
    assert vector_flops(run) == expected


@pytest.mark.parametrize(
    ("run", "each"),
    [
        (lambda z: z + z, 2),
        (lambda z: torch.add(z, z, alpha=2), 4),  # a real factor: two products
        (lambda z: torch.add(z, z, alpha=2j), 8),  # a complex one: six operations
        (lambda z: z * z, 6),
        (lambda z: z / z, 11),
        (lambda z: torch.addcmul(z, z, z), 8),
        (lambda z: torch.addcdiv(z, z, z), 13),
        (lambda z: z.exp(), 5),  # exp, cos, sin, two products
        (lambda z: z.log(), 6),  # |z| 4, log; atan2
        (lambda z: z.log1p(), 7),
        (lambda z: z.sqrt(), 9),  # |z| 4, add, halve, root; double, divide
        (lambda z: z.sin(), 6),  # four functions, two products
        (lambda z: z.cos(), 7),  # and a sign
        (lambda z: z.tanh(), 9),  # two doublings, four functions, a sum, two quotients
        (lambda z: z.sigmoid(), 14),  # −z 2, exp 5, 1 + 1, reciprocal 6
        (lambda z: functional.silu(z), 20),
        (lambda z: z**3, 17),  # exp 5 of (w·log z): 6 + 6
        (lambda z: z.sgn(), 6),  # |z| 4, two quotients
        (lambda z: torch.equal(z, z), 2),
        (lambda z: z.sum(), 2),
        (lambda z: z.logsumexp(0), 10),  # maximum 1, subtract 2, exp 5, sum 2
        # d = x − y 2, |d| 4, mean of real numbers 1
        (lambda z: functional.l1_loss(z, z), 7),
        (lambda z: torch.isnan(z), 2),
    ],
)  # fmt: skip
def test_complex_numbers_count_the_operations_of_their_definition(
    run: Callable[[torch.Tensor], Any], each: int
) -> None:
    assert vector_flops(lambda: run(COMPLEX)) == each * N


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (lambda: torch._foreach_add([INTEGERS], 1), 0),
        (lambda: torch._foreach_mul([INTEGERS], 3), 0),
        (lambda: torch._foreach_add([REAL], 1), N),
        (lambda: torch._foreach_mul([COMPLEX], 2), 6 * N),
        (lambda: torch._foreach_add([COMPLEX], [COMPLEX]), 2 * N),
        (lambda: torch._foreach_sqrt([INTEGERS]), N),
        (lambda: torch._foreach_div([INTEGERS], [2]), N),
    ],
)  # fmt: skip
def test_lists_of_tensors_count_by_the_ops_on_each(run: Callable[[], Any], expected: int) -> None:
    assert vector_flops(run) == expected


def test_a_list_whose_type_nothing_tells_is_bounded_never_taken_for_real():
    call = OpCall(
        "aten::_foreach_mul_", (((4, 5), (2,)), ()), dtypes=("TensorList", "Scalar"),
        values=("", "2"),
    )  # fmt: skip

    work = work_of(call)

    # 22 elements: none if they are integers, six products and sums each if complex.
    assert work is not None
    assert (work.vector_flops, work.flops_at_most) == (0, 6 * 22)


def test_a_root_of_integers_is_real_so_a_list_of_them_counts_at_least_one_each():
    call = OpCall("aten::_foreach_sqrt", (((4, 5),),), dtypes=("TensorList",), values=("",))

    work = work_of(call)

    assert work is not None
    assert (work.vector_flops, work.flops_at_most) == (20, 9 * 20)


def test_a_list_is_exact_where_its_type_is_known():
    each = {"int64": 0, "float16": 1, "complex64": 6}

    for dtype, flops in each.items():
        work = formula("aten::_foreach_mul", ((4, 5),), None, dtypes=dtype)
        assert work is not None
        assert work.vector_flops == flops * 20
        assert work.flops_at_most is None


def test_integers_with_a_number_that_is_not_recorded_are_bounded():
    # Traces before Concrete Inputs: the number may be 2 or 0.5.
    call = OpCall("aten::mul", ((4, 5), ()), dtypes=("int64", ""))
    in_place = OpCall("aten::mul_", ((4, 5), ()), dtypes=("int64", ""))
    tensors = OpCall("aten::mul", ((4, 5), (4, 5)), dtypes=("int64", "int64"))
    summed = OpCall("aten::sum", ((4, 5), ()), dtypes=("int64", ""))

    assert [(w.vector_flops, w.flops_at_most) for w in map(work_of, (call, summed)) if w] == [
        (0, 20),
        (0, 20),
    ]
    assert [(w.vector_flops, w.flops_at_most) for w in map(work_of, (in_place, tensors)) if w] == [
        (0, None),
        (0, None),
    ]


def test_backward_of_a_bilinear_layer_is_counted():
    layer = torch.nn.Bilinear(4, 5, 3)
    x, y = torch.ones(2, 4, requires_grad=True), torch.ones(2, 5, requires_grad=True)

    matmul, vector = total(lambda: layer(x, y).sum().backward())

    # Forward: 2 rows × 3 outputs × (4·5 + 5) multiply-adds = 150, 6 adds of the bias, 6 of the sum.
    # Backward: the gradient of each of x, y and W [3, 4, 5] sums the product of the other two and
    # of g [2, 3] over the axes that it has not: 2·3·4·5 = 120 multiply-adds each.
    assert matmul == 2 * (150 + 3 * 120)
    # Each output's part by itself, multiplied by its g first, added up afterwards. x: g·W 2·4·5,
    # sum 2·4; y: g·(x·W) 2·5, sum 2·5; W: g·x 2·4, sum 4·5. The bias: 2·3 adds.
    assert vector == 6 + 6 + 6 + 3 * (40 + 8 + 10 + 10 + 8 + 20)


def test_backward_of_a_bilinear_layer_counts_the_gradients_that_are_wanted():
    layer = torch.nn.Bilinear(4, 5, 3)
    x, y = torch.ones(2, 4), torch.ones(2, 5)

    matmul, _ = total(lambda: layer(x, y).sum().backward())

    # As above, of W alone.
    assert matmul == 2 * (150 + 120)
