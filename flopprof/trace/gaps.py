"""Stretches of host threads that lie inside a module's range and in no op."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from flopprof.tables import GAPS
from flopprof.trace.events import OP, RANGE
from flopprof.trace.nesting import last_inside
from flopprof.trace.texts import Numbered, coded, coded_sorted

if TYPE_CHECKING:
    from flopprof.trace.tree import Tree


@dataclass(frozen=True, slots=True)
class Gaps:
    """The gaps of a trace, in the order in which they end.

    Attributes:
        node: The range that each lies in.
        start: When each begins.
        length: How long it is.
        before: The number, among `names`, of the op before it.
        names: Names of ops; the first, "", is for none.
    """

    node: np.ndarray
    start: np.ndarray
    length: np.ndarray
    before: np.ndarray
    names: list[str]


def find_gaps(tree: "Tree") -> Gaps:
    """Return the gaps in ranges that no op is around: between what lies right in them, and behind.

    What lies in a range covers it up to the latest end so far.
    """
    outer = np.flatnonzero((tree.role == RANGE) & (tree.op_parent < 0))
    is_outer = np.zeros(len(tree) + 1, dtype=bool)  # the last is for nodes in no range
    is_outer[outer] = True
    children = np.flatnonzero(is_outer[tree.parent])
    # A range has a row of its own before those of its children: it is covered up to its start.
    node = np.concatenate((outer, children))
    owner = np.concatenate((outer, tree.parent[children]))
    covered = np.concatenate((tree.start[outer], tree.end[children]))
    order = np.lexsort((node, owner))
    node, owner, covered = node[order], owner[order], covered[order]
    is_own = node == owner
    covered = _latest(covered, is_own)
    last = np.append(np.flatnonzero(is_own)[1:], len(node)) - 1 if len(node) else order
    inner = np.flatnonzero(~is_own)
    # A gap ends at a child, or at the range's end: that is met when the next node leaves it.
    leaving = last_inside(tree.parent)[owner[last]].astype(np.int64) + 1
    range_ = np.concatenate((owner[inner], owner[last]))
    start = np.concatenate((covered[inner - 1], covered[last]))
    until = np.concatenate((tree.start[node[inner]], tree.end[owner[last]]))
    met = np.concatenate((node[inner], leaving))
    enters = np.arange(len(met)) < len(inner)
    found = np.flatnonzero(until > start)
    found = found[np.lexsort((-range_[found], enters[found], met[found]))]
    before, names = _ops_before(tree, met[found])
    return Gaps(range_[found], start[found], (until - start)[found], before, names)


def _latest(values: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """Return the largest value so far, anew from where a part begins."""
    distinct, rank = np.unique(values, return_inverse=True)
    shift = np.cumsum(begins) * len(distinct)
    latest: np.ndarray = distinct[np.maximum.accumulate(rank + shift) - shift]
    return latest


def _ops_before(tree: "Tree", nodes: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return the name of the last op before each node, as numbers, and the names."""
    names = Numbered([""])
    ops = np.flatnonzero(tree.role == OP)
    labels = np.append(tree.label[ops], -1)  # the last is for no op before
    signatures, which = np.unique(labels[np.searchsorted(ops, nodes) - 1], return_inverse=True)
    every = tree.events.signatures
    numbers = [names.number(every[label].op if label >= 0 else "") for label in signatures.tolist()]
    return np.array(numbers, np.int32)[which], names.texts


def gaps_frame(tree: "Tree") -> pd.DataFrame:
    """Return the table of gaps, less what ops of other threads, or gloo, fill of them."""
    gaps = tree.gaps
    start = gaps.start - tree.origin
    frame = GAPS.frame(
        {
            "module_path": coded_sorted(tree.paths, tree.path[gaps.node]),
            "call_id": tree.call[gaps.node],
            "start_us": start,
            "duration_us": gaps.length,
            "before_op": coded(gaps.names, gaps.before),
        }
    )
    tops = np.flatnonzero((tree.role == OP) & (tree.op_parent < 0))
    sent = [(begins, begins + length) for _, begins, length, _ in tree.events.host_collectives]
    starts = np.append(tree.start[tops], [begins for begins, _ in sent]) - tree.origin
    ends = np.append(tree.end[tops], [until for _, until in sent]) - tree.origin
    end = start + gaps.length
    begin = _first_heard_of(tree, tops, start, end)
    waited = np.diff(busy_until(starts, ends, [begin, end]), axis=0)
    left = end - begin - waited[0]
    return frame.assign(duration_us=np.where(_handed_over(tree, start, end), 0.0, left))


def _first_heard_of(
    tree: "Tree", tops: np.ndarray, start: np.ndarray, end: np.ndarray
) -> np.ndarray:
    """Return when gaps begin, less the start of other threads that run their first op in them.

    Until then the gap's own thread made those threads, or waited for them.
    """
    first = np.full(len(tree.events.thread_names), np.inf)
    np.minimum.at(first, tree.thread[tops], tree.start[tops])
    first -= tree.origin
    threads = np.argsort(first, kind="stable")
    heard = np.append(first[threads], [np.inf, np.inf])
    own = tree.thread[tree.gaps.node]
    at = np.searchsorted(heard, start, side="right")
    is_own = np.append(threads, [-1, -1])[at] == own
    begins = heard[at + is_own]
    heard_of: np.ndarray = np.where(begins < end, begins, start)
    return heard_of


def _handed_over(tree: "Tree", start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Return in which gaps the first module's thread waits for modules that others call.

    What these threads do is in the trace, their own gaps too; their start is no work.
    """
    ranges = np.flatnonzero((tree.role == RANGE) & (tree.parent < 0))
    if not len(ranges):
        return np.zeros(len(start), dtype=bool)
    home = tree.thread[ranges[np.argmin(tree.start[ranges])]]
    away = ranges[tree.thread[ranges] != home]
    begins = np.sort(tree.start[away] - tree.origin)
    is_within = np.searchsorted(begins, end) > np.searchsorted(begins, start)
    is_handed: np.ndarray = is_within & (tree.thread[tree.gaps.node] == home)
    return is_handed


def busy_until(starts: np.ndarray, ends: np.ndarray, times: Any) -> np.ndarray:
    """Return how long before each of `times` any of the intervals was under way."""
    if not len(starts):
        return np.zeros(np.shape(times))
    order = np.argsort(starts)
    starts = starts[order]
    latest = np.maximum.accumulate(ends[order])
    begins = np.concatenate(([starts[0]], np.maximum(starts[1:], latest[:-1])))
    lengths = np.maximum(latest - begins, 0.0)
    at = np.searchsorted(starts, times, side="right")
    total = np.concatenate(([0.0], np.cumsum(lengths)))[at]
    latest = np.concatenate(([-np.inf], latest))[at]
    until: np.ndarray = total - np.maximum(latest - np.asarray(times), 0.0)
    return until
