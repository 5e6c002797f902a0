"""Formulas of attention: every kernel's name, packed sequences, fused layers, backward."""

import gzip
import inspect
import json
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F  # noqa: N812  # its usual name
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import flop_registry

from flopprof.formulas import OP_FORMULAS, ModuleCall, Work
from flopprof.formulas.modules import find_module_formula
from flopprof.formulas.ops._shapes import PLACES
from tests.formulas._calls import formula, is_op, ones, outermost, places, torch_counts, total
from tests.formulas._walk import _op_call, work_of

attend = F.scaled_dot_product_attention
# Queries 2·4·6 of width 8, keys 5, values of width 3.
Q, K, V, OUT = (2, 4, 6, 8), (2, 4, 5, 8), (2, 4, 5, 3), (2, 4, 6, 3)
SCORES = 240  # 2·4·6·5
# 240 × (8 + 3) multiply-adds; 6 per score; 4·(384 + 320 + 120 + 144) bytes.
PLAIN = Work(5280, 1440, 3872)


@pytest.mark.parametrize(
    ("op", "mask_at", "dropout_at", "count"),
    [
        ("aten::scaled_dot_product_attention", 3, 4, 8),
        ("aten::_scaled_dot_product_attention_math", 3, 4, 9),
        ("aten::_scaled_dot_product_fused_attention_overrideable", 3, 4, 8),
        ("aten::_scaled_dot_product_efficient_attention", 3, 5, 8),
        ("aten::_scaled_dot_product_cudnn_attention", 3, 5, 9),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", 5, 3, 7),
        ("aten::_scaled_dot_product_flash_attention", None, 3, 7),
    ],
)
def test_every_forward_counts_the_same(op, mask_at, dropout_at, count):
    shapes: list[Any] = [Q, K, V, *[None] * (count - 3)]

    assert formula(op, *shapes) == PLAIN
    # Dropout: draw the mask's product and the scale for each score.
    assert formula(op, *shapes, **{f"_{dropout_at}": "0.1"}) == Work(5280, 1920, 3872)
    if mask_at is not None:
        shapes[mask_at] = (6, 5)
        # A mask is one add per score, and 30 elements read.
        assert formula(op, *shapes) == Work(5280, 1680, 3992)


@pytest.mark.parametrize(
    ("op", "mask_at", "dropout_at"),
    [
        ("aten::_flash_attention_forward", None, 7),
        ("aten::_efficient_attention_forward", 3, 8),
        ("flash_attn::_flash_attn_forward", None, 3),
        ("xformers_flash::flash_fwd", None, 8),
        ("flash_attn_3::fwd", None, None),
    ],
)
def test_ops_with_heads_behind_the_length_count_the_same(op, mask_at, dropout_at):
    shapes = [(2, 6, 4, 8), (2, 5, 4, 8), (2, 5, 4, 3), *[None] * 12]

    assert formula(op, *shapes) == PLAIN
    if dropout_at is not None:
        assert formula(op, *shapes, **{f"_{dropout_at}": "0.1"}) == Work(5280, 1920, 3872)
    if mask_at is not None:
        shapes[mask_at] = (2, 4, 6, 5)
        assert formula(op, *shapes) == Work(5280, 1680, 3872 + 4 * SCORES)


def test_arguments_are_where_the_schemas_have_them():
    wanted = {
        "query": "query|q",
        "mask": "attn_mask|attn_bias|bias",
        "dropout": "dropout_p",
        "lengths": "cum_seq_q|cu_seqlens_q",
        "longest": "max_q|max_seqlen_q",
    }
    compared = set()
    for row in (*PLACES["attention"], *PLACES["attention_backward"]):
        for op in row["ops"].split():
            if "::" in op or op[0].isupper():
                continue  # another package's
            if not is_op(f"aten::{op}"):
                continue  # of an older or a newer torch
            compared.add(op)
            found = places(f"aten::{op}", *wanted.values())
            if op.startswith("_scaled_dot_product") and op.endswith("backward"):
                found[3:] = [99, 99]  # lengths of what it was called with: never packed
            assert found == [row[name] for name in wanted], op
    assert {"_flash_attention_forward", "_efficient_attention_backward"} <= compared


