"""Events of small traces made by hand."""

import json
from pathlib import Path
from typing import Any

LINEAR = {"Input Dims": [[4, 5], [6, 5], [6]], "Input type": ["float", "float", "float"]}
ADDMM = {"Input Dims": [[6], [4, 5], [5, 6]], "Input type": ["float", "float", "float"]}


def op(name: str, ts: Any, dur: float, tid: Any = 1, **args: Any) -> dict[str, Any]:
    args = {key.replace("_", " "): value for key, value in args.items()}
    event = {"ph": "X", "cat": "cpu_op", "name": name, "pid": 1, "tid": tid, "ts": ts, "dur": dur}
    return event | {"args": args}


def with_shapes(event: dict[str, Any], shapes: dict[str, Any]) -> dict[str, Any]:
    return event | {"args": event["args"] | shapes}


def launch(correlation: int, ts: float, tid: Any = 1) -> dict[str, Any]:
    return op("cudaLaunchKernel", ts, 1, tid, correlation=correlation) | {"cat": "cuda_runtime"}


def kernel(
    correlation: int, ts: float, dur: float, name: str = "gemm", cat: str = "kernel"
) -> dict[str, Any]:
    event = op(name, ts, dur, 7, correlation=correlation, stream=7, device=0)
    return event | {"cat": cat, "pid": 0}


def write_trace(path: Path, *events: Any, **header: Any) -> Path:
    """Write a trace file of these events and return its path."""
    path.write_text(json.dumps({"schemaVersion": 1, **header, "traceEvents": list(events)}))
    return path
