"""Products: counted by hand, each by kernels of its own, in every element type that GPUs have."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from tests.gpu.place import (
    assert_linked,
    assert_multiplies,
    compute_kernels,
    counted,
    dtype_of,
    names,
)
from tests.planted import Calls


def randn(*size: int) -> torch.Tensor:
    return torch.randn(*size)


# name → forward, inputs, the op that counts, matmul FLOPs with their derivation.
PRODUCTS: dict[str, tuple[Any, tuple[torch.Tensor, ...], str, int]] = {
    # 64·96 outputs of 128 multiply-adds.
    "mm": (lambda m, a, b: a @ b, (randn(64, 128), randn(128, 96)), "aten::matmul",
           2 * 64 * 96 * 128),
    # 64 outputs of 128.
    "mv": (lambda m, a, b: torch.mv(a, b), (randn(64, 128), randn(128)), "aten::mv",
           2 * 64 * 128),
    # One output of 512.
    "dot": (lambda m, a: torch.dot(a, a), (randn(512),), "aten::dot", 2 * 512),
    "addmm": (lambda m, c, a, b: torch.addmm(c, a, b), (randn(96), randn(64, 128), randn(128, 96)),
              "aten::addmm", 2 * 64 * 96 * 128),
    # 5 products of 16·24 outputs of 32.
    "bmm": (lambda m, a, b: torch.bmm(a, b), (randn(5, 16, 32), randn(5, 32, 24)), "aten::bmm",
            2 * 5 * 16 * 24 * 32),
    "baddbmm": (lambda m, c, a, b: torch.baddbmm(c, a, b),
                (randn(5, 16, 24), randn(5, 16, 32), randn(5, 32, 24)), "aten::baddbmm",
                2 * 5 * 16 * 24 * 32),
    # The right matrix is shared by 5.
    "broadcast": (lambda m, a, b: torch.matmul(a, b), (randn(5, 16, 32), randn(32, 24)),
                  "aten::matmul", 2 * 5 * 16 * 24 * 32),
    # 2 rows in each of 3 positions, 8 → 16.
    "linear": (lambda m, x, w: F.linear(x, w), (randn(2, 3, 8), randn(16, 8)), "aten::linear",
               2 * 2 * 3 * 8 * 16),
    # 2·16·(8 − 3 + 1)² outputs of 4·3·3.
    "conv2d": (lambda m, x, w: F.conv2d(x, w), (randn(2, 4, 8, 8), randn(16, 4, 3, 3)),
               "aten::conv2d", 2 * 2 * 16 * 6 * 6 * 4 * 9),
    # 2·16·(32 − 3 + 1) outputs of 4·3.
    "conv1d": (lambda m, x, w: F.conv1d(x, w), (randn(2, 4, 32), randn(16, 4, 3)),
               "aten::conv1d", 2 * 2 * 16 * 30 * 4 * 3),
    # 1·8·5³ outputs of 2·2³.
    "conv3d": (lambda m, x, w: F.conv3d(x, w), (randn(1, 2, 6, 6, 6), randn(8, 2, 2, 2, 2)),
               "aten::conv3d", 2 * 8 * 125 * 2 * 8),
    # 2 groups: 2·8·6² outputs of 2·9.
    "grouped": (lambda m, x, w: F.conv2d(x, w, groups=2), (randn(2, 4, 8, 8), randn(8, 2, 3, 3)),
                "aten::conv2d", 2 * 2 * 8 * 36 * 2 * 9),
    # Each of 4 channels by itself: 2·4·6² outputs of 9.
    "depthwise": (lambda m, x, w: F.conv2d(x, w, groups=4), (randn(2, 4, 8, 8), randn(4, 1, 3, 3)),
                  "aten::conv2d", 2 * 2 * 4 * 36 * 9),
    # Each of 2·4·8² inputs goes to 16·3² places.
    "transposed": (lambda m, x, w: F.conv_transpose2d(x, w),
                   (randn(2, 4, 8, 8), randn(4, 16, 3, 3)), "aten::conv_transpose2d",
                   2 * 2 * 4 * 64 * 16 * 9),
    # ⌊(8 + 2 − 3)/2⌋ + 1 = 4: 2·16·4² outputs of 4·9.
    "strided": (lambda m, x, w: F.conv2d(x, w, stride=2, padding=1),
                (randn(2, 4, 8, 8), randn(16, 4, 3, 3)), "aten::conv2d", 2 * 2 * 16 * 16 * 4 * 9),
    # Scores and sums: each 2·4·32² of 16.
    "attention": (lambda m, q: F.scaled_dot_product_attention(q, q, q), (randn(2, 4, 32, 16),),
                  "aten::scaled_dot_product_attention", 2 * 2 * 2 * 4 * 32 * 32 * 16),
}  # fmt: skip


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_counts_by_hand_and_its_kernels_are_its_own(place, name):
    forward, inputs, op, matmul_flops = PRODUCTS[name]

    run = place.profile(Calls(forward), inputs)

    assert_multiplies(place, run, op, matmul_flops)
    assert_linked(place, run)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_a_product_counts_the_same_in_every_element_type(place, dtype):
    n = place.size(1024, 64)
    a = torch.randn(n, n).to(dtype_of(dtype))

    run = place.profile(Calls(lambda m, a: torch.mm(a, a)), a)

    assert_multiplies(place, run, "aten::mm", 2 * n**3)
    assert counted(run, "aten::mm")["dtype"] == dtype
    assert_linked(place, run)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_channels_last_convolutions_count_as_others(place, dtype):
    channels = place.size(64, 8)
    size = place.size(56, 10)
    conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    x = torch.randn(4, channels, size, size)
    model = conv.to(dtype_of(dtype)).to(memory_format=torch.channels_last)

    run = place.profile(model, x.to(dtype_of(dtype), memory_format=torch.channels_last))

    # 4·channels·size² outputs of channels·9 multiply-adds; padding is counted.
    assert_multiplies(place, run, "aten::conv2d", 2 * 4 * channels**2 * size**2 * 9)
    assert counted(run, "aten::conv2d")["verdict"] == "agrees"
    assert_linked(place, run)


def test_an_fp8_product_counts_in_its_own_element_type(place):
    if place.is_gpu and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("FP8 needs compute capability 8.9")
    m, k, n = 64, 128, 96
    a = torch.randn(m, k).to(torch.float8_e4m3fn)
    b = torch.randn(n, k).to(torch.float8_e4m3fn).t()  # column-major, as the op wants it
    one = torch.ones(())

    run = place.profile(
        Calls(lambda m, a, b, s: torch._scaled_mm(a, b, s, s, out_dtype=torch.bfloat16)),
        (a, b, one),
    )

    assert_multiplies(place, run, "aten::_scaled_mm", 2 * 64 * 128 * 96)
    assert counted(run, "aten::_scaled_mm")["dtype"] == "float8_e4m3fn"
    assert_linked(place, run)


def test_an_int8_product_counts_in_its_own_element_type(place):
    a = torch.randint(-9, 9, (64, 128), dtype=torch.int8)
    b = torch.randint(-9, 9, (128, 96), dtype=torch.int8)

    run = place.profile(Calls(lambda m, a, b: torch._int_mm(a, b)), (a, b))

    assert_multiplies(place, run, "aten::_int_mm", 2 * 64 * 128 * 96)
    assert counted(run, "aten::_int_mm")["dtype"] == "int8"
    assert_linked(place, run)


def test_a_2_to_4_sparse_layer_counts_its_dense_product_or_bounds_it(place):
    layer = nn.Linear(128, 128, bias=False).half()
    mask = torch.tensor([0, 0, 1, 1], dtype=torch.bool).tile((128, 32))
    layer.weight = nn.Parameter(layer.weight.detach() * mask, requires_grad=False)
    if place.has_cuda("2:4 sparse weights, which torch makes on CUDA alone"):
        from torch.sparse import to_sparse_semi_structured

        layer = layer.cuda()
        sparse: Any = to_sparse_semi_structured(layer.weight)
        layer.weight = nn.Parameter(sparse, requires_grad=False)

    run = place.profile(layer, torch.randn(128, 128).half())

    # Rule 3: dense, 128·128 outputs of 128.
    dense = 2 * 128**3
    assert run.totals.matmul_flops <= dense
    assert run.totals.flops_at_most >= dense or run.totals.matmul_flops == dense
    sites = run.sites
    works = sites[~sites["verdict"].eq("free")]
    assert len(works) > 0
    assert_linked(place, run)


@pytest.mark.parametrize("tf32", [False, True])
def test_tf32_is_told_by_the_kernel_and_has_its_own_ceiling(place, tf32):
    from flopprof.errors import UsageError

    n = place.size(2048, 64)
    model = nn.Linear(n, n, bias=False)
    if tf32 and not place.has_cuda("TF32"):
        with pytest.raises(UsageError):
            place.profile(model, torch.randn(n, n), tf32=True)
        return

    run = place.profile(model, torch.randn(n, n), tf32=tf32)

    site = counted(run, "aten::linear")
    assert site["matmul_flops"] == 2 * n**3
    wanted = "tfloat32" if tf32 else "float32"
    assert site["dtype"] == wanted, names(compute_kernels(run))
    assert_linked(place, run)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_autocast_runs_products_in_its_element_type_and_counts_the_same(place, dtype):
    model = nn.Sequential(nn.Linear(64, 128), nn.LayerNorm(128), nn.Linear(128, 32))

    run = place.profile(model, torch.randn(16, 64), autocast=dtype)

    # 16·128 outputs of 64, and 16·32 of 128.
    assert run.totals.matmul_flops == 2 * 16 * 128 * 64 + 2 * 16 * 32 * 128
    products = run.sites[run.sites["matmul_flops"] > 0]
    assert set(products["dtype"]) == {dtype}
    assert_linked(place, run)
