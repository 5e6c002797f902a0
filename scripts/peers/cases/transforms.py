"""Work inside torch.func: one example's shapes above, a batch's below.

A layer of 5 → 7 is 35 multiply-adds a row.
"""

import torch
from torch import nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.nn import functional as F  # noqa: N812

from peers.case import Calls, Case, Subject, calling, randn

ROW = 5 * 7


def transformed(forward: object, layer: nn.Module, *inputs: torch.Tensor) -> Subject:
    """Return a model whose forward is a function of its layer and the inputs."""
    return calling(Calls(lambda m, *args: forward(m.layer, *args), layer=layer), *inputs)


def linear() -> nn.Module:
    """Return a layer of 5 → 7 without a bias."""
    return nn.Linear(5, 7, bias=False)


def held(layer: nn.Module) -> dict[str, torch.Tensor]:
    """Return the layer's parameters, detached."""
    return {name: each.detach() for name, each in layer.named_parameters()}


def loss_of(layer: nn.Module) -> object:
    """Return the sum of the layer's output as a function of its parameters and an input."""
    return lambda parameters, x: functional_call(layer, parameters, (x,)).sum()


def per_example(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return the gradient by the weight of each example."""
    return vmap(grad(loss_of(layer)), (None, 0))(held(layer), x)["weight"]


def ensemble(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return what three members make of one batch."""
    weights = {name: torch.stack([each] * 3) for name, each in held(layer).items()}
    return vmap(lambda w: functional_call(layer, w, (x,)))(weights)


def pushed(layer: nn.Module, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Return the tangent of a product both factors of which move."""
    return jvp(lambda x, w: x @ w, (x, w), (x, w))[1]


def squared(w: torch.Tensor) -> object:
    """Return the squared norm of a product with a vector."""
    return lambda x: (w @ x).pow(2).sum()


CASES = [
    Case("vmap_linear", 2 * 10 * ROW, "10 examples × 5 × 7", needs="vmap",
         build=lambda: transformed(lambda layer, x: vmap(layer)(x), linear(), randn(10, 5))),
    Case("vmap_in_vmap", 2 * 10 * 20 * ROW, "10·20 examples × 5 × 7", needs="vmap",
         build=lambda: transformed(lambda layer, x: vmap(vmap(layer))(x), linear(),
                                   randn(10, 20, 5))),
    Case("vmap_conv2d", 2 * 5 * 4 * 64 * 27, "5 examples × 4·8·8 outputs × 3·3·3", needs="vmap",
         build=lambda: transformed(lambda layer, x: vmap(layer)(x),
                                   nn.Conv2d(3, 4, 3, padding=1, bias=False), randn(5, 3, 8, 8))),
    Case("vmap_attention", 2 * 2 * (3 * 2 * 6 * 6 * 8), "3 examples, two products of 2·6·6·8",
         needs="vmap", vector_flops=3 * 2 * 36 * 8,
         build=lambda: transformed(
             lambda _, q: vmap(lambda q: F.scaled_dot_product_attention(q, q, q))(q), nn.Identity(),
             randn(3, 2, 6, 8))),
    Case("functional_call", 2 * 4 * ROW, "4 rows × 5 × 7", needs="functional call",
         build=lambda: transformed(lambda layer, x: functional_call(layer, held(layer), (x,)),
                                   linear(), randn(4, 5))),
    Case("ensemble", 2 * 3 * 4 * ROW, "3 members × 4 rows × 5 × 7", needs="vmap",
         build=lambda: transformed(ensemble, linear(), randn(4, 5))),
    Case("grad_of_parameters", 2 * 2 * 4 * ROW, "forward and the weight's gradient, 4·5·7",
         needs="torch.func's gradients", vector_flops=4 * 4 * 7,
         build=lambda: transformed(lambda layer, x: grad(loss_of(layer))(held(layer), x), linear(),
                                   randn(4, 5))),
    Case("per_example_gradients", 2 * 2 * 10 * ROW,
         "10 examples: forward 5·7, and an outer product of 7 and 5",
         needs="torch.func's gradients",
         vector_flops=4 * 10 * ROW, build=lambda: transformed(per_example, linear(), randn(10, 5))),
    Case("vjp", 2 * 2 * 4 * ROW, "forward and the input's gradient, 4·5·7",
         needs="torch.func's gradients",
         build=lambda: transformed(lambda layer, x: vjp(layer, x)[1](torch.ones(4, 7))[0], linear(),
                                   randn(4, 5))),
    Case("jvp", 2 * 3 * 4 * ROW, "x·w, dx·w and x·dw, 4·5·7 each", needs="forward mode",
         vector_flops=4 * 7 * 2,
         build=lambda: transformed(pushed, nn.Identity(), randn(4, 5), randn(5, 7))),
    Case("jacrev", 2 * (ROW + 7 * ROW), "forward, and back from each of 7 outputs",
         needs="torch.func's gradients",
         build=lambda: transformed(lambda layer, x: jacrev(layer)(x), linear(), randn(5))),
    Case("jacfwd", 2 * (ROW + ROW + 5 * ROW),
         "forward, a tangent for each of 5 inputs, and the weight's, which PyTorch multiplies "
         "though it is zero; without that one is as good",
         needs="forward mode", also=(2 * 6 * ROW,),
         build=lambda: transformed(lambda layer, x: jacfwd(layer)(x), linear(), randn(5))),
    Case("hessian", 2 * 2 * (ROW + ROW + 5 * ROW),
         "w·x and back, each with tangents for 5 inputs, and w's, which is zero; "
         "without is as good",
         needs="forward mode", vector_flops=40 * 7 * 6, also=(2 * 2 * 6 * ROW,),
         build=lambda: transformed(lambda _, x, w: hessian(squared(w))(x), nn.Identity(), randn(5),
                                   randn(7, 5))),
    Case("hessian_vector_product", 2 * 6 * ROW,
         "w·x and back, each with the tangent of x, and w's, which is zero; without is as good",
         needs="forward mode", vector_flops=40 * 7, also=(2 * 4 * ROW,),
         build=lambda: transformed(lambda _, x, w: jvp(grad(squared(w)), (x,), (x,))[1],
                                   nn.Identity(), randn(5), randn(7, 5))),
]  # fmt: skip
