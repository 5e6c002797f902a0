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
from flopprof.ceilings.datasheet import ceilings_for_gpu
from flopprof.devices import Device
from flopprof.errors import FlopprofError, UsageError

L3 = ("L3", "memory")


def find_ceilings(
    device: Device,
    *,
    user_file: str | Path | None = None,
    refresh: bool = False,
    dtypes: Iterable[str] | None = None,
    progress: Callable[[str], None] = lambda _stage: None,
) -> Ceilings:
    """Return what limits a device: the user's file, then measurements, datasheet, formula.

    Measurements are kept in the user's cache folder. A CPU is measured where they are missing, with
    torch's number of threads; a GPU only on `refresh`, since the tables know it.

    Args:
        device: What `find_device` returns.
        user_file: A ceilings file; its entries go before all others.
        refresh: Measure again.
        dtypes: What to measure besides the main memory; everything, caches too, unless given.
        progress: Called with the name of each measurement as it begins.

    Raises:
        UsageError: The user's file is not there.
        LoadError: The user's file is damaged.
    """
    import torch

    described = device.describe()
    on_cpu = described["kind"] == "cpu"
    user = Ceilings({}) if user_file is None else load_ceilings(user_file)
    notes = list(user.warnings)
    if user.device.get("name", described["name"]) != described["name"]:
        notes.append(f"{user_file} is of {user.device['name']}, and this is {described['name']}")
    threads = [place.get("threads") for place in (user.device, described)]
    if None not in threads and threads[0] != threads[1]:
        notes.append(
            f"{user_file} was measured with {threads[0]} threads, and here are {threads[1]}"
        )
    tables = Ceilings({}) if on_cpu else ceilings_for_gpu(described)
    kept = _read_cache(described, torch.__version__, notes)
    measured: list[Ceiling] = []
    if on_cpu or refresh:
        from flopprof.ceilings.measure import keys_to_measure, measure_ceilings

        have = user.resolved.keys() | (set() if refresh else kept.resolved.keys())
        missing = [key for key in keys_to_measure(described, dtypes) if key not in have]
        measured = measure_ceilings(device, missing, notes=notes, progress=progress)
    if any(entry.valid for entry in measured):
        new = tuple(entry for entry in measured if entry.valid)
        kept = Ceilings(described, tuple(Ceilings({}, new + kept.entries).resolved.values()))
        _write_cache(torch.__version__, kept, notes)
    busy = [f"{e.name} {e.unit.replace('tensor', 'matmul')}" for e in measured if not e.valid]
    notes += [f"measured on a busy machine: {name}" for name in busy]
    entries = [*kept.entries, *(e for e in measured if not e.valid), *tables.entries]
    levels = Ceilings({}, tuple(entries)).resolved
    if L3 in levels and MAIN in levels and levels[L3].per_s < 1.2 * levels[MAIN].per_s:
        entries.remove(levels[L3])  # no faster than the memory behind it: the arrays were not in it
    entries = [*user.entries, *by_precedence(entries)]
    notes += () if entries else tables.warnings
    return Ceilings(described, tuple(entries), {**tables.clocks, **user.clocks}, tuple(notes))


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
        given = load_ceilings(file)
        tables = ceilings_for_gpu(device) if on_gpu else Ceilings({})
        doubts = list(given.warnings)
        theirs = given.device.get("name")
        same_kind = not on_gpu and given.device.get("kind", "cpu") == "cpu"  # a trace names no CPU
        if theirs and theirs != device.get("name") and not same_kind:
            name = device.get("name") or "another device"
            doubts.append(f"the ceilings of {file} are those of {theirs}, the trace is of {name}")
        entries = given.entries + tables.entries
        return Ceilings(device, entries, given.clocks, tuple(doubts))
    if gpu is not None:
        found = ceilings_for_gpu({"name": gpu})
        if not found.entries:
            raise UsageError(
                f"no GPU of the table is called {gpu!r}, or several are",
                remedy="known are: " + found.warnings[0].partition("(known: ")[2].rstrip(")"),
            )
        return found
    if not on_gpu:
        return Ceilings({}, warnings=("no ceiling is known: give --ceilings FILE",))
    return ceilings_for_gpu(device)


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
