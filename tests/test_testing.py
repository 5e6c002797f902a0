"""Budgets in users' tests: `assert_flops`, and the plugin's fixture in a pytest of its own."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from torch import nn

import flopprof
from flopprof.errors import LoadError, UsageError
from flopprof.testing import assert_flops

ROOT = Path(__file__).resolve().parents[1]


def net(width=5):
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 4))


SIZE = (2, 6)
# 2·6·5 multiply-adds × 2 and 2·5 biases: 130; relu 2·5 = 10; 2·5·4 × 2 and 2·4 biases: 88.
FLOPS = 130 + 10 + 88
# One wider: 2·6·6 × 2 + 12 = 156 (+26); relu 12 (+2); 2·6·4 × 2 + 8 = 104 (+16).
WIDER = 156 + 12 + 104


def test_a_model_within_its_budget_gives_its_count():
    assert assert_flops(net(), SIZE, max_gflops=FLOPS / 1e9).flops == FLOPS
    assert assert_flops(net(), SIZE, exact=FLOPS).matmul_flops == 120 + 80
    assert assert_flops(net(), torch.zeros(SIZE), exact=FLOPS, max_gflops=1).flops == FLOPS
    assert assert_flops(net(), SIZE, against=flopprof.count_flops(net(), SIZE)).flops == FLOPS


def test_a_message_has_the_number_the_bound_and_the_largest_modules():
    with pytest.raises(AssertionError) as told:
        assert_flops(net(), SIZE, max_gflops=200e-9)

    assert str(told.value) == (
        "the model does 228 FLOPs; its budget is 200 (max_gflops=2e-07); "
        "largest: 0 130 FLOPs, 2 88 FLOPs, 1 10 FLOPs"
    )
    with pytest.raises(AssertionError, match=r"exactly 230 are expected \(−2\)"):
        assert_flops(net(), SIZE, exact=230)


def test_a_message_says_which_modules_grew_since(tmp_path):
    before = flopprof.count_flops(net(), SIZE)
    folder = before.run.save(tmp_path / "before")

    for against in (before, before.run, folder, str(folder)):
        with pytest.raises(AssertionError) as told:
            assert_flops(net(6), SIZE, against=against)

        assert str(told.value) == (
            "the model does 272 FLOPs; it did 228 before; "
            "grown: 0 +26 FLOPs, 2 +16 FLOPs, 1 +2 FLOPs"
        )
    assert WIDER == 272


def test_fewer_are_within_the_budget_and_a_bound_goes_before_what_was():
    before = flopprof.count_flops(net(6), SIZE)

    assert assert_flops(net(), SIZE, against=before).flops == FLOPS
    assert assert_flops(net(8), SIZE, against=before, max_gflops=1).flops > WIDER


class Mystery(nn.Module):
    def forward(self, x):
        return torch.linalg.matrix_exp(x)


def test_unknown_flops_may_break_a_budget():
    with pytest.raises(AssertionError, match="more that are unknown"):
        assert_flops(Mystery(), (3, 3), max_gflops=1)

    assert_flops(Mystery(), (3, 3), max_gflops=1, allow_unknown=True)


@pytest.mark.parametrize(
    "budget", [{}, {"max_gflops": -1}, {"max_gflops": float("nan")}, {"against": "nowhere"}]
)
def test_a_budget_that_is_none_is_refused(budget):
    with pytest.raises(UsageError):
        assert_flops(net(), SIZE, **budget)


def test_several_sizes_are_refused():
    with pytest.raises(UsageError):
        assert_flops(net(), [SIZE, SIZE], max_gflops=1)


TESTS = """
import pytest
from torch import nn

def net():
    return nn.Sequential(nn.Linear(6, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 4))

@pytest.mark.parametrize("batch", [1, 2])
def test_batch(flopprof_budget, batch):
    assert flopprof_budget(net(), (batch, 6)).flops > 0

class TestTwo:
    def test_twice(self, flopprof_budget):
        flopprof_budget(net(), (2, 6))
        flopprof_budget(net(), (4, 6))

def test_bound(flopprof_budget):
    flopprof_budget(net(), (2, 6), max_gflops=250e-9)
"""


class Outcomes:
    """A plugin of pytest that keeps what each test came to."""

    def __init__(self):
        self.of = {}

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.failed:
            self.of[report.nodeid.partition("::")[2]] = (report.outcome, report.longreprtext)


@pytest.fixture
def run_tests(tmp_path, monkeypatch, capsys):
    """Return a function that runs these tests, for a width, in a pytest inside this one."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def run(width, *options, code=TESTS):
        outcomes = Outcomes()
        path = tmp_path / "test_of_mine.py"
        path.write_text(code.replace("WIDTH", str(width)))
        fixed = ["-q", "-p", "flopprof.pytest_plugin", "-p", "no:cacheprovider", "-c", "/dev/null"]
        place = [f"--rootdir={tmp_path}", "--import-mode=importlib", str(path)]
        sys.modules.pop("test_of_mine", None)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "dont_write_bytecode", True)  # files change within a second here
            pytest.main([*fixed, *options, *place], plugins=[outcomes])
        capsys.readouterr()
        return outcomes.of

    return run


def test_a_budget_is_recorded_and_then_held(run_tests, tmp_path):
    missing = run_tests(5)
    assert {outcome for outcome, _ in list(missing.values())[:3]} == {"failed"}
    assert "no budget is recorded for this test" in missing["test_batch[1]"][1]
    assert missing["test_bound"][0] == "passed"

    recorded = run_tests(5, "--flopprof-record")
    assert {outcome for outcome, _ in recorded.values()} == {"passed"}
    files = sorted(path.name for path in (tmp_path / "flopprof_budgets").iterdir())
    assert len(files) == 5
    assert "test_of_mine-TestTwo-test_twice-2.json" in files

    assert {outcome for outcome, _ in run_tests(5).values()} == {"passed"}
    grown = run_tests(6)
    assert "does 272 FLOPs; it did 228 before; grown: 0 +26 FLOPs" in grown["test_batch[2]"][1]
    assert "its budget is 250 (max_gflops=2.5e-07); grown: 0 +26" in grown["test_bound"][1]


def test_a_damaged_budget_is_told(run_tests, tmp_path):
    run_tests(5, "--flopprof-record")
    for path in (tmp_path / "flopprof_budgets").iterdir():
        path.write_text("[]")

    found = run_tests(5)

    assert "is no budget of flopprof" in found["test_bound"][1]
    assert "pytest --flopprof-record" in found["test_bound"][1]


def test_a_budget_of_another_version_is_told(tmp_path):
    from flopprof.testing import read_budget

    path = tmp_path / "b.json"
    path.write_text('{"version": 2, "flops": 1, "modules": {}}')

    with pytest.raises(LoadError, match="version 2"):
        read_budget(path)


def test_the_plugin_costs_nothing_at_start_up():
    entry = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    assert entry["pytest11"] == {"flopprof": "flopprof.pytest_plugin"}
    code = (
        "import sys, pytest; before = set(sys.modules); import flopprof.pytest_plugin;"
        "new = {name for name in set(sys.modules) - before if name.startswith('flopprof')};"
        "assert new == {'flopprof', 'flopprof._version', 'flopprof.pytest_plugin'}, new;"
        "assert not {'torch', 'numpy', 'pandas'} & set(sys.modules)"
    )

    subprocess.run([sys.executable, "-c", code], check=True)
