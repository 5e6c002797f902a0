"""Training steps: what the backward pass multiplies, and what it need not.

Of a layer, the gradient of its weight is as large a product as the layer, and so is that of its
input, where one is needed: the first layer's is not.
"""

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

from peers.case import Calls, Case, Subject, calling, randn, training, weight

FIRST = 4 * 16 * 32  # multiply-adds of the first linear layer
SECOND = 4 * 32 * 8  # and of the second
CONV_1 = 8 * 256 * 27
CONV_2 = 4 * 256 * 72
PRODUCT = 2 * 4 * 5 * 7
ATTENTION = 2 * (2 * 2 * 6 * 6 * 8)  # one of its products
ELEMENTWISE = 4 * 4 * 32


def mlp() -> nn.Sequential:
    """Return two linear layers, 16 → 32 → 8, without biases, and a ReLU between."""
    return nn.Sequential(nn.Linear(16, 32, bias=False), nn.ReLU(), nn.Linear(32, 8, bias=False))


def with_input_gradient(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Propagate back to the input, too."""
    x = x.detach().requires_grad_()
    total = m(x).sum()
    total.backward()
    return total


def frozen_first() -> nn.Module:
    """Return the two layers, the first of which is not trained."""
    model = mlp()
    model[0].requires_grad_(False)
    return model


def lora() -> nn.Module:
    """Return a frozen layer, 16 → 32, with an adapter of rank 4 that is trained."""
    base = nn.Linear(16, 32, bias=False).requires_grad_(False)
    adapter = nn.Sequential(nn.Linear(16, 4, bias=False), nn.Linear(4, 32, bias=False))
    return Calls(lambda m, x: m.base(x) + m.adapter(x), base=base, adapter=adapter)


def attend(m: nn.Module, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Propagate back through attention to query, key and value."""
    q, k, v = (each.detach().requires_grad_() for each in (q, k, v))
    total = F.scaled_dot_product_attention(q, k, v).sum()
    total.backward()
    return total


def attend_by_hand(m: nn.Module, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The same, of attention as two products around a softmax."""
    q, k, v = (each.detach().requires_grad_() for each in (q, k, v))
    total = ((q @ k.transpose(-1, -2)).softmax(-1) @ v).sum()
    total.backward()
    return total


def penalise_gradient(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Take the gradient of the squared norm of an input's gradient: double backward."""
    x = x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(m(x).pow(2).sum(), x, create_graph=True)
    (gradient,) = torch.autograd.grad(slope.pow(2).sum(), m.weight)
    return gradient


def accumulate(m: nn.Module, x: torch.Tensor) -> None:
    """Take two micro-batches."""
    for part in x.chunk(2):
        m(part).sum().backward()


def with_adamw(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Take a whole step with AdamW and clipping."""
    optimizer = torch.optim.AdamW(m.parameters())
    total = m(x).sum()
    total.backward()
    torch.nn.utils.clip_grad_norm_(m.parameters(), 1.0)
    optimizer.step()
    return total


def with_muon(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Take a whole step with Muon, whose update multiplies matrices."""
    optimizer = torch.optim.Muon(m.parameters())
    total = m(x).sum()
    total.backward()
    optimizer.step()
    return total


def checkpointed(reentrant: bool) -> Subject:
    """Return the two layers under a checkpoint that computes them again when going back."""

    def step(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        x = x.detach().requires_grad_(reentrant)  # the reentrant one needs an input that does
        total = checkpoint(m, x, use_reentrant=reentrant).sum()
        total.backward()
        return total

    return training(mlp(), randn(4, 16), step=step)


def under_autocast(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Take a step whose forward is under autocast."""
    with torch.autocast("cpu", torch.bfloat16):
        total = m(x).sum()
    total.backward()
    return total


class Product(torch.autograd.Function):
    """A product with its own backward pass."""

    @staticmethod
    def forward(ctx, x, w):  # noqa: D102
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx, gradient):  # noqa: D102
        x, w = ctx.saved_tensors
        return gradient @ w.T, x.T @ gradient


def forces() -> Subject:
    """Return an energy and its gradient by the positions, at inference."""

    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energy = m.net(x).sum()
            return torch.autograd.grad(energy, x)[0]

    net = nn.Sequential(nn.Linear(3, 16, bias=False), nn.Tanh(), nn.Linear(16, 1, bias=False))
    net.requires_grad_(False)
    return calling(Calls(forward, net=net), randn(4, 3))


RECURRENT = 15 * 24  # rows × gates of the LSTM: I = 8, H = 6, T = 5, B = 3
LSTM = 2 * RECURRENT * (14 + 14 + 6)
LSTM_ALSO = tuple(
    2 * (RECURRENT * 14 + RECURRENT * 8 + weights * 24 * 6 + states * 24 * 6 + inputs * 24 * 8)
    for weights in (12, 15)
    for states in (12, 15)
    for inputs in (0, 15)
)

CASES = [
    Case("train_linear", 2 * 2 * FIRST, "forward and the weight's gradient, 4·16·32 each",
         needs="backward", vector_flops=ELEMENTWISE,
         build=lambda: training(nn.Linear(16, 32, bias=False), randn(4, 16))),
    Case("train_input_gradient", 2 * 3 * FIRST, "forward, weight's and input's gradient",
         needs="backward", vector_flops=ELEMENTWISE,
         build=lambda: training(nn.Linear(16, 32, bias=False), randn(4, 16),
                                step=with_input_gradient)),
    Case("train_mlp", 2 * (2 * FIRST + 3 * SECOND),
         "2 × 4·16·32 (no gradient of the input) and 3 × 4·32·8", needs="backward",
         vector_flops=ELEMENTWISE, build=lambda: training(mlp(), randn(4, 16))),
    Case("train_conv", 2 * (2 * CONV_1 + 3 * CONV_2), "2 × 8·256·27 and 3 × 4·256·72",
         needs="backward", vector_flops=4 * 8 * 256,
         build=lambda: training(
             nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.ReLU(),
                           nn.Conv2d(8, 4, 3, padding=1, bias=False)), randn(1, 3, 16, 16))),
    Case("train_conv_grouped", 2 * (2 * 16 * 100 * 18 + 3 * 8 * 100 * 18),
         "2 × 16·100·(2·9) and 3 × 8·100·(2·9)", needs="backward of grouped convolutions",
         vector_flops=4 * 16 * 100,
         build=lambda: training(
             nn.Sequential(nn.Conv2d(8, 16, 3, padding=1, groups=4, bias=False), nn.ReLU(),
                           nn.Conv2d(16, 8, 3, padding=1, groups=8, bias=False)),
             randn(1, 8, 10, 10))),
    Case("train_conv_transpose", 2 * 2 * 64 * 4 * 6 * 9,
         "forward and the weight's gradient, 64·4·6·9",
         needs="backward", vector_flops=2 * 6 * 100,
         build=lambda: training(nn.ConvTranspose2d(4, 6, 3, bias=False), randn(1, 4, 8, 8))),
    Case("train_frozen_first", 2 * (FIRST + 2 * SECOND), "4·16·32 forward only; 2 × 4·32·8",
         needs="backward of a part", vector_flops=ELEMENTWISE,
         build=lambda: training(frozen_first(), randn(4, 16))),
    Case("train_detached", 2 * (FIRST + 2 * SECOND), "nothing goes back through detach",
         needs="backward of a part", vector_flops=ELEMENTWISE,
         build=lambda: training(
             Calls(lambda m, x: m.second(m.first(x).detach()),
                   first=nn.Linear(16, 32, bias=False), second=nn.Linear(32, 8, bias=False)),
             randn(4, 16))),
    Case("train_lora", 2 * (FIRST + 2 * 4 * 16 * 4 + 3 * 4 * 4 * 32),
         "frozen 4·16·32; rank 4: 2 × 4·16·4 and 3 × 4·4·32", needs="backward of a part",
         vector_flops=ELEMENTWISE, build=lambda: training(lora(), randn(4, 16))),
    Case("train_shared", 2 * 5 * 4 * 16 * 16,
         "two calls: 2 forward, 2 of the weight, 1 of the input",
         needs="backward", vector_flops=ELEMENTWISE,
         build=lambda: training(nn.Sequential(*[nn.Linear(16, 16, bias=False)] * 2), randn(4, 16))),
    Case("train_embedding", 2 * 3 * 3 * 8 * 10, "head of 3 rows × 8 × 10, three times",
         needs="backward", vector_flops=8 * 30,
         build=lambda: training(nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 10, bias=False)),
                                torch.tensor([1, 2, 3]))),
    Case("train_lstm", LSTM,
         "15 rows × 24: forward 14, weights' gradients 14, state's 6; of the first step's state, "
         "and of the input, a gradient may be taken or left", needs="backward of recurrent layers",
         also=LSTM_ALSO, vector_flops=100 * 15 * 6,
         build=lambda: training(
             Calls(lambda m, x: m.layer(x)[0], layer=nn.LSTM(8, 6, bias=False)), randn(5, 3, 8))),
    Case("train_sdpa", 6 * ATTENTION,
         "two products and four back, of 2·2·6·6·8; a fused kernel computes the scores again: 7",
         needs="backward of fused attention", also=(7 * ATTENTION,), vector_flops=20 * 2 * 2 * 36,
         build=lambda: training(nn.Identity(), randn(2, 2, 6, 8), randn(2, 2, 6, 8),
                                randn(2, 2, 6, 8), step=attend)),
    Case("train_attention_by_hand", 6 * ATTENTION, "two products and four back, of 2·2·6·6·8",
         needs="backward outside modules", vector_flops=20 * 2 * 2 * 36,
         build=lambda: training(nn.Identity(), randn(2, 2, 6, 8), randn(2, 2, 6, 8),
                                randn(2, 2, 6, 8), step=attend_by_hand)),
    Case("double_backward", 5 * PRODUCT,
         "x·w; slope = g·wᵀ; back from it: to g, to w; from g on to w: five products of 4·5·7",
         needs="double backward", vector_flops=30 * 4 * 7,
         build=lambda: training(nn.Linear(5, 7, bias=False), randn(4, 5), step=penalise_gradient)),
    Case("gradient_accumulation", 2 * 2 * FIRST, "two halves of the batch", needs="backward",
         vector_flops=2 * ELEMENTWISE + 16 * 32,
         build=lambda: training(nn.Linear(16, 32, bias=False), randn(4, 16), step=accumulate)),
    Case("train_adamw", 2 * 2 * FIRST, "the optimizer and clipping are elementwise",
         needs="backward", vector_flops=40 * 16 * 32 + ELEMENTWISE,
         build=lambda: training(nn.Linear(16, 32, bias=False), randn(4, 16), step=with_adamw)),
    Case("train_muon", 2 * 2 * FIRST + 5 * 2 * (2 * 16 * 16 * 32 + 16**3),
         "and five steps of X·Xᵀ, its square, and its product with X: 16·16·32, 16³, 16·16·32",
         needs="optimizer's products", vector_flops=100 * 16 * 32,
         build=lambda: training(nn.Linear(16, 32, bias=False), randn(4, 16), step=with_muon)),
    Case("checkpoint", 2 * (3 * FIRST + 3 * SECOND),
         "the first layer again, the second not: recomputation stops; "
         "gradients 4·16·32, 2 × 4·32·8",
         needs="checkpointing", vector_flops=2 * ELEMENTWISE,
         build=lambda: checkpointed(reentrant=False)),
    Case("checkpoint_reentrant", 2 * 4 * (FIRST + SECOND),
         "both forward twice; gradients of weights and inputs", needs="checkpointing",
         vector_flops=2 * ELEMENTWISE, build=lambda: checkpointed(reentrant=True)),
    Case("train_autocast", 2 * (2 * FIRST + 3 * SECOND), "as train_mlp", needs="backward",
         vector_flops=ELEMENTWISE,
         build=lambda: training(mlp(), randn(4, 16), step=under_autocast)),
    Case("autograd_function", 2 * 3 * FIRST, "forward, and both products of its own backward",
         needs="backward outside modules", vector_flops=ELEMENTWISE,
         build=lambda: training(
             Calls(lambda m, x: Product.apply(x, m.weight), weight=weight(16, 32)),
             randn(4, 16))),
    Case("forces", 2 * 2 * (4 * 3 * 16 + 4 * 16 * 1),
         "forward, and back to the positions; weights are frozen", needs="backward in forward",
         vector_flops=10 * 4 * 16, build=forces),
]  # fmt: skip
