"""Formulas of recurrent layers and cells, forward and backward."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.flop_counter import FlopCounterMode

from flopprof.formulas import ModuleCall, Work
from flopprof.formulas.modules import find_module_formula
from tests.formulas._calls import formula, outermost, places, total
from tests.formulas._walk import roots, work_of

X = torch.zeros(3, 2, 8)  # 6 positions

# Hidden size 16 and inputs of 8, biases unless said. Multiply-adds per position: gates·16·(8 + 16);
# the next layer's inputs are 16 per direction. Vector per hidden element: RNN 2 + 2, GRU 11 + 6,
# LSTM 13 + 8.
CASES = [
    (nn.RNN(8, 16), 6 * 16 * 24, 6 * 16 * 4),
    (nn.RNN(8, 16, nonlinearity="relu", bias=False), 6 * 16 * 24, 6 * 16 * 2),
    (nn.GRU(8, 16), 6 * 48 * 24, 6 * 16 * 17),
    (nn.GRU(8, 16, bias=False, batch_first=True), 6 * 48 * 24, 6 * 16 * 11),
    (nn.LSTM(8, 16), 6 * 64 * 24, 6 * 16 * 21),
    (nn.LSTM(8, 16, bias=False), 6 * 64 * 24, 6 * 16 * 13),
    # Two directions, two layers: 2·64·(8 + 16), then 2·64·(32 + 16).
    (nn.LSTM(8, 16, 2, bidirectional=True), 6 * 128 * (24 + 48), 6 * 4 * 16 * 21),
    (nn.GRU(8, 16, 2, bidirectional=True), 6 * 96 * (24 + 48), 6 * 4 * 16 * 17),
    # Dropout between two layers in training: 2 per element handed on, 6·16.
    (nn.GRU(8, 16, 2, dropout=0.5), 6 * 48 * (24 + 32), 6 * 2 * 16 * 17 + 2 * 6 * 16),
    (nn.GRU(8, 16, 2, dropout=0.5).eval(), 6 * 48 * (24 + 32), 6 * 2 * 16 * 17),
    # Projected to 5: recurs on 5, and 16·5 more; the next layer's inputs are 5.
    (nn.LSTM(8, 16, 2, proj_size=5), 6 * (64 * (13 + 10) + 2 * 80), 6 * 2 * 16 * 21),
    (
        nn.LSTM(8, 16, 2, proj_size=5, bidirectional=True, dropout=0.5),
        6 * 2 * (64 * (13 + 15) + 2 * 80),
        6 * 4 * 16 * 21 + 2 * 6 * 10,
    ),
]


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(("module", "multiply_adds", "vector"), CASES)
def test_layers_count_what_their_weights_and_the_module_say(module, multiply_adds, vector):
    op, work = outermost(lambda: module(X))

    said = find_module_formula(module)
    assert said is not None
    assert op in ("aten::lstm", "aten::gru", "aten::rnn_tanh", "aten::rnn_relu")
    assert work is not None
    assert (work.matmul_flops, work.vector_flops) == (2 * multiply_adds, vector)
    assert said(ModuleCall(module, (X,), {}, module(X))) == Work(2 * multiply_adds, vector)


# What PyTorch quantises: neither plain RNNs nor projections, and only with biases.
QUANTISED = [
    (module, *counts)
    for module, *counts in CASES
    if type(module) is not nn.RNN and module.bias and not module.proj_size
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("module", "multiply_adds", "vector"), QUANTISED)
def test_quantised_layers_count_like_the_real_ones(module, multiply_adds, vector):
    quantised = torch.ao.quantization.quantize_dynamic(nn.Sequential(module), {type(module)})
    quantised.train(module.training)

    op, work = outermost(lambda: quantised(X))

    assert op in ("aten::quantized_lstm", "aten::quantized_gru")
    assert work is not None
    assert (work.matmul_flops, work.vector_flops) == (2 * multiply_adds, vector)


@pytest.mark.filterwarnings("ignore")
def test_a_quantised_layer_has_the_real_steps_of_a_packed_sequence_and_cells_have_one():
    lstm = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.LSTM(8, 16)), {nn.LSTM})
    cell = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.GRUCell(8, 16)), {nn.GRUCell})
    packed = pack_sequence([torch.zeros(3, 8), torch.zeros(1, 8)])

    # 3 + 1 positions × 64·24; 4·16·21. 8-bit weights 64·24; 32 inputs, 64 outputs, two states of
    # two rows of 16 in and out.
    _, work = outermost(lambda: lstm(packed))
    assert work == Work(2 * 4 * 64 * 24, 1344, 1536 + 4 * (32 + 64 + 2 * 2 * 32))
    # Three rows × 48·24 = 3456; 3·16·17.
    op, work = outermost(lambda: cell(torch.zeros(3, 8)))
    assert op == "quantized::quantized_gru_cell_dynamic"
    # 8-bit weights 48·24; 24 inputs, 48 outputs, the state twice.
    assert work == Work(6912, 816, 1152 + 4 * (24 + 48 + 2 * 48))


def test_bytes_are_input_weights_output_and_states_twice():
    weights = ((64, 8), (64, 16), (64,), (64,))
    shapes = ((3, 2, 8), ((1, 2, 16), (1, 2, 16)), weights, *[None] * 6)
    work = formula("aten::lstm", *shapes, _5="0.", _6="True", _7="False")

    # 48 + 1664 + 96 elements, and 64 of states in and out.
    assert work == Work(18432, 2016, 4 * (48 + 1664 + 96 + 128))


def test_a_packed_sequence_has_its_real_steps():
    packed = pack_sequence([torch.zeros(3, 8), torch.zeros(2, 8)])

    _, work = outermost(lambda: nn.LSTM(8, 16)(packed))

    assert work is not None
    assert (work.matmul_flops, work.vector_flops) == (2 * 5 * 64 * 24, 5 * 16 * 21)


@pytest.mark.parametrize("module", [nn.LSTM(8, 16), nn.LSTM(8, 16, 2, bias=False)])
def test_the_cpu_kernels_of_a_layer_add_up_to_it(module):
    def below(nodes):
        for node in nodes:
            if node.call.op == "aten::mkldnn_rnn_layer":
                yield work_of(node.call)
            yield from below(node.children)

    found = roots(lambda: module(X))
    whole = next(work_of(node.call) for node in found if node.call.op == "aten::lstm")

    layers = list(below(found))

    assert whole is not None
    assert len(layers) == module.num_layers
    assert sum(work.matmul_flops for work in layers) == whole.matmul_flops
    assert sum(work.vector_flops for work in layers) == whole.vector_flops


@pytest.mark.parametrize(
    ("module", "rows", "vector"),
    [
        (nn.RNNCell(8, 16), 16, 4),
        (nn.RNNCell(8, 16, nonlinearity="relu", bias=False), 16, 2),
        (nn.GRUCell(8, 16), 48, 17),
        (nn.LSTMCell(8, 16), 64, 21),
        (nn.LSTMCell(8, 16, bias=False), 64, 13),
    ],
)
def test_cells_are_one_step(module, rows, vector):
    x = torch.zeros(3, 8)

    op, work = outermost(lambda: module(x))
    with FlopCounterMode(display=False) as torch_counts:
        module(x)

    assert op.endswith("_cell")
    assert work is not None
    assert (work.matmul_flops, work.vector_flops) == (2 * 3 * rows * 24, 3 * 16 * vector)
    assert work.matmul_flops == torch_counts.get_total_flops()


def test_a_training_step_does_two_products_backward_for_each_forward():
    module = nn.LSTM(8, 16, 2)

    def run():
        module(X)[0].sum().backward()

    matmul, _ = total(run)

    # Forward 64·24, then 64·32 multiply-adds at 6 positions.
    assert matmul == 3 * 2 * 6 * 64 * (24 + 32)


WEIGHTS = ((64, 8), (64, 16), (64,), (64,))
STATE = (1, 2, 16)


def test_gpu_names_count_the_same_as_the_layer():
    expected = Work(18432, 2016, 4 * (48 + 1664 + 96 + 128))

    cudnn = formula("aten::_cudnn_rnn", (3, 2, 8), WEIGHTS, None, None, STATE, STATE, *[None] * 10)
    miopen = formula("aten::miopen_rnn", (3, 2, 8), WEIGHTS, None, STATE, STATE, *[None] * 9)

    assert cudnn == miopen == expected


def test_gpu_names_know_directions_and_dropout():
    cell = ((48, 8), (48, 16), (48,), (48,))
    later = ((48, 32), (48, 16), (48,), (48,))
    weights = cell + cell + later + later
    shapes = [(3, 2, 8), weights, None, None, (4, 2, 16), None, *[None] * 10]
    values = {"_11": "0.5", "_12": "True", "_13": "True"}

    work = formula("aten::_cudnn_rnn", *shapes, **values)

    # As GRU(8, 16, 2, bidirectional): and dropout on 6·32 elements.
    assert work is not None
    assert work.matmul_flops == 2 * 6 * 96 * 72
    assert work.vector_flops == 6 * 4 * 16 * 17 + 2 * 6 * 32


@pytest.mark.parametrize(
    ("op", "state_at", "mask_at", "count"),
    [("aten::_cudnn_rnn_backward", 4, 21, 22), ("aten::miopen_rnn_backward", 4, 20, 21)],
)
def test_gpu_backward_makes_the_weights_gradients_if_asked(op, state_at, mask_at, count):
    shapes = [(3, 2, 8), WEIGHTS, *[None] * (count - 2)]
    shapes[state_at] = shapes[state_at + 1] = STATE

    both = formula(op, *shapes, **{f"_{mask_at}": "[True, True, True, True]"})
    one = formula(op, *shapes, **{f"_{mask_at}": "[True, True, True, False]"})

    # Per hidden element 24 and 4 of the bias.
    assert both is not None
    assert one is not None
    assert (both.matmul_flops, both.vector_flops) == (2 * 18432, 6 * 16 * 28)
    assert one.matmul_flops == 18432


@pytest.mark.parametrize(
    ("gates", "vector"),
    # Gradients of the gates, the two added up where they meet, and a sum for each bias.
    [(1, 3 + 1 + 1), (3, 16 + 2 + 6), (4, 23 + 1 + 4)],
)
def test_backward_of_each_kind_of_cell(gates, vector):
    rows = 16 * gates
    weights = ((rows, 8), (rows, 16), (rows,), (rows,))

    work = formula("aten::_cudnn_rnn_backward", (3, 2, 8), weights, *[None] * 20)

    # Read the input, written its gradient; the weights and theirs; the output's gradient.
    assert work is not None
    assert (work.matmul_flops, work.vector_flops) == (4 * 6 * rows * 24, 6 * 16 * vector)
    assert work.min_bytes == 4 * (2 * 48 + 2 * (rows * 24 + 2 * rows) + 96)


@pytest.mark.parametrize(("biased", "vector", "weights"), [("True", 28, 1664), ("False", 24, 1536)])
def test_backward_of_a_cpu_layer(biased, vector, weights):
    shapes = [(3, 2, 8), *WEIGHTS, (2, 16), (2, 16), *[None] * 16]

    work = formula("aten::mkldnn_rnn_layer_backward", *shapes, _17=biased)

    # Per hidden element 24, and 4 of a bias; states in and out are 128.
    assert work == Work(2 * 18432, 96 * vector, 4 * (2 * 48 + 2 * weights + 96 + 128))


def test_arguments_are_where_the_schemas_have_them():
    wanted = "hx", "dropout", "train", "bidirectional", "output_mask"

    assert places("aten::_cudnn_rnn", *wanted) == [4, 11, 12, 13, 99]
    assert places("aten::_cudnn_rnn_backward", *wanted) == [4, 15, 16, 17, 21]
    assert places("aten::miopen_rnn", *wanted) == [3, 9, 10, 11, 99]
    assert places("aten::miopen_rnn_backward", *wanted) == [4, 14, 15, 16, 20]
    assert places("aten::mkldnn_rnn_layer", "has_biases") == [12]
    assert places("aten::mkldnn_rnn_layer_backward", "has_biases") == [17]


@pytest.mark.parametrize(
    ("op", "dropout_at", "count"),
    [
        ("aten::_cudnn_rnn", 11, 16),
        ("aten::_cudnn_rnn_backward", 15, 22),
        ("aten::miopen_rnn", 9, 14),
        ("aten::miopen_rnn_backward", 14, 21),
    ],
)
def test_gpu_names_find_dropout_and_directions(op, dropout_at, count):
    one = ((16, 8), (16, 16))
    weights = one + one + ((16, 32), (16, 16)) * 2
    shapes = [(3, 2, 8), weights, *[None] * (count - 2)]
    on = {f"_{dropout_at}": "0.5", f"_{dropout_at + 1}": "True"}

    alone = formula(op, *shapes)
    both = formula(op, *shapes, **on, **{f"_{dropout_at + 2}": "True"})
    off = formula(op, *shapes, **on | {f"_{dropout_at + 1}": "False"})

    # Two layers of two directions hand 6·32 elements on once; as four layers of one, 6·16 thrice.
    assert alone is not None
    assert both is not None
    assert both.vector_flops - alone.vector_flops == 2 * 6 * 32
    assert alone == off


def test_lists_without_shapes_leave_a_layer_undetermined():
    types = ["float32", "TensorList", "TensorList"]

    assert formula("aten::lstm", (3, 2, 8), None, None, dtypes=types) is None


def test_fused_cells_have_no_products():
    gates, state = (2, 64), (2, 16)
    lstm = formula("aten::_thnn_fused_lstm_cell", gates, gates, state, (64,), (64,))
    gru = formula("aten::_thnn_fused_gru_cell", (2, 48), (2, 48), state, None, None)

    # 32 elements: 21 with biases, 11 without. Read 2·128 + 32 + 2·64, written hidden and cell.
    assert lstm == Work(0, 672, 4 * (416 + 64))
    assert gru == Work(0, 352, 4 * (192 + 32 + 32))


def test_fused_cells_backward():
    state, op = (2, 16), "aten::_thnn_fused_lstm_cell_backward"
    shapes = [state, state, state, state, (2, 64)]

    # 32 elements: 23, and 4 to sum the bias's gradient. Written: 4 gates and the cell.
    assert formula(op, *shapes, None, _5="True") == Work(0, 32 * 27, 4 * (256 + 160))
    assert formula(op + "_impl", *shapes, None, _5="True") == Work(0, 32 * 23, 4 * (256 + 160))
    gru = formula("aten::_thnn_fused_gru_cell_backward", state, (2, 80), None, _2="False")
    # Written: 3 gates of input and of hidden, and the state.
    assert gru == Work(0, 32 * 16, 4 * (192 + 224))


sizes = st.integers(1, 3)


@settings(max_examples=30, deadline=None)
@given(sizes, sizes, sizes, sizes, sizes, sizes)
def test_the_formula_agrees_with_loops_over_steps_and_gates(
    steps, batch, width, hidden, layers, directions
):
    weights, count = [], 0
    for layer in range(layers):
        inputs = width if layer == 0 else hidden * directions
        for _ in range(directions):
            weights += [(4 * hidden, inputs), (4 * hidden, hidden)]
            cell = product(range(steps), range(batch), range(4), range(hidden))
            count += sum(inputs + hidden for _ in cell)

    work = formula("aten::lstm", (steps, batch, width), ((1,), (1,)), tuple(weights))

    assert work is not None
    assert work.matmul_flops == 2 * count
    assert work.vector_flops == 13 * steps * batch * hidden * layers * directions
