"""What an argument names is checked once on its way, and before the long work (B9)."""

import importlib
import json
from collections import Counter
from pathlib import Path

import pytest

from flopprof.cli import main
from tests.events import ADDMM, kernel, launch, op, with_shapes, write_trace

CHECKS = {
    "ceilings file": ("flopprof.ceilings.ceiling", "load_ceilings"),
    "ceilings file of a trace": ("flopprof.ceilings", "load_ceilings"),
    "device": ("flopprof.devices", "find_device"),
    "target": ("flopprof.files", "check_target"),
    "a trace or something else": ("flopprof.trace.remote", "check_is_no_model"),
}


@pytest.fixture
def times(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    ceilings = {
        "version": 1,
        "compute": [{"dtype": "float32", "unit": unit, "flops_per_s": 1e9} for unit in UNITS],
        "memory": [{"level": level, "bytes_per_s": 1e9} for level in ("DRAM", "L3")],
    }
    Path("c.json").write_text(json.dumps(ceilings))
    counts: Counter[str] = Counter()

    def counting(what, check):
        def counted(*arguments, **options):
            if "cache" not in str(arguments[0]):  # measured ceilings are kept in the same form
                counts[what] += 1
            return check(*arguments, **options)

        return counted

    for what, (module, function) in CHECKS.items():
        check = getattr(importlib.import_module(module), function)
        monkeypatch.setattr(f"{module}.{function}", counting(what, check))
    return counts


UNITS = ("tensor", "vector")


def test_a_run_checks_its_target_its_device_and_its_ceilings_once(times):
    Path("nets.py").write_text("from torch import nn\ndef build():\n    return nn.Linear(5, 6)\n")
    options = ["--input", "4x5", "--ceilings", "c.json", "--traces", "1", "--repeats", "1"]

    assert main(["run", "nets.py:build", *options, "--json"]) == 0

    assert times == {"ceilings file": 1, "device": 1, "target": 1}


def test_a_trace_checks_its_target_its_file_and_its_ceilings_once(times):
    addmm = with_shapes(op("aten::addmm", 0, 10), ADDMM)
    write_trace(Path("t.json"), addmm, launch(1, 2), kernel(1, 100, 10.0))

    assert main(["trace", "t.json", "--ceilings", "c.json", "--json"]) == 0

    assert times == {"ceilings file of a trace": 1, "a trace or something else": 1, "target": 1}


def test_a_ceilings_file_that_is_not_there_is_told_before_the_model_is_loaded(times, capsys):
    assert main(["run", "nowhere.py:build", "--ceilings", "none.json"]) == 2

    assert "none.json cannot be read" in capsys.readouterr().err
    assert not list(Path().glob("*.flopprof"))
