"""Each op of per_element.csv that no other test here calls, against a count made by hand.

The lists below are this file's own: FLOPs for each element, and why, beside the ops. They were
grouped from the table and then gone through one by one: a slip of both is possible, a change of
one is not.
"""

from math import prod
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flopprof.formulas import Work
from flopprof.formulas.ops._elements import ops
from tests.formulas._calls import formula

# FLOPs per element of the result of one tensor.
UNARY = {
    1: """sgn~ floor~ round~ fix~ special_round frexp quantized::{relu6,threshold,hardswish}
        quantized::{leaky_relu,elu,celu,sigmoid,clamp} cummax cummin _cummax_helper _cummin_helper
        conj_physical~ _conj_physical negative~ isinf isposinf isneginf signbit angle
        exp2~ expm1~ log2~ log10~ log1p~ sin~ cos~ tan~ asin~ acos~ atan~ arcsin~ arccos~ arctan~
        sinh~ cosh~ asinh~ acosh~ atanh~ arcsinh~ arccosh~ arctanh~ erfc~ erfinv~ lgamma~ digamma~
        mvlgamma~ i0~ sinc~ log_sigmoid_forward rrelu_with_noise~ rrelu_with_noise_functional
        special_{airy_ai,bessel_j0,bessel_j1,bessel_y0,bessel_y1,digamma,psi,entr,erf,erfc,erfcx}
        special_{erfinv,exp2,expit,expm1,gammaln,i0,i0e,i1,i1e,log1p,log_ndtr,logit,ndtr,ndtri}
        special_{sinc,scaled_modified_bessel_k0,scaled_modified_bessel_k1,multigammaln}
        special_{modified_bessel_i0,modified_bessel_i1,modified_bessel_k0,modified_bessel_k1}
        special_spherical_bessel_j0 deg2rad~ rad2deg~ nansum amin nanmean linalg__powsum trace
        _is_all_true _is_any_true count_nonzero""",
    # A mask and a scale; a quotient and a shift; both extremes; a power and its sum.
    2: """_fused_dropout quantize_per_tensor_dynamic quantize_per_channel _aminmax frobenius_norm
        _choose_qparams_per_tensor""",
    # Mean, difference, square, sum; or maximum, difference, exp, sum.
    4: "std_mean special_logsumexp _logcumsumexp batch_norm_stats batch_norm_update_stats",
    # Maximum, difference, exp, sum; and a quotient, or a difference with the sum's logarithm.
    5: "_log_softmax special_softmax special_log_softmax _safe_softmax _masked_softmax",
    # Quotient, shift, two clamps, shift back, product.
    6: """fake_quantize_per_channel_affine fake_quantize_per_tensor_affine_cachemask
        fake_quantize_per_channel_affine_cachemask _fake_quantize_learnable_per_tensor_affine
        _fake_quantize_per_tensor_affine_cachemask_tensor_qparams
        _fake_quantize_learnable_per_channel_affine""",
    # These six, and both extremes.
    8: """fused_moving_avg_obs_fake_quant _fused_moving_avg_obs_fq_helper
        _fused_moving_avg_obs_fq_helper_functional""",
}
# FLOPs per element of what the leading tensors broadcast to.
BINARY = {
    1: """_prelu_kernel clamp_max~ minimum fmax fmin fmod~ remainder~ heaviside~
        quantized::{add,add_scalar,mul_scalar,mul} onednn::{qadd,qmul} hardshrink_backward
        softshrink_backward fake_quantize_per_tensor_affine_cachemask_backward
        fake_quantize_per_channel_affine_cachemask_backward multiply~ less~ less_equal~ greater~
        greater_equal~ logical_or~ logical_xor~ ne~ not_equal~ special_polygamma float_power~
        atan2~ arctan2~ hypot~ copysign~ logaddexp logaddexp2 xlogy~ nextafter~ ldexp~ igamma~
        igammac~ special_{xlogy,xlog1py,zeta,gammainc,gammaincc,chebyshev_polynomial_t}
        special_{chebyshev_polynomial_u,hermite_polynomial_h,chebyshev_polynomial_v}
        special_{chebyshev_polynomial_w,hermite_polynomial_he,laguerre_polynomial_l}
        special_legendre_polynomial_p divide~""",
    # The operation and a relu; a mask and a scale; a derivative and the gradient's product.
    2: """quantized::{add_relu,mul_relu,add_scalar_relu} onednn::qadd_relu _masked_scale
        native_dropout_backward mish_backward elu_backward hardswish_backward
        hardsigmoid_backward softplus_backward log_sigmoid_backward rrelu_with_noise_backward""",
    # g / (x · (1 − x)); two products and a difference.
    3: "cross logit_backward",
}
TERNARY = {
    4: "_prelu_kernel_backward huber_loss_backward",
    # (x − t) / (x · (1 − x)) · g: difference, difference, product, quotient, product.
    5: "binary_cross_entropy_backward soft_margin_loss_backward",
}
# FLOPs per element of the first tensor; the others are given too, of the same size.
FIRST = {
    0: """quantized_batch_norm quantized::batch_norm{,_relu,1d,1d_relu,2d,2d_relu,3d,3d_relu}
        onednn::qbatch_norm2d argsort msort nanmedian mode kthvalue unique_dim _unique
        unique_consecutive unique_dim_consecutive nonzero_numpy nonzero_static argwhere
        torchvision::qnms isin searchsorted""",  # integers; comparisons, which the values decide
    1: """_foreach_max _foreach_{abs,acos,asin,atan,ceil,cos,cosh,erf,erfc,exp,expm1,floor,frac}~
        _foreach_{lgamma,log,log10,log1p,log2,reciprocal,round,rsqrt,sigmoid,sign,sin,sinh,tan}~
        _foreach_{tanh,trunc,div,maximum,minimum,clamp_max,clamp_min,pow}~ unfold_backward
        max_pool3d_with_indices_backward max_pool2d_backward mkldnn_max_pool{2,3}d_backward
        adaptive_max_pool3d_backward fractional_max_pool{2,3}d_backward
        reflection_pad{1,3}d_backward replication_pad{1,2,3}d_backward cummaxmin_backward""",
    # A power and its sum; a check and a scale; a scale and a shift into which a mean was folded.
    2: """_foreach_powsum _amp_foreach_non_finite_check_and_unscale~ _batch_norm_no_update
        _native_batch_norm_legit_no_training""",
    3: "_weight_norm_interface",  # square, sum, scale
    4: "_masked_softmax_backward batch_norm_elemt _fused_rms_norm",  # … with weight (and bias)
    5: "batch_norm_backward_reduce _weight_norm_interface_backward",
    6: "batch_norm_backward_elemt",
    # Mean, difference, square, sum, scale; weight; bias.
    7: "native_group_norm _batch_norm_with_update _batch_norm_with_update_functional",
    9: "cudnn_batch_norm_backward miopen_batch_norm_backward",
}


