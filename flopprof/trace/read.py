"""Turn a trace file, however large, into ops, kernels and gaps. Imports no torch.

Host events form a tree per thread, by time. Some are ops; ranges name modules; the rest (the
autograd engine's, the optimizer's, annotations) tell the phase, and their own time is overhead.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from flopprof.collector import not_collecting
from flopprof.dtypes import is_floating
from flopprof.errors import LoadError
from flopprof.formulas import load_op_formulas
from flopprof.tables import GAPS, OPS, give_back_memory, narrowed
from flopprof.trace.counting import is_exact, with_ancestors
from flopprof.trace.derive import derive_convolutions, derive_padding
from flopprof.trace.events import OP, Events, take_events
from flopprof.trace.foreign import what_else
from flopprof.trace.gaps import gaps_frame
from flopprof.trace.gloo import collectives_frame
from flopprof.trace.groups import process_groups
from flopprof.trace.kernels import (
    captured_launches,
    computing_nodes,
    give_kernels,
    kernels_frame,
    link_kernels,
    promote_launchers,
)
from flopprof.trace.places import PHASES
from flopprof.trace.salvage import Damage
from flopprof.trace.signatures import Signature
from flopprof.trace.stream import stream_typed_events
from flopprof.trace.texts import Numbered, coded, coded_sorted
from flopprof.trace.tree import Tree
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
    timed: bool = True,
) -> Trace:
    """Return the ops, kernels and gaps of the trace at `path`.

    Args:
        path: A Chrome trace by torch.profiler, `.json`, gzipped or not.
        profiler_flops: External id → FLOPs by `with_flops`, which no trace file has; 0 is unknown.
        as_capture: Put what graphs captured into `info["captured"]`: what each queued, in order,
            as kind, kernel's name ("" where it is not told) and op.
        timed: False where times tell nothing: without gaps.

    Raises:
        UsageError: There is no such file.
        LoadError: It is no trace, damaged, or holds neither ops nor kernels.
    """
    load_op_formulas()
    header: dict[str, Any] = {}
    damage = Damage()
    events = Events()
    with not_collecting():  # its objects form no cycles, and walking them all doubles the time
        for read in stream_typed_events(Path(path), header, damage):
            take_events(read, events)
    events.warnings.extend(damage.warnings(file_text(path)))
    if OP not in events.hosts["role"] and (kind := what_else(damage.head)):
        raise kind.error(path)
    if not len(events.hosts) and not len(events.kernels):
        raise _without_ops(path)
    has_ranges = events.has_ranges
    if not has_ranges:
        modules = events.python_modules
        events.hosts.append(modules if len(modules) else events.annotations)
    trace = _build(events, header, profiler_flops or {}, as_capture=as_capture, timed=timed)
    del events
    give_back_memory(trace.ops)
    if not len(trace.ops) and not has_ranges and not len(trace.kernels):
        raise _without_ops(path)
    return trace


def _without_ops(path: str | Path) -> LoadError:
    return LoadError(
        f"{file_text(path)} is a trace without ops",
        remedy="record it with ProfilerActivity.CPU as well",
    )


def _build(
    events: Events,
    header: dict[str, Any],
    profiler_flops: Mapping[int, float],
    *,
    as_capture: bool,
    timed: bool,
) -> Trace:
    """Build the trees and return the tables."""
    origin, latest = _span(events)
    tree = Tree(events, _order(events), origin)
    links = link_kernels(tree)
    captured = captured_launches(tree) if as_capture else []
    queueing = set()
    for graph in captured:
        queueing |= {node for kind, _, node in graph if kind == "compute"}
    promote_launchers(tree, sorted(computing_nodes(tree, links) | queueing))
    if not events.calls.has_values:
        derive_convolutions(tree)
    derive_padding(tree)
    tree.forget_launches()
    tree.walk()
    gaps = gaps_frame(tree) if timed else GAPS.empty()
    give_kernels(tree, links)
    del links
    job = header.get("distributedInfo")
    job = job if isinstance(job, dict) else {}
    numbers = {k: n for k, n in job.items() if type(n) is int}
    rank = numbers.get("rank", 0)
    kernels, busy_us = kernels_frame(tree, rank, origin)
    graphs = [_with_ops(graph, tree) for graph in captured]
    ops = _ops_frame(tree, profiler_flops, on_device=len(kernels) > 0)
    collectives = collectives_frame(events, ops, rank, origin, job)
    compute = kernels.loc[kernels["kind"] == "compute", ["op_id", "duration_us"]]
    orphans = compute[compute["op_id"] == -1]
    if events.odd:
        events.warnings.append(f"{events.odd} events without finite times were left out")
    info = {
        "schema_version": header.get("schemaVersion"),
        "has_shapes": events.calls.has_shapes,
        "has_values": events.calls.has_values,
        "rank": rank,
        "world_size": numbers.get("world_size", 1),
        "groups": process_groups(job),
        "span_us": latest - origin,
        "steps": [(name, start - origin, length) for name, start, length in events.steps],
        "origin_us": origin,
        "kernel_time_us": float(compute["duration_us"].sum()) if len(kernels) else math.nan,
        "device_busy_us": busy_us,
        "unlinked_kernel_us": float(orphans["duration_us"].sum()) if len(kernels) else math.nan,
        "collectives": collectives,
        "vendors": sorted(events.vendors),
        "captured": graphs,
        "warnings": events.warnings,
    }
    properties = header.get("deviceProperties") or header.get("computeProperties")  # of 2021
    devices = _devices(properties, events.warnings)
    return Trace(ops, gaps, kernels, tree.module_types, devices, info)


def _with_ops(graph: list[tuple[str, str, int]], tree: Tree) -> list[tuple[str, str, int]]:
    """Return the graph's launches with the number of the op in place of the node's."""
    launches = []
    for kind, kernel, node in graph:
        op = node if tree.role[node] == OP else tree.op_parent[node]
        if op >= 0:
            launches.append((kind, kernel, int(tree.rows[op])))
    return launches


def _span(events: Events) -> tuple[float, float]:
    """Return when the first event begins and the last ends."""
    starts = events.kernels["start"]
    ends = starts + events.kernels["length"]
    begin = min(np.min(column, initial=math.inf) for column in (events.hosts["start"], starts))
    latest = max(np.max(column, initial=-math.inf) for column in (events.hosts["end"], ends))
    return float(begin), float(latest)


def _order(events: Events) -> np.ndarray:
    """Return the order of the host nodes: parents first, threads one after the other.

    That is by earlier start, then later end, then lower id. The thread that begins first comes
    first, so that forward ops are known before the backward's thread asks for them.
    """
    hosts = events.hosts
    start = hosts["start"]
    thread = hosts["thread"]
    begins = np.full(len(events.thread_names), math.inf)
    np.minimum.at(begins, thread, start)
    rank = np.argsort(np.argsort(begins, kind="stable")).astype(np.int32)
    order: np.ndarray = np.lexsort((hosts["external_id"], -hosts["end"], start, rank[thread]))
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
            value = device.get(key)
            if kind is int and type(value) is float and value.is_integer():
                device[key] = int(value)
            if key in device and type(device[key]) is not kind:
                odd.append(f"{key} {safe_text(device.pop(key), 60)!r}")
    if odd:
        warnings.append(f"deviceProperties are of no known form, left out: {', '.join(odd[:5])}")
    return devices


def _ops_frame(tree: Tree, profiler_flops: Mapping[int, float], *, on_device: bool) -> pd.DataFrame:
    """Return the table OPS of a trace; of the tree little is left."""
    nodes = np.flatnonzero(tree.role == OP)
    if not len(nodes):
        return OPS.empty()
    signatures = tree.events.signatures
    dtypes, dtype = _dtypes(tree, signatures)
    columns: dict[str, Any] = {
        "op_id": np.arange(len(nodes), dtype=np.int32),
        "dtype": coded_sorted(dtypes, dtype[nodes]),
        "parent_op_id": tree.rows[tree.taken("op_parent", nodes)],
        "external_id": narrowed(tree.taken("external", nodes)),
        "module_path": coded_sorted(tree.paths, tree.taken("path", nodes)),
        "call_id": tree.taken("call", nodes),
        "phase": coded_sorted(PHASES, tree.taken("phase", nodes)),
        "sequence_nr": narrowed(tree.taken("sequence", nodes)),
        "thread": coded(tree.events.thread_names, tree.taken("thread", nodes)),
        "self_cpu_us": tree.taken("self_us", nodes),
        "counted": tree.taken("counted", nodes),
        "cpu_us": tree.taken("end", nodes),
        "start_us": tree.taken("start", nodes),
        "device_us": tree.taken("device_us", nodes),
    }
    columns["cpu_us"] -= columns["start_us"]
    columns["start_us"] -= tree.origin
    np.maximum(columns["self_cpu_us"], 0.0, out=columns["self_cpu_us"])
    if not on_device:
        columns["device_us"].fill(math.nan)
    columns["profiler_flops"] = _profiler_flops(profiler_flops, columns["external_id"])
    return OPS.frame(columns | _signature_columns(signatures, tree.taken("label", nodes)))


def _profiler_flops(profiler_flops: Mapping[int, float], external: np.ndarray) -> Any:
    """Return the profiler's FLOPs of the ops with these ids; NaN where they are not known."""
    if not profiler_flops:
        return np.full(len(external), math.nan)
    return [profiler_flops.get(number) or math.nan for number in external.tolist()]


