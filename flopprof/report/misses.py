"""What hooks or formulas missed, grouped by cause, with what to do about it and formula stubs."""

import math
import textwrap
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import pandas as pd

from flopprof.formulas import load_op_formulas
from flopprof.formulas.external import find_op_formula
from flopprof.judge.verdicts import ADVICE, GOOD, VERDICTS
from flopprof.run import Run, whole
from flopprof.units import clean_text, counted, percent, safe_text, shorten, si, text_width

PLACES = 5  # modules named of one cause
SHAPES = 8  # shapes named in one stub
_ADVICE_IF_BOUNDED = (
    "Where a formula lacks values only, its bound holds. Record with record_shapes=True and a "
    "torch that writes Concrete Inputs (2.1 or newer) for more."
)


@dataclass(frozen=True, slots=True)
class MissedOp:
    """All sites of one op and verdict.

    Attributes:
        time_frac: Share of the run's time; NaN where nothing was timed.
        flops: FLOPs of all these sites; NaN where one is unknown.
        flops_at_most: Their bound; NaN where there is none.
        known_flops: FLOPs of those that are known; NaN where none is.
        modules: Paths of the modules they are in, most time first.
        reason: Of the site that takes most time.
        shapes: Those observed.
    """

    verdict: str
    op: str
    sites: int
    calls: int
    time_frac: float
    flops: float
    flops_at_most: float
    known_flops: float
    modules: list[str]
    reason: str
    shapes: list[str]


@dataclass(frozen=True, slots=True)
class Missed:
    """All sites of one verdict that is not good news: sums as for `MissedOp`, and the ops."""

    verdict: str
    sites: int
    calls: int
    time_frac: float
    known_flops: float
    flops_at_most: float
    ops: list[MissedOp]


def missed(run: Run) -> list[Missed]:
    """Return what hooks or formulas missed: a verdict each, that of most time first."""
    bad = run.sites[~run.sites["verdict"].isin(GOOD)]
    groups = []
    for verdict in reversed(VERDICTS):  # of equal time, the worse first
        sites = bad[bad["verdict"] == verdict]
        if len(sites):
            groups.append(_missed_verdict(verdict, sites))
    return sorted(groups, key=lambda group: -_number(group.time_frac))


def _missed_verdict(verdict: str, sites: pd.DataFrame) -> Missed:
    by_op = sites.groupby("op", sort=False, observed=True)
    return Missed(
        verdict,
        sites=len(sites),
        calls=int(sites["calls"].sum()),
        time_frac=float(sites["time_share_frac"].sum(min_count=1)),
        known_flops=float(sites["flops"].sum(min_count=1)),
        flops_at_most=float(sites["flops_at_most"].sum(skipna=False)),
        ops=[_missed_op(verdict, str(op), group) for op, group in by_op],
    )


def _missed_op(verdict: str, op: str, group: pd.DataFrame) -> MissedOp:
    name = str(group["input_shapes"].iloc[0]) if op == "(kernels)" else op
    return MissedOp(
        verdict,
        clean_text(name),
        sites=len(group),
        calls=int(group["calls"].sum()),
        time_frac=float(group["time_share_frac"].sum(min_count=1)),
        flops=float(group["flops"].sum(skipna=False)),
        flops_at_most=float(group["flops_at_most"].sum(skipna=False)),
        known_flops=float(group["flops"].sum(min_count=1)),
        modules=[clean_text(path) for path in dict.fromkeys(group["module_path"])],
        reason=safe_text(group["reason"].iloc[0]),
        shapes=list(dict.fromkeys(group["input_shapes"])),
    )


def _number(value: float) -> float:
    return 0.0 if math.isnan(value) else value


def heading(run: Run) -> str:
    """Return what stands above the list: first of all, whether the count is complete."""
    is_graph = len(run.sites) > 0 and run.sites["op"].astype(str).str.startswith("onnx::").all()
    by_whom = "formulas" if run.recorded_elsewhere or is_graph else "hooks"
    groups = run.misses
    lacking = run.sites["flops"].isna() | (run.sites["verdict"] == "not_run")
    if lacking.any():
        share = run.sites.loc[lacking, "time_share_frac"].sum(min_count=1)
        of_time = "" if math.isnan(share) else f" ({percent(share)} of the time)"
        sites = counted(int(lacking.sum()), "site")
        text = f"The count is not complete: the FLOPs of {sites}{of_time} are not known."
        return f"{text} What the {by_whom} missed:"
    if not groups:
        return f"The count is complete: the {by_whom} missed nothing."
    if run.recorded_elsewhere:
        return "The count is complete. What stands on less than a formula and its shapes:"
    return "The count is complete: formulas know what the hooks missed, which is:"