# Five products of widths 8, 3, 3, 8, 8; 6 per score, 2 per element of dO·O. Read dO, q, k, v, O and
# 48 log-sum-exps, written three gradients: 4·(144 + 824 + 144 + 48 + 824) bytes.
GRADS = Work(2 * SCORES * 30, 6 * SCORES + 2 * 144, 7936)


@pytest.mark.parametrize(
    ("op", "order", "dropout_at"),
    [
        ("aten::_scaled_dot_product_flash_attention_backward", "o l", 10),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "o l _ _ m", 6),
        ("aten::_scaled_dot_product_efficient_attention_backward", "m o l", 9),
        ("aten::_scaled_dot_product_cudnn_attention_backward", "o l _ _ m", 13),
    ],
)
def test_every_backward_makes_five_products(op, order, dropout_at):
    known = {"o": OUT, "l": (2, 4, 6)}

    def work(**values):
        rest = [known.get(word) for word in order.split()]
        return formula(op, OUT, Q, K, V, *rest, *[None] * 9, **values)

    assert work() == GRADS
    # The mask of the scores, and of their gradient; two FLOPs each.
    dropped = work(**{f"_{dropout_at}": "0.1"})
    assert dropped == Work(GRADS.matmul_flops, GRADS.vector_flops + 4 * SCORES, 7936)
    if "m" in order:
        known["m"] = (6, 5)
        assert work() == Work(GRADS.matmul_flops, GRADS.vector_flops + SCORES, 7936 + 120)


@pytest.mark.parametrize(
    ("query", "key", "value"),
    [
        ((2, 4, 6, 8), (2, 4, 5, 8), (2, 4, 5, 8)),
        ((4, 6, 8), (4, 5, 8), (4, 5, 8)),
        ((2, 4, 6, 8), (1, 4, 5, 8), (1, 4, 5, 3)),
        ((4, 6, 8), (2, 4, 5, 8), (2, 4, 5, 8)),
    ],
)
def test_real_attention_is_the_same_as_its_two_products(query, key, value):
    q, k, v = ones(*query), ones(*key), ones(*value)

    matmul, _ = total(lambda: attend(q, k, v))

    with sdpa_kernel(SDPBackend.MATH):
        assert matmul == torch_counts(lambda: attend(q, k, v)) > 0


def test_grouped_queries_count_all_their_heads():
    q, k = ones(2, 4, 6, 8), ones(2, 2, 5, 8)
    grouped = outermost(lambda: attend(q, k, k, enable_gqa=True))

    # 2·4·6·5 = 240 scores × 16.
    assert grouped == ("aten::scaled_dot_product_attention", Work(7680, 1440, 4 * (768 + 320)))


def test_a_causal_attention_counts_as_a_full_one():
    q = ones(1, 2, 6, 8)

    assert total(lambda: attend(q, q, q, is_causal=True)) == total(lambda: attend(q, q, q))


@pytest.mark.parametrize("masked", [False, True])
def test_real_backward_agrees_with_pytorchs_counter(masked):
    q, k = ones(2, 4, 6, 8), ones(2, 4, 5, 8)
    mask = torch.zeros(6, 5) if masked else None

    matmul, _ = total(lambda: attend(q, k, k, mask).sum().backward())

    # 2·4·6·5 = 240 scores of 8 multiply-adds in each of 2 products forward and 5 backward.
    assert matmul == 2 * 240 * 8 * 7
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    if kernel in flop_registry:  # since torch 2.15
        assert matmul == torch_counts(lambda: attend(q, k, k, mask).sum().backward())


