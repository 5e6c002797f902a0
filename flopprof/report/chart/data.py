"""Select, merge and add up what a chart of one run shows.

Only `sites`, `rooflines` and `meta` of a run are used; its kernels to group by them.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from flopprof.errors import UsageError
from flopprof.judge.roofs import main_units, site_roofline
from flopprof.provenance import CallProvenance
from flopprof.tables import ROOFLINES, SITES
from flopprof.units import duration

if TYPE_CHECKING:
    from flopprof.run import Run

GROUPS = {
    "op": ["op", "phase", "input_shapes", "dtype", "kind"],  # equal work, in whichever module
    "site": ["site_id"],
    "module": ["module_path"],
    "kind": ["kind"],
    "kernel": ["kernel"],  # the one that took most of a site's time
}
PLACES = {
    "rest": "other points",
    "other": "other, each below 0.5 %",
    "free": "moves data only",
    "unknown": "FLOPs unknown",
    "no_bytes": "FLOPs known, bytes unknown",
}
"""Where time is that has no mark of its own, and what the table calls it."""

MANY = 40  # points drawn where more than half of the time would be merged into "other"
SMALL_FRAC = 0.005  # of time: a smaller mark would be a speck; merged into "other"
_PRECEDENCE = {"user": 0, "measured": 1, "datasheet": 2, "formula": 3}
_SUMS = ["time_us", "share_frac", "flops", "min_bytes", "ideal_us", "calls", "sites"]
_TEXTS = ["op", "phase", "kind", "dtype", "bound", "input_shapes", "kernel"]


@dataclass(frozen=True, slots=True)
class ChartData:
    """Everything a chart shows."""

    points: pd.DataFrame  # one row per mark, by time; the first `top` have a label
    merged: pd.DataFrame  # one row per place (`PLACES`) of all other time: with points, 100 %
    table: pd.DataFrame  # labelled points, the rest of them as one row, `merged`
    run: pd.DataFrame  # one row: all known FLOPs over wall time
    roofs: pd.DataFrame  # ceilings, `unit` FLOP/s or B/s; of one name, what counts comes first
    finding: str  # what the title says
    coverage_frac: float  # share of time whose FLOPs are known
    names: Mapping[str, str]  # of several runs, by letter, the rows' `series`


def chart_data(
    run: "Run",
    *,
    top: int = 8,
    group_by: str = "op",
    level: str | None = None,
    numbers: Mapping[str, str] | None = None,
) -> ChartData:
    """Return what a chart of `run` shows; every site's time is in exactly one row.

    `top` points get a number, or those whose key is in `numbers`; `group_by` is one of `GROUPS`;
    `level` is the memory whose bandwidth bounds the rates, the main one unless given.

    Raises:
        UsageError: The run has no times, or there is no such grouping or level.
    """
    if group_by not in GROUPS:
        raise UsageError(f"cannot group by {group_by!r}", remedy=f"use {', '.join(GROUPS)}")
    sites = SITES.check(run.sites).replace([math.inf, -math.inf], math.nan)
    rooflines = ROOFLINES.check(run.rooflines)
    if level is not None:
        level, sites = _at_level(sites, rooflines, level)
    if group_by == "kernel":
        sites = sites.assign(kernel=_main_kernels(run, sites))
    sites = sites[sites["time_us"] > 0].sort_values(["time_us", "site_id"], ascending=[False, True])
    if not len(sites):
        raise UsageError("the run has no times, so no rates", remedy="flopprof run MODEL has both")
    flops, verdict = sites["flops"], sites["verdict"]
    confirmed = sites["profiler_flops"] == sites["matmul_flops"]
    estimated = sites["flops_source"] == "generated"
    sites = sites.assign(
        dtype=sites["dtype"].map(_dtype_label),
        place=np.select(
            [flops.isna(), flops == 0, ~(sites["min_bytes"] > 0)],
            ["unknown", "free", "no_bytes"],
            "point",
        ),
        share_frac=sites["time_us"] / sites["time_us"].sum(),
        ideal_us=flops / sites["attainable_flops_per_s"] * 1e6,
        known_by=np.select(
            [flops.isna(), verdict == "agrees", verdict == "disagrees", estimated, confirmed],
            [5, 0, 4, 3, 1],
            2,
        ),
        sites=1,
        kernel=sites.get("kernel", ""),
    )
    plotted = sites["place"] == "point"
    number = sites.groupby(GROUPS[group_by]).ngroup()
    groups = _merge(sites, number.where(plotted, sites["place"]))
    path, op = groups["module_path"], groups["op"].str.removeprefix("aten::")
    op += (" (" + groups["phase"] + ")").where(groups["phase"] != "forward", "")
    module = path.replace("", "(the model itself)")
    names = {"module": module, "kind": groups["kind"], "kernel": groups["kernel"]}
    groups["name"] = names.get(group_by, (path + " · " + op).str.strip(" ·"))
    groups["key"] = groups["name"] + groups.groupby("name").cumcount().astype(str)
    point = groups["place"] == "point"
    alike = groups["name"].where(point).duplicated(keep=False) & point
    groups["name"] += (" " + groups["input_shapes"]).where(alike, "").str.rstrip()
    small = point & (groups["share_frac"] < SMALL_FRAC)
    if groups.loc[small, "share_frac"].sum() > 0.5:  # nearly all: show the largest of it
        small &= point.cumsum() > MANY
    groups["place"] = groups["place"].mask(small, "other")
    points = groups[point & ~small].reset_index(drop=True)
    if numbers is None:
        numbers = {key: str(n) for n, key in enumerate(points["key"][:top], start=1)}
    points["label"] = [numbers.get(key, "") for key in points["key"]]
    parts = pd.concat([points[points["label"] == ""].assign(place="rest"), groups[~point | small]])
    mostly = parts.groupby(["place", "known_by"])["time_us"].sum().groupby("place").idxmax()
    parts = _merge(parts, "place").sort_values("place", key=lambda p: p.map([*PLACES].index))
    ranks = [mostly[place][1] for place in parts["place"]]
    parts["known_by"] = np.array(ranks, dtype=np.int64)  # of most of the time
    parts["name"] = parts["place"].map(PLACES) + " (" + parts["sites"].astype(str) + ")"
    parts["label"] = list("abcde"[: len(parts)])
    known = sites[flops.notna()]
    if len(known):  # what moves bytes unknown and does no FLOPs leaves intensity an upper bound
        moved = known["min_bytes"].where(known["flops"] > 0, known["min_bytes"].fillna(0.0))
        known = known.assign(min_bytes=moved)
    whole = _merge(known if len(known) else sites, lambda _: 0).assign(label="★", place="run")
    wall_us, which, compiled = _wall(run)
    timed = 0 < wall_us < math.inf
    whole["time_us"] = wall_us if timed else sites["time_us"].sum()
    whole["name"] = f"whole{which} run ({'wall' if timed else 'op'} time)"
    whole[["share_frac", "ideal_us"]] = math.nan
    # As the totals: a sum of shares is not 1 where all is known.
    whole["coverage_frac"] = known["time_us"].sum() / sites["time_us"].sum()
    return ChartData(
        points=_rates(points),
        merged=_rates(parts[parts["place"] != "rest"]),
        table=_rates(pd.concat([points[points["label"] != ""], parts])),
        run=_rates(whole),
        roofs=_roofs(rooflines, sites[plotted], level),
        finding=_finding(sites) + (f" ({level})" if level else "") + compiled,
        coverage_frac=float(whole["coverage_frac"].iloc[0]),
        names={},
    )


def _wall(run: "Run") -> tuple[float, str, str]:
    """Return the wall time that belongs to the points, whose it is, and the compiled one told of.

    The sites of a compiled run are the eager call's.
    """
    provenance = run.provenance
    if not isinstance(provenance, CallProvenance) or not provenance.timing.eager_wall_us:
        return provenance.wall_us, "", ""
    eager_us = provenance.timing.eager_wall_us.median
    told = f"; eager, compiled in {duration(provenance.wall_us)} of {duration(eager_us)}"
    return eager_us, " eager", told


def _at_level(sites: pd.DataFrame, rooflines: pd.DataFrame, level: str) -> tuple[str, pd.DataFrame]:
    """Return a memory level as the run names it, and the sites with their roofs over it."""
    usable = rooflines[rooflines["valid"] & (rooflines["peak_bytes_per_s"] > 0)]
    levels = {name.upper(): name for name in usable["memory_level"]}
    for main, same in (("DRAM", "HBM"), ("HBM", "DRAM")):
        levels.setdefault(main, levels.get(same, ""))
    if not (name := levels.get(level.upper())):
        known = ", ".join(sorted(filter(None, {*levels.values()}))) or "none"
        problem = f"no bandwidth of {level} is known for this run"
        raise UsageError(problem, remedy=f"its memory levels: {known}")
    units = sites["unit"].where(
        sites["unit"] != "", main_units(sites["matmul_flops"], sites["vector_flops"])
    )
    roofline = site_roofline({"dtype": sites["dtype"], "unit": units}, rooflines, (name,))
    roof = roofline.at(sites["intensity_flops_per_byte"])
    return name, sites.assign(
        attainable_flops_per_s=roof.attainable_flops_per_s,
        bound=roof.bound(sites["achieved_flops_per_s"].to_numpy()),
    )


def _main_kernels(run: "Run", sites: pd.DataFrame) -> "pd.Series[str]":
    """Return, for each site, the kernel that took most of its time."""
    kernels = run.kernels[run.kernels["kind"] == "compute"]
    if not len(kernels):
        raise UsageError("the run has no kernels to group by", remedy="--group-by op, or module")
    site_of = np.append(run.ops["site_id"].to_numpy(), -1)  # the last: of kernels without an op
    launched = kernels[["kernel", "duration_us"]].assign(
        site_id=site_of[kernels["op_id"].to_numpy()]
    )
    groups = launched.groupby(["site_id", "kernel"], sort=False, observed=True)["duration_us"]
    sums = groups.sum().reset_index()
    longest = sums.sort_values("duration_us", ascending=False, kind="stable")
    by_site = longest.drop_duplicates("site_id").set_index("site_id")["kernel"].astype(object)
    return sites["site_id"].map(by_site).fillna("(no kernel of an op)")


def _merge(rows: pd.DataFrame, by: Any) -> pd.DataFrame:
    """Return one row per group, by time. One unknown part makes an unknown sum."""
    groups = rows.groupby(by, sort=False)
    sums = groups[_SUMS].sum().where(groups[_SUMS].count().eq(groups.size(), axis=0))
    texts = groups[_TEXTS].first().astype("str").where(groups[_TEXTS].nunique() == 1, "")
    others = groups.agg(
        known_by=("known_by", "max"),
        place=("place", "first"),
        reason=("reason", _most_telling),
        module_path=("module_path", _path_pattern),
    )
    merged = sums.join([texts, others]).assign(label="", name="", key="", series="", head=True)
    return merged.sort_values("time_us", ascending=False, kind="stable", ignore_index=True)


def _most_telling(reasons: Iterable[str]) -> str:
    """Return the first reason that says why a part is above its roof, else the first."""
    found = list(reasons)
    return next((reason for reason in found if "; above the " in reason), found[0])


def _rates(rows: pd.DataFrame) -> pd.DataFrame:
    """Add the rates. For merged work the roof is that of each part: time at the roof over time."""
    ideal_us = rows["ideal_us"].where(rows["ideal_us"] > 0)
    return rows.assign(
        intensity_flops_per_byte=rows["flops"] / rows["min_bytes"].where(rows["min_bytes"] > 0),
        achieved_flops_per_s=rows["flops"] / rows["time_us"] * 1e6,
        attainable_flops_per_s=rows["flops"] / ideal_us * 1e6,
        efficiency_frac=ideal_us / rows["time_us"],
    ).reset_index(drop=True)


def _path_pattern(paths: Iterable[str]) -> str:
    """Return one text for several module paths: `layer1.*.conv1|conv2`."""
    levels = [{*level} for level in zip_longest(*(path.split(".") for path in {*paths}))]
    return ".".join(
        "*"
        if len(level) > 2 or None in level or (len(level) == 2 and "0" in level)
        else "|".join(sorted(level))
        for level in levels
    )


def _finding(sites: pd.DataFrame) -> str:
    """Return what most of the time goes to, in a few words."""
    place, bound = sites["place"], sites["bound"]
    what = np.select(
        [
            place == "free",
            place == "unknown",
            bound == "memory",
            bound == "compute",
            bound == "overhead",
        ],
        [
            "only moves data",
            "has unknown FLOPs",
            "is memory-bound",
            "is compute-bound",
            "is overhead-bound",
        ],
        ("is " + sites["kind"] + ", without a valid ceiling").to_numpy(object),
    )
    least, at_most = sites["time_p5_us"], sites["time_p95_us"]
    spread = {  # of one traced call, or of a trace from elsewhere, what it says is all there is
        "least_us": least.fillna(sites["time_us"]),
        "most_us": at_most.fillna(sites["time_us"]),
    }
    columns = ["share_frac", "time_us", "ideal_us", *spread]
    sums = sites.assign(**spread).groupby(what)[columns].sum()
    sums = sums.sort_values("share_frac", ascending=False, kind="stable")
    most = sums.iloc[0]
    text = f"{100 * most['share_frac']:.0f} % of time {most.name}"
    if len(sums) > 1 and sums["most_us"].iloc[1:].max() > most["least_us"] and least.notna().any():
        second = sums.iloc[1]
        also = f"{100 * second['share_frac']:.0f} % {second.name}"
        return f"cannot tell what takes most time: {text}, {also}, and calls differ by more"
    roof_percent = 100 * most["ideal_us"] / most["time_us"]
    return f"{text}, at {roof_percent:.0f} % of its roof" if "bound" in text else text


def _roofs(rooflines: pd.DataFrame, plotted: pd.DataFrame, level: str | None) -> pd.DataFrame:
    """Return one ceiling of each dtype in the run, and the bandwidths; by precedence.

    `ridge` is where a dtype's ceiling meets the bandwidth of `level`, the main memory's unless
    given. A dtype's ceiling is that of matmuls where any run in it, else that of vector work.
    """
    rows = rooflines.assign(dtype=rooflines["dtype"].map(_dtype_label))
    matmul = (plotted["matmul_flops"] > plotted["vector_flops"]).groupby(plotted["dtype"]).any()
    shares = plotted["share_frac"].groupby(plotted["dtype"]).sum()
    shares = shares[shares >= min(SMALL_FRAC, shares.max())]
    unit = rows["dtype"].map(matmul.map({True: "tensor", False: "vector"}))
    solid = rows["valid"] & rows["kind"].isin(["user", "measured"])  # on this machine
    main = rows["memory_level"].isin(["DRAM", "HBM"])
    kind = rows["kind"].where(rows["valid"], rows["kind"] + ", busy machine")
    rank = rows["kind"].map(_PRECEDENCE).astype(float) + np.where(rows["valid"], 0, 10)
    rows = rows.assign(origin=kind, rank=rank, solid=solid)
    flat = rows.assign(
        name=rows["dtype"] + np.where(unit == "vector", " vector", ""),
        value=rows["peak_flops_per_s"],
        order=-rows["dtype"].map(shares).astype(float),
        unit="FLOP/s",
    )[rows["dtype"].isin(shares.index) & (rows["unit"] == unit)]
    names = {"memory_level": "name", "peak_bytes_per_s": "value"}
    chosen = rows["memory_level"] == level if level else main
    memory = rows.rename(columns=names).assign(order=1.0 - chosen, unit="B/s")
    memory = memory[main | chosen | solid]
    columns = ["unit", "name", "value", "kind", "origin", "solid", "source", "order", "rank"]
    roofs = pd.concat([flat[columns], memory[columns]])
    roofs = roofs[roofs["value"].between(0, math.inf, inclusive="neither")]
    roofs = roofs.sort_values(["order", "name", "rank"])
    flats = roofs["unit"] == "FLOP/s"
    bandwidth = roofs.loc[~flats, "value"].head(1).sum() or math.nan
    roofs["ridge"] = (roofs["value"] / bandwidth).where(flats)
    return roofs.drop_duplicates(["unit", "name", "kind"]).reset_index(drop=True)


def _dtype_label(dtype: str) -> str:
    """Return a dtype's usual short name: fp32, TF32, bf16."""
    short = dtype.replace("tfloat32", "TF32").replace("bfloat", "bf").replace("float", "fp")
    return short.replace("_", " ")
