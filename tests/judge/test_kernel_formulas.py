"""Kernels that no op launched, and formulas for them by name."""

import math

import pytest

import flopprof
from flopprof.assemble import as_call
from flopprof.formulas import Work
from flopprof.formulas.kernels import KERNEL_FORMULAS
from flopprof.judge.reconcile import reconcile
from flopprof.tables import MODULE_CALLS, ROOFLINES
from flopprof.totals import add_up
from flopprof.trace.read import read_trace
from tests.events import kernel, op, write_trace


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(KERNEL_FORMULAS, "_items", {})


def sites_of(folder, *names):
    launches = [kernel(9 + n, 20 + 10 * n, 5, name) for n, name in enumerate(names)]
    trace = read_trace(write_trace(folder / "t.json", op("aten::empty", 0, 1), *launches))
    return reconcile(
        MODULE_CALLS.empty(), [as_call(trace)], ROOFLINES.empty(),
        dtype="float32",
    ).sites.set_index("input_shapes")  # fmt: skip


def test_a_kernel_without_an_op_counts_by_the_users_formula(tmp_path, registered):
    @flopprof.kernel_formula("matmul_k")
    def matmul(call):
        return Work(matmul_flops=2 * 64**3, min_bytes=3 * 64 * 64 * 4)

    full = "void matmul_k<float>(float*, int)"
    sites = sites_of(tmp_path, "matmul_k", "matmul_k", full, "matmul_k2")

    # Two launches of 2 · 64³ multiply-add FLOPs by the name, one by the word in it.
    assert sites.loc["matmul_k", "matmul_flops"] == 2 * 2 * 64**3
    assert sites.loc[full, "flops"] == 2 * 64**3
    assert sites.loc["matmul_k", ["verdict", "flops_source"]].tolist() == ["extension", "user"]
    assert sites.loc["matmul_k2", "verdict"] == "hidden"
    assert add_up(sites, math.nan).matmul_flops == 3 * 2 * 64**3


def test_bounds_of_a_kernels_formula_enter_and_its_errors_are_told_of(tmp_path, registered):
    @flopprof.kernel_formula("between")
    def between(call):
        return Work(vector_flops=10, flops_at_most=30)

    @flopprof.kernel_formula("broken")
    def broken(call):
        raise KeyError("no such size")

    bounded = sites_of(tmp_path, "between", "between")
    failing = sites_of(tmp_path, "broken")

    totals = add_up(bounded, math.nan)
    assert (totals.flops, totals.flops_at_most) == (20, 60)
    assert failing.loc["broken", "verdict"] == "hidden"
    assert "its formula raised KeyError: 'no such size'" in failing.loc["broken", "reason"]
