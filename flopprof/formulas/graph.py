"""Count a node of an ONNX graph from its shapes and attributes, by the project's counting rules.

graph.csv has the ops of which each element costs the same:
    op: Their names.
    like: FLOPs per output element; "in 2": per element of the first input; "free": none.
The others are functions here. Integer and boolean elementwise work is no FLOPs; a quantised
product counts its operations.
"""

import csv
from math import log2, prod
from pathlib import Path

from flopprof import dtypes
from flopprof.formulas import Work
from flopprof.formulas.nodes import Count, Formula, Node, has, is_floating, shape_of, size
from flopprof.formulas.runtime import RUNTIME_FORMULAS


def _table() -> dict[str, str]:
    with Path(__file__).with_name("graph.csv").open(encoding="utf-8", newline="") as file:
        return {op: row["like"] for row in csv.DictReader(file) for op in row["op"].split()}


_LIKE = _table()


def node_kind(op: str) -> str:
    """Return the family of an op, "free" or "unknown", as the column `kind` has it."""
    if op in _FORMULAS:
        return _FORMULAS[op][0]
    like = _LIKE.get(op)
    if like is None:
        return "unknown"
    if like == "free":
        return "free"
    return "reduction" if like.startswith("in") else "elementwise"


def node_work(node: Node) -> Work | None:
    """Return what one run of a node does; None where its op or a shape is not known."""
    count: Count | Work | None = (0, 0)
    if node_kind(node.op) == "unknown":
        return None
    if node_kind(node.op) != "free":
        if None in node.inputs[:2] or (None in node.outputs[:1] and not _counts_inputs(node.op)):
            return None
        formula = _FORMULAS.get(node.op)
        count = formula[1](node) if formula else _of_elements(node)
    if count is None or isinstance(count, Work):
        return count
    return Work(count[0], count[1], _bytes(node))


def _counts_inputs(op: str) -> bool:
    """Return whether the count does not depend on the shape of the result."""
    return op in _BY_INPUTS or _LIKE.get(op, "").startswith("in")


_BY_INPUTS = ("NonMaxSuppression", "RoiAlign", "DynamicQuantizeLinear")


def _bytes(node: Node) -> int:
    """Return the bytes of all operands and results; 0 for those of unknown shape."""
    shapes = [*node.inputs, *node.outputs]
    kinds = [*node.input_dtypes, *node.output_dtypes]
    sizes = zip(shapes, kinds, strict=False)
    return sum(prod(shape) * (dtypes.itemsize(kind) or 0) for shape, kind in sizes if shape)


def _of_elements(node: Node) -> Count:
    like = _LIKE[node.op]
    if not is_floating(node):
        return 0, 0
    if like.startswith("in"):
        return 0, int(like.split()[1]) * size(node.inputs, 0)
    return 0, int(like) * size(node.outputs, 0)


def _convolution(node: Node) -> Count:
    """2·outputs·(channels ÷ groups)·taps, which the filter's sizes but the first multiply to."""
    is_quantised = node.op == "QLinearConv"
    weight = node.inputs[3 if is_quantised else 1] or ()
    outputs = size(node.outputs, 0)
    bias = outputs if node.op == "Conv" and has(node, 2) else 0
    return 2 * outputs * prod(weight[1:]), bias


def _transposed(node: Node) -> Count:
    """Each input element goes into (channels ÷ groups)·taps outputs; a bias is an add for each."""
    weight = node.inputs[1] or ()
    bias = size(node.outputs, 0) if has(node, 2) else 0
    return 2 * size(node.inputs, 0) * prod(weight[1:]), bias


def _matmul(node: Node) -> Count:
    """2·outputs·k, k the last size of the left operand."""
    left = node.inputs[0] or ()
    return 2 * size(node.outputs, 0) * (left[-1] if left else 0), 0


def _gemm(node: Node) -> Count:
    """2·m·n·k; one more per output for C, for alpha ≠ 1 and for beta other than 0 and 1."""
    left = node.inputs[0] or ()
    k = left[0 if node.attributes.get("transA") else 1]
    outputs = size(node.outputs, 0)
    beta = node.attributes.get("beta", 1.0)
    extra = int(node.attributes.get("alpha", 1.0) != 1.0)
    if has(node, 2) and beta != 0.0:
        extra += 1 + int(beta != 1.0)
    return 2 * outputs * k, extra * outputs


