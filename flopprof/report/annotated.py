"""The trace itself, written again with what a run knows of its ops and kernels."""

import gzip
import math
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import orjson
import pandas as pd

from flopprof.formulas import COMPILED
from flopprof.reconcile import owners
from flopprof.run import Run, replacing
from flopprof.trace.stream import stream_events

BINS = 1000  # of the counter tracks: what a screen shows
_SITE = ["op", "module_path", "phase", "input_shapes", "dtype"]
_Facts = dict[tuple[Any, ...], dict[str, Any]]


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
    origin = run.meta["trace"]["origin_us"]
    by_op, by_kernel = _keyed(run, ops)
    header: dict[str, Any] = {}
    with replacing(target) as unfinished:
        opened = gzip.open if target.suffix == ".gz" else open
        with cast(IO[bytes], opened(unfinished, "wb")) as file:
            file.write(b'{"traceEvents":[')
            for events in stream_events(Path(source), header):
                for event in events:
                    if type(event) is dict and event.get("ph") == "X":
                        _annotate(event, by_op, by_kernel, origin)
                if events:
                    file.write(orjson.dumps(events)[1:-1] + b",\n")
            tracks = orjson.dumps(_counters(run, ops, origin))[1:-1]
            rest = orjson.dumps({"flopprof": run.meta["flopprof"], **header})[1:]
            file.write((tracks or b"{}") + b"]," + rest)
    return target


def _op_facts(run: Run) -> pd.DataFrame:
    """Return, per op, its counted op (`owner`), FLOPs, bytes, rate, share of the roof, verdict."""
    found = run.ops.astype(dict.fromkeys(_SITE, "str"))
    sites = run.sites.drop_duplicates(_SITE)[[*_SITE, "attainable_flops_per_s", "verdict"]]
    found = found.merge(sites.astype(dict.fromkeys(_SITE, "str")), on=_SITE, how="left")
    owner = np.array(owners(run.ops), dtype=int)
    walked = owner == np.arange(len(found))
    found["owner"] = owner
    found["verdict"] = found["verdict"].fillna("").where(walked, "")
    found["FLOPs"] = found["matmul_flops"] + found["vector_flops"]
    time_us = found["device_us" if len(run.kernels) else "cpu_us"]
    found["FLOP/s"] = found["FLOPs"] / time_us.where(time_us > 0) * 1e6
    found["% of roof"] = 100 * found["FLOP/s"] / found["attainable_flops_per_s"].where(walked)
    return found.rename(columns={"min_bytes": "bytes"})


_SHOWN = ["FLOPs", "bytes", "FLOP/s", "% of roof", "verdict"]


def _keyed(run: Run, ops: pd.DataFrame) -> tuple[_Facts, _Facts]:
    """Return what to write into events: ops and kernels by what both event and table tell."""
    shown = [_plain(row) for row in ops[_SHOWN].to_dict("records")]
    keys = zip(ops["thread"].astype("str"), ops["start_us"], ops["cpu_us"], ops["op"], strict=True)
    by_op = dict(zip(keys, shown, strict=True))
    owner, names = ops["owner"].tolist(), ops["op"].tolist()
    by_kernel: _Facts = {}
    columns = ("start_us", "duration_us", "correlation_id", "op_id", "kind")
    for start, length, launch, op, kind in zip(*(run.kernels[c] for c in columns), strict=True):
        facts = {"verdict": "hidden"} if kind == "compute" else {}
        if op >= 0 and kind == "compute":
            facts = {"counted op": names[owner[op]], **shown[owner[op]]}
        by_kernel[start, length, str(launch)] = facts
    return by_op, by_kernel


def _plain(row: dict[Any, Any]) -> dict[str, Any]:
    """Return what is known of a row; counts as integers."""
    known = {str(key): value for key, value in row.items() if value == value and value != ""}
    whole = [k for k in ("FLOPs", "bytes") if k in known and known[k] < 1 << 63]
    return known | {k: int(known[k]) for k in whole}


def _annotate(event: dict[str, Any], by_op: _Facts, by_kernel: _Facts, origin: float) -> None:
    start, length = event.get("ts"), event.get("dur", 0)
    args = event.get("args")
    if not isinstance(start, int | float) or not isinstance(length, int | float):
        return
    name = str(event.get("name", ""))
    if name.startswith("Torch-Compiled Region"):
        name = COMPILED
    start, end = float(start), float(start) + float(length)
    where = f"{event.get('pid')}/{event.get('tid')}"
    facts = by_op.get((where, start - origin, end - start, name))
    if facts is None and isinstance(args, dict):
        launch = str(args.get("correlation", -1))
        facts = by_kernel.get((start - origin, float(length), launch))
    if facts:
        event["args"] = {**(args if isinstance(args, dict) else {}), **facts}


def _counters(run: Run, ops: pd.DataFrame, origin: float) -> list[dict[str, Any]]:
    """Return the counter events: what runs at each time, averaged over `BINS` parts of the run."""
    busy = run.kernels[run.kernels["kind"] == "compute"]
    if len(run.kernels):
        owner = np.where(busy["op_id"] >= 0, ops["owner"].to_numpy()[busy["op_id"]], -1)
        rate = np.where(owner >= 0, ops["FLOP/s"].to_numpy()[owner], math.nan)
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
        for ts, value in zip(edges[:-1].tolist(), values.tolist(), strict=True)
    ]


def _ramps(starts: np.ndarray, weights: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return Σ weight × time since start, over all that has begun, at each of `times`."""
    order = np.argsort(starts)
    sums = np.concatenate(([0.0], np.cumsum(weights[order])))
    moments = np.concatenate(([0.0], np.cumsum((weights * (starts - times[0]))[order])))
    begun = np.searchsorted(starts[order], times, side="right")
    ramps: np.ndarray = (times - times[0]) * sums[begun] - moments[begun]
    return ramps
