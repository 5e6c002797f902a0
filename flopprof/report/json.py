"""The report as one JSON object, for scripts. Unknown is null; `report.answer` has its fields."""

import json
import math
from typing import Any

import msgspec

from flopprof.jobfacts import KernelTimes
from flopprof.provenance import CallProvenance, TraceProvenance, plain
from flopprof.report import report_format
from flopprof.report.answer import (
    Answer,
    Compiled,
    OpSums,
    PhaseSums,
    VerdictSums,
    blocks_of,
    is_count,
)
from flopprof.report.macs import Macs
from flopprof.report.summary import busy_rate, flops_per_j, verdict_counts
from flopprof.run import SCHEMA_VERSION, Run, to_json, whole


@report_format("json", ".json")
def json_report(run: Run) -> str:
    """Return the object of `to_object` as JSON text."""
    return json.dumps(to_object(run), indent=1) + "\n"


def to_object(run: Run, files: list[str] | None = None, macs: Macs | None = None) -> dict[str, Any]:
    """Return what `--json` prints for a run or a count: an `Answer` and every block.

    Args:
        run: The result.
        files: Paths of what was written.
        macs: Its multiply-adds, where they were asked for.
    """
    fields = plain(answer_of(run, files or [], macs)) | blocks_of(run)
    cleaned: dict[str, Any] = to_json(_with_whole_counts(fields))
    return cleaned


def answer_of(run: Run, files: list[str], macs: Macs | None = None) -> Answer:
    """Return what a run, a count or traces answer, without the blocks."""
    provenance = run.provenance
    source = provenance.source
    called = provenance.called
    totals = run.totals
    answer = Answer(
        schema_version=SCHEMA_VERSION,
        flopprof=provenance.environment.flopprof,
        model=source.model,
        architecture=provenance.title,
        architecture_source=source.architecture_source,
        alternatives=source.alternatives,
        parameters=source.parameters,
        input=called.input,
        input_source=called.input_source,
        device=provenance.device.kind,
        device_name=provenance.device.name,
        threads=provenance.device.threads,
        dtype=called.dtype,
        torch=provenance.environment.torch,
        matmul_flops=totals.matmul_flops,
        vector_flops=totals.vector_flops,
        flops=totals.flops,
        flops_at_most=totals.flops_at_most,
        untimed_flops=totals.untimed_flops,
        coverage_frac=totals.coverage_frac,
        coverage_calls_frac=totals.coverage_calls_frac,
        wall_us=provenance.wall_us,
        wall_p5_us=math.nan,
        wall_p95_us=math.nan,
        achieved_flops_per_s=totals.flops_per_s,
        slowdown_frac=math.nan,
        observer=None,
        host_overhead_us=math.nan,
        phases={row.pop("phase"): PhaseSums(**row) for row in run.by_phase().to_dict("records")},
        verdicts={name: VerdictSums(**sums) for name, sums in verdict_counts(run).items()},
        ops=op_sums(run),
        never_called=source.never_called,
        warnings=provenance.warning_texts,
        warning_codes=[warning.code for warning in provenance.warnings],
        files=files,
    )
    if macs:
        answer = msgspec.structs.replace(
            answer, macs=macs.macs, macs_without_attention=macs.macs_without_attention
        )
    if isinstance(provenance, CallProvenance):
        return _of_call(answer, run, provenance)
    if isinstance(provenance, TraceProvenance):
        return _of_trace(answer, run, provenance)
    return answer


def _of_call(answer: Answer, run: Run, provenance: CallProvenance) -> Answer:
    """Add what only a call that was timed here has."""
    timing = provenance.timing
    answer = msgspec.structs.replace(
        answer,
        wall_p5_us=timing.wall_us.p5,
        wall_p95_us=timing.wall_us.p95,
        slowdown_frac=timing.slowdown_frac,
        observer=timing.observer,
        host_overhead_us=timing.host_overhead_us,
        traced_calls=timing.traces,
    )
    if provenance.parallel:
        answer = msgspec.structs.replace(
            answer, ranks=provenance.ranks, parallel=provenance.parallel
        )
    if telemetry := provenance.telemetry:
        answer = msgspec.structs.replace(answer, telemetry=telemetry, flops_per_j=flops_per_j(run))
    if compiled := provenance.compiled:
        eager_wall = timing.eager_wall_us
        answer = msgspec.structs.replace(
            answer,
            compiled=Compiled(**msgspec.structs.asdict(compiled), wall_us=timing.wall_us),
            eager_wall_us=eager_wall.median if eager_wall else math.nan,
        )
    return answer


def _of_trace(answer: Answer, run: Run, provenance: TraceProvenance) -> Answer:
    """Add what only traces recorded elsewhere have: kernels, ranks, steps."""
    facts = provenance.trace
    sums = {name: getattr(facts, name) for name in KernelTimes.__struct_fields__}
    return msgspec.structs.replace(
        answer,
        **sums,
        achieved_flops_per_s=busy_rate(run),
        never_called=None,
        traces=facts.files,
        gpu=provenance.device.name,
        linked_kernel_frac=facts.linked_kernel_frac,
        linked_kernel_time_frac=facts.linked_kernel_time_frac,
        slowest_rank=facts.slowest_rank,
        ranks=provenance.ranks,
        steps=provenance.steps,
    )


def op_sums(run: Run) -> dict[str, OpSums]:
    """Return one entry per op name with a formula, over all its calls and their subtrees.

    Entries overlap (`aten::linear` holds its `aten::addmm`) and must not be summed.
    """
    entries = {}
    for row in run.op_sums.itertuples(index=False):
        # Python's numbers: a damaged trace may have times so short that numpy warns of infinity.
        flops = float(row.matmul_flops + row.vector_flops)
        time_s = float(row.time_us) / 1e6
        sums = OpSums(
            calls=int(row.calls),
            counted_calls=int(row.counted_calls),
            matmul_flops=row.matmul_flops,
            vector_flops=row.vector_flops,
            time_us=row.time_us,
            achieved_flops_per_s=flops / time_s if time_s > 0 else math.nan,
        )
        if not math.isnan(row.flops_at_most):  # bounded: values decide
            sums = msgspec.structs.replace(sums, flops_at_most=row.flops_at_most)
        entries[str(row.op)] = sums
    return entries


def _with_whole_counts(value: Any) -> Any:
    """Return `value` with each number of FLOPs as an integer: tables hold them as floats."""
    if isinstance(value, list | tuple):
        return [_with_whole_counts(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    fields = {}
    for name, inner in value.items():
        counts = isinstance(inner, float) and is_count(str(name))
        fields[name] = whole(inner) if counts else _with_whole_counts(inner)
    return fields