def _einsum(node: Node) -> Count | None:
    """Operands are joined from left to right, as runtimes do; indices that end early are summed.

    A pair is 2 per product of all its indices where one is summed over, else 1 of vector. An index
    of one operand alone that is not in the result is summed first: an add per element.
    """
    equation = _spelled_out(str(node.attributes.get("equation", "")), node)
    if equation is None:
        return None
    terms, result = equation
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, node.inputs, strict=True):
        sizes |= dict(zip(term, shape or (), strict=True))
    matmul = vector = 0
    joined = ""
    for place, term in enumerate(terms):
        later = set("".join(terms[place + 1 :]) + result)
        alone = {index for index in term if index not in later and index not in joined}
        if alone:
            vector += _product(sizes, term)
        kept = "".join(index for index in term if index not in alone)
        if place == 0:
            joined = kept
            continue
        both = "".join(dict.fromkeys(joined + kept))
        ended = set(both) - later
        matmul += 2 * _product(sizes, both) if ended else 0
        vector += 0 if ended else _product(sizes, both)
        joined = "".join(index for index in both if index not in ended)
    return matmul, vector


def _product(sizes: dict[str, int], indices: str) -> int:
    return prod(sizes[index] for index in indices)


def _spelled_out(equation: str, node: Node) -> tuple[list[str], str] | None:
    """Return the operands' indices and the result's, "..." by letters; None where a diagonal is.

    Without an arrow the result has, in alphabetical order, the indices that appear once.
    """
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(node.inputs) or None in node.inputs:
        return None
    letters = "ΑΒΓΔΕΖΗΘ"  # that stand for the dimensions of "..."
    longest = 0
    for place, term in enumerate(terms):
        count = len(node.inputs[place] or ()) - len(term.replace("...", ""))
        longest = max(longest, count)
        if count < 0 or count > len(letters):
            return None
        terms[place] = term.replace("...", letters[len(letters) - count :])
    if not arrow:
        every = "".join(terms)
        result = "..." + "".join(sorted(index for index in every if every.count(index) == 1))
    result = result.replace("...", letters[len(letters) - longest :])
    if any(len(set(term)) < len(term) for term in terms):
        return None
    return terms, result


_PEEPHOLES = 6  # an LSTM's, per hidden element: a product and an add in three of its gates
_GATES = {"LSTM": (4, 13, 8), "GRU": (3, 11, 6), "RNN": (1, 2, 2)}  # gates; vector; with bias


def _recurrent(node: Node) -> Count | None:
    """Per element of the batch, step and direction: gates·H·(I + H) multiply-adds."""
    gates, vector, bias = _GATES[node.op]
    x = shape_of(node, 0)
    weight = shape_of(node, 1)
    recurrent = shape_of(node, 2)
    if len(x) != 3 or len(weight) != 3 or len(recurrent) != 3:
        return None
    directions, _, hidden = recurrent
    cells = directions * x[0] * x[1]
    per_cell = vector + (bias if has(node, 3) else 0) + (_PEEPHOLES if has(node, 7) else 0)
    return 2 * cells * gates * hidden * (weight[2] + hidden), cells * hidden * per_cell


def _attention(node: Node) -> Count | None:
    """The two products; per score 5 of softmax and 1 of scale, 1 where a mask is given."""
    query, key, value = (shape_of(node, place) for place in range(3))
    if not query or not key or not value:
        return None
    if len(query) == 4:
        batch, heads, length, width = query
        past = shape_of(node, 4)
        keys = key[2] + (past[2] if past else 0)
        out_width = value[3]
    else:
        heads = int(node.attributes.get("q_num_heads", 0))
        kv_heads = int(node.attributes.get("kv_num_heads", heads))
        if len(query) != 3 or not heads or not kv_heads or has(node, 4):
            return None
        batch, length, all_widths = query
        width = all_widths // heads
        keys = key[1]
        out_width = value[2] // kv_heads
    scores = batch * heads * length * keys
    return 2 * scores * (width + out_width), scores * (6 + int(has(node, 3)))


def _variadic(node: Node) -> Count:
    """Max, Min and Sum of k tensors take k − 1 operations per output; Mean divides besides."""
    per_output = len(node.inputs) - (0 if node.op == "Mean" else 1)
    return 0, per_output * size(node.outputs, 0) if is_floating(node) else 0


