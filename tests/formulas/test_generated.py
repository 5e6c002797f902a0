"""Kernels of TorchInductor: their ops by name."""

import pytest

from flopprof.formulas import OpCall, load_op_formulas
from flopprof.formulas.generated import generated, knows_bytes

load_op_formulas()


def work(one):
    """Return what a call does, which its name tells."""
    found = generated(one)
    assert found is not None
    return found


def call(name, shapes, dtypes, sizes):
    count = len(shapes)
    texts = ("",) * count + tuple(map(str, sizes))
    types = (*dtypes, *("Scalar",) * len(sizes))
    return OpCall(name, (*shapes, *((),) * len(sizes)), 4, types, texts)


def test_each_op_in_the_name_counts_once_per_element_and_each_tensor_moves_once():
    found = work(
        call(
            "triton_poi_fused__to_copy_add_mul_sigmoid_view_7",
            [(16, 64), (16, 64), (64,)],
            ["bfloat16", "float32", "float32"],
            [16, 1024],  # a symbol for a size, and the space
        )
    )

    # add, mul and sigmoid on 16·64 elements; a cast and a view are free.
    assert (found.matmul_flops, found.vector_flops) == (0, 3 * 1024)
    assert found.min_bytes == 1024 * 2 + 1024 * 4 + 64 * 4


def test_a_reduction_runs_over_the_whole_space_and_products_are_not_its_own():
    found = work(call("triton_red_fused_mm_mul_sum_0", [(8, 32), (8,)], ["float32"] * 2, [8, 32]))

    assert found.vector_flops == 2 * 8 * 32


@pytest.mark.parametrize("product", ["mm", "addmm", "convolution", "baddbmm"])
def test_a_product_in_the_name_adds_nothing_not_even_its_bias(product):
    found = work(call(f"triton_poi_fused_{product}_relu_0", [(8, 32)], ["float32"], [256]))

    # relu on 8·32 elements; the product ran before, in a kernel of its own.
    assert (found.matmul_flops, found.vector_flops) == (0, 256)


def test_names_are_read_longest_first():
    found = work(call("triton_per_fused__softmax_1", [(8, 32)], ["float32"], [8, 32]))

    assert found.vector_flops == 5 * 8 * 32


def test_moving_alone_counts_nothing():
    found = work(call("triton_poi_fused_clone_permute_3", [(8,)] * 2, ["float32"] * 2, [8]))

    assert (found.vector_flops, found.min_bytes) == (0, 64)


@pytest.mark.parametrize("name", ["triton_tem_fused_mm_3", "triton_poi_fused_nothing_known_3"])
def test_what_its_name_does_not_tell_is_not_determined(name):
    assert generated(call(name, [(8,)], ["float32"], [8])) is None


@pytest.mark.parametrize("name", ["embedding", "index", "gather", "nll_loss_forward"])
def test_a_gather_reads_one_element_of_its_table_for_each_that_it_makes(name):
    # 16 rows of 64 out of 50,000: indices 16·8 B, read and written 16·64·4 B each.
    found = work(
        call(
            f"triton_poi_fused_{name}_2",
            [(16,), (50_000, 64), (16, 64)],
            ["int64", "float32", "float32"],
            [1024],
        )
    )

    assert found.min_bytes == 16 * 8 + 2 * 1024 * 4


def test_how_much_a_part_of_a_larger_operand_moves_is_not_known():
    part = call("triton_poi_fused_add_select_4", [(8, 64), (64,)], ["float32"] * 2, [64])
    whole = call("triton_poi_fused_add_select_4", [(64,), (64,)], ["float32"] * 2, [64])

    assert not knows_bytes(part)
    assert knows_bytes(whole)
