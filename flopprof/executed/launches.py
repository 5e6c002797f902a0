"""Launches as a profiler's file tells them: names, sizes and readings, before any rule."""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from flopprof.errors import LoadError
from flopprof.executed.numbers import Reading, reading, refuse_decimal_comma, strict_number
from flopprof.executed.sheets import Sheet, plain_name
from flopprof.units import safe_text

NVIDIA = "ncu"
AMD = "rocprof"

_RANGE = re.compile(r"flopprof#(\d+)#([^:\"]*)")
_SIZE = re.compile(r"\(?\s*(\d+)\s*[,x]\s*(\d+)\s*[,x]\s*(\d+)\s*\)?")
_CHANNEL = re.compile(r"(.+)\[\d+\]")
_REPEATED = re.compile(r"(.+)_\d+")
_SUFFIX = re.compile(r"\s*(\[clone .*\]|\(\.kd\)|\.kd)\s*$")
# Human labels that the "details" page prints in the place of metrics' names.
_LABELS = {"Duration": "gpu__time_duration.sum"}
# Metrics of texts and lists, in which a comma separates.
_TEXTS = ("launch__", "device__", "sass__", "smsp__pcsamp", "profiler__", "numa__", "nvlink__")


@dataclass
class Launch:
    """One launch of a kernel, or a range of them, as the file has it.

    Attributes:
        tool: `NVIDIA` or `AMD`.
        key: What numbers it in its file: process and number.
        kernel: Its name as the file has it.
        grid, block: Blocks and threads by axis, "64x1x1"; AMD: threads in all; "" where untold.
        stream: The stream, or the queue; -1 where untold.
        device_index: The device; -1 where untold.
        arch: "sm_90", "gfx90a"; "" where untold.
        op_id: Number of the innermost range that flopprof pushed around it; -1 for none.
        op: The op that this range names.
        readings: Metric → what was read.
        failed: What the profiler said of its failing; "" where it did not.
    """

    tool: str
    key: tuple[str, int]
    kernel: str
    grid: str = ""
    block: str = ""
    stream: int = -1
    device_index: int = -1
    arch: str = ""
    op_id: int = -1
    op: str = ""
    readings: dict[str, Reading] = field(default_factory=dict)
    failed: str = ""

    def add(self, metric: str, value: Reading) -> None:
        """Keep a reading; of several for one metric, the first that is a number."""
        before = self.readings.get(metric)
        if before is None or math.isnan(before.value):
            self.readings[metric] = value

    def value(self, metric: str) -> float:
        """Return a metric's value in its base unit; NaN where the file has none."""
        reading = self.readings.get(metric)
        return math.nan if reading is None else reading.value


def launches_of(sheet: Sheet, path: Path) -> list[Launch]:
    """Return the launches of a table, in the order in which they were launched.

    Raises:
        LoadError: A number has a decimal comma, or a text where only a number can stand.
    """
    try:
        launches = list(_READERS[sheet.kind](sheet))
    except LoadError as error:
        raise LoadError(f"{safe_text(path)}: {error.problem}", remedy=error.remedy) from error
    for launch in launches:
        if sheet.errors and all(math.isnan(r.value) for r in launch.readings.values()):
            launch.failed = sheet.errors[0]
    return sorted(launches, key=lambda launch: launch.key)


def bare_kernel(name: str) -> str:
    """Return a kernel's name without what tools add or cut: `void`, arguments, suffixes."""
    name = _SUFFIX.sub("", _SUFFIX.sub("", name.strip())).removeprefix("void ").strip()
    name = name.removeprefix("unnamed>::").replace("(anonymous namespace)::", "")
    name = name.replace("<unnamed>::", "")
    bare = ""
    depth = 0
    for letter in name:
        if letter in "<(":
            depth += 1
        elif letter in ">)":
            depth = max(depth - 1, 0)
        elif not depth:
            bare += letter
    return bare.strip().rpartition("::")[2].rpartition(" ")[2]


def _columns(sheet: Sheet) -> dict[str, int]:
    places: dict[str, int] = {}
    for at, name in enumerate(sheet.header):
        places.setdefault(plain_name(name), at)
    return places


@dataclass(frozen=True, slots=True)
class _Row:
    """A row's cells by name of column."""

    cells: list[str]
    places: dict[str, int]

    def text(self, *names: str) -> str:
        """Return the first of these columns that the table has; "" without any."""
        for name in names:
            if name in self.places:
                return self.cells[self.places[name]].strip()
        return ""

    @property
    def number_of_launch(self) -> int:
        """What Nsight Compute numbers the launch by, which may have separators of thousands."""
        return int(self.text("id").replace(",", ""))

    def integer(self, *names: str) -> int:
        """Return the last number in a cell, "Agent 1" or "1"; -1 without any."""
        digits = re.findall(r"\d+", self.text(*names))
        return int(digits[-1]) if digits else -1


def _ncu_launch(row: _Row, ranges: list[int]) -> Launch:
    """Return the launch that a row of Nsight Compute is of, without readings."""
    op_id = -1
    op = ""
    for at in ranges:
        for number, name in _RANGE.findall(row.cells[at]):  # the last is the innermost
            op_id = int(number)
            op = name
    capability = re.fullmatch(r"(\d+)\.(\d+)", row.text("cc"))
    return Launch(
        NVIDIA,
        (row.text("processid"), row.number_of_launch),
        row.text("kernelname"),
        grid=_size(row.text("gridsize")),
        block=_size(row.text("blocksize")),
        stream=row.integer("stream"),
        device_index=row.integer("device"),
        arch=f"sm_{capability.group(1)}{capability.group(2)}" if capability else "",
        op_id=op_id,
        op=op,
    )


