"""Models that are no plain eager code: compiled, scripted, exported, with ops of others.

The model is 16 → 32 → 8 on 4 rows, without biases, unless said.
"""

import os
import threading
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

from peers.case import Calls, Case, Subject, calling, randn, weight

MLP = 2 * (4 * 16 * 32 + 4 * 32 * 8)
WORDS = "4·16·32 and 4·32·8"
PRODUCT = 2 * 4 * 16 * 32
EXTENSION = "PEERS_EXTENSION"  # environment: the library that extension.cpp was built to
RELU = 4 * 32


def mlp() -> nn.Sequential:
    """Return two linear layers and a ReLU between."""
    return nn.Sequential(nn.Linear(16, 32, bias=False), nn.ReLU(), nn.Linear(32, 8, bias=False))


def four_rows() -> torch.Tensor:
    """Return the input: 4 rows of 16."""
    return randn(4, 16)


def quietly(make: object, *args: object, **options: object) -> nn.Module:
    """Return what a maker of programs makes, without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(*args, **options)


def compiled(backend: str) -> Subject:
    """Return the model as torch.compile makes it."""
    return calling(torch.compile(mlp().eval(), backend=backend), four_rows())


def compiled_attention() -> Subject:
    """Return compiled attention."""
    model = Calls(lambda m, q: F.scaled_dot_product_attention(q, q, q))
    return calling(torch.compile(model, backend="aot_eager"), randn(2, 2, 6, 8))


def exported() -> Subject:
    """Return the module of an exported program."""
    program = torch.export.export(mlp().eval(), (four_rows(),))
    return Subject(program.module(), (four_rows(),))


@torch.library.custom_op("peers::scaled_product", mutates_args=())
def scaled_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Multiply two matrices, inside an op of one's own."""
    return (a @ b) * 0.5


