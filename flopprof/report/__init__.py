"""Write one `Run` in one format; a file per format."""

from collections.abc import Callable

from flopprof.registry import Registry, import_all
from flopprof.run import Run

REPORT_FORMATS: Registry[Callable[[Run], str]] = Registry("report format")


def report_format(*names: str) -> Callable[[Callable[[Run], str]], Callable[[Run], str]]:
    """Register a function from a run to text under its format's names."""
    return REPORT_FORMATS.register(*names)


def write_report(run: Run, form: str = "text") -> str:
    """Return `run` as text in the format `form`: text, md, html, json, csv.

    Raises:
        UsageError: There is no such format.
    """
    import_all("flopprof.report")
    return REPORT_FORMATS.require(form)(run)
