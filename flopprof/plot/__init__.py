"""Draw one run as a roofline chart: log-log panel, strip of bars, table and caption.

`chart_data` selects, merges and adds up; `plot_roofline` draws what it returns, `write_points`
writes it. Only `sites`, `rooflines` and `meta` of a run are used.
"""

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from flopprof.errors import UsageError
from flopprof.plot.draw import KNOWN_BY, SIZES, draw
from flopprof.run import explain_os_errors
from flopprof.tables import ROOFLINES, SITES
from flopprof.units import si

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from flopprof.run import Run

GROUPS = {
    "op": ["op", "phase", "input_shapes", "dtype", "kind"],  # equal work, in whichever module
    "site": ["site_id"],
    "module": ["module_path"],
    "kind": ["kind"],
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
_TEXTS = ["op", "phase", "kind", "dtype", "bound"]
_FORMATS: dict[str, dict[str, str | None]] = {  # no dates and versions: equal runs, equal bytes
    "png": {"Software": "flopprof"},
    "svg": {"Date": None, "Creator": "flopprof"},
    "pdf": {"CreationDate": None, "Creator": "flopprof", "Producer": None},
}
_BYTES = (
    "Bytes are compulsory traffic (each operand read once, each result written once), so intensity "
    "is an upper bound. Peaks are dense."
)


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


def chart_data(run: "Run", *, top: int = 8, group_by: str = "op") -> ChartData:
    """Return what a chart of `run` shows; every site's time is in exactly one row.

    `top` points get a number; `group_by` is one of `GROUPS`.

    Raises:
        UsageError: The run has no times, or there is no such grouping.
    """
    if group_by not in GROUPS:
        raise UsageError(f"cannot group by {group_by!r}", remedy=f"use one of {list(GROUPS)}")
    sites = SITES.check(run.sites).replace([math.inf, -math.inf], math.nan)
    sites = sites[sites["time_us"] > 0].sort_values(["time_us", "site_id"], ascending=[False, True])
    if not len(sites):
        raise UsageError("the run has no times, so no rates", remedy="flopprof run MODEL has both")
    flops, verdict = sites["flops"], sites["verdict"]
    confirmed = sites["profiler_flops"] == sites["matmul_flops"]
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
            [flops.isna(), verdict == "agrees", verdict == "disagrees", confirmed], [4, 0, 3, 1], 2
        ),
        sites=1,
    )
    plotted = sites["place"] == "point"
    number = sites.groupby(GROUPS[group_by]).ngroup()
    groups = _merge(sites, number.where(plotted, sites["place"]))
    path, op = groups["module_path"], groups["op"].str.removeprefix("aten::")
    op += (" (" + groups["phase"] + ")").where(groups["phase"] != "forward", "")
    module = path.replace("", "(the model itself)")
    names = {"module": module, "kind": groups["kind"]}
    groups["name"] = names.get(group_by, (path + " · " + op).str.strip(" ·"))
    point = groups["place"] == "point"
    small = point & (groups["share_frac"] < SMALL_FRAC)
    if groups.loc[small, "share_frac"].sum() > 0.5:  # nearly all: show the largest of it
        small &= point.cumsum() > MANY
    groups["place"] = groups["place"].mask(small, "other")
    points = groups[point & ~small].reset_index(drop=True)
    points["label"] = [str(n) if n <= top else "" for n in range(1, len(points) + 1)]
    parts = pd.concat([points[top:].assign(place="rest"), groups[~point | small]])
    parts = _merge(parts, "place").sort_values("place", key=lambda p: p.map([*PLACES].index))
    parts["name"] = parts["place"].map(PLACES) + " (" + parts["sites"].astype(str) + ")"
    parts["label"] = list("abcde"[: len(parts)])
    known = sites[flops.notna()]
    whole = _merge(known if len(known) else sites, lambda _: 0).assign(label="★", place="run")
    wall_us = pd.to_numeric(_facts(run).get("wall_us median"), errors="coerce")
    timed = wall_us is not None and 0 < wall_us < math.inf
    whole["time_us"] = wall_us if timed else sites["time_us"].sum()
    whole["name"] = f"whole run ({'wall' if timed else 'op'} time)"
    whole[["share_frac", "ideal_us"]] = math.nan
    return ChartData(
        points=_rates(points),
        merged=_rates(parts[parts["place"] != "rest"]),
        table=_rates(pd.concat([points[:top], parts])),
        run=_rates(whole),
        roofs=_roofs(ROOFLINES.check(run.rooflines), sites[plotted]),
        finding=_finding(sites),
        coverage_frac=float(known["share_frac"].sum()),
    )