def _clip(node: Node) -> Count:
    """One per bound and element."""
    bounds = int(has(node, 1)) + int(has(node, 2))
    bounds += int("min" in node.attributes) + int("max" in node.attributes)
    return 0, bounds * size(node.outputs, 0) if is_floating(node) else 0


def _normalisation(node: Node) -> Count:
    """5 per element (3 of RMS norm), and one more for each of scale and bias."""
    is_rms = node.op.endswith(("RMSNormalization", "SimplifiedLayerNormalization"))
    per_element = 3 if is_rms else 5
    per_element += int(has(node, 1)) + int(has(node, 2))
    return 0, per_element * size(node.inputs, 0)


def _local_response(node: Node) -> Count:
    return 0, (int(node.attributes.get("size", 1)) + 5) * size(node.inputs, 0)


def _pool(node: Node) -> Count:
    """The window's size per output."""
    return 0, prod(node.attributes.get("kernel_shape", ())) * size(node.outputs, 0)


_INTERPOLATION = {  # FLOPs per output by mode and axes: a lerp is 3, of two axes three lerps
    ("linear", 1): 3, ("linear", 2): 9, ("linear", 3): 21, ("cubic", 2): 35,
}  # fmt: skip


def _resize(node: Node) -> Count | None:
    """Nearest 0; linear 3, 9, 21 by the number of axes; cubic, of two, 35 per output."""
    mode = node.attributes.get("mode", "nearest")
    axes = len(node.inputs[0] or ()) - 2
    per_output = _INTERPOLATION.get((str(mode), axes))
    if mode == "nearest":
        per_output = 0
    return None if per_output is None else (0, per_output * size(node.outputs, 0))


def _dft(node: Node) -> Count | None:
    """5·N·log₂ n of N complex numbers; half of real ones. The axis is an input from opset 20 on."""
    shape = node.inputs[0] or ()
    axis = node.attributes.get("axis", 1 if len(node.inputs) < 3 else None)
    if axis is None or len(shape) < 2:
        return None
    numbers = prod(shape[:-1])
    length = shape[int(axis)]
    full = 5 * numbers * log2(length) if length else 0.0
    is_half = shape[-1] == 1 or node.attributes.get("onesided", 0)
    return 0, int(full / 2 if is_half else full)


def _stft(node: Node) -> Count | None:
    """Per frame: the window's products, and 5·N·log₂ N, of a real signal half of it."""
    signal = shape_of(node, 0)
    frames = node.outputs[0] or ()
    length = node.attributes.get("frame_length") or size(node.inputs, 2)
    if len(frames) != 4 or not length:
        return None
    parts = 1 if len(signal) < 3 or signal[-1] == 1 else 2  # of each number: real, imaginary
    transform = 5 * length * log2(length) * parts / 2
    window = length * parts if has(node, 2) else 0
    return 0, int(frames[0] * frames[1] * (window + transform))


_MODES_BEFORE_20 = {"bilinear": "linear", "bicubic": "cubic"}  # opset 20 spells them as Resize


def _grid_sample(node: Node) -> Count | None:
    """Interpolation of each output; each coordinate's way to pixels: 3 where aligned, else 4."""
    grid = shape_of(node, 1)
    mode = str(node.attributes.get("mode", "linear"))
    axes = len(grid) - 2
    mode = _MODES_BEFORE_20.get(mode, mode)
    per_output = 0 if mode == "nearest" else _INTERPOLATION.get((mode, axes))
    if per_output is None:
        return None
    aligned = node.attributes.get("align_corners", 0)
    points = prod(grid[:-1])
    return 0, per_output * size(node.outputs, 0) + (3 if aligned else 4) * points * axes


def _deformed(node: Node) -> Count:
    """As a convolution; its samples are bilinear: 9, 1 with a mask, each offset an add."""
    x, weight, offset = (shape_of(node, place) for place in range(3))
    outputs = size(node.outputs, 0)
    area = outputs // weight[0]  # batch, and output positions
    samples = area * x[1] * prod(weight[2:])
    vector = (10 if has(node, 4) else 9) * samples + prod(offset)
    return 2 * outputs * prod(weight[1:]), vector + outputs * int(has(node, 3))


