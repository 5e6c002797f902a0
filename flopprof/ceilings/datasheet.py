"""Ceilings of a GPU from tables: its datasheet, else FLOPs per clock and SM of its architecture.

Never those of another GPU: a name that fits but with other SMs or another bus is another device.
"""

import csv
import difflib
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flopprof.ceilings.ceiling import Ceiling, Ceilings, Key

Row = dict[str, str]

_ALIASES = {"numSms": "sm_count", "totalGlobalMem": "memory_bytes"}  # as in a trace's properties
_MEMORY_TOLERANCE = 0.06  # of the board's memory: drivers and ECC keep some of it
_BUS_TOLERANCE = 0.05  # HBM parts print 6016 or 6144 bits for one board; a cut bus loses an eighth
_ARCH = "arch_key"  # column of flops_per_clk.csv; all others are numbers
HBM_BITS = 2048  # wider than any GDDR bus


def ceilings_for_gpu(properties: Mapping[str, Any]) -> Ceilings:
    """Return the ceilings of a GPU as a trace's deviceProperties or `describe()` tell it.

    A `name` alone may also be a row's name, or a part of only one ("MI300X"). With no row and no
    formula there are no entries, and a warning. Imports no torch.
    """
    facts = {_ALIASES.get(key, key): value for key, value in properties.items()}
    if "computeMajor" in facts:
        facts["capability"] = f"{facts['computeMajor']}.{facts.get('computeMinor', 0)}"
    row = _find(facts)
    if row and _is_whole(row, facts):
        return _of_datasheet(row, facts)
    entries = _compute_by_formula(row, facts)
    bits = facts.get("bus_bits")
    if entries and bits and facts.get("memory_clock_mhz"):
        # Two transfers per cycle of the clock that the driver reports, for HBM and GDDR alike.
        per_s = 2e6 * facts["memory_clock_mhz"] * bits / 8
        entries.append(_memory(bits, per_s, "formula", "memory clock × bus width"))
    return Ceilings(facts, tuple(entries), warnings=() if entries else (_unknown(facts),))


def _of_datasheet(row: Row, facts: dict[str, Any]) -> Ceilings:
    """Return the ceilings of a board that is whole."""
    source = row["source"]
    clock = _clock(row)
    bytes_per_s = float(row["mem_bw_gbs"]) * 1e9
    entries = _compute(_peaks(row), "datasheet", source, clock)
    entries.append(_memory(int(row["bus_bits"]), bytes_per_s, "datasheet", source))
    return Ceilings(facts, tuple(entries), {"datasheet": clock})


def _compute_by_formula(row: Row | None, facts: dict[str, Any]) -> list[Ceiling]:
    """Return the compute ceilings of what is no whole board of the table, by its SMs."""
    sms = facts.get("sm_count")
    if not sms:
        return []
    if row and re.search(" MIG |MI300", facts["name"]):
        # A partition of a board runs at the board's clock: its share of FLOPs is that of the SMs.
        rates = {column: sms / int(row["sm_count"]) * rate for column, rate in _peaks(row).items()}
        source = f"{sms} of the {row['sm_count']} SMs of {row['name']}"
        return _compute(rates, "formula", source, _clock(row))
    clock_mhz = facts.get("clock_mhz")
    if not clock_mhz:
        return []
    arch, per_clk = _architecture(facts)
    rates = {column: n * sms * clock_mhz * 1e6 for column, n in per_clk.items()}
    # The reported clock may exceed the datasheet's boost.
    source = f"FLOPs per clock of {arch} × SMs × reported clock: an upper bound"
    return _compute(rates, "formula", source, f"{clock_mhz:.0f} MHz, reported")


def peak_rows() -> tuple[Row, ...]:
    """Return the datasheet table's rows."""
    return _read("peaks.csv")


def flops_per_clk() -> dict[str, dict[str, float]]:
    """Return FLOPs per clock and SM: architecture → column → number."""
    architectures = {}
    for row in _read("flops_per_clk.csv"):
        numbers = {column: float(text) for column, text in row.items() if text and column != _ARCH}
        architectures[row[_ARCH]] = numbers
    return architectures


@functools.cache
def _read(name: str) -> tuple[Row, ...]:
    with Path(__file__).with_name(name).open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))


def board_names() -> list[str]:
    """Return the names of all boards of the table, in its order."""
    return [row["name"] for row in peak_rows()]


def boards_called(name: str) -> list[str]:
    """Return the names of the boards that a name, as a person types it, may mean."""
    return [row["name"] for row in _fitting({"name": name})]