def share_text(frac: float) -> str:
    """Return ", 12.3 % of the time"; nothing where nothing was timed."""
    return "" if math.isnan(frac) else f", {percent(frac)} of the time"


def advice(entry: MissedOp) -> str:
    """Return what to do about a missed op."""
    return _ADVICE_IF_BOUNDED if _is_bounded(entry) else ADVICE[entry.verdict]


def to_rows(groups: list[Missed]) -> list[dict[str, Any]]:
    """Return one entry per verdict and op for `--json`: the fields of `MissedOp`, and `advice`."""
    rows = []
    for entry in chain.from_iterable(group.ops for group in groups):
        row = asdict(entry) | {"advice": advice(entry)}
        del row["known_flops"]
        rows.append(row | {name: whole(row[name]) for name in ("flops", "flops_at_most")})
    return rows


def _is_bounded(entry: MissedOp) -> bool:
    """Return whether the op has a formula, to which only values are missing."""
    load_op_formulas()
    return math.isnan(entry.flops) and find_op_formula(entry.op) is not None


def missed_text(run: Run) -> str:
    """Return `missed` as text: whether the count is complete, a paragraph per verdict."""
    lines = [heading(run)]
    for group in run.misses:
        calls = counted(group.calls, "call")
        lines += ["", f"{group.verdict}: {calls}{share_text(group.time_frac)}"]
        for entry in group.ops:
            flops = si(entry.flops, "FLOPs")
            if math.isnan(entry.flops):
                flops = f"FLOPs unknown, at most {si(entry.flops_at_most, 'FLOPs')}"
            calls = counted(entry.calls, "call")
            share = share_text(entry.time_frac)
            lines.append(f"  {shorten(entry.op, 60)}: {calls}{share}, {flops}")
            places = [path or "(model)" for path in entry.modules]
            more = f" and {len(places) - PLACES} more" if len(places) > PLACES else ""
            lines.append(f"    in {', '.join(places[:PLACES])}{more}")
            lines += _indented(entry.reason, "    ", "    ")
        for text in dict.fromkeys(map(advice, group.ops)):
            lines += _indented(f"What to do: {text}", "  ", "    ")
    return "\n".join(lines)


def _indented(text: str, first: str, others: str) -> list[str]:
    """Return a text in lines that the terminal has room for."""
    return textwrap.wrap(text, text_width(), initial_indent=first, subsequent_indent=others)


def stubs(run: Run) -> str:
    """Return Python source with a formula to fill in for each op whose FLOPs have no formula.

    Fit for `--formulas FILE` as it is: until it is filled in, a formula says "unknown". '' where
    every op has a formula.
    """
    load_op_formulas()
    sites = run.sites[run.sites["flops"].isna() & run.sites["op"].str.contains("::", regex=False)]
    lacking = []
    for op in sites["op"].unique():
        is_generated = op.startswith("inductor::")  # code that is another each time
        if not is_generated and find_op_formula(op) is None:
            lacking.append(op)
    sites = sites[sites["op"].isin(lacking)]
    if not lacking:
        return ""
    parts = ["from flopprof import op_formula", "from flopprof.formulas import OpCall, Work", ""]
    for number, (op, group) in enumerate(sites.groupby("op", sort=False, observed=True)):
        parts += _stub(str(op), number, group)
    return "\n".join(parts)


def _stub(op: str, number: int, sites: pd.DataFrame) -> list[str]:
    """Return the lines of a formula of `op` to fill in, with the shapes of its sites."""
    calls_seen = list(dict.fromkeys(zip(sites["input_shapes"], sites["dtype"], strict=True)))
    notes = [
        _plain(f"    {shapes or 'no tensor'} ({dtype or '?'})")
        for shapes, dtype in calls_seen[:SHAPES]
    ]
    if len(calls_seen) > SHAPES:
        notes.append(f"    and {len(calls_seen) - SHAPES} more")
    name = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in op)
    return [
        f"\n@op_formula({op!r})",
        f"def formula_{number}_{name}(call: OpCall) -> Work | None:",
        f'    """{_plain(op)}: say here what it computes. Shapes seen:\n',
        *notes,
        '    """',
        "    # call.shape(0), call.integer(1), call.itemsize, … are the arguments.",
        "    # return Work(matmul_flops=…, vector_flops=…, min_bytes=…)",
        "    return None\n",
    ]


def _plain(text: str) -> str:
    """Return what a trace may have chosen as text that ends no docstring."""
    return safe_text(text).replace("\\", "/").replace('"', "'")
