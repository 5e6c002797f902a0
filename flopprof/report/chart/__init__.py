"""Draw one run, or several beside each other, as a roofline chart.

It has a log-log panel, strips of bars, a table and a caption. `chart_data` selects, merges and adds
up, `compare_data` joins that of several runs; `plot_roofline` draws it, `write_points` writes it.
"""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from flopprof.collector import import_quickly
from flopprof.errors import UsageError
from flopprof.files import replacing
from flopprof.jobfacts import known_facts
from flopprof.provenance import CallProvenance
from flopprof.report.chart.compare import compare_data
from flopprof.report.chart.data import KNOWN_BY, ChartData, chart_data
from flopprof.report.chart.draw import draw
from flopprof.report.chart.paper import (
    COLUMN_INCHES,
    DOTS_PER_INCH,
    NARROWEST_INCHES,
    WIDEST_INCHES,
    draw_paper,
)
from flopprof.report.chart.sheet import SIZES
from flopprof.report.csv import for_people
from flopprof.units import si

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from flopprof.run import Run

_FORMATS: dict[str, dict[str, str | None]] = {  # no dates and versions: equal runs, equal bytes
    "png": {"Software": "flopprof"},
    "svg": {"Date": None, "Creator": "flopprof"},
    "pdf": {"CreationDate": None, "Creator": "flopprof", "Producer": None},
}
_DOTS_PER_INCH = 200
_PACKING: dict[str, dict[str, Any]] = {
    "png": {"pil_kwargs": {"compress_level": 3}}  # as small as 6, in two thirds of its time
}
_VERSIONS = ("torch", "flopprof", "date")
_BYTES = (
    "Bytes are compulsory traffic (each operand read once, each result written once), so intensity "
    "is an upper bound. Peaks are dense."
)

_MEASURED = (
    "Small marks: counted FLOPs over the bytes that hardware's counters measured, at the same "
    "rate; the line from the point's own mark is traffic beyond the compulsory. Those of L2 and L1 "
    "are held by their own bandwidths: they may lie above the main memory's."
)


def _provenance(run: "Run") -> tuple[str, str]:
    """Return subtitle and caption: what ran where, how it was measured, what was not recorded."""
    provenance = run.provenance
    subtitle = [
        provenance.source.model or "model unknown",
        provenance.called.input or "input unknown",
        provenance.called.dtype,
        provenance.device.name or "device name unknown",
    ]
    values = known_facts(provenance.device, "device")
    if isinstance(provenance, CallProvenance) and provenance.telemetry:
        values |= known_facts(provenance.telemetry)
    environment = known_facts(provenance.environment)
    values |= {name: environment[name] for name in _VERSIONS if name in environment}
    facts = [_fact(name, value) for name, value in values.items()]
    expected = ("threads", "driver", "clock", "power limit", "throttling", "torch", "date")
    missing = [name for name in expected if not any(name in fact for fact in facts)]
    facts.append(f"not recorded: {', '.join(missing) or 'nothing'}")
    return " · ".join(map(str, subtitle)), " · ".join(facts)


def _fact(name: str, value: Any) -> str:
    """Return a fact as the caption says it: "memory 85.9 GB", "clock mhz 1980"."""
    label = name.removesuffix("bytes").replace("_", " ").strip()
    if name.endswith("bytes"):
        return f"{label} {si(value, 'B')}"
    return f"{label} {value:.4g}" if isinstance(value, float) else f"{label} {value}"


def _select(runs: "Run | Mapping[str, Run]", select: dict[str, Any]) -> ChartData:
    """Return the data of one run, or of several by name.

    Raises:
        UsageError: Measured bytes of several runs are asked for.
    """
    if not isinstance(runs, Mapping):
        return chart_data(runs, **select)
    if select.pop("measured", False):
        raise UsageError("measured bytes are drawn of one run", remedy="name one DIR")
    return compare_data(runs, **select)


def write_points(run: "Run | Mapping[str, Run]", path: str | Path, **select: Any) -> Path:
    """Write every row that a chart of `run` shows, and the whole run, as CSV; return the path.

    Arguments as for `plot_roofline`.

    Raises:
        UsageError: As for `plot_roofline`.
    """
    chart = _select(run, select)
    rows = pd.concat([chart.points, chart.merged, chart.run]).drop(
        columns=["head", "key", "coverage_frac"]
    )
    rows["known_by"] = [KNOWN_BY[rank] for rank in rows["known_by"]]
    rows["series"] = [chart.names.get(letter, "") for letter in rows["series"]]
    with replacing(path) as unfinished:
        rows = for_people(rows).set_index(["series", "label", "place", "name"])
        rows.to_csv(unfinished, lineterminator="\n")
    return Path(path)


