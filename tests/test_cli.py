"""The command line, in process: exit codes, output, and each error once."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

import flopprof
from flopprof.cli import main

ARCH = "torchvision:resnet18"


@pytest.fixture(scope="session")
def resnet18(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "resnet18.pth"
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18().state_dict(), path)
    return path


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # One cache for the whole session: ceilings are measured once.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.parent / "cache"))


def call(*arguments: str) -> int:
    return main(list(arguments))


@pytest.mark.slow
def test_run_does_the_whole_job(resnet18, capsys):
    code = call("run", str(resnet18), "--arch", ARCH, "--repeats", "2", "--input", "1x3x64x64")

    out, err = capsys.readouterr()
    assert code == 0, err
    folder = Path("resnet18.flopprof")
    names = {path.name for path in folder.iterdir()}
    assert names >= {"meta.json", "sites.csv", "ops.csv", "module_calls.csv", "rooflines.csv"}
    assert names >= {"trace.json.gz", "roofline.png", "report.md", "report.html"}
    assert (folder / "roofline.png").read_bytes().startswith(b"\x89PNG")
    for word in ("Model", "Input", "Device", "MACs", "Time", "Coverage", "verdict", "functional"):
        assert word in out
    assert max(map(len, out.splitlines())) <= 120  # where there is no terminal
    assert "\x1b" not in err  # no progress display where stderr is no terminal

    # A second run replaces the first; report and plot work from the folder alone.
    assert call("run", str(resnet18), "--arch", ARCH, "--repeats", "1", "--input", "1x3x64x64") == 0
    assert call("report", str(folder)) == 0
    assert call("report", str(folder), "-o", "r.md") == 0
    assert Path("r.md").read_text().startswith("# flopprof")
    for name in ("x.png", "x.svg", "x.pdf"):
        assert call("plot", str(folder), "-o", name) == 0
        assert Path(name).stat().st_size > 5000


@pytest.mark.slow
def test_run_prints_one_json_object(resnet18, capsys):
    assert call("run", str(resnet18), "--arch", ARCH, "--input", "1x3x64x64", "--json") == 0

    found = json.loads(capsys.readouterr().out)
    # Spatial sizes shrink by (64/224)² exactly but in stage 4 (2 × 2 of 7 × 7), all convolutions:
    # multiply-adds at 64 × 64 by stage, then the classifier's 512 × 1000.
    stem = 64 * 32 * 32 * 3 * 49
    stage1 = 4 * 64 * 64 * 9 * 16 * 16
    stage2 = (128 * 64 * 9 + 3 * 128 * 128 * 9 + 128 * 64) * 8 * 8
    stage3 = (256 * 128 * 9 + 3 * 256 * 256 * 9 + 256 * 128) * 4 * 4
    stage4 = (512 * 256 * 9 + 3 * 512 * 512 * 9 + 512 * 256) * 2 * 2
    assert found["matmul_flops"] == 2 * (stem + stage1 + stage2 + stage3 + stage4 + 512 * 1000)
    assert found["schema_version"] == 1
    assert found["architecture"] == ARCH
    assert found["device"] in ("cpu", "cuda")
    assert found["flops"] == found["matmul_flops"] + found["vector_flops"]
    assert found["flops_at_most"] >= found["flops"]
    assert 0.9 < found["coverage_frac"] <= 1
    assert found["wall_p5_us"] <= found["wall_us"] <= found["wall_p95_us"]
    assert found["verdicts"]["agrees"]["sites"] > 0
    assert found["ops"]["aten::conv2d"]["calls"] == 20
    assert found["ops"]["aten::conv2d"]["achieved_flops_per_s"] > 0
    assert all(Path(name).exists() for name in found["files"])


def test_count_prints_one_json_object_with_null_for_unknown(resnet18, capsys):
    assert call("count", str(resnet18), "--arch", ARCH, "--json") == 0

    found = json.loads(capsys.readouterr().out)
    # torchvision publishes 1.814 GMACs for resnet18 at 224 × 224.
    assert found["matmul_flops"] / 2 == pytest.approx(1.814e9, rel=0.01)
    for name in ("coverage_frac", "wall_us", "wall_p5_us", "wall_p95_us"):
        assert found[name] is None
    assert found["verdicts"]["agrees"]["time_frac"] is None
    assert found["ops"]["aten::linear"]["matmul_flops"] == 2 * 512 * 1000
    assert found["ops"]["aten::addmm"]["counted_calls"] == 0
    assert found["ops"]["aten::addmm"]["time_us"] is None
    assert found["input"] == "1x3x224x224"
    assert found["flops_at_most"] == found["flops"]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str]]:
    code = call(*arguments)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 2, err
    assert lines[0].startswith("flopprof: ")
    assert lines[1].startswith("  ")
    return code, lines


def test_a_missing_file(capsys):
    code, lines = refused(capsys, "run", "nothing.pth")

    assert code == 2
    assert "nothing.pth" in lines[0]


def test_a_folder_an_empty_file_a_text_file_and_a_truncated_zip(capsys, resnet18, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.pth").write_text("these are not weights\n" * 20)
    (tmp_path / "short.pth").write_bytes(resnet18.read_bytes()[:100_000])
    for name in ("empty.pth", "text.pth", "short.pth"):
        code, lines = refused(capsys, "run", name, "--arch", ARCH)
        assert (code, name in lines[0]) == (3, True)
    code, lines = refused(capsys, "run", "folder", "--arch", ARCH)
    assert code in (2, 3)
    assert "folder" in lines[0]


def test_a_state_dict_without_architecture(capsys, tmp_path):
    torch.save(nn.Linear(3, 4).state_dict(), "mine.pth")

    code, lines = refused(capsys, "run", "mine.pth", "--input", "1x3")

    assert code == 5
    assert "--arch" in lines[1]


def test_a_wrong_architecture_and_keys_that_do_not_fit(capsys, resnet18):
    code, lines = refused(capsys, "run", str(resnet18), "--arch", "torchvision:resnet17")
    assert (code, "resnet17" in lines[0]) == (2, True)

    code, lines = refused(capsys, "run", str(resnet18), "--arch", "torchvision:resnet50")
    assert code == 2
    assert re.search(r"\d+", lines[0])  # how many
    assert "layer1" in lines[0]  # which


def test_a_wrong_input_shape_says_what_the_model_said(capsys, resnet18):
    code, lines = refused(
        capsys, "run", str(resnet18), "--arch", ARCH, "--input", "1x4x64x64", "--repeats", "1"
    )

    assert code == 2
    assert "1x4x64x64" in lines[0]
    assert "channels" in lines[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none(capsys, resnet18):
    code, lines = refused(capsys, "run", str(resnet18), "--arch", ARCH, "--device", "cuda")

    assert code == 2
    assert "--device cpu" in lines[1]


def test_a_pickled_module_needs_trust(capsys, tmp_path):
    torch.save(nn.Sequential(nn.Linear(3, 4)), "module.pt")

    code, lines = refused(capsys, "run", "module.pt", "--input", "1x3")

    assert code == 4
    assert "--trust" in lines[1]


def test_output_that_is_not_ours_is_not_replaced(capsys, resnet18, tmp_path):
    (tmp_path / "resnet18.flopprof").mkdir()
    (tmp_path / "resnet18.flopprof" / "diary.txt").write_text("dear diary")

    code, lines = refused(capsys, "run", str(resnet18), "--arch", ARCH)

    assert (code, "--force" in lines[1]) == (2, True)
    assert (tmp_path / "resnet18.flopprof" / "diary.txt").exists()


@pytest.mark.parametrize("target", [".", "/", "~"])
def test_a_run_never_replaces_the_current_folder_or_the_home(capsys, resnet18, target):
    arguments = ["run", str(resnet18), "--arch", ARCH, "--force"]

    code, _ = refused(capsys, *arguments, "-o", str(Path(target).expanduser()))

    assert code == 2


def test_an_unwritable_output_folder(capsys, resnet18):
    code, lines = refused(
        capsys, "run", str(resnet18), "--arch", ARCH, "-o", "/proc/nowhere/x.flopprof"
    )

    assert code == 2
    assert "/proc/nowhere" in lines[0]


def test_usage_errors_are_json_too(capsys):
    assert call("run", "--json") == 2

    error = json.loads(capsys.readouterr().out)["error"]
    assert error["exit_code"] == 2
    assert error["problem"]
    assert error["remedy"]


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"]])
def test_help(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        call(*arguments)

    assert stop.value.code == 0
    assert "flopprof" in capsys.readouterr().out


def test_version_is_a_line_or_an_object(capsys):
    assert call("--version") == 0
    assert capsys.readouterr().out.startswith(f"flopprof {flopprof.__version__} (torch 2.")
    assert call("--version", "--json") == 0
    assert json.loads(capsys.readouterr().out)["flopprof"] == flopprof.__version__


NOISY = """
import os
from torch import nn