def _size(text: str) -> str:
    """Return "(64, 1, 1)" as "64x1x1"; "" for what is no size, or that of a failed launch."""
    match = _SIZE.fullmatch(text.strip())
    sizes = match.groups() if match else ()
    return "x".join(sizes) if any(size != "0" for size in sizes) else ""


def _range_columns(sheet: Sheet) -> list[int]:
    """Return the columns of NVTX ranges; push/pop ranges are innermost, so they come last."""
    places = [at for at, name in enumerate(sheet.header) if "_Range:" in name]
    return sorted(places, key=lambda at: "Push/Pop" in sheet.header[at])


def _check(metric: str, cell: str, unit_text: str) -> None:
    """Refuse a decimal comma in what is a number: metrics have "__", or a unit."""
    is_number = "__" in metric and not metric.startswith(_TEXTS)
    if is_number or unit_text.strip():
        refuse_decimal_comma(cell)


def _ncu_long(sheet: Sheet) -> Iterator[Launch]:
    places = _columns(sheet)
    ranges = _range_columns(sheet)
    launches: dict[tuple[str, int], Launch] = {}
    for _, cells in sheet.rows:
        row = _Row(cells, places)
        key = (row.text("processid"), row.number_of_launch)
        launch = launches.setdefault(key, _ncu_launch(row, ranges))
        metric = row.text("metricname")
        metric = _LABELS.get(metric, metric)
        cell = row.text("metricvalue")
        unit_text = row.text("metricunit")
        if metric:
            _check(metric, cell, unit_text)
            launch.add(metric, reading(cell, unit_text))
    yield from launches.values()


def _ncu_wide(sheet: Sheet) -> Iterator[Launch]:
    places = _columns(sheet)
    ranges = _range_columns(sheet)
    rows = [cells for _, cells in sheet.rows]
    units = [""] * len(sheet.header)
    if rows and not rows[0][places["id"]].strip():
        units = rows.pop(0)
    metrics = [(at, name) for at, name in enumerate(sheet.header) if "__" in name]
    for cells in rows:
        launch = _ncu_launch(_Row(cells, places), ranges)
        for at, name in metrics:
            _check(name, cells[at], units[at])
            launch.add(name, reading(cells[at], units[at]))
        yield launch


def _amd_launch(row: _Row, number_of: str) -> Launch:
    """Return the launch that a row of AMD's profilers is of, with its times, without counters."""
    launch = Launch(
        AMD,
        (row.text("processid", "pid"), row.integer(number_of)),
        row.text("kernelname"),
        grid=row.text("gridsize", "grd"),
        block=row.text("workgroupsize", "wgr"),
        stream=row.integer("queueid", "queue-id", "queue"),
        device_index=row.integer("gpuid", "gpu-id", "agentid"),
        arch=row.text("gpuarch", "arch"),
    )
    launch.add("duration_s", Reading(_duration_s(row), "s"))
    return launch


def _duration_s(row: _Row) -> float:
    """Return the time between two stamps in nanoseconds.

    Spreadsheets cut stamps to a few digits, so that nothing is between them: then it is not known.
    """
    start = row.text("starttimestamp", "beginns", "startns")
    end = row.text("endtimestamp", "endns")
    if start.isdecimal() and end.isdecimal():
        length_ns = float(int(end) - int(start))
    else:
        length_ns = strict_number(end) - strict_number(start)
    return length_ns / 1e9 if length_ns > 0 else math.nan


def _rocprofv3_long(sheet: Sheet) -> Iterator[Launch]:
    places = _columns(sheet)
    launches: dict[tuple[str, int], Launch] = {}
    for _, cells in sheet.rows:
        row = _Row(cells, places)
        launch = _amd_launch(row, "dispatchid")
        launch = launches.setdefault(launch.key, launch)
        value = strict_number(row.text("countervalue"))
        launch.add(row.text("countername"), Reading(value))
    yield from launches.values()


def _rocprof_wide(sheet: Sheet) -> Iterator[Launch]:
    yield from _amd_wide(sheet, "dispatchid")


def _rocprof_v1(sheet: Sheet) -> Iterator[Launch]:
    yield from _amd_wide(sheet, "index")


def _amd_wide(sheet: Sheet, number_of: str) -> Iterator[Launch]:
    places = _columns(sheet)
    for _, cells in sheet.rows:
        launch = _amd_launch(_Row(cells, places), number_of)
        for name, value in _amd_counters(sheet.header, cells):
            launch.add(name, Reading(value))
        yield launch


def _amd_counters(header: list[str], cells: list[str]) -> Iterable[tuple[str, float]]:
    """Yield counters: as they stand, those of all channels added up, those of a later pass."""
    sums: dict[str, float] = {}
    for name, cell in zip(header, cells, strict=True):
        if not re.fullmatch(r"[A-Z][A-Z0-9]*_\w+(\[\d+\])?|FetchSize|WriteSize", name):
            continue
        value = strict_number(cell)
        channel = _CHANNEL.fullmatch(name)
        if channel:
            total = f"{channel.group(1)}_sum"
            sums[total] = sums.get(total, 0.0) + value
            continue
        yield name, value
        if repeated := _REPEATED.fullmatch(name):
            yield repeated.group(1), value
    yield from sums.items()


_READERS = {
    "ncu long": _ncu_long,
    "ncu wide": _ncu_wide,
    "rocprofv3 long": _rocprofv3_long,
    "rocprof wide": _rocprof_wide,
    "rocprof v1": _rocprof_v1,
}
