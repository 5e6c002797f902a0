"""What hooks or formulas missed, grouped by cause, with what to do about it and formula stubs."""

import csv
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from flopprof.formulas import load_op_formulas
from flopprof.formulas.external import find_op_formula
from flopprof.report.summary import GOOD
from flopprof.run import Run, whole
from flopprof.tables import VERDICTS
from flopprof.units import percent, safe_text, shorten, si

PLACES = 5  # modules named of one cause
SHAPES = 8  # shapes named in one stub


def missed(run: Run) -> list[dict[str, Any]]:
    """Return one entry per verdict and op that is not good news: unknown first, then by time.

    Each has `verdict`, `op`, `sites`, `calls`, `time_frac`, `flops`, `flops_at_most` (NaN where
    unknown), `modules` (their paths), `reason` (of the site that takes most time), `advice`, and
    `shapes`, those observed.
    """
    load_op_formulas()
    sites = run.sites[~run.sites["verdict"].isin(GOOD)]
    entries = []
    for (verdict, op), group in sites.groupby(["verdict", "op"], sort=False, observed=True):
        entries.append(
            {
                "verdict": str(verdict),
                "op": str(op),
                "sites": len(group),
                "calls": int(group["calls"].sum()),
                "time_frac": float(group["time_share_frac"].sum(min_count=1)),
                "flops": whole(float(group["flops"].sum(skipna=False))),
                "flops_at_most": whole(float(group["flops_at_most"].sum(skipna=False))),
                "modules": list(dict.fromkeys(group["module_path"])),
                "reason": safe_text(group["reason"].iloc[0]),
                "advice": _advice()["bounded" if _is_bounded(str(op), group) else str(verdict)],
                "shapes": list(dict.fromkeys(group["input_shapes"])),
            }
        )
    worst = {verdict: -rank for rank, verdict in enumerate(VERDICTS)}
    shares = sites.groupby("verdict", observed=True)["time_share_frac"].sum()
    return sorted(entries, key=lambda e: (-shares[e["verdict"]], worst[e["verdict"]]))


def _is_bounded(op: str, group: pd.DataFrame) -> bool:
    """Return whether the op has a formula, to which only values are missing."""
    return bool(group["flops"].isna().any()) and find_op_formula(op)[0] is not None


@cache
def _advice() -> dict[str, str]:
    with (Path(__file__).parent / "advice.csv").open(encoding="utf-8", newline="") as file:
        return {row["verdict"]: row["advice"] for row in csv.DictReader(file)}


def missed_text(entries: list[dict[str, Any]]) -> str:
    """Return the entries of `missed` as text: a paragraph per verdict, a line per op."""
    lines: list[str] = []
    for verdict in dict.fromkeys(entry["verdict"] for entry in entries):
        group = [entry for entry in entries if entry["verdict"] == verdict]
        share = pd.Series([entry["time_frac"] for entry in group]).sum(min_count=1)
        calls = sum(entry["calls"] for entry in group)
        lines += [f"{verdict}: {calls} calls, {percent(share)} of the time"]
        for entry in group:
            known = si(entry["flops"], "FLOPs")
            if entry["flops"] != entry["flops"]:
                known = f"FLOPs unknown, at most {si(entry['flops_at_most'], 'FLOPs')}"
            lines.append(
                f"  {shorten(entry['op'], 60)}: {entry['calls']} calls, "
                f"{percent(entry['time_frac'])} of the time, {known}"
            )
            places = [path or "(model)" for path in entry["modules"]]
            more = f" and {len(places) - PLACES} more" if len(places) > PLACES else ""
            lines.append(f"    in {', '.join(places[:PLACES])}{more}")
            lines.append(f"    {entry['reason']}")
        lines += [f"  What to do: {text}" for text in dict.fromkeys(e["advice"] for e in group)]
        lines += [""]
    return "\n".join(lines).rstrip() or "Nothing was missed."


def stubs(run: Run) -> str:
    """Return Python source with a formula to fill in for each op whose FLOPs have no formula.

    Fit for `--formulas FILE` as it is: until it is filled in, a formula says "unknown". '' where
    every op has a formula.
    """
    load_op_formulas()
    sites = run.sites[run.sites["flops"].isna() & run.sites["op"].str.contains("::", regex=False)]
    lacking = [op for op in sites["op"].unique() if find_op_formula(op)[0] is None]
    lacking = [op for op in lacking if not op.startswith("inductor::")]  # code, another each time
    sites = sites[sites["op"].isin(lacking)]
    if not lacking:
        return ""
    parts = ["from flopprof import op_formula", "from flopprof.formulas import OpCall, Work", ""]
    for number, (op, group) in enumerate(sites.groupby("op", sort=False, observed=True)):
        seen = list(dict.fromkeys(zip(group["input_shapes"], group["dtype"], strict=True)))
        notes = [f"    {shapes or 'no tensor'} ({dtype or '?'})" for shapes, dtype in seen[:SHAPES]]
        notes = [_plain(note) for note in notes]
        if len(seen) > SHAPES:
            notes.append(f"    and {len(seen) - SHAPES} more")
        named = "".join(c if c.isascii() and c.isalnum() else "_" for c in str(op))
        parts += [
            f"\n@op_formula({str(op)!r})",
            f"def formula_{number}_{named}(call: OpCall) -> Work | None:",
            f'    """{_plain(str(op))}: say here what it computes. Shapes seen:\n',
            *notes,
            '    """',
            "    # call.shape(0), call.integer(1), call.itemsize, … are the arguments.",
            "    # return Work(matmul_flops=…, vector_flops=…, min_bytes=…)",
            "    return None\n",
        ]
    return "\n".join(parts)


def _plain(text: str) -> str:
    """Return what a trace may have chosen as text that ends no docstring."""
    return safe_text(text).replace("\\", "/").replace('"', "'")
