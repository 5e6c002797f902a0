"""Formulas of recurrent layers and cells, from the shapes of their weights.

Every weight matrix is applied once per step: gates·H × (in + recurrent) multiply-adds, and H × P
for a projection to P. The recurrent weights, gates·H × H, tell the kind of cell; only an LSTM can
project. Per hidden element and step, vector class: see `_FORWARD`. Dropout between layers is 2 per
element handed on.

Backward does two products for each forward one: the gradients of what went in, and of the weights.
Per hidden element and step: see `_BACKWARD`.
"""

from functools import partial
from math import prod
from typing import Any

from flopprof.formulas import OpCall, Shape, Work
from flopprof.formulas.ops._elements import formula_for, moved_bytes, number
from flopprof.formulas.ops._shapes import Places, flags, formula_with_places

op_formula = partial(formula_for, kind="recurrent")

_FLOAT16 = 5  # PyTorch's number for it
_GATES = {"rnn": 1, "gru": 3, "lstm": 4}
# Without biases, and what they add (guide/conventions.md).
_FORWARD = {"rnn": (2, 2), "gru": (11, 6), "lstm": (13, 8)}
# A cell's own: RNN dh·(1 − h²) 3; GRU update gate 5, candidate 5, reset gate 4, state 2; LSTM
# tanh c 1, output gate 1, cell 5, products with the gates 4, σ′ 3·3, tanh′ 3. A sum per bias.
_CELL_BACKWARD = {"rnn": (3, 1), "gru": (16, 6), "lstm": (23, 4)}
# In a layer the gradients from above and from the next step are added, in a GRU in two places.
_BACKWARD = {"rnn": (4, 1), "gru": (18, 6), "lstm": (24, 4)}


@formula_with_places("recurrent", kind="recurrent")
def recurrent(call: OpCall, at: Places) -> Work | None:
    """2·steps·batch·gates·hidden·(in + hidden) of each layer and direction (gates 4, 3, 1); cells.

    A packed sequence (data, batch sizes, …) has its real steps only. Backward, the last of the
    output mask asks for the weights' gradients.
    """
    if call.dtype(1) == "int64":  # batch sizes: all else is one further
        at = Places({role: place + 1 for role, place in at.items() if role != "ops"})
    backward = call.op.endswith("backward")
    quantised = "quantized" in call.op
    directions = 2 if call.flag(at["bidirectional"]) else 1
    weights = _packed_weights(call, at, directions) if quantised else _weights(call, at)
    matrices = [shape for shape in weights if len(shape) == 2]
    if len(matrices) < 2:
        return None
    gate_rows, handed_on = matrices[1]
    kind = {1: "rnn", 3: "gru"}.get(gate_rows // handed_on, "lstm")
    hidden = gate_rows // _GATES[kind]
    # Input and recurrent weights of a cell have gates·H rows; a projection has fewer.
    cells = sum(height == gate_rows for height, _ in matrices) // 2
    biased = call.flag(at["biased"]) or call.has(at["bias"]) or len(weights) > len(matrices)
    alone, of_biases = _BACKWARD[kind] if backward else _FORWARD[kind]
    positions = prod(call.shape(0)[:-1])
    each = alone + of_biases if biased else alone
    vector = positions * cells * hidden * each
    if (number(call, at["dropout"]) or 0) > 0 and call.flag(at["training"]):
        vector += 2 * positions * handed_on * (cells - directions)
    matmul = 2 * positions * sum(map(prod, matrices))
    stored = sum(map(prod, weights))
    written = positions * handed_on * directions
    if backward:
        written += prod(call.shape(0))
        mask = flags(call, at["mask"])
        if mask is None or mask[-1]:  # the weights' gradients
            written += stored
            matmul *= 2
    states = (at["state"], at["cell"])
    moved = moved_bytes(call, 0, *states, *states) + written * call.itemsize_of(0)
    return Work(matmul, vector, moved + stored * _bytes_of_a_weight(call, quantised))


def _bytes_of_a_weight(call: OpCall, quantised: bool) -> int:
    if not quantised:
        return call.itemsize_of(0)
    return 2 if call.integer(9) == _FLOAT16 else 1


def _weights(call: OpCall, at: Places) -> list[Shape]:
    """Return the shapes of weights and biases: in a list, or four arguments in a row."""
    listed: tuple[Any, ...] = call.shape(at["weights"])
    if "first_weight" in at:
        first = at["first_weight"]
        count = 2 if call.flag(at["biased"]) is False else 4
        listed = call.shapes[first : first + count]
    return [tuple(shape) for shape in listed if isinstance(shape, tuple | list) and shape]


def _packed_weights(call: OpCall, at: Places, directions: int) -> list[Shape]:
    """Return the shapes of quantised weights, which are not recorded, from the state's width."""
    state: tuple[Any, ...] = call.shape(at["state"])
    if not state:
        return []
    hidden = (state[0] if isinstance(state[0], tuple | list) else state)[-1]
    rows = hidden * next(gates for kind, gates in _GATES.items() if kind in call.op)
    more = (call.integer(at["layers"]) or 1) - 1
    widths = [call.shape(0)[-1], *[hidden * directions] * more]
    shapes: list[Shape] = []
    for width in widths:
        for _ in range(directions):
            shapes += [(rows, width), (rows, hidden)]
    return shapes


@op_formula("_thnn_fused_lstm_cell _thnn_fused_gru_cell")
def fused_cell(call: OpCall) -> Work:
    """Gates and state of one step, without the products: (gates, gates, cell or state, biases)."""
    lstm = "lstm" in call.op
    alone, of_biases = _FORWARD["lstm" if lstm else "gru"]
    size = prod(call.shape(2))
    flops = size * (alone + of_biases * call.count(3))
    written = (2 if lstm else 1) * size * call.itemsize_of(2)
    return Work(0, flops, moved_bytes(call, *range(5)) + written)


@op_formula("_thnn_fused_lstm_cell_backward_impl _thnn_fused_lstm_cell_backward")
@op_formula("_thnn_fused_gru_cell_backward")
def fused_cell_backward(call: OpCall) -> Work:
    """The same backward: LSTM (grad, grad of cell, cell before, after, workspace, biases?).

    GRU (grad, workspace, biases?); the summing of the bias is left to a sum by `_impl`.
    """
    lstm = "lstm" in call.op
    alone, of_biases = _CELL_BACKWARD["lstm" if lstm else "gru"]
    size = prod(call.shape(2 if lstm else 0))
    biased = bool(call.flag(5 if lstm else 2)) and not call.op.endswith("_impl")
    written = (5 if lstm else 7) * size * call.itemsize_of(0)
    each = alone + of_biases if biased else alone
    return Work(0, size * each, moved_bytes(call, *range(5)) + written)
