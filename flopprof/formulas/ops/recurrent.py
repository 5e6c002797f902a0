"""Formulas of recurrent layers and cells.

Every weight matrix is applied once per step: gates·H × (in + recurrent) multiply-adds, and H × P
for a projection. Per hidden element and step, vector class (ARCHITECTURE.md, "Conventions"): RNN
2, LSTM 13, GRU 11; with biases 2, 8 and 6 more.
"""

from collections.abc import Iterable
from math import prod
from typing import Any

from flopprof.formulas import OpCall, Shape, Work
from flopprof.formulas.ops._elements import formula_for, moved_bytes

_GATES = {"rnn": 1, "lstm": 4, "gru": 3}
_VECTOR = {"rnn": (2, 2), "lstm": (13, 8), "gru": (11, 6)}
_MODES = ("rnn", "rnn", "lstm", "gru")  # as cuDNN, MIOpen and oneDNN number them


def _mode(call: OpCall, index: int) -> str | None:
    mode = call.integer(index)
    return None if mode is None or not 0 <= mode < len(_MODES) else _MODES[mode]


def _weights(call: OpCall, index: int) -> list[Shape]:
    """Return the shapes in a list of tensors; none if the trace has not recorded them."""
    found: tuple[Any, ...] = call.shape(index)
    return [tuple(shape) for shape in found if isinstance(shape, tuple | list)]


def _cells(positions: int, weights: Iterable[Shape], kind: str) -> tuple[int, int]:
    """Return matmul and vector FLOPs of `positions` steps through all `weights`."""
    shapes = [tuple(shape) for shape in weights]
    matrices = [shape for shape in shapes if len(shape) == 2]
    hidden = matrices[0][0] // _GATES[kind]
    # Input and recurrent weights of a cell have gates·H rows; a projection has fewer.
    cells = sum(rows == matrices[0][0] for rows, _ in matrices) // 2
    base, bias = _VECTOR[kind]
    each = base + (bias if len(shapes) > len(matrices) else 0)
    return 2 * positions * sum(map(prod, matrices)), positions * cells * hidden * each


def _layers(
    call: OpCall, weights: Iterable[Shape], kind: str, states: tuple[int, ...]
) -> Work | None:
    """Return all layers and directions over the input, argument 0."""
    shapes = list(weights)
    if len(shapes) < 2:
        return None
    positions = prod(call.shape(0)[:-1])
    matmul, vector = _cells(positions, shapes, kind)
    hidden = shapes[1][-1]
    moved = moved_bytes(call, 0, *states) + positions * hidden * call.itemsize_of(0)
    moved += sum(map(prod, shapes)) * call.itemsize_of(0)
    return Work(matmul, vector, moved)


@formula_for("lstm gru rnn_tanh rnn_relu")
def recurrent(call: OpCall) -> Work | None:
    """(input, state, weights, …), or packed: (data, batch sizes, state, weights, …)."""
    kind = call.op.removeprefix("aten::").partition("_")[0]
    packed = call.dtype(1) == "int64"
    weights = _weights(call, 3 if packed else 2)
    return _layers(call, weights, kind, (2,) if packed else (1,))


@formula_for("mkldnn_rnn_layer")
def mkldnn_rnn_layer(call: OpCall) -> Work | None:
    """One layer and direction: (input, 4 weights, state, cell, reverse, batch sizes, mode, …)."""
    kind = _mode(call, 9)
    if kind is None:
        return None
    weights = [shape for shape in map(call.shape, range(1, 5)) if shape]
    return _layers(call, weights, kind, (5, 6))


@formula_for("_cudnn_rnn")
def cudnn_rnn(call: OpCall) -> Work | None:
    """(input, weights, stride, buffer, state, cell, mode, …); the weights' shapes say the rest."""
    kind = _mode(call, 6)
    return None if kind is None else _layers(call, _weights(call, 1), kind, (4, 5))


@formula_for("miopen_rnn")
def miopen_rnn(call: OpCall) -> Work | None:
    """(input, weights, stride, state, cell, mode, …)."""
    kind = _mode(call, 5)
    return None if kind is None else _layers(call, _weights(call, 1), kind, (3, 4))


@formula_for("lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell")
def recurrent_cell(call: OpCall) -> Work | None:
    """One step: (input, state, input weights, recurrent weights, biases)."""
    kind = call.op.removeprefix("aten::").partition("_")[0]
    weights = [call.shape(i) for i in range(2, 6) if call.has(i)]
    return _layers(call, weights, kind, (1,))


@formula_for("_thnn_fused_lstm_cell")
def fused_lstm_cell(call: OpCall) -> Work:
    """Gates, cell and output of one step, without the products: (gates, gates, cell, biases)."""
    cell = prod(call.shape(2))
    each = 13 + (8 if call.has(3) else 0)
    return Work(0, each * cell, moved_bytes(call, 0, 1, 2, 2) + cell * call.itemsize_of(2))


@formula_for("_thnn_fused_gru_cell")
def fused_gru_cell(call: OpCall) -> Work:
    """Gates and blend of one step, without the products: (gates, gates, state, biases)."""
    state = prod(call.shape(2))
    each = 11 + (6 if call.has(3) else 0)
    return Work(0, each * state, moved_bytes(call, 0, 1, 2) + state * call.itemsize_of(2))
