"""The sites as CSV, every column of the table; unknown is empty. For people and spreadsheets."""

import pandas as pd

from flopprof.report import report_format
from flopprof.run import Run
from flopprof.units import clean_text

_CALCULATES = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")


@report_format("csv", ".csv")
def csv_report(run: Run) -> str:
    """Return the table of sites as CSV."""
    text: str = for_people(run.sites).to_csv(index=False, lineterminator="\n")
    return text


def for_people(frame: pd.DataFrame) -> pd.DataFrame:
    """Return `frame` with its texts cleaned, and quoted where a spreadsheet would calculate them.

    Names come from files that anybody may have written. The tables that a run saves keep them as
    they are.
    """
    texts = [name for name in frame.columns if not pd.api.types.is_numeric_dtype(frame[name])]
    return frame.assign(**{str(name): frame[name].map(_as_text) for name in texts})


def _as_text(value: object) -> object:
    if not isinstance(value, str):
        return value
    quote = "'" if value.startswith(_CALCULATES) else ""
    return quote + clean_text(value)
