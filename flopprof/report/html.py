"""The report as one HTML file that needs nothing else, made of page.html, page.css and page.js."""

import json
import math
import string
import warnings
from base64 import b64encode
from collections.abc import Callable, Sequence
from html import escape
from importlib.resources import files
from typing import Any, TypeVar

import pandas as pd

from flopprof.jobfacts import known_facts
from flopprof.judge.verdicts import GOOD, MEANINGS
from flopprof.provenance import AnyProvenance
from flopprof.report import report_format
from flopprof.report.chart import Drawn, draw_chart
from flopprof.report.chart.decode import draw_decode
from flopprof.report.chart.narrow import narrow_chart
from flopprof.report.chart.svg import PALETTES, chart_svg, figure_svg
from flopprof.report.jobpage import job_section
from flopprof.report.misses import heading
from flopprof.report.rows import kernel_sums, module_sums
from flopprof.report.summary import summary
from flopprof.run import Run
from flopprof.tables import TABLES
from flopprof.units import UNKNOWN, clean_text, shown

Made = TypeVar("Made")
_LONGEST = 1000  # letters of a list that the page's provenance has room for


@report_format("html", ".html")
def html_report(run: Run) -> str:
    """Return summary, chart, sortable tables and provenance as one self-contained page."""
    return page(run, chart_of(run))


def page(run: Run, chart: Drawn | str) -> str:
    """Return the page of `html_report`, around a chart that is drawn already, or why there is none.

    Args:
        run: The result.
        chart: What `chart_of` gave for it.
    """
    light, dark = map(_variables, PALETTES)
    section = job_section(run)
    rows = json.dumps(_page_data(run), allow_nan=False)
    return string.Template(_part("page.html")).substitute(
        title=_escaped(run.provenance.title or "model"),
        style=string.Template(_part("page.css")).substitute(light=light, dark=dark),
        script=_part("page.js"),
        heading=_escaped(heading(run)),
        missed="No formula" if run.recorded_elsewhere else "Missed by hooks",
        summary=_definitions(summary(run)),
        chart=_chart(chart),
        decode=_decode_chart(run),
        job=section,
        job_link='<a href="#job">Job</a>' if section else "",
        provenance=_definitions([*_flat(run.provenance)]),
        data=rows.replace("<", "\\u003c"),  # so that nothing in it ends the script
    )


def _variables(colours: Sequence[str]) -> str:
    """Return a palette as CSS variables, --c0 and so on."""
    return "; ".join(f"--c{number}: {colour}" for number, colour in enumerate(colours))


def _part(name: str) -> str:
    return (files("flopprof.report") / name).read_text("utf-8")


def _escaped(text: object) -> str:
    """Return `text`, which a file may have chosen, as text of a page."""
    return escape(clean_text(text))


def chart_of(run: Run) -> Drawn | str:
    """Return the chart, or the sentence that says why there is none."""
    if not run.sites["time_us"].gt(0).any():
        return "No chart: the run has no times."
    return or_why_not(lambda: draw_chart(run))


def or_why_not(draw: Callable[[], Made]) -> Made | str:
    """Return what is drawn, or a sentence that says why it cannot be; the disk's faults pass."""
    try:
        return draw()
    except OSError:  # the disk's, not the picture's
        raise
    except Exception as error:  # the tables are not lost for want of a picture
        if isinstance(error.__cause__, OSError):
            raise
        warnings.warn(f"no chart was drawn: {error}", stacklevel=1)
        return f"No chart: it could not be drawn ({error})."


def _chart(chart: Drawn | str) -> str:
    picture = chart if isinstance(chart, str) else or_why_not(lambda: chart_svg(chart))
    if not picture.startswith("<svg"):
        return f"<p>{_escaped(picture)}</p>"
    assert isinstance(chart, Drawn)
    small = f'<div id="panel">{narrow_chart(chart.shows)}</div>'
    hint = "<figcaption>The whole chart: select it to enlarge it.</figcaption>"
    how = 'aria-label="Roofline chart, enlarged or not" role="button" tabindex="0"'
    return f"{small}<figure {how}>{picture}{hint}</figure>"


