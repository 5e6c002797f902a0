"""Every planted miss is flagged with its verdict, and no clean look-alike is flagged."""

import os
import shutil
import warnings
from functools import cache
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

import flopprof
from flopprof.api import analyse_traces
from flopprof.capture.training import Training
from flopprof.errors import UsageError
from flopprof.executed.stepping import check_can_step
from flopprof.run import Run
from flopprof.settings import Settings
from flopprof.verified import verify_by_stepping
from tests import planted
from tests.events import kernel, launch, op, with_shapes, write_trace

FAMILIES = (
    planted.functional,
    planted.fused,
    planted.opaque,
    planted.extension,
    planted.hidden,
    planted.not_run,
    planted.disagrees,
    planted.unknown,
)


@cache
def parts_of(family):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        return family()


@cache
def sites_of(family):
    """Return the sites of one run over all parts of the family: a run each would take minutes."""
    with planted.wrong_formulas():
        return judge(planted.Many(parts_of(family)))


def judge(model: nn.Module, x: torch.Tensor | None = None) -> pd.DataFrame:
    given = (torch.ones(1) if x is None else x,)
    return flopprof.profile(model, given, repeats=1, warmup=1, ceilings=False).sites


def verdicts(sites: pd.DataFrame, name: str) -> dict[str, str]:
    """Return op → verdict, with the reason, of the sites in a part of the model."""
    mine = sites[(sites["module_path"] + ".").str.startswith(f"{name}.")]
    return {f"{s.module_path} {s.op} {s.reason}": s.verdict for s in mine.itertuples(index=False)}


PLANTED = [(family, name) for family in FAMILIES for name in parts_of(family)]
CLEAN = list(parts_of(planted.clean))


def test_there_are_enough_of_each():
    assert len(PLANTED) >= 60
    assert len(CLEAN) >= 60


@pytest.mark.parametrize(("family", "name"), PLANTED, ids=lambda v: getattr(v, "__name__", v))
def test_a_planted_miss_is_flagged_with_its_verdict(family, name):
    found = verdicts(sites_of(family), name)

    flagged = set(found.values()) - planted.CLEAN
    assert family.__name__ in flagged, found
    # Beside it, only what a forward of the planted kind does by itself.
    besides = {"functional", "hidden"} if "numpy" in name else {"functional"}
    assert flagged <= {family.__name__, *besides}, found


@pytest.mark.parametrize("name", CLEAN)
def test_a_clean_look_alike_is_not_flagged(name):
    found = verdicts(sites_of(planted.clean), name)
    if "hidden" in found.values():  # a busy machine stopped the thread there; not there again
        found = verdicts(judge(planted.Many({name: parts_of(planted.clean)[name]})), name)

    assert set(found.values()) <= planted.CLEAN, found


def test_ops_in_the_users_own_threads_are_seen():
    model = planted.Calls(planted.own_threads, weight=nn.Parameter(torch.ones(8, 4)))

    sites = judge(model, torch.ones(8, 8))

    [product] = sites[sites["matmul_flops"] > 0].itertuples()
    # Two threads, each 8 rows × 4 outputs × 8 multiply-adds × 2.
    assert (product.matmul_flops, product.calls, product.verdict) == (1024, 2, "functional")


def test_an_exported_program_is_opaque():
    net, x = nn.Sequential(nn.Linear(8, 4), nn.ReLU()).eval(), torch.ones(2, 8)
    # It refuses to be switched to another mode; profiling must not ask for more.
    exported = torch.export.export(net, (x,)).module()

    found = verdicts(judge(nn.Sequential(exported), x), "0")

    assert {v for k, v in found.items() if "aten::linear" in k} == {"opaque"}


def test_ops_in_a_compiled_submodule_are_opaque():
    torch._dynamo.reset()  # of what other tests compiled
    compiled: Any = torch.compile(nn.Linear(8, 4), backend="aot_eager")

    found = judge(nn.Sequential(compiled), torch.ones(2, 8))

    products = found[found["matmul_flops"] > 0]
    assert products["matmul_flops"].sum() == 2 * 2 * 8 * 4
    assert set(products["verdict"]) == {"opaque"}


