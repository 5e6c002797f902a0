"""Ranks of a job as sums: what they add up to is what their tables would."""

from pathlib import Path
from typing import Any

import pytest

from flopprof.api import analyse_traces
from flopprof.report.job import job
from flopprof.run import Run
from tests.events import ADDMM, kernel, launch, op, with_shapes, write_trace

MATMUL = 240  # [4,5] @ [5,6]: 4·6 outputs of 5 multiply-adds
BIAS = 24  # 4·6 additions


def ranges(name: str, ts: float, dur: float) -> dict[str, Any]:
    return op(f"flopprof:{name}", ts, dur) | {"cat": "user_annotation"}


def write_rank(
    folder: Path, rank: int, *, compute_us: float, products: int = 1, on_gpu: bool = True
) -> Path:
    """Write a rank: products in the module `a`, one in `b` on rank 0 alone, and a lost kernel."""
    events = []
    for number in range(products):
        at = 100 * number
        events += [ranges("a", at, 20), with_shapes(op("aten::addmm", at + 1, 9), ADDMM)]
        if on_gpu:
            events += [launch(number + 1, at + 2), kernel(number + 1, at + 30, compute_us)]
    if rank == 0:
        events += [ranges("b", 5000, 20), with_shapes(op("aten::addmm", 5001, 9), ADDMM)]
        if on_gpu:
            events += [launch(90, 5002), kernel(90, 5030, 7)]
    if on_gpu:
        events.append(kernel(99, 6000, 3, name="lost"))
    job_facts = {"rank": rank, "world_size": 3}
    return write_trace(folder / f"rank{rank}.json", *events, distributedInfo=job_facts)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("sums")
    sizes = [(10, 1), (10, 2), (40, 1)]  # a product's time, and how many there are
    files = [
        write_rank(folder, rank, compute_us=compute_us, products=products)
        for rank, (compute_us, products) in enumerate(sizes)
    ]
    return analyse_traces(files)


def test_a_site_is_the_sum_over_the_ranks(run):
    sites = run.sites.set_index(["op", "module_path"])

    in_a = sites.loc[("aten::addmm", "a")]
    assert (in_a["calls"], in_a["flops"]) == (4, 4 * (MATMUL + BIAS))
    assert in_a["time_us"] == 10 + 2 * 10 + 40
    assert in_a["samples"] == 1
    in_b = sites.loc[("aten::addmm", "b")]
    assert (in_b["calls"], in_b["time_us"]) == (1, 7)
    lost = sites.loc[("(kernels)", "")]
    assert (lost["calls"], lost["time_us"], lost["input_shapes"]) == (3, 9, "lost")


def test_ops_and_kernels_are_kept_as_sums(run):
    assert len(run.ops) == len(run.kernels) == 0

    (row,) = run.op_sums.itertuples(index=False)
    assert (row.op, row.calls, row.counted_calls) == ("aten::addmm", 5, 5)
    assert (row.matmul_flops, row.time_us) == (5 * MATMUL, 70 + 7)
    kernels = run.kernel_sums.set_index(["site_id", "kernel"])
    site_of = run.sites.set_index(["op", "module_path"])["site_id"]
    in_a = kernels.loc[(site_of["aten::addmm", "a"], "gemm")]
    assert (in_a["calls"], in_a["time_us"]) == (4, 70)
    assert kernels.loc[(-1, "lost"), "calls"] == 3


def test_modules_have_the_rank_on_which_they_take_longest(run):
    facts = job(run)

    assert facts is not None
    rows = {row.module_path: row for row in facts.modules}
    # 10, 20 and 40 µs: 70 / 3 on the mean. The module `b` is on one rank: nothing to compare with.
    assert rows["a"].mean_us == pytest.approx(70 / 3)
    assert (rows["a"].longest_us, rows["a"].longest_rank, rows["a"].ranks) == (40, 2, 3)
    assert rows["a"].imbalance_frac == pytest.approx(40 / (70 / 3) - 1)
    assert "b" not in rows


def test_a_job_is_the_same_after_saving(run, tmp_path):
    again = Run.load(run.save(tmp_path / "job.flopprof"))

    assert again.equals(run)
    assert again.has_kernels
    assert again.report("json") == run.report("json")


def test_a_rank_without_kernels_takes_no_time_beside_ranks_with_some(tmp_path):
    files = [
        write_rank(tmp_path, 0, compute_us=10),
        write_rank(tmp_path, 1, compute_us=10, on_gpu=False),
    ]

    run = analyse_traces(files)

    timed = run.sites[run.sites["op"] == "aten::addmm"]
    assert timed["time_us"].sum() == 10 + 7  # of rank 0
    assert timed["calls"].sum() == 3  # of both; those without a kernel are a site of their own
    assert any("without a time here" in text for text in run.provenance.warning_texts)


def test_ranks_of_a_cpu_have_times_of_the_host(tmp_path):
    files = [write_rank(tmp_path, rank, compute_us=0, on_gpu=False) for rank in (0, 1)]

    run = analyse_traces(files)

    assert not run.has_kernels
    assert run.sites["time_us"].sum() == 3 * 9  # three products of 9 µs
    (warning,) = (text for text in run.provenance.warning_texts if "no kernels" in text)
    assert "rank0.json and 1 more hold no kernels" in warning


def test_traces_of_two_jobs_are_told(tmp_path):
    one = write_rank(tmp_path, 0, compute_us=10)
    (tmp_path / "other").mkdir()
    other = write_trace(
        tmp_path / "other" / "rank1.json",
        with_shapes(op("aten::addmm", 1, 9), ADDMM),
        distributedInfo={"rank": 1, "world_size": 64},
    )

    run = analyse_traces([one, other])

    (warning,) = (text for text in run.provenance.warning_texts if "different sizes" in text)
    assert "of 3, " in warning
    assert "of 64 ranks; analyse each job on its own" in warning