class Noisy(nn.Linear):
    def forward(self, x):
        print("printed")
        os.write(1, b"written")  # as code in C does
        return super().forward(x)

def build():
    return Noisy(4, 2)
"""


def flopprof_process(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flopprof", *arguments]
    return subprocess.run(command, text=True, stderr=subprocess.PIPE, **options)


@pytest.mark.slow
def test_json_is_alone_on_stdout_whatever_the_model_prints(tmp_path):
    (tmp_path / "noisy.py").write_text(NOISY)
    torch.save(nn.Linear(4, 2).state_dict(), "noisy.pth")

    done = flopprof_process(
        "count", "noisy.pth", "--arch", "noisy.py:build", "--input", "1x4", "--json",
        stdout=subprocess.PIPE,
    )  # fmt: skip

    assert json.loads(done.stdout)["matmul_flops"] == 2 * 4 * 2
    assert "printed" in done.stderr
    assert "written" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("extra", [[], ["--json"]])
def test_a_full_disk_under_stdout_is_two_lines(extra):
    with Path("/dev/full").open("w") as full:
        done = flopprof_process("--version", *extra, stdout=full)

    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "flopprof: stdout cannot be written: no space left on device",
        "  free space there, or redirect it elsewhere",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing(number, resnet18, tmp_path):
    command = [sys.executable, "-m", "flopprof", "run", str(resnet18), "--arch", ARCH]
    with subprocess.Popen(
        [*command, "--repeats", "5000"],
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
        # Where the tests run in the background, a child would inherit that SIGINT is ignored.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    ) as process:
        try:
            deadline = time.monotonic() + 60
            while not any(path.name.startswith(".resnet18") for path in tmp_path.iterdir()):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            time.sleep(1)

            process.send_signal(number)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()

    assert process.returncode == 130
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == []


def test_python_m_ignores_modules_in_the_current_folder(resnet18, tmp_path):
    for name in ("torch", "pandas", "torchvision"):
        (tmp_path / f"{name}.py").write_text("open('was_run', 'w')")

    subprocess.run(
        [sys.executable, "-m", "flopprof", "count", str(resnet18), "--arch", ARCH],
        check=True,
        capture_output=True,
    )

    assert not (tmp_path / "was_run").exists()


def test_code_is_a_model_too_with_random_weights(tmp_path, capsys):
    Path("nets.py").write_text(
        "from torch import nn\ndef mlp():\n    return nn.Sequential(nn.Linear(10, 20), nn.ReLU())\n"
    )

    assert call("count", "nets.py:mlp", "--input", "3x10", "--json") == 0
    counted = json.loads(capsys.readouterr().out)
    assert counted["matmul_flops"] == 2 * 3 * 10 * 20
    assert counted["architecture"] == "nets.py:mlp"
    assert call("run", "nets.py:mlp", "--repeats", "1", "--json") == 0
    assert json.loads(Path("mlp.flopprof/meta.json").read_text())["source"]["weights"] == "random"
    assert Path("mlp.flopprof/roofline.png").is_file()
    assert call("count", "nets.py:net") == 2
    assert "name one that it has: nets.py:mlp" in capsys.readouterr().err
    assert call("count", "none.py:mlp") == 2


def test_what_is_left_out_of_the_report_is_said(resnet18, capsys):
    assert call("count", str(resnet18)) == 0

    out = capsys.readouterr().out
    # 20 convolutions, 20 normalisations, 17 activations, 8 additions, and more: 15 are shown.
    assert re.search(r"^… and \d\d sites more: see --json$", out, re.MULTILINE)


@pytest.mark.parametrize("command", ["run", "count", "inspect"])
def test_a_dangling_link_says_where_it_leads(command, capsys):
    Path("model.pth").symlink_to("/no/such/place.pth")

    assert call(command, "model.pth") == 2
    assert "a link to /no/such/place.pth" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--loss", "x.py:f"], "--loss is given without --train"),
        (["--optimizer", "adam"], "--optimizer is given without --train"),
        (["--memory-limit", "foo"], "'foo' is no amount of memory"),
        (["--memory-limit", "0"], "'0' is no amount of memory"),
        (["--memory-limit", "inf"], "'inf' is no amount of memory"),
        (["--time-limit", "nan"], "--time-limit is nan"),
        (["--time-limit", "-1"], "--time-limit is -1.0"),
        (["--threads", "99999999999999"], "--threads is 99999999999999"),
        (["--input", "0x3x224x224"], "'0' is not a size"),
    ],
)
def test_nonsense_is_refused_at_once(arguments, says, capsys):
    assert call("run", "torchvision:resnet18", *arguments) == 2

    assert says in capsys.readouterr().err


def test_a_loss_that_fails_is_named_and_not_the_model(capsys):
    Path("loss.py").write_text("def none():\n    return 1\n")

    code = call("count", "torchvision:resnet18", "--train", "--loss", "loss.py:none")

    assert code == 6
    assert "--loss loss.py:none, given the model's output, raised TypeError" in (
        capsys.readouterr().err
    )


def test_a_count_that_needs_values_says_what_it_does_not_see(capsys):
    Path("net.py").write_text(
        "import torch\nfrom torch import nn\nclass Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.a = nn.Linear(4, 4)\n"
        "    def forward(self, x):\n"
        "        return self.a(x) + torch.from_numpy(x.numpy() @ x.numpy())\n"
    )

    assert call("count", "net.py:Net", "--input", "4x4", "--json") == 0

    warnings = json.loads(capsys.readouterr().out)["warnings"]
    assert any("work outside PyTorch" in warning for warning in warnings)


def test_a_terminal_that_knows_few_letters_gets_the_report_all_the_same():
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = flopprof_process("count", "torchvision:resnet18", env=env, stdout=subprocess.PIPE)

    assert done.returncode == 0, done.stderr
    assert "3.64 GFLOPs" in done.stdout


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("return 5", "AttributeError"),
        ("return Work(matmul_flops=-5)", "less than nothing"),
        ("return Work(matmul_flops=float('nan'))", "less than nothing"),
        ("raise ValueError('mine')", "ValueError: mine"),
    ],
)
def test_a_formula_that_is_wrong_counts_as_unknown_and_is_told_of(body, says, tmp_path, capsys):
    name = "flopprof_wrong_" + str(abs(hash(body)))
    Path("net.py").write_text(
        "import torch\nfrom torch import nn\n"
        f"@torch.library.custom_op('{name}::op', mutates_args=())\n"
        "def op(x: torch.Tensor) -> torch.Tensor:\n    return x @ x\n"
        "@op.register_fake\ndef _(x):\n    return torch.empty_like(x)\n"
        "class Net(nn.Module):\n    def forward(self, x):\n        return op(x)\n"
    )
    Path("formulas.py").write_text(
        "from flopprof import op_formula\nfrom flopprof.formulas import Work\n"
        f"@op_formula('{name}::op')\ndef count(call):\n    {body}\n"
    )

    code = call("count", "net.py:Net", "--input", "4x4", "--formulas", "formulas.py", "--json")

    counted = json.loads(capsys.readouterr().out)
    assert code == 0
    assert counted["flops"] == 0
    assert counted["flops_at_most"] is None
    assert any(says in warning for warning in counted["warnings"])


def test_a_formula_for_an_op_that_has_one_is_refused(capsys):
    Path("formulas.py").write_text(
        "from flopprof import op_formula\n"
        "@op_formula('aten::linear')\ndef count(call):\n    return 1\n"
    )

    assert call("count", "torchvision:resnet18", "--formulas", "formulas.py") == 6
    assert "two implementations of the op formula 'aten::linear'" in capsys.readouterr().err


def test_models_of_timm_train_too(capsys):
    pytest.importorskip("timm")

    assert call("count", "timm:mobilenetv3_small_050", "--train", "--json") == 0
    assert set(json.loads(capsys.readouterr().out)["phases"]) == {
        "forward", "backward", "optimizer",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("default::UserWarning")
def test_a_run_that_replaces_that_of_another_model_says_so(tmp_path, capsys):
    for folder, size in (("a", 4), ("b", 5)):
        Path(folder).mkdir()
        Path(f"{folder}/net.py").write_text(
            f"from torch import nn\ndef net():\n    return nn.Linear({size}, 2)\n"
        )
        assert call("run", f"{folder}/net.py:net", "--repeats", "1") == 0

    assert "held the run of another model" in capsys.readouterr().err
    assert call("run", "b/net.py:net", "--repeats", "1", "--input", "3x5") == 0
    assert "another run of this model (input 1x5, now 3x5): replaced" in capsys.readouterr().err
    assert call("run", "b/net.py:net", "--repeats", "1", "--input", "3x5") == 0
    assert "held" not in capsys.readouterr().err


def test_the_file_that_is_profiled_is_never_replaced(tmp_path, capsys):
    Path("models").mkdir()
    torch.save(nn.Linear(2, 2).state_dict(), "models/net.pth")
    Path("net.py").write_text("from torch import nn\ndef net():\n    return nn.Linear(2, 2)\n")

    for target in ("models", "models/net.pth"):
        arguments = ("models/net.pth", "--arch", "net.py:net", "-o", target, "--force")
        assert call("run", *arguments) == 2
        assert "is replaced" in capsys.readouterr().err

    assert Path("models/net.pth").is_file()


def test_options_are_not_abbreviated(capsys):
    assert call("check", "x.flopprof", "--min", "0.5") == 2
    assert "--min" in capsys.readouterr().err
