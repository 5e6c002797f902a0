"""`profile(…, compile=…)`: eager counts, compiled times. Each test calls the C++ compiler."""

import json
import math
import shutil
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

import flopprof
from flopprof.capture.compiled import kernels_of
from flopprof.errors import UsageError
from flopprof.provenance import GeneratedKernel
from tests.builders import called, compiled, make_run

needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="Inductor needs g++")


class Cut(nn.Module):
    """Two graphs: a product and elementwise work, then a layer norm."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, x):
        x = torch.relu(self.linear(x)) * 2 + 1
        torch._dynamo.graph_break()
        return self.norm(x)


@pytest.mark.slow
@needs_compiler
def test_a_compiled_run_has_eager_counts_compiled_times_and_what_was_fused():
    model, x = Cut().eval(), torch.ones(4, 8)

    run = flopprof.profile(model, (x,), compile=True, repeats=2, warmup=1, ceilings=False)

    # 4 rows × 8 outputs × 8 multiply-adds × 2; bias, relu, mul, add: 32 each; layer norm 7 × 32.
    assert (run.totals.matmul_flops, run.totals.vector_flops) == (512, 4 * 32 + 7 * 32)
    facts = compiled(run)
    assert facts.graphs == 2
    [(why, times)] = facts.graph_breaks.items()
    assert "graph_break" in why
    assert times == 1
    fused = {tuple(sorted(kernel.fuses)) for kernel in facts.kernels}
    assert fused == {("add", "mul", "relu"), ("native_layer_norm",)}
    assert facts.extern_matmul_flops == 512
    assert 0 < facts.min_bytes < facts.eager_min_bytes
    assert run.totals.wall_us == called(run).timing.wall_us.median
    text = run.report()
    assert "× as fast" in text
    assert "fuses add, mul, relu" in text
    assert json.loads(run.report("json"))["compiled"]["graphs"] == 2


@pytest.mark.slow
@needs_compiler
def test_measuring_a_compiled_model_compiles_it_once_and_leaves_the_users_own_alone():
    model, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU()).eval(), torch.ones(2, 8)
    graphs = []

    def count(graph, _inputs):
        graphs.append([node.name for node in graph.graph.nodes])
        return graph.forward

    users = torch.compile(model, backend=count)
    with torch.no_grad():
        users(x)

    runs = [
        flopprof.profile(model, (x,), compile=True, repeats=2, warmup=1, ceilings=False)
        for _ in range(2)
    ]

    with torch.no_grad():
        users(x)
    assert len(graphs) == 1
    for run in runs:
        assert compiled(run).graphs == 1
        assert compiled(run).recompilations == 0
        assert compiled(run).graph_breaks == {}
    assert runs[0].totals.flops == runs[1].totals.flops


def test_what_is_refused_leaves_the_compiler_compiling():
    graphs = []

    def count(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    users = torch.compile(nn.Linear(2, 2), backend=count)
    read_once = (row for row in torch.ones(1, 2))
    with pytest.raises(UsageError, match="can be read once"):
        flopprof.count_flops(nn.Linear(2, 2), (read_once,))

    users(torch.ones(1, 2))

    assert len(graphs) == 1


def test_there_is_no_such_mode_and_a_compiled_model_is_not_compiled_again():
    model = nn.Linear(2, 2)

    with pytest.raises(UsageError, match="no mode 'fastest'"):
        flopprof.profile(model, (1, 2), compile="fastest", ceilings=False)
    compiled: Any = torch.compile(model)
    with pytest.raises(UsageError, match="compiled already"):
        flopprof.profile(compiled, (1, 2), compile=True, ceilings=False)


def test_names_of_generated_kernels_are_read_on_a_gpu_too():
    names = [
        "triton_poi_fused_add_native_layer_norm_3",
        "ampere_sgemm_128x64_tn",
        "my_triton_fused",
    ]
    kernels = pd.DataFrame({"kernel": [*names, names[0]], "duration_us": [1.0, 2.0, 3.0, 4.0]})

    [found] = kernels_of(pd.DataFrame({"op": [], "cpu_us": []}), kernels)

    assert found == GeneratedKernel(
        kernel=names[0], calls=2, time_us=5.0, fuses=("add", "native_layer_norm")
    )


def test_bytes_that_are_not_known_are_not_said_to_be_saved():
    wall = {"median": 10.0, "p5": 10.0, "p95": 10.0}
    compiled = {"mode": "default", "wall_us": wall, "kernels": [], "graph_breaks": {},
                "extern_calls": 0, "min_bytes": math.nan, "eager_min_bytes": 5.0,
                "saved_bytes": math.nan}  # fmt: skip

    text = make_run(compiled=compiled, eager_wall_us=wall).report()

    assert "– compiled: – saved" in " ".join(text.split())