@pytest.fixture(scope="module")
def extension(tmp_path_factory):
    """A C++ extension: ops with and without work of their own, and a function that is no op."""
    if not (shutil.which("g++") and shutil.which("ninja")):
        pytest.skip("an extension needs g++ and ninja")
    from torch.utils.cpp_extension import load

    # Not torch/extension.h: it is all of torch, and takes 30 s to compile.
    source = """
        #include <chrono>
        #include <ATen/core/Tensor.h>
        #include <ATen/ops/add.h>
        #include <ATen/ops/empty_like.h>
        #include <pybind11/pybind11.h>
        #include <torch/library.h>
        at::Tensor twice(const at::Tensor& x) { return at::add(x, x); }
        at::Tensor horner(const at::Tensor& x, int64_t degree) {
          at::Tensor doubled = at::add(x, x);
          at::Tensor result = at::empty_like(x);
          const float* from = doubled.data_ptr<float>();
          float* to = result.data_ptr<float>();
          for (int64_t i = 0; i < x.numel(); i++) {
            float sum = 1.0f;
            for (int64_t power = 0; power < degree; power++) sum = sum * from[i] + 0.5f;
            to[i] = sum;
          }
          return result;
        }
        void spin(double seconds) {
          auto start = std::chrono::steady_clock::now();
          while (std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count()
                 < seconds) {}
        }
        TORCH_LIBRARY(flopprof_inline, m) {
          m.def("twice", &twice);
          m.def("horner(Tensor x, int degree) -> Tensor");
        }
        TORCH_LIBRARY_IMPL(flopprof_inline, CPU, m) { m.impl("horner", &horner); }
        PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) { m.def("spin", &spin); }
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of all workers: the first builds it, another waits
    folder = folder / "inline"
    folder.mkdir(exist_ok=True)
    if not (folder / "inline.cpp").exists():  # a newer one would be compiled again
        unfinished = folder / f"inline-{os.getpid()}.cpp"
        unfinished.write_text(source)
        unfinished.rename(folder / "inline.cpp")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load(
            "flopprof_inline",
            [str(folder / "inline.cpp")],
            extra_cflags=["-O0"],
            build_directory=str(folder),
        )


@pytest.mark.slow
def test_a_cpp_op_is_an_extension_and_a_pybind11_function_is_hidden(extension):
    parts = {
        "cpp": planted.Calls(lambda m, x: torch.ops.flopprof_inline.twice(x)),
        "pybind": planted.Calls(lambda m, x: extension.spin(0.05) or x.view(-1)),
    }

    sites = judge(planted.Many({name: (p, (torch.ones(8),)) for name, p in parts.items()}))

    assert "extension" in verdicts(sites, "cpp").values()
    assert set(verdicts(sites, "pybind").values()) == {"hidden", "free"}


@pytest.mark.slow
def test_what_a_cpp_op_executes_is_measured_and_raises_what_is_known(extension, tmp_path):
    try:
        check_can_step()
    except UsageError as error:
        pytest.skip(f"calls cannot be stepped: {error.problem}")
    polynomial = planted.Calls(lambda m, x: torch.ops.flopprof_inline.horner(x, 10))
    other = planted.Calls(lambda m, x: torch.ops.flopprof_inline.horner(x, 3))
    wrapper = planted.Calls(lambda m, x: torch.ops.flopprof_inline.twice(x))
    model = nn.Sequential(polynomial, polynomial, other, wrapper, nn.Linear(8, 4))

    run = verify_by_stepping(model, Settings(input="16x8"))

    sites = run.sites[run.sites["verdict"] == "extension"].set_index(["op", "module_path"])
    executed = sites["executed_flops"].to_dict()
    # 16·8 elements × 10 steps × (product + sum), in C++; the sum around it is aten::add's own.
    assert sites["calls"]["flopprof_inline::horner", "0"] == 2
    assert executed["flopprof_inline::horner", "0"] == 2 * 2560
    assert executed["flopprof_inline::horner", "2"] == 16 * 8 * 3 * 2
    assert executed["flopprof_inline::twice", "3"] == 0  # it only calls aten::add
    assert sites["flops"].isna().all()
    assert set(sites["executed_source"]) == {"stepping"}
    assert run.measured is not None
    assert run.measured.flops == 5120 + 768
    share = sites["time_us"].sum() / run.sites["time_us"].sum()
    assert run.measured.coverage_frac == pytest.approx(share)
    assert run.totals.coverage_frac + run.measured.coverage_frac <= 1.0001
    assert run.sites["flops"].sum() == run.totals.flops  # of what was counted, as before
    saved = Run.load(run.save(tmp_path / "run.flopprof"))
    assert "measured, and in no count" in " ".join(saved.report("text").split())
    assert saved.provenance.executed is not None
    assert saved.provenance.executed.source == "stepping"


SHAPES = {"Input Dims": [[64, 32], [32, 16]], "Input type": ["float", "float"]}


@pytest.mark.parametrize(
    ("name", "shapes", "verdict"),
    [
        ("aten::mm", SHAPES, "formula_only"),
        ("aten::view", SHAPES, "free"),
        ("aten::no_such_op", SHAPES, "unknown"),
        ("aten::_transformer_encoder_layer_fwd_of_mine", SHAPES, "unknown"),
        ("mylib::gemm", SHAPES, "extension"),
        ("triton_my_own_kernel", SHAPES, "extension"),
        ("triton_poi_fused_add_relu_0", {}, "fused"),
        ("triton_red_fused_native_layer_norm_3", {}, "fused"),
        ("graph_0_cpp_fused_add_1", {}, "fused"),
    ],
)
def test_an_op_of_a_gpu_trace_has_its_verdict(tmp_path, name, shapes, verdict):
    trace = write_trace(
        tmp_path / "trace.json",
        with_shapes(op(name, 0, 100), shapes),
        launch(1, 10),
        kernel(1, 20, 50),
    )

    sites = analyse_traces(trace).sites

    assert dict(zip(sites["op"], sites["verdict"], strict=True)) == {name: verdict}


@pytest.mark.parametrize(
    ("graph", "reason"),
    [(0, "its launch is not in the trace"), (7, "replay of graph 7")],
    ids=["lost", "graph"],
)
def test_kernels_of_no_op_are_hidden(tmp_path, graph, reason):
    lost = kernel(9, 200, 50)
    if graph:
        lost["args"]["graph id"] = graph
    trace = write_trace(
        tmp_path / "trace.json",
        with_shapes(op("aten::mm", 0, 100), SHAPES),
        launch(1, 10),
        kernel(1, 20, 50),
        lost,
    )

    run = analyse_traces(trace)

    [hidden] = run.sites[run.sites["verdict"] == "hidden"].itertuples()
    assert reason in hidden.reason
    assert run.totals.coverage_frac == 0.5


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="AOTInductor needs a compiler")
def test_a_program_by_aotinductor_is_opaque_and_never_zero(tmp_path):
    net, x = nn.Sequential(nn.Linear(8, 4), nn.ReLU()).eval(), torch.ones(2, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(net, (x,))
        file = torch._inductor.aoti_compile_and_package(
            program, package_path=str(tmp_path / "net.pt2")
        )
        package = torch._inductor.aoti_load_package(file)
    run_it = type(package).__call__
    model = nn.Sequential(planted.Calls(lambda m, x: package(x)), nn.Linear(4, 4))

    run = flopprof.profile(model, (x,), repeats=1, warmup=1, ceilings=False)

    [site] = run.sites[run.sites["verdict"] == "opaque"].itertuples()
    assert (site.op, site.flops != site.flops) == ("inductor::aot_compiled", True)
    assert run.totals.flops == 2 * 2 * 4 * 4 + 2 * 4  # the last layer's alone
    assert run.totals.coverage_frac < 1
    assert type(package).__call__ is run_it


def test_fused_optimizers_are_fused_and_counted():
    def adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, fused=True)

    run = flopprof.profile(
        nn.Linear(3, 2),
        (torch.ones(1, 3),),
        train=Training(optimizer=adam),
        repeats=1,
        warmup=1,
        ceilings=False,
    )

    [step] = run.sites[run.sites["op"] == "aten::_fused_adam_"].itertuples()
    assert step.verdict == "fused"
    assert step.flops == 13 * (3 * 2 + 2)
