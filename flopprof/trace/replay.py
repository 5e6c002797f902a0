"""Give the kernels of a replayed graph the ops of its capture, by order and name.

While a graph is captured, ops run and launch nothing; while it is replayed, kernels run and no op
does. Two traces, one of each, make one: each replay has the captured ops once, with its kernels.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from flopprof.tables import KERNELS, OPS
from flopprof.trace.read import Trace

_UNNAMED = ""


@dataclass(frozen=True, slots=True)
class Launches:
    """What a capture would have launched, in order: a kernel's kind, name and op each.

    Attributes:
        kinds: compute, memcpy, memset.
        names: Names of kernels; "" where the trace does not tell.
        ops: The ops that launched them.
    """

    kinds: tuple[str, ...]
    names: tuple[str, ...]
    ops: tuple[int, ...]

    def part(self, first: int, last: int) -> "Launches":
        """Return the launches from `first` up to `last`."""
        return Launches(self.kinds[first:last], self.names[first:last], self.ops[first:last])


def join_capture(trace: Trace, capture: Trace, owner: np.ndarray) -> Trace:
    """Return the trace with the ops of `capture`, once for each replay whose kernels they match.

    Args:
        trace: The replays.
        capture: The capture, read as such; or an eager trace of the same calls.
        owner: For each op of the capture, the counted op around it, else the op itself.
    """
    graphs = captured_graphs(capture)
    ops = [trace.ops]
    count = len(trace.ops)
    op_of = trace.kernels["op_id"].to_numpy().copy()
    matched = 0
    lost = 0
    matches: dict[tuple[tuple[str, ...], tuple[str, ...]], list[int] | None] = {}
    kind_of = trace.kernels["kind"].astype("str").to_numpy(object)
    name_of = trace.kernels["kernel"].astype("str").map(_plain).to_numpy(object)
    for rows in _replays(trace, {len(graph.ops) for graph in graphs}):
        key = (tuple(kind_of[rows]), tuple(name_of[rows]))
        if key not in matches:
            matches[key] = _match(*key, graphs)
        launcher = matches[key]
        if launcher is None:
            lost += 1
            continue
        matched += 1
        copied, number = _copied(capture.ops, owner, launcher, trace.kernels.iloc[rows], count)
        ops.append(copied)
        count += len(copied)
        op_of[rows] = number
    warnings = list(trace.info["warnings"])
    sizes = ", ".join(sorted({str(len(graph.ops)) for graph in graphs}, key=int)) or "none"
    if lost or not matched:
        warnings.append(
            f"{lost} replays of {matched + lost} match no captured graph, whose launches are "
            f"{sizes} in number: their FLOPs are unknown"
        )
    joined = OPS.check(_concatenated(ops)) if matched else trace.ops
    info = {**trace.info, "warnings": warnings}
    info["has_shapes"] = bool(trace.info["has_shapes"] or (matched and capture.info["has_shapes"]))
    return replace(
        trace,
        ops=joined,
        kernels=KERNELS.check(trace.kernels.assign(op_id=op_of)),
        module_types=capture.module_types | trace.module_types,
        info=info,
    )


def captured_graphs(capture: Trace) -> list[Launches]:
    """Return the captured graphs; the kernels of an eager trace are one."""
    graphs = [_launches(rows) for rows in capture.info["captured"] if rows]
    if graphs:
        return graphs
    linked = capture.kernels[capture.kernels["op_id"] >= 0].sort_values("start_us", kind="stable")
    texts = (linked[column].astype("str") for column in ("kind", "kernel"))
    eager = list(zip(*texts, linked["op_id"], strict=True))
    return [_launches(eager)] if eager else []


def _launches(rows: list[tuple[str, str, int]]) -> Launches:
    kinds, names, ops = zip(*rows, strict=True)
    return Launches(tuple(kinds), tuple(map(_plain, names)), tuple(map(int, ops)))


def _plain(name: str) -> str:
    """Return a kernel's name as launches and kernels both spell it."""
    return name.strip().removesuffix(".kd")


