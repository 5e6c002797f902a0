"""Which gaps on a host thread are hidden work: from lengths written down, not from a clock."""

import pytest

from flopprof.judge.hidden import gap_rows, gap_sums, hidden_gaps
from flopprof.judge.spread import TracedCall
from flopprof.tables import GAPS, KERNELS, OPS

RUN_US = 50_000.0


def call(*lengths_us: float) -> TracedCall:
    """A call of 50 ms with gaps of these lengths in a module each, after 40 of 10 µs in another."""
    ops = OPS.from_rows([{"op_id": 0, "op": "aten::mm", "start_us": 0.0, "cpu_us": RUN_US}])
    rows = [{"module_path": "other", "call_id": 99, "duration_us": 10.0} for _ in range(40)]
    for number, length_us in enumerate(lengths_us):
        row = {"module_path": f"m{number}", "call_id": number, "before_op": "aten::mm"}
        rows.append(row | {"duration_us": length_us})
    for number, row in enumerate(rows):
        row["start_us"] = 100.0 * number
    return TracedCall(ops, GAPS.from_rows(rows), KERNELS.empty())


def hidden_in(*calls: TracedCall) -> list[str]:
    return [row["module_path"] for row in gap_rows([gap_sums(one) for one in calls], {})]


@pytest.mark.parametrize(
    ("length_us", "hidden"),
    [
        (300.0, False),  # a short sleep
        (999.0, False),  # 20 × the median of 10 µs is 200 µs, 1 % of the run 500 µs; 1 ms counts
        (1001.0, True),
    ],
)
def test_a_gap_below_a_millisecond_is_not_hidden(length_us, hidden):
    assert len(hidden_gaps(call(length_us))) == hidden
    assert hidden_in(call(length_us)) == (["m0"] if hidden else [])


def test_a_gap_that_is_long_in_one_of_three_traces_is_the_machines():
    assert hidden_in(call(9000.0, 9000.0), call(9000.0, 300.0), call(9000.0, 300.0)) == ["m0"]
