"""The list of verdicts is one, and README.md shows it."""

import csv
import re
from pathlib import Path

from flopprof.judge.verdicts import ADVICE, GOOD, MEANINGS, VERDICTS

ROOT = Path(__file__).resolve().parents[2]


def test_readme_explains_each_verdict_as_the_list_does_in_its_order():
    readme = (ROOT / "README.md").read_text()
    with (ROOT / "flopprof" / "judge" / "verdicts.csv").open(newline="") as file:
        listed = [(row["verdict"], row["meaning"]) for row in csv.DictReader(file)]

    (table,) = re.findall(r"\| verdict \| meaning \|\n\|---\|---\|\n((?:\|.*\n)+)", readme)

    assert re.findall(r"\| `(\w+)` \| (.*) \|\n", table) == listed


def test_the_first_three_verdicts_are_good_news_and_the_others_are_what_was_missed():
    assert VERDICTS[:3] == ("free", "agrees", "formula_only")
    assert set(VERDICTS[:3]) == GOOD
    assert VERDICTS[-1] == "not_run"
    assert len(VERDICTS) == 11
    assert set(MEANINGS) == set(VERDICTS)


def test_what_to_do_is_said_of_each_verdict_that_is_no_good_news():
    assert set(VERDICTS) - GOOD == set(ADVICE)
