"""Other kinds of numbers and tensors: quantised, sparse, complex, nested, distributed."""

import warnings

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from peers.case import Calls, Case, Subject, calling, randn, weight

PRODUCT = 2 * 4 * 16 * 32


def quantised_dynamically(layer: nn.Module, *inputs: torch.Tensor) -> Subject:
    """Return a layer whose weights are int8, in a Sequential."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(
            nn.Sequential(layer).eval(), {type(layer)}, dtype=torch.qint8
        )
    return Subject(model, inputs)


def quantised_statically() -> Subject:
    """Return a convolution and a linear layer that compute in int8."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ao = torch.ao.quantization
        model = nn.Sequential(
            ao.QuantStub(), nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Flatten(),
            nn.Linear(8 * 64, 10, bias=False), ao.DeQuantStub(),
        ).eval()  # fmt: skip
        model.qconfig = ao.get_default_qconfig(torch.backends.quantized.engine)
        ao.prepare(model, inplace=True)
        model(randn(1, 3, 8, 8))
        ao.convert(model, inplace=True)
    return Subject(model, (randn(1, 3, 8, 8),))


def fake_quantised() -> Subject:
    """Return a linear layer whose weight is rounded as quantised training does."""

    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        w = torch.fake_quantize_per_tensor_affine(m.layer.weight, 0.1, 0, -128, 127)
        return F.linear(x, w)

    return calling(Calls(forward, layer=nn.Linear(16, 32, bias=False)), randn(4, 16))


def int8_product() -> Subject:
    """Return a product of integers of eight bits, 32 × 16 · 16 × 32."""
    a = torch.randint(-8, 8, (32, 16), dtype=torch.int8)
    b = torch.randint(-8, 8, (16, 32), dtype=torch.int8)
    return calling(Calls(lambda m, a: torch._int_mm(a, m.b), b=b), a)


def weights_of_int8() -> Subject:
    """Return a product with weights of eight bits: 4 × 16 · 32 × 16."""
    w = torch.randint(-8, 8, (32, 16), dtype=torch.int8)
    scales = torch.rand(32).bfloat16()
    model = Calls(lambda m, x: torch._weight_int8pack_mm(x, m.w, m.scales), w=w, scales=scales)
    return calling(model, randn(4, 16).bfloat16())


def sparse_coo() -> Subject:
    """Return a sparse identity of 100 times 100 × 8."""
    return calling(
        Calls(lambda m, x: torch.sparse.mm(m.sparse, x), sparse=torch.eye(100).to_sparse()),
        randn(100, 8),
    )


def sparse_csr() -> Subject:
    """Return a sparse diagonal of 100 in rows, times 100 × 8."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sparse = torch.eye(100).to_sparse_csr()
    return calling(Calls(lambda m, x: m.sparse @ x, sparse=sparse), randn(100, 8))


def sparse_input() -> Subject:
    """Return a sparse input of 3 numbers, 4 × 16, times a dense weight 16 × 32."""
    x = torch.zeros(4, 16)
    x[0, 1] = x[1, 3] = x[3, 5] = 1.0
    model = Calls(lambda m, x: torch.sparse.mm(x, m.weight), weight=weight(16, 32))
    return calling(model, x.to_sparse())


def nested_linear() -> Subject:
    """Return a linear layer on two sequences of 3 and 5 rows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = torch.nested.nested_tensor([randn(3, 8), randn(5, 8)], layout=torch.jagged)
    return calling(nn.Linear(8, 4, bias=False), x)


def nested_attention() -> Subject:
    """Return attention within two sequences of 3 and 5, two heads of 8."""

    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        q = x.unflatten(-1, [2, 8]).transpose(1, 2)
        return F.scaled_dot_product_attention(q, q, q)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = torch.nested.nested_tensor([randn(3, 16), randn(5, 16)], layout=torch.jagged)
    return calling(Calls(forward), x)


