"""The pytest plugin: fixture `flopprof_budget`, option `--flopprof-record`.

pytest imports this at every start, so it imports nothing but pytest itself.
"""

import re
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from flopprof.run import Count

FOLDER = "flopprof_budgets"
"""Beside a file of tests: the budgets that its tests recorded."""

_BOUNDS = ("max_gflops", "exact", "against")  # arguments of assert_flops
_MOST_LETTERS = 150  # of a file's name: systems take 255 bytes


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that records budgets."""
    parser.getgroup("flopprof").addoption(
        "--flopprof-record",
        action="store_true",
        help="write the budgets of flopprof_budget anew, in place of checking them",
    )


@pytest.fixture
def flopprof_budget(request: pytest.FixtureRequest) -> "Callable[..., Count]":
    """Hold models to the FLOPs that were recorded for this test.

    `flopprof_budget(model, inputs)` counts a call of the model and fails where it does more FLOPs
    than recorded, with the modules that grew. `pytest --flopprof-record` records them, in a file
    per call in `flopprof_budgets` beside the test; commit them. Further arguments are those of
    `flopprof.assert_flops`: with `max_gflops=` or `exact=` that is the budget, recorded or not.
    """
    calls = 0

    def hold(model: Any, inputs: Any = None, **options: Any) -> "Count":
        from flopprof.errors import LoadError, UsageError

        nonlocal calls
        __tracebackhide__ = True
        calls += 1
        path = _budget_file(request, calls)
        act = _record if request.config.getoption("--flopprof-record") else _hold
        try:
            return act(path, model, inputs, options)
        except (LoadError, UsageError) as error:
            pytest.fail(f"{error.problem}\n  {error.remedy}", pytrace=False)

    return hold


def _budget_file(request: pytest.FixtureRequest, number: int) -> Path:
    """Return the file of a test's budget: named after file, class, test and its parameters."""
    node = request.node
    parts = [node.path.stem, *node.nodeid.split("::")[1:]]
    whole = "-".join(parts)
    name = re.sub(r"[^\w.=-]+", "_", whole)[:_MOST_LETTERS]
    if name != whole:  # another test's name may be cut or mended to the same
        name += "-" + sha256(whole.encode(errors="replace")).hexdigest()[:8]
    suffix = "" if number == 1 else f"-{number}"
    folder: Path = node.path.parent / FOLDER
    return folder / f"{name}{suffix}.json"


def _record(path: Path, model: Any, inputs: Any, options: dict[str, Any]) -> "Count":
    """Write a budget anew; bounds that the test gives hold all the same."""
    from flopprof.api import count_flops
    from flopprof.testing import assert_flops, write_budget

    if any(options.get(name) is not None for name in _BOUNDS):
        count = assert_flops(model, inputs, **options)
    else:
        own = (*_BOUNDS, "allow_unknown")
        count = count_flops(
            model, inputs, **{name: value for name, value in options.items() if name not in own}
        )
    write_budget(path, count.run)
    return count


def _hold(path: Path, model: Any, inputs: Any, options: dict[str, Any]) -> "Count":
    from flopprof.testing import assert_flops, read_budget

    __tracebackhide__ = True
    budget = read_budget(path)
    if budget is None and all(options.get(name) is None for name in _BOUNDS):
        pytest.fail(
            f"no budget is recorded for this test: {path} is not there\n"
            "  pytest --flopprof-record writes it; or give max_gflops= or exact=",
            pytrace=False,
        )
    if options.get("against") is None:
        options = options | {"against": budget}
    return assert_flops(model, inputs, **options)
