"""Formulas of losses, interpolation, torchvision, Fourier, linear algebra, fused optimizers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F  # noqa: N812  # its usual name

from flopprof.formulas import OpCall, Work
from tests.formulas._walk import counted, roots, vector_flops, work_of

A = torch.linspace(0.1, 0.9, 12).reshape(4, 3)  # 4 samples of 3 classes
T = torch.tensor([0, 1, 2, 0])
X = torch.linspace(-1, 1, 2 * 4 * 6 * 6).reshape(2, 4, 6, 6)  # 8 planes of 36
M = torch.eye(6).expand(2, 6, 6) + 0.1


def outermost_of(run: Callable[[], Any]) -> Work | None:
    # An older torchvision records the op that it passes on, too: what ran is last.
    *_, work = [w for c, w in counted(roots(run)) if c.op.startswith("torchvision::")]
    return work


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        # n = 12: the elementwise part, and 12 for the mean
        (lambda: F.mse_loss(A, A), 2 * 12 + 12),
        (lambda: F.mse_loss(A, A, reduction="none"), 2 * 12),
        (lambda: F.l1_loss(A, A, reduction="sum"), 2 * 12 + 12),
        (lambda: F.smooth_l1_loss(A, A), 7 * 12 + 12),
        (lambda: F.huber_loss(A, A), 7 * 12 + 12),
        (lambda: F.binary_cross_entropy(A, A), 8 * 12 + 12),
        (lambda: F.binary_cross_entropy(A, A, A), 9 * 12 + 12),
        (lambda: F.binary_cross_entropy_with_logits(A, A), 4 * 12 + 12),
        (lambda: F.binary_cross_entropy_with_logits(A, A, pos_weight=A[0]), 7 * 12 + 12),
        (lambda: F.kl_div(A, A, reduction="sum"), 3 * 12 + 12),
        (lambda: F.poisson_nll_loss(A, A), 3 * 12 + 12),
        (lambda: F.soft_margin_loss(A, A), 4 * 12 + 12),
        (lambda: F.margin_ranking_loss(A, A, A), 5 * 12 + 12),
        (lambda: F.multi_margin_loss(A, T), 3 * 12 + 2 * 4 + 4),
        # 4 targets: negate and mean
        (lambda: F.nll_loss(A, T), 4 + 4),
        (lambda: F.nll_loss(A, T, A[0]), 4 + 4 + 4 + 4),  # weights: products, and their sum
        (lambda: F.hinge_embedding_loss(A, A), 3 * 12 + 12),
        (lambda: F.nll_loss(A, T, reduction="none"), 4),
        (lambda: F.cross_entropy(A, T), 5 * 12 + 8),
        # … and the sum of 12, 4 negations, 4 of a mean, 3 to blend
        (lambda: F.cross_entropy(A, T, label_smoothing=0.1), 5 * 12 + 8 + 12 + 4 + 4 + 3),
        # probabilities: multiply and sum 12 each, 4 negations, 4 of the mean
        (lambda: F.cross_entropy(A, A), 5 * 12 + 2 * 12 + 4 + 4),
        (lambda: F.cross_entropy(X, torch.zeros(2, 6, 6).long()), 5 * 288 + 2 * 72),
        # two distances of 4 per element; 4 × (subtract, add, clamp), and their mean
        (lambda: F.triplet_margin_loss(A, A, A), 8 * 12 + 3 * 4 + 4),
        (lambda: F.cosine_embedding_loss(A, A, torch.ones(4)), 6 * 12 + 9 * 4 + 4),
        (lambda: F.cosine_similarity(A, A), 6 * 12 + 4 * 4),
        (lambda: F.cosine_similarity(A, A, dim=0), 6 * 12 + 4 * 3),
        (lambda: F.cosine_similarity(torch.ones(2, 8), torch.ones(2, 8)), 6 * 16 + 4 * 2),
        (lambda: F.cosine_similarity(torch.ones(1, 16), torch.ones(1, 16)), 6 * 16 + 4),
        (lambda: F.cosine_similarity(A[0], A, dim=1), 6 * 12 + 4 * 4),  # [3] and [4, 3]
        (lambda: F.cosine_similarity(X[:, :, :1], X[:1], dim=2), 6 * 288 + 4 * 48),
        # two series of 3 steps and 1 label: 2 × 3 × 3 states of 13; by length, and the mean
        (
            lambda: torch.ctc_loss(A.reshape(3, 2, 2), T[:2, None], [3, 3], [1, 1], 0, 1),
            18 * 13 + 4,
        ),
    ],
)
def test_losses(run: Callable[[], Any], expected: int) -> None:
    assert vector_flops(run) == expected


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (lambda x: F.mse_loss(x, A), 3 * 12),
        (lambda x: F.smooth_l1_loss(x, A), 4 * 12),
        (lambda x: F.cross_entropy(x, T), 4 + 4 * 12),  # 4 targets; log-softmax's 4n
    ],
)
def test_backward_of_losses(loss: Callable[..., Any], expected: int) -> None:
    x = A.clone().requires_grad_()
    value = loss(x)

    assert vector_flops(value.backward) == expected


@pytest.mark.parametrize(("mode", "per_output"), [("nearest", 0), ("bilinear", 9), ("bicubic", 35)])
def test_interpolation_per_output_element(mode: str, per_output: int) -> None:
    # 8 planes of 6·1.5 = 9 × 9 outputs.
    assert vector_flops(lambda: F.interpolate(X, scale_factor=1.5, mode=mode)) == 648 * per_output


def test_interpolation_in_one_and_three_dimensions():
    assert vector_flops(lambda: F.interpolate(X[0], 12, mode="linear")) == 4 * 6 * 12 * 3
    assert vector_flops(lambda: F.interpolate(X[None], (2, 3, 3), mode="trilinear")) == 2 * 18 * 21


@pytest.mark.parametrize(("mode", "taps"), [("nearest", 0.5), ("bilinear", 4), ("bicubic", 16)])
def test_interpolation_s_backward_is_two_flops_per_tap(mode: str, taps: float) -> None:
    x = X.clone().requires_grad_()
    y = F.interpolate(x, size=(9, 9), mode=mode)

    assert vector_flops(lambda: y.backward(torch.ones_like(y))) == 648 * 2 * taps


def test_antialiasing_sums_the_pixels_under_its_filter():
    # 6 → 3: scale 2, so the triangle reaches 2 to either side of 1, 3, 5: windows 0–3, 1–5, 3–6 of
    # 3, 4, 3 taps (+½ rounds the ends): 10 per row. Rows: 6 × 10 taps, 6 × 3 sums; columns of the
    # result: 3 × 10 taps, 3 × 3 sums. Each of 8 planes: 2·90 − 27 = 153.
    run = lambda: F.interpolate(X, size=(3, 3), mode="bilinear", antialias=True)  # noqa: E731
    assert vector_flops(run) == 8 * 153


@pytest.mark.parametrize(
    ("mode", "aligned", "expected"),
    [
        # 2·3·3 points with 2 coordinates of 4 operations (3 aligned); 4 channels of each
        ("bilinear", False, 18 * 2 * 4 + 72 * 9),
        ("bilinear", True, 18 * 2 * 3 + 72 * 9),
        ("nearest", False, 18 * 2 * 4),
        ("bicubic", False, 18 * 2 * 4 + 72 * 35),
    ],
)
def test_grid_sampling(mode: str, aligned: bool, expected: int) -> None:
    run = lambda: F.grid_sample(X, torch.zeros(2, 3, 3, 2), mode, align_corners=aligned)  # noqa: E731
    assert vector_flops(run) == expected


def test_an_affine_grid_is_a_product_with_its_base():
    run = lambda: F.affine_grid(torch.ones(2, 2, 3), [2, 1, 4, 5], align_corners=False)  # noqa: E731
    (work,) = [w for c, w in counted(roots(run)) if c.op == "aten::affine_grid_generator"]

    # 2·4·5 points of 2 coordinates, 3 multiply-adds each; 2 operations on 4 + 5 axis points.
    assert work is not None
    assert (work.matmul_flops, work.vector_flops) == (40 * 2 * 3 * 2, 18)


def test_pooling_of_regions_and_its_unknown_sampling_ratio():
    ops = pytest.importorskip("torchvision").ops
    boxes = torch.tensor([[0, 0, 0, 4, 4.0], [1, 0, 0, 4, 4.0]])

    # 2 boxes, 4 channels, 3 × 3 outputs, 2 × 2 samples: bilinear 9, and their mean.
    assert vector_flops(lambda: ops.roi_align(X, boxes, 3, sampling_ratio=2)) == 72 * 4 * 10
    # position-sensitive: 4 channels make 1 of 2 × 2 places
    assert vector_flops(lambda: ops.ps_roi_align(X, boxes, 2, sampling_ratio=1)) == 2 * 4 * 10
    # The boxes decide: at least one sample of each of 72 outputs; at most, in a box of the image's
    # 6 × 6 pixels, 6 + 3 − 1 along each axis: 2·4·8·8 = 512. 288 + 10 elements read, 72 written.
    align = outermost_of(lambda: ops.roi_align(X, boxes, 3))
    assert align == Work(0, 72 * 10, (288 + 10 + 72) * 4, flops_at_most=512 * 10)
    # A pixel each: an empty bin has none.
    assert outermost_of(lambda: ops.roi_pool(X, boxes, 3)) == Work(
        0, 0, (288 + 10 + 72) * 4, flops_at_most=512
    )
    # 2 × 2 places of 1 channel: 6 + 2 − 1 along each axis.
    pooled = outermost_of(lambda: ops.ps_roi_pool(X, boxes, 2))
    assert pooled == Work(0, 0, (288 + 10 + 8) * 4, flops_at_most=2 * 49)
    assert outermost_of(lambda: ops.nms(boxes[:, 1:], torch.ones(2), 0.5)) == Work(
        0, 0, (8 + 2) * 4
    )


@pytest.mark.parametrize(("ratio", "least", "most"), [(2, 4, None), (-1, 1, 512 * 9)])
def test_backward_of_roi_align(ratio: int, least: int, most: int | None) -> None:
    ops = pytest.importorskip("torchvision").ops
    boxes = torch.tensor([[0, 0, 0, 4, 4.0], [1, 0, 0, 4, 4.0]])
    x = X.clone().requires_grad_()
    y = ops.roi_align(x, boxes, 3, sampling_ratio=ratio)

    # 72 gradients into 4 taps: multiply, add; and the mean's division.
    *_, work = [
        w
        for c, w in counted(roots(lambda: y.backward(torch.ones_like(y))))
        if c.op.endswith("_roi_align_backward") and w
    ]
    assert (work.vector_flops, work.flops_at_most) == (72 * least * 9, most)


@pytest.mark.parametrize("masked", [True, False])
def test_deformable_convolution_is_a_convolution_of_samples(masked: bool) -> None:
    ops = pytest.importorskip("torchvision").ops
    weight, offset = torch.ones(6, 2, 3, 3), torch.zeros(2, 2 * 9, 4, 4)
    mask = torch.ones(2, 9, 4, 4) if masked else None

    run = lambda: ops.deform_conv2d(X, offset, weight, mask=mask)  # noqa: E731
    (work,) = [w for c, w in counted(roots(run)) if c.op == "torchvision::deform_conv2d"]

    # 2·6·4·4 outputs of 2·3·3 multiply-adds (two groups); 2·4·9·4·4 samples of 9 (10 masked);
    # 576 offsets added to positions; 192 biases.
    assert work is not None
    assert work.matmul_flops == 192 * 18 * 2
    assert work.vector_flops == 1152 * (10 if masked else 9) + 576 + 192


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        # 5·N·log₂ n, N = 4·8 in transforms of 8; real ones half
        (lambda: torch.fft.fft(torch.ones(4, 8, dtype=torch.complex64)), 5 * 32 * 3),
        (lambda: torch.fft.rfft(torch.ones(4, 8)), 5 * 32 * 3 // 2),
        (lambda: torch.fft.rfft2(torch.ones(4, 8)), 5 * 32 * 5 // 2),
        (lambda: torch.fft.irfft(torch.ones(4, 5, dtype=torch.complex64)), 5 * 32 * 3 // 2),
        (lambda: torch.fft.irfft(torch.ones(4, 5), 16, 1), 5 * 64 * 4 // 2),
        (lambda: torch.fft.ifft(torch.ones(4, 8), 16, 0), 5 * 128 * 4 // 2),
        (lambda: torch.fft.fftn(torch.ones(4, 8)), 5 * 32 * 5),  # made complex first
        (lambda: torch.fft.rfftn(torch.ones(2, 4, 8), (2, 4)), 5 * 16 * 3 // 2),  # the last two
        (lambda: torch.fft.ifft2(torch.ones(2, 4, 8), (-1, 16)), 5 * 128 * 6),
        (lambda: torch.fft.hfft(torch.ones(4, 5)), 5 * 32 * 3 // 2),
        (lambda: torch.fft.ihfft(torch.ones(4, 8)), 5 * 32 * 3 // 2),
    ],
)
def test_fourier_transforms(run: Callable[[], Any], expected: int) -> None:
    node = next(n for n in roots(run) if "fft" in n.call.op)
    whole, parts = work_of(node.call), [work for _, work in counted(node.children)]

    assert whole is not None
    assert whole.vector_flops == expected
    assert sum(work.vector_flops for work in parts if work) == expected


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        # two matrices of n = 6, n³ = 216
        (lambda: torch.linalg.cholesky(M), 2 * 72),  # n³/3
        (lambda: torch.linalg.lu_factor(M), 2 * 144),  # 2n³/3
        (lambda: torch.linalg.det(M), 2 * 144),
        (lambda: torch.linalg.inv(M), 2 * 432),  # 2n³
        (lambda: torch.linalg.solve(M, M[:, :, :2]), 2 * (144 + 2 * 36 * 2)),  # + 2n²k
        (lambda: torch.linalg.solve(M, M[:, 0]), 2 * (144 + 2 * 36)),
        (lambda: torch.linalg.solve_triangular(M, M[:, :, :2], upper=True), 2 * 36 * 2),
        (lambda: torch.linalg.qr(M[:, :, :2]), 2 * 4 * 4 * (18 - 2) // 3),  # 4·n²(m − n/3)
        (lambda: torch.linalg.svd(M), 2 * (14 + 8) * 216),
        (lambda: torch.linalg.svdvals(M), 2 * 4 * 144),
        (lambda: torch.linalg.eigh(M), 2 * 9 * 216),
        (lambda: torch.linalg.eigvalsh(M), 2 * 4 * 72),  # eigh without vectors: 4n³/3
        # QR 2·4·16/3, Qᵀb and R⁻¹ (4·6·2 − 4) of each of 3 right-hand sides
        (lambda: torch.linalg.lstsq(M[0, :, :2], M[0, :, :3]), 42 + 44 * 3),
        (lambda: torch.linalg.cholesky(M.to(torch.complex64)), 4 * 2 * 72),
    ],
)
def test_linear_algebra_counts_leading_terms(run: Callable[[], Any], expected: int) -> None:
    assert vector_flops(run) == expected


@pytest.mark.parametrize(
    ("optimizer", "options", "expected"),
    [
        ("Adam", {}, 13),
        ("Adam", {"weight_decay": 0.1}, 15),
        ("Adam", {"amsgrad": True, "maximize": True}, 15),
        ("AdamW", {"weight_decay": 0.1}, 14),
        ("SGD", {"lr": 0.1}, 2),
        ("SGD", {"lr": 0.1, "weight_decay": 0.1}, 4),
        ("SGD", {"lr": 0.1, "momentum": 0.9}, 4),
        ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.1}, 5),
        ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}, 6),
        ("Adagrad", {}, 7),
    ],
)
def test_fused_optimizers_count_per_parameter(
    optimizer: str, options: dict[str, Any], expected: int
) -> None:
    weights = [torch.ones(3, 4, requires_grad=True), torch.ones(5, requires_grad=True)]
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    fused = getattr(torch.optim, optimizer)(weights, fused=True, **options)
    fused.step()

    found = [w for c, w in counted(roots(fused.step)) if "_fused_" in c.op]

    assert [work.vector_flops for work in found if work] == [17 * expected]


def test_a_fused_optimizer_without_values_is_not_determined():
    assert work_of(OpCall("aten::_fused_adam_", ((),) * 15)) is None


def test_bytes_of_a_fused_adam_step():
    shapes = (*[((4,),)] * 4, (), ((),), *[()] * 9)
    types = (*["TensorList"] * 6, *["Scalar"] * 7, "", "")
    values = (*[""] * 6, "0.1", "0.9", "0.99", "0.", "1e-8", "False", "False", "", "")
    call = OpCall("aten::_fused_adam_", shapes, dtypes=types, values=values)

    # The gradient read; parameter and two moments read and written: 7 × 4 elements × 4 B.
    assert work_of(call) == Work(vector_flops=52, min_bytes=112)
