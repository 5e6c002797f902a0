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

    def add_source(self, name: str) -> None:
        """Note that these rules gave FLOPs, once."""
        if name not in self.source:
            self.source.append(name)


def _sum(parts: dict[str, float]) -> float:
    return sum(parts.values()) if parts else math.nan


def figures_of(launch: Launch) -> Figures:
    """Return what a launch executed, by the rules for its tool and architecture."""
    figures = Figures()
    if launch.failed:
        figures.reasons.append(f"the launch failed: {safe_text(launch.failed, 200)}")
        return figures
    figures.duration_us = _duration_us(launch, figures)
    arch = launch.arch or _inferred_arch(launch)
    for (figure, dtype), choices in groups(launch.tool, arch).items():
        terms = _first_whole(launch, choices)
        if terms:
            _add_figure(launch, figures, figure, dtype, terms)
        elif figure != "half":
            _explain_gap(launch, figures, figure, choices)
    if launch.tool == NVIDIA:
        _fill_matrix_units(launch, figures)
    _add_up_dram(figures)
    _explain(launch, arch, figures)
    return figures


def _inferred_arch(launch: Launch) -> str:
    """Return the AMD architecture that counters' names tell, where the file does not; else ""."""
    if launch.tool != AMD:
        return ""
    if "TCC_EA0_RDREQ_128B_sum" in launch.readings or any("F6F4" in m for m in launch.readings):
        return "gfx950"
    return "gfx942" if launch.value("TCC_BUBBLE_sum") > 0 else ""


def _first_whole(launch: Launch, choices: list[list[Term]]) -> list[Term]:
    """Return the first set of metrics that are all in the file; an empty one where none is."""
    for terms in choices:
        used = [term for term in terms if term.required or _has_value(launch, term)]
        if used and all(_has_value(launch, term) for term in used):
            return used
    return []


def _add_figure(
    launch: Launch, figures: Figures, figure: str, dtype: str, terms: list[Term]
) -> None:
    """Add a figure, which is the weighted sum of these metrics, with what it is made of."""
    value = max(sum(_weighted(launch, term) for term in terms), 0.0)
    figures.metrics.setdefault(figure, []).extend(term.metric for term in terms)
    if figure == "vector":
        figures.vector[dtype] = value
        _add_fma(launch, figures, terms)
        figures.add_source("thread_inst" if launch.tool == NVIDIA else "valu")
    elif figure == "matmul":
        figures.matmul[dtype] = value
        figures.add_source("mops")
    elif figure == "int":
        figures.integer[dtype] = value
        figures.add_source("mops")
    elif figure == "half":
        figures.half_at_most_flops = value
    else:
        figures.bytes[figure] = value


def _add_fma(launch: Launch, figures: Figures, terms: list[Term]) -> None:
    """Add the FLOPs of those metrics that count multiply-adds."""
    fma_terms = [term for term in terms if "fma" in term.metric.lower()]
    fma_flops = sum(_weighted(launch, term) for term in fma_terms if _has_value(launch, term))
    earlier_flops = 0.0 if math.isnan(figures.fma_flops) else figures.fma_flops
    figures.fma_flops = earlier_flops + fma_flops


def _explain_gap(launch: Launch, figures: Figures, figure: str, choices: list[list[Term]]) -> None:
    """Say which metrics of a figure are missing where the file has others of the same set."""
    for terms in choices:
        required = [term for term in terms if term.required]
        present = [term for term in required if _has_value(launch, term)]
        if not present:
            continue
        missing = ", ".join(term.metric for term in required if term not in present)
        least = sum(_weighted(launch, term) for term in present)
        if figure in ("vector", "matmul", "int") and least > 0:
            figures.reasons.append(f"{figure} at least {least:.0f}: {missing} not known")
        else:
            figures.reasons.append(f"{figure} unknown: {missing} not known")
        return


def _has_value(launch: Launch, term: Term) -> bool:
    return not math.isnan(_weighted(launch, term))


def _weighted(launch: Launch, term: Term) -> float:
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


def _duration_us(launch: Launch, figures: Figures) -> float:
    """Return the duration; of cycles and clock where the file has no other."""
    seconds = _duration_s(launch)
    if not math.isnan(seconds):
        figures.metrics["duration"] = [
            "gpu__time_duration.sum" if launch.tool == NVIDIA else "stamps"
        ]
        return round(seconds * 1e6, 6)  # to a picosecond: what the file says
    for unit in ("sm", "smsp", "gpc"):
        cycles = f"{unit}__cycles_elapsed.avg"
        clock = launch.value(f"{cycles}.per_second")
        if clock > 0 and launch.value(cycles) > 0:
            figures.metrics["duration"] = [cycles, f"{cycles}.per_second"]
            return launch.value(cycles) / clock * 1e6
    return math.nan


