"""Formulas of attention in every variant, forward and backward.

Per query head and pair of query and key: the products Q·Kᵀ (width D) and P·V (width Dv) are
matmul-class; vector-class are softmax 5, scale 1, a mask tensor 1 and dropout 2. A causal or
windowed attention counts as a full one. The same whether one fused kernel runs or two batched
products. A fused backward makes the scores again: five products, widths 3·D + 2·Dv; per score 6
(scale, subtract log-sum-exp, exp; subtract the row sum, multiply by P, scale), a mask 1, dropout 4,
and the row sums of dO·O 2 per output element. Soft caps, biases made of slopes and a mask's own
gradient are left out.
"""

from collections.abc import Callable
from functools import partial
from math import prod

from flopprof.formulas import OpCall, Work
from flopprof.formulas.ops._elements import broadcast, formula_for, moved_bytes, number
from flopprof.formulas.ops._shapes import Places, bounded, formula_with_places

op_formula = partial(formula_for, kind="attention")


@formula_with_places("attention", kind="attention")
def attention(call: OpCall, at: Places) -> Work | None:
    """Q·Kᵀ and P·V, 2·B·H·Lq·Lk·(E + Ev); per score softmax 5, scale 1, mask 1, dropout 2.

    Bounds where sequences are packed and their lengths are values.

    Key and value follow the query. "heads length" is [batch, heads, length, width], "length heads"
    [batch, length, heads, width]. Packed, [tokens, heads, width]: at least each query meets one
    key, at most each meets the longest sequence's, or all. With keys in pages and no longest
    length, or in tiles, not determined.
    """

    def work(scores: int) -> Work:
        query, _, value = _operands(call, at)
        matmul = 2 * scores * (query[-1] + value[-1])
        vector = scores * (6 + call.count(at["mask"]) + _dropout(call, at))
        read = {*range(at["query"], at["query"] + 3), at["mask"]}
        written = prod(query[:-1]) * value[-1]
        return Work(matmul, vector, _traffic(call, at, read, written))

    return _of_scores(call, at, work)


@formula_with_places("attention_backward", kind="attention")
def attention_backward(call: OpCall, at: Places) -> Work | None:
    """Q·Kᵀ again, Pᵀ·dO, dO·Vᵀ, dS·K and dSᵀ·Q, 2·B·H·Lq·Lk·(3·E + 2·Ev); per score 6, mask 1.

    The 6: scale, subtract log-sum-exp, exp; subtract the row sum, multiply by P, scale. Dropout 4
    per score; the row sums of dO·O, 2 per element of the output.

    Bounds as for the forward. Behind the query are key, value, output and log-sum-exp.
    """

    def work(scores: int) -> Work:
        query, key, value = _operands(call, at)
        matmul = 2 * scores * (3 * query[-1] + 2 * value[-1])
        row_sums = 2 * prod(query[:-1]) * value[-1]
        vector = scores * (6 + call.count(at["mask"]) + 2 * _dropout(call, at)) + row_sums
        operands = 6 if at["mask"] == at["query"] + 3 else 5  # the mask is among them
        read = {*range(at["query"] + operands), at["mask"]}
        written = prod(query) + prod(key) + prod(value)
        return Work(matmul, vector, _traffic(call, at, read, written))

    return _of_scores(call, at, work)


