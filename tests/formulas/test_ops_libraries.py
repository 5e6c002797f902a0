"""Ops of serving and training libraries, by name; arguments as their schemas have them."""

import pytest

from flopprof.formulas import FREE_OPS, OP_FORMULAS, OpCall, Work, kind_of, load_op_formulas

load_op_formulas()
M, K, N = 16, 64, 32  # rows, depth, columns


def work(op, *shapes, dtype="bfloat16", **values):
    """Return what one call does; values by the argument's place, `_3="5"`."""
    types = tuple(dtype if shape else "" for shape in shapes)
    texts = tuple(values.get(f"_{index}", "") for index in range(len(shapes)))
    return OP_FORMULAS.require(op)(OpCall(op, shapes, 2, types, texts))


@pytest.mark.parametrize(
    ("op", "shapes"),
    [
        ("aiter::gemm_a8w8", [(M, K), (N, K), (M, 1), (1, N)]),
        ("aiter::gemm_a4w4", [(M, K // 2), (N, K // 2)]),  # two elements in a byte
        ("vllm::rocm_unquantized_gemm", [(M, K), (N, K), ()]),
        ("vllm::fp8_gemm_nt_op", [(M, K), (M, 1), (N, K), (1, 1), (M, N)]),
        ("deep_gemm::fp8_gemm_nt", [(M, K), (M, 1), (N, K), (1, 1), (M, N)]),
        ("_C::cutlass_scaled_mm", [(M, N), (M, K), (K, N), (1,), (1,), ()]),
        ("_C::cutlass_scaled_fp4_mm", [(M, N), (M, K // 2), (N, K // 2)]),
        ("_C::awq_gemm", [(M, K), (K, N // 8), (K // 16, N), (K // 16, N // 8)]),
        ("_C::marlin_gemm", [(M, K), (), (K // 16, N * 2), (), (K // 16, N)]),
        ("_C::machete_mm", [(M, K), (K // 8, N)]),
        ("sgl_kernel::fp8_scaled_mm", [(M, K), (K, N), (M, 1), (1, N), (), ()]),
        ("_Linear", [(N, K), (4, 4, K), ()]),  # 4·4 rows, of transformer_engine
        ("tex_ts::te_gemm_ts", [(N, K), (), (), (), (), (M, K), (), (), (), (), (M, N)]),
    ],
)
def test_products_of_libraries_count_two_flops_per_multiply_add(op, shapes):
    found = work(op, *shapes)

    # 16 rows × 32 columns × 64 multiply-adds × 2.
    assert (found.matmul_flops, found.vector_flops) == (65_536, 0)
    assert found.flops_at_most is None


def test_a_bias_is_one_add_per_output():
    found = work("_C::cutlass_scaled_mm", (M, N), (M, K), (K, N), (1,), (1,), (N,))

    assert found.vector_flops == 16 * 32


def test_each_token_meets_the_experts_chosen_for_it():
    # 5 tokens, 2 of 8 experts each; gate and up 2·6 wide, back to 4: 12·4 + 4·6 multiply-adds.
    shapes = [(5, 4), (8, 12, 4), (8, 4, 6), (5, 2), (5, 2)]

    found = work("vllm::inplace_fused_experts", *shapes)
    packed = work("vllm::inplace_fused_experts", (5, 4), (8, 12, 2), (8, 4, 3), (5, 2), (5, 2))

    assert found.matmul_flops == 5 * 2 * (48 + 24) * 2
    assert packed.matmul_flops == found.matmul_flops  # 4-bit weights


@pytest.mark.parametrize(
    "op", ["FlashAttnFunc", "aiter::mha_fwd", "flash_attn::_flash_attn_forward"]
)
def test_attention_of_libraries_counts_every_score(op):
    # Batch 2, lengths 8 and 16, 4 heads of width 32.
    shapes = [(2, 8, 4, 32), (2, 16, 4, 32), (2, 16, 4, 32), ()]

    found = work(op, *shapes)

    scores = 2 * 4 * 8 * 16
    assert (found.matmul_flops, found.vector_flops) == (scores * 2 * 64, scores * 6)


def test_attention_of_packed_sequences_is_bounded():
    packed = [(24, 4, 32)] * 3 + [(3,), (3,), (), ()]
    paged = [(24, 4, 32), (10, 16, 2, 32), (10, 16, 2, 32), (), (3,), *[()] * 4, (), (), ()]

    found = work("aiter::mha_varlen_fwd", *packed, _5="16", _6="16")
    in_pages = work("_vllm_fa2_C::varlen_fwd", *paged, _10="16", _11="100")

    # 24 queries × 4 heads; each meets one key at least, at most 16; a score is 2·64 + 6.
    assert found.matmul_flops == 24 * 4 * 128
    assert found.flops_at_most == 24 * 4 * 16 * (128 + 6)
    assert in_pages.flops_at_most == 24 * 4 * 100 * (128 + 6)


def test_paged_attention_is_bounded_by_the_longest_sequence():
    shapes = [(3, 4, 32), (3, 4, 32), (9, 2, 4, 16, 8), (9, 2, 32, 16)]

    found = work("_C::paged_attention_v1", *shapes, (), (), (3, 5), (3,), (), (), _9="70")

    # 3 sequences × 4 heads: a score is 2·64 + 6.
    assert found.matmul_flops + found.vector_flops == 12 * 134
    assert found.flops_at_most == 12 * 70 * 134


def test_a_gated_activation_is_two_flops_per_output():
    for op in ("_C::silu_and_mul", "sgl_kernel::silu_and_mul"):
        assert work(op, (M, N), (M, 2 * N)).vector_flops == 2 * M * N


def test_rms_norms_of_libraries_count_square_sum_scale_and_weight():
    n = M * K
    assert work("_C::rms_norm", (M, K), (M, K), (K,)).vector_flops == 4 * n
    assert work("aiter::rms_norm", (M, K), (K,)).vector_flops == 4 * n
    assert work("_C::fused_add_rms_norm", (M, K), (M, K), (K,)).vector_flops == 5 * n
    five = [(M, K)] * 4 + [(K,)]
    assert work("aiter::rmsnorm2d_fwd_with_add", *five).vector_flops == 5 * n


def test_writing_keys_and_values_into_a_cache_is_free():
    assert kind_of("_C_cache_ops::reshape_and_cache_flash") == "free"


def lookup(widths, total, widest, weights="unweighted"):
    """Look 100 indices up in `widths` tables, 8 bags of each."""
    op = f"fbgemm::split_embedding_codegen_forward_{weights}_cuda"
    shapes = ((4096,), (0,), (0, 0), (2,), (2,), (widths + 1,), (), (), (100,), (17,), ())
    types = ("float32",) * 3 + ("int32", "int64", "int32", "Scalar", "Scalar", "int64", "int64", "")
    values = ("",) * 6 + (str(total), str(widest)) + ("",) * 3
    return OP_FORMULAS.require(op)(OpCall(op, shapes, 4, types, values))


def test_an_embedding_lookup_adds_a_row_for_each_index():
    # Two tables of width 64: each of 100 indices adds 64 elements to its bag; weighted, twice.
    assert lookup(2, 128, 64).vector_flops == 6400
    assert lookup(2, 128, 64, "weighted").vector_flops == 12_800
    # Widths of 32 and 64: which table an index is of, its place decides.
    mixed = lookup(2, 96, 64)
    assert (mixed.vector_flops, mixed.flops_at_most) == (0, 6400)


def test_weights_of_torchao_are_scaled_once_per_element():
    weight = OpCall(
        "torchao::dequantize_affine", ((512, 256), (), (512, 1), (512, 1)), 4,
        ("int8", "ScalarList", "float32", "int32"), ("", "[1, 256]", "", ""),
    )  # fmt: skip
    symmetric = OpCall(
        "torchao::dequantize_affine", ((512, 256), (), (512, 1), ()), 4,
        ("int8", "ScalarList", "float32", ""), ("", "[1, 256]", "", ""),
    )  # fmt: skip

    found = [OP_FORMULAS.require(call.op)(call) for call in (weight, symmetric)]

    # Subtract the zero point, scale; where there is none, scale.
    assert [each.vector_flops for each in found if each] == [2 * 512 * 256, 512 * 256]
    float8 = work("torchao::dequantize_affine_float8", (512, 256), (1,), dtype="float32")
    assert float8.vector_flops == 512 * 256


def test_the_group_norm_of_aiter_counts_its_input_and_not_its_workspace():
    # [2, 8, 3, 3] in groups: mean, subtract, square, sum, scale, weight, bias of 144 elements.
    affine = [(8,), (8,)]

    returned = work("aiter::_groupnorm_run", (2, 8, 3, 3), (), *affine, ())
    into = work("aiter::_groupnorm_run", (2, 8, 3, 3), (4096,), (2, 8, 3, 3), (), *affine, ())
    plain = work("aiter::_groupnorm_run", (2, 8, 3, 3), (), (), (), ())

    assert returned.vector_flops == 7 * 144
    assert into.vector_flops == 7 * 144
    assert plain.vector_flops == 5 * 144


def prefill(keys, values, longest="100"):
    """24 queries of 4 heads and width 32, in 2 sequences, against keys in pages."""
    shapes = [(24, 4, 32), keys, values, (3,), (3,), (9,), (), (), ()]
    return work("aiter::mha_batch_prefill", *shapes, _6="16", _7=longest, _8="0.")


def test_prefill_of_batches_is_bounded_by_the_longest_sequence():
    pages = (10, 16, 2, 32)

    found = prefill(pages, pages)

    # Each of 24·4 queries meets one key at least, 100 at most; a score is 2·(32 + 32) + 6.
    assert found.matmul_flops == 24 * 4 * 128
    assert found.flops_at_most == 24 * 4 * 100 * 134


def test_pages_in_tiles_do_not_say_how_wide_a_head_is():
    # [pages, heads, width ÷ 8, page, 8] and [pages, heads, page ÷ 8, width, 8].
    assert prefill((10, 2, 4, 16, 8), (10, 2, 2, 32, 8)) is None


@pytest.mark.parametrize(
    ("op", "shapes", "types"),
    [
        ("_C::rotary_embedding", [(6,), (6, 64), (6, 32), (), (99, 16)], "iff f"),
        ("sgl_kernel::rotary_embedding", [(6,), (6, 64), (6, 32), (), (99, 16)], "iff f"),
        ("aiter::rotary_embedding_fwd", [(6,), (6, 64), (6, 32), (), (99, 8), (99, 8)], "iff ff"),
        (
            "sgl_kernel::apply_rope_pos_ids_cos_sin_cache",
            [(6, 64), (6, 32), (6, 64), (6, 32), (99, 16), (6,)],
            "fffffi",
        ),
        (
            "aiter::rope_cached_positions_2c_fwd_impl",
            [(6, 1, 4, 16), (6, 1, 2, 16)] * 2 + [(99, 1, 1, 8)] * 2 + [(6, 1)],
            "ffffffi",
        ),
    ],
)
def test_rotating_query_and_key_is_two_products_and_a_sum_at_most(op, shapes, types):
    names = {"i": "int64", "f": "bfloat16", " ": ""}

    found = OP_FORMULAS.require(op)(OpCall(op, tuple(shapes), 2, tuple(names[t] for t in types)))

    assert found is not None
    # 6·64 + 6·32 elements; of a head perhaps only a part is rotated.
    assert (found.vector_flops, found.flops_at_most) == (0, 3 * (384 + 192))


def test_rotating_one_tensor_counts_it_and_not_its_result():
    found = work("aiter::rope_fwd_impl", (6, 1, 4, 16), (6, 1, 4, 16), (6, 1, 1, 16))

    assert (found.vector_flops, found.flops_at_most) == (0, 3 * 384)


@pytest.mark.parametrize(
    ("op", "flops"),
    [
        ("FloatToFP8RowwiseQuantized", 3),  # absolute value, maximum, scale
        ("quantize_fp8_per_row", 3),
        ("quantize_fp8_per_tensor", 3),
        ("FloatToFused8BitRowwiseQuantized", 4),  # minimum, maximum, subtract, scale
        ("HalfToFused8BitRowwiseQuantized", 4),
        ("FloatOrHalfToFused8BitRowwiseQuantized", 4),
    ],
)
def test_rows_are_scaled_to_bytes(op, flops):
    found = work(f"fbgemm::{op}", (10, 64), ())

    # 640 elements: two bytes read, one written.
    assert (found.vector_flops, found.flops_at_most) == (flops * 640, None)
    assert found.min_bytes == 640 * 3


def test_conversions_whose_work_the_values_decide_are_bounded():
    # Clamped; small numbers added to as well. Back: a product, perhaps a shift.
    to_bytes = work("fbgemm::FloatToHFP8Quantized", (10, 64), (), (), ())
    back = work("fbgemm::Fused8BitRowwiseQuantizedToFloat", (10, 72), dtype="uint8")

    assert (to_bytes.vector_flops, to_bytes.flops_at_most) == (640, 1280)
    assert (back.vector_flops, back.flops_at_most) == (0, 1440)


def embedding_backward(optimizer, *, mixed):
    """The backward of 100 indices into tables of width 64 at most, as two versions write it."""
    op = f"fbgemm::split_embedding_backward_codegen_{optimizer}_unweighted_exact_cuda"
    arguments = [(8, 128), (4096,), (0,), (0, 0), (2,), (2,), (3,), "64"]
    arguments += ["False"] if mixed else []
    arguments += [(3,), "20", (100,), (17,), "0", (0,), "32"]
    types = ["float32"] * 4 + ["int32", "int64", "int32"] + [""] * 9
    for index, argument in enumerate(arguments):
        if isinstance(argument, tuple) and index > 6:
            types[index] = "int64"
    shapes = tuple(a if isinstance(a, tuple) else () for a in arguments)
    values = tuple(a if isinstance(a, str) else "" for a in arguments)
    return OP_FORMULAS.require(op)(OpCall(op, shapes, 4, tuple(types[: len(shapes)]), values))


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adam", "lamb"])
def test_the_backward_of_an_embedding_updates_each_row_looked_up_at_most(optimizer, mixed):
    found = embedding_backward(optimizer, mixed=mixed)

    # LAMB is the dearest: the gradient weighted and summed 2, moments 3 and 4, their corrections 2,
    # root, ε, quotient 3, decay 2, squares of both norms summed 4, step 3; rounding 1.
    assert (found.vector_flops, found.flops_at_most) == (0, 24 * 100 * 64)


def test_a_mean_of_rows_divides_each_bag():
    op = "fbgemm::split_embedding_codegen_forward_unweighted_cuda"
    shapes = ((4096,), (0,), (0, 0), (2,), (2,), (3,), (), (), (100,), (17,), ())
    types = ("float32",) * 3 + ("int32", "int64", "int32", "", "", "int64", "int64", "")
    values = ("",) * 6 + ("128", "64", "", "", "1")

    found = OP_FORMULAS.require(op)(OpCall(op, shapes, 4, types, values))

    # 100 rows of 64 are added; the 16 bags of 64 are scaled.
    assert found is not None
    assert found.vector_flops == 6400 + 16 * 64


@pytest.mark.parametrize(
    ("op", "shapes", "moved"),
    [
        # A permutation of 3 read; 3·5 lengths and 40 values read and written.
        ("permute_2D_sparse_data", [(3,), (3, 5), (40,), (), ()], 3 + 2 * 15 + 2 * 40),
        ("permute_1D_sparse_data", [(3,), (15,), (40,), (40,), ()], 3 + 2 * 15 + 4 * 40),
        ("permute_pooled_embs", [(5, 64), (4,), (3,), (4,), (3,)], 2 * 320),
        # Rows of each table, indices, offsets read.
        ("bounds_check_indices", [(3,), (40,), (16,), (), (1,)], 3 + 40 + 16),
    ],
)
def test_permutes_and_checks_move_data_only(op, shapes, moved):
    types = tuple("int64" if shape else "" for shape in shapes)

    found = FREE_OPS.require(f"fbgemm::{op}")(OpCall(f"fbgemm::{op}", tuple(shapes), 8, types))

    assert found == Work(min_bytes=8 * moved)