def _find(facts: dict[str, Any]) -> Row | None:
    rows = _fitting(facts)
    if len(rows) > 1:  # boards of one name: the SMs and the bus tell
        rows = [row for row in rows if _is_whole(row, facts)]
    return rows[0] if len(rows) == 1 else None


def _alike(facts: dict[str, Any]) -> list[Row]:
    """Return the boards that have as many SMs and as much memory as a device without a name."""
    sms = facts.get("sm_count")
    memory_bytes = facts.get("memory_bytes")
    if not sms or not memory_bytes:
        return []
    rows = []
    for row in peak_rows():
        if row["memory_gib"] and sms == int(row["sm_count"]):
            ratio = memory_bytes / 2**30 / float(row["memory_gib"])
            if abs(ratio - 1) <= _MEMORY_TOLERANCE:
                rows.append(row)
    return rows


def _fitting(facts: dict[str, Any]) -> list[Row]:
    """Return the rows of the boards that the name may mean."""
    name = str(facts.get("name", "")).strip()
    whole = re.sub(r" MIG .*", "", name)  # a slice keeps its board's name
    rows = [row for row in peak_rows() if re.search(row["torch_name_regex"], whole)]
    if not rows and name and not facts.get("sm_count"):  # typed by a person
        rows = [row for row in peak_rows() if name.lower() in row["name"].lower()]
        rows = [row for row in rows if name.lower() == row["name"].lower()] or rows
    return rows


def _is_whole(row: Row, facts: dict[str, Any]) -> bool:
    """Return whether a device is the board itself: no part of it, and none with another bus."""
    sms = facts.get("sm_count")
    bits = facts.get("bus_bits")
    same_bus = not bits or abs(bits / float(row["bus_bits"]) - 1) < _BUS_TOLERANCE
    is_typed = sms is None and "capability" not in facts  # by a person: the name alone
    return (is_typed or sms == int(row["sm_count"])) and same_bus


def _peaks(row: Row) -> dict[str, float]:
    """Return FLOP/s by column."""
    peaks = {}
    for name, tflops in row.items():
        if name.startswith("peak_") and tflops:
            column = name.removeprefix("peak_").removesuffix("_tflops")
            peaks[column] = float(tflops) * 1e12
    return peaks


def _clock(row: Row) -> str:
    clock = f"boost {row['boost_mhz']} MHz"
    if row["tensor_boost_mhz"] != row["boost_mhz"]:
        clock += f", tensor {row['tensor_boost_mhz']} MHz"
    return clock


def _architecture(facts: dict[str, Any]) -> tuple[str, dict[str, float]]:
    arch = str(facts.get("arch") or facts.get("capability", ""))
    if arch not in flops_per_clk():  # consumer boards of one architecture have half the matmul rate
        arch += "geforce" if "GeForce" in str(facts.get("name", "")) else "pro"
    return arch, flops_per_clk().get(arch, {})


def _compute(rates: dict[str, float], kind: str, source: str, clock: str) -> list[Ceiling]:
    ceilings: dict[Key, Ceiling] = {}
    for row in _read("peak_columns.csv"):
        if rate := rates.get(row["column"]):
            ceiling = Ceiling(row["dtype"], row["unit"], rate, kind, source, clock)
            ceilings.setdefault(ceiling.key, ceiling)
    return list(ceilings.values())


def _memory(bits: int, per_s: float, kind: str, source: str) -> Ceiling:
    return Ceiling("HBM" if bits >= HBM_BITS else "DRAM", "memory", per_s, kind, source)


def _unknown(facts: dict[str, Any]) -> str:
    sms = f" with {facts['sm_count']} SMs" if facts.get("sm_count") else ""
    several = _fitting(facts)
    if len(several) > 1:
        names = ", ".join(row["name"] for row in several)
        return f"{facts['name']!r} may be any of {names}: give --gpu NAME or --ceilings FILE"
    if alike := _alike(facts):
        names = " or ".join(row["name"] for row in alike)
        return (
            f"no ceiling is known for the GPU {facts.get('name', '')!r}{sms} and "
            f"{facts['memory_bytes'] / 1e9:.0f} GB; {names} has as many and as much: if it is "
            f"one, give --gpu '{alike[0]['name']}'"
        )
    name = str(facts.get("name", ""))
    near = _nearest(name)
    names = f" (nearest by name: {', '.join(near)})" if near else ""
    return (
        f"no ceiling is known for the GPU {name!r}{sms}: give --gpu NAME{names} or --ceilings FILE"
    )


def _nearest(name: str) -> list[str]:
    """Return the few boards whose names are most like this one."""
    by_lower_case = {board.lower(): board for board in board_names()}
    near = difflib.get_close_matches(name.lower(), by_lower_case, n=3, cutoff=0.5)
    return [by_lower_case[board] for board in near]
