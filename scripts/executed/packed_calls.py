"""Calls for make_executed.py of ops whose arguments no text gives: packed, quantised, sparse."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from flopprof.capture.dispatched import OpOfModel

SCALE = 0.05
BUILDERS: dict[str, tuple[str, Callable[[], tuple[Any, ...]]]] = {}
"""By op: what its arguments are, in words; and these."""
OF_ONEDNN = {
    "quantized::linear_leaky_relu",
    "quantized::linear_tanh",
    "quantized::conv2d_add",
    "quantized::conv2d_add_relu",
}


def calls(op: str) -> Iterator[tuple[str, OpOfModel]]:
    """Yield what the arguments of an op are, and a call with them; nothing for other ops."""
    if op in BUILDERS:
        words, arguments = BUILDERS[op]
        torch.manual_seed(0)
        namespace, _, name = op.partition("::")
        # fbgemm, the default, lacks some; what is packed belongs to the engine that packed it.
        torch.backends.quantized.engine = "onednn" if op in OF_ONEDNN else "x86"
        args = arguments()
        packet = getattr(getattr(torch.ops, namespace), name)
        # Of overloads of quantised convolutions, the one whose packed weight knows its stride.
        overloads = [each for each in packet.overloads() if "out" not in each]
        overload = getattr(packet, "new" if "new" in overloads else overloads[0])
        yield words, OpOfModel(overload, args)


def quantised(*shape: int) -> Tensor:
    """Return unsigned 8-bit activations."""
    return torch.quantize_per_tensor(torch.rand(shape), SCALE, 64, torch.quint8)


def weight(*shape: int) -> Tensor:
    """Return signed 8-bit weights."""
    return torch.quantize_per_tensor(torch.randn(shape), SCALE, 0, torch.qint8)


def packed_linear() -> Any:
    """Return a packed weight of 32 x 32 with a bias."""
    return torch.ops.quantized.linear_prepack(weight(32, 32), torch.randn(32))


def packed_half() -> Any:
    """Return the same in float16."""
    return torch.ops.quantized.linear_prepack_fp16(torch.randn(32, 32), torch.randn(32))


def packed_convolution(axes: int, *, transposed: bool = False) -> Any:
    """Return a packed filter of 16 x 16 x 3 …, of 2 … along three axes."""
    size = 2 if axes == 3 else 3
    ones, zeros = [1] * axes, [0] * axes
    filters = weight(16, 16, *[size] * axes)
    bias = torch.randn(16)
    if transposed:
        pack = getattr(torch.ops.quantized, f"conv_transpose{axes}d_prepack")
        return pack(filters, bias, ones, zeros, zeros, ones, 1)
    return getattr(torch.ops.quantized, f"conv{axes}d_prepack")(filters, bias, ones, zeros, ones, 1)


def image(axes: int) -> tuple[int, ...]:
    """Return the sizes of a small input with 16 channels."""
    return (1, 16, *[[16], [8, 8], [4, 4, 4]][axes - 1])


def sparse() -> Tensor:
    """Return 32 x 32 with every fourth value stored."""
    return (torch.rand(32, 32) * (torch.arange(1024).reshape(32, 32) % 4 == 0)).to_sparse()


def build() -> None:
    """Fill `BUILDERS`."""
    out = (SCALE, 64)
    rows = "32x32:quint8, packed 32x32:qint8 with bias"
    BUILDERS["quantized::linear"] = (rows, lambda: (quantised(32, 32), packed_linear(), *out))
    BUILDERS["quantized::linear_relu"] = BUILDERS["quantized::linear"]
    BUILDERS["quantized::linear_leaky_relu"] = (
        rows,
        lambda: (quantised(32, 32), packed_linear(), *out, 0.01),
    )
    BUILDERS["quantized::linear_tanh"] = BUILDERS["quantized::linear"]
    dynamic = "32x32, packed 32x32:qint8 with bias"
    BUILDERS["quantized::linear_dynamic"] = (
        dynamic,
        lambda: (torch.rand(32, 32), packed_linear()),
    )
    BUILDERS["quantized::linear_relu_dynamic"] = BUILDERS["quantized::linear_dynamic"]
    half = "32x32, packed 32x32:float16 with bias"
    BUILDERS["quantized::linear_dynamic_fp16"] = (half, lambda: (torch.rand(32, 32), packed_half()))
    BUILDERS["quantized::linear_relu_dynamic_fp16"] = BUILDERS["quantized::linear_dynamic_fp16"]
    BUILDERS["quantized::linear_dynamic_fp16_unpacked_weight"] = (
        "32x32, 32x32, 32",
        lambda: (torch.rand(32, 32), torch.randn(32, 32), torch.randn(32)),
    )
    BUILDERS["quantized::matmul"] = (
        "32x32:quint8, 32x32:quint8",
        lambda: (quantised(32, 32), quantised(32, 32), *out),
    )
    for axes in (1, 2, 3):
        build_convolutions(axes)
    add = ("1x16x8x8:quint8, 1x16x6x6:quint8, packed 16x16x3x3:qint8", lambda: add_arguments(out))
    BUILDERS["quantized::conv2d_add"] = add
    BUILDERS["quantized::conv2d_add_relu"] = add
    build_cells()
    build_compiled()
    build_sparse()
    build_others()


def build_convolutions(axes: int) -> None:
    """Add convolutions along so many axes."""
    sizes = "x".join(map(str, image(axes)))
    out = (SCALE, 64)
    for name, transposed in ((f"conv{axes}d", False), (f"conv_transpose{axes}d", True)):
        words = f"{sizes}:quint8, packed 16 filters"

        def arguments(transposed: bool = transposed) -> tuple[Any, ...]:
            packed = packed_convolution(axes, transposed=transposed)
            return (quantised(*image(axes)), packed, *out)

        def of_floats(transposed: bool = transposed) -> tuple[Any, ...]:
            return (torch.rand(image(axes)), packed_convolution(axes, transposed=transposed))

        BUILDERS[f"quantized::{name}"] = (words, arguments)
        BUILDERS[f"quantized::{name}_dynamic"] = (f"{sizes}, packed 16 filters", of_floats)
        if not transposed:
            BUILDERS[f"quantized::{name}_relu"] = (words, arguments)


def add_arguments(out: tuple[float, int]) -> tuple[Any, ...]:
    """Return the arguments of a convolution to whose result something is added."""
    return (quantised(1, 16, 8, 8), quantised(1, 16, 6, 6), packed_convolution(2), *out)


def build_cells() -> None:
    """Add recurrent cells with packed weights."""

    def packed(gates: int) -> Any:
        return torch.ops.quantized.linear_prepack(weight(16 * gates, 16), torch.randn(16 * gates))

    def cell(gates: int) -> tuple[Any, ...]:
        biases = (torch.randn(16 * gates), torch.randn(16 * gates))
        return (torch.rand(4, 16), torch.rand(4, 16), packed(gates), packed(gates), *biases)

    def lstm_cell() -> tuple[Any, ...]:
        values, hidden, *others = cell(4)
        return (values, [hidden, torch.rand(4, 16)], *others)

    words = "4x16, 4x16, packed 16 by gates"
    BUILDERS["quantized::quantized_lstm_cell_dynamic"] = (words, lstm_cell)
    BUILDERS["quantized::quantized_gru_cell_dynamic"] = (words, lambda: cell(3))
    BUILDERS["quantized::quantized_rnn_relu_cell_dynamic"] = (words, lambda: cell(1))
    BUILDERS["quantized::quantized_rnn_tanh_cell_dynamic"] = (words, lambda: cell(1))


def build_compiled() -> None:
    """Add products of 8 bits as torch.compile calls them."""

    def after(scales: Tensor, *geometry: Any) -> tuple[Any, ...]:
        zeros = torch.zeros(scales.shape, dtype=torch.int64)
        bias = torch.rand(scales.shape)
        return (scales, zeros, bias, *geometry, 1.0, 0, torch.float32, "none", [], "")

    def linear() -> tuple[Any, ...]:
        values = torch.randint(0, 255, (32, 32), dtype=torch.uint8)
        weights = torch.randint(-127, 127, (32, 32), dtype=torch.int8)
        packed = torch.ops.onednn.qlinear_prepack(weights, [32, 32])
        return (values, SCALE, 64, packed, *after(torch.rand(32)))

    def convolution(axes: int) -> tuple[Any, ...]:
        sizes = image(axes)
        values = torch.randint(0, 255, sizes, dtype=torch.uint8)
        filters = torch.randint(-127, 127, (16, 16, *[3] * axes), dtype=torch.int8)
        scales = torch.rand(16)
        geometry = ([1] * axes, [0] * axes, [1] * axes, 1)
        packed = torch.ops.onednn.qconv_prepack(filters, scales, SCALE, 64, *geometry, sizes)
        return (values, SCALE, 64, packed, *after(scales, *geometry))

    BUILDERS["onednn::qlinear_pointwise"] = ("32x32:uint8, packed 32x32:int8", linear)
    for axes in (1, 2, 3):
        words = f"{'x'.join(map(str, image(axes)))}:uint8, packed 16 filters"
        name = f"onednn::qconv{axes}d_pointwise"
        BUILDERS[name] = (words, lambda axes=axes: convolution(axes))
    BUILDERS["onednn::qconv_pointwise"] = BUILDERS["onednn::qconv2d_pointwise"]


def build_sparse() -> None:
    """Add products of sparse matrices."""
    words = "32x32 of which 256 are stored, 32x32"
    BUILDERS["aten::_sparse_mm"] = (words, lambda: (sparse(), torch.rand(32, 32)))
    BUILDERS["aten::smm"] = BUILDERS["aten::_sparse_mm"]
    BUILDERS["aten::hspmm"] = BUILDERS["aten::_sparse_mm"]
    BUILDERS["aten::_sparse_addmm"] = (
        f"32x32, {words}",
        lambda: (torch.rand(32, 32), sparse(), torch.rand(32, 32)),
    )
    BUILDERS["aten::sspaddmm"] = (
        f"32x32 of which 256 are stored, {words}",
        lambda: (sparse(), sparse(), torch.rand(32, 32)),
    )
    BUILDERS["aten::sparse_sampled_addmm"] = (
        "32x32 of which 256 are stored, 32x32, 32x32",
        lambda: (sparse().to_sparse_csr(), torch.rand(32, 32), torch.rand(32, 32)),
    )


def build_others() -> None:
    """Add products of tensors in oneDNN's layout, with weights of 4 bits, and of what is saved."""

    def of_onednn() -> tuple[Any, ...]:
        return (torch.rand(32, 32).to_mkldnn(), torch.rand(32, 32), torch.rand(32))

    def backward_of_onednn() -> tuple[Any, ...]:
        values, gradient = torch.rand(32, 32).to_mkldnn(), torch.rand(32, 32).to_mkldnn()
        return (values, gradient, torch.rand(32, 32), [True, True, True])

    def of_four_bits() -> tuple[Any, ...]:
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(
            torch.randint(0, 16, (32, 32), dtype=torch.int32), 1
        )
        values = torch.rand(32, 32, dtype=torch.bfloat16)
        return (values, packed, 32, torch.rand(1, 32, 2, dtype=torch.bfloat16))

    def layer_of_onednn() -> tuple[Any, ...]:
        weights = (torch.rand(64, 16), torch.rand(64, 16), torch.rand(64), torch.rand(64))
        state = (torch.zeros(2, 16), torch.zeros(2, 16))
        settings = (False, [], 2, 16, 1, True, False, False, True)
        given = (torch.rand(4, 2, 16), *weights, *state)
        output, hidden, cell, workspace = torch.ops.aten.mkldnn_rnn_layer(*given, *settings)
        gradients = (torch.rand(4, 2, 16), torch.rand(2, 16), torch.rand(2, 16))
        settings_back = (False, 2, 16, 1, True, True, False, [], False)
        return (*given, output, hidden, cell, *gradients, *settings_back, workspace)

    def saved_attention() -> tuple[Any, ...]:
        query, key, value, gradient = torch.rand(4, 1, 2, 32, 16).unbind()
        forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        output, sums = forward(query, key, value)
        return (gradient, query, key, value, output, sums, 0.0, False)

    BUILDERS["aten::mkldnn_linear"] = ("32x32 in oneDNN's layout, 32x32, 32", of_onednn)
    BUILDERS["aten::_weight_int4pack_mm_for_cpu"] = (
        "32x32:bfloat16, packed 32x32 of 4 bits",
        of_four_bits,
    )
    BUILDERS["aten::mkldnn_rnn_layer_backward"] = ("4x2x16, what was saved", layer_of_onednn)
    name = "aten::_scaled_dot_product_flash_attention_for_cpu_backward"
    BUILDERS[name] = ("4 of 1x2x32x16, what was saved", saved_attention)


build()
