"""Events as typed objects: what does not fit the types is read as what fits them would be."""

import json
import math
from typing import Any

import pytest

from flopprof.trace.decode import decode_events, event_from
from flopprof.trace.read import read_trace
from tests.events import ADDMM, kernel, launch, op, with_shapes, write_trace


def decoded(event: Any) -> Any:
    """Return what is decoded of one event that stands between two others."""
    text = json.dumps([op("aten::relu", 0, 1), event, op("aten::relu", 2, 1)]).encode()
    before, middle, after = decode_events(text)
    assert (before.ts, after.ts) == (0.0, 2.0)
    return middle


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ({"ts": "7.5"}, "ts", 7.5),
        ({"ts": 7}, "ts", 7.0),
        ({"ts": True}, "ts", 1.0),
        ({"dur": "3"}, "dur", 3.0),
        ({"name": 5}, "name", None),
        ({"name": None}, "name", None),
        ({"cat": ["cpu_op"]}, "cat", None),
        ({"ph": 1}, "ph", ""),
        ({"tid": 1.5}, "tid", "1.5"),
        ({"pid": 10**30}, "pid", "1e+30"),
        ({"pid": None, "tid": [1]}, "tid", "[1]"),
    ],
)
def test_a_value_of_another_type_costs_no_more_than_itself(change, field, value):
    event = decoded(op("aten::mul", 1, 1) | change)

    assert getattr(event, field) == value


@pytest.mark.parametrize("time", [None, "soon", [1], {}, "nan"])
def test_a_time_that_is_no_number_is_unknown(time):
    assert math.isnan(decoded(op("aten::mul", 1, 1) | {"ts": time}).ts)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (12, 12),
        ("12", 12),
        (2**63 - 1, 2**63 - 1),
        (2**63, -1),
        (-(2**70), -1),
        ("²", -1),
        ("1" * 20, -1),
        (1.0, -1),
        (True, -1),
        ([3], -1),
        (None, -1),
    ],
)
def test_an_id_is_an_integer_or_the_text_of_one(written, read):
    event = decoded(kernel(1, 1, 1) | {"args": {"correlation": written, "stream": 4}})

    assert event.args.correlation == read
    assert event.args.stream == 4


@pytest.mark.parametrize("value", [None, 5, "text", [], [1], [{"ph": "X"}], True])
def test_what_is_no_object_is_no_event(value):
    assert decoded(value).ph == ""


@pytest.mark.parametrize("arguments", [5, "text", [1]])
def test_arguments_that_are_no_object_make_it_no_event(arguments):
    assert decoded(op("aten::mul", 1, 1) | {"args": arguments}).ph == ""


def test_of_a_key_that_is_there_twice_the_last_holds():
    text = b'[{"ph": "X", "ts": 1, "ts": 2, "cat": 5, "cat": "cpu_op", "args": {"stream": 1, '
    text += b'"stream": 2}}]'

    (event,) = decode_events(text)

    assert event.args is not None
    assert (event.ts, event.cat, event.args.stream) == (2.0, "cpu_op", 2)


@pytest.mark.parametrize("text", [b"[{]", b'[{"a": NaN}]', b"[1", b'[{"ts": null}, ', b'["\xff"]'])
def test_what_is_no_json_is_no_list_of_events(text):
    with pytest.raises(ValueError, match=r"."):
        decode_events(text)


def test_lists_too_deep_to_decode_are_no_json():
    with pytest.raises(ValueError, match="deep"):
        decode_events(b'[{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}]")


def test_both_ways_give_the_same_event():
    typed = decoded(with_shapes(op("aten::addmm", 1, 2, External_id=7), ADDMM))
    loose = event_from(with_shapes(op("aten::addmm", 1, 2, External_id=7), ADDMM))

    assert loose.args is not None
    for name in ("ph", "cat", "name", "pid", "tid", "ts", "dur"):
        assert getattr(loose, name) == getattr(typed, name)
    assert loose.args.external_id == typed.args.external_id == 7
    for name in ("dims", "types", "values", "strides"):
        texts = (bytes(getattr(args, name)) for args in (loose.args, typed.args))
        one, other = (json.loads(text or b"null") for text in texts)
        assert one == other


def test_calls_are_alike_however_their_arguments_are_written(tmp_path):
    one = json.dumps(with_shapes(op("aten::addmm", 0, 5), ADDMM))
    other = json.dumps(with_shapes(op("aten::addmm", 10, 5), ADDMM), separators=(",", ":"))
    odd = json.dumps(with_shapes(op("aten::addmm", 20, 5), ADDMM) | {"tid": 1.0})
    path = tmp_path / "t.json"
    path.write_text('{"traceEvents": [' + ", ".join((one, other, odd)) + "]}")

    ops = read_trace(path).ops

    # [4,5] @ [5,6]: 4·6 outputs of 5 multiply-adds, 2 FLOPs each
    assert ops["matmul_flops"].tolist() == [240.0] * 3
    assert ops["input_shapes"].nunique() == 1


def test_a_chunk_with_an_odd_event_keeps_its_kernels_and_their_ops(tmp_path):
    busy = [with_shapes(op("aten::addmm", 0, 9), ADDMM), launch(1, 2), kernel(1, 20, 4)]
    odd = [op("aten::relu", 30, 1) | {"tid": 1.5}, op("aten::relu", 40, 1) | {"ts": "x"}]

    trace = read_trace(write_trace(tmp_path / "t.json", *busy, *odd))

    assert len(trace.ops) == 2
    assert trace.kernels["op_id"].tolist() == [0]
    assert trace.info["warnings"] == ["1 events without finite times were left out"]
