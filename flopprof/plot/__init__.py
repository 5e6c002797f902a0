"""Draw one run as a roofline chart: log-log panel, strip of bars, table and caption.

`chart_data` selects, merges and adds up; `plot_roofline` draws what it returns, `write_points`
writes it. Only `sites`, `rooflines` and `meta` of a run are used. Coordinates are points (1/72 in)
from the sheet's top left.
"""

import io
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from flopprof.errors import UsageError
from flopprof.plot.draw import KNOWN_BY, SIZES, draw
from flopprof.tables import ROOFLINES, SITES

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
_PRECEDENCE = ("user", "measured", "datasheet", "formula")
_MAIN_LEVELS = ("DRAM", "HBM")
_SUMS = ["time_us", "share_frac", "flops", "min_bytes", "ideal_us", "calls", "sites"]
_TEXTS = ["op", "phase", "kind", "dtype", "bound", "reason"]


@dataclass(frozen=True, slots=True)
class Roof:
    """One ceiling: a dtype's FLOP/s, or a memory level's bytes/s."""

    name: str
    value: float
    origin: str
    solid: bool  # measured on this machine, or given by the user
    source: str


@dataclass(frozen=True, slots=True)
class ChartData:
    """Everything a chart shows.

    Attributes:
        points: One row per mark, by time; the first `top` have a `label`.
        merged: One row per place (`PLACES`) of all other time: with `points`, 100 %.
        table: What the table lists: labelled points, the rest of them as one, `merged`.
        run: One row: all known FLOPs over wall time.
        flat: Ceilings by dtype, each with the one that counts first.
        memory: Ceilings by memory level, each with the one that counts first.
        finding: What the title says.
        coverage_frac: Share of time whose FLOPs are known.
    """

    points: pd.DataFrame
    merged: pd.DataFrame
    table: pd.DataFrame
    run: pd.DataFrame
    flat: dict[str, tuple[Roof, ...]]
    memory: dict[str, tuple[Roof, ...]]
    finding: str
    coverage_frac: float


def chart_data(run: "Run", *, top: int = 8, group_by: str = "op") -> ChartData:
    """Return what a chart of `run` shows; every site's time is in exactly one row.

    Args:
        run: The run.
        top: How many points get a number.
        group_by: "op" merges equal work (op, shapes, dtype) of all modules; "site" merges nothing;
            "module", "kind".

    Raises:
        UsageError: The run has no times, or there is no such grouping.
    """
    if group_by not in GROUPS:
        raise UsageError(f"cannot group by {group_by!r}", remedy=f"use one of {list(GROUPS)}")
    ROOFLINES.check(run.rooflines)
    sites = SITES.check(run.sites)
    sites = sites[sites["time_us"] > 0]
    if not len(sites):
        raise UsageError("the run has no times, so no rates", remedy="flopprof run MODEL has both")
    flops, verdict, matmul = sites["flops"], sites["verdict"], sites["matmul_flops"]
    sites = sites.assign(
        place=np.select(
            [flops.isna(), flops == 0, ~(sites["min_bytes"] > 0)],
            ["unknown", "free", "no_bytes"],
            "point",
        ),
        share_frac=sites["time_us"] / sites["time_us"].sum(),
        ideal_us=flops / sites["attainable_flops_per_s"] * 1e6,
        known_by=np.select(
            [flops.isna(), verdict == "agrees", verdict == "disagrees"],
            [4, 0, 3],
            np.where(sites["profiler_flops"] == matmul, 1, 2),
        ),
        sites=1,
    )
    plotted = sites[sites["place"] == "point"]
    groups = _merge(plotted, GROUPS[group_by], group_by)
    large = groups["share_frac"] >= SMALL_FRAC
    if groups.loc[~large, "share_frac"].sum() > 0.5:  # nearly all is small: show the largest of it
        large |= groups.index < MANY
    points = groups[large]
    points = points.assign(label=[str(n) if n <= top else "" for n in range(1, len(points) + 1)])
    parts = {"rest": points[top:], "other": groups[~large]}
    parts |= {place: sites[sites["place"] == place] for place in ("free", "unknown", "no_bytes")}
    merged = [_as_one(part, place) for place, part in parts.items() if len(part)]
    letters = pd.concat([*merged, groups[:0]]).assign(label=list("abcde"[: len(merged)]))
    known = sites[flops.notna()]
    whole = _as_one(known if len(known) else sites, "run").assign(label="★")
    wall_us = _look_up(run.meta, "wall_us", "median")
    measured = isinstance(wall_us, int | float) and wall_us > 0
    whole["time_us"] = float(wall_us) if measured else sites["time_us"].sum()
    whole["name"] = "whole run (wall time)" if measured else "whole run (op time)"
    whole[["share_frac", "ideal_us"]] = math.nan
    return ChartData(
        points=_rates(points),
        merged=_rates(letters[letters["place"] != "rest"]),
        table=_rates(pd.concat([points[:top], letters])),
        run=_rates(whole),
        flat=_flat_roofs(run.rooflines, plotted),
        memory=_memory_roofs(run.rooflines),
        finding=_finding(sites),
        coverage_frac=float(known["share_frac"].sum()),
    )


