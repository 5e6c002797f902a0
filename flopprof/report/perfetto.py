"""The trace itself, written again with what a run knows of its ops and kernels."""

import gzip
import math
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np
import orjson
import pandas as pd

from flopprof.files import replacing
from flopprof.formulas import COMPILED
from flopprof.judge.roofs import is_above
from flopprof.judge.walk import owners
from flopprof.provenance import TraceProvenance
from flopprof.run import Run
from flopprof.trace.stream import stream_events

BINS = 1000  # of the counter tracks: what a screen shows
_EXECUTED = {  # by hardware's counters, where they were joined
    "executed_flops": "executed FLOPs",
    "executed_matmul_flops": "executed matmul FLOPs",
    "useful_frac": "counted / executed",
    "dram_bytes": "DRAM bytes",
    "l2_bytes": "L2 bytes",
    "l1_bytes": "L1 bytes",
}
_TITLES = {"min_bytes": "bytes", "flops_at_most": "FLOPs at most", **_EXECUTED}
_SHOWN = ["FLOPs", "FLOPs at most", "bytes", "FLOP/s", "% of roof", "roof", "verdict"]
_SHOWN += _EXECUTED.values()
_COUNTS = ("FLOPs", "FLOPs at most", "bytes", "executed FLOPs", "executed matmul FLOPs")
_LARGEST = 1 << 63  # that JSON's readers take as an integer


def annotate_trace(source: str | Path, target: str | Path, run: Run) -> Path:
    """Write the trace at `source` to `target` with the figures of `run` in it, and return `target`.

    Ops get FLOPs, bytes, FLOP/s, share of the roof and verdict in their args; a kernel gets those
    of its op, over all of that op's kernels. Two counter tracks show FLOP/s and coverage over time.
    Gzipped where `target` ends in .gz. Memory stays bounded: events go through in chunks.

    Raises:
        UsageError: `target` cannot be written.
        LoadError: `source` is damaged.
    """
    target = Path(target)
    run = _as_traced(run)
    ops = _op_facts(run)
    write = _writer(run, ops)
    header: dict[str, Any] = {}
    with replacing(target) as unfinished:
        opened = gzip.open if target.suffix == ".gz" else open
        with cast(IO[bytes], opened(unfinished, "wb")) as file:
            file.write(b'{"traceEvents":[')
            for events in stream_events(Path(source), header):
                for event in events:
                    if type(event) is dict and event.get("ph") == "X":
                        write(event)
                if events:
                    file.write(orjson.dumps(events)[1:-1] + b",\n")
            tracks = orjson.dumps(_counters(run, ops))[1:-1]
            rest = orjson.dumps({"flopprof": run.provenance.environment.flopprof, **header})[1:]
            file.write((tracks or b"{}") + b"]," + rest)
    return target


def _as_traced(run: Run) -> Run:
    """Return the run; of one of several processes the part of rank 0, whose trace it has."""
    if "rank" not in run.ops:
        return run
    ops = run.ops[run.ops["rank"] == 0]
    kernels = run.kernels[run.kernels["rank"] == 0]
    return run.replaced(ops=ops, kernels=kernels)


def _op_facts(run: Run) -> pd.DataFrame:
    """Return, per op, its counted op (`owner`), FLOPs, bytes, rate, share of the roof, verdict."""
    ops = run.ops.copy()
    owner = owners(ops)
    walked = owner == np.arange(len(ops))
    sites = run.sites.set_index("site_id")[["attainable_flops_per_s", "verdict"]]
    of_site = sites.reindex(ops["site_id"].where(walked, -1))
    ops["owner"] = owner
    ops["verdict"] = of_site["verdict"].astype(object).fillna("").to_numpy()
    ops["FLOPs"] = ops["matmul_flops"] + ops["vector_flops"]
    time_us = ops["device_us" if len(run.kernels) else "cpu_us"]
    ops["FLOP/s"] = ops["FLOPs"] / time_us.where(time_us > 0) * 1e6
    share = ops["FLOP/s"] / of_site["attainable_flops_per_s"].to_numpy()
    ops["% of roof"] = 100 * share
    ops["roof"] = np.where(is_above(share), "exceeded: doubt the ceiling, or see the reason", "")
    return ops.rename(columns=_TITLES)


def _facts(columns: dict[str, list[Any]], row: int) -> dict[str, Any]:
    """Return what is known of an op; counts as integers."""
    facts = {}
    for name, column in columns.items():
        value = column[row]
        is_known = value != "" and value == value  # NaN equals nothing
        if not is_known:
            continue
        is_whole = name in _COUNTS and value < _LARGEST
        facts[name] = int(value) if is_whole else value
    return facts


