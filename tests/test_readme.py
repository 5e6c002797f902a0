"""What README.md shows is what happens: its Python runs, its commands print what it says."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from flopprof.api import analyse_traces
from flopprof.cli import main

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
CONSOLE = re.findall(r"\$ python -m flopprof (.*)\n((?:.*\n)*?)```", README)


@pytest.mark.parametrize("code", PYTHON)
def test_python_examples_run(code):
    exec(compile(code, "README.md", "exec"), {})


def test_the_recording_function_writes_a_trace_that_can_be_read(tmp_path):
    (code,) = (block for block in PYTHON if "def record(step, path)" in block)
    written: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), written)
    layer, x = torch.nn.Linear(4, 5, bias=False), torch.zeros(3, 4)
    path = tmp_path / "trace.json.gz"

    written["record"](lambda: layer(x), str(path))

    # [3,4] @ [4,5]: 3·5 outputs × 4 multiply-adds × 2 = 120 FLOPs.
    assert analyse_traces(path).totals.matmul_flops == 120


@pytest.mark.slow
@pytest.mark.parametrize(("command", "shown"), CONSOLE)
def test_commands_print_what_is_shown(command, shown, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.parent / "cache"))
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18().state_dict(), "resnet18.pth")

    code = main(shlex.split(command))

    printed = capsys.readouterr().out.splitlines()
    assert code == 0
    for line in shown.splitlines():
        if "…" in line:  # a line with timings, or lines left out
            continue
        assert line in printed


def test_there_is_something_to_run():
    assert PYTHON
    assert CONSOLE
