"""From one launch's readings to its figures: FLOPs by class and element type, bytes, time."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from flopprof.executed.launches import AMD, NVIDIA, Launch
from flopprof.executed.numbers import number
from flopprof.executed.rules import (
    PATH,
    PathName,
    Term,
    groups,
    opcode_work,
    path_name,
)
from flopprof.units import safe_text

OPCODES = "sass__inst_executed_per_opcode_with_modifier_all"
TENSOR_INSTRUCTIONS = "sm__inst_executed_pipe_tensor.sum"
# One instruction of CC 7.0's tensor cores (NERSC's recipe); of a T4 it gives a quarter.
V100_FLOPS = 512
# Architectures on which every matrix instruction goes through that pipe's counter.
_ONE_PIPE = ("sm_70", "sm_72", "sm_75", "sm_80", "sm_86", "sm_87", "sm_89")
_BYTES = ("dram", "dram_read", "dram_write", "l2", "l1")
_COUNT_UNITS = ("", "inst", "op")
_WITHOUT_COUNTERS = ("gfx906", "gfx908")
UNCOUNTED = "not counted: vector work in"
PER_WAVE = (
    "AMD's counters are of issued waves: lanes that are masked off count, packed instructions "
    "count once, exp and the like as one"
)


@dataclass
class Figures:
    """What a launch executed. NaN is unknown; 0 is none.

    Attributes:
        matmul: Element type → FLOPs of the matrix units.
        vector: Element type → FLOPs of the vector units.
        fma_flops: The part of `vector` that multiply-adds did.
        half_at_most_flops: Upper bound of float16 on NVIDIA's vector units: the instruction that
            is counted also moves registers.
        integer: Element type → operations of the matrix units on integers.
        bytes: "dram", "dram_read", "dram_write", "l2", "l1" → bytes.
        duration_us: Time under the profiler, which may lower clocks.
        metrics: Figure → the metrics that it is made of.
        source: Which rules gave the FLOPs: ops_path, opcode, thread_inst, mops, x512.
        reasons: What is missing or doubtful.
    """

    matmul: dict[str, float] = field(default_factory=dict)
    vector: dict[str, float] = field(default_factory=dict)
    fma_flops: float = math.nan
    half_at_most_flops: float = math.nan
    integer: dict[str, float] = field(default_factory=dict)
    bytes: dict[str, float] = field(default_factory=dict)
    duration_us: float = math.nan
    metrics: dict[str, list[str]] = field(default_factory=dict)
    source: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    @property
    def matmul_flops(self) -> float:
        """FLOPs of the matrix units; NaN where a part is unknown, or all."""
        return _sum(self.matmul)

    @property
    def vector_flops(self) -> float:
        """FLOPs of the vector units; NaN where a part is unknown, or all."""
        return _sum(self.vector)

    @property
    def int_ops(self) -> float:
        """Operations on integers of the matrix units; NaN where a part is unknown, or all."""
        return _sum(self.integer)


def _sum(parts: dict[str, float]) -> float:
    return sum(parts.values()) if parts else math.nan


def figures_of(launch: Launch) -> Figures:
    """Return what a launch executed, by the rules for its tool and architecture."""
    found = Figures()
    if launch.failed:
        found.reasons.append(f"the launch failed: {safe_text(launch.failed, 200)}")
        return found
    found.duration_us = _duration_us(launch, found)
    arch = launch.arch or _inferred_arch(launch)
    for (figure, dtype), choices in groups(launch.tool, arch).items():
        value, terms = _best(launch, choices, figure, found)
        if math.isnan(value):
            continue
        _keep(found, figure, dtype, value)
        found.metrics.setdefault(figure, []).extend(term.metric for term in terms)
        if figure == "vector":
            fma = sum(
                _term(launch, t) for t in terms if "fma" in t.metric.lower() and _there(launch, t)
            )
            found.fma_flops = fma + (0.0 if math.isnan(found.fma_flops) else found.fma_flops)
            _add_source(found, "thread_inst" if launch.tool == NVIDIA else "valu")
        elif figure in ("matmul", "int"):
            _add_source(found, "mops")
    if launch.tool == NVIDIA:
        _matrix_units(launch, found)
    _dram_of_parts(found)
    _explain(launch, arch, found)
    return found


def _add_source(found: Figures, name: str) -> None:
    if name not in found.source:
        found.source.append(name)


def _keep(found: Figures, figure: str, dtype: str, value: float) -> None:
    if figure in ("matmul", "vector", "int"):
        kept = {"matmul": found.matmul, "vector": found.vector, "int": found.integer}[figure]
        kept[dtype] = value
    elif figure == "half":
        found.half_at_most_flops = value
    else:
        found.bytes[figure] = value


def _inferred_arch(launch: Launch) -> str:
    """Return the AMD architecture that counters' names tell, where the file does not; else ""."""
    if launch.tool != AMD:
        return ""
    if "TCC_EA0_RDREQ_128B_sum" in launch.readings or any("F6F4" in m for m in launch.readings):
        return "gfx950"
    return "gfx942" if launch.value("TCC_BUBBLE_sum") > 0 else ""


