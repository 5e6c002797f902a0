"""Free ops, and that between them and the formulas PyTorch's ops are covered."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F  # noqa: N812  # its usual name

from flopprof import formulas
from flopprof.formulas import (
    FREE_OPS,
    OP_FORMULAS,
    OpCall,
    Work,
    kind_of,
    load_op_formulas,
    looks_below,
)
from flopprof.formulas.ops._elements import read_table
from tests.formulas._walk import counted, roots

load_op_formulas()

# Names of 2021's traces that PyTorch has dropped since.
_DROPPED = {"aten::_cat"}
_NAMES_OF = (2, 14)
# Ops that came later than that torch, and the torch that brought them.
_LATER = {"aten::_philox_randint_": (2, 15)}
# Composites whose parts are counted instead: their definition follows from values (a norm's order,
# a series' length) or is spread over an FFT, a padding and a product.
_WALKED = {"aten::stft", "aten::quantile", "aten::diff", "aten::trapezoid"}
_WALKED |= {"aten::linalg_norm", "aten::linalg_matrix_norm", "aten::cov", "aten::kron"}
# What another family's file defines: contractions.
_CONTRACTIONS: tuple[str, ...] = (
    "conv",
    "linear",
    "matmul",
    "mm",
    "dot",
    "bilinear",
    "attention",
    "lstm",
    "gru",
)
_CONTRACTIONS += ("rnn", "einsum", "mv")

X = torch.linspace(-1, 1, 2 * 4 * 6 * 6).reshape(2, 4, 6, 6)


def free(op: str, *shapes: Any, **call: Any) -> Work | None:
    return FREE_OPS.require(op)(OpCall(op, shapes=shapes, **call))


def test_every_registered_name_is_an_op_of_pytorch():
    pytest.importorskip("torchvision")
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < _NAMES_OF:
        pytest.skip(f"the names are those of torch {_NAMES_OF}: this one is older, and lacks some")
    known = {name.partition(".")[0] for name in torch._C._dispatch_get_all_op_names()}
    namespaces = {name.partition("::")[0] for name in known}  # others' packages may not be here
    # Namespaces that only some builds fill, and those of other tests.
    partly: tuple[str, ...] = (
        "c10d",
        "_c10d",
        "_dtensor",
        "fsdp",
        "streams",
        "mempool",
        "mkl",
        "quantized",
        "_C::",
    )
    partly += ("flopproftest", "listed_lib", "mylib")

    named = {name for registry in (OP_FORMULAS, FREE_OPS) for name, _ in registry.items()}
    own = {n for n in named if n.partition("::")[0] in namespaces and not n.startswith(partly)}
    unknown = own - known

    later = {name for name, since in _LATER.items() if version < since}
    allowed = _DROPPED | later
    assert {n for n in unknown if "flash" not in n.lower() and not _is_contraction(n)} <= allowed


def test_no_op_is_both_free_and_counted():
    assert not {name for name, _ in FREE_OPS.items() if name in OP_FORMULAS}


def test_every_free_op_says_why_it_is_free():
    rows = read_table(Path(formulas.__file__).with_name("free.csv"))

    assert {row["reason"] for row in rows} == {
        *("view", "query", "allocation", "creation", "fill", "copy"),
        *("random numbers", "communication"),
    }


def test_a_view_moves_nothing():
    assert free("aten::transpose", (3, 4), (), (), dtypes=("float32", "Scalar", "Scalar")) == Work()
    assert kind_of("aten::transpose") == "free"


def test_a_copy_reads_one_type_and_writes_the_other():
    # 3·4 elements: 2 B of float16 read, 4 B of float32 written.
    call = {"dtypes": ("float32", "float16", "Scalar")}
    assert free("aten::copy_", (3, 4), (3, 4), (), **call) == Work(min_bytes=12 * (4 + 2))


@pytest.mark.parametrize(
    ("number", "expected"),
    [("6", 0), ("7", 12 * (4 + 8)), ("15", 12 * (4 + 2)), ("", 12 * 8)],
    ids=["already float32", "to float64", "to bfloat16", "to a device"],
)
def test_a_cast_moves_what_the_wanted_type_needs(number: str, expected: int) -> None:
    call = {"dtypes": ("float32", "Scalar"), "values": ("", number)}
    assert free("aten::to", (3, 4), (), **call) == Work(min_bytes=expected)


def test_cat_reads_every_part_and_writes_them_all():
    # 2·3 + 4·3 = 18 elements of 4 B, read and written.
    work = free("aten::cat", ((2, 3), (4, 3)), (), dtypes=("TensorList", "Scalar"))
    assert work == Work(min_bytes=2 * 18 * 4)


def test_embedding_reads_and_writes_one_row_per_index():
    # 2·3 indices of 8 B; 6 rows of 5 float32, read and written: 48 + 2·6·5·4 = 288.
    work = free("aten::embedding", (50, 5), (2, 3), dtypes=("float32", "int64"))
    assert work == Work(min_bytes=288)


def test_index_select_moves_slices_and_gather_single_elements():
    types = ("float32", "Scalar", "int64")
    values = ("", "0", "")
    # 2 indices of 8 B; 2 rows of 5 float32, read and written: 16 + 80 = 96.
    selected = free("aten::index_select", (4, 5), (), (2,), dtypes=types, values=values)
    # 2·5 indices of 8 B, as many float32, read and written: 80 + 80 = 160.
    gathered = free("aten::gather", (4, 5), (), (2, 5), dtypes=types, values=values)
    assert (selected, gathered) == (Work(min_bytes=96), Work(min_bytes=160))


def test_where_reads_a_condition_and_two_sides_that_broadcast():
    # 3·4 bool, 4 float32, one float32, and 3·4 float32 written: 12 + 16 + 4 + 48 = 80.
    work = free("aten::where", (3, 4), (4,), (), dtypes=("bool", "float32", "float32"))
    assert work == Work(min_bytes=80)


def test_pad_writes_the_larger_image():
    # [2, 3, 4] padded by 1 + 1 in the last axis and 2 + 0 in the one before: [2, 5, 6].
    work = free(
        "aten::pad", (2, 3, 4), (), dtypes=("float32", "ScalarList"), values=("", "[1, 1, 2, 0]")
    )
    assert work == Work(min_bytes=4 * (24 + 60))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: torch.zeros(3, 4), 48),
        (lambda: torch.ones(3, dtype=torch.float64), 24),
        (lambda: torch.full((2, 2), 1.0, dtype=torch.float16), 8),
        (lambda: torch.arange(5), 5 * 8),  # no type named: int64
        (lambda: torch.arange(1, 9, 2, dtype=torch.int64), 4 * 8),
        (lambda: torch.eye(3), 36),
        (lambda: torch.eye(3, 2), 24),
        (lambda: torch.linspace(0, 1, 7), 28),
        (lambda: torch.arange(0, 1, 0.3), 16),  # 0, 0.3, 0.6, 0.9
        (lambda: torch.randint(9, (2, 3)), 48),
        (lambda: torch.randperm(5), 40),
        (lambda: X.new_zeros(3), 12),
        (lambda: torch.randn(2, 3), 24),
        (lambda: torch.zeros(2, 3).normal_(), 24 + 24),  # zeros, then the fill
    ],
)
def test_creating_a_tensor_writes_it(make: Callable[[], Any], expected: int) -> None:
    assert sum(work.min_bytes for _, work in counted(roots(make)) if work) == expected


S = X[:, :, 0, :4].contiguous()  # square matrices in a batch
INDEX = torch.arange(4) % 2
G = torch.zeros(2, 3, 3, 2)
T = torch.zeros(2, 6, 6, dtype=torch.long)
CALLS: list[Callable[[], Any]] = [
    *(
        lambda f=f: f(X)
        for f in (
            *(F.relu, F.relu6, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.hardswish),
            *(F.hardsigmoid, F.softplus, F.softsign, F.tanhshrink, F.softshrink, F.hardshrink),
            *(F.logsigmoid, F.sigmoid, F.tanh, F.leaky_relu, F.hardtanh, F.dropout, F.glu),
            *(F.alpha_dropout, F.feature_alpha_dropout, F.dropout2d, F.rrelu, F.normalize),
            *(F.instance_norm, torch.var_mean, torch.std, torch.mean),
            *(torch.erf, torch.rsqrt, torch.frac, torch.isfinite, torch.sort, torch.nonzero),
            *(torch.unique, torch.median, torch.logit, torch.trunc, torch.nan_to_num),
            *(torch.fft.fft, torch.fft.rfft2, torch.abs),
        )
    ),
    lambda: F.softmax(X, 1),
    lambda: F.softmin(X, 1),
    lambda: F.log_softmax(X, 1),
    lambda: F.gumbel_softmax(X, dim=1),
    lambda: F.threshold(X, 0.1, 2),
    lambda: F.prelu(X, torch.ones(4)),
    lambda: F.batch_norm(X, torch.zeros(4), torch.ones(4)),
    lambda: F.batch_norm(X, None, None, training=True),
    lambda: F.group_norm(X, 2),
    lambda: F.layer_norm(X, [6]),
    lambda: F.rms_norm(X, [6]),
    lambda: F.local_response_norm(X, 3),
    lambda: F.max_pool2d(X, 2),
    lambda: F.max_pool1d(X[0], 2),
    lambda: F.max_pool3d(X, 2),
    lambda: F.max_unpool2d(*F.max_pool2d(X, 2, return_indices=True), [2, 2]),
    lambda: F.avg_pool1d(X[0], 2),
    lambda: F.avg_pool2d(X, 3, 2, 1, ceil_mode=True),
    lambda: F.avg_pool3d(X, 2),
    lambda: F.lp_pool2d(X, 2.0, 2),
    lambda: F.adaptive_avg_pool1d(X[0], 4),
    lambda: F.adaptive_avg_pool2d(X, (4, 1)),
    lambda: F.adaptive_avg_pool3d(X, 2),
    lambda: F.adaptive_max_pool2d(X, 4),
    lambda: F.fractional_max_pool2d(X, 2, 3),
    *(
        lambda mode=mode: F.interpolate(X, scale_factor=1.5, mode=mode)
        for mode in ("nearest", "nearest-exact", "bilinear", "bicubic", "area")
    ),
    lambda: F.interpolate(X, size=(4, 4), mode="bilinear", antialias=True),
    lambda: F.interpolate(X[0], scale_factor=2, mode="linear"),
    lambda: F.interpolate(X[None], scale_factor=2, mode="trilinear"),
    lambda: F.grid_sample(X, G, align_corners=False),
    lambda: F.affine_grid(torch.zeros(2, 2, 3), [2, 1, 4, 4], align_corners=False),
    lambda: F.pixel_shuffle(X, 2),
    lambda: F.pixel_unshuffle(X, 2),
    lambda: F.channel_shuffle(X, 2),
    lambda: F.unfold(X, 2),
    lambda: F.fold(torch.zeros(2, 16, 9), (6, 6), 2, stride=2),
    *(
        lambda mode=mode: F.pad(X, (1, 1, 1, 1), mode=mode)
        for mode in ("constant", "reflect", "replicate", "circular")
    ),
    lambda: F.one_hot(INDEX),
    lambda: F.embedding(INDEX, torch.zeros(5, 3)),
    lambda: F.embedding(INDEX, torch.zeros(5, 3), max_norm=1.0),
    *(
        lambda mode=mode: F.embedding_bag(INDEX[None], torch.zeros(5, 3), mode=mode)
        for mode in ("sum", "mean", "max")
    ),
    *(
        lambda loss=loss: loss(X, X)
        for loss in (
            *(F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, F.soft_margin_loss),
            *(F.poisson_nll_loss, F.binary_cross_entropy_with_logits, F.hinge_embedding_loss),
            *(F.cosine_similarity, F.pairwise_distance),
        )
    ),
    lambda: F.binary_cross_entropy(X.sigmoid(), X.sigmoid()),
    lambda: F.kl_div(X, X, reduction="batchmean"),
    lambda: F.gaussian_nll_loss(X, X, X.exp()),
    lambda: F.nll_loss(X, T),
    lambda: F.cross_entropy(X, T, label_smoothing=0.1),
    lambda: F.cross_entropy(X, X.softmax(1)),
    lambda: F.multi_margin_loss(X[0, :, 0], INDEX),
    lambda: F.multilabel_margin_loss(X[0, :, 0], torch.zeros(4, 6, dtype=torch.long)),
    lambda: F.multilabel_soft_margin_loss(X[0, 0], X[0, 0]),
    lambda: F.margin_ranking_loss(X, X, X),
    lambda: F.triplet_margin_loss(X, X, X),
    lambda: F.cosine_embedding_loss(X[0, 0], X[0, 0], torch.ones(6)),
    lambda: torch.ctc_loss(
        X[0].log_softmax(-1), torch.ones(6, 2, dtype=torch.int), [4] * 6, [2] * 6
    ),
    lambda: torch.cdist(S, S),
    lambda: F.pdist(X[0, 0]),
    lambda: torch.stft(X[0, 0].flatten(), 8, return_complex=True, window=torch.ones(8)),
    lambda: torch.linalg.norm(S, dim=(1, 2)),
    lambda: torch.linalg.matrix_norm(S),
    lambda: torch.linalg.pinv(S),
    lambda: torch.linalg.solve(torch.eye(4).expand(2, 4, 4), S),
    lambda: torch.linalg.inv(torch.eye(4)),
    lambda: torch.linalg.cholesky(torch.eye(4)),
    lambda: torch.linalg.qr(S),
    lambda: torch.linalg.svd(S),
    lambda: torch.linalg.eigh(S),
    lambda: torch.linalg.det(S),
    lambda: torch.linalg.lstsq(S, S),
    lambda: torch.linalg.cross(S[..., :3], S[..., :3]),
    lambda: torch.quantile(X, 0.3),
    lambda: torch.cov(S[0]),
    lambda: torch.kron(S[0], S[0]),
    lambda: torch.diff(X),
    lambda: torch.trapezoid(X),
    lambda: torch.scatter_add(X, 0, T[:1, None], X[:1]),
    lambda: torch.index_add(X, 1, INDEX, X),
    lambda: torch.histc(X),
    lambda: torch.bincount(INDEX),
    lambda: torch.bucketize(X, X[0, 0, 0]),
    lambda: torch.topk(X, 2),
    lambda: torch.multinomial(X[0, 0].exp(), 2),
    lambda: torch.quantize_per_tensor(X, 0.1, 0, torch.qint8).dequantize(),
    lambda: torch.fake_quantize_per_tensor_affine(X, 0.1, 0, 0, 255),
    lambda: torch.meshgrid(INDEX, INDEX, indexing="ij"),
    lambda: torch.einsum("abcd->dcba", X),
]


def _is_contraction(op: str) -> bool:
    name = op.rpartition(":")[2]
    return "upsample" not in name and any(word in name for word in _CONTRACTIONS)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_outermost_op_of_common_calls_is_a_formula_or_free():
    unknown = {
        node.call.op
        for call in CALLS
        for node in roots(call)
        if node.call.op not in OP_FORMULAS and node.call.op not in FREE_OPS
    }

    assert {op for op in unknown if not _is_contraction(op)} == _WALKED


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_composite_that_is_walked_leaves_no_unknown_op_behind():
    leaves = {call.op for run in CALLS for call, work in counted(roots(run)) if work is None}

    assert {op for op in leaves if not (looks_below(op) or _is_contraction(op))} <= _WALKED