def of(op: str, *shapes: Any, **more: str) -> Work:
    work = formula(op, *shapes, **more)
    assert work is not None
    return work


EVERY = [
    (name, flops, operands)
    for operands, table in ((1, UNARY), (2, BINARY), (3, TERNARY), (0, FIRST))
    for flops, names in table.items()
    for name in ops(names)
]
LISTS = ("aten::_foreach_", "aten::_amp_foreach_")


@given(choice=st.sampled_from(EVERY), rows=st.integers(1, 9), columns=st.integers(2, 9))
@settings(max_examples=1000, deadline=None)
def test_so_many_flops_for_each_element(
    choice: tuple[str, int, int], rows: int, columns: int
) -> None:
    name, each, operands = choice
    whole, row = (rows, columns), (columns,)
    shapes: list[Any] = [whole, row, whole][: operands or 3] if operands else [whole] * 3
    if name.startswith(LISTS):
        shapes = [(whole, row)] * 3
    elements = rows * columns + (columns if name.startswith(LISTS) else 0)

    work = of(name, *shapes)

    assert (work.matmul_flops, work.vector_flops) == (0, each * elements)


@pytest.mark.parametrize(("name", "each", "operands"), EVERY)
def test_each_of_them_once(name: str, each: int, operands: int) -> None:
    shape: Any = ((2, 3),) if name.startswith(LISTS) else (2, 3)

    assert of(name, shape, shape, shape).vector_flops == each * 6


