"""Rows of a report's tables: the top sites, and sums of kernels and of modules."""

from typing import Any

import pandas as pd

from flopprof.provenance import CountProvenance
from flopprof.run import Run
from flopprof.units import shown

TOP = 15  # sites listed
LEAST_LISTED_FRAC = 0.005  # of the time: a site without FLOPs is listed if it takes more
# Columns of the table of sites, and their headings there.
_FIGURES_OF_A_COUNT = {
    "calls": "calls",
    "flops": "FLOPs",
    "intensity_flops_per_byte": "FLOP/B",
}
_FIGURES = {
    "calls": "calls",
    "flops": "FLOPs",
    "time_share_frac": "time",
    "achieved_flops_per_s": "FLOP/s",
    "intensity_flops_per_byte": "FLOP/B",
    "efficiency_frac": "roof",
    "bound": "bound",
}


def is_timed(run: Run) -> bool:
    """Return whether the run has times (a pure count has none)."""
    measured = not isinstance(run.provenance, CountProvenance)
    return measured and bool(run.sites["time_us"].notna().any())


def top_sites(
    run: Run, top: int = TOP, *, sort: str | None = None
) -> tuple[list[str], list[list[str]]]:
    """Return header and rows, as text, of the sites that take most time (or have most FLOPs).

    Args:
        run: The result.
        top: How many.
        sort: A column of numbers to sort by instead, the largest first.
    """
    timed = is_timed(run)
    sites = run.sites
    does_work = sites["flops"].isna() | (sites["flops"] > 0)
    sites = sites[does_work | (sites["time_share_frac"] > LEAST_LISTED_FRAC)]
    if sort:
        sites = sites.sort_values(sort, ascending=False, kind="stable")
    sites = sites.head(top)
    ranks = ["rank"] if "rank" in sites else []
    figures = _FIGURES if timed else _FIGURES_OF_A_COUNT
    alike = sites.duplicated(["module_path", "op", *ranks], keep=False)
    rows = []
    for site, is_alike in zip(sites.itertuples(index=False), alike, strict=True):
        op = short_op(site)
        if is_alike and site.op != "(kernels)":  # shapes tell it from its likes
            op = f"{op} {site.input_shapes}".strip()
        row = [site.module_path or "(model)", op]
        row += [str(getattr(site, name)) for name in ranks]
        row += [shown(name, getattr(site, name)) for name in figures]
        rows.append([*row, site.verdict])
    return ["module", "op", *ranks, *figures.values(), "verdict"], rows


def short_op(site: Any) -> str:
    """Return the op's name without PyTorch's own namespace; a kernel's name for a hidden one."""
    if site.op == "(kernels)":
        return str(site.input_shapes)
    return str(site.op).removeprefix("aten::")


def kernel_sums(run: Run) -> pd.DataFrame:
    """Return, per kernel's name and kind: calls, time_us, time_share_frac; by time."""
    groups = run.kernel_sums.groupby(["kernel", "kind"], sort=False, observed=True)
    sums = groups[["calls", "time_us"]].sum().reset_index()
    sums["time_share_frac"] = sums["time_us"] / sums["time_us"].sum()
    return sums.sort_values("time_us", ascending=False, kind="stable", ignore_index=True)


def module_sums(run: Run) -> pd.DataFrame:
    """Return `Run.by_module` with time_share_frac and achieved_flops_per_s of all inside."""
    sums = run.by_module()
    time_us = sums["time_us"].where(sums["time_us"] > 0)
    sums["time_share_frac"] = time_us / run.sites["time_us"].sum(min_count=1)
    sums["achieved_flops_per_s"] = sums["flops"] / time_us * 1e6
    return sums
