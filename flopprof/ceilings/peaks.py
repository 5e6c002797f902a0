"""Ceilings of a GPU from tables: its datasheet, else FLOPs per clock and SM of its architecture.

Never those of another GPU: a name that fits but with other SMs or another bus is another device.
"""

import csv
import functools
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

from flopprof.ceilings.file import Ceiling, Ceilings

Row = dict[str, str]

_FP8 = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
_COLUMNS: dict[str, tuple[str, tuple[str, ...]]] = {  # column → unit, dtypes
    "fp64": ("vector", ("float64",)),
    # Elementwise ops on 16-bit types compute in float32, so that rate is theirs too.
    "fp32": ("vector", ("float32", "float16", "bfloat16")),
    "fp64_tc": ("tensor", ("float64",)),
    "fp32_mat": ("tensor", ("float32",)),
    "tf32": ("tensor", ("tfloat32",)),
    "fp16": ("tensor", ("float16",)),
    "bf16": ("tensor", ("bfloat16",)),
    "fp8": ("tensor", _FP8),
    "int8": ("tensor", ("int8",)),
}
_ALIASES = {"numSms": "sm_count", "totalGlobalMem": "memory_bytes"}  # as in a trace's properties
_BUS_TOLERANCE = 0.05  # HBM parts print 6016 or 6144 bits for one board; a cut bus loses an eighth
HBM_BITS = 2048  # wider than any GDDR bus


def ceilings_for_gpu(properties: Mapping[str, Any]) -> Ceilings:
    """Return the ceilings of a GPU as a trace's deviceProperties or `describe()` tell it.

    A `name` alone may also be a row's name, or a part of only one ("MI300X"). With no row and no
    formula there are no entries, and a warning.
    """
    facts = {**properties, **{new: properties[k] for k, new in _ALIASES.items() if k in properties}}
    if "computeMajor" in facts:
        facts["capability"] = f"{facts['computeMajor']}.{facts.get('computeMinor', 0)}"
    row = _find(facts)
    if row and _is_whole(row, facts):
        clocks = {"datasheet": _clock(row)}
        return Ceilings(facts, tuple(_datasheet(row)), clocks)
    entries: list[Ceiling] = []
    doubts = []
    if row and _is_slice(facts):
        share = float(facts["sm_count"]) / float(row["sm_count"])
        source = f"{facts['sm_count']} of the {row['sm_count']} SMs of {row['name']}"
        rates = {column: rate * share for column, rate in _peaks(row).items()}
        entries += _compute(rates, "formula", source, _clock(row))
    elif facts.get("clock_mhz") and facts.get("sm_count"):
        rates, source = _by_clock(facts)
        entries += _compute(rates, "formula", source, f"{facts['clock_mhz']:.0f} MHz, reported")
    if facts.get("memory_clock_mhz") and facts.get("bus_bits") and entries:
        # Two transfers per cycle of the clock that the driver reports, for HBM and GDDR alike.
        bytes_per_s = 2e6 * facts["memory_clock_mhz"] * facts["bus_bits"] / 8
        level = "HBM" if facts["bus_bits"] >= HBM_BITS else "DRAM"
        entries.append(Ceiling(level, "memory", bytes_per_s, "formula", "memory clock × bus width"))
    if not entries:
        doubts.append(_unknown(facts))
    return Ceilings(facts, tuple(entries), {}, tuple(doubts))


@functools.cache
def peak_rows() -> tuple[Row, ...]:
    """Return the datasheet table's rows."""
    return _read("peaks.csv")


@functools.cache
def flops_per_clk() -> dict[str, dict[str, float]]:
    """Return FLOPs per clock and SM: architecture → column → number."""
    return {
        row["arch_key"]: {k: float(v) for k, v in row.items() if v and k != "arch_key"}
        for row in _read("flops_per_clk.csv")
    }


