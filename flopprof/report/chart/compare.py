"""Join what the charts of several runs show."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from flopprof.errors import UsageError
from flopprof.report.chart.data import ChartData, chart_data
from flopprof.report.chart.sheet import LETTERS, SERIES
from flopprof.units import duration, si

if TYPE_CHECKING:
    from flopprof.run import Run

_LAST = "999"  # in the table: rows without a number


def compare_data(runs: Mapping[str, "Run"], *, top: int = 8, **select: Any) -> ChartData:
    """Return what a chart of several runs shows, by name; equal names in them share a number.

    Raises:
        UsageError: They are too many to tell apart, or as for `chart_data`.
    """
    if len(runs) > len(SERIES):
        problem = f"{len(runs)} runs are too many for one chart"
        raise UsageError(problem, remedy=f"draw at most {len(SERIES)} at once")
    names = dict(zip(LETTERS, runs, strict=False))
    everything = pd.concat([chart_data(run, **select).points for run in runs.values()])
    shares = everything.groupby("key", sort=False)["share_frac"].sum()
    shares = shares.sort_values(ascending=False, kind="stable")[:top]
    numbers = {str(key): str(n) for n, key in enumerate(shares.index, start=1)}
    charts = {
        letter: chart_data(run, **select, numbers=numbers)
        for letter, run in zip(LETTERS, runs.values(), strict=False)
    }
    frames: dict[str, pd.DataFrame] = {}
    for part in ("points", "merged", "table", "run", "roofs"):
        parts = [getattr(chart, part).assign(series=series) for series, chart in charts.items()]
        frames[part] = pd.concat(parts, ignore_index=True)
    frames["run"] = frames["run"][frames["run"]["place"] == "run"]  # no eager star beside each
    points = frames["points"]
    points["head"] = ~points.duplicated("key", keep="last")  # where the arrows end
    table = frames["table"]
    order = table["label"].where(table["label"].str.isdigit(), _LAST).astype(int)
    table = table.assign(label=table["label"] + table["series"], order=order)
    frames["table"] = table.sort_values(["order", "series"], kind="stable")
    frames["run"]["label"] += frames["run"]["series"]
    roofs = frames["roofs"]
    differ = roofs.groupby(["unit", "name", "kind"])["value"].transform("nunique") > 1
    roofs["name"] = (roofs["series"] + " ").where(differ, "") + roofs["name"]
    frames["roofs"] = roofs.drop_duplicates(["unit", "name", "kind"], ignore_index=True)
    models = {run.provenance.source.model for run in runs.values()}
    then = " → " if len(models) == 1 else " | "  # of different models none is a step to the next
    times = then.join(map(duration, frames["run"]["time_us"]))
    rates = then.join(map(_rate, frames["run"]["achieved_flops_per_s"]))
    finding = f"{then.join(names.values())}: {times}, {rates}"
    return ChartData(
        **frames,
        finding=finding,
        coverage_frac=min(chart.coverage_frac for chart in charts.values()),
        names=names,
        measured=next(iter(charts.values())).measured,  # of several runs none
    )


def _rate(flops_per_s: float) -> str:
    return si(flops_per_s, "FLOP/s")
