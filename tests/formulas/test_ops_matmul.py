"""Formulas of products of matrices and vectors, dense, grouped, quantised and sparse."""

from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F  # noqa: N812  # its usual name

from flopprof.formulas import OP_FORMULAS, OpCall, Work, kind_of, load_op_formulas
from flopprof.formulas.ops._shapes import PLACES
from tests.formulas._calls import formula, is_op, ones, outermost, places, torch_counts, total

A, B = (4, 5), (5, 6)
HALF = "bfloat16"


@pytest.mark.parametrize(
    ("op", "shapes", "expected"),
    [
        # 4·6 = 24 outputs × 5 multiply-adds = 120; 4·(20 + 30 + 24) bytes, a bias of 6 or 24 more.
        ("aten::mm", (A, B), Work(240, 0, 296)),
        ("aten::matmul", (A, B), Work(240, 0, 296)),
        ("aten::linear", (A, (6, 5), None), Work(240, 0, 296)),
        ("aten::linear", (A, (6, 5), (6,)), Work(240, 24, 320)),
        ("aten::addmm", ((6,), A, B, None, None), Work(240, 24, 320)),
        ("aten::addmm_", ((4, 6), A, B, None, None), Work(240, 24, 392)),
        ("aten::_addmm_activation", ((6,), A, B, None, None, None), Work(240, 48, 320)),
        ("mkl::_mkl_linear", (A, (99,), (6, 5), (6,), None), Work(240, 24, 320)),
        # Three of them.
        ("aten::bmm", ((3, *A), (3, *B)), Work(720, 0, 888)),
        ("aten::baddbmm", ((3, 4, 6), (3, *A), (3, *B), None, None), Work(720, 72, 1176)),
        # … added up: the sum over three belongs to the product; 4·(24 + 60 + 90 + 24) bytes.
        ("aten::addbmm", ((4, 6), (3, *A), (3, *B), None, None), Work(720, 24, 792)),
        # 4 outputs × 5; 4·(20 + 5 + 4) bytes.
        ("aten::mv", (A, (5,)), Work(40, 0, 116)),
        ("aten::addmv", ((4,), A, (5,), None, None), Work(40, 4, 132)),
        ("aten::dot", ((5,), (5,)), Work(10, 0, 44)),
        ("aten::linalg_vecdot", (A, A, None), Work(40, 0, 176)),
        ("aten::inner", (A, (6, 5)), Work(240, 0, 296)),
        ("aten::inner", ((), A), None),
        # 4·5 outputs: a product and an add each.
        ("aten::addr", (A, (4,), (5,), None, None), Work(0, 40, 196)),
        # 4·2 rows: 3 × 5 multiply-adds with x₁ for each of 2 outputs, then 5 with x₂.
        ("aten::bilinear", ((4, 3), (4, 5), (2, 3, 5), (2,)), Work(2 * 8 * 20, 8, 288)),
    ],
)
def test_products(op, shapes, expected):
    assert formula(op, *shapes) == expected


@pytest.mark.parametrize(
    ("beta", "alpha", "flops", "with_bias"),
    [("1", "1", 1, 1), ("0", "1", 0, 0), ("1", "2", 2, 1), ("0.5", "2", 3, 1), ("0", "2", 1, 0)],
)
def test_factors_of_bias_and_product_are_one_flop_each(beta, alpha, flops, with_bias):
    expected = Work(240, 24 * flops, 296 + 24 * with_bias)

    plain = formula("aten::addmm", (6,), A, B, None, None, _3=beta, _4=alpha)
    typed = formula("aten::addmm", (6,), A, B, *[None] * 3, _3="6", _4=beta, _5=alpha)

    assert plain == typed == expected


def test_complex_and_integer_products():
    # 8 per multiply-add, 2 per add, elements of 8 bytes; integers add nothing to the vector class.
    wanted = (6,), A, B, None, None

    assert formula("aten::addmm", *wanted, dtypes="complex64") == Work(960, 48, 640)
    assert formula("aten::addmm", *wanted, dtypes="int64") == Work(240, 0, 640)
    # int8 in, int32 out: 20 + 30 + 4·24 bytes.
    assert formula("aten::_int_mm", A, B, dtypes="int8") == Work(240, 0, 146)