def _merge(sites: pd.DataFrame, keys: list[str], group_by: str) -> pd.DataFrame:
    """Return one row per group, by time; texts are those of its longest site."""
    groups = sites.sort_values(["time_us", "site_id"], ascending=[False, True]).groupby(
        keys, sort=False
    )
    frame = groups[_SUMS].sum()
    for column in ("flops", "min_bytes", "ideal_us"):  # one unknown part: an unknown sum
        frame[column] = frame[column].where(groups[column].count() == groups.size())
    frame["known_by"] = groups["known_by"].max()
    frame = frame.join(groups[[*_TEXTS, "place"]].first().add_prefix("_"))
    frame = frame.join(groups["module_path"].unique()).reset_index(drop=True)
    frame.columns = frame.columns.str.removeprefix("_")
    paths = [_path_pattern(list(found)) for found in frame.pop("module_path")]
    names = []
    for path, op, phase, kind in zip(
        paths, frame["op"], frame["phase"], frame["kind"], strict=True
    ):
        op = op.removeprefix("aten::") + (f" ({phase})" if phase != "forward" else "")
        full = f"{path} · {op}" if path else op
        names.append({"module": path or "(the model itself)", "kind": kind}.get(group_by, full))
    return frame.assign(name=names, label="").sort_values(
        "time_us", ascending=False, kind="stable", ignore_index=True
    )


def _as_one(part: pd.DataFrame, place: str) -> pd.DataFrame:
    """Return sites or groups as one row; texts stand where all have the same."""
    row: dict[str, Any] = {c: part[c].sum(skipna=False) for c in _SUMS}
    row |= {c: part[c].iloc[0] if part[c].nunique() == 1 else "" for c in _TEXTS}
    row |= {"place": place, "name": f"{PLACES.get(place, '')} ({row['sites']})", "reason": ""}
    return pd.DataFrame([row | {"known_by": part["known_by"].max(), "label": ""}])


def _rates(rows: pd.DataFrame) -> pd.DataFrame:
    """Add the rates. For merged work the roof is that of each part: time at the roof over time."""
    rows = rows.assign(
        intensity_flops_per_byte=(rows["flops"] / rows["min_bytes"]).where(rows["min_bytes"] > 0),
        achieved_flops_per_s=rows["flops"] / rows["time_us"] * 1e6,
        attainable_flops_per_s=(rows["flops"] / rows["ideal_us"] * 1e6).where(rows["ideal_us"] > 0),
        efficiency_frac=(rows["ideal_us"] / rows["time_us"]).where(rows["ideal_us"] > 0),
    )
    return rows.reset_index(drop=True)


def _path_pattern(paths: list[str]) -> str:
    """Return one text for several module paths: `layer1.*.conv*`."""
    split = [path.split(".") for path in paths]
    if len(paths) > 1 and len({len(parts) for parts in split}) > 1:
        levels = zip(*split, strict=False)
        common = [level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels)]
        return ".".join([*common, "*"]) if common else f"{len(paths)} modules"
    values = [sorted(set(level)) for level in zip(*split, strict=True)]
    return ".".join(
        "|".join(level) if len(level) == 1 or (len(level) <= 3 and not level[0].isdigit()) else "*"
        for level in values
    )


def _finding(sites: pd.DataFrame) -> str:
    """Return what most of the time goes to, in a few words."""
    place, bound = sites["place"], sites["bound"]
    what = np.select(
        [place == "free", place == "unknown", bound == "memory", bound == "compute"],
        ["only moves data", "has unknown FLOPs", "is memory-bound", "is compute-bound"],
        "has no known ceiling",
    )
    shares = sites["share_frac"].groupby(what).sum().sort_values(ascending=False, kind="stable")
    part = sites[what == shares.index[0]]
    text = f"{whole_percent(shares.iloc[0])} of time {shares.index[0]}"
    if "bound" not in text:
        return text
    return f"{text}, at {whole_percent(part['ideal_us'].sum() / part['time_us'].sum())} of its roof"