def _merge(rows: pd.DataFrame, by: Any) -> pd.DataFrame:
    """Return one row per group, by time. One unknown part makes an unknown sum."""
    groups = rows.groupby(by, sort=False)
    sums = groups[_SUMS].sum().where(groups[_SUMS].count().eq(groups.size(), axis=0))
    texts = groups[_TEXTS].first().astype("str").where(groups[_TEXTS].nunique() == 1, "")
    others = groups.agg(
        known_by=("known_by", "max"),
        place=("place", "first"),
        reason=("reason", "first"),
        module_path=("module_path", _path_pattern),
    )
    merged = sums.join([texts, others]).assign(label="", name="")
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
    return ".".join(
        "*"
        if len(level) > 2 or None in level or level - {"0"} != level
        else "|".join(sorted(level))
        for level in levels
    )


def _finding(sites: pd.DataFrame) -> str:
    """Return what most of the time goes to, in a few words."""
    place, bound = sites["place"], sites["bound"]
    what = np.select(
        [place == "free", place == "unknown", bound == "memory", bound == "compute"],
        ["only moves data", "has unknown FLOPs", "is memory-bound", "is compute-bound"],
        ("is " + sites["kind"] + ", without a valid ceiling").to_numpy(object),
    )
    sums = sites.groupby(what)[["share_frac", "time_us", "ideal_us"]].sum()
    most = sums.loc[sums["share_frac"].idxmax()]
    text = f"{100 * most['share_frac']:.0f} % of time {most.name}"
    roof_percent = 100 * most["ideal_us"] / most["time_us"]
    return f"{text}, at {roof_percent:.0f} % of its roof" if "bound" in text else text


def _roofs(rooflines: pd.DataFrame, plotted: pd.DataFrame) -> pd.DataFrame:
    """Return one ceiling of each dtype in the run, and the bandwidths; by precedence.

    A dtype's ceiling is that of matmuls where any run in it, else that of vector work.
    """
    rows = rooflines.assign(dtype=rooflines["dtype"].map(_dtype_label))
    matmul = (plotted["matmul_flops"] > plotted["vector_flops"]).groupby(plotted["dtype"]).any()
    shares = plotted["share_frac"].groupby(plotted["dtype"]).sum()
    shares = shares[shares >= min(SMALL_FRAC, shares.max())]
    unit = rows["dtype"].map(matmul.map({True: "tensor", False: "vector"}))
    solid = rows["valid"] & rows["kind"].isin(["user", "measured"])  # on this machine
    main = rows["memory_level"].isin(["DRAM", "HBM"])
    kind = rows["kind"].where(rows["valid"], rows["kind"] + ", busy machine")
    rank = rows["kind"].map(_PRECEDENCE) + 10 * ~rows["valid"]
    rows = rows.assign(origin=kind, rank=rank, solid=solid)
    flat = rows.assign(
        name=rows["dtype"] + np.where(unit == "vector", " vector", ""),
        value=rows["peak_flops_per_s"],
        order=-rows["dtype"].map(shares).astype(float),
        unit="FLOP/s",
    )[rows["dtype"].isin(shares.index) & (rows["unit"] == unit)]
    names = {"memory_level": "name", "peak_bytes_per_s": "value"}
    memory = rows.rename(columns=names).assign(order=1.0 - main, unit="B/s")[main | solid]
    columns = ["unit", "name", "value", "kind", "origin", "solid", "source", "order", "rank"]
    roofs = pd.concat([flat[columns], memory[columns]])
    roofs = roofs[roofs["value"].between(0, math.inf, inclusive="neither")]
    roofs = roofs.sort_values(["order", "name", "rank"])
    return roofs.drop_duplicates(["unit", "name", "kind"]).reset_index(drop=True)


def _dtype_label(dtype: str) -> str:
    """Return a dtype's usual short name: fp32, TF32, bf16."""
    short = dtype.replace("tfloat32", "TF32").replace("bfloat", "bf").replace("float", "fp")
    return short.replace("_", " ")


