"""The report as one JSON object, for scripts. Unknown is null; the schema is versioned."""

import json
import math
from typing import Any

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
    meta, totals = run.meta, run.totals
    wall = meta.get("wall_us") or {}
    verdicts = verdict_counts(run)
    for count in verdicts.values():
        count["matmul_flops"] = whole(count["matmul_flops"])
    found = {
        "schema_version": SCHEMA_VERSION,
        "flopprof": meta.get("flopprof"),
        "model": meta.get("model"),
        "architecture": meta.get("architecture") or meta.get("model"),
        "architecture_source": meta.get("architecture_source"),
        "alternatives": meta.get("alternatives") or [],
        "parameters": meta.get("parameters"),
        "input": meta.get("input"),
        "input_source": meta.get("input_source"),
        "device": (meta.get("device") or {}).get("kind"),
        "device_name": (meta.get("device") or {}).get("name"),
        "threads": (meta.get("device") or {}).get("threads"),
        "dtype": meta.get("dtype"),
        "torch": meta.get("torch"),
        "matmul_flops": totals.matmul_flops,
        "vector_flops": totals.vector_flops,
        "flops": totals.flops,
        "flops_at_most": whole(totals.flops_at_most),
        "coverage_frac": totals.coverage_frac,
        "coverage_calls_frac": totals.coverage_calls_frac,
        "wall_us": wall.get("median"),
        "wall_p5_us": wall.get("p5"),
        "wall_p95_us": wall.get("p95"),
        "achieved_flops_per_s": busy_rate(run) if "trace" in meta else totals.flops_per_s,
        "slowdown_frac": meta.get("slowdown_frac"),
        "observer": meta.get("observer"),
        "host_overhead_us": meta.get("host_overhead_us") if wall else None,
        "phases": {
            row.pop("phase"): {name: whole(v) if "flops" in name else v for name, v in row.items()}
            for row in run.by_phase().to_dict("records")
        },
        "verdicts": verdicts,
        "ops": ops_object(run),
        "never_called": meta.get("never_called"),
        "warnings": meta.get("warnings", []),
        "files": files or [],
        **_trace(meta),
    }
    if meta.get("telemetry"):
        found |= {"telemetry": meta["telemetry"], "flops_per_j": flops_per_j(run)}
    if meta.get("compiled"):
        found |= {"compiled": meta["compiled"], "eager_wall_us": meta["eager_wall_us"]["median"]}
    cleaned: dict[str, Any] = to_json(found)
    return cleaned


def _trace(meta: dict[str, Any]) -> dict[str, Any]:
    """Return what only a trace recorded elsewhere has: kernels, ranks, steps."""
    if "trace" not in meta:
        return {}
    found = {**meta["trace"], "traces": meta["trace"]["files"], "gpu": meta["device"]["name"]}
    del found["files"], found["origin_us"]
    return found | {
        part: [{k: whole(v) if "flops" in k else v for k, v in row.items()} for row in meta[part]]
        for part in ("ranks", "steps")
    }


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
