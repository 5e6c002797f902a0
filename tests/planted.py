"""Small modules with a known verdict: planted misses, and clean look-alikes that nothing flags."""

import ctypes
import hashlib
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torchvision
from torch import nn
from torch.nn import functional as F  # noqa: N812

from flopprof.formulas import MODULE_FORMULAS, Work

CLEAN = frozenset(("free", "agrees", "formula_only"))
WORKED_S = 0.03  # hidden work takes so long


class Calls(nn.Module):
    """A module whose forward is the function given: of itself and its inputs."""

    def __init__(self, forward: Callable[..., Any], **held: Any) -> None:
        super().__init__()
        self.function = forward
        for name, value in held.items():
            setattr(self, name, value)

    def forward(self, *inputs):
        return self.function(self, *inputs)


class Many(nn.Module):
    """Calls each part on its own inputs, so that one run judges them all."""

    def __init__(self, parts: dict[str, tuple[nn.Module, tuple[Any, ...]]]) -> None:
        super().__init__()
        self.inputs = {name: inputs for name, (_, inputs) in parts.items()}
        for name, (module, _) in parts.items():
            self.add_module(name, module)

    def forward(self, x):
        for name, inputs in self.inputs.items():
            getattr(self, name)(*inputs)
        return x


def ones(*size: int) -> torch.Tensor:
    return torch.ones(*size)


def own_threads(module: Any, x: torch.Tensor) -> torch.Tensor:
    results: list[torch.Tensor] = []

    def work() -> None:
        with torch.no_grad():  # each thread has its own mode
            results.append(x @ module.weight)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results[0]


def _weighted(forward: Callable[..., Any], *size: int) -> nn.Module:
    return Calls(forward, weight=nn.Parameter(torch.ones(*size)))


@torch.library.custom_op("flopprof_planted::cube", mutates_args=())
def cube(x: torch.Tensor) -> torch.Tensor:
    return x * x * x


@torch.library.custom_op("flopprof_planted::shift", mutates_args=())
def shift(x: torch.Tensor, by: float) -> torch.Tensor:
    return x + by


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.ops.flopprof_planted.cube(x)


