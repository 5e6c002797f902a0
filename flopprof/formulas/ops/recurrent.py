"""Formulas of recurrent layers and cells, from the shapes of their weights.

Every weight matrix is applied once per step: gates·H × (in + recurrent) multiply-adds, and H × P
for a projection to P. The recurrent weights, gates·H × H, tell the kind of cell; only an LSTM can
project. Per hidden element and step, vector class: see `_FORWARD`. Dropout between layers is 2 per
element handed on.

Backward does two products for each forward one: the gradients of what went in, and of the weights.
Per hidden element and step: see `_BACKWARD`.
"""

from math import prod
from typing import Any

from flopprof.formulas import OpCall, Shape, Work
from flopprof.formulas.ops._elements import formula_for, moved_bytes, number
from flopprof.formulas.ops._shapes import flags

_GATES = {"rnn": 1, "gru": 3, "lstm": 4}
# Without biases, and what they add (ARCHITECTURE.md, "Conventions behind rule 2").
_FORWARD = {"rnn": (2, 2), "gru": (11, 6), "lstm": (13, 8)}
# A cell's own: RNN dh·(1 − h²) 3; GRU update gate 5, candidate 5, reset gate 4, state 2; LSTM
# tanh c 1, output gate 1, cell 5, products with the gates 4, σ′ 3·3, tanh′ 3. A sum per bias.
_CELL_BACKWARD = {"rnn": (3, 1), "gru": (16, 6), "lstm": (23, 4)}
# In a layer the gradients from above and from the next step are added, in a GRU in two places.
_BACKWARD = {"rnn": (4, 1), "gru": (18, 6), "lstm": (24, 4)}


def _weights(call: OpCall, index: int) -> list[Shape]:
    """Return the shapes in a list of tensors; none if the trace has not recorded them."""
    found: tuple[Any, ...] = call.shape(index)
    return [tuple(shape) for shape in found if isinstance(shape, tuple | list)]


def _layers(
    call: OpCall,
    weights: list[Shape],
    states: tuple[int, ...],
    *,
    biased: bool | None = None,
    directions: int = 1,
    dropout: float = 0,
    backward: bool = False,
    weight_gradients: bool = True,
) -> Work | None:
    """Return all layers and directions over the input, argument 0; None without weights' shapes."""
    matrices = [shape for shape in weights if len(shape) == 2]
    if len(matrices) < 2:
        return None
    gate_rows, handed_on = matrices[1]
    kind = {1: "rnn", 3: "gru"}.get(gate_rows // handed_on, "lstm")
    hidden = gate_rows // _GATES[kind]
    # Input and recurrent weights of a cell have gates·H rows; a projection has fewer.
    cells = sum(height == gate_rows for height, _ in matrices) // 2
    if biased is None:
        biased = len(weights) > len(matrices)
    alone, with_bias = (_BACKWARD if backward else _FORWARD)[kind]
    positions = prod(call.shape(0)[:-1])
    between = positions * handed_on * (cells - directions)
    vector = positions * cells * hidden * (alone + with_bias * biased)
    vector += 2 * between if dropout > 0 else 0
    each = 1 + weight_gradients if backward else 1
    written = positions * handed_on * directions
    if backward:
        written += prod(call.shape(0)) + sum(map(prod, weights)) * weight_gradients
    stored = written + sum(map(prod, weights))
    moved = moved_bytes(call, 0, *states, *states) + stored * call.itemsize_of(0)
    return Work(2 * each * positions * sum(map(prod, matrices)), vector, moved)


def _dropout(call: OpCall, rate: int, training: int) -> float:
    return (number(call, rate) or 0) if call.flag(training) else 0


@formula_for("lstm gru rnn_tanh rnn_relu")
def recurrent(call: OpCall) -> Work | None:
    """(input, state, weights, biases?, layers, dropout, train, bidirectional, …).

    Of a packed sequence (data, batch sizes, state, weights, …): real steps only.
    """
    at = 3 if call.dtype(1) == "int64" else 2
    directions = 2 if call.flag(at + 5) else 1
    dropout = _dropout(call, at + 3, at + 4)
    weights = _weights(call, at)
    return _layers(call, weights, (at - 1,), directions=directions, dropout=dropout)


@formula_for("mkldnn_rnn_layer mkldnn_rnn_layer_backward")
def mkldnn_rnn_layer(call: OpCall) -> Work | None:
    """One layer and direction: (input, weights, …, state, cell, …); `biases?` tells of two more."""
    backward = call.op.endswith("backward")
    biased = call.flag(17 if backward else 12)
    weights = [call.shape(i) for i in range(1, 5 if biased else 3)]
    return _layers(call, weights, (5, 6), biased=biased, backward=backward)


@formula_for("_cudnn_rnn _cudnn_rnn_backward miopen_rnn miopen_rnn_backward")
def gpu_rnn(call: OpCall) -> Work | None:
    """(input, weights, stride, buffer, state, cell, mode, …), MIOpen's forward without a buffer.

    Backward, the last of the output mask asks for the weights' gradients.
    """
    miopen, backward = "miopen" in call.op, call.op.endswith("backward")
    state = 3 if miopen and not backward else 4
    # Mode, H, projection (not MIOpen's), layers, batch first; before them, backward, the output
    # and three gradients.
    dropout_at = state + (6 if backward else 2) + (4 if miopen else 5)
    mask = flags(call, dropout_at + 6) if backward else None
    return _layers(
        call,
        _weights(call, 1),
        (state, state + 1),
        directions=2 if call.flag(dropout_at + 2) else 1,
        dropout=_dropout(call, dropout_at, dropout_at + 1),
        backward=backward,
        weight_gradients=mask is None or mask[-1],
    )


@formula_for("lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell")
def recurrent_cell(call: OpCall) -> Work | None:
    """One step: (input, state, input weights, recurrent weights, biases)."""
    return _layers(call, [call.shape(i) for i in range(2, 6) if call.has(i)], (1,))


@formula_for("_thnn_fused_lstm_cell _thnn_fused_gru_cell")
def fused_cell(call: OpCall) -> Work:
    """Gates and state of one step, without the products: (gates, gates, cell or state, biases)."""
    lstm = "lstm" in call.op
    alone, with_bias = _FORWARD["lstm" if lstm else "gru"]
    size = prod(call.shape(2))
    flops = size * (alone + with_bias * call.has(3))
    written = (2 if lstm else 1) * size * call.itemsize_of(2)
    return Work(0, flops, moved_bytes(call, *range(5)) + written)


@formula_for("_thnn_fused_lstm_cell_backward_impl _thnn_fused_lstm_cell_backward")
@formula_for("_thnn_fused_gru_cell_backward")
def fused_cell_backward(call: OpCall) -> Work:
    """The same backward: LSTM (grad, grad of cell, cell before, after, workspace, biases?).

    GRU (grad, workspace, biases?); the summing of the bias is left to a sum by `_impl`.
    """
    lstm = "lstm" in call.op
    alone, with_bias = _CELL_BACKWARD["lstm" if lstm else "gru"]
    size = prod(call.shape(2 if lstm else 0))
    biased = bool(call.flag(5 if lstm else 2)) and not call.op.endswith("_impl")
    written = (5 if lstm else 7) * size * call.itemsize_of(0)
    return Work(0, size * (alone + with_bias * biased), moved_bytes(call, *range(5)) + written)
