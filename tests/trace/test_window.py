"""Parts of a trace: by the profiler's steps, or by seconds from its begin."""

import json
from pathlib import Path
from typing import Any

import pytest

from flopprof.api import analyse_traces
from flopprof.cli import main
from flopprof.errors import UsageError
from flopprof.run import Run
from tests.events import ADDMM, kernel, launch, op, with_shapes, write_trace

PRODUCT = 240  # [4,5] @ [5,6]: 24 outputs × 5 multiply-adds × 2


def step_events(number: int, begin: float) -> list[dict[str, Any]]:
    """Return a step of 100 µs with a product at its 10th µs, whose kernel begins at its 90th."""
    return [
        op(f"ProfilerStep#{number}", begin, 100) | {"cat": "user_annotation"},
        op("aten::linear", begin + 10, 30),
        with_shapes(op("aten::addmm", begin + 15, 20), ADDMM),
        launch(number, begin + 20),
        kernel(number, begin + 90, 20),
    ]


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a trace of steps 3 to 6, which begin at 0, 100, 200, 300 µs."""
    events = [event for n in range(4) for event in step_events(3 + n, 1000.0 + 100 * n)]
    lone = kernel(99, 1000 + 250, 5)  # which no op launched: at 250 µs
    first = op("aten::empty", 1000, 1)
    return write_trace(tmp_path_factory.mktemp("window") / "trace.json", first, *events, lone)


def steps_of(run: Run) -> list[str]:
    return [step.step for step in run.provenance.steps]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("steps", "numbers"),
    [
        ("4:6", ["4", "5"]),
        ("4", ["4"]),
        ("5:", ["5", "6"]),
        (":5", ["3", "4"]),
        ("0:100", ["3", "4", "5", "6"]),
        (" 6 ", ["6"]),
    ],
)
def test_steps_are_taken_by_the_profilers_numbers(trace, steps, numbers):
    run = analyse_traces(trace, steps=steps)

    assert steps_of(run) == numbers
    assert run.totals.matmul_flops == PRODUCT * len(numbers)


def test_a_step_may_begin_before_the_first_op(tmp_path):
    path = write_trace(tmp_path / "early.json", *step_events(3, 0), *step_events(4, 100))

    run = analyse_traces(path, steps="3")

    assert steps_of(run) == ["3"]
    assert run.provenance.trace.span_us == 100  # type: ignore[union-attr]  # 10 to 90 + 20


def test_a_step_has_the_kernels_that_its_ops_launched_and_spans_them(trace):
    run = analyse_traces(trace, steps="5")

    # The product's kernel of 20 µs, and the lone one of 5 µs; step 4's ends in it and is not.
    assert run.kernels["duration_us"].sum() == 25
    assert run.provenance.trace.span_us == 110  # type: ignore[union-attr]  # 200 to 290 + 20


@pytest.mark.parametrize(
    ("from_s", "to_s", "flops", "steps"),
    [
        (110.5e-6, None, 2 * PRODUCT, ["5", "6"]),  # ops begin at 10, 110, 210, 310 µs: the outer
        (109e-6, None, 3 * PRODUCT, ["5", "6"]),
        (None, 210e-6, 2 * PRODUCT, ["3", "4"]),
        (None, 211e-6, 3 * PRODUCT, ["3", "4"]),
        (112e-6, 300e-6, PRODUCT, ["5"]),  # that of step 4 began before, though its part did not
        (245e-6, 255e-6, 0, []),  # the lone kernel
    ],
)
def test_calls_are_taken_by_when_their_outermost_op_begins(trace, from_s, to_s, flops, steps):
    run = analyse_traces(trace, from_s=from_s, to_s=to_s)

    assert run.totals.matmul_flops == flops
    assert steps_of(run) == steps


def test_windows_are_cut_with_each_other(trace):
    assert steps_of(analyse_traces(trace, skip_steps=2, steps="3:6")) == ["5"]
    assert steps_of(analyse_traces(trace, steps="3:6", from_s=95e-6)) == ["4", "5"]


@pytest.mark.parametrize(
    ("options", "problem", "remedy"),
    [
        ({"steps": "8:9"}, "no profiler step of --steps 8:9", "steps 3 to 6"),
        ({"steps": "5:5"}, "holds no step", "3:8 is 3 to 7"),
        ({"steps": "6:4"}, "holds no step", "3:8 is 3 to 7"),
        ({"steps": ":"}, "--steps is ':'", "3:8"),
        ({"steps": ""}, "--steps is ''", "3:8"),
        ({"steps": "-3:8"}, "--steps is '-3:8'", "3:8"),
        ({"steps": "a"}, "--steps is 'a'", "3:8"),
        ({"from_s": -1.0}, "--from is -1", "0 or more"),
        ({"to_s": float("nan")}, "--to is nan", "0 or more"),
        ({"from_s": 2.0, "to_s": 1.0}, "not before", "later --to"),
        ({"from_s": 1.0}, "the trace lasts 410 µs", "--from"),  # 300 + 90 + 20
        ({"skip_steps": 4}, "leaving out 4 leaves none", "--skip-steps"),
        ({"skip_steps": -1}, "--skip-steps is -1", "0 or more"),
    ],
)
def test_a_window_without_anything_is_refused(trace, options, problem, remedy):
    with pytest.raises(UsageError) as caught:
        analyse_traces(trace, **options)

    assert problem in caught.value.problem
    assert remedy in (caught.value.remedy or "")


def test_steps_of_a_trace_without_any_name_the_way_out(tmp_path):
    path = write_trace(tmp_path / "none.json", with_shapes(op("aten::addmm", 0, 9), ADDMM))

    with pytest.raises(UsageError) as caught:
        analyse_traces(path, steps="3:8")

    assert "--from and --to" in (caught.value.remedy or "")


def test_the_command_takes_windows(trace, tmp_path, capsys):
    folder = str(tmp_path / "run")
    window = ["--steps", "3:6", "--from", "0.000095", "--to", "0.00025"]

    assert main(["trace", str(trace), *window, "-o", folder, "--json"]) == 0

    answer = json.loads(capsys.readouterr().out)
    assert [step["step"] for step in answer["steps"]] == ["4"]
    assert answer["matmul_flops"] == 2 * PRODUCT  # of step 5 the call is inside, the step is not
