"""What is shown of a long stage: a bar on a terminal, a line now and then elsewhere."""

import io
import re
import sys
from types import SimpleNamespace

import pytest

from flopprof import cli, stages
from flopprof.cli import Progress
from flopprof.stages import Stage, stepping


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the test moves on."""
    hands = SimpleNamespace(now_s=100.0)
    fake = SimpleNamespace(monotonic=lambda: hands.now_s)
    monkeypatch.setattr(cli, "time", fake)
    monkeypatch.setattr(stages, "time", fake)
    return hands


def test_a_stage_with_steps_is_its_name_to_who_asks_for_no_more():
    stage = Stage("reading a.json (2 of 3)", done=1, total=3)

    assert stage == "reading a.json (2 of 3)"
    assert f"{stage} …" == "reading a.json (2 of 3) …"
    assert (stage.done, stage.total) == (1, 3)


def test_steps_are_told_at_most_twice_a_second(clock):
    told = []
    step = stepping(lambda stage: told.append(getattr(stage, "done", None)), "timing", 100)

    for _ in range(20):
        clock.now_s += 0.125
        step()

    # 0.5 s after the last telling: after 4, 8, 12, 16 and 20 steps.
    assert told == [0, 4, 8, 12, 16, 20]


def test_no_more_steps_are_done_than_there_are(clock):
    told = []
    step = stepping(lambda stage: told.append(getattr(stage, "done", None)), "counting", 2)

    for _ in range(3):  # a module that is called twice
        clock.now_s += 1
        step()

    assert told == [0, 1, 2, 2]


def test_a_terminal_shows_a_bar_and_leaves_no_trace_of_it(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")

    with Progress() as progress:
        progress("loading torch")
        progress(Stage("cell 1 of 4: [red]batch=1[/red]", done=0, total=4))
        progress(Stage("cell 3 of 4: batch=4", done=2, total=4))

    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert "loading torch …" in shown
    assert "[red]batch=1[/red]" in shown  # names are text, not markup
    assert re.search(r"cell 3 of 4: batch=4 .*━.* 50%", shown)
    assert terminal.getvalue().endswith("\r\x1b[K")


def test_what_is_no_terminal_gets_a_line_of_what_takes_long(clock, capsys):
    with Progress() as progress:
        for done in range(4):
            progress("loading")
            progress(Stage(f"cell {done + 1} of 4", done=done, total=4))
            clock.now_s += 20

    # 20 s a cell, a line each 30 s: after 40 s, when two of four are done and 40 s are left.
    assert capsys.readouterr().err == "flopprof: cell 3 of 4; about 40.0 s left\n"


def test_a_quick_stage_says_nothing_where_there_is_no_terminal(clock, capsys):
    with Progress() as progress:
        for done in range(4):
            progress(Stage(f"cell {done + 1} of 4", done=done, total=4))
            clock.now_s += 1

    assert capsys.readouterr().err == ""
