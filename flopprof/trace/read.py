"""Turn a trace file, however large, into ops, kernels and gaps. Imports no torch.

Host events form a tree per thread, by time. Some are ops; ranges name modules; the rest (the
autograd engine's, the optimizer's, annotations) tell the phase, and their own time is overhead.
"""

import gc
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from flopprof.errors import LoadError
from flopprof.formulas import load_op_formulas
from flopprof.tables import OPS
from flopprof.trace.derive import derive_convolutions, derive_padding
from flopprof.trace.events import OP, Events, extend, take_events
from flopprof.trace.foreign import what_else
from flopprof.trace.kernels import (
    captured_launches,
    computing_nodes,
    give_kernels,
    kernels_frame,
    launch_nodes,
    link_kernels,
    promote_launchers,
)
from flopprof.trace.salvage import Damage
from flopprof.trace.signatures import Signature
from flopprof.trace.stream import stream_events
from flopprof.trace.tree import Tree, text_codes
from flopprof.units import file_text, safe_text


@dataclass(frozen=True, slots=True)
class Trace:
    """What a trace file holds: tables OPS, GAPS and KERNELS, and what is known around them."""

    ops: pd.DataFrame
    gaps: pd.DataFrame
    kernels: pd.DataFrame
    module_types: dict[str, str]
    devices: list[dict[str, Any]]
    info: dict[str, Any]


def read_trace(
    path: str | Path,
    *,
    profiler_flops: Mapping[int, float] | None = None,
    as_capture: bool = False,
) -> Trace:
    """Return the ops, kernels and gaps of the trace at `path`.

    Args:
        path: A Chrome trace by torch.profiler, `.json`, gzipped or not.
        profiler_flops: External id → FLOPs by `with_flops`, which no trace file has; 0 is unknown.
        as_capture: Put what graphs captured into `info["captured"]`: what each queued, in order,
            as kind, kernel's name ("" where it is not told) and op.

    Raises:
        UsageError: There is no such file.
        LoadError: It is no trace, damaged, or holds neither ops nor kernels.
    """
    load_op_formulas()
    header: dict[str, Any] = {}
    damage = Damage()
    found = Events()
    collecting = gc.isenabled()
    gc.disable()  # a trace's objects form no cycles, and walking them all doubles the time
    try:
        for events in stream_events(Path(path), header, damage):
            take_events(events, found)
    finally:
        if collecting:
            gc.enable()
    found.warnings.extend(damage.warnings(file_text(path)))
    if OP not in found.hosts[3] and (kind := what_else(damage.head)):
        raise kind.error(path)
    if not found.hosts[0] and not found.kernels[0]:
        raise _without_ops(path)
    if not found.has_ranges:
        extend(found.hosts, found.python_modules or found.annotations)
    trace = _build(found, header, profiler_flops or {}, as_capture=as_capture)
    if not len(trace.ops) and not found.has_ranges and not len(trace.kernels):
        raise _without_ops(path)
    return trace


def _without_ops(path: str | Path) -> LoadError:
    return LoadError(
        f"{file_text(path)} is a trace without ops",
        remedy="record it with ProfilerActivity.CPU as well",
    )


