"""Ceilings as values: their JSON file, their cache, and which one counts where several exist."""

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from flopprof.errors import LoadError, UsageError
from flopprof.files import cache_folder, write_atomically
from flopprof.tables import ROOFLINES

VERSION = 1
_GIVEN = "given without a source"  # of a user's own file
KINDS = ("user", "measured", "datasheet", "formula")
MAIN_MEMORY = ("HBM", "DRAM")
Key = tuple[str, str]
MAIN: Key = ("main", "memory")
# Parts of the file: the names there of a ceiling's name and rate, and what units it may have.
_PARTS = {"compute": ("dtype", "flops_per_s"), "memory": ("level", "bytes_per_s")}
_UNITS = {"compute": ("tensor", "vector"), "memory": ("memory",)}


@dataclass(frozen=True, slots=True)
class Ceiling:
    """One limit of a device: of compute (`dtype`, `unit`) or of a memory level.

    Attributes:
        name: The dtype, or the memory level: "bfloat16", "HBM".
        unit: "tensor" (matmul), "vector", or "memory".
        per_s: FLOP/s, dense; byte/s for a memory.
        kind: One of `KINDS`.
        source: Where the figure comes from.
        clock: The clock it belongs to; "" where unknown.
        valid: False for a measurement taken while the machine was busy.
        measurement: What was run and how it spread; empty unless measured.
        holds_bytes: Of a cache: what the threads together can keep in it; None for all else.
    """

    name: str
    unit: str
    per_s: float
    kind: str = "user"
    source: str = ""
    clock: str = ""
    valid: bool = True
    measurement: dict[str, Any] = field(default_factory=dict)
    holds_bytes: int | None = None

    @property
    def key(self) -> Key:
        """What it limits; the main memory is one level, whatever its name."""
        return MAIN if self.name in MAIN_MEMORY else (self.name, self.unit)


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What is known of one device's limits: the content of a ceilings file.

    Attributes:
        device: As `Device.describe()` or a trace tells it.
        entries: Limits; where two have one key, the first counts.
        clocks: Datasheet, maximum and sampled clocks, where known.
        warnings: What makes the figures doubtful, or why there are none.
        file: The file that it is the content of; "" where it is of none.
    """

    device: dict[str, Any]
    entries: tuple[Ceiling, ...] = ()
    clocks: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    file: str = field(default="", compare=False)

    @property
    def resolved(self) -> dict[Key, Ceiling]:
        """The ceiling that counts for each key."""
        counting: dict[Key, Ceiling] = {}
        for entry in self.entries:
            counting.setdefault(entry.key, entry)
        return counting

    @property
    def measured_at(self) -> str:
        """When the oldest measurement that counts was taken, in ISO format; "" without any."""
        times = [entry.measurement.get("time", "") for entry in self.resolved.values()]
        return min(filter(None, times), default="")

    def rooflines(self) -> pd.DataFrame:
        """Return the table ROOFLINES: each compute ceiling over each memory level."""
        resolved = self.resolved
        peaks = [entry for entry in resolved.values() if entry.unit != "memory"]
        memories = [entry for entry in resolved.values() if entry.unit == "memory"]
        if MAIN not in resolved:
            memories.append(Ceiling("DRAM", "memory", math.nan, source="unknown"))
        return ROOFLINES.from_rows(
            [_roofline(peak, memory) for memory in memories for peak in peaks]
        )

    def to_json(self) -> dict[str, Any]:
        """Return the file's content: all entries, those that do not count too."""
        parts: dict[str, list[dict[str, Any]]] = {part: [] for part in _PARTS}
        for entry in self.entries:
            part = "memory" if entry.unit == "memory" else "compute"
            name, rate = _PARTS[part]
            values = asdict(entry)
            if entry.holds_bytes is None:
                del values["holds_bytes"]
            parts[part].append({name: values.pop("name"), rate: values.pop("per_s"), **values})
        return {
            "version": VERSION,
            "device": self.device,
            "clocks": self.clocks,
            **parts,
            "valid": all(entry.valid for entry in self.resolved.values()),
            "warnings": list(self.warnings),
        }


