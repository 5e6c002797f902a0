"""The module tree, and what else of a run a text shows."""

from pathlib import Path

import pytest
from torch import nn

import flopprof
from flopprof.cli import main
from flopprof.report.text import View, text_report
from flopprof.report.tree import module_tree, parameters_inside
from flopprof.run import Run

SMALL = Path(__file__).parents[1] / "runs" / "small.flopprof"


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(nn.Linear(4, 4).weight.detach())
        self.layers = nn.Sequential(*[nn.Linear(4, 4) for _ in range(11)])

    def forward(self, x):
        return self.layers(x @ self.scale)


@pytest.fixture(scope="module")
def run():
    return flopprof.count_flops(Block(), (2, 4)).run


def test_parameters_add_up_from_the_leaves(run):
    inside = parameters_inside(run)

    # A layer has 4·4 + 4; eleven of them 220; the model 16 more of its own.
    assert inside["layers.3"] == 20
    assert inside["layers"] == 220
    assert inside[""] == 236


def test_the_tree_is_in_the_order_of_the_model_and_as_deep_as_asked(run):
    rows = module_tree(run, 2)

    assert rows[0] == ["module", "type", "params", "FLOPs", "share"]
    assert [row[0] for row in rows[1:5]] == ["(model)", "  layers", "    0", "    1"]
    assert [row[0] for row in rows[-2:]] == ["    9", "    10"]  # not before 2
    assert [row[0] for row in module_tree(run, 1)] == ["module", "(model)", "  layers"]


def test_a_row_has_parameters_flops_and_share(run):
    model, layers, first = module_tree(run, 2)[1:4]

    # A layer: 2·4·4 multiply-adds × 2 + 2·4 = 72; eleven 792; the product 64: 856.
    assert model[1:] == ["Block", "236", "856", "100.0 %"]
    assert layers[1:] == ["Sequential", "220", "792", "92.5 %"]
    assert first[1:] == ["Linear", "20", "72", "8.4 %"]


def test_runs_saved_before_do_not_know_parameters():
    rows = module_tree(Run.load(SMALL), 1)

    assert {row[2] for row in rows[1:]} == {"–"}
    assert "time" in rows[0]


def test_a_text_shows_what_the_view_says():
    run = Run.load(SMALL)

    text = text_report(run, View(top=1, sort="flops", depth=1))

    lines = text.splitlines()
    start = next(n for n, line in enumerate(lines) if line.split()[:2] == ["module", "op"])
    assert "conv2d" in lines[start + 1]  # most FLOPs
    assert lines[start + 2].startswith("… and")
    assert any(line.startswith("(model)") for line in lines)


def test_the_options_reach_the_text(capsys):
    assert main(["report", str(SMALL), "--depth", "1", "--top", "2", "--sort", "calls"]) == 0

    assert "params" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--depth", "--top"])
def test_numbers_below_one_are_refused(option, capsys):
    assert main(["report", str(SMALL), option, "0"]) == 2

    assert f"{option} is 0" in capsys.readouterr().err
