"""What hardware's counters say beside the counts: lines of a summary, a table, a JSON block."""

import math
from typing import Any

import pandas as pd

from flopprof.jobfacts import Part
from flopprof.report.answer import json_block
from flopprof.run import Run
from flopprof.units import UNKNOWN, counted, percent, shorten, si, three_digits

TOP = 15  # sites listed
HEADER = ["module", "op", "matmul", "executed", "useful", "all executed", "DRAM", "L2", "L1", "by"]
NUMERIC = frozenset(HEADER[2:9])
LEVELS = {"DRAM": "dram_bytes", "L2": "l2_bytes", "L1": "l1_bytes"}
"""Memory levels of which counters tell the traffic, and the columns that have it."""
_OF_JSON = [
    "site_id", "op", "module_path", "phase", "input_shapes", "dtype", "calls", "verdict",
    "matmul_flops", "vector_flops", "flops", "min_bytes", "time_us", "executed_flops",
    "executed_matmul_flops", "executed_vector_flops", "executed_fma_flops", "executed_int_ops",
    "useful_frac", "dram_bytes", "l2_bytes", "l1_bytes", "executed_source", "joined_by",
    "executed_reason",
]  # fmt: skip


class Traffic(Part, frozen=True, kw_only=True):
    """Bytes measured at one memory level, over the sites of which both are known.

    Attributes:
        measured_bytes: What counters tell.
        min_bytes: The compulsory traffic of the same sites.
        excess: measured over compulsory.
    """

    measured_bytes: float
    min_bytes: float
    excess: float


class ExecutedSums(Part, frozen=True, kw_only=True):
    """What was executed, by counters, beside what was counted.

    Attributes:
        source: The instrument: ncu, rocprof, stepping.
        files: Files of counters.
        launches: Launches in them.
        joined: How launches were found, and how many: nvtx, order, name; of what was stepped,
            shapes (ops) or module (hidden time).
        sites_stepped: Sites that nothing counts, whose calls or gaps were to be stepped.
        notes: What did not fit.
        compared_frac: Share of the time in sites of which counters tell FLOPs or a part of them.
        measured_flops: FLOPs executed in sites that nobody counts; in no other figure.
        measured_frac: Their share of the time, beside coverage_frac.
        counted_products_flops: Counted FLOPs of the products that are compared.
        executed_products_flops: What was executed for these.
        useful_frac: The first over the second.
        traffic: By memory level: DRAM, L2, L1.
    """

    source: str
    files: tuple[str, ...]
    launches: int
    joined: dict[str, int]
    sites_stepped: int
    notes: tuple[str, ...]
    compared_frac: float
    measured_flops: float
    measured_frac: float
    counted_products_flops: float
    executed_products_flops: float
    useful_frac: float
    traffic: dict[str, Traffic]


@json_block("executed")
def executed_sums(run: Run) -> ExecutedSums | None:
    """What was executed, by counters; null where none were joined."""
    facts = run.provenance.executed
    measured = run.measured
    if facts is None or measured is None:
        return None
    products = products_of(run.sites)
    matmul = products["matmul_flops"].sum(min_count=1)
    executed = products["products_flops"].sum(min_count=1)
    return ExecutedSums(
        source=facts.source,
        files=facts.files,
        launches=facts.launches,
        joined=facts.joined,
        sites_stepped=facts.sites_stepped,
        notes=facts.notes,
        compared_frac=measured.compared_frac,
        measured_flops=measured.flops,
        measured_frac=measured.coverage_frac,
        counted_products_flops=matmul,
        executed_products_flops=executed,
        useful_frac=matmul / executed,
        traffic={level: traffic for level in LEVELS if (traffic := traffic_at(run, level))},
    )


def products_of(sites: pd.DataFrame) -> pd.DataFrame:
    """Return the sites whose products are compared, with `products_flops`: those executed."""
    compared = sites[sites["useful_frac"].notna()]
    executed = (compared["matmul_flops"] / compared["useful_frac"]).round()
    return compared.assign(products_flops=executed)


