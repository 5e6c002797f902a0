"""Every verdict on a GPU: what was planted is flagged, and what is clean is not."""

import ctypes
import shutil
import subprocess
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from flopprof.judge.verdicts import GOOD
from tests import planted
from tests.gpu.place import Place, assert_linked, compute_kernels, flagged, names, reasons
from tests.planted import Calls

HERE = Path(__file__).parent


def weighted(forward: Callable[..., Any], *size: int) -> nn.Module:
    return Calls(forward, weight=nn.Parameter(torch.ones(*size)))


FUNCTIONAL: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (weighted(lambda m, x: F.linear(x, m.weight), 4, 8), (8, 8)),
    "at_sign": (weighted(lambda m, x: x @ m.weight, 8, 4), (8, 8)),
    "conv2d": (weighted(lambda m, x: F.conv2d(x, m.weight), 4, 2, 3, 3), (1, 2, 8, 8)),
    "attention": (Calls(lambda m, q: F.scaled_dot_product_attention(q, q, q)), (1, 2, 4, 8)),
    "einsum": (weighted(lambda m, x: torch.einsum("ij,kj->ik", x, m.weight), 4, 8), (8, 8)),
    "residual": (Calls(lambda m, x: x + m.child(x), child=nn.Linear(8, 8)), (8, 8)),
    "gelu": (Calls(lambda m, x: F.gelu(x)), (8, 8)),
    "layer_norm": (Calls(lambda m, x: F.layer_norm(x, (8,))), (8, 8)),
    "fft": (Calls(lambda m, x: torch.fft.fft(x)), (8, 8)),
}


@pytest.mark.parametrize("name", FUNCTIONAL)
def test_work_in_forward_itself_is_functional(place, name):
    model, size = FUNCTIONAL[name]

    run = place.profile(model, torch.ones(*size))

    assert "functional" in flagged(run).values(), reasons(run)
    assert set(flagged(run).values()) == {"functional"}, reasons(run)
    assert_linked(place, run)


CLEAN: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(8, 4), (2, 8)),
    "conv2d": (nn.Conv2d(4, 8, 3, padding=1), (1, 4, 8, 8)),
    "conv1d": (nn.Conv1d(4, 4, 3), (2, 4, 8)),
    "transposed": (nn.ConvTranspose2d(4, 8, 3, stride=2), (1, 4, 8, 8)),
    "batch_norm": (nn.BatchNorm2d(4), (1, 4, 8, 8)),
    "group_norm": (nn.GroupNorm(2, 4), (1, 4, 8, 8)),
    "layer_norm": (nn.LayerNorm(8), (2, 8)),
    "rms_norm": (nn.RMSNorm(8), (2, 8)),
    "gelu": (nn.GELU(), (2, 8)),
    "softmax": (nn.Softmax(-1), (2, 8)),
    "max_pool": (nn.MaxPool2d(2), (1, 4, 8, 8)),
    "upsample": (nn.Upsample(scale_factor=2, mode="bilinear"), (1, 4, 8, 8)),
    "dropout": (nn.Sequential(nn.Dropout(), nn.ReLU()), (2, 8)),  # alone it runs no kernel
    "cast": (Calls(lambda m, x: x.half().float()), (8, 8)),
    "views": (Calls(lambda m, x: x.view(4, 16).t().contiguous().flatten()), (8, 8)),
}


@pytest.mark.parametrize("name", CLEAN)
def test_a_clean_layer_is_not_flagged(place, name):
    model, size = CLEAN[name]

    run = place.profile(model.eval(), torch.ones(*size))

    assert flagged(run) == {}, reasons(run)
    assert_linked(place, run)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_count_all_gates_and_every_kernel_is_theirs(place, kind):
    gates = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}[kind]
    layer = kind(8, 16, num_layers=2, batch_first=True).eval()

    run = place.profile(layer, torch.randn(2, 5, 8))

    # 2 examples, 5 steps; each gate of 16 takes input (8, then 16) and state (16).
    expected = 2 * 2 * 5 * gates * 16 * ((8 + 16) + (16 + 16))
    assert run.totals.matmul_flops == expected, reasons(run)
    assert not set(flagged(run).values()) & {"unknown", "hidden", "disagrees"}, reasons(run)
    assert_linked(place, run)


