"""The lines that every report begins with: what ran, its FLOPs, times and verdicts."""

import math
from typing import Any

import pandas as pd

from flopprof.jobfacts import Rank, Step, TraceFacts
from flopprof.judge.verdicts import VERDICTS
from flopprof.provenance import (
    Alternative,
    AnyProvenance,
    CallProvenance,
    Spread,
    Telemetry,
    TraceProvenance,
)
from flopprof.report.advice import advice_lines
from flopprof.report.executed import executed_lines
from flopprof.report.figures import Figures, main_roofline, sharing_ranks
from flopprof.report.generate import generate_lines
from flopprof.report.job import job_lines, sharing_text
from flopprof.report.memory import memory_line
from flopprof.report.noise import ranking_lines, was_busy
from flopprof.report.rows import is_timed
from flopprof.run import Run
from flopprof.totals import Totals
from flopprof.units import (
    UNKNOWN,
    clean_text,
    counted,
    duration,
    percent,
    safe_text,
    shorten,
    si,
    three_digits,
)

# Of telemetry: the unit shown, and how many of it the unit of the reading is.
_READINGS = {
    "sm_clock_mhz": ("Hz", 1e6),
    "memory_clock_mhz": ("Hz", 1e6),
    "power_w": ("W", 1.0),
    "temperature_c": ("°C", 1.0),
    "energy_j": ("J", 1.0),
    "peak_memory_bytes": ("B", 1.0),
}
ALTERNATIVES = 6  # other architectures that a report names
TELLING_SLOWDOWN = 1.0  # of a bare call: from here on tracing is most of what a site's time is
SEEN_FRAC = 0.0005  # of the time: less is printed as 0.0 %
STEPS = 8  # steps and ranks that a report lists
NEVER_CALLED = 5  # modules that a report names


def summary(run: Run) -> list[tuple[str, str]]:
    """Return the summary as (label, text) lines; what a file may have chosen is cleaned."""
    lines = _summary(run) + [("Next", text) for text in advice_lines(run)]
    return [(label, clean_text(text)) for label, text in lines]


def _summary(run: Run) -> list[tuple[str, str]]:
    """Return the lines in the order of every report: what ran, FLOPs, times, verdicts, doubts."""
    provenance = run.provenance
    totals = run.totals
    if isinstance(provenance, TraceProvenance):
        lines = _what_was_traced(provenance)
    else:
        lines = _what_was_called(provenance)
    lines += [("FLOPs", _flops(totals)), ("", _bounds(totals))]
    if run.recorded_elsewhere and run.has_kernels and totals.untimed_flops:
        untimed = si(float(totals.untimed_flops), "FLOPs")
        text = f"{untimed} of them without a kernel in the trace: no rate is made of these"
        lines.append(("", text))
    phases = run.by_phase()
    if len(phases) > 1:
        lines.append(("Phases", _phases(phases)))
    if isinstance(provenance, TraceProvenance):
        lines += _times_of_trace(run, provenance)
    elif isinstance(provenance, CallProvenance):
        lines += _times_of_call(run, provenance)
    lines += generate_lines(run)
    lines += [*executed_lines(run), ("Verdicts", _verdicts(run))]
    if len(run.module_calls):
        lines.append(("Modules", _modules(run)))
    if needed := memory_line(run):
        lines.append(("Memory", needed))
    return lines + [("Warning", text) for text in provenance.warning_texts]


def _what_was_called(provenance: AnyProvenance) -> list[tuple[str, str]]:
    source = provenance.source
    parameters = si(float(source.parameters), "") if source.parameters is not None else UNKNOWN
    file = f", {source.file}" if source.file else ""
    return [
        ("Model", f"{provenance.title}, {parameters} parameters{file}"),
        *_alternatives(source.alternatives),
        ("Input", _with_note(provenance.called.input, provenance.called.input_source)),
        ("Device", _device(provenance)),
    ]