def test_packed_sequences_are_bounded():
    shapes = [(16, 4, 8), (20, 4, 8), (20, 4, 8), (4,), (4,)]

    def bounds(**values):
        work = formula("aten::_flash_attention_forward", *shapes, *[None] * 4, **values)
        assert work is not None
        return work.matmul_flops, work.vector_flops, work.flops_at_most

    # 4 heads × 16 tokens: each meets at least one key, at most all 20, or the longest sequence's 7;
    # each key at most 5 queries: 20·5 = 100 pairs are fewer than 16·7. A pair is 2·16 + 6 FLOPs.
    least = 2 * 64 * 16, 6 * 64
    assert bounds() == (*least, 4 * 320 * 38)
    assert bounds(_6="7") == (*least, 4 * 112 * 38)
    assert bounds(_5="5", _6="7") == (*least, 4 * 100 * 38)


def test_packed_sequences_keep_their_batch_axis_in_efficient_attention():
    shapes = [(1, 16, 4, 8), (1, 20, 4, 8), (1, 20, 4, 8), None]

    packed = formula("aten::_efficient_attention_forward", *shapes, (4,), (4,), *[None] * 3)
    alone = formula("aten::_efficient_attention_forward", *shapes, *[None] * 5)

    assert alone is not None
    assert packed is not None
    assert packed.flops_at_most == alone.matmul_flops + alone.vector_flops == 4 * 320 * 38


def test_keys_in_pages_are_bounded_by_the_longest_sequence():
    shapes = [(16, 4, 8), (100, 32, 4, 8), (100, 32, 4, 8), (4,), (4,)]
    op = "flash_attn::_flash_attn_varlen_forward"

    work = formula(op, *shapes, None, None, _5="5", _6="7")

    assert work is not None
    assert work.flops_at_most == 4 * 16 * 7 * 38
    assert formula(op, *shapes, None, None) is None
    assert formula("flash_attn_3::fwd", (2, 1, 4, 8), *[(100, 32, 4, 8)] * 2, None) is None


@pytest.mark.parametrize(
    ("op", "lengths_at"),
    [
        ("aten::_flash_attention_backward", 6),
        ("aten::_efficient_attention_backward", 6),
        ("flash_attn::_flash_attn_varlen_backward", 9),
        ("flash_attn_3::_flash_attn_backward", 6),
        ("flash_attn_3::bwd", 9),
    ],
)
def test_packed_backward_is_bounded(op, lengths_at):
    one = (1, 16, 4, 8) if "efficient" in op else (16, 4, 8)
    shapes: list[Any] = [one] * 4 + [None] * 10
    shapes[lengths_at] = (4,)

    work = formula(op, *shapes)

    # 4·16 pairs at least, 4·16·16 at most, of 2·5·8 + 6 FLOPs; 2·512 for the row sums.
    assert work is not None
    assert (work.matmul_flops, work.vector_flops) == (5120, 384 + 1024)
    assert work.flops_at_most == 1024 * 86 + 1024


def modules_say(module, *args, **kwargs):
    with torch.no_grad():
        output = module(*args, **kwargs)
    found = find_module_formula(module)
    assert found is not None
    return found(ModuleCall(module, args, kwargs, output))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("weights", "average"), [(False, True), (True, True), (True, False)])
def test_fused_multi_head_attention_agrees_with_the_module(weights, average, masked):
    module = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    x = torch.zeros(2, 6, 8)
    given = {"need_weights": weights, "average_attn_weights": average}
    if masked:
        given["attn_mask"] = torch.zeros(6, 6, dtype=torch.bool)

    with torch.no_grad():
        op, work = outermost(lambda: module(x, x, x, **given))

    # Projections 12·(3·8·8 + 8·8), 2·(2·2·6·6·4): 2·(3072 + 1152) = 8448.
    assert op == "aten::_native_multi_head_attention"
    assert work is not None
    said = modules_say(module, x, x, x, **given)
    assert (work.matmul_flops, work.vector_flops) == (8448, said.vector_flops)
    assert said.matmul_flops == 8448


def test_the_fused_encoder_layer_counts_like_its_parts():
    module = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = torch.zeros(2, 6, 8)
    with torch.no_grad():
        op, work = outermost(lambda: module(x))

    slow, _ = total(lambda: module(x))  # with gradients it runs op by op

    # Attention 8448, and 2·12·8·16·2 = 6144. Vector: biases 12·(24 + 8 + 16 + 8), scores 144·6,
    # activation 12·16, two residual adds and two norms 12·8·(2 + 14): 672 + 864 + 192 + 1536.
    assert op == "aten::_transformer_encoder_layer_fwd"
    assert work is not None
    assert (work.matmul_flops, work.vector_flops) == (14592, 3264)
    assert slow == 14592


