"""Formulas of elementwise ops.

A function of one argument is one FLOP per element, an activation too, whatever its definition
(ARCHITECTURE.md, "Counting rules"); so is a function of two (pow, atan2, …), a maximum, a
comparison. On integers and booleans they are none.
"""

from math import prod

from flopprof import dtypes
from flopprof.formulas import OpCall, Work
from flopprof.formulas.ops._elements import (
    compute_dtype,
    elements,
    elementwise,
    formula_for,
    given,
    moved_bytes,
    number,
    numbers,
    per_input,
    per_output,
)

# Of more than one FLOP: lerp a + w·(b − a). polar cos, sin, two products. isclose |a − b| ≤ atol +
# rtol·|b|. A cross product's component two products, one difference. Quantising x/scale + zero
# point (rounding is the cast) and back, 2 each, which fake quantisation does with two clamps
# between; observing adds minimum and maximum. Backward of a piecewise linear activation: keep the
# gradient or not, one select; of another: the derivative, one function of its argument, times the
# gradient; y(1 − y), 1 − y² and 1/x(1 − x) spelled out; prelu select, scale, and select, multiply
# for the weight.
per_output(
    __name__,
    """
    1 | 1 | | abs~ absolute~ neg~ negative~ sign~ sgn~ ceil~ floor~ round~ trunc~ fix~ frac~
        square~ nan_to_num~ special_round frexp relu~ relu6~ threshold~ hardtanh~ leaky_relu~
        bitwise_not~ conj_physical~ _conj_physical quantized::relu6 quantized::threshold
        quantized::hardswish quantized::leaky_relu quantized::elu quantized::celu quantized::sigmoid
        quantized::clamp
    1 | 2 | | prelu _prelu_kernel clamp_min~ clamp_max~ maximum minimum fmax fmin fmod~ remainder~
        floor_divide~ mul~ multiply~ pow~ heaviside~ gcd~ lcm~ ger outer bitwise_and~ bitwise_or~
        bitwise_xor~ bitwise_left_shift~ bitwise_right_shift~ __and__ __or__ __xor__ __lshift__
        __rshift__ __iand__ __ior__ __ixor__ __ilshift__ __irshift__ quantized::mul quantized::add
        quantized::add_scalar quantized::mul_scalar onednn::qadd onednn::qmul
    2 | 2 | | quantized::add_relu quantized::mul_relu quantized::add_scalar_relu onednn::qadd_relu
    1 | 1 | float | sqrt~ rsqrt~ exp~ exp2~ expm1~ log~ log2~ log10~ log1p~ sin~ cos~ tan~ asin~
        acos~ atan~ arcsin~ arccos~ arctan~ sinh~ cosh~ tanh~ asinh~ acosh~ atanh~ arcsinh~
        arccosh~ arctanh~ erf~ erfc~ erfinv~ reciprocal~ lgamma~ digamma~ mvlgamma~ i0~
        sinc~ sigmoid~ gelu~ silu~ mish~ elu~ celu~ selu~ hardswish~ hardsigmoid~ softplus
        softshrink hardshrink log_sigmoid log_sigmoid_forward logit~ rrelu~ rrelu_with_noise~
        rrelu_with_noise_functional angle special_airy_ai special_bessel_j0 special_bessel_j1
        special_bessel_y0 special_bessel_y1 special_digamma special_psi special_entr special_erf
        special_erfc special_erfcx special_erfinv special_exp2 special_expit special_expm1
        special_gammaln special_i0 special_i0e special_i1 special_i1e special_log1p
        special_log_ndtr special_logit special_ndtr special_ndtri special_sinc
        special_scaled_modified_bessel_k0 special_scaled_modified_bessel_k1 special_multigammaln
        special_modified_bessel_i0 special_modified_bessel_i1 special_modified_bessel_k0
        special_modified_bessel_k1 special_spherical_bessel_j0
    1 | 2 | float | polygamma~ special_polygamma div~ divide~ true_divide~ float_power~ atan2~
        arctan2~ hypot~ copysign~
        logaddexp logaddexp2 xlogy~ nextafter~ ldexp~ igamma~ igammac~ special_xlogy
        special_xlog1py special_zeta special_gammainc special_gammaincc
        special_chebyshev_polynomial_t special_chebyshev_polynomial_u special_hermite_polynomial_h
        special_chebyshev_polynomial_v special_chebyshev_polynomial_w special_hermite_polynomial_he
        special_laguerre_polynomial_l special_legendre_polynomial_p
    1 | 2 | bool | eq~ ne~ lt~ le~ gt~ ge~ not_equal~ less~ less_equal~ greater~ greater_equal~
        logical_and~ logical_or~ logical_xor~
    1 | 1 | bool | logical_not~ isnan isinf isfinite isposinf isneginf signbit
    2 | 1 | float | deg2rad~ rad2deg~ dequantize
    2 | 1 | | _fused_dropout
    2 | 2 | | _masked_scale native_dropout_backward
    3 | 2 | | linalg_cross cross
    3 | 3 | | lerp~
    4 | 2 | | polar
    6 | 2 | bool | isclose
    2 | 1 | qint8 | quantize_per_tensor quantize_per_tensor_dynamic quantize_per_channel
    6 | 1 | | fake_quantize_per_tensor_affine fake_quantize_per_channel_affine
        fake_quantize_per_tensor_affine_cachemask fake_quantize_per_channel_affine_cachemask
        _fake_quantize_per_tensor_affine_cachemask_tensor_qparams
        _fake_quantize_learnable_per_tensor_affine _fake_quantize_learnable_per_channel_affine
    8 | 1 | | fused_moving_avg_obs_fake_quant _fused_moving_avg_obs_fq_helper
        _fused_moving_avg_obs_fq_helper_functional
    1 | 2 | | threshold_backward hardtanh_backward hardshrink_backward softshrink_backward
        fake_quantize_per_tensor_affine_cachemask_backward
        fake_quantize_per_channel_affine_cachemask_backward
    2 | 2 | | gelu_backward silu_backward mish_backward elu_backward leaky_relu_backward
        hardswish_backward hardsigmoid_backward softplus_backward log_sigmoid_backward
        rrelu_with_noise_backward
    3 | 2 | | sigmoid_backward tanh_backward logit_backward
    4 | 3 | | _prelu_kernel_backward
    """,
)
# Lists of tensors, taken for floating point. glu's backward, per element of its output: σ(b), g·σ,
# and g·a·σ·(1 − σ), four more: 3n. Gradient scaling checks each element and multiplies it.
per_input(
    __name__,
    """
    1 | 0 | 0 0 | _foreach_abs~ _foreach_acos~ _foreach_asin~ _foreach_atan~ _foreach_ceil~
        _foreach_cos~ _foreach_cosh~ _foreach_erf~ _foreach_erfc~ _foreach_exp~ _foreach_expm1~
        _foreach_floor~ _foreach_frac~ _foreach_lgamma~ _foreach_log~ _foreach_log10~
        _foreach_log1p~ _foreach_log2~ _foreach_neg~ _foreach_reciprocal~ _foreach_round~
        _foreach_rsqrt~ _foreach_sigmoid~ _foreach_sign~ _foreach_sin~ _foreach_sinh~
        _foreach_sqrt~ _foreach_tan~ _foreach_tanh~ _foreach_trunc~
    1 | 0 | 0 1 0 | _foreach_mul~ _foreach_div~ _foreach_maximum~ _foreach_minimum~
        _foreach_clamp_max~ _foreach_clamp_min~ _foreach_pow~
    1 | 0 | 0 | _foreach_max
    2 | 0 | 0 | _foreach_norm _foreach_powsum
    2 | 0 | 0 0 | _amp_foreach_non_finite_check_and_unscale~
    3 | 0 | 0 1 2 0 | _foreach_lerp~
    3 | 1 | 0 1 1 | glu_backward
    """,
)