def whole_percent(frac: float) -> str:
    """Return a share without decimals, rounded neither to nothing nor to all: "<1 %", "99 %"."""
    return "<1 %" if 0 < frac < 0.01 else f"{99 if 0.99 < frac < 1 - 1e-9 else 100 * frac:.0f} %"


def dtype_label(dtype: str) -> str:
    """Return a dtype's usual short name: fp32, TF32, bf16."""
    short = dtype.replace("tfloat32", "TF32").replace("bfloat", "bf").replace("float", "fp")
    return short.replace("_", " ")


def _ranked(rows: pd.DataFrame, column: str, name: str) -> tuple[Roof, ...]:
    """Return one ceiling per kind, by precedence; a measurement on a busy machine comes last."""
    roofs: dict[tuple[bool, int], Roof] = {}
    for kind, valid, value, source in zip(
        rows["kind"], rows["valid"], rows[column], rows["source"], strict=True
    ):
        if value > 0 and kind in _PRECEDENCE:
            origin = kind if valid else f"{kind}, busy machine"
            solid = bool(valid) and kind in ("user", "measured")
            roof = Roof(name, float(value), origin, solid, source)
            roofs.setdefault((not valid, _PRECEDENCE.index(kind)), roof)
    return tuple(roofs[key] for key in sorted(roofs))


def _flat_roofs(rooflines: pd.DataFrame, plotted: pd.DataFrame) -> dict[str, tuple[Roof, ...]]:
    """Return the ceilings of each dtype that has time, of the units that bound its work."""
    is_matmul = plotted["matmul_flops"] > plotted["vector_flops"]
    unit = np.where(is_matmul, "tensor", np.where(plotted["bound"] == "compute", "vector", ""))
    shares = plotted["share_frac"].groupby(plotted["dtype"]).sum().sort_values(ascending=False)
    found: dict[str, tuple[Roof, ...]] = {}
    for dtype in [d for d in shares.index if shares[d] >= min(SMALL_FRAC, shares.max())]:
        rows = rooflines[rooflines["dtype"] == dtype]
        for used in sorted({*unit[plotted["dtype"] == dtype]} - {""} or {"vector"}):
            vector = used == "vector" and (rows["unit"] == "vector").any()
            name = dtype_label(dtype) + (" vector" if vector else "")
            one = rows[rows["unit"] == ("vector" if vector else "tensor")]
            found[name] = _ranked(one, "peak_flops_per_s", name)
    return {name: roofs for name, roofs in found.items() if roofs}


def _memory_roofs(rooflines: pd.DataFrame) -> dict[str, tuple[Roof, ...]]:
    """Return the bandwidths: DRAM or HBM first, caches only where they were measured."""
    found = {}
    for level in sorted(set(rooflines["memory_level"]), key=lambda v: (v not in _MAIN_LEVELS, v)):
        roofs = _ranked(rooflines[rooflines["memory_level"] == level], "peak_bytes_per_s", level)
        found[level] = tuple(r for r in roofs if level in _MAIN_LEVELS or r.solid)
    return {level: roofs for level, roofs in found.items() if roofs}


def _look_up(meta: Mapping[str, Any], *keys: str) -> Any:
    """Return a value from nested metadata, or None where a key is missing."""
    value: Any = meta
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _provenance(run: "Run", data: ChartData) -> tuple[str, str]:
    """Return subtitle and caption: what ran where, how it was measured, what was not recorded."""
    what = (("model",), ("input",), ("dtype",), ("device", "name"))
    known = [_look_up(run.meta, *path) for path in what]
    names = [path[0] for path in what]
    texts = [str(v) if v else f"{name} unknown" for v, name in zip(known, names, strict=True)]
    facts = [
        (words, value)
        for key in ("device", "telemetry", "torch", "flopprof", "date")
        for words, value in _leaves({key: _look_up(run.meta, key)})
    ]
    recorded = " ".join(words for words, _ in facts)
    wanted = ("threads", "driver", "clock", "power limit", "throttling", "torch", "date")
    missing = [name for name in wanted if name not in recorded]
    roofs = [r for rs in (*data.flat.values(), *data.memory.values()) for r in rs]
    sources = "; ".join(dict.fromkeys(r.source or r.origin for r in roofs))
    facts.append(("ceilings:", _look_up(run.meta, "ceilings", "source") or sources or "unknown"))
    caption = " · ".join(f"{words} {value}" for words, value in facts)
    caption += f" · not recorded: {', '.join(missing)}" if missing else ""
    return " · ".join(texts), (
        f"{caption}. Bytes are compulsory traffic (each operand read once, each result written "
        "once), so intensity is an upper bound. Peaks are dense."
    )


