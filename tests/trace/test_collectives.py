"""Times of collectives that add up over ranks, against calculations by hand."""

import math

import numpy as np
import pytest

from flopprof.tables import KERNELS
from flopprof.trace import collectives
from flopprof.trace.collectives import (
    CollectiveSums,
    add_up_collectives,
    collective_facts,
    collective_sums,
)


def of_rank(*times_us: float, message_bytes: float = 8.0) -> CollectiveSums:
    """Return the sums of a rank whose all-reduces took so long."""
    rows = [
        {
            "kind": "communication",
            "duration_us": time_us,
            "collective": "all_reduce",
            "process_group": "0",
            "group_size": 2.0,
            "message_bytes": message_bytes,
        }
        for time_us in times_us
    ]
    return collective_sums(KERNELS.from_rows(rows))


def test_times_of_ranks_are_those_of_all_calls():
    (row,) = collective_facts(add_up_collectives([of_rank(5, 1, 9), of_rank(2)]))

    # 1, 2, 5, 9: the middle lies between 2 and 5.
    assert (row.calls, row.time_us, row.shortest_us, row.median_us) == (4, 17, 1, 3.5)


def test_adding_up_in_two_steps_gives_the_same():
    parts = [of_rank(3, 1), of_rank(2), of_rank(7, 7, 7)]

    at_once = add_up_collectives(parts)
    in_steps = add_up_collectives([add_up_collectives(parts[:2]), parts[2]])

    assert collective_facts(in_steps) == collective_facts(at_once)
    assert collective_facts(at_once)[0].median_us == 5  # of 1, 2, 3, 7, 7, 7: between 3 and 7


def test_of_many_calls_the_median_is_within_a_thousandth_of_the_middle(monkeypatch):
    monkeypatch.setattr(collectives, "MOST_TIMES", 1000)
    first = np.arange(0, 20_000, 2)
    parts = [of_rank(*first.tolist()), of_rank(*(first + 1).tolist())]

    (row,) = collective_facts(add_up_collectives(parts))

    assert (row.calls, row.shortest_us) == (20_000, 0)  # 0 to 19,999 µs, each once
    assert row.median_us == pytest.approx(9999.5, abs=2 * 20_000 / 1000)
    assert row.time_us == 20_000 * 19_999 / 2


def test_sizes_beyond_the_most_are_together_without_a_size(monkeypatch):
    monkeypatch.setattr(collectives, "MOST_SIZES", 2)
    parts = [of_rank(10.0 * size, message_bytes=float(size)) for size in (1, 2, 3, 4)]

    rows = collective_facts(add_up_collectives(parts))

    kept = {row.message_bytes: row.time_us for row in rows if not math.isnan(row.message_bytes)}
    assert kept == {4.0: 40.0, 3.0: 30.0}  # those of most time
    (rest,) = (row for row in rows if math.isnan(row.message_bytes))
    assert (rest.calls, rest.time_us) == (2, 30.0)


def test_a_rank_without_collectives_adds_nothing():
    assert collective_sums(KERNELS.empty()) == {}
    assert collective_facts(add_up_collectives([{}, of_rank(1)]))[0].calls == 1