@formula_for("add~ sub~ subtract~ rsub _add_relu~")
def add(call: OpCall) -> Work:
    """`a + alpha·b`: an add, and a product where alpha ≠ 1; a relu where it is fused.

    Twice that for complex numbers. Without values in the trace alpha is not known: a bound.
    """
    scale = 2 if dtypes.is_complex(compute_dtype(call, 2)) else 1
    flops = scale * (2 if "relu" in call.op else 1)
    if not call.values:
        return elementwise(call, flops, 2, at_most=flops + scale)
    return elementwise(call, flops + scale * (number(call, 2) not in (None, 1)), 2)


@formula_for("addcmul~ addcdiv~")
def addcmul(call: OpCall) -> Work | None:
    """`a + value·b·c`, `a + value·b/c`: 2 per output, 3 where value ≠ 1 (a bound if not known)."""
    if dtypes.is_complex(compute_dtype(call, 3)):
        return None
    if not call.values:
        return elementwise(call, 2, 3, at_most=3)
    return elementwise(call, 2 + (number(call, 3) not in (None, 1)), 3)


@formula_for("_foreach_add~ _foreach_sub~ _foreach_addcmul~ _foreach_addcdiv~")
def foreach_add(call: OpCall) -> Work:
    """As `add` and `addcmul` over lists: a product more where any alpha or value differs from 1."""
    last = 3 if "addc" in call.op else 2
    size, flops = elements(call, 0), last - 1
    scales = numbers(call, last) or (number(call, last),)
    scaled = given(call, last) and any(scale != 1 for scale in scales)
    return Work(
        vector_flops=(flops + (bool(call.values) and scaled)) * size,
        min_bytes=moved_bytes(call, *range(last), 0),
        flops_at_most=None if call.values else (flops + 1) * size,
    )


