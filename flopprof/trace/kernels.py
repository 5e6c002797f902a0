"""Kernels and what launched them: the innermost host node around the launch, whatever its name."""

import re
from collections.abc import Iterable

import numpy as np
import pandas as pd

from flopprof.tables import KERNELS, narrowed
from flopprof.trace.counting import with_ancestors
from flopprof.trace.events import KERNEL_KINDS, OP, OTHER, RANGE, Events
from flopprof.trace.gaps import busy_until
from flopprof.trace.messages import message_columns, read_message
from flopprof.trace.texts import coded
from flopprof.trace.tree import Tree

# What multiplies float32 on tensor units. The op's element types do not say.
_TF32 = re.compile(r"tf32|tensorop_s\d|_s1688|nvjet_s", re.IGNORECASE)
_STEP = "ProfilerStep#"  # a range around everything: a kernel that only it holds is hidden
# Calls that queue work, and those around a capture.
_QUEUES = re.compile(r"(?<!Graph)Launch(?!Host)|Enqueue|enqueue|Memcpy|Memset")
_CAPTURE = re.compile(r"StreamBeginCapture|StreamEndCapture|GraphInstantiate")
_COPIES = re.compile(r"memcpy|copy", re.IGNORECASE)
_FILLS = re.compile(r"memset|fill", re.IGNORECASE)
_NODES_AT_ONCE = 1 << 16  # made Python numbers: bounds the memory
_TRUSTED_FRAC = 0.5  # of the links by correlation that External ids confirm; in one file none did


def link_kernels(tree: Tree) -> np.ndarray:
    """Return each kernel's node: the innermost around its launch that is no range; -1 for none.

    A launch is found by its correlation id; where launch and kernel share none, by External id.
    """
    events = tree.events
    nodes = tree.launch_nodes
    correlations = events.kernels["correlation"]
    ids = events.launches["correlation"]
    if not len(correlations):
        return np.zeros(0, dtype=np.int32)
    links = np.full(len(correlations), -1, np.int32)
    launched = np.zeros(len(correlations), dtype=bool)
    if len(ids):
        order = np.lexsort((nodes >= 0, ids))  # where an id is there twice: the last one in a node
        at = order[np.searchsorted(ids[order], correlations, side="right") - 1]
        launched = (ids[at] == correlations) & (correlations != -1)
        links = np.where(launched, nodes[at], np.int32(-1))
    by_external = _by_external_id(tree, nodes)
    confirmed = (links == by_external)[(links >= 0) & (by_external >= 0)]
    if not len(confirmed) or confirmed.mean() >= _TRUSTED_FRAC:
        lost = ~launched & (by_external >= 0)
        links = np.where(lost, by_external, links)
        if lost.any():
            events.warnings.append(
                f"{lost.sum()} kernels share no correlation id with a launch: linked by External id"
            )
    return links


def _by_external_id(tree: Tree, launch_nodes: np.ndarray) -> np.ndarray:
    """Return each kernel's node by External id: its launch's, else the op's own; -1 where unsure.

    An id of several nodes tells nothing, nor does one of what begins after the kernel.
    """
    events = tree.events
    external_ids = events.kernels["external_id"]
    begins = events.kernels["start"]
    times = events.launches["start"]
    ids = events.launches["external_id"]
    hosts = tree.external
    nodes = np.flatnonzero((tree.role != RANGE) & (hosts > 0)).astype(np.int32)
    by_op = _unique_match(external_ids, hosts[nodes], nodes, tree.start[nodes], begins)
    useful = np.flatnonzero((launch_nodes >= 0) & (ids > 0))
    by_launch = _last_match(external_ids, ids[useful], launch_nodes[useful], times[useful], begins)
    return np.where(by_launch >= 0, by_launch, by_op)


def _unique_match(
    kernel_ids: np.ndarray,
    ids: np.ndarray,
    nodes: np.ndarray,
    starts: np.ndarray,
    begins: np.ndarray,
) -> np.ndarray:
    distinct, first, counts = np.unique(ids, return_index=True, return_counts=True)
    if not len(distinct):
        return np.full(len(kernel_ids), -1, np.int32)
    at = np.minimum(np.searchsorted(distinct, kernel_ids), len(distinct) - 1)
    match = (distinct[at] == kernel_ids) & (counts[at] == 1) & (starts[first[at]] <= begins)
    return np.where(match, nodes[first[at]], np.int32(-1))


def _last_match(
    kernel_ids: np.ndarray,
    ids: np.ndarray,
    nodes: np.ndarray,
    starts: np.ndarray,
    begins: np.ndarray,
) -> np.ndarray:
    """Return the node of the launches with that id, if all are in one and before the kernel."""
    order = np.lexsort((starts, ids))
    if not len(order):
        return np.full(len(kernel_ids), -1, np.int32)
    ids = ids[order]
    first = np.minimum(np.searchsorted(ids, kernel_ids), len(ids) - 1)
    last = np.searchsorted(ids, kernel_ids, side="right") - 1
    changes = np.concatenate(([0], np.cumsum(np.diff(nodes[order]) != 0)))
    alike = changes[first] == changes[last]
    match = (ids[first] == kernel_ids) & alike & (starts[order][first] <= begins)
    return np.where(match, nodes[order][first], np.int32(-1))


def computing_nodes(tree: Tree, links: np.ndarray) -> set[int]:
    """Return the nodes that launched compute kernels themselves."""
    kinds = tree.events.kernels["kind"]
    nodes = np.unique(links[(links >= 0) & (kinds == KERNEL_KINDS.index("compute"))])
    return set(nodes.tolist())