def _numpy(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    matrix = np.ones((300, 300))
    until = time.perf_counter() + WORKED_S
    while time.perf_counter() < until:
        matrix = matrix @ matrix * 1e-3
    return x + float(matrix[0, 0])


def _hashing(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    until = time.perf_counter() + WORKED_S
    while time.perf_counter() < until:
        hashlib.sha256(b"0" * 4096).digest()
    return x + 1


def _python(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    until = time.perf_counter() + WORKED_S
    total = 0.0
    while time.perf_counter() < until:
        total += 1.0
    return x + total


def _sleeping(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    time.sleep(WORKED_S)
    return x + 1


def _ctypes(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    ctypes.CDLL(None).usleep(int(WORKED_S * 1e6))
    return x + 1


def _waiting(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    threading.Event().wait(WORKED_S)
    return x + 1


def functional() -> dict[str, tuple[nn.Module, tuple[Any, ...]]]:
    x = ones(8, 8)
    q = ones(1, 2, 4, 8)
    image = ones(1, 2, 8, 8)
    return {
        "conv2d": (_weighted(lambda m, x: F.conv2d(x, m.weight), 4, 2, 3, 3), (image,)),
        "conv1d": (_weighted(lambda m, x: F.conv1d(x, m.weight), 4, 8, 3), (ones(1, 8, 8),)),
        "conv3d": (_weighted(lambda m, x: F.conv3d(x, m.weight), 4, 1, 2, 2, 2),
                   (ones(1, 1, 4, 4, 4),)),
        "transposed": (_weighted(lambda m, x: F.conv_transpose2d(x, m.weight), 2, 4, 3, 3),
                       (image,)),
        "linear": (_weighted(lambda m, x: F.linear(x, m.weight), 4, 8), (x,)),
        "matmul": (_weighted(lambda m, x: torch.matmul(x, m.weight), 8, 4), (x,)),
        "at_sign": (_weighted(lambda m, x: x @ m.weight, 8, 4), (x,)),
        "mm": (_weighted(lambda m, x: torch.mm(x, m.weight), 8, 4), (x,)),
        "addmm": (_weighted(lambda m, x: torch.addmm(x, x, m.weight), 8, 8), (x,)),
        "bmm": (Calls(lambda m, x: torch.bmm(x, x)), (ones(2, 4, 4),)),
        "baddbmm": (Calls(lambda m, x: torch.baddbmm(x, x, x)), (ones(2, 4, 4),)),
        "mv": (Calls(lambda m, x: torch.mv(x, x[0])), (x,)),
        "dot": (Calls(lambda m, x: torch.dot(x[0], x[0])), (x,)),
        "outer": (Calls(lambda m, x: torch.outer(x[0], x[0])), (x,)),
        "einsum": (_weighted(lambda m, x: torch.einsum("ij,kj->ik", x, m.weight), 4, 8), (x,)),
        "tensordot": (Calls(lambda m, x: torch.tensordot(x, x, dims=1)), (x,)),
        "attention": (Calls(lambda m, q: F.scaled_dot_product_attention(q, q, q)), (q,)),
        "childs_weight": (Calls(lambda m, x: F.linear(x, m.child.weight, m.child.bias),
                                child=nn.Linear(8, 4)), (x,)),
        "parameter_by_hand": (_weighted(lambda m, x: x * m.weight, 8), (x,)),
        "residual": (Calls(lambda m, x: x + m.child(x), child=nn.Linear(8, 8)), (x,)),
        "relu": (Calls(lambda m, x: F.relu(x)), (x,)),
        "gelu": (Calls(lambda m, x: F.gelu(x)), (x,)),
        "softmax": (Calls(lambda m, x: x.softmax(-1)), (x,)),
        "layer_norm": (Calls(lambda m, x: F.layer_norm(x, (8,))), (x,)),
        "batch_norm": (Calls(lambda m, x: F.batch_norm(x, x[0], x[1])), (x,)),
        "pool": (Calls(lambda m, x: F.max_pool2d(x, 2)), (image,)),
        "interpolate": (Calls(lambda m, x: F.interpolate(x, scale_factor=2.0, mode="bilinear")),
                        (image,)),
        "mean": (Calls(lambda m, x: x.mean()), (x,)),
        "cumsum": (Calls(lambda m, x: x.cumsum(0)), (x,)),
        "exp": (Calls(lambda m, x: x.exp()), (x,)),
        "fft": (Calls(lambda m, x: torch.fft.fft(x)), (x,)),
        "solve": (Calls(lambda m, x: torch.linalg.solve(x + torch.eye(8), x)), (x,)),
    }  # fmt: skip


def fused() -> dict[str, tuple[nn.Module, tuple[Any, ...]]]:
    def layer(**more: Any) -> nn.TransformerEncoderLayer:
        return nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, **more)

    x = ones(2, 4, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        deep = nn.TransformerEncoder(layer(), 2)
    return {
        "encoder": (deep, (x,)),
        "encoder_layer": (layer(), (x,)),
        "encoder_layer_gelu": (layer(activation="gelu"), (x,)),
        "encoder_norm_first": (layer(norm_first=True), (x,)),
        "addmm_activation": (
            Calls(lambda m, x: torch._addmm_activation(x[0], x, x)), (ones(8, 8),)),
        "addmm_gelu": (
            Calls(lambda m, x: torch._addmm_activation(x[0], x, x, use_gelu=True)), (ones(8, 8),)),
    }  # fmt: skip


def opaque() -> dict[str, tuple[nn.Module, tuple[Any, ...]]]:
    x = ones(2, 8)
    image = ones(1, 2, 8, 8)
    net = nn.Sequential(nn.Linear(8, 4), nn.ReLU()).eval()
    vision = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "scripted": (torch.jit.script(net), (x,)),
            "traced": (torch.jit.trace(net, x), (x,)),
            "scripted_vision": (torch.jit.script(vision), (image,)),
            "traced_vision": (torch.jit.trace(vision, image), (image,)),
            "frozen": (torch.jit.freeze(torch.jit.script(net)), (x,)),
            "scripted_norm": (torch.jit.script(nn.LayerNorm(8)), (x,)),
        }


def extension() -> dict[str, tuple[nn.Module, tuple[Any, ...]]]:
    ops = torchvision.ops
    x = ones(2, 8)
    image = ones(1, 2, 8, 8)
    boxes = torch.tensor([[0.0, 1.0, 1.0, 4.0, 4.0]])
    return {
        "custom_op": (Calls(lambda m, x: cube(x)), (x,)),
        "custom_op_by_name": (Calls(lambda m, x: torch.ops.flopprof_planted.shift(x, 2.0)), (x,)),
        "autograd_function": (Calls(lambda m, x: Square.apply(x)), (x,)),
        "roi_align": (Calls(lambda m, x: ops.roi_align(x, boxes, 2)), (image,)),
        "roi_pool": (Calls(lambda m, x: ops.roi_pool(x, boxes, 2)), (image,)),
        "deform_conv2d": (
            Calls(lambda m, x: ops.deform_conv2d(x, ones(1, 18, 6, 6), ones(4, 2, 3, 3))),
            (image,)),
    }  # fmt: skip


def hidden() -> dict[str, tuple[nn.Module, tuple[Any, ...]]]:
    works = (_numpy, _hashing, _python, _sleeping, _ctypes, _waiting)
    return {f"hidden{work.__name__}": (Calls(work), (ones(2, 8),)) for work in works}


class Skips(nn.Module):
    """Has a formula (see `wrong_formulas`), and gives back what was there before."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.function = forward
        self.kept = torch.ones(2, 8)

    def forward(self, x):
        return self.function(self, x)


class Doubles(Skips):
    """Has a formula that is wrong on purpose."""

    def forward(self, x):
        return x * 2


@contextmanager
def wrong_formulas() -> Iterator[None]:
    """Have the modules above counted by formulas that their forward does not fit."""
    formulas = {
        "tests.planted.Skips": lambda _call: Work(matmul_flops=100),
        "tests.planted.Doubles": lambda _call: Work(vector_flops=100),
    }
    MODULE_FORMULAS._items.update(formulas)
    try:
        yield
    finally:
        for name in formulas:
            del MODULE_FORMULAS._items[name]


def not_run() -> dict[str, tuple[nn.Module, tuple[Any, ...]]]:
    x = ones(2, 8)
    return {
        "cached": (Skips(lambda m, x: m.kept), (x,)),
        "passed_on": (Skips(lambda m, x: x), (x,)),
        "viewed": (Skips(lambda m, x: x.view(-1)), (x,)),
        "through_numpy": (Skips(lambda m, x: torch.from_numpy(x.numpy() * 2)), (x,)),
    }


def _altered(module: nn.Module, **attributes: Any) -> nn.Module:
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


def disagrees() -> dict[str, tuple[nn.Module, tuple[Any, ...]]]:
    """Modules whose attributes say otherwise than their weights, and a wrong formula."""
    x = ones(2, 8)
    image = ones(1, 2, 8, 8)
    return {
        "features": (_altered(nn.Linear(8, 4), in_features=16), (x,)),
        "kernel": (_altered(nn.Conv2d(2, 4, 3), kernel_size=(5, 5)), (image,)),
        "channels": (_altered(nn.Conv2d(2, 4, 3), in_channels=4), (image,)),
        "kernel_1d": (_altered(nn.Conv1d(8, 4, 3), kernel_size=(1,)), (ones(1, 8, 8),)),
        "kernel_3d": (_altered(nn.Conv3d(1, 2, 2), kernel_size=(3, 3, 3)), (ones(1, 1, 4, 4, 4),)),
        "kernel_transposed": (
            _altered(nn.ConvTranspose2d(2, 4, 3), kernel_size=(4, 4)), (image,)),
        "wrong_formula": (Doubles(_python), (x,)),
    }  # fmt: skip


def unknown() -> dict[str, tuple[nn.Module, tuple[Any, ...]]]:
    x = ones(8, 8)
    targets = torch.zeros(8, 8, dtype=torch.int64)
    return {
        "sparse_product": (Calls(lambda m, x: torch.sparse.mm(x.to_sparse(), x)), (x,)),
        "multilabel_loss": (
            Calls(lambda m, x: F.multilabel_margin_loss(x, targets)), (x,)),
    }  # fmt: skip


def clean() -> dict[str, tuple[nn.Module, tuple[Any, ...]]]:
    x = ones(2, 8)
    row = ones(2, 4, 8)
    image = ones(1, 4, 8, 8)
    volume = ones(1, 2, 4, 4, 4)
    ids = torch.zeros(2, 4, dtype=torch.int64)
    flat = [nn.Linear(8, 4), nn.Linear(8, 4, bias=False), nn.ReLU(), nn.GELU(), nn.SiLU(),
            nn.Sigmoid(), nn.Tanh(), nn.ELU(), nn.LeakyReLU(), nn.Hardswish(), nn.Mish(),
            nn.Softplus(), nn.Softmax(-1), nn.LogSoftmax(-1), nn.LayerNorm(8), nn.RMSNorm(8),
            nn.BatchNorm1d(8), nn.Dropout(), nn.Identity(), nn.Flatten(), nn.Unflatten(1, (2, 4)),
            nn.GLU(), nn.ReLU6(), nn.Hardtanh(), nn.PReLU(), nn.RNNCell(8, 4), nn.LSTMCell(8, 4),
            nn.GRUCell(8, 4)]  # fmt: skip
    images = [nn.Conv2d(4, 8, 3), nn.Conv2d(4, 8, 3, padding=1, stride=2), nn.Conv2d(4, 4, 1),
              nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(4, 8, 3, padding="same"),
              nn.Conv2d(4, 8, 3, dilation=2, bias=False), nn.ConvTranspose2d(4, 8, 3, stride=2),
              nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.MaxPool2d(2),
              nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(2),
              nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=2, mode="bilinear"),
              nn.PixelShuffle(2), nn.ZeroPad2d(1), nn.ReflectionPad2d(1), nn.Dropout2d(),
              nn.ChannelShuffle(2), nn.Unfold(2)]  # fmt: skip
    sequences = [nn.Conv1d(4, 4, 3), nn.LSTM(8, 4), nn.GRU(8, 4), nn.RNN(8, 4), nn.AvgPool1d(2)]
    volumes = [nn.Conv3d(2, 4, 2), nn.MaxPool3d(2), nn.BatchNorm3d(2), nn.ConvTranspose3d(2, 2, 2)]
    folded = torch.nn.utils.fusion.fuse_conv_bn_eval(
        nn.Conv2d(4, 4, 3).eval(), nn.BatchNorm2d(4).eval()
    )
    parts: dict[str, tuple[nn.Module, tuple[Any, ...]]] = {
        "embedding": (nn.Embedding(4, 8), (ids,)),
        "bilinear": (nn.Bilinear(8, 8, 4), (x, x)),
        "cosine": (nn.CosineSimilarity(), (x, x)),
        "folded_batch_norm": (folded, (image,)),
        "attention_module": (Calls(lambda m, x: m.inner(x, x, x, need_weights=False)[0],
                                   inner=nn.MultiheadAttention(8, 2, batch_first=True)), (row,)),
        "nms": (Calls(lambda m, b: torchvision.ops.nms(b[:, 1:], b[:, 0], 0.5)), (ones(2, 5),)),
        "views": (Calls(lambda m, x: x.view(4, 4).t().contiguous()[None].expand(2, 4, 4)), (x,)),
        "joins": (Calls(lambda m, x: torch.cat(torch.stack([x, x]).chunk(2), -1)), (x,)),
        "lookup": (Calls(lambda m, x: x[:, [0, 1]].index_select(0, torch.tensor([0]))), (x,)),
        "integers": (Calls(lambda m, i: (i + 1) * 2 - i), (ids,)),
        "booleans": (Calls(lambda m, i: i.bool() & (i == 0)), (ids,)),
        "casts": (Calls(lambda m, x: x.double().to(torch.bfloat16).float()), (x,)),
        "short_python": (Calls(lambda m, x: sum(range(100)) and x.clone()), (x,)),
        "child_of_child": (
            nn.Sequential(nn.Sequential(nn.Linear(8, 8)), nn.Sequential(nn.ReLU())), (x,)),
        "shared_child": (nn.Sequential(*[nn.Linear(8, 8)] * 3), (x,)),
        "child_in_thread": (Calls(_child_in_thread, child=nn.Linear(8, 8)), (x,)),
    }  # fmt: skip
    for modules, x_of_these in ((flat, x), (images, image), (sequences, row), (volumes, volume)):
        for module in modules:
            parts[f"{type(module).__name__}_{len(parts)}"] = (module, (x_of_these,))
    return parts


def _child_in_thread(module: Any, x: torch.Tensor) -> torch.Tensor:
    results: list[torch.Tensor] = []

    def work() -> None:
        with torch.no_grad():
            results.append(module.child(x))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return results[0]
