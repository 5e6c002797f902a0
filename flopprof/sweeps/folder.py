"""A sweep's folder: what was asked, and a row for each cell that is done."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flopprof._version import __version__
from flopprof.errors import LoadError, UsageError
from flopprof.files import explain_os_errors, write_atomically
from flopprof.sweeps.grid import Cell
from flopprof.units import safe_text

ASKED = "asked.json"
CELLS = "cells"
RUNS = "runs"


@dataclass(frozen=True, slots=True)
class Folder:
    """Where a sweep is kept; a cell that is in it is not measured again."""

    path: Path

    def open(self, model: str, options: Mapping[str, Any], *, force: bool) -> None:
        """Make the folder, or go on with the sweep in it.

        Args:
            model: The model that is swept, as text.
            options: The options that all cells share.
            force: Throw away what is in it.

        Raises:
            UsageError: It holds the sweep of something else, or something that is no sweep.
        """
        request = {"what": model, "model": _state_of(model), "options": dict(options)}
        request["flopprof"] = __version__
        if force and self._is_sweep():
            shutil.rmtree(self.path)
        with explain_os_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        if self._is_sweep():
            self._check_same(request)
            return
        if any(self.path.iterdir()):
            fact = f"{safe_text(self.path)} is there already, and holds no sweep"
            raise UsageError(fact, remedy="give another folder with -o")
        with explain_os_errors(self.path):
            (self.path / CELLS).mkdir()
            (self.path / RUNS).mkdir()
            write_atomically(self.path / ASKED, json.dumps(request, indent=1))

    def _is_sweep(self) -> bool:
        return (self.path / ASKED).is_file()

    def _check_same(self, request: dict[str, Any]) -> None:
        saved = _read(self.path / ASKED)
        now = json.loads(json.dumps(request))
        differing = [name for name in now if saved.get(name) != now[name]]
        if not differing:
            return
        name = differing[0]
        saved_value = safe_text(saved.get(name))
        fact = f"{safe_text(self.path)} holds a sweep of another {name}: {saved_value}"
        raise UsageError(fact, remedy="give another folder with -o, or --force to begin anew")

    def row(self, cell: Cell) -> dict[str, Any] | None:
        """Return the row of a cell that is done; None for one that is not."""
        path = self._cell_file(cell)
        return _read(path) if path.is_file() else None

    def keep(self, cell: Cell, row: Mapping[str, Any]) -> None:
        """Write the row of a cell, whole or not at all."""
        with explain_os_errors(self.path):
            write_atomically(self._cell_file(cell), json.dumps(row, indent=1))

    def run_folder(self, cell: Cell) -> Path:
        """Return where the run of a cell is saved."""
        return self.path / RUNS / f"{cell.name}.flopprof"

    def _cell_file(self, cell: Cell) -> Path:
        return self.path / CELLS / f"{cell.name}.json"

    def rows(self, cells: Sequence[Cell]) -> list[dict[str, Any]]:
        """Return the rows of those cells that are done, with the values that they vary in."""
        measured = ((cell, self.row(cell)) for cell in cells)
        return [dict(cell.values) | row for cell, row in measured if row is not None]


def _state_of(model: str) -> dict[str, Any] | None:
    """Return what tells that a model's file was changed since; None for code of a library."""
    path = Path(model.rpartition(":")[0] if ".py:" in model else model)
    if not path.is_file():
        return None
    facts = path.stat()
    return {"bytes": facts.st_size, "modified_ns": facts.st_mtime_ns}


def _read(path: Path) -> dict[str, Any]:
    """Return the object in a file of ours.

    Raises:
        LoadError: It holds none.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        fact = f"{safe_text(path)} is damaged: it holds no JSON"
        raise LoadError(fact, remedy="remove it: the cell is measured again") from error
    if not isinstance(value, dict):
        fact = f"{safe_text(path)} is damaged: it holds no JSON object"
        raise LoadError(fact, remedy="remove it: the cell is measured again")
    return value