def _roi_align(node: Node) -> Work | None:
    """10 per sample: bilinear, and its part in the mean. Without a sampling ratio boxes decide."""
    x = shape_of(node, 0)
    boxes = shape_of(node, 1)
    grid = [int(node.attributes.get(f"output_{side}", 1)) for side in ("height", "width")]
    ratio = int(node.attributes.get("sampling_ratio", 0))
    if len(x) != 4 or not boxes:
        return None
    maps = boxes[0] * x[1]
    bins = maps * prod(grid)
    if ratio > 0:
        return Work(0, 10 * bins * ratio**2, _bytes(node))
    # A box is no larger than the image: along H in h bins no more than H + h - 1 samples.
    most = maps * prod(side + count - 1 for side, count in zip(x[2:], grid, strict=True))
    return Work(0, 10 * bins, flops_at_most=10 * max(most, bins))


def _affine_grid(node: Node) -> Count | None:
    """Every point with a 1, times θ: (d + 1)·d multiply-adds."""
    axes = len(node.outputs[0] or ()) - 2
    if axes < 1:
        return None
    return 2 * size(node.outputs, 0) * (axes + 1), 0


def _determinant(node: Node) -> Count:
    """⅔·n³ of the factorisation and n of the diagonal's product, for each matrix."""
    shape = shape_of(node, 0)
    n = shape[-1] if shape else 0
    return 0, (prod(shape[:-2]) * (2 * n**3 + 3 * n)) // 3


def _non_maximum(node: Node) -> Work | None:
    """Values decide: from none to all pairs of boxes, of each class, 13 FLOPs of each overlap.

    An overlap: the four corners by two minima and maxima, two sides with 0 as least, the area, the
    union of two areas and the division.
    """
    boxes, scores = shape_of(node, 0), shape_of(node, 1)
    if len(boxes) != 3 or len(scores) != 3:
        return None
    pairs = boxes[0] * scores[1] * boxes[1] * (boxes[1] - 1) // 2
    return Work(0, 0, flops_at_most=13 * pairs)


def _dynamic_quantisation(node: Node) -> Count:
    """Minimum and maximum, and two to quantise each element."""
    return 0, 4 * size(node.inputs, 0)


_FORMULAS: dict[str, tuple[str, Formula]] = {
    **dict.fromkeys(("Conv", "ConvInteger", "QLinearConv"), ("convolution", _convolution)),
    "ConvTranspose": ("convolution", _transposed),
    **dict.fromkeys(("MatMul", "MatMulInteger", "QLinearMatMul"), ("matmul", _matmul)),
    "Gemm": ("matmul", _gemm),
    "Einsum": ("matmul", _einsum),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), ("recurrent", _recurrent)),
    "Attention": ("attention", _attention),
    **dict.fromkeys(("Max", "Min", "Sum", "Mean"), ("elementwise", _variadic)),
    "Clip": ("elementwise", _clip),
    **dict.fromkeys(
        (
            "LayerNormalization",
            "InstanceNormalization",
            "GroupNormalization",
            "RMSNormalization",
        ),
        ("normalisation", _normalisation),
    ),
    "LRN": ("normalisation", _local_response),
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), ("reduction", _pool)),
    **dict.fromkeys(("Resize", "Upsample"), ("other", _resize)),
    "DFT": ("other", _dft),
    "STFT": ("other", _stft),
    "GridSample": ("other", _grid_sample),
    "DeformConv": ("convolution", _deformed),
    "RoiAlign": ("other", _roi_align),
    "AffineGrid": ("other", _affine_grid),
    "Det": ("other", _determinant),
    "NonMaxSuppression": ("other", _non_maximum),
    "DynamicQuantizeLinear": ("elementwise", _dynamic_quantisation),
    **RUNTIME_FORMULAS,
}
# By the same formulas as the ops of ONNX itself, under ONNX Runtime's domain or by older names.
_FORMULAS |= {
    f"com.microsoft::{name}": _FORMULAS[name]
    for name in ("QLinearConv", "GridSample", "LayerNormalization", "MaxPool", "AveragePool")
}
_FORMULAS["com.microsoft::NhwcMaxPool"] = _FORMULAS["MaxPool"]
_FORMULAS["com.microsoft::ConvTransposeWithDynamicPads"] = _FORMULAS["ConvTranspose"]
for _name in ("SimplifiedLayerNormalization", "com.microsoft::SimplifiedLayerNormalization"):
    _FORMULAS[_name] = _FORMULAS["RMSNormalization"]
