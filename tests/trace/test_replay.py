"""A replayed graph's kernels get the ops of its capture, by order and name."""

import json
from pathlib import Path
from typing import Any

import pytest

from flopprof.api import analyse_traces
from flopprof.cli import main
from tests.events import ADDMM, LINEAR, kernel, launch, op, with_shapes, write_trace

H100 = {"id": 0, "name": "NVIDIA H100 80GB HBM3"}
RELU = {"Input Dims": [[4, 6]], "Input type": ["float"]}
# [4,5] @ [5,6] + [6]: 4·6·5 multiply-adds × 2, 4·6 additions; relu: 4·6.
MATMUL, VECTOR = 240, 24 + 24


def capture(
    folder: Path, *, names: bool = False, markers: bool = True, twice: bool = False
) -> Path:
    """Write the trace of a capture: a linear and a relu, launches and no kernels."""
    begin = launch(90, 1) | {"name": "cudaStreamBeginCapture"}
    end = launch(91, 90) | {"name": "cudaStreamEndCapture"}
    first = launch(1, 14)
    second = launch(2, 52)
    if names:
        first = with_shapes(first, {"kernel": "gemm"})
        second = with_shapes(second, {"kernel": "relu_kernel"})
    events = [
        with_shapes(op("aten::linear", 10, 20), LINEAR),
        with_shapes(op("aten::addmm", 12, 10), ADDMM),
        first,
        with_shapes(op("aten::relu", 50, 10), RELU),
        second,
        op("aten::empty", 70, 5),
    ]
    if markers:
        events += [begin, end]
    if twice:  # another graph, of three launches
        events += [
            launch(92, 101) | {"name": "cudaStreamBeginCapture"},
            op("aten::neg", 110, 50),
            *(launch(n, 110 + n) for n in (3, 4, 5)),
            launch(93, 190) | {"name": "cudaStreamEndCapture"},
        ]
    return write_trace(folder / "capture.json", *events)


def replay(folder: Path, *, reordered: bool = False, times: int = 3) -> Path:
    """Write the trace of replays: kernels of 30 and 5 µs, and no ops."""
    events: list[Any] = []
    for n in range(times):
        at = 100.0 * n
        gemm, relu = (40, 10) if reordered else (10, 50)
        events += [
            launch(50 + n, at) | {"name": "cudaGraphLaunch"},
            kernel(50 + n, at + gemm, 30, name="gemm"),
            kernel(50 + n, at + relu, 5, name="relu_kernel"),
        ]
    return write_trace(folder / "replay.json", *events, deviceProperties=[H100])


@pytest.mark.parametrize("names", [False, True])
@pytest.mark.parametrize(
    ("markers", "twice"),
    [(False, False), (True, False), (True, True)],  # without a mark two graphs are one
)
def test_the_kernels_of_each_replay_get_the_captured_ops(tmp_path, names, markers, twice):
    path = replay(tmp_path)

    run = analyse_traces(path, capture=capture(tmp_path, names=names, markers=markers, twice=twice))

    sites = run.sites.set_index("op")
    assert set(sites.index) == {"aten::linear", "aten::relu"}
    assert sites["calls"].to_dict() == {"aten::linear": 3, "aten::relu": 3}
    assert sites["matmul_flops"].sum() == 3 * MATMUL
    assert sites["vector_flops"].sum() == 3 * VECTOR
    assert sites["time_us"].to_dict() == {"aten::linear": 90, "aten::relu": 15}
    assert sites.loc["aten::linear", "input_shapes"] == "4x5, 6x5, 6"
    assert (run.kernels["op_id"] >= 0).all()


def test_kernels_that_ran_in_another_order_are_matched_by_name(tmp_path):
    run = analyse_traces(replay(tmp_path, reordered=True), capture=capture(tmp_path, names=True))

    times = run.sites.set_index("op")["time_us"].to_dict()
    assert times == {"aten::linear": 90, "aten::relu": 15}


def test_a_replay_of_another_size_stays_hidden_and_is_told_of(tmp_path):
    path = write_trace(
        tmp_path / "replay.json",
        launch(50, 0) | {"name": "cudaGraphLaunch"},
        *(kernel(50, 10 + n, 1, name=f"k{n}") for n in range(7)),
        deviceProperties=[H100],
    )

    run = analyse_traces(path, capture=capture(tmp_path))

    assert list(run.sites["verdict"]) == ["hidden"]
    assert any("1 replays of 1 match no captured graph" in w for w in run.provenance.warning_texts)


def test_names_that_contradict_match_nothing(tmp_path):
    path = write_trace(
        tmp_path / "replay.json",
        launch(50, 0) | {"name": "cudaGraphLaunch"},
        kernel(50, 10, 1, name="softmax"),
        kernel(50, 20, 1, name="relu_kernel"),
    )

    run = analyse_traces(path, capture=capture(tmp_path, names=True))

    assert list(run.sites["verdict"]) == ["hidden"]


def test_an_eager_trace_serves_as_the_capture_by_the_names_of_its_kernels(tmp_path):
    eager = write_trace(
        tmp_path / "eager.json",
        op("aten::neg", 0, 5),
        launch(7, 2),
        kernel(7, 100, 9, name="neg_kernel"),
        with_shapes(op("aten::addmm", 12, 10), ADDMM),
        launch(1, 14),
        kernel(1, 110, 9, name="gemm"),
        with_shapes(op("aten::relu", 50, 10), RELU),
        launch(2, 52),
        kernel(2, 120, 9, name="relu_kernel"),
    )

    run = analyse_traces(replay(tmp_path), capture=eager)

    assert run.sites["matmul_flops"].sum() == 3 * MATMUL
    assert run.sites.set_index("op")["time_us"].to_dict() == {"aten::addmm": 90, "aten::relu": 15}


def test_replays_beside_ops_of_their_own_keep_both(tmp_path):
    path = replay(tmp_path)
    trace = json.loads(path.read_text())
    trace["traceEvents"] += [
        op("aten::neg", 400, 9),
        launch(80, 402),
        kernel(80, 500, 2, name="neg"),
    ]
    path.write_text(json.dumps(trace))

    run = analyse_traces(path, capture=capture(tmp_path))

    times = run.sites.set_index("op")["time_us"].to_dict()
    assert times == {"aten::linear": 90, "aten::relu": 15, "aten::neg": 2}


def test_a_custom_function_in_the_capture_is_an_extension_in_the_replay(tmp_path):
    path = write_trace(
        tmp_path / "capture.json", op("MyFunction", 0, 20), launch(1, 5), launch(2, 9)
    )

    run = analyse_traces(replay(tmp_path), capture=path)

    (site,) = run.sites.itertuples()
    assert (site.op, site.verdict, site.calls, site.time_us) == ("MyFunction", "extension", 3, 105)


def test_the_command_takes_a_capture(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = replay(tmp_path)
    other = capture(tmp_path)

    assert main(["trace", str(path), "--capture", str(other), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["matmul_flops"] == 3 * MATMUL
    assert main(["trace", str(path), "--capture", "nowhere.json"]) == 2
