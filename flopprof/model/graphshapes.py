"""Say the shapes that onnx's inference leaves out: of ONNX Runtime's ops, of STFT, of ranges.

Runtime optimisers write nodes of the domain com.microsoft, of which onnx knows no shapes, so that
all that follows them is unknown. Here are rules for those whose outputs follow from the sizes of
their inputs.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Shape = tuple[int, ...]
OWN = "flopprof"  # the domain of nodes whose shapes onnx gets wrong, so that it leaves them alone


class NodeFacts(NamedTuple):
    """What is known of a node.

    Attributes:
        op: With its domain where that is not ONNX's own.
        shapes: Of its inputs; () where one is left out, None where it is not known.
        attributes: Numbers, texts, and lists of them.
        constants: Of its inputs that are small constants, by place.
    """

    op: str
    shapes: tuple[Shape | None, ...]
    attributes: Mapping[str, Any]
    constants: Mapping[int, Any]


Rule = Callable[[NodeFacts], list[Shape | None] | None]


def _shape(node: NodeFacts, place: int) -> Shape:
    """Return the shape of an input; () where it is left out or not known."""
    shape = node.shapes[place] if place < len(node.shapes) else None
    return shape or ()


def _like_first(node: NodeFacts) -> list[Shape | None] | None:
    return [_shape(node, 0)]


def _broadcast(first: Shape, second: Shape) -> Shape | None:
    """Return the shape that both are stretched to; None where they do not fit."""
    longest = max(len(first), len(second))
    padded_first = (1,) * (longest - len(first)) + first
    padded_second = (1,) * (longest - len(second)) + second
    sizes = []
    for one, other in zip(padded_first, padded_second, strict=True):
        if one != other and 1 not in (one, other):
            return None
        sizes.append(other if one == 1 else one)
    return tuple(sizes)


def _quantised_broadcast(node: NodeFacts) -> list[Shape | None] | None:
    """Return the shape of an operation on two; each has its scale and zero point behind it."""
    return [_broadcast(_shape(node, 0), _shape(node, 3))]


def _halved(node: NodeFacts) -> list[Shape | None] | None:
    shape = _shape(node, 0)
    return [(*shape[:-1], shape[-1] // 2)] if shape else None


def _matmul(node: NodeFacts) -> list[Shape | None] | None:
    """Return m × n, with the batches before them; either operand may be transposed."""
    left, right = _shape(node, 0), _shape(node, 1)
    if len(left) < 2 or len(right) < 2:
        return None
    rows = left[-1] if node.attributes.get("transA") else left[-2]
    columns = right[-2] if node.attributes.get("transB") else right[-1]
    batches = _broadcast(left[:-2], right[:-2])
    return None if batches is None else [(*batches, rows, columns)]


def _gemm(node: NodeFacts) -> list[Shape | None] | None:
    left = _shape(node, 0)
    right = _shape(node, 3 if node.op.endswith("QGemm") else 1)
    if len(left) != 2 or len(right) != 2:
        return None
    rows = left[1 if node.attributes.get("transA") else 0]
    return [(rows, right[0 if node.attributes.get("transB") else 1])]


def _packed_matmul(node: NodeFacts) -> list[Shape | None] | None:
    left = _shape(node, 0)
    columns = node.attributes.get("N")
    return [(*left[:-1], columns)] if left and isinstance(columns, int) else None


def _convolution(node: NodeFacts) -> list[Shape | None] | None:
    """Return a convolution's output; NhwcConv has its channels last."""
    is_quantised = node.op.endswith("QLinearConv")
    shape = _shape(node, 0)
    weight = _shape(node, 3 if is_quantised else 1)
    is_last = "Nhwc" in node.op or bool(node.attributes.get("channels_last"))
    axes = len(weight) - 2
    if axes < 1 or len(shape) != len(weight):
        return None
    sizes = shape[1:-1] if is_last else shape[2:]
    strides = node.attributes.get("strides") or [1] * axes
    dilations = node.attributes.get("dilations") or [1] * axes
    pads = node.attributes.get("pads") or [0] * (2 * axes)
    padding = str(node.attributes.get("auto_pad", "NOTSET"))
    outputs = []
    for axis, size in enumerate(sizes):
        if padding.startswith("SAME"):
            outputs.append(math.ceil(size / strides[axis]))
            continue
        padded = size + (pads[axis] + pads[axes + axis] if padding == "NOTSET" else 0)
        window = dilations[axis] * (weight[2 + axis] - 1) + 1
        outputs.append((padded - window) // strides[axis] + 1)
    channels = weight[0]
    return [(shape[0], *outputs, channels) if is_last else (shape[0], channels, *outputs)]


def _attention(node: NodeFacts) -> list[Shape | None] | None:
    """Return the heads' joint values, and the keys and values to keep."""
    is_quantised = node.op.endswith("QAttention")
    x = _shape(node, 0)
    weight = _shape(node, 1)
    heads = node.attributes.get("num_heads", 0)
    if len(x) != 3 or len(weight) != 2 or not heads:
        return None
    sizes = node.attributes.get("qkv_hidden_sizes") or [weight[1] // 3] * 3
    past = _shape(node, 8 if is_quantised else 4)
    keys = x[1] + (past[3] if len(past) == 5 else 0)
    return [(x[0], x[1], sizes[2]), (2, x[0], heads, keys, sizes[0] // heads)]


def _multi_head_attention(node: NodeFacts) -> list[Shape | None] | None:
    """Return the heads' joint values, and the keys and values to keep, past and new ones.

    Keys and values may lie packed in the query or the key (5 sizes), or by heads (4 sizes).
    """
    query, key, value = (_shape(node, place) for place in range(3))
    heads = node.attributes.get("num_heads", 0)
    if not heads or not query:
        return None
    if len(query) == 5:
        batch, length, count, _, width = query
        return [(batch, length, count * width)]
    batch, length, total = query[0], query[1], query[2]
    if len(value) == 4:
        out_width = heads * value[3]
        keys = key[2]
    elif len(value) == 3:
        out_width = value[2]
        keys = key[1]
    else:
        out_width = total
        keys = key[1] if len(key) == 5 else length
    past = _shape(node, 6)
    keys += past[2] if len(past) == 4 else 0
    present = (batch, heads, keys, total // heads)
    return [(batch, length, out_width), present, (batch, heads, keys, out_width // heads)]


def _grouped_attention(node: NodeFacts) -> list[Shape | None] | None:
    """Return the heads' joint values, and the keys and values, past and new ones."""
    query = _shape(node, 0)
    key = _shape(node, 1)
    past = _shape(node, 3)
    heads = node.attributes.get("num_heads", 0)
    kv_heads = node.attributes.get("kv_num_heads", 0)
    if len(query) != 3 or not heads or not kv_heads:
        return None
    width = query[2] // heads if key else query[2] // (heads + 2 * kv_heads)
    keys = query[1] + (past[2] if len(past) == 4 else 0)
    present = (query[0], kv_heads, keys, width)
    return [(query[0], query[1], heads * width), present, present]


def _skip_normalisation(node: NodeFacts) -> list[Shape | None] | None:
    """Return the result, two that are not computed by inference, and the sum before it."""
    shape = _shape(node, 0)
    return [shape, shape[:-1], shape[:-1], shape]


def _embedding_normalisation(node: NodeFacts) -> list[Shape | None] | None:
    """Return the sum of embeddings, the lengths by the mask, and the sum before normalisation."""
    ids = _shape(node, 0)
    table = _shape(node, 2)
    if len(ids) != 2 or len(table) != 2:
        return None
    return [(*ids, table[1]), (ids[0],), (*ids, table[1])]


def _stft(node: NodeFacts) -> list[Shape | None] | None:
    """Return batch × frames × bins × 2; one-sided unless said otherwise, which onnx overlooks."""
    signal = _shape(node, 0)
    window = _shape(node, 2)
    step = node.constants.get(1)
    length = node.constants.get(3)
    frame = int(length) if length is not None and length.size == 1 else math.prod(window or (0,))
    if len(signal) < 2 or step is None or step.size != 1 or int(step) < 1 or frame < 1:
        return None
    frames = (signal[1] - frame) // int(step) + 1
    bins = frame // 2 + 1 if node.attributes.get("onesided", 1) else frame
    return [(signal[0], frames, bins, 2)] if frames > 0 else None


def _range(node: NodeFacts) -> list[Shape | None] | None:
    ends = [node.constants.get(place) for place in range(3)]
    if any(end is None or end.size != 1 for end in ends):
        return None
    start, limit, delta = (float(end.item()) for end in ends if end is not None)
    if not delta or not all(map(math.isfinite, (start, limit, delta))):
        return None
    return [(max(0, math.ceil((limit - start) / delta)),)]


def _quantised_lstm(node: NodeFacts) -> list[Shape | None] | None:
    """Return the outputs of all steps, steps × directions × batch × width, and the last states."""
    x = _shape(node, 0)
    recurrent = _shape(node, 2)
    if len(x) != 3 or len(recurrent) != 3:
        return None
    state = (recurrent[0], x[1], recurrent[1])
    return [(x[0], *state), state, state]


_ELEMENTWISE = (  # their result has the shape of the first operand
    "Gelu", "FastGelu", "QuickGelu", "BiasGelu", "BiasAdd", "BiasDropout", "BiasSoftmax",
    "RotaryEmbedding", "GroupNorm", "SkipGroupNorm", "LayerNormalization",
    "SimplifiedLayerNormalization", "QuantizeLinear", "DequantizeLinear", "QLinearSigmoid",
    "QLinearLeakyRelu", "QLinearSoftmax",
)  # fmt: skip
_RUNTIME_RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, _like_first),
    **dict.fromkeys(("QLinearAdd", "QLinearMul"), _quantised_broadcast),
    "BiasSplitGelu": _halved,
    **dict.fromkeys(
        ("FusedMatMul", "TransposeMatMul", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"),
        _matmul,
    ),
    **dict.fromkeys(("FusedGemm", "QGemm"), _gemm),
    **dict.fromkeys(("MatMulNBits", "MatMulBnb4"), _packed_matmul),
    **dict.fromkeys(("FusedConv", "NhwcConv", "NhwcFusedConv", "QLinearConv"), _convolution),
    **dict.fromkeys(("Attention", "QAttention"), _attention),
    "MultiHeadAttention": _multi_head_attention,
    "GroupQueryAttention": _grouped_attention,
    **dict.fromkeys(
        ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"), _skip_normalisation
    ),
    "DynamicQuantizeLSTM": _quantised_lstm,
    "EmbedLayerNormalization": _embedding_normalisation,
}
_RULES: dict[str, Rule] = {
    "STFT": _stft,
    "Range": _range,
    "SimplifiedLayerNormalization": _like_first,
    **{f"com.microsoft::{name}": rule for name, rule in _RUNTIME_RULES.items()},
}


def output_shapes(node: NodeFacts) -> list[Shape | None]:
    """Return the shapes of a node's outputs as far as a rule here knows them, in their order."""
    rule = _RULES.get(node.op)
    if rule is None or (node.op not in ("Range", "STFT") and None in node.shapes[:1]):
        return []
    try:
        shapes = rule(node) or []
    except (IndexError, TypeError, ValueError, ZeroDivisionError):  # attributes of other kinds
        return []
    return [None if shape is None or min(shape, default=0) < 0 else shape for shape in shapes]


def take_from_onnx(model: Any) -> None:
    """Give nodes a domain of our own whose shapes onnx gets wrong, so that it leaves them alone."""
    nodes = [node for node in model.graph.node if node.op_type == "STFT" and not node.domain]
    for node in nodes:
        node.domain = OWN
    if nodes:
        model.opset_import.add(domain=OWN, version=1)