@scaled_product.register_fake
def _(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


class Product(torch.autograd.Function):
    """A product as a function of one's own."""

    @staticmethod
    def forward(ctx, x, w):  # noqa: D102
        return x @ w


def extension(name: str) -> Subject:
    """Return a call of an op that a C++ extension brings."""
    library = os.environ.get(EXTENSION)
    if not library or not Path(library).exists():
        raise RuntimeError(f"{EXTENSION} names no library")
    torch.ops.load_library(library)
    op = getattr(torch.ops.peers_extension, name)
    return calling(Calls(lambda m, x: op(x, m.weight), weight=weight(16, 32)), four_rows())


def by_numpy(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Multiply outside PyTorch."""
    return torch.from_numpy(x.detach().numpy() @ m.weight.detach().numpy())


def in_thread(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Call the second layer in a thread."""
    results: list[torch.Tensor] = []

    def work() -> None:
        with torch.no_grad():
            results.append(m.second(x))

    first = m.first(x)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return first + results[0]


def chosen(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Take one of two branches, as an op."""
    return torch.cond(x.sum() > -1e9, lambda x: x @ m.weight, lambda x: x @ m.weight * 2, (x,))


def mapped(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Map a product over rows, as an op."""
    from functorch.experimental.control_flow import map as map_op

    return map_op(lambda row, w: row @ w, x, m.weight)


def looped(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Multiply three times in a loop that is an op."""
    from torch._higher_order_ops.while_loop import while_loop

    def again(n: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return n < 3

    def body(n: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return n + 1, x @ m.weight

    return while_loop(again, body, (torch.tensor(0), x))[1]


def scanned(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Carry a state over five steps, as an op."""
    from torch._higher_order_ops.scan import scan

    def step(state: torch.Tensor, row: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        state = state @ m.weight + row
        return state, state.clone()

    return scan(step, torch.zeros(4, 16), x)[1]


CASES = [
    Case("compiled_inductor", MLP, WORDS, needs="compiled code", vector_flops=RELU,
         build=lambda: compiled("inductor")),
    Case("compiled_aot_eager", MLP, WORDS, needs="compiled code", vector_flops=RELU,
         build=lambda: compiled("aot_eager")),
    Case("compiled_part", PRODUCT + 2 * 4 * 32 * 16 + 2 * 4 * 16 * 8,
         "compiled 4·16·32 and 4·32·16; 4·16·8 in eager code", needs="compiled code",
         vector_flops=RELU,
         build=lambda: calling(
             nn.Sequential(
                 torch.compile(nn.Sequential(nn.Linear(16, 32, bias=False), nn.ReLU(),
                                             nn.Linear(32, 16, bias=False)), backend="aot_eager"),
                 nn.Linear(16, 8, bias=False)), four_rows())),
    Case("compiled_attention", 2 * 2 * (2 * 2 * 6 * 6 * 8), "two products of 2·2·6·6·8",
         needs="compiled code", vector_flops=7 * 144, build=compiled_attention),
    Case("scripted", MLP, WORDS, needs="TorchScript", vector_flops=RELU,
         build=lambda: calling(quietly(torch.jit.script, mlp().eval()), four_rows())),
    Case("traced", MLP, WORDS, needs="TorchScript", vector_flops=RELU,
         build=lambda: calling(quietly(torch.jit.trace, mlp().eval(), four_rows()), four_rows())),
    Case("frozen_script", MLP, WORDS, needs="TorchScript", vector_flops=RELU,
         build=lambda: calling(
             quietly(torch.jit.freeze, quietly(torch.jit.script, mlp().eval())), four_rows())),
    Case("exported", MLP, WORDS, needs="exported program", vector_flops=RELU, build=exported),
    Case("fx_graph", MLP, WORDS, needs="linear", vector_flops=RELU,
         build=lambda: calling(torch.fx.symbolic_trace(mlp().eval()), four_rows())),
    Case("custom_op", PRODUCT, "4·16·32 inside an op of one's own", needs="custom op",
         vector_flops=RELU,
         build=lambda: calling(
             Calls(lambda m, x: scaled_product(x, m.weight), weight=weight(16, 32)), four_rows())),
    Case("custom_function", PRODUCT, "4·16·32 inside an autograd.Function",
         needs="products outside modules",
         build=lambda: calling(
             Calls(lambda m, x: Product.apply(x, m.weight), weight=weight(16, 32)), four_rows())),
    Case("extension_calls_torch", PRODUCT, "4·16·32: the extension calls at::mm",
         needs="C++ extension", build=lambda: extension("by_torch")),
    Case("extension_own_loops", PRODUCT, "4·16·32 in loops of C++", needs="work past PyTorch",
         build=lambda: extension("by_hand")),
    Case("numpy_inside", PRODUCT, "4·16·32 in numpy", needs="work past PyTorch",
         build=lambda: calling(Calls(by_numpy, weight=weight(16, 32)), four_rows())),
    Case("thread", 2 * PRODUCT, "two layers of 4·16·32, one in a thread", needs="threads",
         vector_flops=RELU,
         build=lambda: calling(Calls(in_thread, first=nn.Linear(16, 32, bias=False),
                                     second=nn.Linear(16, 32, bias=False)), four_rows())),
    Case("checkpoint_at_inference", MLP, WORDS, needs="linear", vector_flops=RELU,
         build=lambda: calling(
             Calls(lambda m, x: checkpoint(m.net, x, use_reentrant=False), net=mlp()),
             four_rows())),
    Case("cond", PRODUCT, "one branch of 4·16·32 is taken", needs="higher-order op",
         vector_flops=RELU + 64,
         build=lambda: calling(Calls(chosen, weight=weight(16, 32)), four_rows())),
    Case("map", PRODUCT, "4 rows × 16 × 32", needs="higher-order op",
         build=lambda: calling(Calls(mapped, weight=weight(16, 32)), four_rows())),
    Case("while_loop", 2 * 3 * 4 * 16 * 16, "three times 4·16·16", needs="higher-order op",
         build=lambda: calling(Calls(looped, weight=weight(16, 16)), four_rows())),
    Case("scan", 2 * 5 * 4 * 16 * 16, "five times 4·16·16", needs="higher-order op",
         vector_flops=5 * 64,
         build=lambda: calling(Calls(scanned, weight=weight(16, 16)), randn(5, 4, 16))),
]  # fmt: skip