@formula_for("clamp~ clip~")
def clamp(call: OpCall) -> Work:
    """One compare-select for each bound given."""
    if not (call.dtypes or call.values):
        return elementwise(call, 1, 3, at_most=2)
    return elementwise(call, given(call, 1) + given(call, 2), 3)


@formula_for("dropout~ alpha_dropout~ feature_dropout~ feature_alpha_dropout~ native_dropout")
def dropout(call: OpCall) -> Work:
    """In training 2n: mask, scale (of alpha dropout too); in eval 0. Random numbers: 0."""
    training = call.flag(2)
    return elementwise(call, 2 * bool(training), at_most=2 if training is None else None)


@formula_for("glu")
def glu(call: OpCall) -> Work:
    """`a·σ(b)` of the input's halves: n/2 sigmoids and n/2 products."""
    return Work(vector_flops=elements(call, 0), min_bytes=moved_bytes(call, 0) * 3 // 2)


@formula_for("_cdist_forward _cdist_backward _pdist_forward")
def distances(call: OpCall) -> Work:
    """Subtract, power, add of each of M coordinates and a root: 3M + 1 for each pair of points.

    Between P and R points there are P·R pairs, among N points N(N − 1)/2. Backward: subtract,
    divide by the distance, multiply by the gradient, add: 4M for each.
    """
    if call.op.endswith("backward"):
        flops = 4 * elements(call, 0) * call.shape(1)[-1]
        return Work(vector_flops=flops, min_bytes=moved_bytes(call, 0, 1, 2, 4, 1))
    *batch, points, width = call.shape(0)
    pairs = points * (points - 1) // 2
    if call.op == "aten::_cdist_forward":
        *other, points_2, _ = call.shape(1)
        pairs = max(prod(batch), prod(other)) * points * points_2
    return Work(
        vector_flops=pairs * (3 * width + 1),
        min_bytes=moved_bytes(call, 0, 1) + pairs * call.itemsize_of(0),
    )