def _best(
    launch: Launch, choices: list[list[Term]], figure: str, found: Figures
) -> tuple[float, list[Term]]:
    """Return the figure by the first set of metrics that is whole, and that set; NaN without."""
    for terms in choices:
        used = [term for term in terms if term.required or _there(launch, term)]
        value = sum(_term(launch, term) for term in used)
        if not math.isnan(value) and used:
            return max(value, 0.0), used
    for terms in choices if figure != "half" else []:
        values = {t.metric: _term(launch, t) for t in terms if t.required}
        known = {metric: value for metric, value in values.items() if not math.isnan(value)}
        if known:
            missing = ", ".join(metric for metric in values if metric not in known)
            least = sum(known.values())
            if figure in ("vector", "matmul", "int") and least > 0:
                found.reasons.append(f"{figure} at least {least:.0f}: {missing} not known")
            else:
                found.reasons.append(f"{figure} unknown: {missing} not known")
            break
    return math.nan, []


def _there(launch: Launch, term: Term) -> bool:
    return not math.isnan(_term(launch, term))


def _term(launch: Launch, term: Term) -> float:
    return _total(launch, term.metric) * term.weight


def _total(launch: Launch, metric: str) -> float:
    """Return a metric's sum over the launch: as it stands, or a rate times cycles or time."""
    if launch.tool == AMD:
        return launch.value(metric)
    is_bytes = "bytes" in metric
    units = ("byte",) if is_bytes else (*_COUNT_UNITS, "cycle", "sector")
    total = _in_units(launch, f"{metric}.sum", units)
    if not math.isnan(total):
        return total
    per_cycle = [f"{unit}/cycle" for unit in units] + ["", "1/cycle"]
    name = f"{metric}.sum.per_cycle_elapsed"
    if metric.startswith("derived__"):  # a rate, whatever unit it is printed in
        name = metric
        per_cycle += _COUNT_UNITS
    rate = _in_units(launch, name, per_cycle)
    if not math.isnan(rate):
        return _whole(rate * _cycles(launch, metric))
    per_second = [f"{unit}/s" for unit in units]
    rate = _in_units(launch, f"{metric}.sum.per_second", per_second)
    return _whole(rate * _duration_s(launch))


def _whole(value: float) -> float:
    return value if math.isnan(value) else float(round(value))


def _in_units(launch: Launch, metric: str, units: "list[str] | tuple[str, ...]") -> float:
    reading = launch.readings.get(metric)
    if reading is None or reading.unit not in units:
        return math.nan
    return reading.value