def plot_roofline(
    run: "Run | Mapping[str, Run]",
    path: str | Path | Iterable[str | Path],
    *,
    title: str | None = None,
    size: str = "wide",
    dark: bool = False,
    **select: Any,
) -> list[Path]:
    """Draw `run` and return the files written: .png, .svg, .pdf, or .csv for the points.

    Args:
        run: One run; or several by name, on one chart: arrows lead from each to the next.
        path: One file or several.
        title: Replaces the finding.
        size: "wide" (13 in), "compact" (10.8 in) or "page" (8.3 in, the width of A4).
        dark: Light on dark.
        select: `top`, `group_by`, `level` and `measured`, as for `chart_data`.

    Raises:
        UsageError: The run has no times, an option or suffix is not known, or a file cannot be
            written.
    """
    paths = _checked(path, (*_FORMATS, "csv"))
    figure = None
    for output in paths:
        if _form(output) == "csv":
            write_points(run, output, **select)
            continue
        figure = figure or draw_figure(run, title=title, size=size, dark=dark, **select)
        save_figure(figure, output)
    return paths


def _checked(path: str | Path | Iterable[str | Path], forms: Iterable[str]) -> list[Path]:
    """Return the files that are asked for.

    Raises:
        UsageError: One ends in none of these formats.
    """
    paths = [Path(path)] if isinstance(path, str | Path) else [Path(output) for output in path]
    if not {_form(output) for output in paths} <= {*forms}:
        *first, last = (f".{form}" for form in forms)
        problem = f"{', '.join(map(str, paths))}: no such picture format"
        raise UsageError(problem, remedy=f"end it in {', '.join(first)} or {last}")
    return paths


def _form(path: Path) -> str:
    """Return the format that a file's suffix names."""
    return path.suffix.lower().removeprefix(".")


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a chart to a file, in the format that its suffix names: .png, .svg or .pdf."""
    form = _form(path)
    with replacing(path) as unfinished, _settings():
        figure.savefig(
            unfinished,
            format=form,
            dpi=_DOTS_PER_INCH,
            metadata=_FORMATS[form],
            **_PACKING.get(form, {}),
        )


def plot_paper(
    run: "Run | Mapping[str, Run]",
    path: str | Path | Iterable[str | Path],
    *,
    width: float = COLUMN_INCHES,
    **select: Any,
) -> list[Path]:
    """Draw the panel alone, for a paper, at 300 dots per inch; return the files written.

    Args:
        run: One run, or several by name.
        path: One file or several: .png, .svg or .pdf.
        width: In inches: 3.3 is a column, 7 a page.
        select: As for `plot_roofline`.

    Raises:
        UsageError: The run has no times, an option or suffix is not known, the width is none, or a
            file cannot be written.
    """
    paths = _checked(path, _FORMATS)
    if not NARROWEST_INCHES <= width <= WIDEST_INCHES:
        problem = f"--width is {width:g} inches"
        raise UsageError(problem, remedy=f"give {NARROWEST_INCHES:g} to {WIDEST_INCHES:g}")
    with _settings():
        figure = draw_paper(_select(run, select), width=width)
        for output in paths:
            form = _form(output)
            with replacing(output) as unfinished:
                figure.savefig(unfinished, format=form, dpi=DOTS_PER_INCH, metadata=_FORMATS[form])
    return paths


class Drawn(NamedTuple):
    """A chart: what it shows, and the figure, which any number of files are written of."""

    shows: ChartData
    figure: "Figure"


def draw_figure(run: "Run | Mapping[str, Run]", **options: Any) -> "Figure":
    """Return the chart of `run` as a matplotlib figure; options as for `plot_roofline`."""
    return draw_chart(run, **options).figure


def draw_chart(
    run: "Run | Mapping[str, Run]",
    *,
    title: str | None = None,
    size: str = "wide",
    dark: bool = False,
    **select: Any,
) -> Drawn:
    """Return the chart of `run`, laid out and drawn; arguments as for `plot_roofline`."""
    if size not in SIZES:
        raise UsageError(f"there is no size {size!r}", remedy=f"use {', '.join(SIZES)}")
    chart = _select(run, select)
    runs = run.values() if isinstance(run, Mapping) else [run]
    heads = [f"{letter} {name}: " for letter, name in chart.names.items()] or [""]
    above = []
    below = []
    for head, drawn_run in zip(heads, runs, strict=True):
        subtitle, caption = _provenance(drawn_run)
        above.append(head + subtitle)
        below.append(head + caption)
    sources = dict.fromkeys(part for text in chart.roofs["source"] for part in text.split("; "))
    below.append(f"Ceilings: {'; '.join(sources) or 'unknown'}. {_BYTES}")
    if len(chart.measured):
        below.append(_MEASURED)
    with _settings():
        return Drawn(chart, draw(chart, (above, below), title=title, size=size, dark=dark))


def _settings() -> AbstractContextManager[None]:
    """Return matplotlib's own defaults for a while, whatever the user's are; fixed identifiers."""
    import_quickly("matplotlib.figure")
    import matplotlib

    settings: dict[Any, Any] = dict(matplotlib.rcParamsDefault)
    del settings["backend"]
    settings |= {"pdf.fonttype": 42, "svg.hashsalt": "flopprof", "hatch.linewidth": 0.5}
    settings["text.hinting"] = "none"  # letters keep their width
    return matplotlib.rc_context(settings)
