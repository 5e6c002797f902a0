"""Count the nodes that ONNX Runtime's optimisers make, of the domain com.microsoft.

What a node fuses counts as its parts would. Where a value that is no shape decides, such as how
long a buffer of past keys is filled, the longest that the shapes allow is counted.
"""

from math import prod

from flopprof.formulas import Shape
from flopprof.formulas.nodes import Count, Formula, Node, has, is_floating, shape_of, size

_SOFTMAX = 5  # per score, and 1 for its scale


def _convolution(node: Node) -> Count:
    """As Conv; a bias, what is added (Z) and the activation are one for each output."""
    weight = shape_of(node, 1)
    outputs = size(node.outputs, 0)
    extra = int(has(node, 2)) + int(has(node, 3)) + int(bool(node.attributes.get("activation")))
    return 2 * outputs * prod(weight[1:]), extra * outputs


def _fused_matmul(node: Node) -> Count:
    """2·outputs·k; one for each output where alpha scales it. Both operands may be transposed."""
    left = shape_of(node, 0)
    outputs = size(node.outputs, 0)
    is_transposed = bool(node.attributes.get("transA")) and len(left) > 1
    inner = left[-2 if is_transposed else -1] if left else 0
    scaled = int(node.attributes.get("alpha", 1.0) != 1.0)
    return 2 * outputs * inner, scaled * outputs


def _gemm(node: Node) -> Count:
    """As Gemm; the activation is one for each output. The quantised one has C at place 6."""
    is_quantised = node.op.endswith("::QGemm")
    left = shape_of(node, 0)
    outputs = size(node.outputs, 0)
    k = left[0 if node.attributes.get("transA") else 1]
    extra = int(has(node, 6 if is_quantised else 2)) + int(not is_quantised)
    return 2 * outputs * k, extra * outputs


def _packed_matmul(node: Node) -> Count | None:
    """2·rows·K·N; each weight is unpacked by a subtraction and a product, once; a bias is added."""
    k = node.attributes.get("K")
    n = node.attributes.get("N")
    if not isinstance(k, int) or not isinstance(n, int) or k < 1:
        return None
    outputs = size(node.inputs, 0) // k * n
    unpacking = 2 if node.op.endswith("NBits") else 1  # a table's entry, times its scale
    return 2 * outputs * k, unpacking * k * n + outputs * int(has(node, 5))


def _dynamic_matmul(node: Node) -> Count:
    """2·outputs·k; two for each output to scale it back, one for a bias.

    Where the left operand is quantised on the way: its minimum and maximum, and two to quantise.
    """
    left = shape_of(node, 0)
    outputs = size(node.outputs, 0)
    is_dynamic = node.op.endswith("DynamicQuantizeMatMul")
    bias = has(node, 4 if is_dynamic else 6)
    vector = (2 + int(bias)) * outputs + (4 * prod(left) if is_dynamic else 0)
    return 2 * outputs * (left[-1] if left else 0), vector


def _scores(batch: int, heads: int, queries: int, keys: int, widths: int, masks: int) -> Count:
    """Return the two products of attention, their softmax, scale, and what is added to scores."""
    scores = batch * heads * queries * keys
    return 2 * scores * widths, scores * (_SOFTMAX + 1 + masks)


