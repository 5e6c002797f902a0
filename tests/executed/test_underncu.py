"""Running below Nsight Compute: which counters, which command, what is missing, what goes wrong."""

import json
from pathlib import Path

import pytest

from flopprof.cli import main
from flopprof.errors import LoadError, UsageError
from flopprof.executed.read import read_counters
from flopprof.executed.underncu import (
    available_metrics,
    check_there,
    ncu_command,
    run_under_ncu,
    wanted_metrics,
)
from tests.executed.sheets import counts, long_text, wide_text

# Answers as ncu does; what it was called with goes to a file beside it.
FAKE = """#!/bin/sh
here=$(/usr/bin/dirname "$0")
case "$1" in
--query-metrics)
    printf 'Device NVIDIA\\n\\ndram__bytes_read  bytes  # read\\ngpu__time_duration  ns\\n' ;;
--import) /bin/cat "$here/answer.csv" ;;
*)
    printf '%s\\n' "$@" > "$here/arguments.txt"
    SAYS
    for argument in "$@"; do
        [ "$last" = --export ] && printf NVR > "$argument"
        last=$argument
    done ;;
esac
"""


NET = "from torch import nn\n\ndef build():\n    return nn.Linear(2, 3)\n"

# Runs what it is to profile, after writing the report.
RUNS = """
while [ "$1" != --export ]; do shift; done
printf NVR > "$2"
shift 2
exec "$@"
"""


@pytest.fixture
def ncu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "ncu"
    write(path)
    (tmp_path / "answer.csv").write_text(long_text(counts(add=1, mul=2, fma=3)))
    monkeypatch.setenv("PATH", str(tmp_path))
    return path


def write(path: Path, says: str = ":") -> None:
    path.write_text(FAKE.replace("SAYS", says))
    path.chmod(0o755)


def test_a_report_is_written_and_read_by_the_same_ncu(ncu, tmp_path):
    report = run_under_ncu(str(ncu), "sm_90", tmp_path, ["python", "-c", "pass"])

    arguments = (tmp_path / "arguments.txt").read_text().split("\n")
    assert arguments[arguments.index("--profile-from-start") + 1] == "off"
    assert arguments[arguments.index("--replay-mode") + 1] == "kernel"
    assert "--nvtx" in arguments
    # Of those wanted, what this ncu knows; always time and cycles.
    metrics = arguments[arguments.index("--metrics") + 1].split(",")
    assert metrics == ["dram__bytes_read.sum", "gpu__time_duration.sum", "sm__cycles_elapsed.avg"]
    assert arguments[-4:-1] == ["python", "-c", "pass"]
    assert [*read_counters(report)["executed_vector_flops"]] == [9]  # 1 + 2 + 2·3


def test_counters_are_parents_where_there_are_any():
    hopper = wanted_metrics("sm_90")
    ampere = wanted_metrics("sm_80")

    assert "sm__ops_path_tensor_src_bf16_dst_fp32" in hopper
    assert not [name for name in hopper if "op_hgmma" in name]
    assert "sm__ops_path_tensor_src_bf16_dst_fp32_sparsity_off" in ampere
    for names in (hopper, ampere):
        assert "smsp__sass_thread_inst_executed_op_dfma_pred_on" in names
        assert "lts__t_bytes" in names
        assert len(names) == len(set(names))
    assert "smsp__sass_thread_inst_executed_op_ffma2_pred_on" in wanted_metrics("sm_100")
    assert "smsp__sass_thread_inst_executed_op_ffma2_pred_on" not in hopper


def test_an_ncu_that_does_not_answer_knows_no_metrics(tmp_path):
    assert available_metrics(str(tmp_path / "none")) == set()


def test_the_command_ends_with_what_is_profiled(tmp_path):
    command = ncu_command("ncu", ["a__b"], tmp_path / "r.ncu-rep", ["python", "x y.py"])

    assert command[0] == "ncu"
    assert command[-2:] == ["python", "x y.py"]
    assert "a__b.sum,gpu__time_duration.sum,sm__cycles_elapsed.avg" in command


@pytest.mark.parametrize(
    ("says", "problem", "remedy"),
    [
        ("echo '==ERROR== ERR_NVGPUCTRPERM - no permission'; exit 1", "refused access", "CAP_SYS"),
        ("echo '==ERROR== No kernels were profiled.'; exit 0", "No kernels were profiled", "try"),
        ("echo 'flopprof: the model raised'; exit 6", "the model raised", "try it by hand"),
        ("exit 9", "exit code 9", "--metrics"),
    ],
)
def test_what_goes_wrong_below_ncu_is_told(ncu, tmp_path, says, problem, remedy):
    write(ncu, says)

    with pytest.raises(LoadError, match=problem) as caught:
        run_under_ncu(str(ncu), "sm_80", tmp_path, ["python"])
    assert remedy in caught.value.remedy


def test_all_that_is_missing_is_told_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(UsageError, match=r"no ncu .*; no GPU of this name") as caught:
        check_there("no GPU of this name")
    assert "--counters" in caught.value.remedy


def test_a_gpu_that_is_missing_is_told_where_ncu_is_there(ncu):
    with pytest.raises(UsageError, match="cannot be read here: there is none"):
        check_there("there is none")
    assert check_there("") == str(ncu)


def test_the_command_says_what_is_missing_for_a_model(tmp_path, monkeypatch, capsys):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "net.py").write_text(NET)
    arguments = ["verify", "net.py:build", "--input", "1x2", "--device", "cuda", "--json"]

    assert main(arguments) == 2

    error = json.loads(capsys.readouterr().out)["error"]
    assert "no ncu" in error["problem"]
    assert "CUDA" in error["problem"] or "cuda" in error["problem"]


def test_nothing_here_counts_what_a_cpu_executes_without_counters(capsys):
    assert main(["verify", "torchvision:resnet18", "net", "--device", "cpu"]) == 2
    assert "2 were named" in capsys.readouterr().err


def test_a_model_is_called_below_ncu_and_its_launches_are_joined(ncu, tmp_path, monkeypatch):
    import flopprof
    from flopprof.settings import Settings
    from flopprof.verified import verify_under_ncu

    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    write(ncu, RUNS)
    settings = Settings.of(
        {"device": "cpu", "input": ["4x2"], "ceilings": False, "repeats": 1, "traces": 1}
    )
    ops = flopprof.profile(
        "net.py:build", device="cpu", input=["4x2"], ceilings=False, repeats=1, traces=1
    ).ops
    addmm = int(ops.loc[ops["op"] == "aten::addmm", "op_id"].iloc[0])
    row = {"kernel": "gemm", "range": f"flopprof#{addmm}#aten.addmm.default"}
    row |= {"sm__ops_path_tensor_src_tf32_dst_fp32.sum": "96"}
    (tmp_path / "answer.csv").write_text(wide_text([row]))
    arguments = ["verify", "net.py:build", "--input", "4x2", "--device", "cpu"]

    run = verify_under_ncu("net.py:build", settings, arguments)

    assert (tmp_path / "arguments.txt").read_text().split()[-2] == "--ranges"
    assert [*run.launches["joined_by"]] == ["nvtx"]
    # 2·4·2·3 = 48 counted, 96 executed: half of it is useful. The op lies in a linear's site.
    site = run.sites[run.sites["executed_matmul_flops"] == 96]
    assert [*site["useful_frac"]] == [0.5]
