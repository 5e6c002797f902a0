"""Two processes share a model on the CPU: one run of both, FLOPs by their local shapes."""

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

import flopprof
from flopprof.cli import main
from flopprof.errors import UsageError
from flopprof.jobfacts import Parallel
from flopprof.provenance import CallProvenance
from flopprof.settings import Settings
from flopprof.tables import ROOFLINES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed"),
]
# Of nn.Sequential(Linear(64, 128), ReLU, Linear(128, 32)) on 8 rows:
FIRST = 2 * 8 * 64 * 128  # 131,072
SECOND = 2 * 8 * 128 * 32  # 65,536
FORWARD = FIRST + SECOND
STEP = FORWARD + FIRST + 2 * SECOND  # both weights' gradients, and the second layer's input's


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder in which two ranks left what they did."""
    folder = tmp_path_factory.mktemp("job")
    with ExitStack() as sockets:
        free = [sockets.enter_context(socket.socket()) for _ in range(3)]
        for one in free:
            one.bind(("127.0.0.1", 0))
        ports = [str(one.getsockname()[1]) for one in free]
    script = Path(__file__).with_name("two_ranks.py")
    ranks = []
    for rank in (0, 1):
        where = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        where |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
        ranks.append(
            subprocess.Popen(
                [sys.executable, str(script), str(folder), *ports],
                env=os.environ | where,
                cwd=folder,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    outcomes = [rank.communicate(timeout=300)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], outcomes[0] + outcomes[1]
    return folder


@pytest.fixture(scope="module")
def said(folder):
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def parallel_of(run: flopprof.Run) -> Parallel:
    assert isinstance(run.provenance, CallProvenance)
    assert run.provenance.parallel is not None
    return run.provenance.parallel


def by_rank(run: flopprof.Run, column: str = "matmul_flops") -> list[int]:
    return [int(n) for n in run.sites.groupby("rank")[column].sum()]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_each_rank_of_parallel_data_does_a_step_of_its_own(folder, strategy):
    run = flopprof.Run.load(folder / strategy)

    assert by_rank(run) == [STEP, STEP]
    assert run.totals.matmul_flops == 2 * STEP
    assert run.totals.coverage_calls_frac == 1
    assert parallel_of(run).strategy == strategy
    assert run.provenance.called.samples == 16  # 8 on each rank


def test_ddp_adds_up_the_gradients_once(folder):
    run = flopprof.Run.load(folder / "ddp")

    # All parameters in one bucket: 64·128 + 128 + 128·32 + 32 = 12,448 of 4 bytes, on both ranks.
    assert list(run.collectives["collective"]) == ["all_reduce", "all_reduce"]
    assert set(run.collectives["message_bytes"]) == {12_448 * 4.0}
    assert list(run.collectives["rank"]) == [0, 1]


def test_fsdp_gathers_twice_and_reduces_once(folder):
    run = flopprof.Run.load(folder / "fsdp")

    of_rank = run.collectives[run.collectives["rank"] == 1]
    # gloo has no reduce-scatter of its own: it reduces all. Each message is all 12,448 parameters.
    assert list(of_rank["collective"]) == ["all_gather", "all_gather", "all_reduce"]
    assert set(of_rank["message_bytes"]) == {12_448 * 4.0}
    assert set(run.sites.loc[run.sites["op"] == "c10d::_reduce_scatter_base_", "phase"]) == {
        "backward"
    }


def test_each_rank_of_tensor_parallelism_does_half(folder):
    run = flopprof.Run.load(folder / "tp")

    assert by_rank(run) == [FORWARD // 2, FORWARD // 2]
    assert parallel_of(run).shards == ("0: columns", "2: rows")
    # The sum of the second layer's outputs, 8·32 floats.
    assert set(run.collectives["message_bytes"]) == {8 * 32 * 4.0}
    assert run.provenance.called.samples == 8


def test_hooks_see_the_local_sizes_of_sharded_layers(folder):
    run = flopprof.Run.load(folder / "tp")

    products = run.sites[run.sites["matmul_flops"] > 0]
    assert len(products) == 4
    assert set(products["verdict"]) == {"agrees"}
    calls = run.module_calls.set_index(["rank", "module_path"])["self_hook_matmul_flops"]
    assert calls[(1, "0")] == FIRST // 2
    assert calls[(1, "2")] == SECOND // 2


def test_what_a_sharded_tensor_tries_on_shapes_alone_is_no_work(said):
    # Half of each layer; back both weights' gradients and the second input's. An optimizer's step
    # is 2 FLOPs for each of a rank's half of the 12,448 parameters.
    for of_rank in said:
        assert of_rank["first_count"] == 24 // 8 * FORWARD // 2
        assert of_rank["first_region"] == 40 // 8 * STEP // 2
        assert of_rank["first_step"] == [16 // 8 * STEP, 12_448]
        assert not {"unknown", "not_run"} & set(of_rank["first_verdicts"])


def test_attention_is_shared_by_heads(folder):
    run = flopprof.Run.load(folder / "blocks")

    # 16 rows through four products of 64x64 and two of 64x128, and attention of 4 heads of 16 over
    # 8 tokens of 2 examples: 2 · 2·(2·4·8·8·16); two blocks.
    block = 4 * 2 * 16 * 64 * 64 + 2 * 2 * 16 * 64 * 128 + 2 * 2 * 2 * 4 * 8 * 8 * 16
    assert by_rank(run) == [block, block]  # half of two blocks
    assert len(parallel_of(run).shards) == 2 * 6
    assert len(run.collectives) == 2 * 2 * 2  # after attention and after the feed-forward


def test_fsdp_gathers_each_block_on_its_own(folder):
    run = flopprof.Run.load(folder / "units")

    names = [text.partition(":")[0] for text in parallel_of(run).shards]
    assert sorted(names) == ["(model)", "0", "1"]
    assert set(run.sites["module_path"]) >= {"0.attention.q_proj", "1.down"}
    # 4·(64·64 + 64) + 2·64 + 64·128 + 128 + 128·64 + 64 = 33,344 parameters of a block.
    assert set(run.collectives["message_bytes"]) == {33_344 * 4.0}


def test_a_function_of_ones_own_shares_the_model(folder):
    run = flopprof.Run.load(folder / "own")

    assert run.totals.matmul_flops == 2 * FORWARD
    assert run.provenance.called.samples is None  # nothing says whether batches differ


def test_both_ranks_are_in_every_report(folder):
    run = flopprof.Run.load(folder / "ddp")

    text = run.report("text")
    assert "2 by ddp, sending with gloo" in text
    assert "rank 0: " in text
    assert "rank 1: " in text
    assert "all_reduce of 49.8 kB among 2: 2 calls" in text
    page = run.report("html")
    assert '<td data-label="rank">1</td>' in page
    answer = json.loads(run.report("json"))
    assert [rank["rank"] for rank in answer["ranks"]] == [0, 1]
    assert [rank["flops"] for rank in answer["ranks"]] == by_rank(run, "flops")
    assert answer["parallel"]["world_size"] == 2
    assert answer["job"]["collectives"][0]["group_size"] == 2
    rows = run.report("csv").splitlines()
    at = rows[0].split(",").index("rank")
    assert {row.split(",")[at] for row in rows[1:]} == {"0", "1"}
    assert "| rank |" in run.report("md")


def test_ids_of_all_ranks_lead_somewhere(folder):
    run = flopprof.Run.load(folder / "ddp")

    owned = run.ops[run.ops["site_id"] >= 0]
    site_ranks = run.sites["rank"].to_numpy()[owned["site_id"]]
    assert (site_ranks == owned["rank"]).all()
    parents = run.ops[run.ops["parent_op_id"] >= 0]
    assert (run.ops["rank"].to_numpy()[parents["parent_op_id"]] == parents["rank"]).all()
    assert run.sites["time_share_frac"].sum() == pytest.approx(1)


def test_utilisation_is_of_all_devices(folder):
    run = flopprof.Run.load(folder / "ddp")
    roof = {"dtype": "float32", "unit": "tensor", "memory_level": "DRAM", "kind": "user"}
    known = roof | {"peak_flops_per_s": 1e12, "peak_bytes_per_s": 1e11, "valid": True}
    of_one = run.replaced(rooflines=ROOFLINES.from_rows([known]))

    share = 2 * STEP / (run.provenance.wall_us / 1e6) / (2 * 1e12)
    assert of_one.figures.mfu_frac == pytest.approx(share)


def test_the_callers_model_is_left_alone(said):
    for rank in (0, 1):
        assert said[rank]["unchanged"]
        assert said[rank]["is_plain"]


def test_a_model_without_pairs_says_what_else_there_is(said):
    assert "tp finds nothing to share among 2 ranks" in said[0]["nothing_to_share"]


def test_the_command_writes_and_prints_on_rank_0_alone(folder, said):
    code, printed, _ = said[0]["command"]

    assert code == 0
    assert json.loads(printed)["matmul_flops"] == 2 * STEP
    assert flopprof.Run.load(folder / "cli").totals.matmul_flops == 2 * STEP
    assert said[1]["command"] == [0, "", ""]


def test_a_rank_that_raises_is_named_once_and_nothing_is_written(folder, said):
    code, printed, told = said[0]["unlucky"]

    assert code == 6
    assert printed == ""
    assert told.count("rank 1: the model raised while running on 2x4: ValueError: bad luck") == 1
    assert said[1]["unlucky"] == [6, "", ""]
    assert not [path.name for path in folder.iterdir() if "Unlucky" in path.name]


def test_without_torchrun_the_command_says_what_to_type(capsys, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)

    code = main(["run", "torchvision:resnet18", "--distributed", "fsdp"])

    assert code == 2
    told = capsys.readouterr().err
    assert "torchrun --nproc-per-node 2 -m flopprof run torchvision:resnet18 --distr" in told


def test_torchrun_without_sharing_is_refused(capsys, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")

    code = main(["run", "torchvision:resnet18"])

    assert code == 2
    assert "--distributed ddp, fsdp or tp" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"distributed": "pipeline"}, "knows no 'pipeline'"),
        ({"distributed": "ddp", "compile": True}, "--distributed and --compile"),
        ({"distributed": "tp", "prompt_len": 8}, "--distributed and --prompt-len"),
    ],
)
def test_what_ranks_cannot_share_is_refused(options, words):
    with pytest.raises(UsageError, match=words):
        Settings(**options)


def test_one_process_that_calls_profile_is_told(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)

    with pytest.raises(UsageError, match="needs several processes"):
        flopprof.profile(torch.nn.Linear(4, 4), torch.ones(2, 4), distributed="ddp")
