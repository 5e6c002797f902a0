"""The report as one JSON object, for scripts. Unknown is null; the schema is versioned."""

import json
import math
from typing import Any

from flopprof.provenance import CallProvenance, Part, TraceProvenance, plain
from flopprof.report import report_format
from flopprof.report.summary import busy_rate, flops_per_j, verdict_counts
from flopprof.run import SCHEMA_VERSION, Run, to_json, whole


@report_format("json", ".json")
def json_report(run: Run) -> str:
    """Return the object of `to_object` as JSON text."""
    return json.dumps(to_object(run), indent=1) + "\n"


def to_object(run: Run, files: list[str] | None = None) -> dict[str, Any]:
    """Return what `--json` prints for a run or a count.

    Args:
        run: The result.
        files: Paths of what was written.
    """
    provenance = run.provenance
    source = provenance.source
    called = provenance.called
    totals = run.totals
    result: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "flopprof": provenance.environment.flopprof,
        "model": source.model,
        "architecture": provenance.title,
        "architecture_source": source.architecture_source,
        "alternatives": [plain(other) for other in source.alternatives],
        "parameters": source.parameters,
        "input": called.input,
        "input_source": called.input_source,
        "device": provenance.device.kind,
        "device_name": provenance.device.name,
        "threads": provenance.device.threads,
        "dtype": called.dtype,
        "torch": provenance.environment.torch,
        "matmul_flops": totals.matmul_flops,
        "vector_flops": totals.vector_flops,
        "flops": totals.flops,
        "flops_at_most": whole(totals.flops_at_most),
        "untimed_flops": totals.untimed_flops,
        "coverage_frac": totals.coverage_frac,
        "coverage_calls_frac": totals.coverage_calls_frac,
        "wall_us": provenance.wall_us,
        "wall_p5_us": None,
        "wall_p95_us": None,
        "achieved_flops_per_s": totals.flops_per_s,
        "slowdown_frac": None,
        "observer": None,
        "host_overhead_us": None,
        "phases": {
            row.pop("phase"): {name: whole(v) if "flops" in name else v for name, v in row.items()}
            for row in run.by_phase().to_dict("records")
        },
        "verdicts": _verdicts(run),
        "ops": ops_object(run),
        "never_called": list(source.never_called),
        "warnings": provenance.warning_texts,
        "files": files or [],
    }
    if isinstance(provenance, CallProvenance):
        result |= _call(run, provenance)
    elif isinstance(provenance, TraceProvenance):
        result |= _trace(run, provenance)
    cleaned: dict[str, Any] = to_json(result)
    return cleaned


def _verdicts(run: Run) -> dict[str, Any]:
    counts = verdict_counts(run)
    for count in counts.values():
        count["matmul_flops"] = whole(count["matmul_flops"])
    return counts


def _call(run: Run, provenance: CallProvenance) -> dict[str, Any]:
    """Return what only a call that was timed here has."""
    timing = provenance.timing
    result: dict[str, Any] = {
        "wall_p5_us": timing.wall_us.p5,
        "wall_p95_us": timing.wall_us.p95,
        "slowdown_frac": timing.slowdown_frac,
        "observer": timing.observer and plain(timing.observer),
        "host_overhead_us": timing.host_overhead_us,
        "traced_calls": timing.traces,
    }
    if provenance.telemetry:
        result["telemetry"] = plain(provenance.telemetry)
        result["flops_per_j"] = flops_per_j(run)
    if provenance.compiled:
        compiled = plain(provenance.compiled)
        result["compiled"] = compiled | {"wall_us": plain(timing.wall_us)}
        result["eager_wall_us"] = timing.eager_wall_us and timing.eager_wall_us.median
    return result


def _trace(run: Run, provenance: TraceProvenance) -> dict[str, Any]:
    """Return what only a trace recorded elsewhere has: kernels, ranks, steps."""
    facts: dict[str, Any] = plain(provenance.trace)
    files = facts.pop("files")
    del facts["origin_us"]
    return facts | {
        "achieved_flops_per_s": busy_rate(run),
        "never_called": None,
        "traces": files,
        "gpu": provenance.device.name,
        "ranks": [_row(rank) for rank in provenance.ranks],
        "steps": [_row(step) for step in provenance.steps],
    }


def _row(part: Part) -> dict[str, Any]:
    row: dict[str, Any] = plain(part)
    return {name: whole(value) if "flops" in name else value for name, value in row.items()}


def ops_object(run: Run) -> dict[str, dict[str, Any]]:
    """Return one entry per op name with a formula, over all its calls and their subtrees.

    Entries overlap (`aten::linear` holds its `aten::addmm`) and must not be summed.
    """
    ops = run.ops[~run.ops["kind"].isin(("free", "unknown"))]
    time_column = "device_us" if len(run.kernels) else "cpu_us"
    entries = {}
    for name, calls in ops.groupby("op", observed=True):
        matmul, vector = (calls[c].sum(skipna=False) for c in ("matmul_flops", "vector_flops"))
        time_us = calls[time_column].sum(min_count=1)
        entries[str(name)] = {
            "calls": len(calls),
            "counted_calls": int(calls["counted"].sum()),
            "matmul_flops": whole(matmul),
            "vector_flops": whole(vector),
            "time_us": time_us,
            "achieved_flops_per_s": (
                (matmul + vector) / (time_us / 1e6) if time_us > 0 else math.nan
            ),
        }
        if calls["flops_at_most"].notna().any():  # bounded: values decide
            entries[str(name)]["flops_at_most"] = whole(calls["flops_at_most"].sum())
    return entries