@pytest.mark.filterwarnings("ignore:.*nested tensors")
def test_a_padded_encoder_layer_leaves_it_to_the_products_of_real_tokens():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    module = nn.TransformerEncoder(layer, 1).eval()
    padding = torch.zeros(2, 6, dtype=torch.bool)
    padding[0, 4:] = True

    with torch.no_grad():
        matmul, _ = total(lambda: module(torch.zeros(2, 6, 8), src_key_padding_mask=padding))

    # 10 of 12 tokens are real: 2·10·(256 + 256); the attention is padded: 2·1152.
    assert matmul == 10240 + 2304


def test_a_projections_bias_and_scale():
    # [2, 6, 24]: 288 bias adds, and a scale for the query's third.
    work = formula("aten::_transform_bias_rescale_qkv", (2, 6, 24), (24,), None)

    assert work == Work(0, 384, 4 * (2 * 288 + 24))


def traced(path, *names):
    with gzip.open(path) as file:
        events = json.load(file)["traceEvents"]
    calls = {n: [_op_call(e) for e in events if e.get("name") == n] for n in names}
    return {name: [work_of(call) for call in found] for name, found in calls.items()}


def test_a_real_gpu_trace_counts_the_same_on_every_level(gpu_traces):
    names = (
        "aten::scaled_dot_product_attention",
        "aten::_scaled_dot_product_flash_attention",
        "aten::_flash_attention_forward",
    )
    found = traced(gpu_traces / "h100_vit_infer.json.gz", *names)

    # ViT-B/16 on 4 images: 4·12·197·197 scores of widths 64 and 64, 6 FLOPs each.
    for name in names:
        assert {(w.matmul_flops, w.vector_flops) for w in found[name]} == {
            (2 * 1862832 * 128, 6 * 1862832)
        }
        assert len(found[name]) == 12


def test_a_real_trace_of_packed_sequences_is_bounded(gpu_traces):
    names = "flash_attn_3::fwd", "flash_attn_3::bwd"
    found = traced(gpu_traces / "h100_nanogpt_train_rank0.json.gz", *names)

    # 6 heads, 16384 tokens in sequences of at most 2048: widths 2·128, backward 5·128.
    pairs = 6 * 16384 * 2048
    assert {w.flops_at_most for w in found[names[0]]} == {pairs * (2 * 256 + 6)}
    rows = 2 * 16384 * 6 * 128
    assert {w.flops_at_most for w in found[names[1]]} == {pairs * (2 * 640 + 6) + rows}


sizes = st.integers(1, 3)


@settings(max_examples=30, deadline=None)
@given(sizes, sizes, sizes, sizes, sizes, sizes)
def test_the_formula_agrees_with_loops_over_scores_and_widths(batch, heads, rows, keys, wide, out):
    scores = list(product(range(batch), range(heads), range(rows), range(keys)))
    multiply_adds = sum(1 for _ in product(scores, range(wide))) + sum(
        1 for _ in product(scores, range(out))
    )

    work = formula(
        "aten::scaled_dot_product_attention",
        (batch, heads, rows, wide),
        (batch, heads, keys, wide),
        (batch, heads, keys, out),
    )

    assert work is not None
    assert (work.matmul_flops, work.vector_flops) == (2 * multiply_adds, 6 * len(scores))


@pytest.mark.parametrize("op", ["aten::_flash_attention_backward", "flash_attn_3::bwd"])
def test_a_backward_explains_its_own_mathematics(op):
    forward = inspect.getdoc(OP_FORMULAS.require("aten::_flash_attention_forward").function)
    backward = inspect.getdoc(OP_FORMULAS.require(op).function)

    assert "2·B·H·Lq·Lk·(E + Ev)" in str(forward)
    assert "2·B·H·Lq·Lk·(3·E + 2·Ev)" in str(backward)