def _cycles(launch: Launch, metric: str) -> float:
    """Return how many cycles the unit of a metric took."""
    unit = metric.removeprefix("derived__").partition("__")[0]
    alike = ("smsp", "sm") if unit in ("sm", "smsp") else (unit,)
    for name in alike:
        cycles = launch.value(f"{name}__cycles_elapsed.avg")
        if not math.isnan(cycles):
            return cycles
    for name in alike:
        cycles = launch.value(f"{name}__cycles_elapsed.avg.per_second") * _duration_s(launch)
        if not math.isnan(cycles):
            return cycles
    return math.nan


def _duration_s(launch: Launch) -> float:
    if launch.tool == AMD:
        return launch.value("duration_s")
    return _in_units(launch, "gpu__time_duration.sum", ("s",))


def _duration_us(launch: Launch, found: Figures) -> float:
    """Return the duration; of cycles and clock where the file has no other."""
    seconds = _duration_s(launch)
    if not math.isnan(seconds):
        found.metrics["duration"] = [
            "gpu__time_duration.sum" if launch.tool == NVIDIA else "stamps"
        ]
        return round(seconds * 1e6, 6)  # to a picosecond: what the file says
    for unit in ("sm", "smsp", "gpc"):
        cycles = f"{unit}__cycles_elapsed.avg"
        clock = launch.value(f"{cycles}.per_second")
        if clock > 0 and launch.value(cycles) > 0:
            found.metrics["duration"] = [cycles, f"{cycles}.per_second"]
            return launch.value(cycles) / clock * 1e6
    return math.nan


def _matrix_units(launch: Launch, found: Figures) -> None:
    """Fill in what NVIDIA's matrix units did: by paths, by opcodes, or by instructions."""
    by_path = _by_path(launch, found)
    by_opcode = _by_opcode(launch)
    if by_path:
        found.matmul, found.integer = _split(by_path)
        _add_source(found, "ops_path")
        if by_opcode and abs(sum(by_opcode.values()) - sum(by_path.values())) > 0.01 * sum(
            by_path.values()
        ):
            found.reasons.append(
                f"by opcodes the matrix units did {sum(by_opcode.values()):.0f} operations, by "
                f"paths {sum(by_path.values()):.0f}"
            )
        return
    if by_opcode is not None:
        found.matmul, found.integer = _split(by_opcode)
        found.metrics["matmul"] = [OPCODES]
        _add_source(found, "opcode")
        return
    if any(metric.startswith(PATH) for metric in launch.readings):
        return  # counted, and not a number
    instructions = _in_units(launch, TENSOR_INSTRUCTIONS, _COUNT_UNITS)
    if launch.arch in _ONE_PIPE and instructions == 0:
        found.matmul["any"] = 0.0
        found.metrics["matmul"] = [TENSOR_INSTRUCTIONS]
        _add_source(found, "no tensor instruction")
    elif launch.arch == "sm_70" and instructions > 0:
        found.matmul["float16"] = instructions * V100_FLOPS
        found.metrics["matmul"] = [TENSOR_INSTRUCTIONS]
        _add_source(found, "x512")
        found.reasons.append("matmul is estimated: instructions × 512")


