"""Give sites that nothing counts what they executed, where their ops were stepped."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import pandas as pd

from flopprof.executed.attach import with_columns
from flopprof.executed.decode import Operations, rule_of
from flopprof.provenance import Executed
from flopprof.run import Run
from flopprof.tables import SITES
from flopprof.units import counted

SOURCE = "stepping"
JOINED_BY = "shapes"
OF_MODULE = "module"
WITHOUT_FORMULA = ("unknown", "extension")
"""Verdicts of ops that nothing counts."""

_FIGURES = {
    "executed_flops": "flops",
    "executed_matmul_flops": "matmul_flops",
    "executed_vector_flops": "vector_flops",
    "executed_fma_flops": "fma_flops",
    "executed_int_ops": "int_ops",
}
_NOT_STEPPED = ("useful_frac", "dram_bytes", "l2_bytes", "l1_bytes")
_TEXTS = ("executed_source", "joined_by", "executed_reason")


@dataclass(frozen=True, slots=True)
class OwnWork:
    """What calls executed, without the ops below them.

    Attributes:
        matmul_flops: Of matrix units.
        vector_flops: All other FLOPs.
        fma_flops: Those of both that multiply-adds did.
        int_ops: Operations on vectors of integers.
    """

    matmul_flops: int
    vector_flops: int
    fma_flops: int
    int_ops: int

    @property
    def flops(self) -> int:
        """All FLOPs."""
        return self.matmul_flops + self.vector_flops

    def plus(self, other: "OwnWork", times: int) -> "OwnWork":
        """Return the sum of this and so many times the other."""
        return OwnWork(
            matmul_flops=self.matmul_flops + times * other.matmul_flops,
            vector_flops=self.vector_flops + times * other.vector_flops,
            fma_flops=self.fma_flops + times * other.fma_flops,
            int_ops=self.int_ops + times * other.int_ops,
        )


NO_WORK = OwnWork(0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class MeasuredOp:
    """Like calls of an op in one module, and what one of them executed.

    Attributes:
        op: Dispatcher name.
        shapes: Of its arguments, as a site has them.
        module_path: The module that called it.
        calls: How many calls these are.
        executed: Of one call; None where that is not known.
        reason: Why not, or what of it is not sure; "" for nothing.
    """

    op: str
    shapes: str
    module_path: str
    calls: int
    executed: OwnWork | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class MeasuredGaps:
    """What a module's own code executed between ops, in one call of the model.

    Attributes:
        executed: Of all its calls; None where that is not known.
        reason: Why not, or what of it is not sure; "" for nothing.
    """

    executed: OwnWork | None
    reason: str = ""


def own_work(
    whole: Operations, parts: Sequence[tuple[Operations, int]]
) -> tuple[OwnWork | None, str]:
    """Return what a call executed without the calls below it, and why not or what is not sure.

    Args:
        whole: What it executed with them.
        parts: What each of them executed, and how many times it was called.
    """
    undecoded = whole.undecoded - sum(part.undecoded * times for part, times in parts)
    if undecoded > 0:
        why = f"{counted(undecoded, 'instruction')} not decoded: {whole.flops:,} FLOPs or more, "
        return None, f"{why}with those of the ops below it"
    work = _work(whole)
    for part, times in parts:
        work = work.plus(_work(part), -times)
    # Python's and the dispatcher's few operations on integers are in all of them.
    work = replace(work, int_ops=max(0, work.int_ops))
    if min(work.matmul_flops, work.vector_flops, work.fma_flops) < 0:
        return None, "the ops below it execute more on their own than within it"
    if whole.masked_flops:
        return work, f"{whole.masked_flops:,} FLOPs have a mask: at most so much"
    return work, ""


def _work(operations: Operations) -> OwnWork:
    """Return what was executed, matrix units apart."""
    of_tiles = sum(
        flops
        for name, flops in operations.by_instruction.items()
        if (rule := rule_of(name)) is not None and rule.kind == "tile fma"
    )
    return OwnWork(
        matmul_flops=of_tiles,
        vector_flops=operations.flops - of_tiles,
        fma_flops=operations.fma_flops,
        int_ops=operations.int_ops,
    )


def sites_without_formula(run: Run) -> pd.DataFrame:
    """Return the sites of ops that nothing counts; those of hidden time are no ops."""
    sites = run.sites
    return sites[sites["verdict"].isin(WITHOUT_FORMULA) & sites["flops"].isna()]


def hidden_gaps(run: Run) -> pd.DataFrame:
    """Return the sites of hidden time between ops, in the forward pass of a module."""
    sites = run.sites
    is_gap = (sites["verdict"] == "hidden") & (sites["op"] == "(gap)")
    return sites[is_gap & (sites["phase"] == "forward") & sites["flops"].isna()]


def join_measured(
    run: Run, measured: Sequence[MeasuredOp], gaps: Mapping[str, MeasuredGaps] | None = None
) -> Run:
    """Return the run with what was stepped, at its sites that nothing counts.

    A site gets the sum of its own calls, where as many were stepped as it has; else, where all
    calls of its op at its shapes executed the same, so many times that. Hidden time gets what its
    module's own code did. Counts stay as they are: such a site is *measured*.

    Args:
        run: A profiled run.
        measured: Ops that were stepped.
        gaps: By path of a module, what its own code executed between ops.
    """
    sites = run.sites
    figures = {name: pd.Series(math.nan, index=sites.index) for name in (*_FIGURES, *_NOT_STEPPED)}
    texts = {name: pd.Series("", index=sites.index, dtype="str") for name in _TEXTS}
    wanted = sites_without_formula(run)
    hidden = hidden_gaps(run)
    found = [(site, JOINED_BY, *_of_site(site, measured)) for site in wanted.itertuples()]
    found += [
        (site, OF_MODULE, *_of_gaps(site, hidden, gaps or {})) for site in hidden.itertuples()
    ]
    joined: Counter[str] = Counter()
    for site, joined_by, work, reason in found:
        texts["executed_reason"][site.Index] = reason
        if work is None:
            continue
        joined[joined_by] += 1
        texts["executed_source"][site.Index] = SOURCE
        texts["joined_by"][site.Index] = joined_by
        for column, name in _FIGURES.items():
            figures[column][site.Index] = getattr(work, name)
    executed = Executed(
        source=SOURCE, joined=dict(joined), sites_stepped=len(found), notes=_notes(run, hidden)
    )
    return run.replaced(
        sites=with_columns(SITES, sites, figures | texts),
        provenance=msgspec.structs.replace(run.provenance, executed=executed),
    )


def _notes(run: Run, hidden: pd.DataFrame) -> tuple[str, ...]:
    others = int((run.sites["verdict"] == "hidden").sum()) - len(hidden)
    if not others:
        return ()
    return (
        f"{counted(others, 'site')} of hidden time that is in no module's forward: not stepped",
    )


def _of_gaps(
    site: Any, hidden: pd.DataFrame, gaps: Mapping[str, MeasuredGaps]
) -> tuple[OwnWork | None, str]:
    """Return what the gaps of a site executed, and why not or what is not sure."""
    of_module = gaps.get(site.module_path)
    if of_module is None:
        return None, "in a training step, outside of modules' forward passes: not stepped"
    sites = int((hidden["module_path"] == site.module_path).sum())
    if sites > 1 and of_module.executed is not None:
        flops = of_module.executed.flops
        why = f"{sites} sites of hidden time in one module, which are not told apart: "
        return None, f"{why}{flops:,} FLOPs in all of them"
    return of_module.executed, of_module.reason


def _of_site(site: Any, measured: Sequence[MeasuredOp]) -> tuple[OwnWork | None, str]:
    """Return what a site executed, and why not or what is not sure."""
    alike = [op for op in measured if (op.op, op.shapes) == (site.op, site.input_shapes)]
    if not alike:
        return None, "no call of it was found to step: it runs inside other code, or in autograd's"
    of_module = [op for op in alike if op.module_path == site.module_path]
    if sum(op.calls for op in of_module) == site.calls:
        return _sum(of_module)
    total = sum(op.calls for op in alike)
    if len({op.executed for op in alike}) == 1 and alike[0].executed is not None:
        return NO_WORK.plus(alike[0].executed, site.calls), alike[0].reason
    unknown = next((op.reason for op in alike if op.executed is None), "")
    why = (
        f"{counted(total, 'stepped call')} that differ, for {counted(site.calls, 'call')}: not used"
    )
    return None, unknown or why


def _sum(ops: Sequence[MeasuredOp]) -> tuple[OwnWork | None, str]:
    reasons = "; ".join(dict.fromkeys(op.reason for op in ops if op.reason))
    total = NO_WORK
    for op in ops:
        if op.executed is None:
            return None, reasons
        total = total.plus(op.executed, op.calls)
    return total, reasons