def _what_was_traced(provenance: TraceProvenance) -> list[tuple[str, str]]:
    ranks = len(provenance.ranks)
    several = f" and {ranks - 1} more: {ranks} ranks" if ranks > 1 else ""
    return [
        ("Trace", provenance.trace.files[0] + several),
        ("Device", f"{provenance.device.name}, mostly {provenance.called.dtype}"),
    ]


def _times_of_call(run: Run, provenance: CallProvenance) -> list[tuple[str, str]]:
    """Return time, rate and coverage of a call that was timed here, and what watched it."""
    totals = run.totals
    lines = []
    if is_timed(run):
        if provenance.parallel:
            lines.append(("Ranks", sharing_text(provenance.parallel, provenance.ranks)))
        lines += [("Time", _time(provenance)), ("Rate", _rate(run, totals.flops_per_s))]
        lines += _figures(run.figures, provenance.wall_us, is_busy=was_busy(run))
        lines += [("Coverage", _coverage(run))]
        lines += ranking_lines(run)
        lines += _compiled(provenance, float(totals.flops))
        lines += job_lines(run)
    if provenance.telemetry:
        lines.append(("Telemetry", _telemetry(run, provenance.telemetry)))
    return lines


def _times_of_trace(run: Run, provenance: TraceProvenance) -> list[tuple[str, str]]:
    """Return time, rate and coverage of traces recorded elsewhere, by rank and step."""
    facts = provenance.trace
    lines = []
    coverage = f"FLOPs are known for {percent(run.totals.coverage_frac)} of the time; "
    if run.has_kernels:
        text = f"{facts.kernels} compute kernels, {duration(facts.kernel_time_us)} in sum; "
        text += f"device busy {duration(facts.device_busy_us)} of {duration(facts.span_us)}"
        lines += [("Time", text), ("Rate", _rate(run, busy_rate(run)))]
        lines += _figures(run.figures, facts.span_us / max(len(provenance.ranks), 1))
        unlinked = percent(1 - facts.linked_kernel_time_frac)
        coverage += f"{unlinked} of kernel time belongs to no op in the trace"
    else:
        coverage += "there are no kernels"
    ranks = provenance.ranks
    lines += [("Coverage", coverage), *_ranks(ranks, facts), *job_lines(run)]
    return lines + _steps(provenance.steps, several_ranks=len(ranks) > 1)


def _alternatives(others: tuple[Alternative, ...]) -> list[tuple[str, str]]:
    """Return what else the weights may be: recognition looks at keys and shapes alone."""
    if not others:
        return []
    names = ", ".join(map(_alternative, others[:ALTERNATIVES]))
    if len(others) > ALTERNATIVES:
        names += f" and {len(others) - ALTERNATIVES} more"
    return [("Or", f"{names}: equal keys and shapes; --arch decides")]


def _alternative(other: Alternative) -> str:
    if not other.gflops > 0:
        return other.architecture
    return f"{other.architecture} ({si(other.gflops * 1e9, 'FLOPs')} at {other.input})"


def _steps(steps: tuple[Step, ...], *, several_ranks: bool) -> list[tuple[str, str]]:
    """Return a line per step, the first of them."""
    lines = []
    for step in steps[:STEPS]:
        rate = step.flops / step.kernel_time_us * 1e6 if step.kernel_time_us > 0 else math.nan
        text = f"rank {step.rank}, " if several_ranks else ""
        text += f"{step.step}: {duration(step.duration_us)}, {si(step.flops, 'FLOPs')}"
        if not math.isnan(step.kernel_time_us):
            text += f", kernels {duration(step.kernel_time_us)}, {si(rate, 'FLOP/s')}"
        lines.append(("Step", text))
    if len(steps) > STEPS:
        lines.append(("", f"and {len(steps) - STEPS} steps more: see --json"))
    return lines


def busy_rate(run: Run) -> float:
    """Return FLOP/s while the devices of a trace were busy; NaN where they never were."""
    provenance = run.provenance
    if not isinstance(provenance, TraceProvenance):
        return math.nan
    busy_us = provenance.trace.device_busy_us
    totals = run.totals
    timed_flops = totals.flops - totals.untimed_flops
    return timed_flops / busy_us * 1e6 if busy_us > 0 else math.nan


