"""Formulas of attention in every variant, forward and backward.

Per query head and pair of query and key: the products Q·Kᵀ (width D) and P·V (width Dv) are
matmul-class; softmax is 5, the scale 1 and a mask tensor 1 (vector class). A causal attention
counts as a full one. The same whether one fused kernel runs or two batched products.
"""

from math import prod

from flopprof.formulas import OpCall, Shape, Work
from flopprof.formulas.ops._elements import formula_for, moved_bytes, rows

_SCORE = 6  # softmax 5, scale 1
# Per score in the backward of a fused kernel: scale, subtract log-sum-exp, exp (P again); subtract
# the row sum, multiply by P, scale. The row sums dO·O are 2 per output element.
_SCORE_BACKWARD = 6


def _scores(query: Shape, key: Shape, layout: str) -> int:
    """Return batch × query heads × query length × key length."""
    length = -2 if layout == "heads first" else -3
    return prod(query[:-1]) * key[length]


def _forward(call: OpCall, query: Shape, key: Shape, value: Shape, layout: str, mask: int) -> Work:
    scores = _scores(query, key, layout)
    written = prod(query[:-1]) * value[-1]
    vector = (_SCORE + call.has(mask)) * scores
    moved = moved_bytes(call, 0, 1, 2, mask) + written * call.itemsize_of(0)
    return Work(2 * scores * (query[-1] + value[-1]), vector, moved)


# layout | where the mask is (99: none) | names; query, key, value are 0, 1, 2
_FORWARD = """
heads first | 3 | scaled_dot_product_attention _scaled_dot_product_efficient_attention
    _scaled_dot_product_cudnn_attention _scaled_dot_product_attention_math
    _scaled_dot_product_attention_math_for_mps _scaled_dot_product_fused_attention_overrideable
heads first | 5 | _scaled_dot_product_flash_attention_for_cpu
heads first | 99 | _scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_quantized
"""
for (_layout, _mask), _names in rows(_FORWARD):

    @formula_for(_names)
    def attention(call: OpCall, layout: str = _layout, mask: int = int(_mask)) -> Work:
        """softmax(Q·Kᵀ·scale + mask)·V; grouped queries share keys and values."""
        return _forward(call, call.shape(0), call.shape(1), call.shape(2), layout, mask)


# grad_output is 0, query 1, key 2, value 3, output and log-sum-exp 4 and 5
@formula_for(
    "_scaled_dot_product_flash_attention_backward _scaled_dot_product_cudnn_attention_backward"
    " _scaled_dot_product_flash_attention_for_cpu_backward"
    " _scaled_dot_product_efficient_attention_backward"
    " _scaled_dot_product_fused_attention_overrideable_backward"
)
def attention_backward(call: OpCall) -> Work:
    """Five products: Q·Kᵀ again, dO·Vᵀ, Pᵀ·dO, dS·K, dSᵀ·Q: widths 3·D + 2·Dv."""
    query, key, value = map(call.shape, (1, 2, 3))
    return _backward(call, query, key, value, _scores(query, key, "heads first"))


def _backward(call: OpCall, query: Shape, key: Shape, value: Shape, scores: int) -> Work:
    rows_out = prod(query[:-1]) * value[-1]
    written = prod(query) + prod(key) + prod(value)
    moved = moved_bytes(call, 0, 1, 2, 3, 4, 5) + written * call.itemsize_of(1)
    matmul = 2 * scores * (3 * query[-1] + 2 * value[-1])
    return Work(matmul, _SCORE_BACKWARD * scores + 2 * rows_out, moved)


