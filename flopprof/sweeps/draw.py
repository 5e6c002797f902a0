"""Draw a sweep: throughput and latency over one axis, one against the other, and its roofline."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from flopprof.errors import UsageError
from flopprof.files import replacing
from flopprof.report.chart.sheet import SERIES
from flopprof.sweeps.grid import worded
from flopprof.sweeps.result import Sweep
from flopprof.units import clean_text, shorten, si

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INCHES = (11.0, 8.0)
DOTS_PER_INCH = 160
_FRONT = "#D55E00"  # of the cells that none beats
_MUTED = "#999999"
_NUMBERED = ("batch", "input_size", "threads")  # an axis to draw along, the first that varies
_LEAST_INTENSITY = 1e-3  # FLOP/byte, at the panel's left edge
_MOST_SERIES = 12  # named in the legend


def draw_sweep(sweep: Sweep, path: Path) -> None:
    """Draw the sweep to `path` (.png, .svg or .pdf).

    Raises:
        UsageError: No cell has figures.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not len(sweep.done):
        raise UsageError("no cell of the sweep has figures", remedy="read the reasons: --json")
    figure = Figure(figsize=INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2)
    along = axis_along(sweep)
    _draw_over(panels[0][0], sweep, along, "samples_per_s", "Throughput (samples/s)")
    _draw_over(panels[0][1], sweep, along, "latency_ms", "Latency (ms), p5 to p95")
    _draw_front(panels[1][0], sweep)
    _draw_roofline(panels[1][1], sweep)
    handles, labels = panels[0][0].get_legend_handles_labels()
    if len(labels) > 1:
        figure.legend(
            handles[:_MOST_SERIES],
            labels[:_MOST_SERIES],
            loc="outside lower center",
            ncols=4,
            fontsize=8,
        )
    title = shorten(clean_text(sweep.what), 60)
    advised = sweep.recommendation
    figure.suptitle(f"{title}\n{advised.text}" if advised else title, fontsize=11)
    with replacing(path) as unfinished:
        figure.savefig(unfinished, dpi=DOTS_PER_INCH, format=path.suffix.removeprefix("."))


def axis_along(sweep: Sweep) -> str:
    """Return the axis that figures are drawn along: the first of numbers that varies."""
    varying = [axis for axis in sweep.axes if sweep.done[axis].nunique() > 1]
    for axis in _NUMBERED:
        if axis in varying:
            return axis
    return varying[0] if varying else sweep.axes[0]


def series_of(sweep: Sweep, along: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the name and the cells of each combination of the other axes that vary."""
    others = [axis for axis in sweep.axes if axis != along and sweep.done[axis].nunique() > 1]
    measured = sweep.done.assign(latency_ms=sweep.done["latency_p50_us"] / 1e3)
    if not others:
        yield "", measured
        return
    for key, cells in measured.groupby(others, sort=False):
        values = zip(others, key, strict=True)
        yield ", ".join(worded(axis, value) for axis, value in values), cells


def _draw_over(axes: "Axes", sweep: Sweep, along: str, column: str, title: str) -> None:
    """Draw a figure along one axis, a line for each combination of the others."""
    for number, (name, cells) in enumerate(series_of(sweep, along)):
        places, ticks = _places(sweep, along, cells[along])
        colour = SERIES[number % len(SERIES)]
        if column == "latency_ms":
            below = (cells["latency_ms"] - cells["latency_p5_us"] / 1e3).clip(lower=0)
            above = (cells["latency_p95_us"] / 1e3 - cells["latency_ms"]).clip(lower=0)
            axes.errorbar(
                places, cells[column], [below, above], label=name, color=colour, marker="o",
                capsize=3,
            )  # fmt: skip
        else:
            axes.plot(places, cells[column], label=name, color=colour, marker="o")
        if ticks:
            axes.set_xticks(range(len(ticks)), ticks)
    if along in _NUMBERED:
        axes.set_xscale("log", base=2)
        values = sorted(sweep.done[along].unique())
        axes.set_xticks(values, list(map(str, values)))
        axes.minorticks_off()
    axes.set_xlabel(along.replace("_", " "))
    axes.set_title(title, fontsize=10)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)


def _places(sweep: Sweep, along: str, values: "pd.Series[Any]") -> tuple[list[float], list[str]]:
    """Return where values stand on the axis, and the names of its places if they are no numbers."""
    if along in _NUMBERED:
        return [float(value) for value in values], []
    names = list(dict.fromkeys(map(str, sweep.done[along])))
    return [float(names.index(str(value))) for value in values], names


def _draw_front(axes: "Axes", sweep: Sweep) -> None:
    """Draw throughput against latency, and the cells that none beats as a line."""
    measured = sweep.done
    front = sweep.pareto
    axes.scatter(measured["latency_p50_us"] / 1e3, measured["samples_per_s"], color=_MUTED, s=28)
    axes.step(
        front["latency_p50_us"] / 1e3, front["samples_per_s"], where="post", color=_FRONT,
        marker="o", label="none is better",
    )  # fmt: skip
    advised = sweep.recommendation
    if advised:
        chosen = front[(front[list(sweep.axes)] == pd.Series(advised.cell)).all(axis=1)]
        axes.scatter(
            chosen["latency_p50_us"] / 1e3, chosen["samples_per_s"], marker="*", s=240,
            color=_FRONT, edgecolor="#000000", zorder=3, label="recommended",
        )  # fmt: skip
    axes.set_xlabel("latency (ms)")
    axes.set_ylabel("samples/s")
    axes.set_title("Throughput against latency", fontsize=10)
    axes.set_ylim(0, 1.1 * measured["samples_per_s"].max())
    axes.set_xlim(left=0)
    axes.legend(fontsize=8, loc="lower right")
    axes.grid(alpha=0.3)


def _draw_roofline(axes: "Axes", sweep: Sweep) -> None:
    """Draw the model's path under the roofs of its types: a mark for each cell."""
    axes.set_title("Under the roofs", fontsize=10)
    if not (sweep.done["flops"] / sweep.done["min_bytes"]).gt(0).any():
        axes.text(0.5, 0.5, "intensity is not known", ha="center", transform=axes.transAxes)
        return
    for number, (name, cells) in enumerate(series_of(sweep, axis_along(sweep))):
        colour = SERIES[number % len(SERIES)]
        intensity = cells["flops"] / cells["min_bytes"]
        axes.plot(
            intensity, cells["achieved_flops_per_s"], color=colour, marker="*", markersize=11,
            label=name,
        )  # fmt: skip
    low, high = axes.get_xlim()
    low = max(low / 4, _LEAST_INTENSITY)
    high *= 16  # room for the ceilings' values
    roofs = sweep.done[["peak_flops_per_s", "peak_bytes_per_s"]].dropna().drop_duplicates()
    for peak, bandwidth in roofs.itertuples(index=False):
        ridge = min(max(peak / bandwidth, low), high)
        axes.plot([low, ridge, high], [low * bandwidth, peak, peak], color="#555555", linewidth=0.9)
        axes.text(high, peak, si(peak, "FLOP/s") + " ", ha="right", va="bottom", fontsize=8)
    axes.set_xlim(low, high)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("intensity (FLOP/byte, compulsory traffic)")
    axes.set_ylabel("FLOP/s")
    axes.grid(alpha=0.3)
