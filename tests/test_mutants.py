"""The mutants of scripts/mutants can be made: their texts and tests are where they say."""

import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "mutants"


@pytest.fixture(scope="module")
def script():
    loader = SourceFileLoader("mutants_script", str(SCRIPT))
    spec = importlib.util.spec_from_loader("mutants_script", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutants_script"] = module  # its dataclass looks itself up there
    loader.exec_module(module)
    yield module
    del sys.modules["mutants_script"]


def test_no_mutant_is_stale(script):
    mutants = script.read_mutants()

    assert len(mutants) >= 42
    assert len({mutant.name for mutant in mutants}) == len(mutants)
    assert {m.name: faults for m in mutants if (faults := m.faults(script.ROOT))} == {}


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"text": "LIMIT = 2"}, "its text is 0 times in a.py"),
        ({"text": "1"}, "its text is 2 times in a.py"),
        ({"file": "b.py"}, "its text is 0 times in b.py"),
        ({"tests": ("test_b.py",)}, "there is no test_b.py"),
        ({"tests": ("test_a.py::test_gone",)}, "there is no test_a.py::test_gone"),
        ({"tests": ("test_a.py", "test_a.py::test_limit[1]")}, None),
    ],
)
def test_a_mutant_whose_text_or_test_is_gone_is_stale(script, tmp_path, changed, fault):
    (tmp_path / "a.py").write_text("LIMIT = 1  # of 1\n")
    (tmp_path / "test_a.py").write_text("def test_limit():\n    pass\n")
    fields: dict[str, Any] = {"name": "n", "file": "a.py", "text": "LIMIT = 1"}
    fields |= {"replacement": "LIMIT = 2", "tests": ("test_a.py",)}

    assert script.Mutant(**fields | changed).faults(tmp_path) == ([fault] if fault else [])


def test_a_mutant_differs_in_its_text_alone(script, tmp_path):
    (tmp_path / "a.py").write_text("x = 1\nLIMIT = 1\n")

    script.Mutant("n", "a.py", "LIMIT = 1", "LIMIT = 2", ()).make(tmp_path)

    assert (tmp_path / "a.py").read_text() == "x = 1\nLIMIT = 2\n"