def _signature_columns(signatures: list[Signature], labels: np.ndarray) -> dict[str, Any]:
    """Return the columns of OPS that calls with one signature share.

    A count stands in its own column, bounds stand in theirs: where one is, the other is NaN.

    Args:
        signatures: Those of the trace.
        labels: Each op's, by number.
    """
    columns: dict[str, list[float]] = {name: [] for name in _OF_A_FORMULA}
    for signature in signatures:
        figures = _figures(signature)
        for name, column in columns.items():
            column.append(figures.get(name, math.nan))
    texts = {
        "op": [signature.op for signature in signatures],
        "kind": [signature.kind for signature in signatures],
        "input_shapes": [signature.shapes for signature in signatures],
    }
    numbers = {name: np.array(column, dtype=float)[labels] for name, column in columns.items()}
    return numbers | {name: coded(column, labels) for name, column in texts.items()}


_OF_A_FORMULA = (
    *("matmul_flops", "vector_flops", "min_bytes", "flops_at_most"),
    *("matmul_flops_at_least", "vector_flops_at_least"),
)


def _figures(signature: Signature) -> dict[str, float]:
    """Return what the formula says of one call: a count or bounds; nothing where it is unknown."""
    work = signature.work
    if work is None:
        return {}
    if work.flops_at_most is not None:
        return {
            "matmul_flops_at_least": float(work.matmul_flops),
            "vector_flops_at_least": float(work.vector_flops),
            "flops_at_most": float(work.flops_at_most),
        }
    figures = {
        "matmul_flops": float(work.matmul_flops),
        "vector_flops": float(work.vector_flops),
    }
    if signature.knows_bytes:
        figures["min_bytes"] = float(work.min_bytes)
    return figures


