"""Why a processor executes more or less than was counted: each reason by a case done by hand."""

from dataclasses import replace
from typing import Any

from flopprof.executed.decode import Operations
from flopprof.executed.explain import Counted, explain, filled_up, unpadded_flops

CONVOLUTION = ("", "", "", "[1, 1]", "[1, 1]", "[1, 1]", "16")


def product(*, fma: int, **others: Any) -> Operations:
    return Operations(fma_flops=fma, flops=fma, **others)


def mm(m: int, k: int, n: int) -> Counted:
    return Counted("aten::mm", ((m, k), (k, n)), ("", ""), 2 * m * k * n, 0)


def test_as_many_multiply_adds_as_were_counted_are_exact():
    assert explain(mm(16, 16, 16), product(fma=8192)).verdict == "exact"  # 2·16³


def test_columns_filled_up_to_lanes_are_explained():
    # 2·33·65·17 = 72,930 counted; with 20 columns 2·33·65·20 = 85,800.
    told = explain(mm(33, 65, 17), product(fma=85_800))

    assert (told.verdict, told.code) == ("explained", "tail_lanes")
    assert "17 as 20" in told.reason


def test_one_multiply_add_too_many_is_unexplained():
    assert explain(mm(33, 65, 17), product(fma=72_932)).verdict == "unexplained"


def test_two_sizes_may_be_filled_up_at_once():
    # 3·5 as 4·8: 15 becomes 32.
    assert filled_up([3, 5], 15, 32) == "3 as 4, 5 as 8"
    assert filled_up([3, 5], 15, 31) == ""
    assert filled_up([3, 5], 32, 15) == ""


def test_a_depthwise_convolution_that_skips_its_padding_is_explained():
    # 16 channels of 8×8, filters 3×3, padding 1. Each axis: 8 places of 3 taps, two of which lie in
    # the padding: 22. 2·16·22² = 15,488; counted are 2·16·24² = 18,432.
    counted = Counted("aten::conv2d", ((1, 16, 8, 8), (16, 1, 3, 3)), CONVOLUTION, 18_432, 0)

    assert unpadded_flops(counted) == 15_488
    assert explain(counted, product(fma=15_488)).code == "skipped_padding"
    # Eight places filled up to sixteen: twice as many.
    assert explain(counted, product(fma=30_976)).code == "skipped_padding_and_tail_lanes"


def test_stride_and_dilation_move_the_filter():
    # 7 long, filter of 3 with dilation 2, padding 1, stride 2: begins at −1, 1, 3; of its taps
    # (−1, 1, 3), (1, 3, 5), (3, 5, 7) there are 2, 3 and 2 inside: 7. 2·7 = 14.
    values = ("", "", "", "[2]", "[1]", "[2]", "1")
    counted = Counted("aten::conv1d", ((1, 1, 7), (1, 1, 3)), values, 18, 0)

    assert unpadded_flops(counted) == 14


def test_a_transposed_convolution_is_not_taken_for_one():
    values = ("", "", "", "[1, 1]", "[1, 1]", "[1, 1]", "True", "[0, 0]", "1")
    shapes = ((1, 4, 8, 8), (4, 4, 3, 3))

    assert unpadded_flops(Counted("aten::convolution", shapes, values, 1, 0)) is None


def test_lanes_under_a_mask_are_a_bound():
    told = explain(mm(16, 16, 16), product(fma=9000, masked_fma_flops=1000))

    assert (told.verdict, told.code) == ("explained", "masked_lanes")  # 8,000 to 9,000


def test_a_polynomial_tells_its_flops_per_element():
    counted = Counted("aten::exp", ((64, 64),), ("",), 0, 4096)

    told = explain(counted, Operations(flops=57_344))

    assert (told.verdict, told.code) == ("explained", "polynomial")
    assert "14 FLOPs per element" in told.reason  # 57,344 / 64²


def test_what_has_no_instruction_of_its_own_is_no_excuse_for_other_ops():
    counted = Counted("aten::add", ((64, 64), (64, 64)), ("", ""), 0, 4096)

    assert explain(counted, Operations(flops=57_344)).verdict == "unexplained"


