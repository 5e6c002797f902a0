"""What a job is asked: steps, ranks, collectives, each against a calculation by hand."""

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flopprof.api import analyse_traces
from flopprof.jobfacts import Rank, Step
from flopprof.provenance import plain
from flopprof.report.job import Job, apart, bus_factor, job
from flopprof.run import Run
from flopprof.trace.messages import collective_kind
from tests.events import ADDMM, kernel, launch, op, with_shapes, write_trace


def collective(correlation: int, ts: float, dur: float, name: str, **args: Any) -> dict[str, Any]:
    event = kernel(correlation, ts, dur, name=name)
    return event | {"args": event["args"] | args}


def message(name: str, count_in: int, count_out: int) -> dict[str, Any]:
    """Return what PyTorch says of a collective of four ranks."""
    return {
        "Collective name": name,
        "In msg nelems": count_in,
        "Out msg nelems": count_out,
        "dtype": "BFloat16",
        "Process Group Name": "dp<b>",
        "Group size": 4,
    }


def write_rank(folder: Path, rank: int) -> Path:
    """Write a rank: a step of 200 µs (rank 1: 230), a product of 20 µs, two collectives.

    The first, at 30 to 50 µs, has the product's second half beside it; the second has nothing.
    """
    reduced = message("allreduce", 1000, 1000)
    gathered = message("_allgather_base", 250, 1000)
    events = [
        op("ProfilerStep#7", 0, 230 if rank else 200) | {"cat": "user_annotation"},
        with_shapes(op("aten::addmm", 1, 9), ADDMM),
        launch(1, 2),
        kernel(1, 20, 20),
        collective(2, 30, 20, "ncclDevKernel_AllReduce_Sum_bf16", **reduced),
        collective(3, 100, 10, "ncclDevKernel_AllGather_RING_LL", **gathered),
        collective(4, 150, 4, "ncclDevKernel_AllGather_RING_LL"),
    ]
    job_facts = {"rank": rank, "world_size": 2}
    return write_trace(folder / f"rank{rank}.json", *events, distributedInfo=job_facts)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("job")
    return analyse_traces([write_rank(folder, 0), write_rank(folder, 1)])


@pytest.fixture(scope="module")
def facts(run: Run) -> Job:
    result = job(run)
    assert isinstance(result, Job)
    return result


def test_a_step_has_the_median_of_its_ranks_and_the_slowest(facts):
    (step,) = facts.steps

    assert (step.step, step.ranks, step.median_us) == ("7", 2, 215)  # of 200 and 230
    assert (step.slowest_rank, step.slowest_us) == (1, 230)
    assert step.longest_compute_us == 20
    assert step.slow_ranks == ()  # of two, neither is apart from the others


def test_exposed_communication_has_no_compute_of_its_rank_beside_it(facts):
    # 20 + 10 + 4 µs of collectives, of which the product (20 to 40) covers 30 to 40.
    # Kernels ran from 20 to 50, 100 to 110 and 150 to 154: 44 µs.
    for rank in facts.ranks:
        assert rank.communication_us == pytest.approx(34)
        assert rank.exposed_communication_us == pytest.approx(24)
        assert rank.exposed_frac == pytest.approx(24 / 44)
        assert rank.compute_us == 20
        # [4,5] @ [5,6] and its bias: 240 + 24 FLOPs in 20 µs.
        assert rank.achieved_flops_per_s == pytest.approx(264 / 20e-6)


def test_collectives_have_bandwidths_by_nccl_formulas(facts):
    rows = {(row.collective, row.process_group): row for row in facts.collectives}

    reduced = rows["all_reduce", "dp<b>"]
    assert (reduced.calls, reduced.time_us, reduced.group_size) == (2, 40, 4)
    assert reduced.message_bytes == 2000  # 1,000 of bfloat16
    assert reduced.algorithm_bytes_per_s == pytest.approx(1e8)  # 2,000 B / 20 µs
    assert reduced.bus_bytes_per_s == pytest.approx(1.5e8)  # × 2 · 3/4
    gathered = rows["all_gather", "dp<b>"]
    assert gathered.message_bytes == 2000  # what is gathered, not the 500 B that a rank gives
    assert gathered.bus_bytes_per_s == pytest.approx(1.5e8)  # 2,000 B / 10 µs × 3/4
    assert gathered.shortest_bus_bytes_per_s == pytest.approx(1.5e8)


def test_of_a_collective_without_arguments_the_kind_and_time_are_known(facts):
    (row,) = (row for row in facts.collectives if row.process_group is None)

    assert (row.collective, row.calls, row.time_us, row.group_size) == ("all_gather", 2, 8, None)
    assert math.isnan(row.message_bytes)
    assert math.isnan(row.bus_bytes_per_s)