def _dtypes(tree: Tree, signatures: list[Signature]) -> tuple[list[str], np.ndarray]:
    """Return element types, and the number of each node's: that of its tensors, but for some.

    An op on lists of tensors has that of its first child. A product whose whole work is done by
    one product below it, in another type of floats, has that one's: autocast cast its operands.
    """
    names = Numbered(["", "float32", "tfloat32"])
    by_label = np.array([names.number(signature.dtype) for signature in signatures], np.int32)
    is_op = tree.role == OP
    dtype = np.zeros(len(tree), np.int32)
    dtype[is_op] = by_label[tree.label[is_op]]
    in_tf32 = np.array(sorted(tree.in_tf32), dtype=np.int64)
    in_tf32 = in_tf32[dtype[in_tf32] == names.number("float32")]
    dtype[in_tf32] = names.number("tfloat32")
    # Only where an op and the one around it differ is there anything to take over, and above that.
    inner = np.flatnonzero(is_op & (tree.op_parent >= 0))
    outer = by_label[tree.label[tree.op_parent[inner]]]
    differing = inner[(dtype[inner] != 0) & (outer != dtype[inner])]
    asked = with_ancestors(differing.tolist(), tree.op_parent)
    for node in sorted(asked, reverse=True):  # the first child is the last to write
        parent = int(tree.op_parent[node])
        if parent < 0 or not dtype[node]:
            continue
        around = signatures[tree.label[parent]]
        mine = signatures[tree.label[node]]
        if not around.dtype or _is_cast(around, names.texts[dtype[node]], mine):
            dtype[parent] = dtype[node]
    return names.texts, dtype


def _is_cast(outer: Signature, inner_dtype: str, inner: Signature) -> bool:
    """Return whether the inner product is all of the outer one's work, in another float type."""
    if inner_dtype == outer.dtype or not (is_floating(inner_dtype) and is_floating(outer.dtype)):
        return False
    if not is_exact(outer.work) or not is_exact(inner.work):
        return False
    works = (outer.work, inner.work)
    first, second = (work.matmul_flops if work else 0 for work in works)
    return first == second > 0
