"""Why a processor executes more or less than was counted: each reason by a case done by hand."""

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


def test_attention_whose_products_are_exact_beside_its_softmax_is_explained():
    # Two heads, 32 queries, 32 keys, 16 wide: 2·(2·32·32)·(16 + 16) = 131,072.
    shapes = ((1, 2, 32, 16),) * 3
    counted = Counted("aten::scaled_dot_product_attention", shapes, ("",) * 3, 131_072, 12_288)
    work = {"vfmadd231ps": 131_072, "vfmadd132ps": 24_576}

    told = explain(counted, product(fma=155_648, by_instruction=work))

    assert (told.verdict, told.code) == ("explained", "with_softmax")
    assert "24,576" in told.reason


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