def _build(
    found: Events,
    header: dict[str, Any],
    profiler_flops: Mapping[int, float],
    *,
    as_capture: bool,
) -> Trace:
    """Build the trees and return the tables."""
    origin, latest = _span(found)
    tree = Tree(found, _order(found), origin)
    launching = launch_nodes(tree)
    links = link_kernels(tree, launching)
    captured = captured_launches(tree, launching) if as_capture else []
    queueing = {node for graph in captured for kind, _, node in graph if kind == "compute"}
    promote_launchers(tree, sorted(computing_nodes(tree, links) | queueing))
    if not found.calls.has_values:
        derive_convolutions(tree)
    derive_padding(tree)
    tree.walk()
    give_kernels(tree, links)
    job = header.get("distributedInfo")
    numbers = {k: n for k, n in job.items() if type(n) is int} if isinstance(job, dict) else {}
    rank = numbers.get("rank", 0)
    kernels, busy_us = kernels_frame(tree, rank, origin)
    found.launches.clear()
    nodes = np.flatnonzero(tree.rows >= 0)
    ops = OPS.empty()
    if len(nodes):
        ops = _ops_frame(tree, nodes, profiler_flops, on_device=len(kernels) > 0)
    compute = kernels[kernels["kind"] == "compute"]
    orphans = compute[compute["op_id"] == -1]
    if found.odd:
        found.warnings.append(f"{found.odd} events without finite times were left out")
    info = {
        "schema_version": header.get("schemaVersion"),
        "has_shapes": any(s.shapes for s in found.signatures),
        "has_values": found.calls.has_values,
        "rank": rank,
        "world_size": numbers.get("world_size", 1),
        "span_us": latest - origin,
        "steps": [(name, start - origin, length) for name, start, length in found.steps],
        "origin_us": origin,
        "kernel_time_us": float(compute["duration_us"].sum()) if len(kernels) else math.nan,
        "device_busy_us": busy_us,
        "unlinked_kernel_us": float(orphans["duration_us"].sum()) if len(kernels) else math.nan,
        "vendors": sorted(found.vendors),
        "captured": [_with_ops(graph, tree) for graph in captured],
        "warnings": found.warnings,
    }
    properties = header.get("deviceProperties") or header.get("computeProperties")  # of 2021
    devices = _devices(properties, found.warnings)
    return Trace(ops, tree.gaps_frame(), kernels, tree.module_types, devices, info)


def _with_ops(graph: list[tuple[str, str, int]], tree: Tree) -> list[tuple[str, str, int]]:
    """Return the graph's launches with the number of the op in place of the node's."""
    launches = []
    for kind, kernel, node in graph:
        op = node if tree.role[node] == OP else tree.op_parent[node]
        if op >= 0:
            launches.append((kind, kernel, int(tree.rows[op])))
    return launches


def _span(found: Events) -> tuple[float, float]:
    """Return when the first event begins and the last ends."""
    starts = np.frombuffer(found.kernels[6], "d")
    ends = starts + np.frombuffer(found.kernels[7], "d")
    begin = min(np.min(column, initial=math.inf) for column in (found.hosts[0], starts))
    latest = max(np.max(column, initial=-math.inf) for column in (found.hosts[1], ends))
    return float(begin), float(latest)


def _order(found: Events) -> np.ndarray:
    """Return the order of the host nodes: parents first, threads one after the other.

    That is by earlier start, then later end, then lower id. The thread that begins first comes
    first, so that forward ops are known before the backward's thread asks for them.
    """
    start, end, thread, *_, external, _, _ = (np.frombuffer(c, c.typecode) for c in found.hosts)
    begins = np.full(len(found.thread_names), math.inf)
    np.minimum.at(begins, thread, start)
    rank = np.argsort(np.argsort(begins, kind="stable"))
    order: np.ndarray = np.lexsort((external, -end, start, rank[thread]))
    return order


_DEVICE_TYPES = {
    "name": str,
    **dict.fromkeys(("id", "numSms", "totalGlobalMem", "warpSize", "computeMajor"), int),
}


def _devices(properties: Any, warnings: list[str]) -> list[dict[str, Any]]:
    """Return the devices' properties, less what is of no known form, with a warning."""
    if properties is None:
        return []
    listed = properties if isinstance(properties, list) else [properties]
    devices = [device for device in listed if isinstance(device, dict)]
    odd = ["a list of devices"] if len(devices) < len(listed) else []
    for device in devices:
        for key, kind in _DEVICE_TYPES.items():
            if key in device and type(device[key]) is not kind:
                odd.append(f"{key} {safe_text(device.pop(key), 60)!r}")
    if odd:
        warnings.append(f"deviceProperties are of no known form, left out: {', '.join(odd[:5])}")
    return devices


