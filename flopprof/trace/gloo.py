"""Collectives that ran on a CPU: gloo marks them in the trace of the rank, beside its ops."""

import math
from typing import Any

import numpy as np
import pandas as pd

from flopprof.dtypes import itemsize
from flopprof.formulas import OpCall
from flopprof.tables import COLLECTIVES
from flopprof.trace.events import Events
from flopprof.trace.gaps import busy_until
from flopprof.trace.messages import collective_kind

_SENDING = ("c10d::", "_c10d_functional::", "c10d_functional::", "gloo:")
_GIVES_A_PART = ("all_gather", "gather")
"""Of these an event tells what one rank gives; it gets as much from each."""


def collectives_frame(
    events: Events, ops: pd.DataFrame, rank: int, origin_us: float, job: dict[str, Any]
) -> pd.DataFrame:
    """Return the table COLLECTIVES of a trace; empty where gloo ran none.

    Args:
        events: Those of the trace.
        ops: Its table OPS.
        rank: Number of the process.
        origin_us: Time stamp at which tables count from zero.
        job: What the trace says of the job: `distributedInfo`.
    """
    if not events.host_collectives:
        return COLLECTIVES.empty()
    name, size = _only_group(job)
    busy = busy_intervals(ops)
    rows = []
    for told, start_us, duration_us, signature in events.host_collectives:
        kind = collective_kind(told.partition(":")[2])
        given_bytes = _bytes_of(events.signatures[signature].call)
        begin_us = start_us - origin_us
        rows.append(
            {
                "rank": rank,
                "collective": kind,
                "process_group": name,
                "group_size": size,
                "message_bytes": given_bytes * size if kind in _GIVES_A_PART else given_bytes,
                "start_us": begin_us,
                "duration_us": duration_us,
                "overlapped_us": overlap_us(busy, begin_us, begin_us + duration_us),
            }
        )
    return COLLECTIVES.from_rows(sorted(rows, key=lambda row: float(row["start_us"])))


def busy_intervals(ops: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return start and end, in µs, of a CPU's ops that compute: no free ones, none that send."""
    sends = ops["op"].astype("str").str.startswith(_SENDING)
    computes = ops["counted"] & ~ops["kind"].isin(("free", "communication")) & ~sends
    starts_us = ops.loc[computes, "start_us"].to_numpy()
    return starts_us, starts_us + ops.loc[computes, "cpu_us"].to_numpy()


def overlap_us(busy: tuple[np.ndarray, np.ndarray], begin_us: float, end_us: float) -> float:
    """Return how long of this stretch any of the intervals was under way."""
    before_us, until_us = busy_until(*busy, np.array([begin_us, end_us]))
    return float(max(until_us - before_us, 0.0))


def times_on_cpu(ops: pd.DataFrame, sent: pd.DataFrame) -> dict[str, float]:
    """Return what a rank without kernels did beside what it sent; nothing where it sent nothing.

    Args:
        ops: Table OPS.
        sent: Table COLLECTIVES.
    """
    if not len(sent):
        return {}
    starts, ends = busy_intervals(ops)
    busy_us = _union(starts, ends)
    begins = sent["start_us"].to_numpy()
    until = begins + sent["duration_us"].to_numpy()
    talking_us = _union(begins, until)
    either_us = _union(np.concatenate((starts, begins)), np.concatenate((ends, until)))
    overlapped_us = busy_us + talking_us - either_us
    return {
        "device_busy_us": busy_us,
        "communication_us": talking_us,
        "all_kernels_us": either_us,
        "communication_frac": talking_us / either_us if either_us else math.nan,
        "overlapped_us": overlapped_us,
        "overlap_frac": overlapped_us / talking_us if talking_us else math.nan,
    }


def _union(starts: np.ndarray, ends: np.ndarray) -> float:
    return float(busy_until(starts, ends, math.inf))


def _only_group(job: dict[str, Any]) -> tuple[str, float]:
    """Return name and size of the job's process group, where it has one: events tell none."""
    groups = job.get("pg_config")
    if not isinstance(groups, list) or len(groups) != 1 or not isinstance(groups[0], dict):
        return "", math.nan
    name = groups[0].get("pg_name")
    size = groups[0].get("pg_size")
    return (
        name if isinstance(name, str) else "",
        float(size) if type(size) is int and size > 0 else math.nan,
    )


def _bytes_of(call: OpCall) -> float:
    """Return the bytes of all tensors of a call; NaN where the trace tells no shapes or types."""
    sizes = [itemsize(dtype) for dtype in call.dtypes]
    if not call.shapes or len(sizes) != len(call.shapes) or None in sizes:
        return math.nan
    elements = [math.prod(shape) for shape in call.shapes]
    return float(sum(n * (size or 0) for n, size in zip(elements, sizes, strict=True)))
