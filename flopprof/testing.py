"""Hold a model to a budget of FLOPs in a test, of any framework; for pytest see `pytest_plugin`.

FLOPs are counted from shapes, so a budget holds on every machine, to the digit.
"""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flopprof.errors import LoadError, UsageError
from flopprof.units import safe_text

if TYPE_CHECKING:
    from flopprof.run import Count, Run

BUDGET_VERSION = 1
"""Version of a budget's file."""

LARGEST = 3  # modules named where there is nothing to compare them with
_AGAIN = "write it anew: pytest --flopprof-record"


class Budget(NamedTuple):
    """What a model did before: its FLOPs, and each module's own: path → FLOPs."""

    flops: int
    modules: dict[str, int]


def assert_flops(
    model: Any,
    inputs: Any = None,
    *,
    max_gflops: float | None = None,
    exact: int | None = None,
    against: "Run | Count | Budget | str | Path | None" = None,
    allow_unknown: bool = False,
    **options: Any,
) -> "Count":
    """Return the count of a call of `model`, which keeps to its budget.

    Args:
        model: A module, or what `count_flops` takes: a file, code. It is left as it was.
        inputs: As for `count_flops`: a tensor, a tuple of inputs, a size, a text.
        max_gflops: Most FLOPs, in 10⁹; those that are unknown count with their bound.
        exact: The FLOPs, matmul and vector class together, to the digit.
        against: An earlier count or run, a recorded budget, or the folder that a run was saved in:
            the model may do no more FLOPs than that, unless another bound is given, and a message
            says which modules grew since.
        allow_unknown: Whether FLOPs that are unknown pass.
        options: Those of `count_flops`.

    Raises:
        AssertionError: It does not; the message has the number, the bound, and which modules grew
            (or are largest, where there is nothing to compare them with).
        UsageError: No bound is given, or one that is none.
        LoadError: `against` names a folder that holds no run.
    """
    from flopprof.api import count_flops
    from flopprof.run import Count

    __tracebackhide__ = True  # of pytest: the test's own line is what counts
    earlier = _budget(against)
    if max_gflops is None and exact is None and earlier is None:
        raise UsageError(
            "no budget was given", remedy="give max_gflops=, exact= or against= an earlier count"
        )
    if max_gflops is not None and not max_gflops >= 0:
        raise UsageError(f"max_gflops is {max_gflops}", remedy="give 0 or more")
    count = count_flops(model, inputs, **options)
    if not isinstance(count, Count):
        raise UsageError("several sizes were given", remedy="assert the FLOPs of one at a time")
    most = math.inf
    bound = ""
    if max_gflops is not None:
        most = max_gflops * 1e9
        bound = f"its budget is {most:,.0f} (max_gflops={max_gflops})"
    elif exact is None and earlier is not None:
        most = earlier.flops
        bound = f"it did {most:,} before"
    _check(count, most, bound, exact, earlier, allow_unknown)
    return count


def _check(
    count: "Count",
    most: float,
    bound: str,
    exact: int | None,
    earlier: Budget | None,
    allow_unknown: bool,
) -> None:
    """Raise `AssertionError` where a count breaks its budget."""
    __tracebackhide__ = True
    remark = _grown_or_largest(count, earlier)
    flops = count.flops
    if exact is not None and flops != exact:
        sign = "+" if flops > exact else "−"
        fact = f"exactly {exact:,} are expected ({sign}{abs(flops - exact):,})"
        raise AssertionError(f"the model does {flops:,} FLOPs; {fact}{remark}")
    if flops > most:
        raise AssertionError(f"the model does {flops:,} FLOPs; {bound}{remark}")
    if allow_unknown or count.flops_at_most == flops:
        return
    if exact is not None or not count.flops_at_most <= most:
        ops = ", ".join(count.run.unknown_ops[:LARGEST]) or "code outside PyTorch"
        raise AssertionError(
            f"the model does {flops:,} FLOPs and more that are unknown ({ops}), so its budget may "
            "be broken; a formula makes them known (flopprof.op_formula), allow_unknown=True lets "
            "them pass"
        )


def _grown_or_largest(count: "Count", earlier: Budget | None) -> str:
    """Return which modules' own FLOPs grew, or the largest of them: "; grown: fc +1,280 FLOPs"."""
    from flopprof.report.growth import grown_modules, largest_modules

    later = own_flops(count.run)
    if earlier is None:
        return largest_modules(later, LARGEST)
    entries = [
        {
            "module_path": path,
            "flops": (earlier.modules.get(path), flops),
            "change": "changed" if path in earlier.modules else "added",
        }
        for path, flops in later.items()
    ]
    return grown_modules(entries)


def own_flops(run: "Run") -> dict[str, int]:
    """Return the known FLOPs of each module, without those of modules inside: path → FLOPs."""
    modules = run.by_module()
    paths = map(str, modules["module_path"])
    return dict(zip(paths, map(int, modules["self_flops"]), strict=True))


def _budget(against: Any) -> Budget | None:
    """Return what an earlier count or run did, or the run that a folder holds."""
    from flopprof.run import Count, Run

    if against is None or isinstance(against, Budget):
        return against
    if isinstance(against, str | Path):
        against = Run.load(against)
    run = against.run if isinstance(against, Count) else against
    return Budget(run.totals.flops, own_flops(run))


def read_budget(path: Path) -> Budget | None:
    """Return the budget that a file holds; None where there is no such file.

    Raises:
        LoadError: The file is no budget.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        modules = {str(name): int(flops) for name, flops in content["modules"].items()}
        budget = Budget(int(content["flops"]), modules)
        version = content["version"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        fact = f"{safe_text(path)} is no budget of flopprof: {safe_text(repr(error))}"
        raise LoadError(fact, remedy=_AGAIN) from error
    if version != BUDGET_VERSION:
        fact = f"{safe_text(path)} is a budget of version {safe_text(version)}"
        raise LoadError(fact, remedy=_AGAIN)
    return budget


def write_budget(path: Path, run: "Run") -> None:
    """Write what a run does as a budget's file, whole or not at all.

    Raises:
        UsageError: It cannot be written.
    """
    from flopprof.files import explain_os_errors, write_atomically

    content = {
        "version": BUDGET_VERSION,
        "flops": run.totals.flops,
        "modules": own_flops(run),
    }
    with explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(content, indent=1) + "\n")
