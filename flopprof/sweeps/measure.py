"""Measure every cell of a grid, each in a process of its own, and go on where a sweep stopped."""

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Unpack

from flopprof.devices.cpu import free_memory_bytes
from flopprof.errors import UsageError
from flopprof.model.trusted import parse_bytes, supervised
from flopprof.settings import Options, Progress, Settings, silent
from flopprof.stages import Stage
from flopprof.sweeps.cell import FAILED, OUT_OF_MEMORY
from flopprof.sweeps.folder import Folder
from flopprof.sweeps.grid import Cell, cells_of
from flopprof.sweeps.result import Sweep
from flopprof.units import safe_text, si

TIMED_OUT = "timed_out"
CELL_TIME_LIMIT_S = 1800.0
FREE_MEMORY_SHARE = 0.9  # of what is free when a sweep begins: the rest is for everybody else
UNLIMITED = 2**62  # bytes
_KILLED = (-9, 137)  # exit codes of what the system killed, mostly since memory ran out


def sweep(
    what: str | Path,
    grid: Mapping[str, Sequence[Any]],
    *,
    output: str | Path | None = None,
    memory_limit: str | None = None,
    time_limit_s: float = CELL_TIME_LIMIT_S,
    force: bool = False,
    progress: Progress = silent,
    **options: Unpack[Options],
) -> Sweep:
    """Profile a model at every combination of settings, each in a fresh process.

    Args:
        what: What the command line takes for MODEL: a fresh process has to find it again.
        grid: Axis → values; axes are device, dtype, threads, compile, input_size and batch.
        output: Folder that keeps the cells: a sweep that was stopped goes on there. A cell that is
            in it is not measured again, failed or not. Without it nothing is kept.
        memory_limit: Memory of a cell at most, "16G"; nine tenths of what is free unless given.
        time_limit_s: Wall time of a cell at most.
        force: Throw away what is in the folder.
        progress: Called with what is under way, and the time left.
        options: The fields of `Settings` that all cells share.

    Raises:
        UsageError: The grid or the folder is not usable.
    """
    if not isinstance(what, str | Path):
        raise UsageError(
            f"a sweep cannot take a {type(what).__name__}: each cell is a process of its own",
            remedy='give what the command line takes, such as "my_net.py:build"',
        )
    Settings.of(options)  # is refused now, not in every cell
    shared = _plain(options)
    cells = cells_of(grid)
    limit_bytes = _memory_limit(memory_limit)
    with _folder_for(output) as path:
        folder = Folder(path)
        folder.open(str(what), shared, force=force)
        _measure(folder, str(what), shared, cells, limit_bytes, time_limit_s, progress)
        rows = folder.rows(cells)
    return Sweep(what=str(what), axes=list(cells[0].values), rows=rows)


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as a fresh process can be told them.

    Raises:
        UsageError: One is an object of this process.
    """
    plain = {}
    for name, value in options.items():
        value = str(value) if isinstance(value, Path) else value
        if not isinstance(value, str | int | float | list | tuple | dict | None):
            raise UsageError(
                f"a sweep cannot take {name}={value!r}: each cell is a process of its own",
                remedy="give what the command line takes, such as loss='my_net.py:loss'",
            )
        plain[name] = value
    return plain


@contextmanager
def _folder_for(output: str | Path | None) -> Iterator[Path]:
    """Yield a folder that stays where the user named one, and goes where not."""
    if output is not None:
        yield Path(output)
        return
    with tempfile.TemporaryDirectory(prefix="flopprof-sweep-") as folder:
        yield Path(folder)


def _measure(
    folder: Folder,
    model: str,
    options: Mapping[str, Any],
    cells: Sequence[Cell],
    memory_bytes: int,
    time_s: float,
    progress: Progress,
) -> None:
    """Measure the cells that are not in the folder yet, one after the other."""
    waiting = [cell for cell in cells if folder.row(cell) is None]
    if options.get("ceilings", True) is True:
        _find_ceilings([{**options, **cell.options} for cell in waiting], time_s, progress)
    for number, cell in enumerate(waiting, start=len(cells) - len(waiting) + 1):
        name = f"cell {number} of {len(cells)}: {cell.label}"
        progress(Stage(name, done=number - 1, total=len(cells)))
        task = {
            "what": model,
            "options": {**options, **cell.options},
            "folder": str(folder.run_folder(cell)),
        }
        folder.keep(cell, _row_of_process(task, memory_bytes, time_s))


def _find_ceilings(settings: Sequence[dict[str, Any]], time_s: float, progress: Progress) -> None:
    """Measure the device's ceilings ahead of the cells, in a process without their limits.

    They are then in the user's cache. What cannot be measured here a cell tries itself.

    Args:
        settings: Those of the cells.
        time_s: Wall time of a process at most.
        progress: Called with what is under way.
    """
    dtypes_of: dict[tuple[Any, Any], list[str]] = {}
    for options in settings:
        place = (options.get("device"), options.get("threads"))
        dtype = options.get("autocast") or options.get("dtype") or "float32"
        dtypes_of.setdefault(place, []).append(dtype)
    for (device, threads), dtypes in dtypes_of.items():
        progress("measuring the device's ceilings")
        wanted = {"device": device, "threads": threads, "dtypes": sorted(set(dtypes))}
        _row_of_process({"ceilings": wanted}, UNLIMITED, time_s)


def _row_of_process(task: dict[str, Any], memory_bytes: int, time_s: float) -> dict[str, Any]:
    """Do a cell, or measure ceilings, in a process of its own; return its row, or why not."""
    with tempfile.TemporaryDirectory(prefix="flopprof-cell-") as scratch:
        task_file = Path(scratch, "asked.json")
        answer_file = Path(scratch, "answer.json")
        talk = Path(scratch, "talk.txt")
        task_file.write_text(json.dumps(task), encoding="utf-8")
        with talk.open("wb") as stderr:
            outcome = supervised(
                _command(task_file, answer_file),
                memory_bytes=memory_bytes,
                time_s=time_s,
                scratch=scratch,
                stderr=stderr,
            )
        with suppress(OSError, ValueError):
            row: dict[str, Any] = json.loads(answer_file.read_text(encoding="utf-8"))
            return row
        return _no_answer(outcome, memory_bytes, time_s, talk)


def _command(task_file: Path, answer_file: Path) -> list[str]:
    package = str(Path(__file__).resolve().parents[2])
    code = (
        f"import os, sys; sys.path.insert(0, {package!r}); "
        "os.environ.setdefault('KINETO_LOG_LEVEL', '99'); "  # as in __main__, for which this stands
        "from flopprof.sweeps.cell import main; sys.exit(main(*sys.argv[1:]))"
    )
    return [sys.executable, "-P", "-c", code, str(task_file), str(answer_file)]


def _no_answer(
    outcome: Mapping[str, Any], memory_bytes: int, time_s: float, talk: Path
) -> dict[str, Any]:
    """Return the row of a process that ended without an answer."""
    if outcome.get("broke") == "memory":
        reason = f"it took more than {si(float(memory_bytes), 'B')} of memory"
        return {"status": OUT_OF_MEMORY, "reason": reason}
    if outcome.get("broke") == "time":
        return {"status": TIMED_OUT, "reason": f"it took more than {time_s:g} s"}
    code = outcome.get("exit_code")
    if code in _KILLED:
        return {"status": OUT_OF_MEMORY, "reason": "the system killed it, mostly for its memory"}
    last_words = talk.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last = f": {safe_text(last_words[-1])}" if last_words else ""
    return {"status": FAILED, "reason": f"its process ended with exit code {code}{last}"}


def _memory_limit(text: str | None) -> int:
    """Return the bytes that a cell may take: what was said, else most of what is free."""
    if text is not None:
        return parse_bytes(text)
    free = free_memory_bytes()
    return UNLIMITED if free is None else int(free * FREE_MEMORY_SHARE)
