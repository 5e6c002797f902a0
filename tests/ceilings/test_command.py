import json
import subprocess
import sys

import pytest

import flopprof
from flopprof.ceilings.ceiling import MAIN, load_ceilings
from flopprof.cli import main

FILE = {
    "version": 1,
    "compute": [
        {"dtype": "float32", "unit": "tensor", "flops_per_s": 4e9},
        {"dtype": "float32", "unit": "vector", "flops_per_s": 2e9},
    ],
    "memory": [{"level": "DRAM", "bytes_per_s": 1e9}],
}


def test_a_gpu_by_name_prints_its_datasheet_and_needs_no_torch():
    code = (
        "import sys; from flopprof.cli import main\n"
        "code = main(['ceilings', '--gpu', 'NVIDIA A100-SXM4-80GB', '--dtypes', 'bf16'])\n"
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    name, _, heading, *rows = done.stdout.splitlines()
    assert name == "NVIDIA A100-SXM4-80GB"
    assert heading.split()[:3] == ["Ceiling", "Unit", "Value"]
    # NVIDIA's A100 80GB datasheet: 312 TFLOP/s of bf16, 2,039 GB/s; ridge 312 / 2.039 = 153.
    assert rows[-2].split()[:6] == ["bfloat16", "matmul", "312", "TFLOP/s", "153", "datasheet"]
    assert rows[-1].split()[:4] == ["HBM", "memory", "2.04", "TB/s"]


def test_an_unknown_dtype_is_a_usage_error_that_lists_the_known(capsys):
    assert main(["ceilings", "--gpu", "A100 SXM4 80GB", "--dtypes", "fp12"]) == 2
    assert "bfloat16" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "near"),
    [("H100 SXM8", "H100 SXM5 80GB"), ("geforce rtx 4091", "RTX 4090"), ("Z9000", None)],
)
def test_an_unknown_gpu_is_a_usage_error_that_names_the_nearest(capsys, name, near):
    code = main(["ceilings", "--gpu", name])

    printed = capsys.readouterr().err
    assert code == 2
    assert "flopprof ceilings --gpu list" in printed
    assert len(printed) < 300  # a few names, not all seventy
    assert (near in printed) if near else ("nearest" not in printed)


def test_all_gpus_are_listed(capsys):
    assert main(["ceilings", "--gpu", "list"]) == 0
    names = capsys.readouterr().out.splitlines()
    assert main(["ceilings", "--gpu", "list", "--json"]) == 0

    assert {"A100 SXM4 80GB", "H100 SXM5 80GB", "MI300X", "P100 PCIe 16GB"} <= set(names)
    assert json.loads(capsys.readouterr().out)["gpus"] == names


def test_a_written_file_is_read_and_only_a_ceilings_file_is_replaced(tmp_path, capsys):
    path = tmp_path / "a100.json"
    arguments = ["ceilings", "--gpu", "A100 SXM4 80GB", "-o", str(path)]

    assert main(arguments) == 0
    assert main(arguments) == 0
    saved = load_ceilings(path)
    path.write_text("my notes")
    assert main(arguments) == 2
    assert path.read_text() == "my notes"
    assert main([*arguments, "--force"]) == 0

    assert saved.resolved["tfloat32", "tensor"].per_s == 156e12
    assert saved.resolved[MAIN].kind == "datasheet"
    assert load_ceilings(path) == saved


def test_each_row_of_the_json_tells_origin_validity_age_and_source(capsys):
    assert main(["ceilings", "--gpu", "A100 SXM4 80GB", "--json"]) == 0

    found = json.loads(capsys.readouterr().out)
    for row in (*found["compute"], *found["memory"]):
        assert row["kind"] == "datasheet"
        assert row["valid"]
        assert row["counts"]
        assert row["age_s"] is None  # nothing was measured
        assert "A100" in row["source"]


def test_a_run_uses_the_users_ceilings_and_measures_none_of_them(tmp_path, monkeypatch):
    import torch

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(FILE))

    run = flopprof.profile(torch.nn.Linear(64, 64), (8, 64), repeats=1, warmup=1, ceilings=path)

    assert not (tmp_path / "cache").exists()
    # 8·64·64·2 + 8·64 FLOPs over (8·64 + 64·64 + 64 + 8·64)·4 bytes is 3.19 FLOP/B: under 4.
    (site,) = run.sites[run.sites["flops"] > 0].itertuples()
    # Attainable at 1 GB/s: memory is what limits it there, however busy this machine is.
    assert site.attainable_flops_per_s == pytest.approx(66048 / 20736 * 1e9)
    assert set(run.rooflines["memory_level"]) == {site.memory_level}


def test_a_missing_ceilings_file_is_said_before_the_model_is_loaded(tmp_path, capsys):
    model = tmp_path / "model.pt"
    model.write_bytes(b"")

    code = main(["run", str(model), "--ceilings", str(tmp_path / "none.json")])

    assert code == 2
    assert "none.json cannot be read" in capsys.readouterr().err


def test_a_name_that_several_boards_have_is_answered_with_them(capsys):
    assert main(["ceilings", "--gpu", "H100"]) == 2

    said = capsys.readouterr().err
    assert "'H100' may be any of H100 SXM5 80GB, H100 PCIe 80GB" in said
