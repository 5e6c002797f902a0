"""Know or measure what a device can do at most."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from flopprof.ceilings.file import (
    MAIN,
    Ceiling,
    Ceilings,
    Key,
    by_precedence,
    cache_path,
    load_ceilings,
    save_ceilings,
)
from flopprof.ceilings.peaks import ceilings_for_gpu
from flopprof.devices import Device, find_device
from flopprof.errors import FlopprofError, UsageError

MEASURED_DTYPES = ("float32", "bfloat16", "float64", "float16", "int8")
L3: Key = ("L3", "memory")
Progress = Callable[[str], None]


def find_rooflines(device: Device | str, **options: Any) -> pd.DataFrame:
    """Return the table ROOFLINES of a device, and warn of what makes it doubtful.

    The options are those of `find_ceilings`.
    """
    return _warned(find_ceilings(device, **options))


def rooflines_for_gpu(properties: Mapping[str, Any]) -> pd.DataFrame:
    """Return the table ROOFLINES of a GPU from its properties in a trace, or from its name alone.

    Unknown GPUs have no rows, and a warning. Imports no torch.
    """
    return _warned(ceilings_for_gpu(properties))


def find_ceilings(
    device: Device | str,
    *,
    threads: int | None = None,
    user_file: str | Path | None = None,
    refresh: bool = False,
    dtypes: Iterable[str] | None = None,
    progress: Progress | None = None,
) -> Ceilings:
    """Return what limits a device: the user's file, then measurements, datasheet, formula.

    Measurements are kept in the user's cache folder. A CPU is measured where they are missing; a
    GPU only on `refresh`, since the tables know it.

    Args:
        device: A device or its name.
        threads: CPU threads to measure with; torch's own setting unless given.
        user_file: A ceilings file; its entries go before all others.
        refresh: Measure again.
        dtypes: What to measure besides the main memory; everything, caches too, unless given.
        progress: Called with the name of each measurement as it begins.

    Raises:
        UsageError: No such device or file.
        LoadError: The user's file is damaged.
    """
    import torch

    place = find_device(device) if isinstance(device, str) else device
    described = place.describe()
    on_cpu = described["kind"] == "cpu"
    if on_cpu:
        described["threads"] = threads or described["threads"]
    user = load_ceilings(user_file) if user_file is not None else Ceilings({})
    notes = list(user.warnings)
    if user.device.get("name", described["name"]) != described["name"]:
        notes.append(f"{user_file} is of {user.device['name']}, and this is {described['name']}")
    tables = Ceilings({}) if on_cpu else ceilings_for_gpu(described)
    path = cache_path(described, torch.__version__)
    cached = _read_cache(path, notes)
    measured: list[Ceiling] = []
    if on_cpu or refresh:
        from flopprof.ceilings.measure import measure_ceilings

        have = user.resolved.keys() | (set() if refresh else cached.resolved.keys())
        missing = [key for key in _wanted(dtypes, on_cpu=on_cpu) if key not in have]
        measured = measure_ceilings(
            place, described, missing, notes=notes, progress=progress or (lambda _stage: None)
        )
    kept = cached.resolved | {c.key: c for c in measured if c.valid}
    if L3 in kept and MAIN in kept and kept[L3].per_s < 1.2 * kept[MAIN].per_s:
        del kept[L3]  # no faster than the memory behind it: the arrays did not lie in it
    if any(c.valid for c in measured):
        _write_cache(path, Ceilings(described, tuple(kept.values())), notes)
    doubtful = [c for c in measured if not c.valid and c.key != L3]
    notes += [f"measured while the machine was busy: {c.name} {c.unit}" for c in doubtful]
    entries = (*user.entries, *by_precedence([*kept.values(), *doubtful, *tables.entries]))
    if not entries:
        notes += tables.warnings
    return Ceilings(described, entries, {**tables.clocks, **user.clocks}, tuple(notes))


def _wanted(dtypes: Iterable[str] | None, *, on_cpu: bool) -> list[Key]:
    names = MEASURED_DTYPES if dtypes is None else tuple(dict.fromkeys(dtypes))
    if dtypes is None and not on_cpu:
        names = (*names, "tfloat32")
    keys = [(name, unit) for name in names for unit in ("tensor", "vector")]
    return [MAIN, *keys, *([L3] if dtypes is None and on_cpu else [])]


def _read_cache(path: Path, notes: list[str]) -> Ceilings:
    if not path.exists():
        return Ceilings({})
    try:
        return load_ceilings(path)
    except FlopprofError as error:
        notes.append(f"measured again: {error}")
        return Ceilings({})


def _write_cache(path: Path, ceilings: Ceilings, notes: list[str]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_ceilings(path, ceilings)
    except (OSError, UsageError) as error:
        notes.append(f"the measured ceilings are not kept for the next run: {error}")


def _warned(ceilings: Ceilings) -> pd.DataFrame:
    for note in ceilings.warnings:
        warnings.warn(note, stacklevel=3)
    return ceilings.rooflines()
