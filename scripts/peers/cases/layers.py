"""Layers: linear, convolutions of every kind, what parametrises them."""

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import parametrizations, prune

from peers.case import Calls, Case, Subject, calling, randn, weight


def pruned_linear() -> nn.Module:
    """Return a linear layer half of whose weights are masked: a full product still runs."""
    layer = nn.Linear(16, 32, bias=False)
    prune.l1_unstructured(layer, "weight", 0.5)
    return layer


def deformable() -> Subject:
    """Return a deformable convolution of torchvision: 2 → 4 channels, 3×3, on 8×8."""
    from torchvision.ops import deform_conv2d

    model = Calls(
        lambda m, x, offset: deform_conv2d(x, offset, m.weight), weight=weight(4, 2, 3, 3)
    )
    return calling(model, randn(1, 2, 8, 8), torch.zeros(1, 18, 6, 6))


def unfolded() -> nn.Module:
    """Return a convolution made of its patches and a product."""
    return Calls(lambda m, x: m.weight @ F.unfold(x, 3), weight=weight(8, 27))


IMAGE = (1, 3, 16, 16)
SMALL = (1, 8, 10, 10)

CASES = [
    Case("linear", 2 * 4 * 16 * 32, "4 rows × 16 × 32", needs="linear",
         build=lambda: calling(nn.Linear(16, 32, bias=False), randn(4, 16))),
    Case("linear_bias", 2 * 4 * 16 * 32, "4 rows × 16 × 32; the bias is elementwise",
         needs="linear", vector_flops=4 * 32,
         build=lambda: calling(nn.Linear(16, 32), randn(4, 16))),
    Case("linear_3d", 2 * 2 * 5 * 16 * 32, "2·5 rows × 16 × 32", needs="linear on 3-D",
         build=lambda: calling(nn.Linear(16, 32, bias=False), randn(2, 5, 16))),
    Case("linear_4d_bias", 2 * 2 * 3 * 5 * 16 * 32, "2·3·5 rows × 16 × 32", needs="linear on 3-D",
         vector_flops=2 * 3 * 5 * 32,
         build=lambda: calling(nn.Linear(16, 32), randn(2, 3, 5, 16))),
    Case("linear_1d", 2 * 16 * 32, "one row × 16 × 32", needs="linear on 1-D",
         build=lambda: calling(nn.Linear(16, 32, bias=False), randn(16))),
    Case("linear_bfloat16", 2 * 4 * 16 * 32, "4 rows × 16 × 32", needs="linear",
         build=lambda: calling(nn.Linear(16, 32, bias=False).bfloat16(), randn(4, 16).bfloat16())),
    Case("conv1d", 2 * 2 * 8 * 18 * 3 * 3, "2 samples × 8·18 outputs × 3·3", needs="conv1d",
         build=lambda: calling(nn.Conv1d(3, 8, 3, bias=False), randn(2, 3, 20))),
    Case("conv2d", 2 * 8 * 256 * 27, "8·16·16 outputs × 3·3·3", needs="conv2d",
         build=lambda: calling(nn.Conv2d(3, 8, 3, padding=1, bias=False), randn(*IMAGE))),
    Case("conv2d_bias", 2 * 8 * 256 * 27, "8·16·16 outputs × 3·3·3", needs="conv2d",
         vector_flops=8 * 256,
         build=lambda: calling(nn.Conv2d(3, 8, 3, padding=1), randn(*IMAGE))),
    Case("conv2d_batch", 2 * 5 * 8 * 256 * 27, "5 samples × 8·16·16 outputs × 3·3·3",
         needs="conv2d",
         build=lambda: calling(nn.Conv2d(3, 8, 3, padding=1, bias=False), randn(5, 3, 16, 16))),
    Case("conv2d_unbatched", 2 * 8 * 256 * 27, "8·16·16 outputs × 3·3·3",
         needs="convolution without a batch",
         build=lambda: calling(nn.Conv2d(3, 8, 3, padding=1, bias=False), randn(3, 16, 16))),
    Case("conv3d", 2 * 4 * 64 * 2 * 27, "4·4·4·4 outputs × 2·3·3·3", needs="conv3d",
         build=lambda: calling(nn.Conv3d(2, 4, 3, bias=False), randn(1, 2, 6, 6, 6))),
    Case("conv2d_strided", 2 * 8 * 64 * 27, "stride 2: 8·8·8 outputs × 3·3·3", needs="conv2d",
         build=lambda: calling(nn.Conv2d(3, 8, 3, 2, 1, bias=False), randn(*IMAGE))),
    Case("conv2d_dilated", 2 * 8 * 144 * 27, "dilation 2: 8·12·12 outputs × 3·3·3", needs="conv2d",
         build=lambda: calling(nn.Conv2d(3, 8, 3, dilation=2, bias=False), randn(*IMAGE))),
    Case("conv2d_grouped", 2 * 16 * 100 * 2 * 9, "16·10·10 outputs × (8/4)·3·3", needs="conv2d",
         build=lambda: calling(nn.Conv2d(8, 16, 3, padding=1, groups=4, bias=False),
                               randn(*SMALL))),
    Case("conv2d_depthwise", 2 * 8 * 100 * 9, "8·10·10 outputs × 1·3·3", needs="conv2d",
         build=lambda: calling(nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
                               randn(*SMALL))),
    Case("conv2d_depth_multiplier", 2 * 16 * 100 * 9, "16·10·10 outputs × 1·3·3", needs="conv2d",
         build=lambda: calling(nn.Conv2d(8, 16, 3, padding=1, groups=8, bias=False),
                               randn(*SMALL))),
    Case("conv2d_pointwise", 2 * 16 * 100 * 8, "16·10·10 outputs × 8", needs="conv2d",
         build=lambda: calling(nn.Conv2d(8, 16, 1, bias=False), randn(*SMALL))),
    Case("conv2d_oblong", 2 * 4 * 100 * 8 * 7, "4·10·10 outputs × 8·1·7", needs="conv2d",
         build=lambda: calling(nn.Conv2d(8, 4, (1, 7), padding=(0, 3), bias=False),
                               randn(*SMALL))),
    Case("conv2d_same", 2 * 4 * 100 * 8 * 9, "4·10·10 outputs × 8·3·3", needs='padding="same"',
         build=lambda: calling(nn.Conv2d(8, 4, 3, padding="same", bias=False), randn(*SMALL))),
    Case("conv2d_reflect", 2 * 4 * 100 * 8 * 9, "4·10·10 outputs × 8·3·3", needs="conv2d",
         build=lambda: calling(nn.Conv2d(8, 4, 3, padding=1, padding_mode="reflect", bias=False),
                               randn(*SMALL))),
    Case("conv2d_channels_last", 2 * 4 * 100 * 8 * 9, "4·10·10 outputs × 8·3·3", needs="conv2d",
         build=lambda: calling(
             nn.Conv2d(8, 4, 3, padding=1, bias=False).to(memory_format=torch.channels_last),
             randn(*SMALL).to(memory_format=torch.channels_last))),
    Case("conv_transpose1d", 2 * 10 * 4 * 6 * 4,
         "each of 10 inputs × 4 channels meets 6·4 weights", needs="transposed convolution",
         build=lambda: calling(nn.ConvTranspose1d(4, 6, 4, 2, bias=False), randn(1, 4, 10))),
    Case("conv_transpose2d", 2 * 64 * 4 * 6 * 9,
         "each of 8·8 inputs × 4 channels meets 6·3·3 weights", needs="transposed convolution",
         build=lambda: calling(nn.ConvTranspose2d(4, 6, 3, 2, 1, bias=False),
                               randn(1, 4, 8, 8))),
    Case("conv_transpose2d_grouped", 2 * 64 * 4 * 3 * 9,
         "each of 8·8 inputs × 4 channels meets (6/2)·3·3 weights",
         needs="transposed convolution",
         build=lambda: calling(nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False),
                               randn(1, 4, 8, 8))),
    Case("conv_transpose3d", 2 * 27 * 2 * 3 * 8,
         "each of 3·3·3 inputs × 2 channels meets 3·2·2·2 weights",
         needs="transposed convolution",
         build=lambda: calling(nn.ConvTranspose3d(2, 3, 2, bias=False), randn(1, 2, 3, 3, 3))),
    Case("deform_conv2d", 2 * 4 * 36 * 2 * 9, "4·6·6 outputs × 2·3·3; sampling is elementwise",
         needs="torchvision's own ops", library="torchvision", build=deformable),
    Case("unfold_and_product", 2 * 8 * 27 * 196, "8 × 27 × 14·14 patches", needs="product",
         build=lambda: calling(unfolded(), randn(*IMAGE))),
    Case("bilinear", 2 * 3 * 5 * (8 * 6 + 6), "3 rows × 5 outputs × (8·6, then 6)",
         needs="bilinear",
         build=lambda: calling(nn.Bilinear(8, 6, 5, bias=False), randn(3, 8), randn(3, 6))),
    Case("embedding", 0, "a look-up contracts nothing", needs="nothing to count",
         build=lambda: calling(nn.Embedding(10, 8), torch.tensor([[1, 2, 3]]))),
    Case("embedding_bag", 0, "sums of rows contract nothing", needs="nothing to count",
         vector_flops=4 * 8,
         build=lambda: calling(nn.EmbeddingBag(10, 8, mode="sum"), torch.tensor([[1, 2], [3, 4]]))),
    Case("batch_norm_relu_pool", 0, "elementwise work only", needs="nothing to count",
         vector_flops=12 * 800,
         build=lambda: calling(nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2)),
                               randn(*SMALL))),
    Case("fft_outside", 2 * 4 * 16 * 32, "4 rows × 16 × 32; an FFT is no contraction",
         needs="linear", vector_flops=4 * 32 * 5 * 5 + 4 * 32,
         build=lambda: calling(
             Calls(lambda m, x: torch.fft.fft(m.layer(x)).real,
                   layer=nn.Linear(16, 32, bias=False)), randn(4, 16))),
    Case("weight_norm", 2 * 4 * 16 * 32, "4 rows × 16 × 32; the norm is elementwise",
         needs="linear", vector_flops=6 * 16 * 32,
         build=lambda: calling(parametrizations.weight_norm(nn.Linear(16, 32, bias=False)),
                               randn(4, 16))),
    Case("spectral_norm", 2 * 4 * 16 * 32 + 2 * 32 * 16 + 2 * 32,
         "4 rows × 16 × 32; and σ = uᵀ(W·v): 32·16, then 32", needs="products outside modules",
         vector_flops=2 * 16 * 32,
         build=lambda: calling(parametrizations.spectral_norm(nn.Linear(16, 32, bias=False)),
                               randn(4, 16))),
    Case("pruned", 2 * 4 * 16 * 32, "4 rows × 16 × 32: the mask saves nothing", needs="linear",
         vector_flops=16 * 32, build=lambda: calling(pruned_linear(), randn(4, 16))),
    Case("lazy_linear", 2 * 4 * 16 * 32, "4 rows × 16 × 32", needs="linear",
         build=lambda: calling(nn.LazyLinear(32, bias=False), randn(4, 16))),
    Case("small_cnn", 2 * 8 * 256 * 27 + 2 * 16 * 64 * 72 + 2 * 16 * 10,
         "8·16·16 × 27, then at 8×8 16·8·8 × 8·9, then 16 × 10", needs="conv2d and linear",
         vector_flops=2 * 8 * 256 + 4 * 8 * 256 + 8 * 256 + 2 * 16 * 64 + 10 + 16 * 64,
         build=lambda: calling(
             nn.Sequential(
                 nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
                 nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                 nn.Linear(16, 10)), randn(*IMAGE))),
]  # fmt: skip