def _replays(trace: Trace, sizes: set[int]) -> Iterator[np.ndarray]:
    """Yield the kernels of each replay, in order of time.

    They share a correlation id; where there is none, equal parts of what no op launched.
    """
    kernels = trace.kernels
    op = kernels["op_id"].to_numpy()
    counted = np.append(trace.ops["counted"].to_numpy(), False)[op]
    of_graph = kernels["graph_id"].to_numpy() != -1
    computes = kernels["kind"].to_numpy() != "communication"
    unexplained = ((op == -1) | (of_graph & ~counted)) & computes
    order = np.lexsort((kernels["start_us"].to_numpy(), kernels["correlation_id"].to_numpy()))
    order = order[unexplained[order]]
    correlation = kernels["correlation_id"].to_numpy()[order]
    for rows in np.split(order, np.flatnonzero(np.diff(correlation)) + 1):
        if not len(rows):
            continue
        alone = kernels["correlation_id"].iloc[rows[0]] == -1
        size = next((n for n in sorted(sizes, reverse=True) if n and len(rows) % n == 0), 0)
        if alone and size:
            yield from np.split(rows, len(rows) // size)
        elif len(rows) > 1 or kernels["graph_id"].iloc[rows[0]] != -1 or 1 in sizes:
            yield rows


def _match(
    kinds: tuple[str, ...], names: tuple[str, ...], graphs: list[Launches]
) -> list[int] | None:
    """Return the captured op of each kernel of a replay; None if no graph, or several, fit."""
    fitting: list[list[int]] = []
    for graph in graphs:
        if len(graph.ops) == len(kinds):
            ops = _aligned(kinds, names, graph)
        else:
            ops = _inside(kinds, names, graph)
        if ops is not None:
            fitting.append(ops)
    distinct = {tuple(ops) for ops in fitting}
    if len(distinct) == 1 or (fitting and _UNNAMED not in graphs[0].names):
        return fitting[0]
    return None


def _aligned(kinds: tuple[str, ...], names: tuple[str, ...], graph: Launches) -> list[int] | None:
    """Return each kernel's op: the n-th kernel of a name is its n-th launch, else by order."""
    if _UNNAMED in graph.names:
        if kinds != graph.kinds:
            return None
        for launched, name in zip(graph.names, names, strict=True):
            if launched not in (_UNNAMED, name):
                return None
        return list(graph.ops)
    waiting: dict[tuple[str, str], deque[int]] = {}
    for kind, name, op in zip(graph.kinds, graph.names, graph.ops, strict=True):
        waiting.setdefault((kind, name), deque()).append(op)
    ops = []
    for key in zip(kinds, names, strict=True):
        if not waiting.get(key):
            return None
        ops.append(waiting[key].popleft())
    return ops


def _inside(kinds: tuple[str, ...], names: tuple[str, ...], graph: Launches) -> list[int] | None:
    """Return the ops of the first stretch of named launches that is this sequence of kernels."""
    if _UNNAMED in graph.names or len(names) < 2:
        return None
    first = names[0]
    for start in range(len(graph.ops) - len(names) + 1):
        if graph.names[start] == first:
            part = graph.part(start, start + len(names))
            if part.names == names and part.kinds == kinds:
                return list(part.ops)
    return None


def _copied(
    ops: pd.DataFrame,
    owner: np.ndarray,
    launcher: list[int],
    kernels: pd.DataFrame,
    first: int,
) -> tuple[pd.DataFrame, np.ndarray]:
    """Return the captured ops of one replay, numbered from `first`, and each kernel's op.

    Those are the counted ops around the launches, with all below them; they took no time on the
    host, and start with the replay.
    """
    launching_ops = np.unique(owner[launcher])
    whole = ops["counted"].to_numpy()[owner] & np.isin(owner, launching_ops)
    kept = np.flatnonzero(whole | np.isin(np.arange(len(ops)), launcher))
    number = np.full(len(ops) + 1, -1)
    number[kept] = first + np.arange(len(kept))
    parents = number[ops["parent_op_id"].to_numpy()[kept]]
    device_us = np.zeros(len(kept))
    mine = number[launcher]
    computing = kernels["kind"].to_numpy() == "compute"
    np.add.at(device_us, mine[computing] - first, kernels["duration_us"].to_numpy()[computing])
    for row in range(len(kept) - 1, -1, -1):  # parents come first
        if parents[row] >= 0:
            device_us[parents[row] - first] += device_us[row]
    copied = ops.iloc[kept].assign(
        op_id=number[kept],
        parent_op_id=parents,
        external_id=-1,
        start_us=float(kernels["start_us"].min()),
        cpu_us=0.0,
        self_cpu_us=0.0,
        device_us=device_us,
    )
    return copied, mine


def _concatenated(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """Return the tables one behind the other; texts keep few categories."""
    whole: dict[str, Any] = {}
    for column in parts[0].columns:
        texts = isinstance(parts[-1][column].dtype, pd.CategoricalDtype)
        values = [part[column].astype("str") if texts else part[column] for part in parts]
        joined = pd.concat([v for v in values if len(v)], ignore_index=True)
        whole[column] = joined.astype("category") if texts else joined
    return pd.DataFrame(whole)