# Leading terms, of two 6 × 6 matrices: n = 6, n³ = 216.
SQUARE = {
    72: "linalg_cholesky_ex linalg_ldl_factor linalg_ldl_factor_ex",  # n³/3
    144: """linalg_lu_factor_ex linalg_lu _lu_with_info _linalg_det det linalg_slogdet
        _linalg_slogdet slogdet logdet cholesky_inverse""",  # 2n³/3
    432: "linalg_inv_ex inverse",  # 2n³
    1944: "_linalg_eigh",  # 9n³, with the vectors
    2160: "linalg_eigvals _linalg_eigvals",  # 10n³
    5400: "linalg_eig",  # 25n³
}


@pytest.mark.parametrize(
    ("name", "flops"), [(name, n) for n, names in SQUARE.items() for name in ops(names)]
)
def test_factorisations_count_their_leading_term(name: str, flops: int) -> None:
    assert of(name, (2, 6, 6)).vector_flops == 2 * flops


def test_factorisations_of_tall_matrices() -> None:
    # m = 9, n = 6: 2n²(m − n/3) = 72 · 7 = 504; 14mn² + 8n³ = 4536 + 1728 = 6264;
    # without vectors 4mn² − 4n³/3 = 1296 − 288 = 1008, and of a symmetric one 4n³/3 = 288.
    for name in ops("geqrf linalg_householder_product orgqr"):
        assert of(name, (9, 6)).vector_flops == 504
    assert of("aten::_linalg_svd", (9, 6)).vector_flops == 6264
    without = of("aten::_linalg_svd", (9, 6), None, None, _2="False")
    assert without.vector_flops == 1008
    assert of("aten::_linalg_eigh", (6, 6), None, None, _2="False").vector_flops == 288


def test_bits_and_integers_are_no_floating_point_work() -> None:
    names = """gcd~ lcm~ bitwise_{and,or,xor,left_shift,right_shift}~ __{or,xor,lshift,rshift}__
        __i{and,or,xor,lshift,rshift}__"""
    for name in ops(names):
        assert of(name, (2, 3), (2, 3), dtypes="int64").vector_flops == 0


def test_gathered_statistics_count_per_process_and_channel() -> None:
    # Of 4 processes and 8 channels: variance 3, difference, mean 3, squares 4, two weights.
    for name in ops("batch_norm_gather_stats batch_norm_gather_stats_with_counts"):
        assert of(name, (2, 8, 5), (4, 8), (4, 8)).vector_flops == 13 * prod((4, 8))


def test_norm_is_a_power_and_a_sum_and_cumprod_one_product() -> None:
    assert of("aten::norm", (3, 4), None).vector_flops == 2 * 12
    assert of("aten::cumprod", (3, 4)).vector_flops == 12
    assert of("aten::cumprod_", (3, 4), dtypes="complex64").vector_flops == 6 * 12


def test_no_op_is_listed_twice() -> None:
    assert len({name for name, *_ in EVERY}) == len(EVERY)


# Three that have formulas of their own.


def test_distances_backwards_take_four_operations_per_pair_and_coordinate() -> None:
    # 5 × 7 pairs in 3 dimensions: subtract, divide, multiply, add.
    shapes = ((5, 7), (5, 3), (7, 3), None, (5, 7))
    assert of("aten::_cdist_backward", *shapes).vector_flops == 4 * 35 * 3


@pytest.mark.parametrize(("op", "mode", "each"), [("2d", 0, 22), ("2d", 1, 1), ("3d", 0, 61)])
def test_grid_sampling_backwards(op: str, mode: int, each: int) -> None:
    # Per gradient, in the plane: 4 taps × 2, and per axis 2 differences, 3 of a lerp, 2: 8 + 14.
    # In space: 8 taps × 2, and per axis 4 differences, 9 of a bilinear, 2: 16 + 45.
    space = (4,) * int(op[0])
    shapes = ((2, 3, *space), (2, 3, *space), (2, *space, int(op[0])), None)
    work = of(f"aten::grid_sampler_{op}_backward", *shapes, _3=str(mode))
    assert work.vector_flops == each * prod((2, 3, *space))


def test_reflections_applied_to_a_matrix() -> None:
    # k = 4 reflections of 9 rows, applied to 9 × 5: 2nk(2m − k) = 2·5·4·(18 − 4).
    assert of("aten::ormqr", (9, 4), (4,), (9, 5)).vector_flops == 2 * 5 * 4 * 14