def test_a_result_type_decides_the_bytes_written():
    # bf16 in, float32 out: 2·(20 + 30) + 4·24.
    assert formula("aten::mm", A, B, None, dtypes=HALF, _2="6") == Work(240, 0, 196)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((5,), (5,)),
        ((5,), (5, 6)),
        ((4, 5), (5,)),
        ((2, 4, 5), (5, 6)),
        ((2, 4, 5), (5,)),
        ((5,), (2, 5, 6)),
        ((4, 5), (2, 5, 6)),
        ((3, 1, 4, 5), (2, 5, 6)),
        ((2, 0, 5), (5, 6)),
    ],
)
def test_matmul_of_any_dimensions_sums_to_its_multiply_adds(a, b):
    x, y = torch.ones(a), torch.ones(b)

    op, work = outermost(lambda: x @ y) if 0 not in a else ("aten::matmul", Work())

    assert op == "aten::matmul"
    assert work is not None
    assert work.matmul_flops == 2 * (x @ y).sum()
    assert formula("aten::matmul", a, b) is not None


CASES = [
    lambda: F.linear(ones(2, 3, 5), ones(6, 5), ones(6)),
    lambda: F.linear(ones(5), ones(6, 5)),
    lambda: torch.einsum("bij,bjk->bik", ones(3, 4, 5), ones(3, 5, 6)),
    lambda: torch.einsum("ij,jk,kl->il", ones(2, 3), ones(3, 4), ones(4, 5)),
    lambda: torch.einsum("bhqd,bhkd->bhqk", ones(1, 2, 3, 4), ones(1, 2, 5, 4)),
    lambda: torch.tensordot(ones(2, 3, 4), ones(4, 3, 5), ([1, 2], [1, 0])),
    lambda: torch.chain_matmul(ones(2, 3), ones(3, 4), ones(4, 5)),
    lambda: torch.linalg.multi_dot([ones(2, 3), ones(3, 4), ones(4, 5)]),
    lambda: torch.addmm(ones(6), ones(4, 5), ones(5, 6)),
    lambda: torch.baddbmm(ones(6), ones(3, 4, 5), ones(3, 5, 6)),
    lambda: nn.Linear(5, 6)(ones(4, 5)).sum().backward(),
    lambda: (ones(3, 4, 5) @ ones(5, 6)).sum().backward(),
]


@pytest.mark.filterwarnings("ignore:.*chain_matmul is deprecated")
@pytest.mark.parametrize("run", CASES)
def test_real_products_agree_with_pytorchs_counter(run):
    matmul, _ = total(run)

    assert matmul == torch_counts(run) > 0


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (lambda: torch.mv(ones(4, 5), ones(5)), (40, 0)),
        (lambda: torch.dot(ones(5), ones(5)), (10, 0)),
        (lambda: torch.vdot(ones(5), ones(5)), (10, 0)),
        (lambda: torch.inner(ones(4, 5), ones(6, 5)), (240, 0)),
        (lambda: torch.addmv(ones(4), ones(4, 5), ones(5), alpha=3), (40, 8)),
        (lambda: torch.addr(ones(4, 5), ones(4), ones(5)), (0, 40)),
        (lambda: torch._int_mm(torch.ones(32, 8).char(), torch.ones(8, 4).char()), (2048, 0)),
        # 5 rows × 2 outputs × (3·4 + 4) multiply-adds; 10 bias adds.
        (lambda: nn.Bilinear(3, 4, 2)(ones(5, 3), ones(5, 4)), (320, 10)),
        # An axis of one is broadcast: the other's 3 are summed first, 2·3·4 FLOPs.
        (lambda: torch.tensordot(ones(2, 1), ones(3, 4), ([1], [0])), (2 * 2 * 4, 12)),
    ],
)
def test_products_that_pytorchs_counter_leaves_out(run, expected):
    assert total(run) == expected


