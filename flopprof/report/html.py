"""The report as one HTML file that needs nothing else: the page is in page.html."""

import json
import string
import warnings
from base64 import b64encode
from html import escape
from importlib.resources import files
from typing import Any

from flopprof.provenance import AnyProvenance, known_facts
from flopprof.report import report_format
from flopprof.report.chart.svg import PALETTES, chart_svg
from flopprof.report.summary import GOOD, kernel_sums, module_sums, summary
from flopprof.run import Run
from flopprof.tables import TABLES
from flopprof.units import UNKNOWN


@report_format("html", ".html")
def html_report(run: Run) -> str:
    """Return summary, chart, sortable tables and provenance as one self-contained page."""
    template = string.Template((files("flopprof.report") / "page.html").read_text("utf-8"))
    styles = ["; ".join(f"--c{n}: {c}" for n, c in enumerate(colours)) for colours in PALETTES]
    return template.substitute(
        title=escape(run.provenance.title or "model"),
        light=styles[0],
        dark=styles[1],
        missed="No formula" if run.recorded_elsewhere else "Missed by hooks",
        summary=_definitions(summary(run)),
        chart=_chart(run),
        provenance=_definitions([*_flat(run.provenance)]),
        data=json.dumps(_data(run), allow_nan=False).replace("<", "\\u003c"),  # nothing ends it
    )


def _chart(run: Run) -> str:
    """Return the chart, or a sentence that says why there is none."""
    if not run.sites["time_us"].gt(0).any():
        return "<p>No chart: the run has no times.</p>"
    try:
        picture = chart_svg(run)
    except OSError:  # the disk's, not the picture's
        raise
    except Exception as error:  # the tables are not lost for want of a picture
        warnings.warn(f"no chart was drawn: {error}", stacklevel=1)
        return f"<p>No chart: it could not be drawn ({escape(str(error))}).</p>"
    hint = "<figcaption>Select the chart to enlarge it.</figcaption>"
    return f'<figure aria-label="Roofline chart">{picture}{hint}</figure>'


def notebook_html(run: Run) -> str:
    """Return the summary and the chart, as a notebook shows them."""
    picture = run._repr_png_()
    image = "" if picture is None else b64encode(picture).decode()
    rows = "".join(
        f'<tr><th style="text-align:left">{escape(label)}</th>'
        f'<td style="text-align:left">{escape(text)}</td></tr>'
        for label, text in summary(run)
    )
    chart = image and f'<img alt="Roofline chart" width="936" src="data:image/png;base64,{image}">'
    return f"<div><table>{rows}</table>{chart}</div>"


def _definitions(pairs: list[tuple[str, str]]) -> str:
    return "".join(f"<dt>{escape(label)}</dt><dd>{escape(text)}</dd>" for label, text in pairs)


def _flat(provenance: AnyProvenance) -> list[tuple[str, str]]:
    """Return what the run says of itself as (name, text); what are tables of their own is not."""
    return [(name, _plain(value)) for name, value in known_facts(provenance).items()]


def _plain(value: Any) -> str:
    """Return a value as people read it; "" for nothing, and for what is a table of its own."""
    if isinstance(value, tuple | list):
        parts = [_plain(item) for item in value]
        return ", ".join(parts) if len(str(parts)) < 1000 else ""
    if isinstance(value, float):
        return f"{value:.6g}" if value == value else UNKNOWN
    return "" if value is None else str(value)


def _data(run: Run) -> dict[str, Any]:
    """Return what the page's script shows: tables as columns and rows; null is unknown."""
    docs = {c.name: c.doc for table in ("kernels", "sites") for c in TABLES[table].columns}
    frames = {"sites": run.sites, "modules": module_sums(run), "kernels": kernel_sums(run)}
    return {
        "good": sorted(GOOD),
        "docs": docs | {"self_flops": "FLOPs of the module itself, without those inside it."},
        "empty": {
            "sites": "There are none.",
            "modules": "There are none.",
            "kernels": "There are none: the run used no GPU, or timed nothing.",
            "misses": "Nothing.",
        },
        **{
            name: json.loads(
                frame.to_json(orient="split", index=False, double_precision=15, force_ascii=False)
            )
            for name, frame in frames.items()
        },
    }
