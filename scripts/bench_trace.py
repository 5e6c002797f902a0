#!/usr/bin/env python
"""Cost of reading a trace, against json.load and orjson: CPU seconds and peak memory.

    scripts/bench_trace.py TRACE.json.gz [--events 10000 100000 1000000 10000000] [--repeats 3]
                           [--readers json.load flopprof command] [--peers DIR]

The file read is TRACE, repeated with shifted times and ids until it has so many events. flopprof's
figure includes links, FLOPs and sites; the command's tables, report and chart too; the first two
only parse, HTA (in DIR, by pip install --target DIR HolisticTraceAnalysis) makes a table of events.
Each reads in a process of its own, in turn; what is printed is the median of the repeats with the
lowest and the highest, and the median of ratios within one turn: the machine may be busy.
"""

import argparse
import gzip
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import orjson

PRELUDE = "import resource, sys, time; path = sys.argv[1]\n"
REPORT = """
usage = resource.getrusage(resource.RUSAGE_SELF)
print(usage.ru_utime + usage.ru_stime - before, usage.ru_maxrss / 1024)
"""
START = "now = resource.getrusage(resource.RUSAGE_SELF); before = now.ru_utime + now.ru_stime\n"
READERS = {
    "json.load": "import json\n" + START + "trace = json.load(open(path))",
    "orjson": "import orjson\n" + START + "trace = orjson.loads(open(path, 'rb').read())",
    "flopprof": "from flopprof.trace.read import read_trace\n"
    "from flopprof.assemble import as_call\n"
    "from flopprof.judge.reconcile import reconcile\n"
    "from flopprof.tables import MODULE_CALLS, ROOFLINES\n" + START + "t = read_trace(path)\n"
    "reconcile(MODULE_CALLS.empty(), [as_call(t)], ROOFLINES.empty(), dtype='float32')",
}
READERS["command"] = (
    "from flopprof.cli import main\n"
    + START
    + "main(['trace', path, '-o', path + '.flopprof', '--force'])"
)
READERS["HTA"] = (
    "import logging; logging.disable()\n"
    "from hta.trace_analysis import TraceAnalysis\n"
    + START
    + "TraceAnalysis(trace_files={0: path})"
)
IDS = ("correlation", "External id", "external id")
BETWEEN_US = 1000  # one copy of a trace and the next


def ids_of(event: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return under which keys of its arguments an event has an id, each with the arguments."""
    args = event.get("args") or {}
    return [(key, args) for key in IDS if type(args.get(key)) is int]


def replicate(source: Path, target: Path, wanted: int) -> int:
    """Write a trace of at least `wanted` events, all from `source`, and return how many."""
    packed = source.read_bytes()
    trace = orjson.loads(gzip.decompress(packed) if packed[:2] == b"\x1f\x8b" else packed)
    events = trace.pop("traceEvents")
    timed = [event for event in events if event.get("ph") == "X"]
    start_us = min(event["ts"] for event in timed)
    end_us = max(event["ts"] + event.get("dur", 0) for event in timed)
    ids = [args[key] for event in timed for key, args in ids_of(event)]
    step = max(ids) + 1
    copies = math.ceil(wanted / len(events))
    with target.open("w") as file:
        file.write(json.dumps(trace)[:-1] + ', "traceEvents": [')
        for copy in range(copies):
            for number, event in enumerate(events):
                args = event.get("args") or {}
                moved = {key: args[key] + copy * step for key, args in ids_of(event)}
                later = dict(event)
                if "ts" in event:
                    later["ts"] = event["ts"] + copy * (end_us - start_us + BETWEEN_US)
                if moved:
                    later["args"] = {**args, **moved}
                file.write((",\n" if copy or number else "") + json.dumps(later))
        file.write("]}")
    return copies * len(events)


def cost(reader: str, path: Path, peers: Path | None) -> tuple[float, float]:
    """Return CPU seconds and peak memory in MB of one reading."""
    command = [sys.executable, "-c", PRELUDE + READERS[reader] + REPORT, str(path)]
    environment = {**os.environ, "PYTHONPATH": str(peers)} if reader == "HTA" else None
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    cpu_s, peak_mb = map(float, done.stdout.split()[-2:])  # behind what the command prints
    return cpu_s, peak_mb


def main() -> None:
    """Print a row per size and reader."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("trace", type=Path)
    parser.add_argument("--events", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--readers", nargs="+", choices=READERS, default=[*READERS][:-1])
    parser.add_argument("--peers", type=Path, help="folder in which HTA is installed")
    args = parser.parse_args()
    readers = [*args.readers, "HTA"] if args.peers and "HTA" not in args.readers else args.readers
    print(f"{'events':>9} {'MB':>6}  {'reader':10} {'CPU s':>22}  × {readers[0]:20} {'peak MB':>8}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        for wanted in args.events:
            events = replicate(args.trace, path, wanted)
            size = path.stat().st_size / 1e6
            turns = [
                {reader: cost(reader, path, args.peers) for reader in readers}
                for _ in range(args.repeats)
            ]
            for reader in readers:
                costs = [turn[reader][0] for turn in turns]
                ratios = [turn[reader][0] / turn[readers[0]][0] for turn in turns]
                peak_mb = statistics.median(turn[reader][1] for turn in turns)
                row = (
                    f"{events:9} {size:6.0f}  {reader:10} {spread(costs):>22}  {spread(ratios):22}"
                )
                print(f"{row} {peak_mb:8.0f}", flush=True)


def spread(values: list[float]) -> str:
    """Return the median, and the lowest and the highest."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
