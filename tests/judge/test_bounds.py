"""Ops whose FLOPs values decide: both bounds enter, once, and the ops below them come first."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from flopprof.assemble import as_call
from flopprof.judge.reconcile import reconcile
from flopprof.tables import MODULE_CALLS, ROOFLINES
from flopprof.totals import add_up
from flopprof.trace.read import read_trace
from tests.events import kernel, launch, op, with_shapes, write_trace

ADD = {"Input Dims": [[4, 5], [4, 5], []], "Input type": ["float", "float", ""]}
"""20 elements, without Concrete Inputs: alpha may be 1 (20 FLOPs) or not (40)."""


def judged(path: Path, *events: Any) -> pd.DataFrame:
    trace = read_trace(write_trace(path / "trace.json", *events))
    return reconcile(
        MODULE_CALLS.empty(), [as_call(trace)], ROOFLINES.empty(),
        dtype="float32",
    ).sites  # fmt: skip


def test_both_bounds_of_an_addition_without_recorded_values_enter_the_totals(tmp_path):
    events = [with_shapes(op("aten::add_", 0, 10), ADD), launch(1, 2), kernel(1, 20, 5)]

    for recorded in (events, events[:1]):  # on a device, on a CPU
        totals = add_up(judged(tmp_path, *recorded), math.nan)

        assert (totals.flops, totals.flops_at_most) == (20, 40)
        assert (totals.matmul_flops, totals.vector_flops) == (0, 20)


def test_an_op_and_the_same_op_below_it_are_bounded_once(tmp_path):
    outer = with_shapes(op("aten::add_", 0, 10), ADD)
    inner = with_shapes(op("aten::add_", 1, 8), ADD)

    totals = add_up(judged(tmp_path, outer, inner), math.nan)

    assert (totals.flops, totals.flops_at_most) == (20, 40)


def test_what_the_ops_below_say_exactly_needs_no_bound(tmp_path):
    lists = {"Input Dims": [[[4, 5], [3]], []], "Input type": ["TensorList", "Scalar"],
             "Concrete Inputs": ["", "2"]}  # fmt: skip
    inner = {"Input type": ["long int", "Scalar"], "Concrete Inputs": ["", "2"]}
    outer = with_shapes(op("aten::_foreach_mul", 0, 20), lists)
    first = with_shapes(op("aten::mul", 1, 5), {"Input Dims": [[4, 5], []], **inner})
    second = with_shapes(op("aten::mul", 7, 5), {"Input Dims": [[3], []], **inner})

    # Integers, as their products say; alone, the list might be of complex numbers: 6 · 23.
    known = add_up(judged(tmp_path, outer, first, second), math.nan)
    alone = add_up(judged(tmp_path, outer), math.nan)

    assert (known.flops, known.flops_at_most) == (0, 0)
    assert (alone.flops, alone.flops_at_most) == (0, 138)


def test_a_bounded_op_with_an_unknown_one_below_it_is_not_free(tmp_path):
    lists = {"Input Dims": [[[4, 5], [3]], []], "Input type": ["TensorList", "Scalar"],
             "Concrete Inputs": ["", "2"]}  # fmt: skip
    outer = with_shapes(op("aten::_foreach_mul", 0, 20), lists)

    sites = judged(tmp_path, outer, op("aten::no_such_op", 1, 5)).set_index("op")

    # As if alone: of integers at least, of complex numbers at most, 6 · (4·5 + 3).
    bounded = sites.loc["aten::_foreach_mul"]
    assert bounded["verdict"] == "unknown"
    assert math.isnan(bounded["flops"])
    assert bounded["flops_at_most"] == 138


def test_a_check_that_an_op_calls_is_not_what_the_op_does(tmp_path):
    # 2 rows of 3 classes: at most 3 labels, each 4 FLOPs with 3 others, their sum 3, a division:
    # 2 · (4·3·3 + 3 + 1) = 80. The largest target is looked at first: integers, no FLOPs.
    shapes = {"Input Dims": [[2, 3], [2, 3], []], "Input type": ["float", "long int", "Scalar"],
              "Concrete Inputs": ["", "", "1"]}  # fmt: skip
    targets = {"Input Dims": [[2, 3]], "Input type": ["long int"], "Concrete Inputs": [""]}
    loss = with_shapes(op("aten::multilabel_margin_loss_forward", 0, 20), shapes)
    check = with_shapes(op("aten::max", 1, 5), targets)

    sites = judged(tmp_path, loss, check)

    assert dict(zip(sites["op"], sites["verdict"], strict=True)) == {
        "aten::multilabel_margin_loss_forward": "unknown",
        "aten::max": "free",
    }
    assert (add_up(sites, math.nan).flops, add_up(sites, math.nan).flops_at_most) == (0, 80)


@pytest.mark.parametrize("name", ["aten::_fancy", "mine::_fancy"])
def test_an_unknown_op_that_a_mode_passed_on_is_one_call(tmp_path, name):
    shapes = {"Input Dims": [[4, 5]], "Input type": ["float"]}
    outer = with_shapes(op(name, 0, 10), shapes)
    inner = with_shapes(op(name, 1, 8), shapes)

    sites = judged(tmp_path, outer, inner)

    unknown = sites[sites["flops"].isna()]
    assert unknown["calls"].tolist() == [1]


def test_an_unknown_op_that_calls_itself_on_a_part_is_several_calls(tmp_path):
    outer = with_shapes(op("mine::_fancy", 0, 10), {"Input Dims": [[4]], "Input type": ["float"]})
    inner = with_shapes(op("mine::_fancy", 1, 8), {"Input Dims": [[2]], "Input type": ["float"]})

    sites = judged(tmp_path, outer, inner)

    assert sites["flops"].isna().tolist() == [True, True]


def test_a_ceiling_that_is_too_low_bounds_nothing(tmp_path):
    roof = {
        "dtype": "float32", "unit": "tensor", "memory_level": "DRAM", "peak_flops_per_s": 1.0,
        "peak_bytes_per_s": 1e9, "ridge_flops_per_byte": 1e-9, "kind": "user", "valid": True,
    }  # fmt: skip
    trace = read_trace(write_trace(tmp_path / "t.json", with_shapes(op("aten::add_", 0, 10), ADD)))

    sites = reconcile(
        MODULE_CALLS.empty(), [as_call(trace)], ROOFLINES.from_rows([roof]),
        dtype="float32",
    ).sites  # fmt: skip

    # 10 µs at 1 FLOP/s would be one FLOP at most; 20 ran at least.
    assert add_up(sites, math.nan).flops_at_most == 20


def test_a_call_that_its_formula_does_not_determine_is_not_free_without_ops_below_it(tmp_path):
    # padding="same" is text, which no trace records; what the op did is recorded nowhere else.
    shapes = {"Input Dims": [[], [3, 4]], "Input type": ["", "float"], "Concrete Inputs": ["", ""]}

    sites = judged(tmp_path, with_shapes(op("aten::matmul", 0, 10), shapes))

    assert sites["verdict"].tolist() == ["unknown"]
