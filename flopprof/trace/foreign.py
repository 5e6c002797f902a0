"""Name files that are no traces of PyTorch ops for what they are: a table of patterns."""

import csv
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from flopprof.errors import LoadError, UsageError
from flopprof.model.detect import detect
from flopprof.units import file_text

HEAD_BYTES = 1 << 16  # what is looked at


@dataclass(frozen=True, slots=True)
class ForeignKind:
    """What a file is, and what to do instead.

    Attributes:
        pattern: Matches how such a file begins.
        noun: What it is: "a memory snapshot …".
        remedy: What to do instead.
    """

    pattern: re.Pattern[str]
    noun: str
    remedy: str

    def error(self, path: str | Path) -> LoadError:
        """Return the error for such a file."""
        return LoadError(f"{file_text(path)} is {self.noun}", remedy=self.remedy)


@cache
def _kinds() -> list[ForeignKind]:
    with Path(__file__).with_name("foreign.csv").open(encoding="utf-8", newline="") as file:
        return [
            ForeignKind(re.compile(row["pattern"], re.DOTALL), row["what"], row["remedy"])
            for row in csv.DictReader(file)
        ]


def what_else(head: bytes) -> ForeignKind | None:
    """Return what a file that begins with `head` is, if it is of a kind of the table."""
    text = head[:HEAD_BYTES].decode("latin-1")
    return next((kind for kind in _kinds() if kind.pattern.search(text)), None)


# Kinds of `detect` that may hold a trace; the reader says what is wrong with them.
_MAY_BE_TRACE = ("json", "compressed", "text", "unknown", "empty", "tar", "zip", "other_zip", "npz")
_LISTED = 5  # traces named of a folder


def check_is_no_model(path: Path) -> None:
    """Refuse what no trace can be, and say what it is.

    Raises:
        UsageError: There is no such file, or it is a folder.
        LoadError: It is a model, or of another known kind.
    """
    if any(parent.is_file() for parent in path.parents):
        return  # a member of an archive, for the reader to find
    if path.is_dir():
        raise _of_folder(path)
    kind = detect(path)
    if kind.name in _MAY_BE_TRACE:
        return
    with path.open("rb") as file:
        foreign = what_else(file.read(HEAD_BYTES))
    if foreign is not None:
        raise foreign.error(path)
    raise LoadError(f"{file_text(path)} is {kind.what}, no trace", remedy="name a trace's .json")


def _of_folder(path: Path) -> UsageError:
    """Return the error for a folder, such as TensorBoard's, with the traces in it."""
    traces = sorted(file for file in path.iterdir() if ".json" in file.suffixes)
    names = ", ".join(file_text(file) for file in traces[:_LISTED])
    more = f", and {len(traces) - _LISTED} more" if len(traces) > _LISTED else ""
    return UsageError(
        f"{file_text(path)} is a folder",
        remedy=f"name a trace in it: {names}{more}" if traces else "name a trace's .json",
    )