def _compiled(provenance: CallProvenance, flops: float) -> list[tuple[str, str]]:
    """Return what compiling gained, what was fused into what, and why graphs were cut."""
    facts = provenance.compiled
    if facts is None or provenance.timing.eager_wall_us is None:
        return []
    eager_us = provenance.timing.eager_wall_us.median
    compiled_us = provenance.wall_us
    text = f"{facts.mode}: eager {duration(eager_us)}, {si(flops / eager_us * 1e6, 'FLOP/s')}; "
    text += f"compiled {duration(compiled_us)}, {si(flops / compiled_us * 1e6, 'FLOP/s')}: "
    lines = [("Compiled", f"{text}{three_digits(eager_us / compiled_us)} × as fast")]
    products = counted(facts.extern_calls, "call")
    text = f"{counted(len(facts.kernels), 'generated kernel')} beside {products} of library "
    text += f"products; bytes {si(facts.eager_min_bytes, 'B')} eager, "
    text += f"{si(facts.min_bytes, 'B')} compiled: "
    saved = facts.saved_bytes
    lines += [("", f"{text}{si(abs(saved), 'B')} {'more' if saved < 0 else 'saved'}")]
    for kernel in facts.kernels[:STEPS]:
        fuses = ", ".join(kernel.fuses)
        text = f"{shorten(kernel.kernel, 60)}: {duration(kernel.time_us)}, fuses {fuses}"
        lines.append(("Fused", text))
    if len(facts.kernels) > STEPS:
        lines.append(("", f"and {len(facts.kernels) - STEPS} kernels more: see --json"))
    return lines + [
        ("Break", f"{times} × {safe_text(why)}") for why, times in facts.graph_breaks.items()
    ]


def _ranks(ranks: tuple[Rank, ...], facts: TraceFacts) -> list[tuple[str, str]]:
    """Return a line per rank of a job, those that were busy longest first, and the verdict."""
    if len(ranks) == 1 and not facts.communication_us > 0:
        return []
    read = [rank for rank in ranks if rank.fault is None]
    longest = sorted(read, key=lambda rank: rank.device_busy_us, reverse=True)
    lines = []
    for rank in longest[:STEPS]:
        text = f"{rank.rank}: {si(rank.flops, 'FLOPs')}"
        if not math.isnan(rank.device_busy_us):
            text += f", busy {duration(rank.device_busy_us)}"
        if not math.isnan(rank.communication_us):
            text += f", collectives {duration(rank.communication_us)} "
            text += f"({percent(rank.communication_frac)}), "
            text += f"{percent(rank.overlap_frac)} of them behind computation"
        lines.append(("Rank", text))
    if len(read) > STEPS:
        lines.append(("", f"and {len(read) - STEPS} ranks more: see --json"))
    if facts.missing_ranks:
        count = len(facts.missing_ranks)
        numbers = ", ".join(map(str, facts.missing_ranks[:STEPS]))
        more = f" and {count - STEPS} more" if count > STEPS else ""
        lines.append(("Missing", f"{count} of {facts.world_size} ranks: {numbers}{more}"))
    if facts.slowest_rank is not None:
        slowest = f"rank {facts.slowest_rank} is the slowest: its own kernels took longest"
        lines.append(("", slowest))
    return lines


def flops_per_j(run: Run) -> float:
    """Return FLOPs per joule over the timed calls; NaN where the energy is not known."""
    provenance = run.provenance
    if not isinstance(provenance, CallProvenance) or provenance.telemetry is None:
        return math.nan
    telemetry = provenance.telemetry
    energy_j = telemetry.energy_j
    return run.totals.flops * telemetry.calls / energy_j if energy_j > 0 else math.nan


