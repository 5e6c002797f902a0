"""Select, merge and add up what a chart of one run shows.

Only `sites`, `rooflines` and `meta` of a run are used; its kernels to group by them.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from flopprof.errors import UsageError
from flopprof.judge.roofs import main_units, site_roofline
from flopprof.provenance import CallProvenance
from flopprof.report.chart.program import compiled_of, program_sites, with_eager
from flopprof.report.executed import LEVELS
from flopprof.report.figures import sharing_ranks
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

KNOWN_BY = (
    "all sources agree",
    "formula, profiler",
    "formula only",
    "estimated",
    "sources disagree",
    "unknown",
)
"""How FLOPs are known, best first; from the third on nothing confirms them."""

MANY = 40  # points drawn where more than half of the time would be merged into "other"
SMALL_FRAC = 0.005  # of time: a smaller mark would be a speck; merged into "other"
_BUSY = 10  # added to a ceiling's precedence: one of an idle machine goes before all others
_PRECEDENCE = {"user": 0, "measured": 1, "datasheet": 2, "formula": 3}
_SUMS = ["time_us", "share_frac", "flops", "min_bytes", "ideal_us", "calls", "sites"]
_TEXTS = ["op", "phase", "kind", "dtype", "bound", "memory_level", "input_shapes", "kernel"]


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
    measured: pd.DataFrame  # one row per labelled point and memory level with measured bytes


def chart_data(
    run: "Run",
    *,
    top: int = 8,
    group_by: str = "op",
    level: str | None = None,
    numbers: Mapping[str, str] | None = None,
    measured: bool = False,
) -> ChartData:
    """Return what a chart of `run` shows; every site's time is in exactly one row.

    Args:
        run: A run with times.
        top: How many points get a number, those of most time.
        group_by: One of `GROUPS`: what is one point.
        level: The memory whose bandwidth bounds the rates; each site's own unless given.
        numbers: The points that get a number in place of the first, by key.
        measured: Whether points are also at the intensity of bytes that counters measured.

    Raises:
        UsageError: The run has no times, no measured bytes, or no such grouping or level.
    """
    if group_by not in GROUPS:
        raise UsageError(f"cannot group by {group_by!r}", remedy=f"use {', '.join(GROUPS)}")
    compiled = compiled_of(run)
    sites = SITES.check(run.sites if compiled is None else program_sites(run, compiled))
    sites = sites.replace([math.inf, -math.inf], math.nan)
    rooflines = ROOFLINES.check(run.rooflines)
    sites = _with_measured_bytes(sites) if measured else sites.drop(columns=_measured_of(sites))
    if level is not None:
        level, sites = _at_level(sites, rooflines, level)
    if group_by == "kernel":
        sites = sites.assign(kernel=_main_kernels(run, sites))
    sites = sites[sites["time_us"] > 0].sort_values(["time_us", "site_id"], ascending=[False, True])
    if not len(sites):
        raise UsageError("the run has no times, so no rates", remedy="flopprof run MODEL has both")
    sites = _with_places(sites)
    points, elsewhere = _divided(_named_groups(sites, group_by))
    if numbers is None:
        numbers = {key: str(number) for number, key in enumerate(points["key"][:top], start=1)}
    points["label"] = [numbers.get(key, "") for key in points["key"]]
    labelled = points["label"] != ""
    parts = _parts(pd.concat([points[~labelled].assign(place="rest"), elsewhere]))
    timing = _wall(run)
    whole = _whole_run(sites, timing)
    if compiled is not None:
        whole = with_eager(run, compiled, whole)
    at_level = f" ({level})" if level else ""
    return ChartData(
        points=_rates(points),
        merged=_rates(parts[parts["place"] != "rest"]),
        table=_rates(pd.concat([points[labelled], parts])),
        run=_rates(whole),
        roofs=_roofs(rooflines, sites[sites["place"] == "point"], level),
        finding=_finding(sites) + at_level + timing.compiled,
        coverage_frac=float(whole["coverage_frac"].iloc[0]),
        names={},
        measured=measured_points(_rates(points)),
    )


def _measured_of(sites: pd.DataFrame) -> list[str]:
    """Return the columns of measured bytes that a table has."""
    return [column for column in LEVELS.values() if column in sites]


def _with_measured_bytes(sites: pd.DataFrame) -> pd.DataFrame:
    """Return the sites, if counters measured bytes of any.

    Raises:
        UsageError: They measured none.
    """
    columns = _measured_of(sites)
    if not columns or not (sites[columns] > 0).any(axis=None):
        raise UsageError(
            "the run has no measured bytes",
            remedy="flopprof verify DIR --counters FILE -o VERIFIED joins hardware's counters",
        )
    return sites


def measured_points(points: pd.DataFrame) -> pd.DataFrame:
    """Return where labelled points are by measured bytes: a row per point and memory level.

    `intensity_flops_per_byte` is counted FLOPs over measured bytes, `compulsory` that of the point
    itself: the rate of both is the same, so what lies between them is traffic alone.
    """
    rows = []
    labelled = points[(points["label"] != "") & (points["intensity_flops_per_byte"] > 0)]
    for level, column in LEVELS.items():
        if column not in labelled:
            continue
        with_bytes = labelled[labelled[column] > 0]
        rows.append(
            pd.DataFrame(
                {
                    "label": with_bytes["label"],
                    "kind": with_bytes["kind"],
                    "level": level,
                    "intensity_flops_per_byte": with_bytes["flops"] / with_bytes[column],
                    "achieved_flops_per_s": with_bytes["achieved_flops_per_s"],
                    "compulsory": with_bytes["intensity_flops_per_byte"],
                }
            )
        )
    if rows:
        return pd.concat(rows, ignore_index=True)
    return pd.DataFrame(
        columns=[
            "label",
            "kind",
            "level",
            "intensity_flops_per_byte",
            "achieved_flops_per_s",
            "compulsory",
        ]
    )


def _with_places(sites: pd.DataFrame) -> pd.DataFrame:
    """Add where each site is shown, how its FLOPs are known, and what is summed up of it."""
    flops = sites["flops"]
    unknown = flops.isna()
    conditions = [unknown, flops == 0, ~(sites["min_bytes"] > 0)]
    return sites.assign(
        dtype=sites["dtype"].map(_dtype_label),
        place=np.select(conditions, ["unknown", "free", "no_bytes"], "point"),
        share_frac=sites["time_us"] / sites["time_us"].sum(),
        ideal_us=flops / sites["attainable_flops_per_s"] * 1e6,
        known_by=_known_by(sites),
        sites=1,
        kernel=sites.get("kernel", ""),
    )


def _known_by(sites: pd.DataFrame) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """Return, for each site, the rank in `KNOWN_BY` of how its FLOPs are known."""
    verdict = sites["verdict"]
    cases = {  # the first that holds
        "unknown": sites["flops"].isna(),
        "all sources agree": verdict == "agrees",
        "sources disagree": verdict == "disagrees",
        "estimated": sites["flops_source"] == "generated",
        "formula, profiler": sites["profiler_flops"] == sites["matmul_flops"],
    }
    ranks = [KNOWN_BY.index(name) for name in cases]
    return np.select([*cases.values()], ranks, KNOWN_BY.index("formula only"))


def _named_groups(sites: pd.DataFrame, group_by: str) -> pd.DataFrame:
    """Return a row for each point, and one for each place of the sites that are none.

    Their `key` tells points of equal names apart; it is the same in other runs of the model.
    """
    plotted = sites["place"] == "point"
    number = sites.groupby(GROUPS[group_by]).ngroup()
    groups = _merge(sites, number.where(plotted, sites["place"]))
    path = groups["module_path"]
    op = groups["op"].str.removeprefix("aten::")
    op += (" (" + groups["phase"] + ")").where(groups["phase"] != "forward", "")
    names = {
        "module": path.replace("", "(the model itself)"),
        "kind": groups["kind"],
        "kernel": groups["kernel"],
    }
    groups["name"] = names.get(group_by, (path + " · " + op).str.strip(" ·"))
    groups["key"] = groups["name"] + groups.groupby("name").cumcount().astype(str)
    point = groups["place"] == "point"
    alike = groups["name"].where(point).duplicated(keep=False) & point
    groups["name"] += (" " + groups["input_shapes"]).where(alike, "").str.rstrip()
    return groups


def _divided(groups: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the points to draw, and all other groups, those too small to draw among them."""
    point = groups["place"] == "point"
    small = point & (groups["share_frac"] < SMALL_FRAC)
    if groups.loc[small, "share_frac"].sum() > 0.5:  # nearly all: show the largest of it
        small &= point.cumsum() > MANY
    drawn = point & ~small
    elsewhere = groups.assign(place=groups["place"].mask(small, "other"))[~drawn]
    return groups[drawn].reset_index(drop=True), elsewhere