def _writer(run: Run, ops: pd.DataFrame) -> Callable[[dict[str, Any]], None]:
    """Return a function that writes into an event what is known of its op or kernel.

    Events and rows are matched by what both tell: thread, times and name, or times and launch.
    """
    columns = {name: ops[name].tolist() for name in _SHOWN if name in ops}
    keys = zip(ops["thread"].astype("str"), ops["start_us"], ops["cpu_us"], ops["op"], strict=True)
    row_of = {key: row for row, key in enumerate(keys)}
    computing = run.kernels[run.kernels["kind"] == "compute"]
    columns_of_key = ["start_us", "duration_us", "correlation_id"]
    kernel_keys = computing[columns_of_key].itertuples(index=False, name=None)
    op_of_kernel = dict(zip(kernel_keys, computing["op_id"].tolist(), strict=True))
    owner = ops["owner"].tolist()
    names = ops["op"].tolist()
    origin_us = _origin_us(run)

    def write(event: dict[str, Any]) -> None:
        start = event.get("ts")
        length = event.get("dur", 0)
        if not isinstance(start, int | float) or not isinstance(length, int | float):
            return
        start_us = float(start) - origin_us
        cpu_us = float(start) + float(length) - float(start)  # rounded as the reader does
        row = row_of.get((_thread(event), start_us, cpu_us, _op_name(event)))
        args = event.get("args")
        args = args if isinstance(args, dict) else {}
        if row is not None:
            event["args"] = args | _facts(columns, row)
            return
        op = op_of_kernel.get((start_us, float(length), _launch(args)))
        if op == -1:
            event["args"] = args | {"verdict": "hidden"}
        elif op is not None:
            event["args"] = args | {"counted op": names[owner[op]]} | _facts(columns, owner[op])

    return write


def _thread(event: dict[str, Any]) -> str:
    """Return the thread of an event as the table of ops has it."""
    return f"{event.get('pid')}/{event.get('tid')}"


def _op_name(event: dict[str, Any]) -> str:
    """Return the op that an event is of, as the table of ops has it."""
    name = str(event.get("name", ""))
    return COMPILED if name.startswith("Torch-Compiled Region") else name


def _launch(args: dict[str, Any]) -> int:
    """Return the correlation id of a kernel's event; -1 where it tells none."""
    launch = str(args.get("correlation", -1))
    return int(launch) if launch.isdecimal() else -1


class _Stretches(NamedTuple):
    """What ran and how fast: times and lengths in µs, and FLOP/s, NaN where not known."""

    start_us: np.ndarray
    length_us: np.ndarray
    flops_per_s: np.ndarray


def _stretches(run: Run, ops: pd.DataFrame) -> _Stretches:
    """Return the kernels at the rate of their ops; the counted ops where there are none."""
    if not len(run.kernels):
        counted = ops[ops["owner"] == ops["op_id"]]
        columns = (counted[name].to_numpy() for name in ("start_us", "cpu_us", "FLOP/s"))
        return _Stretches(*columns)
    busy = run.kernels[run.kernels["kind"] == "compute"]
    owner = np.append(ops["owner"].to_numpy(), -1)[busy["op_id"]]  # the last is for -1
    rate = np.append(ops["FLOP/s"].to_numpy(dtype=float), math.nan)[owner]
    return _Stretches(busy["start_us"].to_numpy(), busy["duration_us"].to_numpy(), rate)


def _counters(run: Run, ops: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the counter events: what runs at each time, averaged over `BINS` parts of the run."""
    start_us, length_us, rate = _stretches(run, ops)
    end_us = start_us + length_us
    if not len(start_us) or not end_us.max() > start_us.min():
        return []
    edges = np.linspace(start_us.min(), end_us.max(), BINS + 1)

    def over(weight: np.ndarray) -> np.ndarray:
        """Return the weight of what runs, integrated over each part."""
        until = _ramps(start_us, weight, edges) - _ramps(end_us, weight, edges)
        part: np.ndarray = np.maximum(np.diff(until), 0.0)
        return part

    is_known = ~np.isnan(rate)
    flops_per_s = over(np.where(is_known, rate, 0.0)) / np.diff(edges)
    busy = over(np.ones(len(start_us)))
    covered = over(is_known.astype(float))
    coverage = 100 * np.divide(covered, busy, out=np.zeros(BINS), where=busy > 0)
    times_us = (edges + _origin_us(run)).tolist()
    tracks = {"FLOP/s": flops_per_s, "coverage %": np.minimum(coverage, 100.0)}
    return [
        {"ph": "C", "pid": "flopprof", "name": name, "ts": time_us, "args": {name: value}}
        for name, values in tracks.items()
        for time_us, value in zip(times_us, [*values.tolist(), 0.0], strict=True)  # and ends
    ]


def _ramps(starts: np.ndarray, weights: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return Σ weight × time since start, over all that has begun, at each of `times`."""
    order = np.argsort(starts)
    sums = np.concatenate(([0.0], np.cumsum(weights[order])))
    moments = np.concatenate(([0.0], np.cumsum((weights * (starts - times[0]))[order])))
    begun = np.searchsorted(starts[order], times, side="right")
    ramps: np.ndarray = (times - times[0]) * sums[begun] - moments[begun]
    return ramps


def _origin_us(run: Run) -> float:
    """Return the time stamp at which the run's tables count from zero."""
    provenance = run.provenance
    return provenance.trace.origin_us if isinstance(provenance, TraceProvenance) else 0.0