def _telemetry(run: Run, telemetry: Telemetry) -> str:
    """Return clocks, power, energy and memory while the calls were timed, as far as known."""
    parts = []
    for name, (unit, scale) in _READINGS.items():
        reading = getattr(telemetry, name)
        value = reading.median if isinstance(reading, Spread) else reading
        if value is not None and not math.isnan(value):
            label = name.rpartition("_")[0].replace("_", " ")
            parts.append(f"{label} {si(value * scale, unit)}")
    if limits := [why for why in telemetry.throttle_reasons or () if why != "idle"]:
        parts.append("clocks held by " + ", ".join(limits))
    if not math.isnan(flops_per_j(run)):
        parts.append(f"{si(flops_per_j(run), 'FLOP/J')}")
    return ", ".join(parts) or "not available"


def _with_note(text: str, note: str | None) -> str:
    return f"{text} ({note})" if note else text


def _device(provenance: AnyProvenance) -> str:
    called = provenance.called
    parts = [provenance.device.name or "unknown device"]
    if threads := provenance.device.threads:
        parts.append(counted(threads, "thread"))
    parts.append(f"{called.dtype} by autocast" if called.autocast else called.dtype)
    if called.tf32:
        parts.append("TF32")
    return ", ".join([*parts, f"torch {provenance.environment.torch or '?'}"])


def _flops(totals: Totals) -> str:
    if _nothing_known(totals):
        return "unknown: no op that does any has known ones"
    macs = si(totals.matmul_flops / 2, "MACs")
    vector = si(float(totals.vector_flops), "FLOPs")
    return f"matmul {si(float(totals.matmul_flops), 'FLOPs')} ({macs}) + vector {vector}"


def _nothing_known(totals: Totals) -> bool:
    """Return whether the zero that was counted is only what is left of the unknown."""
    return totals.flops == 0 and totals.flops_at_most != 0


def _bounds(totals: Totals) -> str:
    if totals.flops_at_most == totals.flops:
        return f"{si(float(totals.flops), 'FLOPs')} in all; nothing is unknown"
    most = "unknown"
    if not math.isnan(totals.flops_at_most):
        most = si(totals.flops_at_most, "FLOPs")
    return f"at least {si(float(totals.flops), 'FLOPs')}, at most {most}"


def _phases(phases: pd.DataFrame) -> str:
    whole_us = phases["time_us"].sum()
    parts = []
    for phase in phases.itertuples(index=False):
        share = f" in {percent(phase.time_us / whole_us)} of the time" if whole_us else ""
        parts.append(f"{phase.phase} {si(phase.flops, 'FLOPs')}{share}")
    return ", ".join(parts)


def _time(provenance: CallProvenance) -> str:
    timing = provenance.timing
    wall = timing.wall_us
    text = f"median {duration(wall.median)} (p5 {duration(wall.p5)}, p95 {duration(wall.p95)})"
    text += f" of {timing.repeats or '?'} calls"
    if provenance.compiled:
        text += ", compiled"
    if not math.isnan(timing.slowdown_frac):
        text += f"; tracing added {100 * timing.slowdown_frac:+.0f} %"
        if provenance.compiled:
            text += " to the eager call"
    if timing.observer and timing.observer.changed_ops is not None:
        text += f" and {'other' if timing.observer.changed_ops else 'no other'} ops"
    if timing.slowdown_frac > TELLING_SLOWDOWN:
        text += ", so sites' times are too long: compare them with each other only"
    return text


def _rate(run: Run, flops_per_s: float) -> str:
    if _nothing_known(run.totals):
        return UNKNOWN
    rate = si(flops_per_s, "FLOP/s")
    roof = main_roofline(run)
    if roof is None or math.isnan(roof.peak_flops_per_s):
        if len(run.rooflines) and run.rooflines["peak_flops_per_s"].notna().any():
            dtype = run.provenance.called.dtype
            dtypes = ", ".join(dict.fromkeys(run.rooflines["dtype"]))
            return f"{rate}; the device has no ceiling for {dtype} products (it has for {dtypes})"
        return f"{rate}; no ceiling is known for this device"
    if not roof.valid:
        return f"{rate}; the {roof.dtype} matmul ceiling was measured on a busy machine: no share"
    ranks = sharing_ranks(run)
    share = percent(flops_per_s / ranks / roof.peak_flops_per_s)
    each = f"{ranks} × " if ranks > 1 else ""
    return (
        f"{rate}, {share} of the {roof.dtype} matmul ceiling "
        f"{each}{si(roof.peak_flops_per_s, 'FLOP/s')} ({roof.kind})"
    )