def _parts(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one row per place of what has no label, in the order of `PLACES`."""
    time_us = rows.groupby(["place", "known_by"])["time_us"].sum()
    most = time_us.groupby("place").idxmax()
    parts = _merge(rows, "place")
    parts = parts.sort_values("place", key=lambda places: places.map([*PLACES].index))
    ranks = [most[place][1] for place in parts["place"]]
    parts["known_by"] = np.array(ranks, dtype=np.int64)  # of most of the time
    parts["name"] = parts["place"].map(PLACES) + " (" + parts["sites"].astype(str) + ")"
    parts["label"] = list("abcde"[: len(parts)])
    return parts


class _Timing(NamedTuple):
    """The wall time that belongs to the points, and what is said of it."""

    wall_us: float
    which: str = ""  # " eager", where the run has a compiled time too
    compiled: str = ""  # that time, as the finding tells it


def _whole_run(sites: pd.DataFrame, timing: _Timing) -> pd.DataFrame:
    """Return the one row of the whole run: all FLOPs that are known, over wall time."""
    counted = sites[sites["flops"].notna()]
    if len(counted):  # what moves bytes unknown and does no FLOPs leaves intensity an upper bound
        min_bytes = counted["min_bytes"]
        min_bytes = min_bytes.where(counted["flops"] > 0, min_bytes.fillna(0.0))
        counted = counted.assign(min_bytes=min_bytes)
    whole = _merge(counted if len(counted) else sites, lambda _: 0)
    is_timed = 0 < timing.wall_us < math.inf
    time_us = timing.wall_us if is_timed else sites["time_us"].sum()
    kind = "wall" if is_timed else "op"
    return whole.assign(
        label="★",
        place="run",
        time_us=time_us,
        name=f"whole{timing.which} run ({kind} time)",
        share_frac=math.nan,
        ideal_us=math.nan,
        # As the totals: a sum of shares is not 1 where all is known.
        coverage_frac=counted["time_us"].sum() / sites["time_us"].sum(),
    )


def _wall(run: "Run") -> _Timing:
    """Return the wall time of the run; in older runs, sites of a compiled one are the eager's."""
    provenance = run.provenance
    if not isinstance(provenance, CallProvenance) or not provenance.timing.eager_wall_us:
        return _Timing(provenance.wall_us * sharing_ranks(run))  # a rate of each device
    eager_us = provenance.timing.eager_wall_us.median
    if compiled_of(run) is not None:
        remark = f"; compiled, eager took {duration(eager_us)}"
        return _Timing(provenance.wall_us, " compiled", remark)
    remark = f"; eager, compiled in {duration(provenance.wall_us)} of {duration(eager_us)}"
    return _Timing(eager_us, " eager", remark)


def _at_level(sites: pd.DataFrame, rooflines: pd.DataFrame, level: str) -> tuple[str, pd.DataFrame]:
    """Return a memory level as the run names it, and the sites with their roofs over it."""
    usable = rooflines[rooflines["valid"] & (rooflines["peak_bytes_per_s"] > 0)]
    levels = {name.upper(): name for name in usable["memory_level"]}
    for main, same in (("DRAM", "HBM"), ("HBM", "DRAM")):
        levels.setdefault(main, levels.get(same, ""))
    name = levels.get(level.upper())
    if not name:
        its_levels = ", ".join(sorted(filter(None, {*levels.values()}))) or "none"
        problem = f"no bandwidth of {level} is known for this run"
        raise UsageError(problem, remedy=f"its memory levels: {its_levels}")
    units = sites["unit"].where(
        sites["unit"] != "", main_units(sites["matmul_flops"], sites["vector_flops"])
    )
    roofline = site_roofline({"dtype": sites["dtype"], "unit": units}, rooflines, name)
    roof = roofline.at(sites["intensity_flops_per_byte"])
    return name, sites.assign(
        memory_level=name,
        attainable_flops_per_s=roof.attainable_flops_per_s,
        bound=roof.bound(sites["achieved_flops_per_s"].to_numpy()),
    )


def _main_kernels(run: "Run", sites: pd.DataFrame) -> "pd.Series[str]":
    """Return, for each site, the kernel that took most of its time."""
    sums = run.kernel_sums[run.kernel_sums["kind"] == "compute"]
    if not len(sums):
        raise UsageError("the run has no kernels to group by", remedy="--group-by op, or module")
    longest = sums.sort_values("time_us", ascending=False, kind="stable")
    by_site = longest.drop_duplicates("site_id").set_index("site_id")["kernel"].astype(object)
    return sites["site_id"].map(by_site).fillna("(no kernel of an op)")


def _merge(rows: pd.DataFrame, by: Any) -> pd.DataFrame:
    """Return one row per group, by time. One unknown part makes an unknown sum."""
    groups = rows.groupby(by, sort=False)
    names = [*_SUMS, *_measured_of(rows)]
    sums = groups[names].sum().where(groups[names].count().eq(groups.size(), axis=0))
    texts = groups[_TEXTS].first().astype("str").where(groups[_TEXTS].nunique() == 1, "")
    others = groups.agg(
        known_by=("known_by", "max"),
        place=("place", "first"),
        module_path=("module_path", _path_pattern),
    )
    below_roof = rows.assign(is_below=rows["roof_code"] == "")
    telling = below_roof.sort_values("is_below", kind="stable").groupby(by, sort=False)
    reasons = telling[["reason", "roof_code"]].first()  # of a part above its roof, if one is
    merged = sums.join([texts, others, reasons]).assign(
        label="", name="", key="", series="", head=True
    )
    return merged.sort_values("time_us", ascending=False, kind="stable", ignore_index=True)


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
    parts = []
    for level in levels:
        is_list = len(level) == 2 and "0" in level  # two of a list's modules
        if len(level) > 2 or None in level or is_list:
            parts.append("*")
        else:
            parts.append("|".join(sorted(level)))
    return ".".join(parts)


def _finding(sites: pd.DataFrame) -> str:
    """Return what most of the time goes to, in a few words."""
    bound = sites["bound"]
    known_roof = sites["attainable_flops_per_s"] > 0
    cases = {
        "only moves data": sites["place"] == "free",
        "has unknown FLOPs": sites["place"] == "unknown",
        "is memory-bound": bound == "memory",
        "is compute-bound": bound == "compute",
        "is overhead-bound": bound == "overhead",
        "has no bound that can be told: others had the machine": known_roof,
    }
    no_ceiling = "is " + sites["kind"] + ", without a valid ceiling"
    behaviour = np.select([*cases.values()], [*cases], no_ceiling.to_numpy(object))
    spread = {  # of one traced call, or of a trace from elsewhere, what it says is all there is
        "least_us": sites["time_p5_us"].fillna(sites["time_us"]),
        "most_us": sites["time_p95_us"].fillna(sites["time_us"]),
    }
    columns = ["share_frac", "time_us", "ideal_us", *spread]
    sums = sites.assign(**spread).groupby(behaviour)[columns].sum()
    sums = sums.sort_values("share_frac", ascending=False, kind="stable")
    most = sums.iloc[0]
    text = f"{100 * most['share_frac']:.0f} % of time {most.name}"
    repeated = sites["time_p5_us"].notna().any()
    if repeated and len(sums) > 1 and sums["most_us"].iloc[1:].max() > most["least_us"]:
        second = sums.iloc[1]
        also = f"{100 * second['share_frac']:.0f} % {second.name}"
        return f"cannot tell what takes most time: {text}, {also}, and calls differ by more"
    if "-bound" not in text:
        return text
    roof_percent = 100 * most["ideal_us"] / most["time_us"]
    return f"{text}, at {roof_percent:.0f} % of its roof"


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
    rank = rows["kind"].map(_PRECEDENCE).astype(float) + np.where(rows["valid"], 0, _BUSY)
    rows = rows.assign(origin=kind, rank=rank, solid=solid)
    flat = rows.assign(
        name=rows["dtype"] + np.where(unit == "vector", " vector", ""),
        value=rows["peak_flops_per_s"],
        order=-rows["dtype"].map(shares).astype(float),
        unit="FLOP/s",
    )[rows["dtype"].isin(shares.index) & (rows["unit"] == unit)]
    names = {"memory_level": "name", "peak_bytes_per_s": "value"}
    chosen = rows["memory_level"] == level if level else main
    memory = rows.rename(columns=names).assign(order=np.where(chosen, 0.0, 1.0), unit="B/s")
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
