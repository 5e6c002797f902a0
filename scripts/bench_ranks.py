#!/usr/bin/env python
"""Reading the ranks of a job: throughput by workers, and memory of the process that asks.

    scripts/bench_ranks.py TRACE.json.gz … [--ranks 8 64 512] [--workers 1 2] [--seed 0]

The job is made of the traces, one after the other again and again: each rank's times are shifted
and stretched by up to 2 %, and its ids shifted, both by the seed. CPU seconds are of all processes;
the machine may be busy, so compare those within one run. Memory is the asking process's own peak.
"""

import argparse
import gzip
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import orjson

IDS = ("correlation", "External id", "external id")
SHIFT_US = 1e6  # clocks of machines differ by so much at most here
STRETCH_FRAC = 0.02  # how much longer a rank may take than the one it is made of
ASK = """
import resource, sys, time
from flopprof.api import analyse_traces
if __name__ == "__main__":
    begin = time.perf_counter()
    run = analyse_traces(sys.argv[2], workers=int(sys.argv[1]))
    wall_s = time.perf_counter() - begin
    own = resource.getrusage(resource.RUSAGE_SELF)
    others = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime
    print(wall_s, cpu_s, own.ru_maxrss / 1024, run.totals.flops)
"""


def read(path: Path) -> dict[str, Any]:
    """Return the trace in a file, by gzip or plain."""
    packed = path.read_bytes()
    text = gzip.decompress(packed) if packed[:2] == b"\x1f\x8b" else packed
    trace: dict[str, Any] = orjson.loads(text)
    return trace


def as_rank(trace: dict[str, Any], rank: int, ranks: int, chance: random.Random) -> dict[str, Any]:
    """Return a trace as that of a rank of a job: times shifted and stretched, ids shifted."""
    shift_us = chance.uniform(0, SHIFT_US)
    stretch = 1 + chance.uniform(0, STRETCH_FRAC)
    more = chance.randrange(1, 1_000_000)
    timed = [event["ts"] for event in trace["traceEvents"] if event.get("ph") == "X"]
    begin_us = min(timed)
    events = [_moved(event, begin_us, shift_us, stretch, more) for event in trace["traceEvents"]]
    job = {**trace.get("distributedInfo", {}), "rank": rank, "world_size": ranks}
    return {**trace, "distributedInfo": job, "traceEvents": events}


def _moved(
    event: dict[str, Any], begin_us: float, shift_us: float, stretch: float, more: int
) -> dict[str, Any]:
    moved = dict(event)
    if isinstance(event.get("ts"), int | float):
        moved["ts"] = begin_us + shift_us + (event["ts"] - begin_us) * stretch
    if isinstance(event.get("dur"), int | float):
        moved["dur"] = event["dur"] * stretch
    args = event.get("args")
    if isinstance(args, dict):
        ids = {key: args[key] + more for key in IDS if type(args.get(key)) is int}
        moved["args"] = {**args, **ids}
    return moved


def write_job(traces: list[dict[str, Any]], folder: Path, ranks: int, seed: int) -> int:
    """Write the ranks of a job into a folder, and return how many events they have."""
    chance = random.Random(seed)
    events = 0
    for rank in range(ranks):
        trace = as_rank(traces[rank % len(traces)], rank, ranks, chance)
        (folder / f"rank{rank}.json.gz").write_bytes(gzip.compress(orjson.dumps(trace), 1))
        events += len(trace["traceEvents"])
    return events


def main() -> None:
    """Print a row per number of ranks and of workers."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("traces", type=Path, nargs="+")
    parser.add_argument("--ranks", type=int, nargs="+", default=[8])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    traces = [read(path) for path in args.traces]
    header = f"{'ranks':>6} {'workers':>7} {'events':>10} {'wall s':>8} {'CPU s':>8}"
    print(f"{header} {'ranks/s':>8} {'events/s':>10} {'client MB':>10}")
    for ranks in args.ranks:
        with tempfile.TemporaryDirectory() as folder:
            events = write_job(traces, Path(folder), ranks, args.seed)
            script = Path(folder) / "ask.py"  # a file, as processes that are spawned import it
            script.write_text(ASK)
            totals = set()
            for workers in args.workers:
                command = [sys.executable, str(script), str(workers), f"{folder}/rank*.json.gz"]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                wall_s, cpu_s, peak, flops = map(float, done.stdout.split())
                totals.add(flops)
                row = f"{ranks:6} {workers:7} {events:10} {wall_s:8.1f} {cpu_s:8.1f}"
                row += f" {ranks / wall_s:8.2f} {events / wall_s:10.0f} {peak:10.0f}"
                print(row, flush=True)
            if len(totals) > 1:
                sys.exit(f"FLOPs differ by the number of workers: {sorted(totals)}")


if __name__ == "__main__":
    main()