@pytest.mark.parametrize("how", ["script", "trace", "export"])
def test_a_program_that_hooks_cannot_enter_is_opaque(place, how):
    net = nn.Sequential(nn.Linear(8, 4), nn.ReLU()).to(place.device).eval()
    x = torch.ones(2, 8, device=place.device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        programs: dict[str, Callable[[], Any]] = {
            "script": lambda: torch.jit.script(net),
            "trace": lambda: torch.jit.trace(net, x),
            "export": lambda: torch.export.export(net, (x,)).module(),
        }
        program = programs[how]()

    run = place.profile(nn.Sequential(program), x)

    assert "opaque" in flagged(run).values(), reasons(run)
    # 2 rows, 8 to 4.
    assert run.totals.matmul_flops == 2 * 2 * 8 * 4
    assert_linked(place, run)


@pytest.mark.parametrize("name", ["cube", "shift"])
def test_a_custom_op_is_an_extension_with_its_kernels_time(place, name):
    ops = {"cube": lambda m, x: planted.cube(x), "shift": lambda m, x: planted.shift(x, 2.0)}

    run = place.profile(Calls(ops[name]), torch.ones(8, 8))

    extensions = run.sites[run.sites["op"] == f"flopprof_planted::{name}"]
    assert set(extensions["verdict"]) <= {"extension", "free"}, reasons(run)
    assert "extension" in flagged(run).values(), reasons(run)
    assert_linked(place, run)


def test_an_op_of_a_cuda_extension_is_an_extension_and_its_time_is_known(place, tmp_path):
    tools = ("g++", "ninja", "nvcc") if place.is_gpu else ("g++", "ninja")
    missing = [tool for tool in tools if not shutil.which(tool)]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    build_twice(place, tmp_path)

    run = place.profile(Calls(lambda m, x: torch.ops.flopprof_gpu.twice(x)), torch.ones(64))

    [site] = run.sites[run.sites["op"] == "flopprof_gpu::twice"].to_dict("records")
    assert site["verdict"] == "extension", reasons(run)
    assert site["time_us"] > 0
    if place.has_cuda("the extension's own kernel is its op's"):
        kernels = compute_kernels(run)
        assert any("twice_kernel" in name for name in names(kernels)), names(kernels)
        assert_linked(place, run)
        assert site["flops"] != site["flops"]  # unknown, never zero
        assert run.totals.coverage_frac < 1


def build_twice(place: Place, folder: Path) -> None:
    """Build and load the extension; where there is no GPU, the part for the CPU alone."""
    from torch.utils.cpp_extension import load

    sources = [str(HERE / "twice.cpp")]
    flags = ["-O1"]
    libraries = []
    if place.is_gpu:
        sources.append(str(HERE / "twice.cu"))
        flags.append("-DWITH_CUDA")
        libraries.append(f"-L{folder_of_cudart(folder)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of compilers and architectures
        load(
            "flopprof_gpu_twice",
            sources,
            build_directory=str(folder),
            extra_cflags=flags,
            extra_ldflags=libraries,
            is_python_module=False,
        )


def folder_of_cudart(folder: Path) -> Path:
    """Return a folder with CUDA's runtime under the name that linkers look for.

    The compiler may come without it: then torch's own package has it, with a number in its name.
    """
    packages = Path(torch.__file__).parents[1] / "nvidia"
    for library in sorted(packages.rglob("libcudart.so*")):
        (folder / "libcudart.so").symlink_to(library)
        break
    return folder


def test_a_kernel_launched_past_pytorch_is_hidden_and_named(place, tmp_path):
    if not place.has_cuda("a kernel that ctypes launches"):
        return
    if not shutil.which("nvcc"):
        pytest.skip("not installed: nvcc")
    library = tmp_path / "bare.so"
    command = ["nvcc", "-shared", "-Xcompiler", "-fPIC", "-o", str(library), str(HERE / "bare.cu")]
    subprocess.run([*command, "-arch=native"], check=True)
    bare = ctypes.CDLL(str(library)).launch_bare
    bare.argtypes = [ctypes.c_void_p, ctypes.c_long, ctypes.c_void_p]

    def forward(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        out = x.clone()
        stream = torch.cuda.current_stream().cuda_stream
        assert bare(out.data_ptr(), out.numel(), stream) == 0
        return out

    run = place.profile(Calls(forward), torch.ones(1 << 20))

    kernels = compute_kernels(run)
    lost = kernels[kernels["op_id"] < 0]
    assert any("bare_kernel" in name for name in names(lost)), names(kernels)
    assert "hidden" in flagged(run).values(), reasons(run)
    assert run.totals.coverage_frac < 1


def forward_of_triton(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    if not x.is_cuda:
        return torch.add(x, x, alpha=2)
    from tests.gpu.kernels import launch

    return launch(x, x)


def test_a_users_triton_kernel_is_never_good_news_and_has_its_time(place):
    run = place.profile(Calls(forward_of_triton), torch.ones(1 << 16))

    if not place.has_cuda("a Triton kernel, launched from forward"):
        return
    kernels = compute_kernels(run)
    own = kernels[kernels["kernel"].astype(str).str.contains("scale_and_add")]
    assert len(own) == 1, names(kernels)
    assert set(flagged(run).values()) & {"hidden", "extension"}, reasons(run)
    assert run.totals.coverage_frac < 1


def test_a_triton_kernel_in_an_op_of_its_own_is_an_extension(place):
    @torch.library.custom_op("flopprof_gpu_triton::scale_and_add", mutates_args=())
    def wrapped(x: torch.Tensor) -> torch.Tensor:
        return forward_of_triton(nn.Identity(), x)

    run = place.profile(Calls(lambda m, x: wrapped(x)), torch.ones(1 << 16))

    assert "extension" in flagged(run).values(), reasons(run)
    if place.has_cuda("the Triton kernel is the op's"):
        assert_linked(place, run)


def test_the_replay_of_a_cuda_graph_is_hidden_and_says_so(place):
    if not place.has_cuda("CUDA graphs"):
        return
    weight = torch.randn(256, 256, device="cuda")
    static = torch.randn(256, 256, device="cuda")
    side = torch.cuda.Stream()
    with torch.cuda.stream(side), torch.no_grad():
        for _ in range(3):
            static @ weight
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.no_grad():
        out = torch.relu(static @ weight)

    def forward(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        graph.replay()
        return x + out[0, 0]

    model = Calls(forward, held=nn.Linear(2, 2).cuda())  # a weight says that it is on CUDA

    run = place.profile(model, torch.ones(8, device="cuda"))

    hidden = run.sites[run.sites["verdict"] == "hidden"]
    assert len(hidden) > 0, reasons(run)
    assert hidden["reason"].str.contains("graph").any(), reasons(run)
    replayed = run.kernels[run.kernels["graph_id"] >= 0]
    assert len(replayed) >= 2, names(run.kernels)
    assert run.totals.coverage_frac < 1


MODES = ("default", "reduce-overhead", "max-autotune")


@pytest.mark.parametrize("mode", MODES)
def test_compiled_models_keep_eager_counts_and_name_generated_kernels(place, mode):
    if not place.is_gpu and not shutil.which("g++"):
        pytest.skip("Inductor needs g++")
    torch._dynamo.reset()
    n = place.size(512, 16)
    model = nn.Sequential(nn.Linear(n, n), nn.GELU(), nn.LayerNorm(n)).eval()

    run = place.profile(model, torch.randn(n, n), compile=mode)

    # n rows, n to n; a compiled run keeps the eager call's sites.
    assert run.totals.matmul_flops == 2 * n**3
    facts = run.provenance.compiled
    assert (facts.graphs, facts.recompilations) == (1, 0)
    assert run.provenance.timing.wall_us.median > 0
    assert_linked(place, run)
    if place.has_cuda("kernels that Inductor wrote in Triton"):
        assert facts.kernels, facts
        assert any(kernel.kernel.startswith("triton_") for kernel in facts.kernels), facts.kernels


def test_a_compiled_submodule_is_opaque_or_fused(place):
    torch._dynamo.reset()
    inner: Any = torch.compile(nn.Linear(8, 4).to(place.device), backend="aot_eager")

    run = place.profile(nn.Sequential(inner), torch.ones(2, 8, device=place.device))

    assert run.totals.matmul_flops == 2 * 2 * 8 * 4, reasons(run)
    assert set(flagged(run).values()) & {"opaque", "fused"}, reasons(run)


def test_moving_a_weight_in_forward_is_free_and_its_copy_is_no_compute(place):
    weight = torch.ones(512, 512)  # no parameter: it stays on the CPU

    def forward(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, weight.to(x.device))

    run = place.profile(Calls(forward), torch.ones(8, 512))

    # 8 rows, 512 to 512.
    assert run.totals.matmul_flops == 2 * 8 * 512 * 512
    assert set(flagged(run).values()) == {"functional"}, reasons(run)
    if place.has_cuda("the copy to the device"):
        copies = run.kernels[run.kernels["kind"] == "memcpy"]
        assert copies["kernel"].astype(str).str.contains("HtoD").any(), names(run.kernels)
        busy = run.provenance.timing.device_busy_us
        assert busy < compute_kernels(run)["duration_us"].sum() * 1.01
    assert_linked(place, run)


def test_numpy_in_forward_is_hidden_time(place):
    def forward(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        a, until = np.ones((300, 300)), time.perf_counter() + planted.WORKED_S
        while time.perf_counter() < until:
            a = a @ a * 1e-3
        return x + float(a[0, 0])

    around = [nn.Linear(8, 8) for _ in range(4)]  # whose gaps are the ordinary ones
    run = place.profile(nn.Sequential(*around, Calls(forward)), torch.ones(2, 8), traces=3)

    assert "hidden" in flagged(run).values(), reasons(run)


def test_a_layer_that_gives_back_what_it_kept_is_not_run(place):
    model = planted.Skips(lambda m, x: x)

    with planted.wrong_formulas():
        run = place.profile(nn.Sequential(model), torch.ones(2, 8))

    assert "not_run" in flagged(run).values(), reasons(run)


def test_attributes_that_say_otherwise_than_the_weights_disagree(place):
    layer = nn.Linear(8, 4)
    layer.in_features = 16

    run = place.profile(nn.Sequential(layer), torch.ones(2, 8))

    assert "disagrees" in flagged(run).values(), reasons(run)


def test_an_op_without_a_formula_is_unknown_and_its_time_is_bounded(place):
    targets = torch.zeros(8, 8, dtype=torch.int64)

    def forward(module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.multilabel_margin_loss(x, y)

    run = place.profile(Calls(forward), (torch.ones(8, 8), targets), ceilings=place.is_gpu)

    unknown = run.sites[run.sites["verdict"] == "unknown"]
    assert len(unknown) > 0, reasons(run)
    assert unknown["flops"].isna().all()
    assert (unknown["time_us"] > 0).all()
    assert_linked(place, run)


def test_what_is_good_is_still_what_the_table_says():
    assert {"free", "agrees", "formula_only"} == GOOD