def test_without_a_formula_it_is_measured_and_stopped_it_is_unknown():
    counted = Counted("mine::op", ((8,),), ("",), None, None)

    assert explain(counted, Operations(flops=5)).verdict == "measured"
    assert explain(counted, Operations(flops=5), "too long").verdict == "unknown"


def test_undecoded_instructions_make_a_difference_a_lower_bound():
    told = explain(mm(16, 16, 16), product(fma=0, undecoded=2))

    assert (told.verdict, told.code) == ("unexplained", "undecoded")
    assert "2 instructions" in told.reason


def attention() -> Counted:
    # Two heads, 32 queries, 32 keys, 16 wide: 2·(2·32·32)·(16 + 16) = 131,072.
    shapes = ((1, 2, 32, 16),) * 3
    return Counted("aten::scaled_dot_product_attention", shapes, ("",) * 3, 131_072, 12_288)


def test_attention_whose_products_are_exact_beside_its_softmax_is_explained():
    work = {"vfmadd231ps": 131_072, "vfmadd132ps": 24_576}

    told = explain(attention(), product(fma=155_648, by_instruction=work))

    assert (told.verdict, told.code) == ("explained", "with_functions")
    assert "24,576" in told.reason


def test_attention_with_some_products_apart_is_explained_if_they_fit_exactly():
    # 98,304 + 2·16,384 = 131,072.
    work = {"vfmadd231pd": 98_304, "vfmadd213pd": 24_576, "addpd": 16_384, "mulpd": 17_920}

    told = explain(attention(), product(fma=122_880, by_instruction=work))

    assert told.code == "with_functions"
    assert "32,768 FLOPs by products and sums" in told.reason


def test_what_is_done_beside_products_is_bounded():
    # A cell of 64 values: 2·4·16·16·… = 4,096 of products, 256 counted beside them; 16 times that
    # is 4,096.
    cell = Counted("aten::rnn_tanh_cell", ((4, 16), (4, 16)), ("", ""), 4096, 256)

    among = explain(cell, product(fma=4352, by_instruction={"vfmadd231ps": 4352}))
    too_many = explain(cell, product(fma=8193, by_instruction={"vfmadd231ps": 8193}))

    assert among.code == "among_functions"  # 256 more than the products
    assert too_many.verdict == "unexplained"  # 4,097 more

    work = {"vfmadd231pd": 3072, "mulpd": 1792, "addpd": 1728}  # 1,024 missing; 2·1,728 apart
    pairs = Operations(fma_flops=3200, flops=7104, by_instruction=work)
    assert explain(cell, pairs).code == "among_pairs"
    assert explain(cell, replace(pairs, flops=9000)).verdict == "unexplained"  # 4,904 beside


def test_products_and_sums_in_place_of_multiply_adds_are_explained():
    # 2·16³ = 8,192: three quarters by multiply-adds, 1,024 products and as many sums.
    work = {"vfmadd231pd": 6144, "mulpd": 1216, "addpd": 1024, "mulsd": 256}
    apart = Operations(fma_flops=6144, flops=8640, by_instruction=work)

    told = explain(mm(16, 16, 16), apart)

    assert (told.verdict, told.code) == ("explained", "apart")
    assert "2,048 FLOPs" in told.reason
    assert "448 FLOPs more" in told.reason  # 8,640 - 8,192
    fewer_sums = replace(apart, by_instruction=work | {"addpd": 1000})
    assert explain(mm(16, 16, 16), fewer_sums).verdict == "unexplained"


def test_products_without_multiply_adds_have_few_flops_beside_them():
    # A matrix of 64×64 and a vector: 2·64² = 8,192; their 4,160 elements allow 8,320 more.
    mv = Counted("aten::mv", ((64, 64), (64,)), ("", ""), 8192, 0)
    work = {"mulps": 4160, "addps": 4416}

    few = explain(mv, Operations(flops=8576, by_instruction=work))
    many = explain(mv, Operations(flops=16_513, by_instruction=work))

    assert few.code == "apart"
    assert many.verdict == "unexplained"


