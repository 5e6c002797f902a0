"""Ceilings as values: their JSON file, their cache, and which one counts where several exist."""

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from flopprof.errors import LoadError, UsageError
from flopprof.tables import ROOFLINES

VERSION = 1
KINDS = ("user", "measured", "datasheet", "formula")
MAIN_MEMORY = ("HBM", "DRAM")
Key = tuple[str, str]
MAIN: Key = ("main", "memory")


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
    """

    name: str
    unit: str
    per_s: float
    kind: str
    source: str
    clock: str = ""
    valid: bool = True
    measurement: dict[str, Any] = field(default_factory=dict)

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
    """

    device: dict[str, Any]
    entries: tuple[Ceiling, ...] = ()
    clocks: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def resolved(self) -> dict[Key, Ceiling]:
        """The ceiling that counts for each key."""
        found: dict[Key, Ceiling] = {}
        for entry in self.entries:
            found.setdefault(entry.key, entry)
        return found

    @property
    def measured_at(self) -> str:
        """When the oldest measurement that counts was taken, in ISO format; "" without any."""
        times = [entry.measurement.get("time", "") for entry in self.resolved.values()]
        return min(filter(None, times), default="")

    def rooflines(self) -> pd.DataFrame:
        """Return the table ROOFLINES: each compute ceiling over each memory level."""
        found = self.resolved.values()
        memories = [entry for entry in found if entry.unit == "memory"]
        if MAIN not in self.resolved:
            memories.append(Ceiling("DRAM", "memory", math.nan, "", ""))
        return ROOFLINES.from_rows(
            [
                {
                    "dtype": peak.name,
                    "unit": peak.unit,
                    "memory_level": memory.name,
                    "peak_flops_per_s": peak.per_s,
                    "peak_bytes_per_s": memory.per_s,
                    "ridge_flops_per_byte": peak.per_s / memory.per_s,
                    "kind": peak.kind,
                    "clock": peak.clock,
                    "valid": peak.valid and memory.valid,
                    "source": f"{peak.source}; {memory.name}: {memory.source or 'unknown'}",
                }
                for memory in memories
                for peak in found
                if peak.unit != "memory"
            ]
        )

    def to_json(self) -> dict[str, Any]:
        """Return the file's content: all entries, those that do not count too."""
        parts: dict[str, list[dict[str, Any]]] = {"compute": [], "memory": []}
        for entry in self.entries:
            values = asdict(entry)
            name, unit, per_s = values.pop("name"), values.pop("unit"), values.pop("per_s")
            if unit == "memory":
                parts["memory"].append({"level": name, "bytes_per_s": per_s, **values})
            else:
                parts["compute"].append(
                    {"dtype": name, "unit": unit, "flops_per_s": per_s} | values
                )
        return {
            "version": VERSION,
            "device": self.device,
            "clocks": self.clocks,
            **parts,
            "valid": all(entry.valid for entry in self.resolved.values()),
            "warnings": list(self.warnings),
        }


def by_precedence(entries: Iterable[Ceiling]) -> tuple[Ceiling, ...]:
    """Return the entries sorted: user, valid measurement, datasheet, formula, doubtful ones."""
    return tuple(sorted(entries, key=lambda e: (not e.valid, KINDS.index(e.kind))))


def save_ceilings(path: str | Path, ceilings: Ceilings) -> None:
    """Write the ceilings to `path`, whole or not at all.

    Raises:
        UsageError: It cannot be written.
    """
    path = Path(path)
    text = json.dumps(ceilings.to_json(), indent=1, allow_nan=False) + "\n"
    try:
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, prefix=f".{path.name}.", encoding="utf-8", delete=False
        ) as file:
            file.write(text)
        Path(file.name).replace(path)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written: {error.strerror}", remedy="name another file with -o"
        ) from error


def load_ceilings(path: str | Path) -> Ceilings:
    """Return the ceilings saved at `path`; an entry that does not name its kind is the user's.

    Raises:
        UsageError: There is no such file.
        LoadError: It is no ceilings file, or is damaged.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if content["version"] != VERSION:
            raise ValueError(
                f"its version is {content['version']!r}, this flopprof reads {VERSION}"
            )
        entries = [_entry(e, "dtype", e["unit"], "flops_per_s") for e in content.get("compute", [])]
        entries += [_entry(e, "level", "memory", "bytes_per_s") for e in content.get("memory", [])]
        device, clocks = dict(content.get("device", {})), dict(content.get("clocks", {}))
        return Ceilings(
            device, tuple(entries), clocks, tuple(map(str, content.get("warnings", [])))
        )
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}", remedy="flopprof ceilings -o ceilings.json"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise LoadError(
            f"{path} is not a ceilings file: {what}",
            remedy="write one to start from: flopprof ceilings -o ceilings.json",
        ) from error


def _entry(values: dict[str, Any], name: str, unit: str, rate: str) -> Ceiling:
    per_s, kind = values[rate], values.get("kind", "user")
    if not isinstance(per_s, int | float) or not 0 < per_s < math.inf:
        raise ValueError(f"{rate} of {values[name]!r} is {per_s!r}, not a positive number")
    if kind not in KINDS or unit not in ("tensor", "vector", "memory"):
        raise ValueError(f"{values[name]!r} has the kind {kind!r} and the unit {unit!r}")
    return Ceiling(
        str(values[name]),
        unit,
        float(per_s),
        kind,
        str(values.get("source", "")),
        str(values.get("clock", "")),
        bool(values.get("valid", True)),
        dict(values.get("measurement") or {}),
    )


def cache_path(device: dict[str, Any], torch_version: str) -> Path:
    """Return where measurements of this device, thread count and torch version are kept."""
    parts = [
        device.get(k) for k in ("name", "kind", "cores", "threads", "sm_count", "memory_bytes")
    ]
    digest = hashlib.sha256(json.dumps([*parts, torch_version]).encode()).hexdigest()[:12]
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "flopprof" / f"ceilings-{digest}.json"
