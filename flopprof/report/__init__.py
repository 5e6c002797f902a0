"""Write one `Run` in one format; a file per format."""

from collections.abc import Callable
from pathlib import PurePath
from typing import TypeVar

from flopprof.errors import UsageError
from flopprof.registry import Registry, import_all
from flopprof.run import Run
from flopprof.units import safe_text

Report = TypeVar("Report", bound=Callable[[Run], str | bytes])
REPORT_FORMATS: Registry[Callable[[Run], str | bytes]] = Registry("report format")


def report_format(*names: str) -> Callable[[Report], Report]:
    """Register a function from a run to text, or to a file's bytes, under its format's names."""

    def register(function: Report) -> Report:
        REPORT_FORMATS.register(*names)(function)
        return function

    return register


def format_names() -> list[str]:
    """Return the names of all formats, without their suffixes."""
    import_all("flopprof.report")
    return [name for name, _ in REPORT_FORMATS.items() if not name.startswith(".")]


def format_for(path: str | None, form: str | None) -> str:
    """Return the format that a report is written in: `form`, or what the suffix of `path` says.

    Raises:
        UsageError: There is no such format, none has the suffix, or the two differ.
    """
    import_all("flopprof.report")
    suffix = PurePath(path).suffix.lower() if path else ""
    if form:
        writer = REPORT_FORMATS.require(form)
        if suffix and REPORT_FORMATS.get(suffix) is not writer:
            fact = f"--format {form} does not fit {safe_text(path)}"
            raise UsageError(fact, remedy="leave out --format, or give another name")
        return form
    if not suffix:
        return "text"
    if suffix not in REPORT_FORMATS:
        suffixes = ", ".join(name for name, _ in REPORT_FORMATS.items() if name.startswith("."))
        fact = f"{safe_text(path)} says nothing of its format: {safe_text(suffix)} is of none"
        raise UsageError(fact, remedy=f"end it in one of {suffixes}, or add --format")
    return suffix


def write_report(run: Run, form: str = "text") -> str | bytes:
    """Return `run` in the format `form`, one of `format_names`: text, or bytes of a file.

    Raises:
        UsageError: There is no such format, or a library that it needs is not installed.
    """
    import_all("flopprof.report")
    return REPORT_FORMATS.require(form)(run)