def test_einsum_without_its_equation_is_left_to_the_ops_below():
    assert formula("aten::einsum", None, (A, B), None) is None
    assert outermost(lambda: torch.einsum("ij,jk->ik", ones(4, 5), ones(5, 6)))[0] == "aten::bmm"


@pytest.mark.parametrize(
    ("a", "b", "bytes_moved", "outputs"),
    [
        # Rows by group: 8·12 outputs; bf16: 2·(8·16 + 3·16·12 + 96).
        ((8, 16), (3, 16, 12), 1600, 96),
        # Columns by group: the same 8·12 outputs, with three times a.
        ((3, 8, 16), (16, 12), 1344, 96),
        # The sum by group: 2·(8·16 + 16·12 + 3·96).
        ((8, 16), (16, 12), 1216, 96),
        # All of equal size: three products.
        ((3, 8, 16), (3, 16, 12), 2496, 288),
    ],
)
def test_grouped_products(a, b, bytes_moved, outputs):
    work = formula("aten::_grouped_mm", a, b, (3,), None, None, dtypes=HALF)

    assert work == Work(2 * outputs * 16, 0, bytes_moved)


def test_a_real_grouped_product_counts_the_same_as_the_products_below():
    x, w = torch.ones(8, 16).bfloat16(), torch.ones(3, 16, 8).bfloat16()
    ends = torch.tensor([2, 5, 8], dtype=torch.int32)

    op, work = outermost(lambda: torch._grouped_mm(x, w, ends))

    assert op == "aten::_grouped_mm"
    assert work is not None
    assert work.matmul_flops == torch_counts(lambda: [x[:2] @ w[0], x[2:5] @ w[1], x[5:] @ w[2]])


def test_a_scaled_product_has_a_scale_per_output():
    args = (16, 32), (32, 8), (), (), (8,), None, None, None
    types = ["float8_e4m3fn"] * 2 + ["float32"] * 2 + ["bfloat16", "", "Scalar", "Scalar"]
    # 128 outputs × 32; a scale and a bias each. 512 + 256 of one byte, 8 + 128 of two.
    assert formula("aten::_scaled_mm", *args, dtypes=types, _6="15") == Work(8192, 256, 1040)
    # FP4 packs two elements of the sum in one byte: twice the multiply-adds.
    types[:2] = ["float4_e2m1fn_x2"] * 2
    assert formula("aten::_scaled_mm", *args, dtypes=types, _6="15") == Work(16384, 256, 1040)


def test_arguments_are_where_the_schemas_have_them():
    present = [op for row in PLACES["scaled"] if is_op(op := f"aten::{row['ops'].strip('~')}")]
    assert "aten::_scaled_mm" in present
    for row in PLACES["scaled"]:
        op = f"aten::{row['ops'].strip('~')}"
        if op not in present:
            continue
        first, bias, result, ends = places(op, "mat1|self", "bias|self", "out_dtype", "offs")
        bias = bias if "addmm" in op or bias else 99
        assert [first, bias, result, ends] == [
            row[name] for name in ("first", "bias", "result_type", "ends")
        ], op
    packed = {
        "mkl::_mkl_linear": ("ORI_W", "B", "other"),
        "onednn::qlinear_pointwise": ("qw", "bias", "other"),
    }
    rows = [r for r in PLACES["packed_linear"] if r["ops"] in packed and "arguments" not in r]
    assert len(rows) == 2
    for row in rows:
        found = places(row["ops"], *packed[row["ops"]])
        assert found == [row["weight"], row["bias"], row["other"]]