def _leaves(value: Any, words: str = "") -> list[tuple[str, str]]:
    """Return nested values as words and text: {"clock": {"max": 1}} gives ("clock max", "1")."""
    if isinstance(value, Mapping):
        pairs = [(f"{words} {key}".replace("_", " ").strip(), v) for key, v in value.items()]
        return [leaf for key, inner in pairs for leaf in _leaves(inner, key)]
    if value is None or value == "":
        return []
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return [(words.removeprefix("telemetry "), text)]


def why_above(row: Any) -> str:
    """Return why a row lies above its roof, as far as the reconciler could tell."""
    _, found, after = row.reason.partition("; above the ")
    if found:
        return f"above the {after}"
    if row.efficiency_frac <= 1.05:  # the reconciler's own tolerance
        return "above its roof by less than a ceiling's uncertainty (5 %)"
    return "above its roof: doubt its dtype, the clock, the count or the timing"


def write_points(run: "Run", path: str | Path, *, top: int = 8, group_by: str = "op") -> Path:
    """Write every row that a chart of `run` shows, and the whole run, as CSV; return the path.

    Raises:
        UsageError: As for `plot_roofline`.
    """
    data = chart_data(run, top=top, group_by=group_by)
    rows = pd.concat([data.points, data.merged, data.run])
    rows = rows.assign(known_by=[KNOWN_BY[rank] for rank in rows["known_by"]])
    texts = ["label", "place", "name"]
    rows = rows[texts + [c for c in rows if c not in texts]]
    return _save(Path(path), rows.to_csv(index=False).encode())


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

    Args:
        run: The run.
        path: One file, or several for one drawing.
        top: How many points get a number.
        title: Instead of the finding.
        size: "wide" (13 in), "compact" (10.8 in) or "page" (8.3 in, the width of A4).
        dark: Light on dark.
        group_by: As for `chart_data`.

    Raises:
        UsageError: The run has no times, an option or suffix is not known, or a file cannot be
            written.
    """
    paths = [Path(path)] if isinstance(path, str | Path) else [Path(one) for one in path]
    for one in paths:
        if one.suffix.lower() not in (".png", ".svg", ".pdf", ".csv"):
            raise UsageError(
                f"{one}: no such picture format", remedy="end it in .png, .svg, .pdf or .csv"
            )
    figure: Figure | None = None
    for one in paths:
        form = one.suffix.lower()[1:]
        if form == "csv":
            write_points(run, one, top=top, group_by=group_by)
            continue
        figure = figure or draw_figure(
            run, top=top, title=title, size=size, dark=dark, group_by=group_by
        )
        with _settings():
            buffer = io.BytesIO()
            fixed: dict[str, dict[str, str | None]] = {"png": {"Software": "flopprof"}}
            fixed["svg"] = {"Date": None, "Creator": "flopprof"}
            fixed["pdf"] = {"CreationDate": None, "Creator": "flopprof", "Producer": None}
            figure.savefig(buffer, format=form, dpi=200, metadata=fixed[form])
        _save(one, buffer.getvalue())
    return paths


def draw_figure(
    run: "Run",
    *,
    top: int = 8,
    title: str | None = None,
    size: str = "wide",
    dark: bool = False,
    group_by: str = "op",
) -> "Figure":
    """Return the chart of `run` as a matplotlib figure; arguments as for `plot_roofline`."""
    if size not in SIZES:
        raise UsageError(f"there is no size {size!r}", remedy=f"use one of {list(SIZES)}")
    data = chart_data(run, top=top, group_by=group_by)
    subtitle, caption = _provenance(run, data)
    with _settings():
        return draw(data, caption, subtitle, title=title, size=size, dark=dark)


def _settings() -> AbstractContextManager[None]:
    """Return matplotlib's own defaults for a while, whatever the user's are; fixed identifiers."""
    import matplotlib

    settings: dict[Any, Any] = dict(matplotlib.rcParamsDefault)
    del settings["backend"]
    settings |= {"pdf.fonttype": 42, "svg.hashsalt": "flopprof", "hatch.linewidth": 0.5}
    return matplotlib.rc_context(settings)


def _save(path: Path, content: bytes) -> Path:
    """Write `content` to `path` in one step: readers see the old file or the new one."""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            Path(name).chmod(0o644)
            Path(name).replace(path)
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written: {error.strerror}", remedy="choose another path with -o"
        ) from error
    return path
