"""Counts of torch.nn's layers, each derived by hand."""

import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode

import flopprof
from flopprof.formulas import MODULE_FORMULAS, ModuleCall, Work
from flopprof.formulas.modules import canonical_name, find_module_formula
from tests.formulas._calls import total

torch.set_num_threads(1)


def zeros(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype)


def work_of(module, *args, **kwargs):
    """Return what the formula says of one real call."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        output = module(*args, **kwargs)
    formula = find_module_formula(module)
    assert formula is not None
    return formula(ModuleCall(module, args, kwargs, output))


X = (2, 4, 9, 7)  # 504 elements
PRODUCTS = [
    # Conv1d 3 → 5, filter 3: 2·5·8 outputs × 3·3 taps = 720 multiply-adds; 80 bias adds.
    (nn.Conv1d(3, 5, 3), (2, 3, 10), 1440, 80),
    # Stride 2, padding 1, dilation 2 on 9×7: ⌊(9+2−4−1)/2⌋+1 = 4 by 3. 2·6·4·3 = 144 outputs
    # × 4·9 taps = 5184 multiply-adds; no bias.
    (nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2, bias=False), X, 10368, 0),
    # Two groups: 4/2 channels each. 2·6·7·5 = 420 outputs × 2·9 taps = 7560; 420 adds.
    (nn.Conv2d(4, 6, 3, groups=2), X, 15120, 420),
    # Depthwise, 3×1 filter, same size: 504 outputs × 3 taps = 1512; 504 adds.
    (nn.Conv2d(4, 4, (3, 1), padding="same", groups=4), X, 3024, 504),
    # Padding by wrapping around moves data: 504/4·6 = 756 outputs × 4·9 = 27216; 756 adds.
    (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), X, 54432, 756),
    # Unbatched 3-d: 2·3·3·3 = 54 outputs × 1·8 taps = 432; 54 adds.
    (nn.Conv3d(1, 2, 2), (1, 4, 4, 4), 864, 54),
    # Lazy: it has become Conv2d(4, 2, 1) by the time it is counted. 252 outputs × 4 taps = 1008.
    (nn.LazyConv2d(2, 1), X, 2016, 252),
    # Transposed, 4 → 6 in two groups: 504 inputs × 3·(3·3) taps = 13608. Outputs of stride 2:
    # (9−1)·2+3 = 19 by (7−1)·2+3 = 15: 2·6·19·15 = 3420 adds.
    (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), X, 27216, 3420),
    # 2·3·5 = 30 inputs × 2·4 taps = 240; outputs 2·2·8 = 32.
    (nn.ConvTranspose1d(3, 2, 4), (2, 3, 5), 480, 32),
    # 1·2·2·2·2 = 16 inputs × 3·1 = 48; 3·8 = 24 adds.
    (nn.LazyConvTranspose3d(3, 1), (1, 2, 2, 2, 2), 96, 24),
    # 2·5·6 = 60 outputs × 3 = 180; 60 adds.
    (nn.Linear(3, 6), (2, 5, 3), 360, 60),
    (nn.Linear(3, 6, bias=False), (3,), 36, 0),
    (nn.modules.linear.NonDynamicallyQuantizableLinear(3, 6), (4, 3), 144, 24),
    (nn.LazyLinear(6), (4, 3), 144, 24),
]


@pytest.mark.parametrize(("module", "shape", "matmul", "vector"), PRODUCTS)
def test_products_count_two_flops_per_multiply_add_and_one_per_bias(module, shape, matmul, vector):
    with FlopCounterMode(display=False) as torch_counts, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module(zeros(*shape))

    work = work_of(module, zeros(*shape))

    assert work == Work(matmul_flops=matmul, vector_flops=vector)
    assert matmul == torch_counts.get_total_flops()


@pytest.mark.parametrize(
    ("module", "shape", "matmul", "vector"),
    [
        # A vector is one row: 6 outputs × 3 multiply-adds, 6 adds. No rows, no FLOPs.
        (nn.Linear(3, 6), (3,), 36, 6),
        (nn.Linear(3, 6), (0, 3), 0, 0),
        (nn.Linear(3, 6), (2, 0, 3), 0, 0),
        (nn.Conv2d(2, 4, 3), (0, 2, 5, 5), 0, 0),
        # 4·3·3 = 36 outputs × 2·9 taps, whatever fills the border; 36 adds.
        *(
            (nn.Conv2d(2, 4, 3, padding=1, padding_mode=mode), (1, 2, 3, 3), 1296, 36)
            for mode in ("zeros", "circular", "reflect", "replicate")
        ),
        # Complex: 4·6 outputs × 3 multiply-adds × 8; a bias add is two.
        (nn.Linear(3, 6, dtype=torch.complex64), (4, 3), 576, 48),
        # 3·3 = 9 outputs × 2·2 taps = 36 multiply-adds.
        (nn.Conv1d(2, 3, 2, dtype=torch.complex64), (1, 2, 4), 288, 18),
    ],
)
def test_module_and_op_count_the_same_product(module, shape, matmul, vector):
    x = zeros(*shape, dtype=module.weight.dtype)

    assert work_of(module, x) == Work(matmul, vector)
    assert total(lambda: module(x)) == (matmul, vector)


QUANTISED = [
    # 4 rows × 6 outputs × 3 multiply-adds = 72; 24 bias adds.
    (nn.Linear(3, 6), (4, 3), 144, 24),
    (nn.Linear(3, 6, bias=False), (4, 3), 144, 0),
    # As `RECURRENT` below.
    (nn.LSTM(5, 4, 2), (6, 3, 5), 5184 + 4608, 3024),
    (nn.GRU(5, 4, 2, bidirectional=True), (6, 3, 5), 2 * 3888 + 10368, 4 * 18 * 17 * 4),
    (nn.LSTMCell(5, 4), (3, 5), 864, 252),
    (nn.GRUCell(5, 4), (3, 5), 648, 204),
    (nn.RNNCell(5, 4), (3, 5), 216, 48),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("module", "shape", "matmul", "vector"), QUANTISED)
def test_a_dynamically_quantised_layer_counts_like_the_real_one(module, shape, matmul, vector):
    model = torch.ao.quantization.quantize_dynamic(nn.Sequential(module.eval()), {type(module)})

    assert type(model[0]) is not type(module)
    assert work_of(model[0], zeros(*shape)) == Work(matmul, vector)


@pytest.mark.filterwarnings("ignore")
def test_a_statically_quantised_layer_counts_like_the_real_one():
    quantisation: Any = torch.ao.quantization
    layers = nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(), nn.ConvTranspose2d(6, 2, 2), nn.Linear(6, 5)
    model = nn.Sequential(*layers).eval()
    model.qconfig = quantisation.get_default_qconfig("qnnpack")
    model[2].qconfig = quantisation.QConfig(  # its weights are quantised as a whole
        quantisation.default_observer, quantisation.default_weight_observer
    )
    fused = quantisation.fuse_modules(model, [["0", "1"]])
    observed = quantisation.prepare(fused)
    observed(zeros(2, 4, 7, 7))
    conv, _, transposed, linear = quantisation.convert(observed)

    x = torch.quantize_per_tensor(zeros(2, 4, 7, 7), 0.1, 0, torch.quint8)
    # 2·6·5·5 = 300 outputs × 2·9 taps; a bias and a relu each.
    assert work_of(conv, x) == Work(10800, 600)
    # 300 inputs × 2·4 taps; 2·2·6·6 = 144 biases.
    assert work_of(transposed, conv(x)) == Work(4800, 144)
    # 2·2·6 = 24 rows × 5 outputs × 6.
    assert work_of(linear, transposed(conv(x))) == Work(1440, 120)


def test_a_complex_multiply_add_is_eight_and_a_complex_add_two():
    layer = nn.Linear(5, 6, dtype=torch.complex64)

    # 4·6 outputs of 5 multiply-adds, 8 each; 24 adds, 2 each.
    assert work_of(layer, zeros(4, 5).to(torch.complex64)) == Work(960, 48)


def test_bilinear_multiplies_by_both_inputs():
    # 5·4 = 20 outputs × (2·3 + 3) = 180 multiply-adds; 20 adds.
    assert work_of(nn.Bilinear(2, 3, 4), zeros(5, 2), zeros(5, 3)) == Work(360, 20)


def trained(module):
    return module.train()


VECTOR = [
    # Activations of 504 elements: one each, whatever the definition.
    *((cls(), X, 504) for cls in (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU, nn.PReLU, nn.RReLU,
      nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid,
      nn.Softplus, nn.Sigmoid, nn.Tanh, nn.LogSigmoid, nn.Hardshrink, nn.Softshrink)),
    (nn.Threshold(0.1, 0.2), X, 504),
    (nn.GELU("tanh"), X, 504),
    (nn.Tanhshrink(), X, 1008),  # tanh, subtract
    (nn.Softsign(), X, 1512),  # abs, add, divide
    (nn.GLU(1), X, 504),  # half of the elements: sigmoid, multiply
    # Softmax 5·504; of −x 6·504.
    (nn.Softmax(-1), X, 2520),
    (nn.Softmax2d(), X, 2520),
    (nn.LogSoftmax(1), X, 2520),
    (nn.Softmin(1), X, 3024),
    # Dropout: nothing in eval; mask and scale in training.
    (nn.Dropout(0.5).eval(), X, 0),
    (trained(nn.Dropout(0.5)), X, 1008),
    (trained(nn.Dropout(0.0)), X, 0),
    (trained(nn.Dropout(1.0)), X, 504),
    (trained(nn.Dropout2d(0.5)), X, 1008),
    (trained(nn.AlphaDropout(0.5)), X, 1008),
    # Batch norm: 2n on running statistics; else 5n, + n weight, + n bias.
    (nn.BatchNorm2d(4).eval(), X, 1008),
    (nn.BatchNorm2d(4, affine=False).eval(), X, 1008),
    (trained(nn.BatchNorm2d(4)), X, 3528),
    (trained(nn.BatchNorm2d(4, affine=False)), X, 2520),
    (nn.BatchNorm2d(4, track_running_stats=False).eval(), X, 3528),
    (nn.LazyBatchNorm2d().eval(), X, 1008),
    (nn.SyncBatchNorm(4).eval(), X, 1008),
    (nn.BatchNorm1d(4).eval(), (6, 4), 48),
    (nn.BatchNorm3d(2).eval(), (1, 2, 2, 2, 2), 32),
    # Instance norm: of each call unless it tracks statistics and is in eval.
    (nn.InstanceNorm2d(4).eval(), X, 2520),
    (nn.InstanceNorm2d(4, affine=True).eval(), X, 3528),
    (nn.InstanceNorm2d(4, track_running_stats=True).eval(), X, 1008),
    (trained(nn.InstanceNorm2d(4, track_running_stats=True)), X, 2520),
    (nn.InstanceNorm1d(3), (3, 8), 120),  # unbatched: 5·24
    (nn.LayerNorm((9, 7)), X, 3528),
    (nn.LayerNorm(7, bias=False), X, 3024),
    (nn.LayerNorm(7, elementwise_affine=False), X, 2520),
    (nn.GroupNorm(2, 4), X, 3528),
    (nn.GroupNorm(2, 4, affine=False), X, 2520),
    (nn.RMSNorm(7), X, 2016),  # 3n + n
    (nn.RMSNorm(7, elementwise_affine=False), X, 1512),
    (nn.LocalResponseNorm(3), X, 4032),  # (3 + 5)·504
    (nn.CrossMapLRN2d(3), X, 4032),
    # Pools: outputs × window. 9×7 → 3×2: 2·4·6 = 48 × 9.
    (nn.MaxPool2d(3), X, 432),
    (nn.MaxPool2d(3, return_indices=True), X, 432),
    (nn.AvgPool2d((3, 2)), X, 432),  # 9×7 → 3×3: 72 × 6
    (nn.MaxPool2d(3, 2, 1, dilation=1, ceil_mode=True), X, 1440),  # → 5×4: 160 × 9
    (nn.MaxPool1d(2), (3, 5), 12),  # unbatched → 3·2 × 2
    (nn.AvgPool1d(2, 1), (1, 3, 5), 24),
    (nn.AvgPool3d(2), (1, 1, 4, 4, 4), 64),
    (nn.MaxPool3d((2, 1, 1)), (1, 1, 4, 2, 2), 16),
    (nn.FractionalMaxPool2d(2, output_size=(3, 3)), X, 288),  # 72 × 4
    # 504 powers; 2·4·7·5 = 280 outputs × (9 + sign, abs, relu, multiply, multiply, root).
    (nn.LPPool2d(2, 3, 1), X, 4704),
    (nn.LPPool1d(2, 2), (1, 3, 4), 60),  # 12 + 6·(2 + 6)
    (nn.LPPool2d(float("inf"), 3), X, 936),  # 504 + 48·9
    # Adaptive: windows of 9 into 2 are 0…5 and 4…9, 10 in all; of 7 into 3 are 0…3, 2…5, 4…7: 9.
    (nn.AdaptiveAvgPool2d((2, 3)), X, 720),  # 8 planes × 10·9
    (nn.AdaptiveAvgPool2d(1), X, 504),
    (nn.AdaptiveMaxPool2d((None, 1)), X, 504),  # 9 windows of one row
    (nn.AdaptiveAvgPool1d(3), (2, 7), 18),
    (nn.AdaptiveMaxPool3d(1), (1, 1, 2, 3, 4), 24),
    # Resizing: outputs × 3 per lerp. 2·4·18·14 = 2016 outputs.
    (nn.Upsample(scale_factor=2), X, 0),
    (nn.UpsamplingNearest2d(scale_factor=2), X, 0),
    (nn.Upsample(scale_factor=2, mode="bilinear"), X, 18144),
    (nn.UpsamplingBilinear2d(scale_factor=2), X, 18144),
    (nn.Upsample(scale_factor=2, mode="bicubic"), X, 70560),
    (nn.Upsample(size=6, mode="linear"), (1, 2, 3), 36),
    (nn.Upsample(size=2, mode="trilinear"), (1, 1, 3, 3, 3), 168),
    (nn.Upsample(size=(2, 3), mode="area"), X, 720),
    # Only moves data.
    (nn.Identity(), X, 0),
    (nn.Flatten(), X, 0),
    (nn.Unflatten(1, (2, 2)), X, 0),
    (nn.PixelShuffle(2), X, 0),
    (nn.PixelUnshuffle(3), (1, 1, 3, 3), 0),
    (nn.ChannelShuffle(2), X, 0),
    (nn.Unfold(3), X, 0),
    (nn.ZeroPad2d(1), X, 0),
    (nn.ReflectionPad2d(1), X, 0),
    (nn.ReplicationPad1d(1), (1, 2, 3), 0),
    (nn.ConstantPad3d(1, 2.0), (1, 1, 2, 2, 2), 0),
    (nn.CircularPad2d(1), X, 0),
    (nn.Sequential(), X, 0),
    # Fold: each of 1·4·4 elements is added once.
    (nn.Fold((3, 3), 2), (1, 4, 4), 16),
]  # fmt: skip


@pytest.mark.parametrize(("module", "shape", "vector"), VECTOR)
def test_layers_without_contractions_count_vector_flops(module, shape, vector):
    assert work_of(module, zeros(*shape)) == Work(vector_flops=vector)


@pytest.mark.parametrize(
    ("module", "inputs", "vector"),
    [
        (nn.Softsign(), 1, 1512),  # 504 × (abs, add, divide)
        (nn.Tanhshrink(), 1, 1008),  # 504 × (tanh, subtract)
        # 6n for two norms and a product of n = 504, and 4 in each of 2·9·7 = 126 pairs.
        (nn.CosineSimilarity(1), 2, 3528),
        (nn.PairwiseDistance(), 2, 2016),  # subtract, ε, and a norm of 2n
    ],
)
def test_layers_composed_in_python_count_like_their_ops(module, inputs, vector):
    arguments = [zeros(*X)] * inputs

    assert work_of(module, *arguments) == Work(vector_flops=vector)
    assert total(lambda: module(*arguments)) == (0, vector)


def test_quantising_is_a_scale_and_a_shift():
    package = torch.ao.nn.quantized
    module = package.Quantize(0.1, 0, torch.quint8)
    back = package.DeQuantize()

    assert work_of(module, zeros(*X)) == Work(vector_flops=1008)
    assert work_of(back, module(zeros(*X))) == Work(vector_flops=1008)
    assert total(lambda: back(module(zeros(*X)))) == (0, 2016)


def test_integer_elements_are_no_flops():
    assert work_of(nn.ReLU(), zeros(5, dtype=torch.int64)) == Work()
    assert work_of(nn.MaxPool2d(2), zeros(1, 4, 4, dtype=torch.int64)) == Work()


def test_inputs_may_be_keywords():
    assert work_of(nn.Softmax(-1), input=zeros(4)) == Work(vector_flops=20)
    loss = work_of(nn.CrossEntropyLoss(), target=torch.tensor([0]), input=zeros(1, 4))
    assert loss == Work(vector_flops=22)  # 5·4, minus the chosen one, mean of one


def test_unpooling_moves_data():
    _, indices = nn.MaxPool2d(2, return_indices=True)(torch.rand(1, 1, 4, 4))

    assert work_of(nn.MaxUnpool2d(2), zeros(1, 1, 2, 2), indices) == Work()


def test_embedding_is_a_lookup_and_a_bag_adds():
    indices = torch.tensor([[0, 1, 2], [3, 4, 5]])

    assert work_of(nn.Embedding(10, 4), indices) == Work()
    assert work_of(nn.Embedding(10, 4, max_norm=1.0), indices) is None
    # 6 rows of 4.
    assert work_of(nn.EmbeddingBag(10, 4), indices) == Work(vector_flops=24)
    bag = nn.EmbeddingBag(10, 4, mode="sum")
    assert work_of(bag, indices, per_sample_weights=zeros(2, 3)) == Work(vector_flops=48)
    flat = torch.tensor([1, 2, 3])
    assert work_of(nn.EmbeddingBag(10, 4), flat, torch.tensor([0, 2])) == Work(vector_flops=12)


RECURRENT = [
    # Cells, batch 3, in 5, hidden 4. RNN: 3·4·(5+4) = 108 multiply-adds; (2+2)·4·3 = 48.
    (nn.RNNCell(5, 4), (3, 5), 216, 48),
    (nn.RNNCell(5, 4, bias=False, nonlinearity="relu"), (3, 5), 216, 24),
    # LSTM: 4 gates: 432; (13+8)·4·3 = 252. GRU: 3 gates: 324; (11+6)·12 = 204.
    (nn.LSTMCell(5, 4), (3, 5), 864, 252),
    (nn.LSTMCell(5, 4), (5,), 288, 84),
    (nn.GRUCell(5, 4), (3, 5), 648, 204),
    (nn.GRUCell(5, 4, bias=False), (3, 5), 648, 132),
    # Sequences of 6 for a batch of 3: 18 positions of the cells above.
    (nn.RNN(5, 4), (6, 3, 5), 1296, 288),
    (nn.LSTM(5, 4, batch_first=True), (3, 6, 5), 5184, 1512),
    (nn.GRU(5, 4), (6, 5), 1296, 408),  # unbatched: 6 positions
    # Two layers: the second has width 4: 18·4·4·(4+4) = 2304 multiply-adds more.
    (nn.LSTM(5, 4, 2), (6, 3, 5), 5184 + 4608, 3024),
    # In training, its dropout of 18·4 elements: + 144.
    (nn.LSTM(5, 4, 2, dropout=0.5).train(), (6, 3, 5), 9792, 3168),
    (nn.LSTM(5, 4, 2, dropout=0.5).eval(), (6, 3, 5), 9792, 3024),
    # Both directions: twice the first layer; the second reads 8: 2·18·3·4·(8+4) = 5184.
    (nn.GRU(5, 4, 2, bidirectional=True), (6, 3, 5), 2 * 3888 + 10368, 4 * 18 * 17 * 4),
    # Projection to 2: 18·(4·4·(5+2) + 4·2) = 2160; vector as without.
    (nn.LSTM(5, 4, proj_size=2), (6, 3, 5), 4320, 1512),
    # … two layers, both directions: the second reads 4: 18·2·(4·4·(4+2) + 8) = 3744.
    (nn.LSTM(5, 4, 2, proj_size=2, bidirectional=True), (6, 3, 5), 2 * 4320 + 7488, 4 * 1512),
]


@pytest.mark.parametrize(("module", "shape", "matmul", "vector"), RECURRENT)
def test_recurrent_layers_count_their_gates_step_by_step(module, shape, matmul, vector):
    assert work_of(module, zeros(*shape)) == Work(matmul, vector)


def test_a_packed_sequence_counts_its_real_lengths():
    packed = pack_padded_sequence(zeros(6, 3, 5), torch.tensor([6, 3, 1]))

    # 6 + 3 + 1 = 10 positions × 4·4·(5+4) = 144 multiply-adds; 10·21·4.
    assert work_of(nn.LSTM(5, 4), packed) == Work(2880, 840)


# Self-attention of 2 × 5 positions, 8 wide, 2 heads. Multiply-adds: in and out projections
# 4·10·8·8 = 2560, two products of 2·5·5·8 = 400 each: 3360. Scores: 2·2·5·5 = 100.
# Biases: 3·80 + 80 = 320.
ATTENTION = [
    # Softmax 500, scale 100, biases 320.
    ({}, {"need_weights": False}, 6720, 920),
    ({"bias": False}, {"need_weights": False}, 6720, 600),
    # Weights: softmax 500, query scaled 80, heads averaged 100, biases 320.
    ({}, {}, 6720, 1000),
    ({}, {"average_attn_weights": False}, 6720, 900),
    ({"batch_first": True}, {}, 6720, 1000),
    # One mask: + 100. Two: they are first added up, + 200.
    ({}, {"need_weights": False, "attn_mask": zeros(5, 5)}, 6720, 1020),
    ({}, {"need_weights": False, "key_padding_mask": zeros(2, 5, dtype=torch.bool)}, 6720, 1020),
    ({}, {"attn_mask": zeros(5, 5)}, 6720, 1100),
    ({}, {"attn_mask": zeros(5, 5), "key_padding_mask": zeros(2, 5)}, 6720, 1200),
    # A causal hint spares the mask, unless the weights are asked for.
    ({}, {"need_weights": False, "attn_mask": zeros(5, 5), "is_causal": True}, 6720, 920),
    ({}, {"attn_mask": zeros(5, 5), "is_causal": True}, 6720, 1100),
    # One more key each: products of 2·5·7·8 = 560 each, 3680 in all; 140 scores × 6 + 320.
    ({"add_bias_kv": True, "add_zero_attn": True}, {"need_weights": False}, 7360, 1160),
]


@pytest.mark.parametrize(("options", "arguments", "matmul", "vector"), ATTENTION)
def test_multihead_attention_counts_everything_its_forward_does(options, arguments, matmul, vector):
    shape = (2, 5, 8) if options.get("batch_first") else (5, 2, 8)

    for module in (
        nn.MultiheadAttention(8, 2, **options),
        nn.MultiheadAttention(8, 2, **options).eval(),
    ):
        x = zeros(*shape)
        assert work_of(module, x, x, x, **arguments) == Work(matmul, vector)


def test_multihead_cross_attention_projects_keys_and_values_of_their_own_widths():
    module = nn.MultiheadAttention(8, 2, kdim=3, vdim=4)

    # 3 queries, 5 keys, unbatched. Query and out projections 2·3·64 = 384; keys 5·3·8 = 120,
    # values 5·4·8 = 160; two products of 3·5·8 = 120: 904 multiply-adds. 30 scores × 6 = 180;
    # biases (3 + 5 + 5 + 3)·8 = 128.
    work = work_of(module, zeros(3, 8), zeros(5, 3), zeros(5, 4), None, False)

    assert work == Work(1808, 308)


def test_attention_dropout_counts_in_training_only():
    x = zeros(5, 2, 8)

    # Without weights 920, as above; 2 for each of 100 scores.
    assert work_of(nn.MultiheadAttention(8, 2, dropout=0.1), x, x, x, need_weights=False) == Work(
        6720, 1120
    )
    module = nn.MultiheadAttention(8, 2, dropout=0.1).eval()
    assert work_of(module, x, x, x, need_weights=False) == Work(6720, 920)


A, B = zeros(3, 5) + 0.5, zeros(3, 5) + 0.25  # 15 elements in 3 rows
LOSSES = [
    (nn.L1Loss(), (A, B), 45),  # subtract, abs, mean
    (nn.L1Loss(reduction="none"), (A, B), 30),
    (nn.MSELoss(reduction="sum"), (A, B), 45),  # subtract, square, sum
    (nn.SmoothL1Loss(), (A, B), 120),  # 7 + 1
    (nn.SmoothL1Loss(beta=0.0), (A, B), 45),
    (nn.HuberLoss(), (A, B), 120),
    (nn.BCELoss(), (A, B), 135),  # 8 + 1
    (nn.BCELoss(weight=zeros(5), reduction="none"), (A, B), 135),
    (nn.BCEWithLogitsLoss(), (A, B), 75),  # 1 − y, multiply, logsigmoid, subtract, mean
    (nn.BCEWithLogitsLoss(pos_weight=zeros(5)), (A, B), 125),  # + 3·15 + 5
    (nn.SoftMarginLoss(), (A, B), 75),  # negate, multiply, exp, log1p, mean
    (nn.HingeEmbeddingLoss(), (A, torch.ones(3, 5)), 60),
    (nn.MarginRankingLoss(), (A, B, torch.ones(3, 5)), 90),
    (nn.PoissonNLLLoss(), (A, B), 60),  # exp, multiply, subtract, mean
    (nn.PoissonNLLLoss(log_input=False, full=True), (A, B), 210),  # 4 + 9 + 1
    (nn.KLDivLoss(reduction="batchmean"), (A, B), 61),  # log, subtract, multiply, sum; divide
    (nn.GaussianNLLLoss(), (A, B, torch.ones(3, 1)), 99),  # 5·15, 3·3, mean 15
    (nn.GaussianNLLLoss(full=True), (A, B, 1.0), 150),  # 6·15, 3·15, mean 15
    (nn.CosineEmbeddingLoss(), (A, B, torch.ones(3)), 120),  # 6·15 + 9·3 + 3
    (nn.MultiLabelSoftMarginLoss(), (A, B), 141),  # 8·15, mean over classes 15 + 3, mean 3
    (nn.TripletMarginLoss(), (A, B, B), 132),  # 2·4·15 + 3·3 + 3
    (nn.TripletMarginLoss(swap=True), (A, B, B), 195),  # 3·4·15 + 4·3 + 3
    (nn.TripletMarginWithDistanceLoss(), (A, B, B), 12),  # its distances are module calls
    (nn.MultiMarginLoss(), (A, torch.tensor([0, 1, 2])), 54),  # 3·15 + 2·3 + 3
    (nn.MultiMarginLoss(p=2, weight=zeros(5)), (A, torch.tensor([0, 1, 2])), 84),
    (nn.NLLLoss(), (A, torch.tensor([0, 1, 2])), 6),  # negate, mean
    (nn.NLLLoss(weight=zeros(5)), (A, torch.tensor([0, 1, 2])), 12),  # + weigh, sum the weights
    (nn.CrossEntropyLoss(), (A, torch.tensor([0, 1, 2])), 81),  # 75 + 6
    (nn.CrossEntropyLoss(), (zeros(2, 5, 3), zeros(2, 3, dtype=torch.int64)), 162),
    (nn.CosineSimilarity(), (A, B), 102),  # 6·15 + 4·3
    (nn.CosineSimilarity(dim=-1), (zeros(3, 1, 5), zeros(1, 2, 5)), 204),  # 6·30 + 4·6
    (nn.PairwiseDistance(), (A, B), 60),
]  # fmt: skip


@pytest.mark.parametrize(("module", "inputs", "vector"), LOSSES)
def test_losses_and_distances_count_their_definitions(module, inputs, vector):
    assert work_of(module, *inputs) == Work(vector_flops=vector)


def test_a_loss_that_values_decide_is_unknown():
    targets = torch.tensor([0, 1, 2])

    assert work_of(nn.CrossEntropyLoss(), A, A) is None
    assert work_of(nn.CrossEntropyLoss(label_smoothing=0.1), A, targets) is None
    distance = nn.TripletMarginWithDistanceLoss(distance_function=lambda a, b: (a - b).sum(1))
    assert work_of(distance, A, B, B) is None
    for name in ("CTCLoss", "AdaptiveLogSoftmaxWithLoss", "MultiLabelMarginLoss"):
        assert f"torch.nn.{name}" not in MODULE_FORMULAS


@pytest.mark.skipif(not hasattr(nn, "LinearCrossEntropyLoss"), reason="newer than this torch")
def test_linear_cross_entropy_counts_its_product():
    # 3 rows × 7 classes × 5 = 105 multiply-adds, 21 bias adds; log-softmax 105, negate and mean 6.
    work = work_of(nn.LinearCrossEntropyLoss(5, 7, bias=True), A, torch.tensor([0, 1, 2]))

    assert work == Work(210, 132)


@pytest.mark.skipif(not hasattr(nn, "LinearCrossEntropyLoss"), reason="newer than this torch")
def test_a_chunked_linear_cross_entropy_is_counted_with_its_gradients():
    from torch.nn.modules.linear_cross_entropy_options import LinearCrossEntropyOptions

    options = LinearCrossEntropyOptions(batch_chunk_size=2)
    loss = nn.LinearCrossEntropyLoss(5, 7, options=options)
    x = torch.randn(3, 5)
    targets = torch.tensor([0, 1, 2])

    count = flopprof.count_flops(loss, (x, targets))
    called = flopprof.profile(loss, (x, targets), traces=1)
    trained = flopprof.profile(loss, (x, targets), traces=1, train=True)

    # 3·7 sums of 5; log-softmax 5·21, negate and mean 3 each. The weight's gradient is 7·5 sums of
    # 3; x wants none.
    for run in (count.run, called):
        assert (run.totals.matmul_flops, run.totals.vector_flops) == (210, 111)
        assert run.totals.flops_at_most == 321
    assert trained.totals.matmul_flops == 210 + 210
    chunked = trained.sites[trained.sites["op"].str.startswith("torch_nn::")]
    # Besides, of the scores' gradient 3 and 4·21.
    assert list(chunked["vector_flops"]) == [111 + 3 + 84]
    assert list(chunked["verdict"]) == ["functional"]
    assert trained.totals.flops_at_most == trained.totals.flops


def test_torchvision_layers_are_known():
    pytest.importorskip("torchvision")
    from torchvision.models.convnext import LayerNorm2d
    from torchvision.ops import Conv2dNormActivation, FrozenBatchNorm2d, StochasticDepth
    from torchvision.ops.misc import Permute

    x = zeros(*X)

    assert work_of(LayerNorm2d(4), x) == Work(vector_flops=3528)
    assert work_of(Permute([0, 2, 3, 1]), x) == Work()
    assert work_of(FrozenBatchNorm2d(4), x) == Work(vector_flops=1028)  # 2·504 + 5·4
    assert work_of(StochasticDepth(0.5, "row").eval(), x) == Work()
    assert work_of(StochasticDepth(0.5, "row"), x) == Work(vector_flops=506)
    assert work_of(StochasticDepth(0.5, "batch"), x) == Work(vector_flops=505)
    assert work_of(Conv2dNormActivation(4, 4), x) == Work()  # a Sequential that calls its children


# Layers whose children or values decide; the others that torch.nn exports have a formula.
WITHOUT_FORMULA = {
    "AdaptiveLogSoftmaxWithLoss", "CTCLoss", "Container", "DataParallel", "Module",
    "MultiLabelMarginLoss", "RNNBase", "RNNCellBase", "Transformer", "TransformerDecoder",
    "TransformerDecoderLayer", "TransformerEncoder", "TransformerEncoderLayer",
}  # fmt: skip


def test_every_layer_of_torch_nn_has_a_formula_or_a_reason():
    layers = {
        name: value
        for name, value in vars(nn).items()
        if isinstance(value, type) and issubclass(value, nn.Module)
        if not name.startswith("Lazy")  # becomes another class before it computes
    }

    found = {
        name
        for name, cls in layers.items()
        if any(canonical_name(base) in MODULE_FORMULAS for base in cls.__mro__)
    }

    assert layers.keys() - found == WITHOUT_FORMULA


class Renamed(nn.Linear):
    pass


class Doubled(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


class PaddedConv(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(nn.functional.relu(x), weight, bias)


def test_a_subclass_is_known_only_if_it_keeps_the_arithmetic():
    assert find_module_formula(Renamed(2, 2)) is MODULE_FORMULAS.get("torch.nn.Linear")
    assert find_module_formula(Doubled(2, 2)) is None
    assert find_module_formula(PaddedConv(1, 1, 1)) is None
    assert find_module_formula(nn.TransformerEncoderLayer(4, 2)) is None


def test_a_forward_set_on_the_instance_is_unknown():
    module = nn.Linear(2, 2)
    module.forward = lambda x: x  # type: ignore[method-assign,assignment]

    assert find_module_formula(module) is None


def test_weights_computed_on_each_call_are_unknown_work():
    assert find_module_formula(parametrizations.weight_norm(nn.Linear(2, 2))) is None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert find_module_formula(nn.utils.spectral_norm(nn.Linear(2, 2))) is None


def test_classes_are_named_as_users_write_them():
    assert canonical_name(nn.Conv2d) == "torch.nn.Conv2d"
    assert canonical_name(torch.ao.nn.quantized.dynamic.Linear).endswith("quantized.dynamic.Linear")
    linear = nn.modules.linear.NonDynamicallyQuantizableLinear
    assert canonical_name(linear) == "torch.nn.modules.linear.NonDynamicallyQuantizableLinear"
    assert canonical_name(Renamed).endswith("test_modules.Renamed")
