"""What a run says of itself: every warning has a code that is listed with its meaning."""

import csv
import re
from pathlib import Path

import flopprof
from flopprof.provenance import CountProvenance, Warned, warned
from flopprof.run import Run

PACKAGE = Path(flopprof.__file__).parent
SMALL = Path(__file__).parent / "runs" / "small.flopprof"
with (PACKAGE / "warning_codes.csv").open(encoding="utf-8", newline="") as file:
    MEANINGS = {row["code"]: row["meaning"] for row in csv.DictReader(file)}


def test_every_code_of_a_warning_is_listed_and_every_listed_one_is_given():
    sources = "\n".join(path.read_text("utf-8") for path in PACKAGE.rglob("*.py"))
    by_hand = set(re.findall(r'Warned\(\s*code="(\w+)"', sources))
    by_list = set(re.findall(r'\bwarned\(\s*"(\w+)"', sources))

    assert by_hand | by_list == set(MEANINGS)
    assert all(MEANINGS.values())
    # None is made without a code.
    assert not re.findall(r"Warned\((?!\s*code=|Part)", sources)


def test_texts_become_warnings_of_one_code():
    assert warned("trace", ["a", "b"]) == [
        Warned(code="trace", text="a"),
        Warned(code="trace", text="b"),
    ]


def test_a_count_of_a_model_without_values_says_so_by_code(tmp_path):
    import torch
    from torch import nn

    class Branching(nn.Module):
        def forward(self, x):
            return x @ x if float(x.sum()) != 1.0 else x

    run = flopprof.count_flops(Branching(), torch.zeros(2, 2)).run

    assert isinstance(run.provenance, CountProvenance)
    assert [warning.code for warning in run.provenance.warnings] == ["values"]
    run.save(tmp_path / "a.flopprof")
    assert Run.load(tmp_path / "a.flopprof").provenance.warnings == run.provenance.warnings
