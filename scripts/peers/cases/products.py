"""Products that no module owns: `F.linear`, `@`, einsum and their relatives."""

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from peers.case import Calls, Case, Subject, calling, randn, weight


def with_weight(forward: object, *size: int) -> nn.Module:
    """Return a module with a weight of its own that its forward uses."""
    return Calls(forward, weight=weight(*size))


def borrowed() -> Subject:
    """Return a module that uses the weight of a child which it never calls."""
    model = Calls(lambda m, x: F.linear(x, m.child.weight), child=nn.Linear(16, 32, bias=False))
    return calling(model, randn(4, 16))


def into_buffer(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return a product written into a tensor that is there."""
    target = torch.empty(4, 32)
    torch.mm(x, m.weight.detach(), out=target)
    return target


F_LINEAR = "4 rows × 16 × 32"
PRODUCT = 2 * 4 * 16 * 32

CASES = [
    Case("f_linear", PRODUCT, F_LINEAR, needs="functional linear",
         build=lambda: calling(with_weight(lambda m, x: F.linear(x, m.weight), 32, 16),
                               randn(4, 16))),
    Case("f_linear_of_a_child", PRODUCT, F_LINEAR, needs="functional linear", build=borrowed),
    Case("at_sign", PRODUCT, F_LINEAR, needs="operator @",
         build=lambda: calling(with_weight(lambda m, x: x @ m.weight, 16, 32), randn(4, 16))),
    Case("matmul", PRODUCT, F_LINEAR, needs="torch.matmul",
         build=lambda: calling(with_weight(lambda m, x: torch.matmul(x, m.weight), 16, 32),
                               randn(4, 16))),
    Case("matmul_broadcast", 2 * 3 * 2 * 4 * 16 * 32, "3·2 matrices of 4 × 16 × 32",
         needs="torch.matmul",
         build=lambda: calling(with_weight(lambda m, x: torch.matmul(x, m.weight), 2, 16, 32),
                               randn(3, 1, 4, 16))),
    Case("matmul_vector", 2 * 3 * 4 * 16, "3·4 rows × 16", needs="matrix × vector",
         build=lambda: calling(with_weight(lambda m, x: torch.matmul(x, m.weight), 16),
                               randn(3, 4, 16))),
    Case("mm", PRODUCT, F_LINEAR, needs="torch.mm",
         build=lambda: calling(with_weight(lambda m, x: torch.mm(x, m.weight), 16, 32),
                               randn(4, 16))),
    Case("mm_out", PRODUCT, F_LINEAR, needs="torch.mm",
         build=lambda: calling(with_weight(into_buffer, 16, 32), randn(4, 16))),
    Case("bmm", 3 * PRODUCT, "3 products of 4 × 16 × 32", needs="torch.bmm",
         build=lambda: calling(with_weight(lambda m, x: torch.bmm(x, m.weight), 3, 16, 32),
                               randn(3, 4, 16))),
    Case("addmm", PRODUCT, F_LINEAR, needs="torch.addmm", vector_flops=4 * 32,
         build=lambda: calling(
             Calls(lambda m, x: torch.addmm(m.bias, x, m.weight), weight=weight(16, 32),
                   bias=weight(32)), randn(4, 16))),
    Case("baddbmm", 3 * PRODUCT, "3 products of 4 × 16 × 32", needs="baddbmm",
         vector_flops=3 * 4 * 32,
         build=lambda: calling(
             with_weight(lambda m, x: torch.baddbmm(torch.zeros(3, 4, 32), x, m.weight), 3, 16, 32),
             randn(3, 4, 16))),
    Case("addbmm", 3 * PRODUCT, "3 products of 4 × 16 × 32, summed", needs="addbmm",
         vector_flops=4 * 3 * 4 * 32,
         build=lambda: calling(
             with_weight(lambda m, x: torch.addbmm(torch.zeros(4, 32), x, m.weight), 3, 16, 32),
             randn(3, 4, 16))),
    Case("mv", 2 * 4 * 16, "4 rows × 16", needs="matrix × vector",
         build=lambda: calling(with_weight(lambda m, x: torch.mv(x, m.weight), 16), randn(4, 16))),
    Case("addmv", 2 * 4 * 16, "4 rows × 16", needs="matrix × vector", vector_flops=4,
         build=lambda: calling(
             with_weight(lambda m, x: torch.addmv(torch.ones(4), x, m.weight), 16), randn(4, 16))),
    Case("dot", 2 * 16, "16 pairs", needs="dot product",
         build=lambda: calling(with_weight(lambda m, x: torch.dot(x, m.weight), 16), randn(16))),
    Case("tensordot", PRODUCT, F_LINEAR, needs="tensordot",
         build=lambda: calling(
             with_weight(lambda m, x: torch.tensordot(x, m.weight, dims=([1], [0])), 16, 32),
             randn(4, 16))),
    Case("tensordot_two_axes", 2 * 4 * (3 * 5) * 6, "4 × 6 outputs × 3·5", needs="tensordot",
         build=lambda: calling(
             with_weight(lambda m, x: torch.tensordot(x, m.weight, dims=2), 3, 5, 6),
             randn(4, 3, 5))),
    Case("einsum", PRODUCT, F_LINEAR, needs="einsum",
         build=lambda: calling(
             with_weight(lambda m, x: torch.einsum("ij,kj->ik", x, m.weight), 32, 16),
             randn(4, 16))),
    Case("einsum_batched", 2 * 3 * 4 * 16 * 32, "3·4 rows × 16 × 32, a weight a batch",
         needs="einsum",
         build=lambda: calling(
             with_weight(lambda m, x: torch.einsum("bij,bjk->bik", x, m.weight), 3, 16, 32),
             randn(3, 4, 16))),
    Case("einsum_of_three", 2 * (4 * 5 * 6 + 4 * 6 * 7), "4·5·6, then 4·6·7",
         needs="einsum of three",
         build=lambda: calling(
             Calls(lambda m, x: torch.einsum("ij,jk,kl->il", x, m.first, m.second),
                   first=weight(5, 6), second=weight(6, 7)), randn(4, 5))),
    Case("multi_dot", 2 * (3 * 5 * 2 + 10 * 3 * 2),
         "the cheaper order: 3·5·2, then 10·3·2", needs="products outside modules",
         build=lambda: calling(
             Calls(lambda m, x: torch.linalg.multi_dot([x, m.first, m.second]), first=weight(3, 5),
                   second=weight(5, 2)), randn(10, 3))),
    Case("matrix_power", 2 * 2 * 8**3, "A³ is two products of 8·8·8",
         needs="products outside modules",
         build=lambda: calling(Calls(lambda m, x: torch.linalg.matrix_power(x, 3)), randn(8, 8))),
    Case("cdist", 2 * 30 * 40 * (5 + 2),
         "30·40 pairs × 5 coordinates, and two more for the squared norms", needs="cdist",
         vector_flops=20 * 30 * 40,
         build=lambda: calling(
             with_weight(lambda m, x: torch.cdist(
                 x, m.weight, compute_mode="use_mm_for_euclid_dist"), 40, 5), randn(30, 5))),
    Case("f_conv1d", 2 * 4 * 6 * 8 * 3, "4·6 outputs × 8·3", needs="functional convolution",
         build=lambda: calling(with_weight(lambda m, x: F.conv1d(x, m.weight), 4, 8, 3),
                               randn(1, 8, 8))),
    Case("f_conv2d", 2 * 4 * 36 * 2 * 9, "4·6·6 outputs × 2·3·3", needs="functional convolution",
         build=lambda: calling(with_weight(lambda m, x: F.conv2d(x, m.weight), 4, 2, 3, 3),
                               randn(1, 2, 8, 8))),
    Case("f_conv3d", 2 * 4 * 27 * 1 * 8, "4·3·3·3 outputs × 1·2·2·2",
         needs="functional convolution",
         build=lambda: calling(with_weight(lambda m, x: F.conv3d(x, m.weight), 4, 1, 2, 2, 2),
                               randn(1, 1, 4, 4, 4))),
    Case("f_conv_transpose2d", 2 * 64 * 2 * 4 * 9, "8·8 inputs × 2 × 4·3·3",
         needs="functional transposed convolution",
         build=lambda: calling(
             with_weight(lambda m, x: F.conv_transpose2d(x, m.weight), 2, 4, 3, 3),
             randn(1, 2, 8, 8))),
    Case("f_bilinear", 2 * 3 * 5 * (8 * 6 + 6), "3 rows × 5 outputs × (8·6, then 6)",
         needs="bilinear",
         build=lambda: calling(with_weight(lambda m, x, y: F.bilinear(x, y, m.weight), 5, 8, 6),
                               randn(3, 8), randn(3, 6))),
    Case("gram_matrix", 2 * 8 * 8 * 100, "8 × 8 × 10·10", needs="products outside modules",
         build=lambda: calling(Calls(lambda m, x: x.flatten(1) @ x.flatten(1).T),
                               randn(8, 10, 10))),
    Case("hypernetwork", 2 * 1 * 4 * 128 + 2 * 5 * 16 * 8,
         "4 × 128 makes a weight; 5 rows × 16 × 8",
         needs="functional linear",
         build=lambda: calling(
             Calls(lambda m, x, z: F.linear(x, m.make(z).view(8, 16)),
                   make=nn.Linear(4, 128, bias=False)), randn(5, 16), randn(1, 4))),
]  # fmt: skip
