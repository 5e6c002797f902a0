"""Count a node of an ONNX graph from its shapes and attributes, by the project's counting rules.

graph.csv has the ops of which each element costs the same:
    op: Their names.
    like: FLOPs per output element; "in 2": per element of the first input; "free": none.
The others are functions here. Integer and boolean elementwise work is no FLOPs; a quantised
product counts its operations.
"""

import csv
from collections.abc import Callable, Mapping, Sequence
from math import log2, prod
from pathlib import Path
from typing import Any, Protocol

from flopprof import dtypes
from flopprof.formulas import Shape, Work


class Node(Protocol):
    """What a formula reads of a node; its shapes are known."""

    @property
    def op(self) -> str: ...  # noqa: D102
    @property
    def inputs(self) -> tuple[Shape | None, ...]: ...  # noqa: D102
    @property
    def outputs(self) -> tuple[Shape | None, ...]: ...  # noqa: D102
    @property
    def input_dtypes(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def output_dtypes(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def attributes(self) -> Mapping[str, Any]: ...  # noqa: D102


Count = tuple[int, int]  # matmul, vector FLOPs
_Formula = Callable[[Node], Count | None]


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
    return like if like == "free" else "reduction" if like.startswith("in") else "elementwise"


def node_work(node: Node) -> Work | None:
    """Return what one run of a node does; None where its op or a shape is not known."""
    count: Count | None = (0, 0)
    if node_kind(node.op) == "unknown":
        return None
    if node_kind(node.op) != "free":
        if None in node.inputs[:2] or None in node.outputs[:1]:
            return None
        formula = _FORMULAS.get(node.op)
        count = formula[1](node) if formula else _of_elements(node)
    if count is None:
        return None
    return Work(count[0], count[1], _bytes(node))


def _bytes(node: Node) -> int:
    """Return the bytes of all operands and results; 0 for those of unknown shape."""
    shapes = [*node.inputs, *node.outputs]
    kinds = [*node.input_dtypes, *node.output_dtypes]
    sizes = zip(shapes, kinds, strict=False)
    return sum(prod(shape) * (dtypes.itemsize(kind) or 0) for shape, kind in sizes if shape)


def _is_floating(node: Node) -> bool:
    kinds = [kind for kind in (*node.input_dtypes[:1], *node.output_dtypes[:1]) if kind]
    return any(map(dtypes.is_floating, kinds)) or not kinds


def _of_elements(node: Node) -> Count:
    like = _LIKE[node.op]
    if not _is_floating(node):
        return 0, 0
    if like.startswith("in"):
        return 0, int(like.split()[1]) * _size(node.inputs, 0)
    return 0, int(like) * _size(node.outputs, 0)


def _size(shapes: Sequence[Shape | None], place: int) -> int:
    return prod(shapes[place] or ()) if place < len(shapes) else 0


def _has(node: Node, place: int) -> bool:
    return place < len(node.inputs) and bool(node.input_dtypes[place])


def _convolution(node: Node) -> Count:
    """2·outputs·(channels ÷ groups)·taps, which the filter's sizes but the first multiply to."""
    is_quantised = node.op == "QLinearConv"
    weight = node.inputs[3 if is_quantised else 1] or ()
    outputs = _size(node.outputs, 0)
    bias = outputs if node.op == "Conv" and _has(node, 2) else 0
    return 2 * outputs * prod(weight[1:]), bias


def _transposed(node: Node) -> Count:
    """Each input element goes into (channels ÷ groups)·taps outputs; a bias is an add for each."""
    weight = node.inputs[1] or ()
    bias = _size(node.outputs, 0) if _has(node, 2) else 0
    return 2 * _size(node.inputs, 0) * prod(weight[1:]), bias


def _matmul(node: Node) -> Count:
    """2·outputs·k, k the last size of the left operand."""
    left = node.inputs[0] or ()
    return 2 * _size(node.outputs, 0) * (left[-1] if left else 0), 0


def _gemm(node: Node) -> Count:
    """2·m·n·k; one more per output for C, for alpha ≠ 1 and for beta other than 0 and 1."""
    left = node.inputs[0] or ()
    k = left[0 if node.attributes.get("transA") else 1]
    outputs = _size(node.outputs, 0)
    beta = node.attributes.get("beta", 1.0)
    extra = int(node.attributes.get("alpha", 1.0) != 1.0)
    if _has(node, 2) and beta != 0.0:
        extra += 1 + int(beta != 1.0)
    return 2 * outputs * k, extra * outputs


def _einsum(node: Node) -> Count | None:
    """Two operands: 2 per product of all indices where one is summed over, else 1 of vector."""
    equation = str(node.attributes.get("equation", "")).replace(" ", "")
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    if len(terms) != 2 or not arrow or "." in equation:
        return None
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, node.inputs, strict=True):
        sizes |= dict(zip(term, shape or (), strict=True))
    summed = set(sizes) - set(result)
    if any((index in terms[0]) != (index in terms[1]) for index in summed):
        return None  # one operand is summed by itself
    products = prod(sizes.values())
    return (2 * products, 0) if summed else (0, products)


_GATES = {"LSTM": (4, 13, 8), "GRU": (3, 11, 6), "RNN": (1, 2, 2)}  # gates; vector; with bias


def _recurrent(node: Node) -> Count | None:
    """Per element of the batch, step and direction: gates·H·(I + H) multiply-adds."""
    gates, vector, bias = _GATES[node.op]
    x, w, r = ((*node.inputs, None, None, None)[place] for place in range(3))
    if x is None or w is None or r is None or len(x) != 3:
        return None
    directions, hidden = r[0], r[2]
    cells = directions * x[0] * x[1]
    per_cell = vector + (bias if _has(node, 3) else 0) + (6 if _has(node, 7) else 0)
    return 2 * cells * gates * hidden * (w[2] + hidden), cells * hidden * per_cell


def _attention(node: Node) -> Count | None:
    """The two products; per score 5 of softmax and 1 of scale, 1 where a mask is given."""
    query, key, value = (*node.inputs, None, None, None)[:3]
    if query is None or key is None or value is None:
        return None
    if len(query) == 4:
        batch, heads, length, width = query
        past = (node.inputs[4] or (0, 0, 0, 0))[2] if _has(node, 4) else 0
        keys, out_width = key[2] + past, value[3]
    else:
        heads = int(node.attributes.get("q_num_heads", 0))
        kv_heads = int(node.attributes.get("kv_num_heads", heads))
        if not heads or not kv_heads or _has(node, 4):
            return None
        batch, length, width = query[0], query[1], query[2] // heads
        keys, out_width = key[1], value[2] // kv_heads
    scores = batch * heads * length * keys
    return 2 * scores * (width + out_width), scores * (6 + int(_has(node, 3)))


def _variadic(node: Node) -> Count:
    """Max, Min and Sum of k tensors take k − 1 operations per output; Mean divides besides."""
    per_output = len(node.inputs) - (0 if node.op == "Mean" else 1)
    return 0, per_output * _size(node.outputs, 0) if _is_floating(node) else 0


def _clip(node: Node) -> Count:
    """One per bound and element."""
    bounds = int(_has(node, 1)) + int(_has(node, 2))
    bounds += int("min" in node.attributes) + int("max" in node.attributes)
    return 0, bounds * _size(node.outputs, 0) if _is_floating(node) else 0


def _normalisation(node: Node) -> Count:
    """5 per element (3 of RMS norm), and one more for each of scale and bias."""
    per_element = 3 if node.op == "RMSNormalization" else 5
    per_element += int(_has(node, 1)) + int(_has(node, 2))
    return 0, per_element * _size(node.inputs, 0)


def _local_response(node: Node) -> Count:
    return 0, (int(node.attributes.get("size", 1)) + 5) * _size(node.inputs, 0)


def _pool(node: Node) -> Count:
    """The window's size per output."""
    return 0, prod(node.attributes.get("kernel_shape", ())) * _size(node.outputs, 0)


def _resize(node: Node) -> Count | None:
    """Nearest 0; linear 3, 9, 21 by the number of axes; cubic, of two, 35 per output."""
    mode = node.attributes.get("mode", "nearest")
    axes = len(node.inputs[0] or ()) - 2
    per_output = {"linear": {1: 3, 2: 9, 3: 21}, "cubic": {2: 35}}.get(str(mode), {}).get(axes)
    if mode == "nearest":
        per_output = 0
    return None if per_output is None else (0, per_output * _size(node.outputs, 0))


def _dft(node: Node) -> Count | None:
    """5·N·log₂ n of N complex numbers; half of real ones. The axis is an input from opset 20 on."""
    shape = node.inputs[0] or ()
    axis = node.attributes.get("axis", 1 if len(node.inputs) < 3 else None)
    if axis is None or len(shape) < 2:
        return None
    numbers, length = prod(shape[:-1]), shape[int(axis)]
    full = 5 * numbers * log2(length) if length else 0.0
    is_half = shape[-1] == 1 or node.attributes.get("onesided", 0)
    return 0, int(full / 2 if is_half else full)


_FORMULAS: dict[str, tuple[str, _Formula]] = {
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
}