def _decode_chart(run: Run) -> str:
    """Return the chart of a decoded token by its context; '' for a run without a generation."""
    facts = run.provenance.generate
    if facts is None:
        return ""
    picture = or_why_not(lambda: figure_svg(draw_decode(facts)))
    if not picture.startswith("<svg"):
        return f"<p>{_escaped(picture)}</p>"
    return f'<section id="decode"><h2>Decode</h2>{picture}</section>'


def notebook_html(run: Run) -> str:
    """Return the summary and the chart, as a notebook shows them."""
    picture = run._repr_png_()
    image = "" if picture is None else b64encode(picture).decode()
    rows = "".join(
        f'<tr><th style="text-align:left">{_escaped(label)}</th>'
        f'<td style="text-align:left">{_escaped(text)}</td></tr>'
        for label, text in summary(run)
    )
    chart = image and f'<img alt="Roofline chart" width="936" src="data:image/png;base64,{image}">'
    return f"<div><table>{rows}</table>{chart}</div>"


def _definitions(pairs: list[tuple[str, str]]) -> str:
    return "".join(f"<dt>{_escaped(label)}</dt><dd>{_escaped(text)}</dd>" for label, text in pairs)


def _flat(provenance: AnyProvenance) -> list[tuple[str, str]]:
    """Return what the run says of itself as (name, text); what are tables of their own is not."""
    return [(name, _plain(value)) for name, value in known_facts(provenance).items()]


def _plain(value: Any) -> str:
    """Return a value as people read it; "" for nothing, and for what is a table of its own."""
    if isinstance(value, tuple | list):
        parts = [_plain(item) for item in value]
        text = ", ".join(parts)
        return text if len(text) < _LONGEST else ""
    if isinstance(value, float):
        return UNKNOWN if math.isnan(value) else f"{value:.6g}"
    return "" if value is None else str(value)


def _page_data(run: Run) -> dict[str, Any]:
    """Return what the page's script shows: tables as columns and rows; null is unknown."""
    columns = (*TABLES["kernels"].columns, *TABLES["sites"].columns)
    docs = {column.name: column.doc for column in columns}
    frames = {"sites": run.sites, "modules": module_sums(run), "kernels": kernel_sums(run)}
    return {
        "good": sorted(GOOD),
        "meanings": MEANINGS,
        "docs": docs | {"self_flops": "FLOPs of the module itself, without those inside it."},
        "empty": {
            "sites": "There are none.",
            "modules": "There are none.",
            "kernels": "There are none: the run used no GPU, or timed nothing.",
            "misses": "Nothing.",
        },
        **{name: _rows(frame) for name, frame in frames.items()},
    }


def _rows(frame: pd.DataFrame) -> dict[str, Any]:
    """Return a table's columns, its values to sort by, and its numbers as people read them."""
    numbers = [name for name in frame.columns if pd.api.types.is_numeric_dtype(frame[name])]
    others = [name for name in frame.columns if name not in numbers]
    frame = frame.assign(**{name: [*map(clean_text, frame[name])] for name in others})
    texts = {name: [shown(name, value) for value in frame[name].tolist()] for name in numbers}
    if "unknown_sites" in frame:  # what they do is left out
        marks = frame["unknown_sites"].gt(0).map({True: "≥ ", False: ""})
        texts["flops"] = [mark + text for mark, text in zip(marks, texts["flops"], strict=True)]
    nothing = [None] * len(frame)
    columns = [texts.get(name, nothing) for name in frame.columns]
    return {
        **json.loads(frame.to_json(orient="split", index=False, double_precision=15)),
        "shown": [list(row) for row in zip(*columns, strict=True)],
    }
