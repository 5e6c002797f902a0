"""Reasons have codes: each is listed once, with its words, and judged sites carry theirs."""

import csv
import re
from pathlib import Path

import pytest

import flopprof
from flopprof.judge.reasons import because
from flopprof.judge.roofs import why_above
from flopprof.judge.verdicts import VERDICTS

PACKAGE = Path(flopprof.__file__).parent
with (PACKAGE / "judge" / "reason_codes.csv").open(encoding="utf-8", newline="") as file:
    ROWS = list(csv.DictReader(file))
SOURCE = "\n".join(path.read_text("utf-8") for path in (PACKAGE / "judge").glob("*.py"))


def test_every_code_is_listed_once_and_every_verdict_has_one():
    codes = [row["code"] for row in ROWS]

    assert len(codes) == len(set(codes))
    assert {row["verdict"] for row in ROWS} == {*VERDICTS, ""}


@pytest.mark.parametrize("code", [row["code"] for row in ROWS])
def test_every_code_is_given_somewhere(code):
    assert f'"{code.removeprefix("roof_")}"' in SOURCE


def test_every_code_that_is_given_is_listed():
    given = set(re.findall(r'because\(\s*"(\w+)"', SOURCE))

    assert len(given) > 20
    assert given <= {row["code"] for row in ROWS}


def test_a_reason_is_its_verdict_its_code_and_its_words_with_the_facts():
    reason = because("no_formula", op="mylib::{twice}")  # braces in a name are no places

    assert reason.verdict == "unknown"
    assert reason.code == "no_formula"
    assert reason.text == "no formula for mylib::{twice}; write one with @op_formula"


def test_a_roof_code_says_which_roof_and_one_of_a_later_version_nothing():
    assert why_above("roof_cache") == "the memory roof: its operands fit a cache"
    assert why_above("roof_of_tomorrow") == why_above("") == ""
