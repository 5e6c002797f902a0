"""Attention: every back end counts the same, forward and backward, each with its own kernels."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.gpu.place import assert_linked, compute_kernels, names, reasons
from tests.planted import Calls

BACKENDS = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
ON_CPU = ("math", "flash")
B, H, L, D = 2, 4, 128, 64


def attention(backend: str, **options: Any) -> nn.Module:
    def forward(module: nn.Module, q: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(BACKENDS[backend]):
            return F.scaled_dot_product_attention(q, q, q, **options)

    return Calls(forward)


def usable(place: Any, backend: str) -> str:
    """Return the back end, or in a rehearsal one that the CPU has."""
    if backend in ON_CPU or place.has_cuda(f"the back end {backend}"):
        return backend
    return "flash"


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_each_back_end_counts_the_two_products(place, backend, causal):
    model = attention(usable(place, backend), is_causal=causal)

    run = place.profile(model, torch.randn(B, H, L, D).half())

    # Q·Kᵀ and the sum over values: B·H·L² outputs of D, and B·H·L·D of L. A mask is no discount.
    assert run.totals.matmul_flops == 2 * (2 * B * H * L * L * D), reasons(run)
    products = run.sites[run.sites["matmul_flops"] > 0]
    assert set(products["op"]) == {"aten::scaled_dot_product_attention"}
    assert_linked(place, run)


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_back_ends_backward_pass_is_counted_and_linked(place, backend):
    chosen = usable(place, backend)
    model = nn.Sequential(nn.Linear(D, D, bias=False), attention(chosen))
    options: dict[str, Any] = {"train": True}
    if place.is_gpu:  # fused kernels take no float32
        model = model.half()

    x = torch.randn(B, H, L, D)
    run = place.profile(model, x.half() if place.is_gpu else x, **options)

    phases = run.by_phase().set_index("phase")["matmul_flops"]
    linear = 2 * B * H * L * D * D
    product = 2 * B * H * L * L * D
    assert phases["forward"] == linear + 2 * product, reasons(run)
    # The first layer's input needs no gradient. The math's products are kept and have two
    # gradients each; a kernel that does all makes Q·Kᵀ again.
    backward = 4 * product if chosen == "math" else 5 * product
    assert phases["backward"] == linear + backward, reasons(run)
    assert_linked(place, run)
    if place.has_cuda("backward kernels"):
        owners = run.ops.set_index("op_id").loc[compute_kernels(run)["op_id"], "phase"]
        assert (owners == "backward").any(), names(run.kernels)


def test_the_encoders_fast_path_is_fused_and_counts_as_its_parts(place):
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True).eval()

    run = place.profile(layer, torch.randn(2, 16, 64))

    # In and out projections 4·64², two products of 16 by 16, feed-forward 2·64·128: 32 tokens.
    expected = 2 * 32 * (4 * 64 * 64 + 2 * 64 * 128) + 2 * 2 * 2 * 16 * 16 * 64
    assert run.totals.matmul_flops == expected, reasons(run)
    assert "fused" in set(run.sites["verdict"]), reasons(run)
    assert_linked(place, run)


def test_grouped_query_attention_counts_every_query_head(place):
    def forward(module: nn.Module, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, k, enable_gqa=True)

    run = place.profile(Calls(forward), (torch.randn(2, 8, 32, 16), torch.randn(2, 2, 32, 16)))

    assert run.totals.matmul_flops == 2 * (2 * 2 * 8 * 32 * 32 * 16), reasons(run)
    assert_linked(place, run)