def _read(name: str) -> tuple[Row, ...]:
    text = resources.files("flopprof.ceilings").joinpath(name).read_text(encoding="utf-8")
    return tuple(csv.DictReader(text.splitlines()))


def _find(facts: dict[str, Any]) -> Row | None:
    name = str(facts.get("name", "")).strip()
    whole = re.sub(r" MIG .*", "", name)  # a slice keeps its board's name
    rows = [row for row in peak_rows() if re.search(row["torch_name_regex"], whole)]
    if not rows and name and not facts.get("sm_count"):  # typed by a person
        rows = [row for row in peak_rows() if name.lower() == row["name"].lower()]
        rows = rows or [row for row in peak_rows() if name.lower() in row["name"].lower()]
    return rows[0] if len(rows) == 1 else None


def _is_whole(row: Row, facts: dict[str, Any]) -> bool:
    sms, bits = facts.get("sm_count"), facts.get("bus_bits")
    same_bus = not bits or abs(bits / float(row["bus_bits"]) - 1) < _BUS_TOLERANCE
    typed = sms is None and "capability" not in facts
    return (typed or sms == int(row["sm_count"])) and same_bus


def _is_slice(facts: dict[str, Any]) -> bool:
    """A partition of a board runs at the board's clock: its share of FLOPs is that of the SMs."""
    name = str(facts.get("name", ""))
    return bool(facts.get("sm_count")) and (" MIG " in name or "MI300" in name)


def _peaks(row: Row) -> dict[str, float]:
    found = {column: row[f"peak_{column}_tflops"] for column in _COLUMNS}
    return {column: float(value) * 1e12 for column, value in found.items() if value}


def _clock(row: Row) -> str:
    vector, tensor = row["boost_mhz"], row["tensor_boost_mhz"]
    return f"boost {vector} MHz" + (f", tensor {tensor} MHz" if tensor != vector else "")


def _datasheet(row: Row) -> list[Ceiling]:
    level = "HBM" if int(row["bus_bits"]) >= HBM_BITS else "DRAM"
    memory = Ceiling(level, "memory", float(row["mem_bw_gbs"]) * 1e9, "datasheet", row["source"])
    return [*_compute(_peaks(row), "datasheet", row["source"], _clock(row)), memory]


def _by_clock(facts: dict[str, Any]) -> tuple[dict[str, float], str]:
    """FLOPs per clock and SM × SMs × the reported clock, which may exceed the datasheet's boost."""
    arch = str(facts.get("arch") or facts.get("capability", ""))
    table = flops_per_clk()
    if arch not in table:  # consumer boards of one architecture have half the matmul rate
        arch += "geforce" if "GeForce" in str(facts.get("name", "")) else "pro"
    cycles_per_s = facts["sm_count"] * facts["clock_mhz"] * 1e6
    rates = {column: per_clk * cycles_per_s for column, per_clk in table.get(arch, {}).items()}
    return rates, f"FLOPs per clock of {arch} × SMs × reported clock: an upper bound"


def _compute(rates: dict[str, float], kind: str, source: str, clock: str) -> list[Ceiling]:
    found = {
        (dtype, unit): Ceiling(dtype, unit, rates[column], kind, source, clock)
        for column, (unit, names) in _COLUMNS.items()
        if column in rates
        for dtype in names
    }
    for dtype in ("float32", "float64"):  # without a matrix unit for it, products run as vectors
        vector = found.get((dtype, "vector"))
        if vector is not None and (dtype, "tensor") not in found:
            found[dtype, "tensor"] = Ceiling(dtype, "tensor", vector.per_s, kind, source, clock)
    return list(found.values())


def _unknown(facts: dict[str, Any]) -> str:
    sms = f" with {facts['sm_count']} SMs" if facts.get("sm_count") else ""
    return (
        f"no ceiling is known for the GPU {facts.get('name', '')!r}{sms}: give --gpu NAME or "
        f"--ceilings FILE (known: {', '.join(row['name'] for row in peak_rows())})"
    )