def test_quantised_weights():
    # 4·8 = 32 outputs × 16; x in bf16, 8-bit weights, a scale per output.
    types = ["bfloat16", "int8", "bfloat16"]
    work = formula("aten::_weight_int8pack_mm", (4, 16), (8, 16), (8,), dtypes=types)
    assert work == Work(1024, 32, 2 * 64 + 128 + 2 * 8 + 2 * 32)
    # 4-bit: 4·16 = 64 outputs × 32; 16·32 weights are shifted and scaled.
    types = ["bfloat16", "uint8", "Scalar", "bfloat16"]
    op = "aten::_weight_int4pack_mm_for_cpu"
    work = formula(op, (4, 32), (16, 16), None, (1, 16, 2), dtypes=types)
    assert work == Work(4096, 1024, 2 * 128 + 256 + 2 * 32 + 2 * 64)
    op, packed = "aten::_dyn_quant_matmul_4bit", ((4, 64), (528,), None, None, None)
    work = formula(op, *packed, _2="64", _3="64", _4="16")
    assert work == Work(2 * 4 * 64 * 16, 0, 4 * (256 + 528 + 64))
    assert formula(op, *packed) is None


def test_a_real_quantised_linear_of_onednn():
    onednn = torch.ops.onednn
    w = onednn.qlinear_prepack(torch.ones(8, 16, dtype=torch.int8), [4, 16])
    x, zero = torch.ones(4, 16, dtype=torch.uint8), torch.zeros(8, dtype=torch.int64)
    result: Any = torch.zeros(8), 1.0, 0, torch.float32, "none", [], ""

    op, work = outermost(
        lambda: onednn.qlinear_pointwise(x, 1.0, 0, w, torch.ones(8), zero, *result)
    )

    # 32 outputs × 16, and their biases; 64 + 128 of one byte, 8 + 32 of four.
    assert (op, work) == ("onednn::qlinear_pointwise", Work(1024, 32, 352))


def test_a_quantised_linear_with_a_second_operand_is_one_flop_more():
    shapes = [(4, 16), None, None, (16, 8), (8,), (8,), (4, 8), (8,), *[None] * 10]

    # 32 outputs × 16; the operand and the bias; all of four bytes: 64 + 128 + 32 + 8 + 32.
    work = formula("onednn::qlinear_pointwise", *shapes)

    assert work == Work(1024, 64, 4 * 264)


def test_linears_of_compiled_models():
    mkldnn = torch.ops.mkldnn
    x, w, b = torch.ones(4, 16), torch.ones(8, 16).to_mkldnn(), torch.zeros(8)

    plain = total(lambda: mkldnn._linear_pointwise(x, w, b, "relu", [], ""))
    added = total(lambda: mkldnn._linear_pointwise.binary(x, torch.ones(4, 8), w, b, "add"))

    assert (plain, added) == ((1024, 32), (1024, 64))
    assert total(lambda: torch._C._nn.mkldnn_linear(x.to_mkldnn(), torch.ones(8, 16), None)) == (
        1024,
        0,
    )


@pytest.mark.parametrize("op", ["linear", "linear_dynamic", "linear_relu", "conv2d", "conv1d_relu"])
def test_packed_weights_leave_no_trace_and_are_unknown_products(op):
    assert formula(f"quantized::{op}", (3, 8), None, None) is None
    assert kind_of(f"quantized::{op}") == ("matmul" if "linear" in op else "convolution")


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        # x [4, 5], grad [4, 6], weight [6, 5]: 120 multiply-adds each; 24 adds.
        ("[True, True, True]", Work(480, 24, 4 * (24 + 20 + 30 + 20 + 30 + 6))),
        ("[False, True, False]", Work(240, 0, 4 * (24 + 20 + 30))),
        ("", None),
    ],
)
def test_linear_backward(mask, expected):
    assert formula("aten::linear_backward", A, (4, 6), (6, 5), None, _3=mask) == expected


