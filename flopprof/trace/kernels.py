"""Kernels and what launched them: the innermost host node around the launch, whatever its name."""

import re
from array import array
from collections.abc import Iterable

import numpy as np
import pandas as pd

from flopprof.tables import KERNELS
from flopprof.trace.events import KERNEL_KINDS, OP, OTHER, RANGE, Events
from flopprof.trace.messages import message_columns, read_message
from flopprof.trace.tree import Tree, busy_until, text_codes

# What multiplies float32 on tensor units. The op's element types do not say.
_TF32 = re.compile(r"tf32|tensorop_s\d|_s1688|nvjet_s", re.IGNORECASE)
_STEP = "ProfilerStep#"  # a range around everything: a kernel that only it holds is hidden
# Calls that queue work, and those around a capture.
_QUEUES = re.compile(r"(?<!Graph)Launch(?!Host)|Enqueue|enqueue|Memcpy|Memset")
_CAPTURE = re.compile(r"StreamBeginCapture|StreamEndCapture|GraphInstantiate")
_COPIES = re.compile(r"memcpy|copy", re.IGNORECASE)
_FILLS = re.compile(r"memset|fill", re.IGNORECASE)
_TRUSTED_FRAC = 0.5  # of the links by correlation that External ids confirm; in one file none did


def link_kernels(tree: Tree, nodes: np.ndarray) -> np.ndarray:
    """Return each kernel's node: the innermost around its launch that is no range; -1 for none.

    A launch is found by its correlation id; where launch and kernel share none, by External id.

    Args:
        tree: The host nodes.
        nodes: Each launch's node, by `launch_nodes`.
    """
    events = tree.events
    correlations = events.kernels["correlation"]
    ids = events.launches["correlation"]
    if not len(correlations):
        return np.zeros(0, dtype=np.int64)
    links = np.full(len(correlations), -1)
    launched = np.zeros(len(correlations), dtype=bool)
    if len(ids):
        order = np.lexsort((nodes >= 0, ids))  # where an id is there twice: the last one in a node
        at = order[np.searchsorted(ids[order], correlations, side="right") - 1]
        launched = (ids[at] == correlations) & (correlations != -1)
        links = np.where(launched, nodes[at], -1)
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


def launch_nodes(tree: Tree) -> np.ndarray:
    """Return each launch's innermost node that is no range, on its thread; -1 for none.

    One sweep over nodes and launches in order of time: no parent is climbed for a launch.
    """
    threads = tree.events.launches["thread"]
    times = tree.events.launches["start"]
    if not len(times):
        return np.full(0, -1)
    order = np.lexsort((times, threads))
    by_thread = np.searchsorted(threads[order], np.arange(len(tree.events.thread_names) + 1))
    result = np.full(len(order), -1)
    moments = times[order].tolist()
    places = order.tolist()
    stack: list[int] = []
    holders: list[int] = []  # the innermost node that is no range, for each on the stack
    thread = -1
    at = -1  # launches of the thread are placed up to here
    until = -1  # its last one
    ends = tree.end
    starts = tree.start
    slack = tree.slack
    nodes = zip(starts, ends, tree.thread, tree.role, strict=True)
    for node, (start, end, its_thread, role) in enumerate(nodes):
        if its_thread != thread:
            _place(moments, places, at, until, stack, holders, ends, result)
            stack = []
            holders = []
            thread = its_thread
            at, until = by_thread[thread : thread + 2].tolist()
        if at < until and moments[at] < start:
            passed = at
            while passed < until and moments[passed] < start:
                passed += 1
            _place(moments, places, at, passed, stack, holders, ends, result)
            at = passed
        while stack:  # as `Tree.lies_in`, a million times
            outer_end = ends[stack[-1]]
            if end <= outer_end + slack and (start < outer_end or end == outer_end):
                break
            stack.pop()
            holders.pop()
        outer = holders[-1] if holders else -1
        stack.append(node)
        holders.append(outer if role == RANGE else node)
    _place(moments, places, at, until, stack, holders, ends, result)
    return result


