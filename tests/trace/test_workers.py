"""Ranks by other processes, on a cluster, out of storage: the run is the same, whoever reads."""

import json
import os
import pickle
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flopprof.api import analyse_traces
from flopprof.cli import main
from flopprof.errors import LoadError, UsageError
from flopprof.run import Run
from flopprof.tables import is_same
from flopprof.trace.workers import Workers, read_all
from tests.events import ADDMM, kernel, launch, op, with_shapes, write_trace

TABLES = ("sites", "op_sums", "kernel_sums")


def silent(_stage: str) -> None:
    pass


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return the traces of four ranks of a job of six, of other lengths each."""
    folder = tmp_path_factory.mktemp("ranks")
    files = []
    for rank in range(4):
        events = [
            op("ProfilerStep#7", 0, 50) | {"cat": "user_annotation"},
            with_shapes(op("aten::addmm", 1, 9), ADDMM),
            launch(1, 2),
            kernel(1, 20, 4.1 + rank / 3),
            launch(2, 30),
            kernel(2, 40, 2, name="ncclDevKernel_AllReduce"),
        ]
        job = {"rank": rank, "world_size": 6}
        path = folder / f"rank{rank}.json"
        files.append(write_trace(path, *events, distributedInfo=job))
    return files


@pytest.fixture(scope="module")
def alone(ranks: list[Path]) -> Run:
    return analyse_traces(ranks)


def assert_same(one: Run, other: Run) -> None:
    for name in TABLES:
        assert is_same(getattr(one, name), getattr(other, name))
    # As text: a NaN that another process sent is not equal to itself.
    assert repr(one.provenance.ranks) == repr(other.provenance.ranks)  # type: ignore[union-attr]
    assert one.provenance.steps == other.provenance.steps  # type: ignore[union-attr]


def test_ranks_read_by_processes_give_the_same_run(ranks, alone):
    assert_same(analyse_traces(ranks, workers=2), alone)


def test_a_pattern_stands_for_the_files_that_it_matches(ranks, alone):
    assert_same(analyse_traces(str(ranks[0].with_name("rank*.json"))), alone)
    with pytest.raises(UsageError, match="no file matches"):
        analyse_traces(str(ranks[0].with_name("no*.json")))


def test_sites_of_all_ranks_together_have_no_column_of_ranks(alone, tmp_path):
    assert "rank" not in alone.sites


def test_nothing_is_said_of_devices_where_ranks_have_no_kernels(tmp_path):
    steps = [with_shapes(op("aten::addmm", 1, 9), ADDMM), op("ProfilerStep#7", 0, 50)]
    files = [write_trace(tmp_path / f"rank{rank}.json", *steps) for rank in range(2)]

    text = analyse_traces(files).report("text")

    assert "busy" not in text
    assert "\u2013 of them" not in text


def test_ranks_without_a_trace_are_named(alone):
    assert alone.provenance.trace.missing_ranks == (4, 5)
    assert "2 of 6 ranks: 4, 5" in alone.report("text")


def test_the_command_takes_a_pattern_and_workers(ranks, capsys, tmp_path):
    pattern = str(ranks[0].with_name("rank[01].json"))

    code = main(["trace", pattern, "--workers", "1", "-o", str(tmp_path / "job"), "--json"])

    assert code == 0
    assert [rank["rank"] for rank in json.loads(capsys.readouterr().out)["ranks"]] == [0, 1]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_damaged_rank_is_a_row_with_its_reason(ranks, tmp_path, workers):
    bad = tmp_path / "rank5.json"
    bad.write_text('{"traceEvents": [')

    run = analyse_traces([ranks[0], bad, ranks[1]], workers=workers)

    faults = {rank.rank: rank.fault for rank in run.provenance.ranks}  # type: ignore[union-attr]
    assert faults.keys() == {0, 1, 5}
    assert faults[0] is None
    assert "no event of it is whole" in str(faults[5])
    assert run.sites["matmul_flops"].sum() == 2 * 240  # of two ranks, 240 each


def test_where_no_rank_can_be_read_the_first_says_why(tmp_path):
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for file in files:
        file.write_text('{"traceEvents": [')

    with pytest.raises(LoadError, match=r"a\.json"):
        analyse_traces(files)


def test_a_file_that_is_not_there_is_a_usage_error(ranks, tmp_path):
    with pytest.raises(UsageError):
        analyse_traces([*ranks, tmp_path / "rank9.json"])


@pytest.mark.parametrize("error", [LoadError("a", remedy="b"), UsageError("c", remedy="d")])
def test_errors_come_whole_from_other_processes(error):
    again = pickle.loads(pickle.dumps(error))

    assert (type(again), again.problem, again.remedy) == (type(error), error.problem, error.remedy)


def dies_elsewhere(place: int, file: str | Path) -> str:
    """Stand for a task whose process the system kills."""
    if os.getpid() != int(os.environ["FLOPPROF_TEST_PARENT"]):
        os.kill(os.getpid(), signal.SIGKILL)
    return f"{place}{file}"


def test_what_a_killed_process_left_is_read_here(monkeypatch):
    monkeypatch.setenv("FLOPPROF_TEST_PARENT", str(os.getpid()))
    files = [Path(name) for name in "abcdef"]

    read = read_all(dies_elsewhere, "".join, files, Workers(processes=2), silent)

    assert read == "0a1b2c3d4e5f"


def in_brackets(parts: list[str]) -> str:
    return f"[{''.join(parts)}]"


def name_of(_place: int, file: str | Path) -> str:
    return str(file)


def test_results_are_merged_by_eights_and_what_is_left_at_the_end():
    files = [Path(name) for name in "abcdefghijklmnopqr"]

    merged = read_all(name_of, in_brackets, files, Workers(), silent)

    assert merged == "[[abcdefgh][ijklmnop]qr]"  # 18 files: two eights and two


def test_no_workers_are_refused(ranks):
    with pytest.raises(UsageError, match="--workers is 0"):
        analyse_traces(ranks, workers=0)


# A cluster.


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from distributed import LocalCluster

    options: dict[str, Any] = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(**options) as cluster:
        yield cluster


def test_a_cluster_that_loses_a_worker_gives_the_same_run(cluster, ranks, alone):
    killed = []

    def kill_one(stage: str) -> None:
        if "(2 of" in stage:
            worker = next(iter(cluster.workers.values()))
            killed.append(worker.pid)
            os.kill(worker.pid, signal.SIGKILL)

    run = analyse_traces(ranks, workers=Workers(dask=cluster.scheduler_address), progress=kill_one)

    assert len(killed) == 1
    assert_same(run, alone)


def test_a_scheduler_that_does_not_answer_is_a_usage_error(ranks, monkeypatch):
    monkeypatch.setattr("flopprof.trace.workers._CONNECT_S", 0.2)

    with pytest.raises(UsageError, match="no Dask scheduler answers at tcp://127"):
        analyse_traces(ranks, workers=Workers(dask="tcp://127.0.0.1:1"))


# Storage.


@pytest.fixture
def memory(ranks: list[Path]) -> Iterator[str]:
    """Put the ranks into fsspec's memory, and return their pattern."""
    import fsspec

    files = fsspec.filesystem("memory")
    for rank in ranks:
        files.pipe(f"/job/{rank.name}", rank.read_bytes())
    yield "memory://job/rank*.json"
    files.rm("/job", recursive=True)


def test_ranks_are_read_out_of_storage(memory, alone):
    run = analyse_traces(memory)

    for name in TABLES:
        assert is_same(getattr(run, name), getattr(alone, name))
    assert run.provenance.ranks[0].file == "memory:///job/rank0.json"  # type: ignore[union-attr]


def test_a_file_by_its_address_is_that_file(ranks, alone):
    run = analyse_traces([f"file://{rank}" for rank in ranks])

    assert is_same(run.sites, alone.sites)


def test_what_is_not_in_storage_is_told_by_its_address(memory):
    with pytest.raises(LoadError, match=r"memory://job/none\.json cannot be read"):
        analyse_traces("memory://job/none.json")
    with pytest.raises(UsageError, match="no file matches"):
        analyse_traces("memory://job/none*.json")
    with pytest.raises(UsageError, match="cannot be read"):
        analyse_traces("nowhere://job/none.json")


def test_without_fsspec_an_address_names_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "fsspec.core", None)

    with pytest.raises(UsageError) as caught:
        analyse_traces("s3://bucket/rank0.json")

    assert "pip install 'flopprof[remote]'" in caught.value.remedy
