"""What gloo sends, as traces of CPU ranks show it: annotations on threads of its own."""

import pytest

from flopprof.trace.read import read_trace
from tests.events import LINEAR, op, with_shapes, write_trace

GROUP = {"pg_name": "0", "pg_size": 4, "ranks": [0, 1, 2, 3]}
JOB = {"distributedInfo": {"backend": "gloo", "rank": 2, "world_size": 4, "pg_config": [GROUP]}}
FLOATS = {"Input Dims": [[100, 3]], "Input type": ["float"]}


def sent(name, ts, dur, shapes=FLOATS):
    return with_shapes(op(name, ts, dur, tid=9), shapes) | {"cat": "user_annotation"}


def ranged(ts, dur):
    return op("flopprof:", ts, dur)


def product(ts, dur):
    return with_shapes(op("aten::linear", ts, dur), LINEAR)


def test_a_collective_tells_its_bytes_group_and_what_lies_beside_it(tmp_path):
    path = write_trace(
        tmp_path / "trace.json", product(0, 30), sent("gloo:all_reduce", 10, 50), **JOB
    )

    [row] = read_trace(path).info["collectives"].to_dict("records")

    # 100·3 floats of 4 bytes; from 10 to 60, of which the product lasts until 30.
    assert row == {
        "rank": 2,
        "collective": "all_reduce",
        "process_group": "0",
        "group_size": 4.0,
        "message_bytes": 1200.0,
        "start_us": 10.0,
        "duration_us": 50.0,
        "overlapped_us": 20.0,
    }


def test_an_all_gather_gets_as_much_from_each_rank(tmp_path):
    path = write_trace(
        tmp_path / "trace.json", product(0, 30), sent("gloo:all_gather", 10, 50), **JOB
    )

    assert read_trace(path).info["collectives"]["message_bytes"].tolist() == [4 * 1200.0]


def test_of_several_groups_a_collective_tells_none(tmp_path):
    several = {"distributedInfo": {**JOB["distributedInfo"], "pg_config": [GROUP, GROUP]}}
    path = write_trace(
        tmp_path / "trace.json", product(0, 30), sent("gloo:all_reduce", 10, 50), **several
    )

    collectives = read_trace(path).info["collectives"]
    assert collectives["process_group"].tolist() == [""]
    assert collectives["group_size"].isna().all()


@pytest.mark.parametrize("shapes", [{}, {"Input Dims": [[100]], "Input type": [""]}])
def test_without_shapes_or_types_its_bytes_are_not_known(tmp_path, shapes):
    path = write_trace(
        tmp_path / "trace.json", product(0, 30), sent("gloo:all_reduce", 10, 50, shapes), **JOB
    )

    assert read_trace(path).info["collectives"]["message_bytes"].isna().all()


def test_waiting_for_gloo_is_no_gap(tmp_path):
    path = write_trace(
        tmp_path / "trace.json",
        ranged(0, 1000),
        product(0, 100),
        sent("gloo:all_gather", 110, 780),
        product(900, 100),
        **JOB,
    )

    # Between the two products lie 800 µs; gloo was at work in 780 of them.
    assert read_trace(path).gaps["duration_us"].sum() == pytest.approx(20)


def test_an_op_that_waits_for_its_operand_is_split_into_the_wait_and_the_work(tmp_path):
    rows = {"Input Dims": [[8, 32], []], "Input type": ["float", ""]}
    path = write_trace(
        tmp_path / "trace.json",
        with_shapes(op("aten::sum", 0, 1000), rows),
        with_shapes(op("_c10d_functional::wait_tensor", 10, 900), rows),
        with_shapes(op("aten::sum", 920, 70), rows),
        **JOB,
    )

    ops = read_trace(path).ops
    counted = ops[ops["counted"]]
    assert counted["op"].tolist() == ["_c10d_functional::wait_tensor", "aten::sum"]
    assert counted["cpu_us"].tolist() == [900.0, 70.0]
    # 8·32 numbers, one addition for each.
    assert counted["vector_flops"].tolist() == [0.0, 256.0]