def test_a_result_that_is_scaled_and_added_has_a_multiply_add_more():
    # 256 results of 16 products: 2·16·256 = 8,192 counted, 2·17·256 = 8,704 executed.
    shapes = ((16,), (16, 16), (16, 16))
    addmm = Counted("aten::addmm", shapes, ("", "", ""), 8192, 256)

    told = explain(addmm, product(fma=8704))

    assert (told.verdict, told.code) == ("explained", "scaled_result")
    assert "512 FLOPs" in told.reason
    assert explain(addmm, product(fma=8706)).verdict == "unexplained"


def test_bfloat16_is_multiplied_in_pairs():
    # 33·65·17: 65 deep as 66, 17 columns as 32: 2·33·66·32 = 139,392.
    assert "17 as 32, 65 as 66" in explain(mm(33, 65, 17), product(fma=139_392)).reason


def test_a_root_by_an_approximation_and_newtons_steps_is_explained():
    root = Counted("aten::sqrt", ((64, 64),), ("",), 0, 4096)
    work = {"mulps": 28_672, "addps": 12_288, "subps": 8192, "rsqrtps": 4096}

    told = explain(root, Operations(flops=53_248, by_instruction=work))

    assert (told.verdict, told.code) == ("explained", "approximation")
    assert "13 FLOPs per element" in told.reason  # 53,248 / 4,096
    without = {name: flops for name, flops in work.items() if name != "rsqrtps"}
    assert explain(root, Operations(flops=53_248, by_instruction=without)).verdict == "unexplained"


def test_a_polynomial_has_an_end():
    counted = Counted("aten::exp", ((64, 64),), ("",), 0, 4096)

    assert explain(counted, Operations(flops=161 * 4096)).verdict == "unexplained"


def test_comparisons_where_results_are_rounded_are_told_apart():
    # 2,048 counted; 1,536 comparisons for NaN, a root and a quotient more.
    counted = Counted("aten::_transform_bias_rescale_qkv", ((1, 16, 96),), ("",), 0, 2048)
    work = {"vaddps": 1536, "vmulps": 512, "vcmpordps": 1536, "vsqrtss": 1, "vdivss": 1}

    told = explain(counted, Operations(flops=3586, by_instruction=work))

    assert told.code == "rounded"
    assert "1,536 FLOPs are comparisons" in told.reason
    assert "2 FLOPs more" in told.reason
    assert explain(counted, Operations(flops=2050)).code == "once"
    assert explain(counted, Operations(flops=2060)).verdict == "unexplained"


def test_three_axes_of_a_convolution_by_its_other_name_are_filled_up_too():
    # 27 places of the output as 32: 2·27·16·16·8 = 110,592 becomes 131,072.
    values = ("", "", "[2, 2, 2]", "", "[1, 1, 1]", "[0, 0, 0]")
    shapes = ((1, 16, 4, 4, 4), (16, 16, 2, 2, 2), (), (), (), ())
    counted = Counted("aten::slow_conv3d", shapes, values, 110_592, 0)

    assert "27 as 32" in explain(counted, product(fma=131_072)).reason


def test_an_addition_with_alpha_in_one_instruction_is_explained():
    counted = Counted("aten::add", ((64, 64), (64, 64)), ("", ""), 0, 4096)

    assert explain(counted, product(fma=8192)).code == "fused_alpha"


def test_a_sum_in_lanes_has_partial_sums_to_join_and_not_more():
    counted = Counted("aten::sum", ((64, 64),), ("",), 0, 4096)

    assert explain(counted, Operations(flops=4481)).code == "partial_sums"
    assert explain(counted, Operations(flops=8192)).verdict == "unexplained"


def test_a_product_of_integers_is_compared_by_its_products_and_their_sums():
    # 2·32³ = 65,536; 32 deep in tiles of 64 bytes: twice that. Other integer work is none of it.
    counted = Counted("aten::_int_mm", ((32, 32), (32, 32)), ("", ""), 65_536, 0)

    told = explain(counted, Operations(int_ops=131_090, int_fma_ops=131_072))

    assert told.verdict == "explained"
    assert "32 as 64" in told.reason
    assert explain(counted, Operations(int_ops=9, int_fma_ops=65_536)).verdict == "exact"
