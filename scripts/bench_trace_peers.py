#!/usr/bin/env python
"""Traces beside other tools: what each reads of them, FLOPs where it has any, time and memory.

    scripts/bench_trace_peers.py TRACE.json.gz … [--peers DIR] [-o results/trace_peers.csv]

A row per trace and tool, the median of three processes: CPU seconds of the call, without imports,
and the process's peak memory; `computing_us` is the time in which any compute kernel runs. The rows
of json.load are the referee: what the file holds, in a dozen lines. HTA is Meta's Holistic Trace
Analysis: pip install --target DIR HolisticTraceAnalysis. AMD's TraceLens is not compared: it is no
package on PyPI, where another project has that name (it evaluates agents).
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

REPEATS = 3
LONGEST_NOTE = 120  # letters
FIGURES = ("events", "kernels", "computing_us", "flops", "cpu_s", "peak_mb")
COLUMNS = ("trace", "tool", "version", *FIGURES, "note")
PRELUDE = """
import contextlib, importlib.metadata, json, logging, os, resource, sys
logging.disable()
path = sys.argv[1]
def cpu_s():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
"""
REPORT = """
found["cpu_s"] = cpu_s() - before
found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps(found))
"""
TOOLS = {
    "json.load": """
import gzip, re
before = cpu_s()
whole = json.load(gzip.open(path))
spans = [
    (event["ts"], event["ts"] + event["dur"])
    for event in whole["traceEvents"]
    if event.get("ph") == "X" and event.get("cat", "").lower() == "kernel"
    and not re.search("nccl|rccl", event["name"])
]
computing_us = 0.0
end = -1.0
for start, stop in sorted(spans):
    if stop > end:
        computing_us += stop - max(start, end)
        end = stop
found = {
    "version": sys.version.split()[0],
    "events": len(whole["traceEvents"]),
    "kernels": len(spans),
    "computing_us": computing_us,
    "flops": None,
    "note": "what the file holds, in a dozen lines: the referee",
}
""",
    "flopprof": """
import flopprof
from flopprof.api import analyse_traces
before = cpu_s()
run = analyse_traces(path)
facts = run.provenance.trace
found = {
    "version": flopprof.__version__,
    "events": len(run.ops) + len(run.kernels),
    "kernels": facts.kernels,
    "computing_us": facts.device_busy_us,
    "flops": run.totals.flops,
    "note": "events are ops and kernels",
}
""",
    "HTA": """
with contextlib.redirect_stdout(sys.stderr):
    from hta.common.trace_parser import ParserConfig
    from hta.trace_analysis import TraceAnalysis
    before = cpu_s()
    analysis = TraceAnalysis(trace_files={0: path})
    events = analysis.t.get_trace(0)
    kinds, kernels = analysis.get_gpu_kernel_breakdown(visualize=False)
found = {
    "version": importlib.metadata.version("HolisticTraceAnalysis"),
    "events": len(events),
    "kernels": int((events["stream"] >= 0).sum()),
    "computing_us": float(
        kinds.loc[kinds["kernel_type"].str.contains("COMPUTATION"), "sum"].sum()
    ),
    "flops": None,
    "note": "no FLOPs; kernels with copies and collectives; times are rounded down to whole µs",
}
""",
}


def measured(tool: str, trace: Path, peers: Path | None) -> dict[str, Any]:
    """Return a row: the medians, or why there is none."""
    path = [os.environ.get("PYTHONPATH", "")]
    if peers is not None and tool != "flopprof":
        path = [str(peers)]
    code = PRELUDE + TOOLS[tool] + REPORT
    answers = []
    for _ in range(REPEATS):
        done = subprocess.run(
            [sys.executable, "-c", code, str(trace)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            told = done.stderr.strip().splitlines() or ["it ended without a word"]
            return {"note": f"failed: {told[-1][:LONGEST_NOTE]}"}
        answers.append(json.loads(done.stdout.splitlines()[-1]))
    row = dict(answers[0])
    for figure in ("cpu_s", "peak_mb"):
        row[figure] = round(statistics.median(answer[figure] for answer in answers), 2)
    return row


def main() -> None:
    """Print a row per trace and tool, and write them as CSV."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("traces", type=Path, nargs="+")
    parser.add_argument("--peers", type=Path, help="folder in which the other tools are installed")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    rows = []
    for trace in args.traces:
        for tool in TOOLS:
            row = {"trace": trace.name, "tool": tool, **measured(tool, trace, args.peers)}
            rows.append(row)
            print("  ".join(str(row.get(column, "")) for column in COLUMNS), flush=True)
    if args.output:
        with args.output.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