def traffic_at(run: Run, level: str) -> Traffic | None:
    """Return measured and compulsory bytes at a memory level; None where none is known."""
    column = LEVELS[level]
    if column not in run.sites:
        return None
    with_bytes = run.sites[run.sites[column].notna() & (run.sites["min_bytes"] > 0)]
    if not len(with_bytes):
        return None
    measured = float(with_bytes[column].sum())
    least = float(with_bytes["min_bytes"].sum())
    return Traffic(measured_bytes=measured, min_bytes=least, excess=measured / least)


def executed_lines(run: Run) -> list[tuple[str, str]]:
    """Return the summary's lines on what was executed; none where no counters were joined."""
    sums = executed_sums(run)
    if sums is None:
        return []
    lines = [("Executed", _joined_text(sums))]
    if not math.isnan(sums.useful_frac):
        text = f"products: {si(sums.counted_products_flops, 'FLOPs')} counted, "
        text += f"{si(sums.executed_products_flops, 'FLOPs')} executed: "
        lines.append(("", f"{text}{percent(sums.useful_frac)} useful"))
    sites = run.measured.sites if run.measured else 0
    if sites:
        text = f"{si(sums.measured_flops, 'FLOPs')} in {counted(sites, 'site')} of unknown FLOPs, "
        text += f"{percent(sums.measured_frac)} of the time: measured, and in no count"
        lines.append(("Measured", text))
    for level, traffic in sums.traffic.items():
        text = f"{level} {si(traffic.measured_bytes, 'B')}, {three_digits(traffic.excess)} × the "
        lines.append(("Traffic", f"{text}compulsory {si(traffic.min_bytes, 'B')}"))
    return lines + [("Note", note) for note in sums.notes]


def _joined_text(sums: ExecutedSums) -> str:
    """Return what was joined, and how."""
    if not sums.files:  # no counters: stepped through one thread
        if not sums.sites_stepped:
            return (
                f"{sums.source}: each op has a formula, and no time is hidden: nothing was stepped"
            )
        stepped = sum(sums.joined.values())
        sites = counted(sums.sites_stepped, "site")
        return f"{sums.source}: of {sites} that nothing counts {stepped} measured in one thread"
    ways = ", ".join(f"{number} by {way}" for way, number in sums.joined.items()) or "none"
    text = f"{sums.source or UNKNOWN}, {', '.join(sums.files)}: of {sums.launches} launches joined "
    return f"{text}{ways}; counters of FLOPs for {percent(sums.compared_frac)} of the time"


def executed_table(run: Run, top: int = TOP) -> list[list[str]]:
    """Return the sites of which something was executed, by time: texts, headings first."""
    sites = run.sites
    if "executed_flops" not in sites:
        return []
    figures = ["executed_flops", "executed_matmul_flops", "dram_bytes", "l2_bytes", "l1_bytes"]
    executed_sites = sites[sites[figures].notna().any(axis=1)].head(top)
    rows = [HEADER]
    for site in executed_sites.itertuples(index=False):
        name = site.input_shapes if site.op == "(kernels)" else site.op.removeprefix("aten::")
        products = site.matmul_flops / site.useful_frac
        executed = site.executed_matmul_flops if math.isnan(products) else products
        rows.append(
            [
                site.module_path or "(model)",
                shorten(name, 40),
                si(site.matmul_flops, ""),
                si(executed, ""),
                percent(site.useful_frac),
                si(site.executed_flops, ""),
                *(_bytes(getattr(site, column), site.min_bytes) for column in LEVELS.values()),
                site.joined_by or UNKNOWN,
            ]
        )
    return rows


def _bytes(measured: float, least: float) -> str:
    """Return bytes, and how many times the compulsory ones they are."""
    if not least > 0 or math.isnan(measured):
        return si(measured, "B")
    return f"{si(measured, 'B')} ({three_digits(measured / least)} ×)"


def executed_object(run: Run) -> dict[str, Any]:
    """Return the sites of which something was executed, as JSON has them."""
    if "executed_flops" not in run.sites:
        return {"sites": []}
    rows = run.sites.loc[run.sites["joined_by"] != "", _OF_JSON].to_dict("records")
    return {"sites": rows}