def _facts(run: "Run") -> dict[str, Any]:
    """Return what is known of a run's metadata, flat: "wall_us median"."""
    (flat,) = pd.json_normalize([{"model": None} | run.meta], sep=" ").to_dict("records")
    return {str(key): v for key, v in flat.items() if v not in (None, "", {}) and v == v}


def _provenance(run: "Run", data: ChartData) -> tuple[str, str]:
    """Return subtitle and caption: what ran where, how it was measured, what was not recorded."""
    known = _facts(run)
    subtitle = [known.get(k, f"{k} unknown") for k in ("model", "input", "dtype", "device name")]
    facts = [
        f"{key.removeprefix('telemetry ').removesuffix('bytes').replace('_', ' ').strip()} "
        + (si(v, "B") if key.endswith("bytes") else f"{v:.4g}" if isinstance(v, float) else str(v))
        for key, v in known.items()
        if key.split(" ")[0] in ("device", "telemetry", "torch", "flopprof", "date")
    ]
    wanted = ("threads", "driver", "clock", "power limit", "throttling", "torch", "date")
    missing = [name for name in wanted if not any(name in fact for fact in facts)]
    facts.append("ceilings: " + ("; ".join(data.roofs["source"].unique()) or "unknown"))
    facts.append(f"not recorded: {', '.join(missing) or 'nothing'}. {_BYTES}")
    return " · ".join(map(str, subtitle)), " · ".join(facts)


def write_points(run: "Run", path: str | Path, *, top: int = 8, group_by: str = "op") -> Path:
    """Write every row that a chart of `run` shows, and the whole run, as CSV; return the path.

    Raises:
        UsageError: As for `plot_roofline`.
    """
    data = chart_data(run, top=top, group_by=group_by)
    rows = pd.concat([data.points, data.merged, data.run])
    rows["known_by"] = [KNOWN_BY[rank] for rank in rows["known_by"]]
    with explain_os_errors(path):
        Path(path).write_bytes(rows.set_index(["label", "place", "name"]).to_csv().encode())
    return Path(path)


def plot_roofline(
    run: "Run",
    path: str | Path | Iterable[str | Path],
    *,
    top: int = 8,
    title: str | None = None,
    size: str = "wide",
    dark: bool = False,
    group_by: str = "op",
) -> list[Path]:
    """Draw `run` and return the files written: .png, .svg, .pdf, or .csv for the points.

    `path` is one file or several; `title` replaces the finding; `size` is "wide" (13 in),
    "compact" (10.8 in) or "page" (8.3 in, the width of A4); `dark` draws light on dark; `top` and
    `group_by` are as for `chart_data`.

    Raises:
        UsageError: The run has no times, an option or suffix is not known, or a file cannot be
            written.
    """
    paths = [Path(one) for one in ([path] if isinstance(path, str | Path) else path)]
    forms = [one.suffix.lower()[1:] for one in paths]
    if not {*forms} <= {*_FORMATS, "csv"}:
        problem = f"{', '.join(map(str, paths))}: no such picture format"
        raise UsageError(problem, remedy="end it in .png, .svg, .pdf or .csv")
    figure = draw_figure(run, top=top, title=title, size=size, dark=dark, group_by=group_by)
    for one, form in zip(paths, forms, strict=True):
        if form == "csv":
            write_points(run, one, top=top, group_by=group_by)
            continue
        with explain_os_errors(one), _settings():
            figure.savefig(one, format=form, dpi=200, metadata=_FORMATS[form])
    return paths


def draw_figure(
    run: "Run", *, title: str | None = None, size: str = "wide", dark: bool = False, **select: Any
) -> "Figure":
    """Return the chart of `run` as a matplotlib figure; arguments as for `plot_roofline`."""
    if size not in SIZES:
        raise UsageError(f"there is no size {size!r}", remedy=f"use one of {list(SIZES)}")
    data = chart_data(run, **select)
    with _settings():
        return draw(data, _provenance(run, data), title=title, size=size, dark=dark)


def _settings() -> AbstractContextManager[None]:
    """Return matplotlib's own defaults for a while, whatever the user's are; fixed identifiers."""
    import matplotlib

    settings: dict[Any, Any] = dict(matplotlib.rcParamsDefault)
    del settings["backend"]
    settings |= {"pdf.fonttype": 42, "svg.hashsalt": "flopprof", "hatch.linewidth": 0.5}
    settings["text.hinting"] = "none"  # letters keep their width
    return matplotlib.rc_context(settings)