def _fill_matrix_units(launch: Launch, figures: Figures) -> None:
    """Fill in what NVIDIA's matrix units did: by paths, by opcodes, or by instructions."""
    by_path = _by_path(launch, figures)
    by_opcode = _by_opcode(launch)
    if by_path:
        figures.matmul, figures.integer = _split(by_path)
        figures.add_source("ops_path")
        if by_opcode is not None:
            _compare(figures, sum(by_path.values()), sum(by_opcode.values()))
    elif by_opcode is not None:
        figures.matmul, figures.integer = _split(by_opcode)
        figures.metrics["matmul"] = [OPCODES]
        figures.add_source("opcode")
    elif not any(metric.startswith(PATH) for metric in launch.readings):
        _by_instructions(launch, figures)  # else they are counted, and not a number


def _compare(figures: Figures, by_path: float, by_opcode: float) -> None:
    """Say where opcodes give another sum than paths, which are taken."""
    if abs(by_opcode - by_path) > 0.01 * by_path:  # rounding of rates
        figures.reasons.append(
            f"by opcodes the matrix units did {by_opcode:.0f} operations, by paths {by_path:.0f}"
        )


def _by_instructions(launch: Launch, figures: Figures) -> None:
    """Fill in what the count of tensor instructions tells: that there were none, or an estimate."""
    instructions = _in_units(launch, TENSOR_INSTRUCTIONS, _COUNT_UNITS)
    if launch.arch in _ONE_PIPE and instructions == 0:
        figures.matmul["any"] = 0.0
        figures.add_source("no tensor instruction")
    elif launch.arch == "sm_70" and instructions > 0:
        figures.matmul["float16"] = instructions * V100_FLOPS
        figures.add_source("x512")
        figures.reasons.append("matmul is estimated: instructions × 512")
    else:
        return
    figures.metrics["matmul"] = [TENSOR_INSTRUCTIONS]


def _split(work: dict[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """Return FLOPs and integer operations apart; without any of one kind, that is not known."""
    flops = {dtype: value for dtype, value in work.items() if not dtype.startswith("int")}
    integer = {dtype: value for dtype, value in work.items() if dtype.startswith("int")}
    return flops, integer


def _by_path(launch: Launch, figures: Figures) -> dict[str, float]:
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
        figures.metrics.setdefault(figure, []).append(metrics[name])
    for dtype, sparse in _sparse(names):
        figures.reasons.append(
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
        work_of_opcode = opcode_work(opcode)
        if work_of_opcode is not None:
            flops, dtype = work_of_opcode
            dtype = dtype or "float16"
            work[dtype] = work.get(dtype, 0.0) + flops * number(count.rstrip(",."))
    return work


def _add_up_dram(figures: Figures) -> None:
    """Add up reads and writes where the file has no sum of them."""
    directions = ("dram_read", "dram_write")
    if "dram" in figures.bytes or not all(name in figures.bytes for name in directions):
        return
    figures.bytes["dram"] = sum(figures.bytes[name] for name in directions)
    figures.metrics["dram"] = [metric for name in directions for metric in figures.metrics[name]]


def _explain(launch: Launch, arch: str, figures: Figures) -> None:
    """Say why figures are unknown or doubtful."""
    if launch.tool == AMD:
        _explain_amd(launch, arch, figures)
    _explain_missing_units(figures)
    if figures.half_at_most_flops > 0:
        figures.reasons.append(
            f"float16 on vector units: at most {figures.half_at_most_flops:.0f}, in no sum, since "
            "its instruction also moves registers"
        )
    odd_units = [
        f"{metric} is in {reading.unit!r}"
        for metric, reading in launch.readings.items()
        if _is_odd(metric, reading.unit) and not math.isnan(reading.value)
    ]
    if odd_units:
        figures.reasons.append("not used, for their units: " + ", ".join(odd_units))


def _explain_amd(launch: Launch, arch: str, figures: Figures) -> None:
    if arch in _WITHOUT_COUNTERS:
        figures.reasons.append(f"{arch} has no counters of FLOPs")
    elif figures.vector:
        figures.reasons.append(PER_WAVE)
    requests = launch.value("TCC_EA0_RDREQ_sum")
    if requests > 0 and "dram_read" not in figures.bytes:
        short_requests = max(launch.value("TCC_EA0_RDREQ_32B_sum"), 0.0)
        least_bytes = 64 * requests - 32 * short_requests
        figures.reasons.append(
            f"read at least {least_bytes:.0f} bytes: requests of 128 are not told apart"
        )


def _explain_missing_units(figures: Figures) -> None:
    """Say of which units, or of which of their element types, the file counts nothing."""
    missing = []
    if not figures.matmul and not figures.integer:
        missing.append("matrix units")
    if not figures.vector:
        missing.append("vector units")
    if missing:
        fact = f"no counter of the FLOPs of {' and '.join(missing)} in the file"
        figures.reasons.insert(0, fact)
        return
    uncounted = [dtype for dtype in ("float32", "float64") if dtype not in figures.vector]
    if uncounted:
        figures.reasons.append(f"{UNCOUNTED} {' and '.join(uncounted)}")


def _is_odd(metric: str, unit: str) -> bool:
    """Return whether a metric that a rule reads has a unit that it cannot have."""
    if metric == "gpu__time_duration.sum":
        return unit != "s"
    return bool(re.fullmatch(r"(dram|lts|l1tex)__(t_)?bytes\w*\.sum", metric)) and unit != "byte"
