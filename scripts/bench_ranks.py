#!/usr/bin/env python
"""Reading the ranks of a job: throughput by workers, and memory of the process that asks.

    scripts/bench_ranks.py TRACE.json.gz … [--ranks 8 64 512] [--workers 1 2 dask] [--seed 0]

The job is made of the traces, one after the other again and again: each rank's times are shifted
and stretched by up to 2 %, and its ids shifted, both by the seed. CPU seconds are of all processes,
those of Dask's two workers and scheduler included; "× single" compares them with as many readings
of one trace alone in a process that is warm. The machine may be busy: compare within one run.
Memory is the asking process's own peak. Sites must be the same to the bit, whoever reads.
"""

import argparse
import gzip
import json
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
SINGLES = 12  # readings of one trace alone that are averaged
ASK = """
import hashlib, json, resource, sys, time
from glob import glob
from flopprof.api import analyse_traces
from flopprof.trace.workers import Workers

def cpu_s(who):
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime

def alone(files):
    analyse_traces(files[0])
    before = time.process_time()
    for file in files:
        analyse_traces(file)
    return (time.process_time() - before) / len(files)

def whole(workers, pattern):
    begin = time.perf_counter()
    run = analyse_traces(pattern, workers=workers)
    wall_s = time.perf_counter() - begin
    told = b"".join(table.to_csv().encode() for table in (run.sites, run.op_sums, run.kernel_sums))
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return wall_s, peak_mb, hashlib.sha256(told).hexdigest()

def by_dask(pattern):
    from distributed import LocalCluster
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        return whole(Workers(dask=cluster.scheduler_address), pattern)

if __name__ == "__main__":
    who, pattern, count = sys.argv[1:]
    if who == "single":
        print(json.dumps(alone(sorted(glob(pattern))[:int(count)])))
    else:
        found = by_dask(pattern) if who == "dask" else whole(int(who), pattern)
        cpu = cpu_s(resource.RUSAGE_SELF) + cpu_s(resource.RUSAGE_CHILDREN)
        print(json.dumps([cpu, *found]))
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


def ask(folder: Path, who: str) -> Any:
    """Return what a process of its own answers about the ranks in a folder."""
    script = folder / "ask.py"  # a file, as processes that are spawned import it
    script.write_text(ASK)
    command = [sys.executable, str(script), who, f"{folder}/rank*.json.gz", str(SINGLES)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Print a row per number of ranks and of workers."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("traces", type=Path, nargs="+")
    parser.add_argument("--ranks", type=int, nargs="+", default=[8])
    parser.add_argument("--workers", nargs="+", default=["1", "2"], help="numbers, and dask")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    traces = [read(path) for path in args.traces]
    header = (
        f"{'ranks':>6} {'workers':>7} {'events':>10} {'wall s':>8} {'CPU s':>8} {'× single':>8}"
    )
    print(f"{header} {'ranks/s':>8} {'events/s':>10} {'client MB':>10}", flush=True)
    for ranks in args.ranks:
        with tempfile.TemporaryDirectory() as folder:
            events = write_job(traces, Path(folder), ranks, args.seed)
            alone_s = ask(Path(folder), "single")
            answers = set()
            for workers in args.workers:
                cpu_s, wall_s, peak_mb, told = ask(Path(folder), workers)
                answers.add(told)
                row = f"{ranks:6} {workers:>7} {events:10} {wall_s:8.1f} {cpu_s:8.1f}"
                row += f" {cpu_s / (alone_s * ranks):8.2f}"
                row += f" {ranks / wall_s:8.2f} {events / wall_s:10.0f} {peak_mb:10.0f}"
                print(row, flush=True)
            if len(answers) > 1:
                sys.exit("the sites differ by who reads the ranks")


if __name__ == "__main__":
    main()