def _figures(of_run: Figures, wall_us: float, *, is_busy: bool = False) -> list[tuple[str, str]]:
    """Return throughput and utilisation, and what holds the time, as far as they are known."""
    parts = []
    if of_run.samples_per_s > 0:
        parts.append(f"{three_digits(of_run.samples_per_s)} samples/s")
    if of_run.tokens_per_s > 0:
        parts.append(f"{three_digits(of_run.tokens_per_s)} tokens/s")
    if of_run.mfu_frac > 0:
        parts.append(f"MFU {percent(of_run.mfu_frac)}")
    if of_run.hfu_frac > of_run.mfu_frac:
        parts.append(f"HFU {percent(of_run.hfu_frac)}")
    if of_run.mbu_frac > 0:
        parts.append(f"MBU {percent(of_run.mbu_frac)}")
    if of_run.energy_per_sample_j > 0:
        parts.append(f"{si(of_run.energy_per_sample_j, 'J')} per sample")
    lines = [("Figures", ", ".join(parts))] if parts else []
    if of_run.held_frac and of_run.attainable_wall_us > 0:
        holders = sorted(of_run.held_frac.items(), key=lambda pair: -pair[1])
        shares = ", ".join(f"{name} {percent(frac)}" for name, frac in holders if frac >= SEEN_FRAC)
        if is_busy and of_run.held_frac["unknown"] >= SEEN_FRAC:
            shares += " (unknown, since others had the machine)"
        text = f"{shares} of the time; at its roofs it would take "
        text += f"{duration(of_run.attainable_wall_us)} of {duration(wall_us)}"
        lines.append(("Bound", text))
    return lines


def _coverage(run: Run) -> str:
    spent = duration(run.sites["time_us"].sum())
    totals = run.totals
    hidden = " and hidden gaps" if (run.sites["op"] == "(gap)").any() else ""
    text = f"FLOPs are known for {percent(totals.coverage_frac)} of {spent} in ops{hidden}"
    if totals.coverage_calls_frac < 1:
        text += f" and {percent(totals.coverage_calls_frac)} of their calls"
    if isinstance(run.provenance, CallProvenance) and not run.has_kernels:
        overhead_us = run.provenance.timing.host_overhead_us
        text += f"; {duration(overhead_us)} between ops (Python, the tracer)"
    return text


def verdict_counts(run: Run) -> dict[str, dict[str, Any]]:
    """Return, per verdict that occurs: sites, time_frac, matmul_flops (what is known of them)."""
    counts = {}
    for verdict in VERDICTS:
        sites = run.sites[run.sites["verdict"] == verdict]
        if len(sites):
            counts[verdict] = {
                "sites": len(sites),
                "time_frac": float(sites["time_share_frac"].sum(min_count=1)),
                "matmul_flops": float(sites["matmul_flops"].sum(min_count=1)),
            }
    return counts


def _modules(run: Run) -> str:
    paths = run.module_calls["module_path"]
    times = "once" if len(paths) == 1 else f"{len(paths)} times"
    text = f"{paths.nunique()} called {times}"
    if never := run.provenance.source.never_called:
        listed = [*never[:NEVER_CALLED], *(["…"] if len(never) > NEVER_CALLED else [])]
        text += f"; {len(never)} never called: {', '.join(listed)}"
    return text


def _verdicts(run: Run) -> str:
    parts = []
    for verdict, count in verdict_counts(run).items():
        share = "" if math.isnan(count["time_frac"]) else f" ({percent(count['time_frac'])})"
        parts.append(f"{verdict} {count['sites']}{share}")
    return ", ".join(parts)