def _attention(node: Node) -> Count | None:
    """The joint product for queries, keys and values, its bias, and the attention itself."""
    is_quantised = node.op.endswith("QAttention")
    x, weight = shape_of(node, 0), shape_of(node, 1)
    heads = int(node.attributes.get("num_heads", 0))
    if len(x) != 3 or len(weight) != 2 or not heads:
        return None
    batch, length, width = x
    sizes = node.attributes.get("qkv_hidden_sizes") or [weight[1] // 3] * 3
    past = shape_of(node, 8 if is_quantised else 4)  # 2 × batch × heads × length × width
    keys = length + (past[3] if len(past) == 5 else 0)
    masks = int(has(node, 5 if is_quantised else 3)) + int(not is_quantised and has(node, 5))
    widths = sizes[0] // heads + sizes[2] // heads
    matmul, vector = _scores(batch, heads, length, keys, widths, masks)
    projected = batch * length * weight[1]
    return matmul + 2 * projected * width, vector + projected * int(has(node, 2))


def _multi_head_attention(node: Node) -> Count | None:
    """Attention on projected queries, keys and values, packed together or apart."""
    query, key, value = (shape_of(node, place) for place in range(3))
    heads = int(node.attributes.get("num_heads", 0))
    if not heads or not query:
        return None
    past = shape_of(node, 6)  # batch × heads × length × width
    added = past[2] if len(past) == 4 else 0
    if len(query) == 5:  # batch × length × heads × 3 × width
        batch, length, _, _, width = query
        keys = length
        out_width = width
    else:
        batch = query[0]
        length = query[1]
        width = query[2] // heads
        keys, out_width = _keys(key, value, heads, width)
    if not keys:
        return None
    masks = int(has(node, 4)) + int(has(node, 5))
    widths = width + out_width
    matmul, vector = _scores(batch, heads, length, keys + added, widths, masks)
    bias = sum(size(node.inputs, place) for place in range(3)) if has(node, 3) else 0
    return matmul, vector + bias


def _keys(key: Shape, value: Shape, heads: int, width: int) -> tuple[int, int]:
    """Return how many keys there are, and a value's width; 0 keys where no shape says."""
    if len(key) == 5:  # batch × length × heads × 2 × width
        return key[1], width
    if len(key) == 4:  # batch × heads × length × width: of a cross attention's cache
        return key[2], value[3] if len(value) == 4 else width
    if len(key) == 3 and len(value) == 3:
        return key[1], value[2] // heads
    return 0, 0


def _grouped_attention(node: Node) -> Count | None:
    """Attention whose keys are shared by groups of heads, over the past and the present keys.

    Present keys come out as the second output; without their shape, past and new ones are added.
    Rotary embedding is 3 per element of queries and keys.
    """
    query = shape_of(node, 0)
    key = shape_of(node, 1)
    past = shape_of(node, 3)
    heads = int(node.attributes.get("num_heads", 0))
    kv_heads = int(node.attributes.get("kv_num_heads", 0))
    if len(query) != 3 or not heads or not kv_heads:
        return None
    batch, length, total = query
    width = total // heads if key else total // (heads + 2 * kv_heads)
    present = node.outputs[1] if len(node.outputs) > 1 else None
    past_keys = past[2] if len(past) == 4 else 0
    keys = present[2] if present else length + past_keys
    matmul, vector = _scores(batch, heads, length, keys, 2 * width, 0)
    if node.attributes.get("do_rotary"):
        vector += 3 * batch * length * (heads + kv_heads) * width
    return matmul, vector


def _skip_normalisation(node: Node) -> Count:
    """An add of what is skipped, one of a bias, then the normalisation with what scales it."""
    is_rms = "Simplified" in node.op
    bias_place = 3 if is_rms else 4
    per_element = (3 if is_rms else 5) + 1 + int(has(node, 2)) + int(has(node, bias_place))
    per_element += 0 if is_rms else int(has(node, 3))
    return 0, per_element * size(node.inputs, 0)


def _group_normalisation(node: Node) -> Count:
    """7 per element with scale and bias, one for the activation; with a skip its adds."""
    per_element = 7 + int(bool(node.attributes.get("activation")))
    if "Skip" in node.op:
        per_element += 1 + int(has(node, 4))
    return 0, per_element * size(node.inputs, 0)


def _embedding_normalisation(node: Node) -> Count:
    """The sum of two or three tables' rows, and 7 for the normalisation with scale and bias."""
    added = 2 if has(node, 1) and has(node, 4) else 1
    return 0, (added + 7) * size(node.outputs, 0)


def _gelu(node: Node) -> Count:
    """One for the function and one for a bias, per output."""
    return 0, (1 + int(has(node, 1))) * size(node.outputs, 0) if is_floating(node) else 0


def _bias_add(node: Node) -> Count:
    """One for the bias, one for a residual that is added."""
    return 0, (1 + int(has(node, 2))) * size(node.outputs, 0)


def _rotary(node: Node) -> Count:
    """Of each pair of elements four products and two sums: 3 per element that is rotated."""
    shape = shape_of(node, 0)
    rotated = int(node.attributes.get("rotary_embedding_dim", 0))
    elements = prod(shape)
    heads = int(node.attributes.get("num_heads", 0))
    width = shape[-1] if shape else 0
    if len(shape) == 3 and heads:  # the heads' widths stand one after the other
        width //= heads
    if rotated and width:
        elements = elements // width * min(rotated, width)
    return 0, 3 * elements


def _quantised_lstm(node: Node) -> Count | None:
    """As LSTM; input and state are quantised each step (4 per element), gates scaled back (2 each).

    Weights are inputs × gates here: 4·H·(I + H) multiply-adds per element, step and direction.
    """
    x, weight, recurrent = (shape_of(node, place) for place in range(3))
    if len(x) != 3 or len(weight) != 3 or len(recurrent) != 3:
        return None
    directions, hidden, _ = recurrent
    cells = directions * x[0] * x[1]
    per_cell = (13 + (8 if has(node, 3) else 0) + (6 if has(node, 7) else 0)) * hidden
    per_cell += 4 * (x[2] + hidden) + 2 * 2 * 4 * hidden
    return 2 * cells * 4 * hidden * (x[2] + hidden), cells * per_cell


_GEMMS = ("FusedGemm", "QGemm")
_BY_NAME: dict[str, tuple[str, Formula]] = {
    **dict.fromkeys(("FusedConv", "NhwcConv", "NhwcFusedConv"), ("convolution", _convolution)),
    **dict.fromkeys(("FusedMatMul", "TransposeMatMul"), ("matmul", _fused_matmul)),
    **dict.fromkeys(_GEMMS, ("matmul", _gemm)),
    **dict.fromkeys(("MatMulNBits", "MatMulBnb4"), ("matmul", _packed_matmul)),
    **dict.fromkeys(("DynamicQuantizeMatMul", "MatMulIntegerToFloat"), ("matmul", _dynamic_matmul)),
    **dict.fromkeys(("Attention", "QAttention"), ("attention", _attention)),
    "MultiHeadAttention": ("attention", _multi_head_attention),
    "GroupQueryAttention": ("attention", _grouped_attention),
    **dict.fromkeys(
        ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"),
        ("normalisation", _skip_normalisation),
    ),
    **dict.fromkeys(("GroupNorm", "SkipGroupNorm"), ("normalisation", _group_normalisation)),
    "EmbedLayerNormalization": ("normalisation", _embedding_normalisation),
    **dict.fromkeys(("BiasGelu", "FastGelu"), ("elementwise", _gelu)),
    **dict.fromkeys(("BiasAdd", "BiasDropout"), ("elementwise", _bias_add)),
    "RotaryEmbedding": ("elementwise", _rotary),
    "DynamicQuantizeLSTM": ("recurrent", _quantised_lstm),
}
RUNTIME_FORMULAS: dict[str, tuple[str, Formula]] = {
    f"com.microsoft::{name}": entry for name, entry in _BY_NAME.items()
}
"""Family and formula of an op, by its name with the domain."""