@pytest.mark.parametrize(
    ("kind", "factor"),
    [
        ("all_reduce", 1.75),  # 2 · 7/8
        ("all_gather", 0.875),
        ("reduce_scatter", 0.875),
        ("all_to_all", 0.875),
        ("broadcast", 1.0),
        ("send", 1.0),
        ("barrier", math.nan),
        ("", math.nan),
    ],
)
def test_bus_factors_among_eight(kind, factor):
    assert bus_factor(kind, 8) == pytest.approx(factor, nan_ok=True)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("allreduce_coalesced", "all_reduce"),
        ("_reduce_scatter_base", "reduce_scatter"),
        ("all_gather_into_tensor_coalesced", "all_gather"),
        ("alltoall_base", "all_to_all"),
        ("all_to_allv", "all_to_all"),
        ("ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)", "send_recv"),
        ("ncclDevKernel_Reduce_Sum_f32_RING_LL", "reduce"),
        ("_broadcast_oop", "broadcast"),
        ("ncclDevKernel_Generic", ""),
    ],
)
def test_names_tell_the_collective(name, kind):
    assert collective_kind(name) == kind


@pytest.mark.parametrize(
    ("values", "keys"),
    [
        ([100, 100, 104.9], []),  # within 5 % of the median, 100
        ([100, 100, 105.1], [2]),
        ([100, 100, 94.9], [2]),
        # Median 103; 13, 9, 3, 3, 7 and 35 are the distances, median 8: 3 × 1.4826 × 8 = 35.58.
        ([90, 94, 100, 106, 110, 138.5], []),
        ([90, 94, 100, 106, 110, 138.7], [5]),
        ([100, 200], []),  # of two, neither
        ([100, 100, math.nan, 110], [3]),
        ([], []),
        ([0, 0, 0], []),
    ],
)
def test_what_is_apart_is_far_from_the_median_by_share_and_by_spread(values, keys):
    assert list(apart(dict(enumerate(values)))) == keys


def of_ranks(run: Run, busy_us: list[float], flops: list[float]) -> Run:
    """Return the run as one of ranks that were busy so long and did so many FLOPs."""
    ranks = [
        Rank(rank=n, file="f", device_busy_us=time, flops=count)
        for n, (time, count) in enumerate(zip(busy_us, flops, strict=True))
    ]
    steps = [Step(rank=n, step="1", duration_us=time) for n, time in enumerate(busy_us)]
    provenance = msgspec.structs.replace(run.provenance, ranks=tuple(ranks), steps=tuple(steps))
    return run.replaced(provenance=provenance)


def test_ranks_apart_in_compute_and_rate_are_named(run):
    # Rank 2 needs 110 µs for the same work; rank 3 is as long, with half the work.
    other = of_ranks(run, [100, 100, 110, 100], [1e6, 1e6, 1.1e6, 0.5e6])

    result = job(other)

    assert result is not None
    assert result.straggler_ranks == (2,)
    assert result.odd_rate_ranks == (3,)
    assert result.steps[0].slow_ranks == (2,)
    text = other.report("text")
    assert "rank 2: own compute took apart longer" in text
    assert "rank 3: FLOP/s are apart" in text


def test_one_rank_without_steps_and_collectives_is_no_job(tmp_path):
    alone = write_trace(tmp_path / "alone.json", with_shapes(op("aten::addmm", 1, 9), ADDMM))

    assert job(analyse_traces(alone)) is None


def test_a_rank_without_collectives_stands_beside_one_with_some(tmp_path):
    events = [with_shapes(op("aten::addmm", 1, 9), ADDMM), launch(1, 2), kernel(1, 20, 20)]
    plain_rank = write_trace(tmp_path / "plain.json", *events, distributedInfo={"rank": 1})

    result = job(analyse_traces([plain_rank, write_rank(tmp_path, 0)]))

    assert result is not None
    assert [row.calls for row in result.collectives] == [1, 1, 1]


def test_the_block_is_the_same_after_saving(run, facts, tmp_path):
    run.save(tmp_path / "job.flopprof")

    again = job(Run.load(tmp_path / "job.flopprof"))

    assert json.dumps(plain(again)) == json.dumps(plain(facts))


def test_the_page_has_a_map_of_steps_and_the_collectives(run):
    page = run.report("html")

    assert '<section id="job">' in page
    assert ">230 µs</td>" in page
    assert ">200 µs</td>" in page
    assert "dp&lt;b&gt;" in page
    assert "dp<b>" not in page
    assert ">150 MB/s</td>" in page


def test_two_ranks_of_an_h100_job_use_its_links(gpu_traces):
    files = [gpu_traces / f"h100_nanogpt_train_rank{n}.json.gz" for n in (0, 1)]

    result = job(analyse_traces(files))

    assert result is not None
    assert [step.step for step in result.steps] == ["10", "11", "12", "13"]
    longest = result.collectives[0]
    # 8 × 4,718,592 elements of 4 B. NVLink 4 gives a GPU 450 GB/s each way: a bus cannot pass that.
    assert (longest.collective, longest.message_bytes) == ("all_gather", 150_994_944)
    assert 200e9 < longest.shortest_bus_bytes_per_s < 450e9
