"""Know or measure what a device can do at most."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from flopprof.ceilings.ceiling import (
    MAIN,
    Ceiling,
    Ceilings,
    by_precedence,
    cache_path,
    load_ceilings,
    save_ceilings,
)
from flopprof.ceilings.datasheet import boards_called, ceilings_for_gpu, peak_rows
from flopprof.devices import Device
from flopprof.errors import FlopprofError, UsageError

FASTER = 1.2  # × the level behind it: a cache that is not so much faster held no array


def find_ceilings(
    device: Device,
    *,
    user: Ceilings | None = None,
    refresh: bool = False,
    dtypes: Iterable[str] | None = None,
    progress: Callable[[str], None] = lambda _stage: None,
) -> Ceilings:
    """Return what limits a device: the user's file, then measurements, datasheet, formula.

    Measurements are kept in the user's cache folder. A CPU is measured where they are missing, with
    torch's number of threads; a GPU only on `refresh`, since the tables know it.

    Args:
        device: What `find_device` returns.
        user: The content of the user's ceilings file; its entries go before all others. Where it
            has the main memory, its memories are all there are.
        refresh: Measure again.
        dtypes: What to measure besides memory and caches; every type unless given.
        progress: Called with the name of each measurement as it begins.
    """
    import torch

    described = device.describe()
    user = user or Ceilings({})
    notes = [*user.warnings, *_doubts(user, described)]
    on_cpu = described["kind"] == "cpu"
    tables = Ceilings({}) if on_cpu else ceilings_for_gpu(described)
    cached = _read_cache(described, torch.__version__, notes)
    measured: list[Ceiling] = []
    if on_cpu or refresh:
        from flopprof.ceilings.measure import keys_to_measure, measure_ceilings

        known_keys = set(user.resolved)
        if not refresh:
            known_keys |= set(cached.resolved)
        caches = {} if MAIN in user.resolved else device.caches()
        keys = keys_to_measure(described, caches, dtypes)
        missing = [key for key in keys if key not in known_keys]
        measured = measure_ceilings(device, missing, notes=notes, progress=progress)
    valid = tuple(entry for entry in measured if entry.valid)
    doubtful = [entry for entry in measured if not entry.valid]
    if valid:
        newest = Ceilings({}, valid + cached.entries).resolved
        cached = Ceilings(described, tuple(newest.values()))
        _write_cache(torch.__version__, cached, notes)
    for entry in doubtful:
        name = f"{entry.name} {entry.unit.replace('tensor', 'matmul')}"
        notes.append(f"measured on a busy machine: {name}")
    entries = _with_telling_levels([*cached.entries, *doubtful, *tables.entries])
    if MAIN in user.resolved:  # the user says what the memories are
        entries = [entry for entry in entries if entry.holds_bytes is None]
    entries = [*user.entries, *by_precedence(entries)]
    if not entries:
        notes += tables.warnings
    return Ceilings(described, tuple(entries), {**tables.clocks, **user.clocks}, tuple(notes))


def _doubts(user: Ceilings, described: dict[str, Any]) -> list[str]:
    """Return in what the user's ceilings are of another device than this."""
    doubts = []
    file = user.file
    name = user.device.get("name", described["name"])
    if name != described["name"]:
        doubts.append(f"{file} is of {name}, and this is {described['name']}")
    then = user.device.get("threads")
    now = described.get("threads")
    if then is not None and now is not None and then != now:
        doubts.append(f"{file} was measured with {then} threads, and here are {now}")
    return doubts


def _with_telling_levels(entries: list[Ceiling]) -> list[Ceiling]:
    """Return the entries without caches no faster than what is behind them: they held no array."""
    levels = Ceilings({}, tuple(entries)).resolved
    if MAIN not in levels:
        return entries
    behind_per_s = levels[MAIN].per_s
    for name in ("L3", "L2", "L1"):
        cache = levels.get((name, "memory"))
        if cache is None or cache.kind == "user":
            continue
        if cache.per_s < FASTER * behind_per_s:
            entries = [entry for entry in entries if entry is not cache]
        else:
            behind_per_s = cache.per_s
    return entries


def ceilings_of_trace(
    device: dict[str, Any], gpu: str | None, file: str | Path | None, *, on_gpu: bool
) -> Ceilings:
    """Return the ceilings of the device that a trace names, or that the user does.

    Args:
        device: Its properties in the trace.
        gpu: Name of the GPU whose ceilings count, in place of that.
        file: A ceilings file, whose entries go before the tables'.
        on_gpu: Whether the trace has kernels.

    Raises:
        UsageError: There is no such GPU in the table, or several are called so.
        LoadError: The file is damaged.
    """
    if file is not None:
        return _of_trace_and_file(device, file, on_gpu=on_gpu)
    if gpu is not None:
        ceilings = ceilings_for_gpu({"name": gpu})
        if not ceilings.entries:
            raise _no_single_gpu(gpu)
        return ceilings
    if not on_gpu:
        return Ceilings({}, warnings=("no ceiling is known: give --ceilings FILE",))
    return ceilings_for_gpu(device)


def _no_single_gpu(gpu: str) -> UsageError:
    boards = boards_called(gpu)
    if boards:
        return UsageError(
            f"{gpu!r} may be any of {len(boards)} boards", remedy=f"name one: {', '.join(boards)}"
        )
    every = ", ".join(row["name"] for row in peak_rows())
    return UsageError(f"no GPU of the table is called {gpu!r}", remedy=f"known are: {every}")


def _of_trace_and_file(device: dict[str, Any], file: str | Path, *, on_gpu: bool) -> Ceilings:
    """Return the user's ceilings, then the tables', of the device that a trace names."""
    user = load_ceilings(file)
    tables = ceilings_for_gpu(device) if on_gpu else Ceilings({})
    doubts = list(user.warnings)
    theirs = user.device.get("name")
    same_kind = not on_gpu and user.device.get("kind", "cpu") == "cpu"  # a trace names no CPU
    if theirs and theirs != device.get("name") and not same_kind:
        name = device.get("name") or "another device"
        doubts.append(f"the ceilings of {file} are those of {theirs}, the trace is of {name}")
    return Ceilings(device, user.entries + tables.entries, user.clocks, tuple(doubts))


def _read_cache(described: dict[str, object], torch_version: str, notes: list[str]) -> Ceilings:
    try:
        return load_ceilings(cache_path(described, torch_version))
    except (FlopprofError, RuntimeError) as error:  # RuntimeError: the user has no home folder
        if not isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            notes.append(f"measured again: {error}")
        return Ceilings({})


def _write_cache(torch_version: str, ceilings: Ceilings, notes: list[str]) -> None:
    try:
        path = cache_path(ceilings.device, torch_version)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_ceilings(path, ceilings)
    except (OSError, FlopprofError, RuntimeError) as error:
        notes.append(f"the measured ceilings are not kept for the next run: {error}")