def _operands(call: OpCall, at: Places) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of query, key and value."""
    return tuple(call.shape(at["query"] + offset) for offset in range(3))


def _dropout(call: OpCall, at: Places) -> int:
    """Return the FLOPs per score of dropout: compare and multiply, where there is any."""
    return 2 if (number(call, at["dropout"]) or 0) > 0 else 0


def _traffic(call: OpCall, at: Places, read: set[int], written: int) -> int:
    """Return the bytes of the arguments that are read, and of the elements that are written."""
    return moved_bytes(call, *read) + written * call.itemsize_of(at["query"])


def _of_scores(call: OpCall, at: Places, work: Callable[[int], Work]) -> Work | None:
    """Return the work of as many scores, pairs of query and key, as the shapes say; None without.

    Args:
        call: The call.
        at: Where its arguments are.
        work: From a number of scores to their work.
    """
    query, key, value = _operands(call, at)
    heads_first = at["order"] == "heads length"
    if min(map(len, (query, key, value))) < (2 if heads_first else 3):
        return None
    if not heads_first and max(len(key), len(value)) > 4:
        return None  # keys in tiles
    if "lengths" in at and (len(query) == 3 or prod(call.shape(at["lengths"])) > 1):
        if heads_first and len(query) != 3:
            return None
        return _of_packed(call, at, work)
    if heads_first:
        return work(_batch(query[:-2], key[:-2], value[:-2]) * query[-2] * key[-2])
    if key[0] != query[0]:
        return None  # keys in pages
    return work(prod(query[:-1]) * key[1])


def _of_packed(call: OpCall, at: Places, work: Callable[[int], Work]) -> Work | None:
    """Return the bounds of the work of sequences whose lengths are values."""
    query, key, _ = _operands(call, at)
    queries = prod(query[:-2])
    heads = query[-2]
    keys = prod(key[:-2])
    most_queries, most_keys = (call.integer(at["longest"] + side) for side in range(2))
    if len(key) > len(query) and most_keys is None:
        return None  # keys in pages
    pairs = queries * (keys if most_keys is None else min(keys, most_keys))
    if most_queries is not None and len(key) == len(query):
        pairs = min(pairs, keys * most_queries)
    return bounded(work(heads * queries), work(heads * pairs))


@formula_with_places("paged_attention", kind="attention")
def paged_attention(call: OpCall, at: Places) -> Work | None:
    """One query per sequence, [sequences, heads, width]: it meets one key at least, or the most."""
    query = call.shape(at["query"])
    longest = call.integer(at["longest"])
    if len(query) != 3 or longest is None:
        return None
    rows = query[0] * query[1]
    least, most = (Work(4 * n * query[2], 6 * n) for n in (rows, rows * longest))
    return bounded(least, most)


def _batch(*shapes: tuple[int, ...]) -> int:
    """Return batch × query heads; keys may be broadcast, or shared by groups of heads."""
    width = max(map(len, shapes))
    padded = [(1,) * (width - len(shape)) + shape for shape in shapes]
    heads = padded[0][-1:] if padded[0][-1:] != (1,) else broadcast(*(p[-1:] for p in padded))
    return prod(broadcast(*(p[:-1] for p in padded))) * prod(heads)


def _multihead(call: OpCall, heads: int, mask_at: int, *, weights: int = 0) -> tuple[int, int, int]:
    """Return FLOPs of both classes and scores of a self- or cross-attention with its projections.

    `weights` asked for: the query is scaled instead of the scores; 2 averages the heads, 1 more.
    """
    query = call.shape(0)
    key = call.shape(1) or call.shape(0)
    embed = query[-1]
    queries = prod(query[:-1])
    keys = prod(key[:-1])
    scores = queries * heads * key[-2]
    matmul = 2 * embed * (2 * queries * embed + 2 * keys * embed + 2 * queries * key[-2])
    biases = (2 * queries + 2 * keys) * embed
    softmax = (5 + call.count(mask_at)) * scores
    scale = queries * embed if weights else scores
    averages = scores if weights == 2 else 0
    return matmul, biases + softmax + scale + averages, scores


@op_formula("_native_multi_head_attention _triton_multi_head_attention")
def native_multi_head_attention(call: OpCall) -> Work | None:
    """2·rows·E·3E, attention 4·B·L²·E, 2·rows·E·E; softmax and scale per score, biases.

    (query, key, value, embed_dim, num_head, in-projection 5 6, out-projection 7 8, mask,
    need_weights, average_attn_weights, …).
    """
    query = call.shape(0)
    heads = call.integer(4)
    if len(query) != 3 or heads is None:
        return None
    weights = 0
    if call.flag(10) is True:
        weights = 2 if call.flag(11) is True else 1
    matmul, vector, scores = _multihead(call, heads, 9, weights=weights)
    written = prod(query)
    if weights:
        written += scores // (heads if weights == 2 else 1)
    inputs = (0,) if call.shape(1) == query else (0, 1, 2)
    moved = moved_bytes(call, *inputs, *range(5, 10)) + written * call.itemsize_of(0)
    return Work(matmul, vector, moved)


@op_formula("_transformer_encoder_layer_fwd")
def transformer_encoder_layer(call: OpCall) -> Work | None:
    """Attention 8·rows·E² + 4·B·L²·E, linears 4·rows·E·F; activation, residual adds, layer norms.

    (src, embed_dim, num_heads, in-projection 3 4, out-projection 5 6, …, norms 10…13,
    feed-forward 14…17, mask 18, …).
    """
    src = call.shape(0)
    heads = call.integer(2)
    if len(src) != 3 or heads is None:
        return None
    tokens = prod(src[:-1])
    embed = src[-1]
    hidden = call.shape(14)[0]
    matmul, vector, _ = _multihead(call, heads, 18)
    # Biases hidden + embed, activation hidden; residual adds 2, layer norms 2·(5 + weight + bias).
    vector += tokens * (2 * hidden + embed + 2 * embed + 2 * 7 * embed)
    moved = moved_bytes(call, 0, *range(3, 7), *range(10, 19)) + prod(src) * call.itemsize_of(0)
    return Work(matmul + 4 * tokens * embed * hidden, vector, moved)


@op_formula("_transform_bias_rescale_qkv")
def transform_bias_rescale_qkv(call: OpCall) -> Work:
    """(query, key and value in one, their bias, heads): the bias 1, and the query's scale 1."""
    n = prod(call.shape(0))
    return Work(0, n + n // 3, moved_bytes(call, 0, 0, 1))