def promote_launchers(tree: Tree, nodes: Iterable[int]) -> None:
    """Make ops of host nodes that launched compute kernels themselves; before `walk`.

    Such are custom autograd functions, compiled code, Triton kernels, the optimizer of a library.
    """
    for node in nodes:
        if tree.role[node] == OTHER and not tree.names[tree.label[node]].startswith(_STEP):
            tree.role[node] = OP
            tree.label[node] = tree.signature[node]
            tree.promoted.add(node)


def give_kernels(tree: Tree, links: np.ndarray) -> None:
    """Find each kernel's op, and each op's device time with what lies below; after `walk`."""
    tree.device_us = np.zeros(len(tree))
    tree.kernel_ops = np.full(len(links), -1, np.int32)
    if not len(links):
        return  # nothing ran on a device
    own = np.arange(len(tree), dtype=np.int32)
    ops = np.append(np.where(tree.role == OP, own, tree.op_parent), np.int32(-1))[links]  # last: -1
    kernels = tree.events.kernels
    tree.kernel_ops = ops
    mine = (ops >= 0) & (kernels["kind"] == KERNEL_KINDS.index("compute"))
    tree.device_us = np.bincount(ops[mine], kernels["length"][mine], len(tree))
    is_tf32 = np.array([bool(_TF32.search(name)) for name in tree.events.kernel_names], dtype=bool)
    in_tf32 = np.unique(ops[mine & np.take(is_tf32, kernels["name"])])
    tree.in_tf32 = with_ancestors(in_tf32.tolist(), tree.op_parent)
    _add_to_parents(tree)


def _add_to_parents(tree: Tree) -> None:
    """Add the device time of each op to that of the op around it; children come first."""
    device_us = tree.device_us.data
    parents = tree.op_parent
    inner = np.flatnonzero((tree.role == OP) & (parents >= 0))
    for last in range(len(inner), 0, -_NODES_AT_ONCE):
        nodes = inner[max(last - _NODES_AT_ONCE, 0) : last][::-1]
        for node, parent in zip(nodes.tolist(), parents[nodes].tolist(), strict=True):
            if own_us := device_us[node]:
                device_us[parent] += own_us


def captured_launches(tree: Tree) -> list[list[tuple[str, str, int]]]:
    """Return what each captured graph queued, in order: kind, kernel ("" if untold) and node.

    Those are the launches that no kernel has, between the calls that begin and end a capture.
    """
    events = tree.events
    nodes = tree.launch_nodes
    launches = events.launches
    names = launches["name"]
    kernels = launches["kernel_name"]
    ran = np.isin(launches["correlation"], events.kernels["correlation"])
    texts = list(events.names)
    graphs: list[list[tuple[str, str, int]]] = [[]]
    for row in np.argsort(launches["start"], kind="stable").tolist():
        call = texts[names[row]]
        if _CAPTURE.search(call):
            graphs.append([])
        elif _QUEUES.search(call) and not ran[row] and nodes[row] >= 0:
            kind = "memcpy" if _COPIES.search(call) else "compute"
            kind = "memset" if _FILLS.search(call) else kind
            kernel = texts[kernels[row]] if kernels[row] >= 0 else ""
            graphs[-1].append((kind, kernel, int(nodes[row])))
    return [graph for graph in graphs if graph]


def kernels_frame(tree: Tree, rank: int, origin: float) -> tuple[pd.DataFrame, float]:
    """Return the table of kernels, and how long any compute kernel ran; NaN without kernels.

    Of the events nothing is left.
    """
    events = tree.events
    columns = events.kernels
    if not len(columns):
        return KERNELS.empty(), float("nan")
    names = columns["name"]
    kinds = columns["kind"]
    messages = [read_message(message) for message in events.messages]
    is_collective = kinds == KERNEL_KINDS.index("communication")
    collective_columns = message_columns(
        messages, columns["message"], names, list(events.kernel_names), is_collective
    )
    frame = KERNELS.frame(
        {
            "kernel_id": np.arange(len(columns), dtype=np.int32),
            "op_id": tree.rows[tree.kernel_ops],
            "correlation_id": narrowed(columns["correlation"]),
            "kernel": pd.Categorical.from_codes(names, list(events.kernel_names)),
            "kind": coded(KERNEL_KINDS, kinds),
            "stream": narrowed(columns["stream"]),
            "device_index": narrowed(columns["device"]),
            "rank": narrowed(np.full(len(columns), rank)),
            "graph_id": narrowed(_graph_ids(events)),
            "start_us": columns["start"] - origin,
            "duration_us": columns["length"].copy(),
            "grid": _axis_texts(events, 0),
            "block": _axis_texts(events, 1),
            **collective_columns,
        }
    )
    is_computing = kinds == KERNEL_KINDS.index("compute")
    start = frame["start_us"].to_numpy()[is_computing]
    ends = start + frame["duration_us"].to_numpy()[is_computing]
    events.kernels.clear()
    return frame, float(busy_until(start, ends, float("inf")))


def _axis_texts(events: Events, which: int) -> pd.Categorical:
    """Return each kernel's grid (0) or block (1) as text."""
    return coded([pair[which] for pair in events.kernel_sizes], events.kernels["sizes"])


def _graph_ids(events: Events) -> np.ndarray:
    """Return each kernel's graph. Where replays have no number, those of equal kernels are one."""
    names = events.kernels["name"]
    correlation = events.kernels["correlation"]
    graphs = events.kernels["graph"]
    ids = graphs.copy()
    numbers: dict[bytes, int] = {}
    unnumbered = np.flatnonzero(graphs == -1)
    order = unnumbered[np.argsort(correlation[unnumbered], kind="stable")]
    for replay in events.replays:
        first, last = np.searchsorted(correlation[order], (replay, replay + 1))
        mine = order[first:last]
        if len(mine):
            ids[mine] = numbers.setdefault(names[mine].tobytes(), len(numbers) + 1)
    return ids
