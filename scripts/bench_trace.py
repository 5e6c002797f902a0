#!/usr/bin/env python
"""Cost of reading a trace, against json.load and orjson: CPU seconds and peak memory, one run each.

    scripts/bench_trace.py TRACE.json.gz [--events 100000 1000000 3000000]

The file read is TRACE, repeated with shifted times and ids until it has so many events. flopprof's
figure includes links, FLOPs and sites; the command's tables, report and chart too; the first two
only parse. Ratios within one run are what to compare: the machine may be busy.
"""

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import orjson

PRELUDE = "import resource, sys, time; path = sys.argv[1]\n"
REPORT = """
usage = resource.getrusage(resource.RUSAGE_SELF)
print(usage.ru_utime + usage.ru_stime - before, usage.ru_maxrss / 1024)
"""
START = "now = resource.getrusage(resource.RUSAGE_SELF); before = now.ru_utime + now.ru_stime\n"
READERS = {
    "json.load": "import json\n" + START + "found = json.load(open(path))",
    "orjson": "import orjson\n" + START + "found = orjson.loads(open(path, 'rb').read())",
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
IDS = ("correlation", "External id", "external id")


def replicate(source: Path, target: Path, wanted: int) -> int:
    """Write a trace of at least `wanted` events, all from `source`, and return how many."""
    packed = source.read_bytes()
    trace = orjson.loads(gzip.decompress(packed) if packed[:2] == b"\x1f\x8b" else packed)
    events = trace.pop("traceEvents")
    timed = [e for e in events if e.get("ph") == "X"]
    start, end = min(e["ts"] for e in timed), max(e["ts"] + e.get("dur", 0) for e in timed)
    ids = [e["args"][k] for e in timed for k in IDS if isinstance(e.get("args", {}).get(k), int)]
    step, copies = max(ids) + 1, -(-wanted // len(events))
    with target.open("w") as file:
        file.write(json.dumps(trace)[:-1] + ', "traceEvents": [')
        for copy in range(copies):
            for number, event in enumerate(events):
                args = event.get("args") or {}
                moved = {k: args[k] + copy * step for k in IDS if type(args.get(k)) is int}
                later = dict(event)
                if "ts" in event:
                    later["ts"] = event["ts"] + copy * (end - start + 1000)
                if moved:
                    later["args"] = {**args, **moved}
                file.write((",\n" if copy or number else "") + json.dumps(later))
        file.write("]}")
    return copies * len(events)


def main() -> None:
    """Print a row per size and reader."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("trace", type=Path)
    parser.add_argument("--events", type=int, nargs="+", default=[100_000, 1_000_000, 3_000_000])
    args = parser.parse_args()
    print(f"{'events':>9} {'MB':>6}  {'reader':10} {'CPU s':>7} {'× json.load':>11} {'peak MB':>8}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        for wanted in args.events:
            events = replicate(args.trace, path, wanted)
            size = path.stat().st_size / 1e6
            base = 0.0
            for name, code in READERS.items():
                command = [sys.executable, "-c", PRELUDE + code + REPORT, str(path)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                cpu, peak = map(float, done.stdout.split()[-2:])  # behind what the command prints
                base = base or cpu
                row = f"{events:9} {size:6.0f}  {name:10} {cpu:7.2f} {cpu / base:11.2f} {peak:8.0f}"
                print(row, flush=True)


if __name__ == "__main__":
    main()
