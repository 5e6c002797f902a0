"""The trace itself, written again with what a run knows of its ops and kernels."""

import gzip
import math
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

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
    return ops.rename(columns={"min_bytes": "bytes", "flops_at_most": "FLOPs at most"})


_SHOWN = ["FLOPs", "FLOPs at most", "bytes", "FLOP/s", "% of roof", "roof", "verdict"]


def _facts(columns: dict[str, list[Any]], row: int) -> dict[str, Any]:
    """Return what is known of an op; counts as integers."""
    values = {name: column[row] for name, column in columns.items()}
    known = {name: v for name, v in values.items() if v == v and v != ""}
    whole = [n for n in ("FLOPs", "FLOPs at most", "bytes") if known.get(n, 1 << 63) < 1 << 63]
    return known | {name: int(known[name]) for name in whole}


def _writer(run: Run, ops: pd.DataFrame) -> Callable[[dict[str, Any]], None]:
    """Return a function that writes into an event what is known of its op or kernel.

    Events and rows are matched by what both tell: thread, times and name, or times and launch.
    """
    columns = {name: ops[name].tolist() for name in _SHOWN}
    keys = zip(ops["thread"].astype("str"), ops["start_us"], ops["cpu_us"], ops["op"], strict=True)
    by_op = {key: row for row, key in enumerate(keys)}
    computing = run.kernels[run.kernels["kind"] == "compute"]
    launches = (computing[c] for c in ("start_us", "duration_us", "correlation_id"))
    by_kernel = dict(zip(zip(*launches, strict=True), computing["op_id"].tolist(), strict=True))
    owner, names = ops["owner"].tolist(), ops["op"].tolist()
    origin = _origin_us(run)

    def write(event: dict[str, Any]) -> None:
        start, length = event.get("ts"), event.get("dur", 0)
        if not isinstance(start, int | float) or not isinstance(length, int | float):
            return
        name, args = str(event.get("name", "")), event.get("args")
        if name.startswith("Torch-Compiled Region"):
            name = COMPILED
        args = args if isinstance(args, dict) else {}
        where = f"{event.get('pid')}/{event.get('tid')}"
        start, end = float(start), float(start) + float(length)
        row = by_op.get((where, start - origin, end - start, name))
        if row is not None:
            event["args"] = args | _facts(columns, row)
            return
        launch = args.get("correlation", -1)
        launch = int(launch) if str(launch).isdecimal() else -1
        op = by_kernel.get((start - origin, float(length), launch))
        if op == -1:
            event["args"] = args | {"verdict": "hidden"}
        elif op is not None:
            event["args"] = args | {"counted op": names[owner[op]]} | _facts(columns, owner[op])

    return write


def _counters(run: Run, ops: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the counter events: what runs at each time, averaged over `BINS` parts of the run."""
    busy, origin = run.kernels.query("kind == 'compute'"), _origin_us(run)
    if len(run.kernels):
        owner = np.append(ops["owner"].to_numpy(), -1)[busy["op_id"]]  # the last is for -1
        rate = np.append(ops["FLOP/s"].to_numpy(dtype=float), math.nan)[owner]
        start, length = busy["start_us"].to_numpy(), busy["duration_us"].to_numpy()
    else:
        counted = ops[ops["owner"] == ops["op_id"]]
        rate, start, length = (counted[c].to_numpy() for c in ("FLOP/s", "start_us", "cpu_us"))
    if not len(start) or not (start + length).max() > start.min():
        return []
    edges = np.linspace(start.min(), (start + length).max(), BINS + 1)
    known = ~np.isnan(rate)

    def over(weight: np.ndarray) -> np.ndarray:
        """Return the weight of what runs, integrated over each part."""
        until = _ramps(start, weight, edges) - _ramps(start + length, weight, edges)
        part: np.ndarray = np.maximum(np.diff(until), 0.0)
        return part

    flops = over(np.where(known, rate, 0.0)) / np.diff(edges)
    every, covered = over(np.ones(len(start))), over(known.astype(float))
    share = 100 * np.divide(covered, every, out=np.zeros(BINS), where=every > 0)
    return [
        {"ph": "C", "pid": "flopprof", "name": name, "ts": ts + origin, "args": {name: value}}
        for name, values in (("FLOP/s", flops), ("coverage %", np.minimum(share, 100.0)))
        for ts, value in zip(edges.tolist(), [*values.tolist(), 0.0], strict=True)  # and ends
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