def _place(
    moments: list[float],
    places: list[int],
    first: int,
    last: int,
    stack: list[int],
    holders: list[int],
    ends: "array[float]",
    result: np.ndarray,
) -> None:
    """Give the launches from `first` up to `last` the innermost open node; close what ended."""
    for number in range(first, last):
        while stack and ends[stack[-1]] < moments[number]:
            stack.pop()
            holders.pop()
        if not stack:
            return
        result[places[number]] = holders[-1]


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
    is_op = np.frombuffer(tree.role, "b") != RANGE
    nodes = np.flatnonzero(is_op & (hosts > 0))
    starts = np.frombuffer(tree.start, "d")
    by_op = _unique_match(external_ids, hosts[nodes], nodes, starts[nodes], begins)
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
        return np.full(len(kernel_ids), -1)
    at = np.minimum(np.searchsorted(distinct, kernel_ids), len(distinct) - 1)
    match = (distinct[at] == kernel_ids) & (counts[at] == 1) & (starts[first[at]] <= begins)
    return np.where(match, nodes[first[at]], -1)


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
        return np.full(len(kernel_ids), -1)
    ids = ids[order]
    first = np.minimum(np.searchsorted(ids, kernel_ids), len(ids) - 1)
    last = np.searchsorted(ids, kernel_ids, side="right") - 1
    changes = np.concatenate(([0], np.cumsum(np.diff(nodes[order]) != 0)))
    alike = changes[first] == changes[last]
    match = (ids[first] == kernel_ids) & alike & (starts[order][first] <= begins)
    return np.where(match, nodes[order][first], -1)


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
    size = len(tree.start)
    if not len(links):
        return  # nothing ran on a device
    above = np.frombuffer(tree.op_parent, "q")
    is_op = np.frombuffer(tree.role, "b") == OP
    ops = np.append(np.where(is_op, np.arange(size), above), -1)[links]  # the last is for -1
    kernels = tree.events.kernels
    tree.kernel_ops = array("q", ops.astype(np.int64).tobytes())
    mine = (ops >= 0) & (kernels["kind"] == KERNEL_KINDS.index("compute"))
    device_us = np.bincount(ops[mine], kernels["length"][mine], size).tolist()
    is_tf32 = np.array([bool(_TF32.search(name)) for name in tree.events.kernel_names], dtype=bool)
    in_tf32 = np.zeros(size, dtype=bool)
    in_tf32[ops[mine & np.take(is_tf32, kernels["name"])]] = True
    marks = in_tf32.tolist()
    for node in range(size - 1, -1, -1):  # children come behind their parents
        parent = tree.op_parent[node]
        if parent >= 0 and tree.role[node] == OP:
            device_us[parent] += device_us[node]
            marks[parent] = marks[parent] or marks[node]
    tree.device_us = array("d", device_us)
    tree.in_tf32 = set(np.flatnonzero(marks).tolist())


def captured_launches(tree: Tree, nodes: np.ndarray) -> list[list[tuple[str, str, int]]]:
    """Return what each captured graph queued, in order: kind, kernel ("" if untold) and node.

    Those are the launches that no kernel has, between the calls that begin and end a capture.
    """
    events = tree.events
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
    """Return the table of kernels, and how long any compute kernel ran; NaN without kernels."""
    events = tree.events
    columns = events.kernels
    if not len(columns):
        return KERNELS.empty(), float("nan")
    names = columns["name"]
    kinds = columns["kind"]
    ops = np.frombuffer(tree.kernel_ops, "q")
    messages = [read_message(message) for message in events.messages]
    is_collective = kinds == KERNEL_KINDS.index("communication")
    collective_columns = message_columns(
        messages, columns["message"], names, list(events.kernel_names), is_collective
    )
    frame = KERNELS.frame(
        {
            "kernel_id": np.arange(len(columns)),
            "op_id": np.append(tree.rows, -1)[ops],
            "correlation_id": columns["correlation"],
            "kernel": pd.Categorical.from_codes(names, list(events.kernel_names)),
            "kind": pd.Categorical.from_codes(*text_codes(list(KERNEL_KINDS), kinds)),
            "stream": columns["stream"],
            "device_index": columns["device"],
            "rank": np.full(len(columns), rank),
            "graph_id": _graph_ids(events),
            "start_us": columns["start"] - origin,
            "duration_us": columns["length"],
            "grid": _axis_texts(events, 0),
            "block": _axis_texts(events, 1),
            **collective_columns,
        }
    )
    compute = frame[frame["kind"] == "compute"]
    start = compute["start_us"].to_numpy()
    ends = start + compute["duration_us"].to_numpy()
    return frame, float(busy_until(start, ends, float("inf")))


def _axis_texts(events: Events, which: int) -> pd.Categorical:
    """Return each kernel's grid (0) or block (1) as text."""
    texts = [pair[which] for pair in events.kernel_sizes]
    distinct = {text: code for code, text in enumerate(dict.fromkeys(texts))}
    codes = np.array([distinct[text] for text in texts], dtype=np.int64)
    return pd.Categorical.from_codes(codes[events.kernels["sizes"]], list(distinct))


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