def sharded() -> Subject:
    """Return a linear layer, half of whose outputs this rank of two computes."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if not dist.is_initialized():
        dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    mesh = init_device_mesh("cpu", (2,))
    model = parallelize_module(nn.Linear(16, 32, bias=False), mesh, ColwiseParallel())
    return calling(model, randn(4, 16))


def complex_tensor(*size: int) -> torch.Tensor:
    """Return complex normal numbers."""
    return torch.randn(*size, dtype=torch.complex64)


CASES = [
    Case("quantised_linear", PRODUCT, "4 rows × 16 × 32 in int8", needs="quantised layer",
         vector_flops=4 * 32,
         build=lambda: quantised_dynamically(nn.Linear(16, 32, bias=False), randn(4, 16))),
    Case("quantised_lstm", 2 * 15 * 24 * 14, "15 steps × 24 × (8 + 6) in int8",
         needs="quantised layer", vector_flops=30 * 15 * 6,
         build=lambda: quantised_dynamically(nn.LSTM(8, 6), randn(5, 3, 8))),
    Case("quantised_static", 2 * (8 * 64 * 27 + 512 * 10), "8·8·8 × 27, and 512 × 10, in int8",
         needs="quantised layer", vector_flops=2000, build=quantised_statically),
    Case("fake_quantised", PRODUCT, "4 rows × 16 × 32", needs="functional linear",
         vector_flops=4 * 512, build=fake_quantised),
    Case("int8_product", 2 * 32 * 16 * 32, "32 × 16 × 32 in int8", needs="integer product",
         build=int8_product),
    Case("int8_weights", PRODUCT, "4 × 16 × 32, weights of int8", needs="integer product",
         vector_flops=4 * 32, build=weights_of_int8),
    Case("sparse_coo", 2 * 100 * 8, "100 numbers that are stored × 8", needs="sparse product",
         build=sparse_coo),
    Case("sparse_csr", 2 * 100 * 8, "100 numbers that are stored × 8", needs="sparse product",
         build=sparse_csr),
    Case("sparse_input", 2 * 3 * 32, "3 numbers that are stored × 32", needs="sparse product",
         build=sparse_input),
    Case("complex_linear", 8 * 4 * 16 * 32,
         "4 rows × 16 × 32, four products and four additions each", needs="complex product",
         build=lambda: calling(nn.Linear(16, 32, bias=False, dtype=torch.complex64),
                               complex_tensor(4, 16))),
    Case("complex_matmul", 8 * 4 * 16 * 32, "4 × 16 × 32, eight FLOPs each",
         needs="complex product",
         build=lambda: calling(
             Calls(lambda m, x: x @ m.weight, weight=nn.Parameter(complex_tensor(16, 32))),
             complex_tensor(4, 16))),
    Case("complex_conv1d", 8 * 4 * 14 * 3, "4·14 outputs × 3, eight FLOPs each",
         needs="complex product",
         build=lambda: calling(nn.Conv1d(1, 4, 3, bias=False, dtype=torch.complex64),
                               complex_tensor(1, 1, 16))),
    Case("double_precision", PRODUCT, "4 rows × 16 × 32", needs="linear",
         build=lambda: calling(nn.Linear(16, 32, bias=False).double(), randn(4, 16).double())),
    Case("nested_linear", 2 * 8 * 8 * 4, "3 + 5 rows × 8 × 4", needs="nested tensor",
         build=nested_linear),
    Case("nested_attention", 2 * 2 * 2 * 8 * (9 + 25),
         "two products of two heads × (3·3 + 5·5) × 8; "
         "padded to 2 × 5·5, as a CPU runs it, is as good",
         needs="nested tensor", vector_flops=7 * 2 * 50, also=(2 * 2 * 2 * 8 * 2 * 25,),
         build=nested_attention),
    Case("sharded_linear", 2 * 4 * 16 * 16, "4 rows × 16 × 32/2: this rank's half",
         needs="sharded tensor", build=sharded),
]  # fmt: skip