def _split(work: dict[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """Return FLOPs and integer operations apart; without any of one kind, that is not known."""
    flops = {dtype: value for dtype, value in work.items() if not dtype.startswith("int")}
    integer = {dtype: value for dtype, value in work.items() if dtype.startswith("int")}
    return flops, integer


def _by_path(launch: Launch, found: Figures) -> dict[str, float]:
    """Return the operations by element type: parents where they are known, else their children."""
    names: dict[PathName, float] = {}
    metrics: dict[PathName, str] = {}
    for metric in launch.readings:
        base = re.sub(r"\.sum(\.per_\w+)?$", "", metric)
        name = path_name(base)
        if name is None:
            continue
        value = _total(launch, base)
        if not math.isnan(value):
            names[name] = value
            metrics[name] = base
    outermost = [name for name in names if not any(other.holds(name) for other in names)]
    work: dict[str, float] = {}
    for name in outermost:
        work[name.dtype] = work.get(name.dtype, 0.0) + names[name]
        figure = "int" if name.is_integer else "matmul"
        found.metrics.setdefault(figure, []).append(metrics[name])
    for dtype, sparse in _sparse(names):
        found.reasons.append(
            f"{dtype}: {sparse:.0f} operations with structured sparsity; whether those are of the "
            f"dense product is not known (all together: {work[dtype]:.0f})"
        )
        work[dtype] = math.nan
    return work


def _sparse(names: dict[PathName, float]) -> Iterator[tuple[str, float]]:
    """Yield element types of which some work was with structured sparsity, and how much."""
    sums: dict[str, float] = {}
    for name, value in names.items():
        if name.sparsity == "on" and value > 0:
            sums[name.dtype] = sums.get(name.dtype, 0.0) + value
    yield from sums.items()


def _by_opcode(launch: Launch) -> dict[str, float] | None:
    """Return the matrix units' operations by element type, of instructions by opcode.

    None where the file has no counts by opcode: they are there with --print-metric-instances.
    """
    reading = launch.readings.get(OPCODES)
    pairs = re.findall(r"([A-Z][\w.]*)\s*[:=]\s*([\d,.]+)", reading.text if reading else "")
    if not pairs:
        return None
    work: dict[str, float] = {"float16": 0.0, "int8": 0.0}
    for opcode, count in pairs:
        found = opcode_work(opcode)
        if found is not None:
            flops, dtype = found
            dtype = dtype or "float16"
            work[dtype] = work.get(dtype, 0.0) + flops * number(count.rstrip(",."))
    return work


def _dram_of_parts(found: Figures) -> None:
    """Add up reads and writes where the file has no sum of them."""
    parts = ("dram_read", "dram_write")
    if "dram" not in found.bytes and all(part in found.bytes for part in parts):
        found.bytes["dram"] = sum(found.bytes[part] for part in parts)
        found.metrics["dram"] = [m for part in parts for m in found.metrics[part]]


def _explain(launch: Launch, arch: str, found: Figures) -> None:
    """Say why figures are unknown or doubtful."""
    if launch.tool == AMD:
        if arch in _WITHOUT_COUNTERS:
            found.reasons.append(f"{arch} has no counters of FLOPs")
        elif found.vector:
            found.reasons.append(PER_WAVE)
        if launch.value("TCC_EA0_RDREQ_sum") > 0 and "dram_read" not in found.bytes:
            least = 64 * launch.value("TCC_EA0_RDREQ_sum") - 32 * max(
                launch.value("TCC_EA0_RDREQ_32B_sum"), 0.0
            )
            found.reasons.append(
                f"read at least {least:.0f} bytes: requests of 128 are not told apart"
            )
    missing = []
    if not found.matmul and not found.integer:
        missing.append("matrix units")
    if not found.vector:
        missing.append("vector units")
    if missing:
        found.reasons.insert(0, f"no counter of the FLOPs of {' and '.join(missing)} in the file")
    elif "float64" not in found.vector or "float32" not in found.vector:
        absent = [d for d in ("float32", "float64") if d not in found.vector]
        found.reasons.append(f"{UNCOUNTED} {' and '.join(absent)}")
    if found.half_at_most_flops > 0:
        found.reasons.append(
            f"float16 on vector units: at most {found.half_at_most_flops:.0f}, in no sum, since "
            "its instruction also moves registers"
        )
    units = [
        f"{metric} is in {reading.unit!r}"
        for metric, reading in launch.readings.items()
        if _is_odd(metric, reading.unit) and not math.isnan(reading.value)
    ]
    if units:
        found.reasons.append("not used, for their units: " + ", ".join(units))


def _is_odd(metric: str, unit: str) -> bool:
    """Return whether a metric that a rule reads has a unit that it cannot have."""
    if metric == "gpu__time_duration.sum":
        return unit != "s"
    return bool(re.fullmatch(r"(dram|lts|l1tex)__(t_)?bytes\w*\.sum", metric)) and unit != "byte"
