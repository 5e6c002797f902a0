"""Stage `tests`: the tests marked `gpu`, each a unit; in a rehearsal they run on the CPU."""

import os
from typing import Any

import pytest

from acceptance.journal import FAILED, PASSED, SKIPPED, Part
from acceptance.stage import ROOT, Place, say

NEEDS_S = 20.0
LEAST_TESTS = 60
BROKEN = 77  # exit code of a process whose device answers no more; the next one goes on
REHEARSE = "FLOPPROF_REHEARSE"


class Recorder:
    """What pytest is told: which tests are left, and when to stop; it notes how each ends."""

    def __init__(self, place: Place, part: Part) -> None:
        """Begin with what the part has."""
        self.place = place
        self.part = part
        self.finished = True

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        """Leave out what is done, and what was not asked for."""
        if len(items) < LEAST_TESTS:
            reason = f"{len(items)} tests were collected, and there are at least {LEAST_TESTS}"
            self.part.end("(collection)", FAILED, reason=reason)
        wanted = [item for item in items if self.place.wants(_unit(item.nodeid))]
        left = [item for item in wanted if not self.part.is_done(_unit(item.nodeid))]
        if left and self.place.left_s < NEEDS_S:
            left = []
            self.finished = False
        config.hook.pytest_deselected(items=[item for item in items if item not in left])
        items[:] = left

    def pytest_collectreport(self, report: Any) -> None:
        """Note a file that cannot be imported."""
        if report.failed:
            self.part.end(_unit(report.nodeid), FAILED, reason=str(report.longrepr))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Note that a test is under way."""
        self.part.begin(_unit(nodeid))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any, nextitem: Any) -> Any:
        """Run a test, and begin no further one that the budget leaves no time for."""
        result = yield
        if nextitem is not None and self.place.left_s < NEEDS_S:
            self.finished = False
            item.session.shouldstop = "the budget ends here"
        return result

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Note how a test went: the last of set-up, call and tear-down that has a say."""
        unit = _unit(report.nodeid)
        if report.failed:
            self.part.end(unit, FAILED, reason=str(report.longrepr))
        elif report.skipped:
            self.part.end(unit, SKIPPED, reason=_why_skipped(report))
        elif report.when == "call":
            not_seen = [text for name, text in report.user_properties if name == "not_seen"]
            self.part.end(unit, PASSED, not_seen=not_seen)
        if report.when == "teardown":
            row = self.part.rows[unit]
            say("tests", self.place, f"{row['outcome']}  {row.get('seconds', 0):5.1f} s  {unit}")
            if row["outcome"] == FAILED and not self.place.rehearses:
                _leave_a_broken_device()


def run(place: Place, part: Part) -> bool:
    """Run the tests that are left; return whether all were reached."""
    if place.rehearses:
        os.environ[REHEARSE] = "1"
    recorder = Recorder(place, part)
    options = ["-q", "--no-header", "--no-summary", "--tb=short", "-p", "no:cacheprovider"]
    code = pytest.main(
        [*options, "--rootdir", str(ROOT), "-m", "gpu", str(ROOT / "tests" / "gpu")],
        plugins=[recorder],
    )
    if code == pytest.ExitCode.NO_TESTS_COLLECTED and not part.rows:
        raise RuntimeError("pytest collected no tests marked gpu")
    if code in (pytest.ExitCode.INTERNAL_ERROR, pytest.ExitCode.USAGE_ERROR):
        raise RuntimeError(f"pytest ended with {code!r}: run it by hand on tests/gpu")
    return recorder.finished


def _unit(nodeid: str) -> str:
    return nodeid.removeprefix("tests/gpu/")


def _why_skipped(report: Any) -> str:
    return str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else str(report.longrepr)


def _leave_a_broken_device() -> None:
    """End this process where the device answers no more: all tests after would fail with it."""
    import torch

    try:
        torch.zeros(1, device="cuda").add(1).item()
    except RuntimeError:
        os._exit(BROKEN)
