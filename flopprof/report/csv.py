"""The sites as CSV, every column of the table; unknown is empty."""

from flopprof.report import report_format
from flopprof.run import Run


@report_format("csv", ".csv")
def csv_report(run: Run) -> str:
    """Return the table of sites as CSV."""
    text: str = run.sites.to_csv(index=False)
    return text