# where query is | where cumulative lengths may be | mask; heads lie behind the length
_BY_LENGTH = """
0 | 3 | 99 | _flash_attention_forward flash_attn::_flash_attn_forward
0 | 4 | 3 | _efficient_attention_forward xformers::efficient_attention_forward_cutlass
0 | 7 | 99 | flash_attn_3::fwd flash_attn_3::_flash_attn_forward vllm_flash_attn3::fwd
0 | 3 | 99 | flash_attn::_flash_attn_varlen_forward
1 | 6 | 99 | _flash_attention_backward
1 | 6 | 99 | _efficient_attention_backward
1 | 6 | 99 | flash_attn_3::bwd flash_attn::_flash_attn_backward
"""
for (_query, _lengths, _mask), _names in rows(_BY_LENGTH):

    @formula_for(_names)
    def attention_by_length(
        call: OpCall, at: int = int(_query), lengths: int = int(_lengths), mask: int = int(_mask)
    ) -> Work | None:
        """[batch, length, heads, width], forward or backward; bounds where sequences are packed.

        Packed, [tokens, heads, width], the lengths are values. At most all tokens are one sequence;
        at least each token attends to itself.
        """
        query, key, value = map(call.shape, (at, at + 1, at + 2))
        if len(query) not in (3, 4):
            return None
        packed = len(query) == 3 or (call.has(lengths) and len(call.shape(lengths)) == 1)
        heads = query if len(query) == 4 else (1, *query)
        other = key if len(key) == 4 else (1, *key)
        scores = _scores(heads, other, "length first")

        def work(scores: int) -> Work:
            if at == 1:
                return _backward(call, query, key, value, scores)
            vector = (_SCORE + call.has(mask)) * scores
            written = prod(query[:-1]) * value[-1]
            moved = moved_bytes(call, 0, 1, 2) + written * call.itemsize_of(0)
            return Work(2 * scores * (query[-1] + value[-1]), vector, moved)

        if not packed:
            return work(scores)
        least, most = work(prod(query[:-1])), work(scores)
        bound = most.matmul_flops + most.vector_flops
        return Work(least.matmul_flops, least.vector_flops, least.min_bytes, bound)


@formula_for("_fused_sdp_choice")
def sdp_choice(_call: OpCall) -> Work:
    """Chooses a kernel; computes nothing."""
    return Work()


def _multihead(
    call: OpCall, query: Shape, key: Shape, embed: int, heads: int, mask: int, *, weights: int = 0
) -> Work:
    """Return in-projections, attention and out-projection, with their biases."""
    queries, keys = prod(query[:-1]), prod(key[:-1])
    scores = queries * heads * key[-2]
    matmul = 2 * embed * (2 * queries * embed + 2 * keys * embed + 2 * queries * key[-2])
    vector = (2 * queries + 2 * keys) * embed + (5 + call.has(mask)) * scores
    # Asked for its weights it scales the query instead of the scores, and may average the heads.
    vector += queries * embed + (scores if weights == 2 else 0) if weights else scores
    return Work(matmul, vector, 0)


@formula_for("_native_multi_head_attention")
def native_multi_head_attention(call: OpCall) -> Work | None:
    """(query, key, value, embed_dim, num_head, in-, out-projection, mask, need_weights, …)."""
    query, key = call.shape(0), call.shape(1)
    embed, heads = call.integer(3), call.integer(4)
    if len(query) != 3 or embed is None or heads is None:
        return None  # a nested tensor: its lengths are values
    weights = (1 + (call.flag(11) is not False)) if call.flag(10) is not False else 0
    work = _multihead(call, query, key, embed, heads, 9, weights=weights)
    moved = moved_bytes(call, 0, 5, 6, 7, 8, 9) + prod(query) * call.itemsize_of(0)
    return Work(work.matmul_flops, work.vector_flops, moved)


@formula_for("_transformer_encoder_layer_fwd")
def transformer_encoder_layer(call: OpCall) -> Work | None:
    """Multi-head attention, two linears and an activation, two residual adds, two layer norms.

    (src, embed_dim, num_heads, in-projection 3 4, out-projection 5 6, …, norms 10…13,
    feed-forward 14…17, mask 18, …).
    """
    src, embed, heads = call.shape(0), call.integer(1), call.integer(2)
    if len(src) != 3 or embed is None or heads is None:
        return None  # a nested tensor: its lengths are values
    tokens, hidden = prod(src[:-1]), call.shape(14)[0]
    inside = _multihead(call, src, src, embed, heads, 18)
    feed_forward = 2 * tokens * embed * hidden * 2
    # Biases hidden + embed, activation hidden; residual adds 2, layer norms 2·(5 + weight + bias).
    vector = tokens * (2 * hidden + embed + 2 * embed + 2 * 7 * embed)
    moved = moved_bytes(call, 0, *range(3, 7), *range(10, 19)) + prod(src) * call.itemsize_of(0)
    return Work(inside.matmul_flops + feed_forward, inside.vector_flops + vector, moved)