def _ops_frame(
    tree: Tree,
    nodes: np.ndarray,
    profiler_flops: Mapping[int, float],
    *,
    on_device: bool,
) -> pd.DataFrame:
    found = tree.found
    signatures = found.signatures
    labels = np.array(tree.label)[nodes]
    dtype = _dtypes(tree, signatures)

    def of(values: Any) -> Any:
        return np.array(values, dtype=object if isinstance(values[0], str) else None)[nodes]

    def per_signature(values: list[Any]) -> Any:
        if values and isinstance(values[0], str):
            return pd.Categorical.from_codes(*text_codes(values, labels))
        return np.array(values, dtype=float)[labels]

    def flops(name: str) -> list[float]:
        exact = [s.work if s.work and s.work.flops_at_most is None else None for s in signatures]
        return [math.nan if work is None else float(getattr(work, name)) for work in exact]

    moved = [
        b if s.known_bytes else math.nan
        for s, b in zip(signatures, flops("min_bytes"), strict=True)
    ]
    most = [
        math.nan if s.work is None or s.work.flops_at_most is None else float(s.work.flops_at_most)
        for s in signatures
    ]
    bounded = [s.work if s.work and s.work.flops_at_most is not None else None for s in signatures]
    least = {
        name: [math.nan if work is None else float(getattr(work, name)) for work in bounded]
        for name in ("matmul_flops", "vector_flops")
    }
    start, end = of(tree.start), of(tree.end)
    parents = of(tree.op_parent)
    by_profiler = [profiler_flops.get(i) or math.nan for i in tree.external[nodes].tolist()]
    return OPS.frame(
        {
            "op_id": tree.rows[nodes],
            "external_id": tree.external[nodes],
            "parent_op_id": np.where(parents >= 0, tree.rows[parents], -1),
            "op": per_signature([s.op for s in signatures]),
            "kind": per_signature([s.kind for s in signatures]),
            "module_path": pd.Categorical(of(tree.path)),
            "call_id": of(tree.call),
            "phase": pd.Categorical(of(tree.phase)),
            "sequence_nr": of(tree.sequence),
            "thread": pd.Categorical.from_codes(*text_codes(found.thread_names, of(tree.thread))),
            "start_us": start - tree.origin,
            "input_shapes": per_signature([s.shapes for s in signatures]),
            "dtype": pd.Categorical(of(dtype)),
            "cpu_us": end - start,
            "self_cpu_us": np.maximum(of(tree.self_us), 0.0),
            "device_us": of(tree.device_us) if on_device else np.full(len(nodes), math.nan),
            "counted": of(tree.counted),
            "profiler_flops": by_profiler,
            "matmul_flops": per_signature(flops("matmul_flops")),
            "vector_flops": per_signature(flops("vector_flops")),
            "min_bytes": per_signature(moved),
            "flops_at_most": per_signature(most),
            "matmul_flops_at_least": per_signature(least["matmul_flops"]),
            "vector_flops_at_least": per_signature(least["vector_flops"]),
        }
    )


def _dtypes(tree: Tree, signatures: list[Signature]) -> list[str]:
    """Return each node's element type; an op on lists of tensors has that of its first child."""
    dtype = [
        signatures[label].dtype if role == OP else ""
        for role, label in zip(tree.role, tree.label, strict=True)
    ]
    for node in tree.in_tf32:
        if dtype[node] == "float32":
            dtype[node] = "tfloat32"
    for node in range(len(dtype) - 1, -1, -1):  # the first child is the last to write
        parent = tree.op_parent[node]
        inner = tree.role[node] == OP and parent >= 0 and dtype[node]
        if inner and not signatures[tree.label[parent]].dtype:
            dtype[parent] = dtype[node]
    return dtype