def test_semi_structured_products_count_the_stored_half():
    # [8, 16] with 8 of 16 stored, @ [16, 4]: 8·8·4 = 256 multiply-adds; 8·4 = 32 outputs.
    meta = (8, 1)
    types = [HALF, "int16", HALF, "", "", ""]
    work = formula("aten::_sparse_semi_structured_mm", (8, 8), meta, (16, 4), None, dtypes=types)
    assert work == Work(512, 0, 2 * (64 + 8 + 64 + 32))
    op = "aten::_sparse_semi_structured_linear"
    work = formula(op, (2, 2, 16), (8, 8), meta, (8,), dtypes=[HALF, HALF, "int16", HALF])
    assert work == Work(512, 32, 2 * (64 + 64 + 8 + 8 + 32))
    # cuSPARSELt: 9/16 of 128 elements are stored.
    work = formula("aten::_cslt_sparse_mm", (72,), (16, 4), None, None, dtypes=HALF)
    assert work == Work(512, 0, 2 * (72 + 64 + 32))


def test_sparse_operands_have_no_strides_and_bound_the_product():
    load_op_formulas()
    dense, sparse = ((6, 1), (5, 1), (6, 1)), ((6, 1), (), (6, 1))
    shapes = ((4, 6), A, B)

    def work(op, strides, first=0):
        return OP_FORMULAS.require(op)(
            OpCall(op, shapes[first:], 4, ("float32",) * 3, strides=strides[first:])
        )

    # Dense: 240 + 24 bias adds. Sparse: nothing is certain, and at most all of it.
    assert work("aten::addmm", dense) == Work(240, 24, 392)
    assert work("aten::addmm", sparse) == Work(0, 0, 392, flops_at_most=264)
    for op in ("aten::mm", "aten::matmul", "aten::bmm"):
        assert work(op, sparse, 1) == Work(0, 0, 296, flops_at_most=240)
    assert work("aten::linear", sparse, 1).flops_at_most is not None
    assert work("aten::linear", sparse[::-1]).flops_at_most is not None


def test_calls_without_shapes_are_not_determined():
    load_op_formulas()
    names = [n for n, f in OP_FORMULAS.items() if f.kind in FAMILIES]

    assert len(names) > 150
    assert all(OP_FORMULAS.require(name)(OpCall(name)) is None for name in names)


FAMILIES = ("convolution", "matmul", "attention", "recurrent")
sizes = st.integers(0, 3)


@settings(max_examples=40, deadline=None)
@given(sizes, sizes, sizes, sizes)
def test_the_formula_agrees_with_loops_over_batch_rows_columns_and_depth(batch, m, k, n):
    multiply_adds = sum(1 for _ in product(range(batch), range(m), range(n), range(k)))

    for op in ("aten::bmm", "aten::matmul"):
        work = formula(op, (batch, m, k), (batch, k, n))
        assert work is not None
        assert work.matmul_flops == 2 * multiply_adds


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=3), st.data())
def test_tensordot_of_ones_sums_to_its_multiply_adds(summed, data):
    free_a = data.draw(st.lists(st.integers(1, 3), max_size=2))
    free_b = data.draw(st.lists(st.integers(1, 3), max_size=2))
    a, b, count = [*free_a, *summed], [*summed, *free_b], len(summed)
    axes = list(range(len(free_a), len(a))), list(range(count))
    expected = 2 * torch.tensordot(torch.ones(a), torch.ones(b), axes).sum()

    values = {"_2": str(axes[0]), "_3": str(axes[1])}
    work = formula("aten::tensordot", tuple(a), tuple(b), None, None, **values)

    assert work is not None
    assert work.matmul_flops == expected


def test_a_pseudo_inverse_is_a_decomposition_and_a_product():
    matrix = torch.randn(6, 4)

    matmul, _ = total(lambda: torch.linalg.pinv(matrix))

    # U [6, 4], S, V [4, 4]: V·S⁻¹ is elementwise, (V·S⁻¹)·Uᵀ has 4·6 sums of 4.
    assert matmul == 2 * 4 * 6 * 4


@pytest.mark.parametrize(("norm", "products"), [(1e-3, 2), (0.5, 3)])
def test_an_exponential_of_a_matrix_counts_its_products(norm, products):
    matrix = norm * torch.eye(5)

    matmul, _ = total(lambda: torch.linalg.matrix_exp(matrix))

    # Taylor's polynomial of degree 4 takes two products of 5×5, that of degree 8 three.
    assert matmul == products * 2 * 125
