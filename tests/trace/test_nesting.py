"""Nodes in nodes, and moments in nodes, by hand-made times."""

import numpy as np

from flopprof.trace.gaps import busy_until
from flopprof.trace.nesting import Moments, last_inside, nearest, nest


def nested(rows, moments=(), slack=0.0):
    """Return the parents of rows (thread, start, end), and the places of moments (thread, time)."""
    thread, start, end = (np.array(column) for column in zip(*rows, strict=True))
    threads = np.array([one for one, _ in moments], dtype=np.int32)
    times = np.array([time for _, time in moments], dtype=float)
    waiting = Moments.of(threads, times, 1 + max([*thread.tolist(), *threads.tolist()]))
    parents = nest(start.astype(float), end.astype(float), thread, slack, waiting)
    places = np.empty(len(moments), dtype=np.int64)
    places[waiting.order] = waiting.places
    return parents.tolist(), places.tolist()


def test_a_node_lies_in_the_innermost_that_has_not_ended():
    rows = [(0, 0, 100), (0, 10, 50), (0, 20, 30), (0, 60, 90), (0, 200, 210)]

    assert nested(rows)[0] == [-1, 0, 1, 0, -1]


def test_threads_hold_nothing_of_each_other():
    assert nested([(0, 0, 100), (1, 10, 20), (1, 12, 15)])[0] == [-1, -1, 1]


def test_a_node_of_no_length_lies_in_one_that_begins_or_ends_there():
    assert nested([(0, 0, 10), (0, 0, 0), (0, 10, 10)])[0] == [-1, 0, 0]


def test_a_node_may_end_late_by_the_slack_and_no_more():
    rows = [(0, 0, 10), (0, 5, 10.5)]

    assert nested(rows, slack=0.5)[0] == [-1, 0]
    assert nested(rows, slack=0.4)[0] == [-1, -1]


def test_a_moment_lies_in_the_innermost_open_node_of_its_thread():
    rows = [(0, 0, 100), (0, 10, 50), (2, 0, 100)]
    moments = [(0, 60), (0, 10), (0, 50), (0, 101), (1, 20), (2, 100), (0, -1)]

    assert nested(rows, moments)[1] == [0, 1, 1, -1, -1, 2, -1]


def test_the_nearest_marked_node_is_itself_or_one_around():
    parents = np.array([-1, 0, 1, 2, -1, 4], np.int32)
    marked = np.array([False, True, False, False, False, True])

    assert nearest(parents, marked).tolist() == [-1, 1, 1, 1, -1, 5, -1]


def test_a_chain_of_a_hundred_thousand_is_climbed():
    size = 100_000
    parents = np.arange(-1, size - 1, dtype=np.int32)
    marked = np.zeros(size, dtype=bool)
    marked[7] = True

    found = nearest(parents, marked)

    assert found[6] == -1
    assert (found[7:-1] == 7).all()
    assert (last_inside(parents) == size - 1).all()


def test_the_last_node_inside_is_found_at_any_depth():
    parents = np.array([-1, 0, 1, 0, 3, -1], np.int32)

    assert last_inside(parents).tolist() == [4, 2, 2, 4, 4, 5]


def test_busy_time_counts_overlaps_once():
    starts, ends = np.array([0.0, 5.0, 20.0]), np.array([10.0, 12.0, 30.0])

    assert busy_until(starts, ends, [7.0, 15.0, 25.0, np.inf]).tolist() == [7.0, 12.0, 17.0, 22.0]
