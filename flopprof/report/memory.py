"""What a call needs of memory, for JSON and the summary."""

import msgspec

from flopprof.provenance import CallProvenance, Memory
from flopprof.report.answer import json_block
from flopprof.run import Run
from flopprof.units import si

_NAMES = {
    "parameters_bytes": "parameters",
    "buffers_bytes": "buffers",
    "gradients_bytes": "gradients",
    "optimizer_bytes": "optimizer",
    "activations_bytes": "saved for backward",
    "kv_cache_bytes": "KV cache",
}


@json_block("memory")
def memory(run: Run) -> Memory | None:
    """What one call needs of memory; null where it was not asked for, and of a trace."""
    provenance = run.provenance
    estimated = provenance.memory
    if not isinstance(provenance, CallProvenance) or provenance.telemetry is None:
        return estimated
    measured = provenance.telemetry.peak_memory_bytes
    if not measured > 0:
        return estimated
    return msgspec.structs.replace(estimated or Memory(), peak_bytes=measured, peak_source="device")


def memory_line(run: Run) -> str:
    """Return the parts that there are, and the peak; "" where nothing is known."""
    needed = memory(run)
    if needed is None:
        return ""
    values = {label: getattr(needed, name) for name, label in _NAMES.items()}
    parts = [f"{label} {si(value, 'B')}" for label, value in values.items() if value > 0]
    if needed.peak_bytes > 0:
        by = "measured" if needed.peak_source == "device" else "by shapes"
        parts.append(f"peak {si(needed.peak_bytes, 'B')} ({by})")
    return ", ".join(parts)
