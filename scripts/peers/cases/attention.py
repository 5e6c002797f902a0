"""Attention in the forms in which people write it.

B = 2 sequences of L = 6 positions, E = 16 features in h = 2 heads of d = 8, unless said. Both
products of an attention are B·h·L·L·d multiply-adds each. A causal one counts as a full one; half
of it is taken as right, too.
"""

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from peers.case import Calls, Case, Subject, calling, randn, weight

BOTH = 2 * 2 * (2 * 2 * 6 * 6 * 8)  # two products, two FLOPs a multiply-add
PROJECTIONS = 4 * 2 * (2 * 6 * 16 * 16)  # of query, key, value and output
FEED_FORWARD = 2 * 2 * (2 * 6 * 16 * 32)  # 16 → 32 → 16
SOFTMAX = 7 * 2 * 2 * 6 * 6  # scale, mask and softmax
LAYER = 2 * 6 * 16 * 30  # norms, residuals, biases and activation of a layer
CAUSAL = 2 * 2 * (2 * 2 * 21 * 8)  # 21 of 36 pairs
HALF = BOTH // 2
PADDING = torch.tensor([[False] * 6, [False] * 4 + [True] * 2])  # the second sequence has four


def heads(*size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return query, key and value of this size."""
    return randn(*size), randn(*size), randn(*size)


def sdpa(**options: object) -> nn.Module:
    """Return a module that calls torch's attention with the options."""
    return Calls(lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, **options))


def multihead(**options: object) -> Subject:
    """Return self-attention by torch's module, without its weights as an output."""
    layer = nn.MultiheadAttention(16, 2, batch_first=True, bias=False)
    model = Calls(lambda m, x: m.layer(x, x, x, **options)[0], layer=layer)
    return calling(model, randn(2, 6, 16))


def crossed() -> Subject:
    """Return attention of 4 queries over 6 keys of 12 and values of 10 features."""
    layer = nn.MultiheadAttention(16, 2, kdim=12, vdim=10, batch_first=True, bias=False)
    model = Calls(lambda m, q, k, v: m.layer(q, k, v, need_weights=False)[0], layer=layer)
    return calling(model, randn(2, 4, 16), randn(2, 6, 12), randn(2, 6, 10))


def with_bias_key() -> Subject:
    """Return attention with one more key and value, learnt."""
    layer = nn.MultiheadAttention(16, 2, batch_first=True, bias=False, add_bias_kv=True)
    model = Calls(lambda m, x: m.layer(x, x, x, need_weights=False)[0], layer=layer)
    return calling(model, randn(2, 6, 16))


