"""A run's folder: its tables and what it says of itself, read back and checked.

Every damaged run is refused: a number that cannot be, an id that leads nowhere, a sum that differs.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from flopprof.errors import LoadError
from flopprof.judge.verdicts import VERDICTS
from flopprof.metafile import NewerVersionError, decode
from flopprof.provenance import AnyProvenance
from flopprof.tables import TABLES
from flopprof.units import safe_text

NAMES = ("module_calls", "ops", "kernels", "rooflines", "sites")
"""The tables that a run saves."""

RARE = ("launches", "collectives")
"""The tables that few runs have: of hardware's counters, of CPUs that sent to each other."""

SUMS = ("op_sums", "kernel_sums")
"""The tables that a job of several ranks saves in place of its ops and kernels."""

LARGE_BYTES = 16_000_000
"""A CSV file of that size takes half a second to read: it is read when it is asked for."""

_AGAIN = "profile the model again with: flopprof run"
_SIGNED = ("start_us",)
_UNBOUNDED = (  # nothing was moved, or no time passed
    "intensity_flops_per_byte",
    "ridge_flops_per_byte",
    "achieved_flops_per_s",
    "attainable_flops_per_s",
    "efficiency_frac",
)
_KEYS = {"ops": "op_id"}
_REFERENCES = {
    "ops": (("parent_op_id", "ops"), ("site_id", "sites")),
    "kernels": (("op_id", "ops"),),
    "kernel_sums": (("site_id", "sites"),),
    "module_calls": (("parent_call_id", "module_calls"),),
}


class SavedTables:
    """The tables in a run's folder, each read once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[str, pd.DataFrame] = {}

    def is_large(self, name: str) -> bool:
        """Return whether reading that table takes long.

        Raises:
            LoadError: It is no file.
        """
        path = self._path(name)
        return path.suffix == ".parquet" or (path.exists() and path.stat().st_size > LARGE_BYTES)

    def read(self, name: str) -> pd.DataFrame:
        """Return the table of that name.

        Raises:
            LoadError: It is missing, of other columns, or holds what cannot be.
        """
        if name not in self._read:
            path = self._path(name)
            table = TABLES[name]
            is_parquet = path.suffix == ".parquet"
            self._read[name] = table.read_parquet(path) if is_parquet else table.read_csv(path)
            if fault := next(self._faults(name), ""):
                raise LoadError(f"{safe_text(self._folder)} is damaged: {fault}", remedy=_AGAIN)
        return self._read[name]

    def read_columns(self, name: str, columns: Sequence[str]) -> pd.DataFrame:
        """Return some columns of a table; of a Parquet file nothing else is read.

        Raises:
            LoadError: As `read`; and an odd number in these columns.
        """
        path = self._path(name)
        if name in self._read or path.suffix != ".parquet":
            return self.read(name)[TABLES[name].part(columns).names]
        frame = TABLES[name].read_parquet(path, columns)
        if fault := next(_odd_numbers(name, frame), ""):
            raise LoadError(f"{safe_text(self._folder)} is damaged: {fault}", remedy=_AGAIN)
        return frame

    def _path(self, name: str) -> Path:
        """Return the file that holds a table: a Parquet file, if it is there, else a CSV file."""
        parquet = regular_file(self._folder / f"{name}.parquet")
        return parquet if parquet.exists() else regular_file(self._folder / f"{name}.csv")

    def _faults(self, name: str) -> Iterator[str]:
        """Yield what in a table cannot be: odd numbers, ids that lead nowhere, verdicts."""
        frame = self._read[name]
        yield from _odd_numbers(name, frame)
        if (key := _KEYS.get(name)) and (frame[key].to_numpy() != np.arange(len(frame))).any():
            yield f"{name}.csv does not number its rows by {key}"
        for column_name, other in _REFERENCES.get(name, ()):
            if other != name and self.is_large(other):
                continue  # not worth the time that reading it takes
            if not frame[column_name].between(-1, len(self.read(other)) - 1).all():
                yield f"{name}.csv holds a {column_name} that is not in {other}.csv"
        if name == "sites":
            yield from _faults_of_sites(frame)


def _odd_numbers(name: str, frame: pd.DataFrame) -> Iterator[str]:
    for column in TABLES[name].part(frame.columns).columns:
        if column.type == "float" and _is_odd(frame[column.name].to_numpy(), column.name):
            yield f"{name}.csv holds a {column.name} that is negative or infinite"


def _faults_of_sites(sites: pd.DataFrame) -> Iterator[str]:
    if (sites["calls"] < 0).any():
        yield "sites.csv holds a negative number of calls"
    if odd := {*sites["verdict"]} - {*VERDICTS}:
        yield f"in sites.csv, there is no verdict {safe_text(min(odd))!r}"


def _is_odd(values: np.ndarray, column: str) -> bool:
    negative = column not in _SIGNED and bool((values < 0).any())
    return negative or (column not in _UNBOUNDED and bool(np.isinf(values).any()))


def read_provenance(folder: Path) -> AnyProvenance:
    """Return the provenance of the run saved in `folder`.

    Raises:
        LoadError: It holds no run, a damaged one, or one of a newer flopprof.
    """
    path = regular_file(folder / "meta.json")
    try:
        return decode(path.read_bytes())
    except FileNotFoundError:
        fact = f"{safe_text(folder)} holds no meta.json, so it is not a run"
        raise LoadError(fact, remedy=_AGAIN) from None
    except NewerVersionError as newer:
        raise LoadError(
            f"{safe_text(folder)} was written by a newer flopprof ({newer})",
            remedy="pip install --upgrade flopprof",
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        fact = f"{safe_text(folder)}/meta.json is damaged: {safe_text(error)}"
        raise LoadError(fact, remedy=_AGAIN) from error


def regular_file(path: Path) -> Path:
    """Return `path`; a pipe or folder in the place of a file of a run is refused.

    Raises:
        LoadError: It is one of these.
    """
    if path.exists() and not path.is_file():
        raise LoadError(f"{safe_text(path)} is no file, so this is no run", remedy=_AGAIN)
    return path