def _roofline(peak: Ceiling, memory: Ceiling) -> dict[str, Any]:
    """Return a row of ROOFLINES: a compute ceiling over a memory level."""
    holds_bytes = memory.holds_bytes
    return asdict(peak) | {  # its unit, kind and clock
        "dtype": peak.name,
        "memory_level": memory.name,
        "peak_flops_per_s": peak.per_s,
        "peak_bytes_per_s": memory.per_s,
        "ridge_flops_per_byte": peak.per_s / memory.per_s,
        "holds_bytes": math.nan if holds_bytes is None else float(holds_bytes),
        "valid": peak.valid and memory.valid,
        "source": f"{peak.source or _GIVEN}; {memory.name}: {memory.source or _GIVEN}",
    }


def by_precedence(entries: Iterable[Ceiling]) -> tuple[Ceiling, ...]:
    """Return the entries sorted: user, valid measurement, datasheet, formula, doubtful ones."""
    return tuple(sorted(entries, key=lambda entry: (not entry.valid, KINDS.index(entry.kind))))


def save_ceilings(path: str | Path, ceilings: Ceilings) -> None:
    """Write the ceilings to `path`, whole or not at all.

    Raises:
        UsageError: It cannot be written.
    """
    write_atomically(Path(path), json.dumps(ceilings.to_json(), indent=1) + "\n")


def load_ceilings(path: str | Path) -> Ceilings:
    """Return the ceilings saved at `path`; an entry that does not name its kind is the user's.

    Raises:
        UsageError: There is no such file.
        LoadError: It is no ceilings file, or is damaged.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if content["version"] != VERSION:
            raise ValueError(f"its version is {content['version']!r}, not {VERSION}")
        return Ceilings(
            dict(content.get("device", {})),
            tuple(_entry(part, values) for part in _PARTS for values in content.get(part, [])),
            dict(content.get("clocks", {})),
            tuple(map(str, content.get("warnings", []))),
            file=str(path),
        )
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}", remedy="flopprof ceilings -o ceilings.json"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        fault = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise LoadError(
            f"{path} is not a ceilings file: {fault}",
            remedy="write one to start from: flopprof ceilings -o ceilings.json",
        ) from error


def _entry(part: str, values: dict[str, Any]) -> Ceiling:
    name, rate = _PARTS[part]
    optional = {key: values[key] for key in ("kind", "source", "clock", "valid") if key in values}
    unit = values.get("unit", part)
    measurement = dict(values.get("measurement", {}))
    per_s: Any = values[rate]
    if not isinstance(per_s, int | float) or not 0 < per_s < math.inf:
        raise ValueError(f"{rate} of {values[name]!r} is {per_s!r}, not a positive number")
    holds_bytes = values.get("holds_bytes")
    if holds_bytes is not None and not (isinstance(holds_bytes, int) and holds_bytes > 0):
        raise ValueError(f"holds_bytes of {values[name]!r} is {holds_bytes!r}, not a whole number")
    entry = Ceiling(
        str(values[name]),
        unit,
        float(per_s),
        **optional,
        measurement=measurement,
        holds_bytes=holds_bytes,
    )
    if entry.kind not in KINDS or unit not in _UNITS[part]:
        raise ValueError(f"{entry.name!r} has the kind {entry.kind!r} and the unit {unit!r}")
    return entry


def cache_path(device: dict[str, Any], torch_version: str) -> Path:
    """Return where measurements of this device, as it describes itself, and torch are kept."""
    facts = json.dumps([device, torch_version], sort_keys=True).encode()
    return cache_folder() / f"ceilings-{hashlib.sha256(facts).hexdigest()[:12]}.json"