def by_matmul(m: nn.Module, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Return attention as two products around a softmax."""
    return torch.matmul(torch.matmul(q, k.transpose(-1, -2)).softmax(-1), v)


def by_einsum(m: nn.Module, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Return attention as two einsums around a softmax."""
    scores = torch.einsum("bhid,bhjd->bhij", q, k).softmax(-1)
    return torch.einsum("bhij,bhjd->bhid", scores, v)


def by_baddbmm(m: nn.Module, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Return attention with a position bias that joins the product (ALiBi)."""
    scores = torch.baddbmm(torch.zeros(4, 6, 6), q, k.transpose(1, 2), alpha=8**-0.5)
    return torch.bmm(scores.softmax(-1), v)


def linear_attention(
    m: nn.Module, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> torch.Tensor:
    """Return attention without a softmax: keys meet values first."""
    return q @ (k.transpose(-1, -2) @ v)


def relative(m: nn.Module, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Return attention whose scores have a second product, with embeddings of distances."""
    scores = q @ k.transpose(-1, -2) + torch.einsum("bhid,ijd->bhij", q, m.distances)
    return scores.softmax(-1) @ v


def flexible(causal: bool) -> Subject:
    """Return flex attention, not compiled."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def below(b: object, h: object, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        return i >= j

    mask = create_block_mask(below, None, None, 6, 6, device="cpu") if causal else None
    model = Calls(lambda m, q, k, v: flex_attention(q, k, v, block_mask=mask))
    return calling(model, *heads(2, 2, 6, 8))


def gqa_by_hand(m: nn.Module, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Return attention of four query heads that share two heads of keys and values."""
    k, v = (each.repeat_interleave(2, dim=1) for each in (k, v))
    return F.scaled_dot_product_attention(q, k, v)


def encoder_layer(**options: object) -> nn.TransformerEncoderLayer:
    """Return torch's encoder layer, 16 features, 2 heads, 32 inside."""
    return nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, **options)


def padded_encoder() -> Subject:
    """Return an encoder whose second sequence is padded."""
    encoder = nn.TransformerEncoder(encoder_layer(), 2)
    model = Calls(lambda m, x: m.encoder(x, src_key_padding_mask=PADDING), encoder=encoder)
    return calling(model, randn(2, 6, 16))


def autocast(m: nn.Module, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Return attention under autocast."""
    with torch.autocast("cpu", torch.bfloat16):
        return F.scaled_dot_product_attention(m.layer(q), k, v)


CASES = [
    Case("sdpa", BOTH, "two products of 2·2·6·6·8", needs="fused attention",
         vector_flops=SOFTMAX, build=lambda: calling(sdpa(), *heads(2, 2, 6, 8))),
    Case("sdpa_causal", BOTH, "two products of 2·2·6·6·8; half, or 21 of 36 pairs, is as good",
         needs="fused attention", vector_flops=SOFTMAX, also=(HALF, CAUSAL),
         build=lambda: calling(sdpa(is_causal=True), *heads(2, 2, 6, 8))),
    Case("sdpa_float_mask", BOTH, "two products of 2·2·6·6·8", needs="attention with a mask",
         vector_flops=SOFTMAX,
         build=lambda: calling(
             Calls(lambda m, q, k, v, mask: F.scaled_dot_product_attention(q, k, v, mask)),
             *heads(2, 2, 6, 8), randn(6, 6))),
    Case("sdpa_bool_mask", BOTH, "two products of 2·2·6·6·8", needs="attention with a mask",
         vector_flops=SOFTMAX,
         build=lambda: calling(
             Calls(lambda m, q, k, v, mask: F.scaled_dot_product_attention(q, k, v, mask)),
             *heads(2, 2, 6, 8), torch.ones(6, 6, dtype=torch.bool).tril())),
    Case("sdpa_gqa", 2 * 2 * (2 * 4 * 6 * 6 * 8), "two products of 2·4·6·6·8: query heads",
         needs="grouped queries", vector_flops=2 * SOFTMAX,
         build=lambda: calling(sdpa(enable_gqa=True), randn(2, 4, 6, 8), randn(2, 2, 6, 8),
                               randn(2, 2, 6, 8))),
    Case("gqa_repeated", 2 * 2 * (2 * 4 * 6 * 6 * 8), "two products of 2·4·6·6·8",
         needs="fused attention", vector_flops=2 * SOFTMAX,
         build=lambda: calling(Calls(gqa_by_hand), randn(2, 4, 6, 8), randn(2, 2, 6, 8),
                               randn(2, 2, 6, 8))),
    Case("mqa", 2 * 2 * (2 * 4 * 6 * 6 * 8), "two products of 2·4·6·6·8", needs="grouped queries",
         vector_flops=2 * SOFTMAX,
         build=lambda: calling(sdpa(enable_gqa=True), randn(2, 4, 6, 8), randn(2, 1, 6, 8),
                               randn(2, 1, 6, 8))),
    Case("sdpa_cross", 2 * 2 * (2 * 2 * 4 * 6 * 8), "two products of 2·2·4·6·8",
         needs="fused attention", vector_flops=SOFTMAX,
         build=lambda: calling(sdpa(), randn(2, 2, 4, 8), randn(2, 2, 6, 8), randn(2, 2, 6, 8))),
    Case("sdpa_wide_value", 2 * (2 * 2 * 6 * 6) * (8 + 12), "2·2·6·6 pairs × (8 + 12)",
         needs="values of other width", vector_flops=SOFTMAX,
         build=lambda: calling(sdpa(), randn(2, 2, 6, 8), randn(2, 2, 6, 8), randn(2, 2, 6, 12))),
    Case("sdpa_3d", 2 * 2 * (4 * 6 * 6 * 8), "two products of 4·6·6·8", needs="fused attention",
         vector_flops=SOFTMAX, build=lambda: calling(sdpa(), *heads(4, 6, 8))),
    Case("sdpa_autocast", BOTH + 2 * (2 * 2 * 6 * 8 * 8),
         "two products of 2·2·6·6·8; 24 rows × 8 × 8",
         needs="fused attention", vector_flops=SOFTMAX,
         build=lambda: calling(Calls(autocast, layer=nn.Linear(8, 8, bias=False)),
                               *heads(2, 2, 6, 8))),
    Case("matmul_attention", BOTH, "two products of 2·2·6·6·8", needs="products outside modules",
         vector_flops=SOFTMAX, build=lambda: calling(Calls(by_matmul), *heads(2, 2, 6, 8))),
    Case("einsum_attention", BOTH, "two products of 2·2·6·6·8", needs="einsum",
         vector_flops=SOFTMAX, build=lambda: calling(Calls(by_einsum), *heads(2, 2, 6, 8))),
    Case("alibi_attention", BOTH, "two products of 4·6·6·8", needs="baddbmm",
         vector_flops=SOFTMAX + 4 * 36, build=lambda: calling(Calls(by_baddbmm), *heads(4, 6, 8))),
    Case("relative_attention", BOTH * 3 // 2, "three products of 2·2·6·6·8", needs="einsum",
         vector_flops=SOFTMAX + 2 * 2 * 36,
         build=lambda: calling(Calls(relative, distances=weight(6, 6, 8)), *heads(2, 2, 6, 8))),
    Case("linear_attention", 2 * 2 * (2 * 2 * 8 * 6 * 8), "two products of 2·2·8·6·8",
         needs="products outside modules",
         build=lambda: calling(Calls(linear_attention), *heads(2, 2, 6, 8))),
    Case("flex_attention", BOTH, "two products of 2·2·6·6·8", needs="flex attention",
         vector_flops=SOFTMAX, build=lambda: flexible(causal=False)),
    Case("flex_attention_causal", BOTH, "two products of 2·2·6·6·8", needs="flex attention",
         vector_flops=SOFTMAX, also=(HALF, CAUSAL), build=lambda: flexible(causal=True)),
    Case("mha", PROJECTIONS + BOTH,
         "four projections of 12 rows × 16 × 16; two products of 2·2·6·6·8",
         needs="fast path of attention", vector_flops=SOFTMAX + 4 * 12 * 16,
         build=lambda: multihead(need_weights=False)),
    Case("mha_weights", PROJECTIONS + BOTH,
         "four projections of 12 × 16 × 16; two products of 2·2·6·6·8",
         needs="fast path of attention", vector_flops=2 * SOFTMAX + 4 * 12 * 16, build=multihead),
    Case("mha_padding", PROJECTIONS + BOTH, "as without: no credit for padding",
         needs="fast path of attention", vector_flops=SOFTMAX + 4 * 12 * 16,
         build=lambda: multihead(need_weights=False, key_padding_mask=PADDING)),
    Case("mha_cross",
        2 * 2 * (4 * 16 * 16 + 6 * 12 * 16 + 6 * 10 * 16 + 4 * 16 * 16 + 2 * 4 * 6 * 16),
         "per sequence: queries 4·16·16, keys 6·12·16, values 6·10·16, output 4·16·16, "
         "two products of 4·6·16",
         needs="attention module", vector_flops=SOFTMAX + 4 * 12 * 16, build=crossed),
    Case("mha_bias_kv", PROJECTIONS + 2 * 2 * (2 * 2 * 6 * 7 * 8),
         "four projections of 12 × 16 × 16; two products of 2·2·6·7·8", needs="attention module",
         vector_flops=SOFTMAX * 2 + 4 * 12 * 16, build=with_bias_key),
    Case("encoder_layer", PROJECTIONS + BOTH + FEED_FORWARD,
         "projections 4·12·16·16, products 2·(2·2·6·6·8), feed-forward 2·12·16·32",
         needs="fast path of the encoder", vector_flops=SOFTMAX + LAYER,
         build=lambda: calling(encoder_layer(), randn(2, 6, 16))),
    Case("encoder_norm_first", PROJECTIONS + BOTH + FEED_FORWARD, "as encoder_layer",
         needs="fast path of the encoder", vector_flops=SOFTMAX + LAYER,
         build=lambda: calling(encoder_layer(norm_first=True), randn(2, 6, 16))),
    Case("encoder_padded", 2 * (PROJECTIONS + BOTH + FEED_FORWARD),
         "two layers; no credit for padding; 10 of 12 rows, as the fast path runs, is as good",
         needs="fast path of the encoder", vector_flops=2 * (SOFTMAX + LAYER),
         also=(2 * (10 * (PROJECTIONS + FEED_FORWARD) // 12 + BOTH),), build=padded_encoder),
    Case("decoder_layer", 2 * (PROJECTIONS + BOTH) + FEED_FORWARD,
         "self and cross attention, both of 6 positions, and a feed-forward",
         needs="attention module", vector_flops=2 * SOFTMAX + 2 * LAYER,
         build=lambda: calling(nn.TransformerDecoderLayer(16, 2, 32, batch_first=True),
                               randn(2, 6, 16), randn(2, 6, 16))),
    Case("transformer", 3 * (PROJECTIONS + BOTH) + 2 * FEED_FORWARD,
         "an encoder layer and a decoder layer", needs="fast path of the encoder",
         vector_flops=3 * SOFTMAX + 4 * LAYER,
         build=lambda: calling(nn.Transformer(16, 2, 1, 1, 32, batch_first=True), randn(2, 6, 16),
                               randn(2, 6, 16))),
]  # fmt: skip
