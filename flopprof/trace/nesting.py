"""Which host node lies in which, by time, and which launches in which: one sweep over all of them.

Nodes come in order of thread and start, the outer before the inner. All else follows from each
node's parent, column by column.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

_NODES_AT_ONCE = 1 << 16  # made Python numbers: bounds the memory


@dataclass(slots=True)
class Moments:
    """Moments of threads that are to be placed, in order of thread and time.

    Attributes:
        times: All of them.
        order: Which each one was, as they were given.
        firsts: Where each thread's begin, and where the last one's end.
        places: Each one's innermost node, filled in as nodes are swept over; -1 for none.
    """

    times: np.ndarray
    order: np.ndarray
    firsts: np.ndarray
    places: np.ndarray

    @classmethod
    def of(cls, threads: np.ndarray, times: np.ndarray, count: int) -> "Moments":
        """Return the moments of `count` threads."""
        order = np.lexsort((times, threads))
        firsts = np.searchsorted(threads[order], np.arange(count + 1))
        return cls(times[order], order, firsts, np.full(len(order), -1, np.int32))


def nest(
    start: np.ndarray, end: np.ndarray, thread: np.ndarray, slack: float, moments: Moments
) -> np.ndarray:
    """Return the node around each node, -1 for none; and place the moments.

    A node lies in another if it begins before the end of that, and ends no later than `slack`
    behind it. A moment is placed in the innermost node that has begun and not ended.
    """
    parents = np.full(len(start), -1, np.int32)
    around = parents.data
    stack: list[int] = []
    ends: list[float] = []  # of the nodes on the stack
    current = -1
    waiting = _Waiting(moments)
    next_moment = math.inf
    for node, (begins, until, its_thread) in enumerate(_rows(start, end, thread)):
        if its_thread != current:
            waiting.place(math.inf, stack, ends)
            stack.clear()
            ends.clear()
            current = its_thread
            next_moment = waiting.turn_to(current)
        if next_moment < begins:
            next_moment = waiting.place(begins, stack, ends)
        while stack:
            outer_end = ends[-1]
            if until <= outer_end + slack and (begins < outer_end or until == outer_end):
                around[node] = stack[-1]
                break
            stack.pop()
            ends.pop()
        stack.append(node)
        ends.append(until)
    waiting.place(math.inf, stack, ends)
    return parents


def _rows(
    start: np.ndarray, end: np.ndarray, thread: np.ndarray
) -> Iterator[tuple[float, float, int]]:
    for first in range(0, len(start), _NODES_AT_ONCE):
        part = slice(first, first + _NODES_AT_ONCE)
        yield from zip(start[part].tolist(), end[part].tolist(), thread[part].tolist(), strict=True)


class _Waiting:
    """The moments of the thread that is swept over, as far as they are not placed."""

    def __init__(self, moments: Moments) -> None:
        self._times = moments.times.data
        self._firsts = moments.firsts.tolist()
        self._places = moments.places
        self._at = 0
        self._last = 0

    def turn_to(self, thread: int) -> float:
        """Go on with another thread; return its first moment, infinity for none."""
        self._at, self._last = self._firsts[thread : thread + 2]
        return self._next()

    def _next(self) -> float:
        return float(self._times[self._at]) if self._at < self._last else math.inf

    def place(self, before: float, stack: list[int], ends: list[float]) -> float:
        """Place the moments before a time in the innermost open node, and close what has ended.

        Returns:
            The next moment; infinity for none.
        """
        while self._at < self._last:
            moment = self._times[self._at]
            if moment >= before:
                return float(moment)
            while stack and ends[-1] < moment:
                stack.pop()
                ends.pop()
            if stack:
                self._places[self._at] = stack[-1]
            self._at += 1
        return math.inf


def nearest(parents: np.ndarray, marked: np.ndarray) -> np.ndarray:
    """Return the innermost marked node of each node and those around it; -1 for none.

    Each turn doubles how far a node has looked. What is returned has one row more, -1, so that it
    can be asked for the parent of a node that has none.
    """
    up = np.empty(len(parents) + 1, np.int32)
    up[:-1] = np.where(marked, np.arange(len(parents), dtype=np.int32), parents)
    up[-1] = -1
    looking = np.flatnonzero(~marked & (up[:-1] >= 0))
    while len(looking):
        up[looking] = up[up[looking]]
        found = up[looking]
        looking = looking[(found >= 0) & ~marked[found]]
    return up


def last_inside(parents: np.ndarray) -> np.ndarray:
    """Return the last node that lies in each node, at any depth; else the node itself."""
    last = np.arange(len(parents), dtype=np.int32)
    inner = np.flatnonzero(parents >= 0)
    last[parents[inner]] = inner  # of several the last one stays
    while not np.array_equal(further := last[last], last):
        last = further
    return last
