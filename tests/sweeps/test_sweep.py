"""A model over a grid: which cells, what each gives, what goes on after a stop, what to take."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import flopprof
from flopprof.cli import main
from flopprof.errors import LoadError, UsageError
from flopprof.run import Run
from flopprof.sweeps import measure
from flopprof.sweeps.cell import profile_cell
from flopprof.sweeps.draw import axis_along, draw_sweep
from flopprof.sweeps.grid import Cell, cells_of, parse_values
from flopprof.sweeps.result import Sweep
from flopprof.sweeps.write import text_of, write_sweep

NET = "from torch import nn\ndef build():\n    return nn.Linear(8, 4)\n"


@pytest.fixture
def net(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Path("net.py").write_text(NET)
    return "net.py:build"


@pytest.mark.parametrize(
    ("axis", "text", "values"),
    [
        ("batch", "1,2,4..64", [1, 2, 4, 8, 16, 32, 64]),
        ("batch", "3..20", [3, 6, 12]),
        ("batch", "8", [8]),
        ("threads", "1, 2", [1, 2]),
        ("dtype", "float32,bfloat16", ["float32", "bfloat16"]),
        ("compile", "none,max-autotune", ["none", "max-autotune"]),
    ],
)
def test_values_as_they_are_typed(axis, text, values):
    assert parse_values(axis, text) == values


@pytest.mark.parametrize("text", ["x", "1..", "4..2", "0", "-1", "1.5"])
def test_values_that_are_no_numbers_are_refused(text):
    with pytest.raises(UsageError, match="--batch"):
        parse_values("batch", text)


def test_the_batch_varies_fastest_and_a_value_counts_once():
    cells = cells_of({"batch": [1, 2, 1], "dtype": ["float32", "bfloat16"]})

    assert [cell.name for cell in cells] == [
        "dtype-float32_batch-1",
        "dtype-float32_batch-2",
        "dtype-bfloat16_batch-1",
        "dtype-bfloat16_batch-2",
    ]
    assert cells[3].label == "batch 2, bfloat16"


@pytest.mark.parametrize(
    "grid", [{}, {"colour": ["red"]}, {"batch": []}, {"batch": [0]}, {"threads": ["two"]}]
)
def test_a_grid_without_cells_is_refused(grid):
    with pytest.raises(UsageError):
        cells_of(grid)


@pytest.mark.parametrize(
    ("mode", "option"), [("none", False), ("default", "default"), (True, "default")]
)
def test_a_mode_of_compiling_becomes_the_option(mode, option):
    (cell,) = cells_of({"compile": [mode]})

    assert cell.options == {"compile": option}


def row(latency_us: float, samples_per_s: float, **more: Any) -> dict[str, Any]:
    return {"status": "ok", "latency_p50_us": latency_us, "samples_per_s": samples_per_s, **more}


def sweep_of(*rows: dict[str, Any]) -> Sweep:
    return Sweep("net", ["batch"], [{"batch": 2**n, **each} for n, each in enumerate(rows)])


def test_the_front_are_the_cells_that_no_other_beats():
    result = sweep_of(row(100, 10), row(110, 9), row(150, 13), row(300, 13), row(400, 14))

    # 2: slower than 1 and less; 8: slower than 4 and no more.
    assert list(result.pareto["batch"]) == [1, 4, 16]


def test_the_shortest_latency_of_nearly_the_best_throughput_is_recommended():
    result = sweep_of(row(100, 10), row(150, 13), row(400, 14))

    advised = result.recommendation

    # 13 of 14 samples/s are 92.9 %, at 150 of 400 µs: 37.5 %. 10 of 14 are below nine tenths.
    assert advised is not None
    assert advised.cell == {"batch": 2}
    assert advised.throughput_frac == pytest.approx(13 / 14)
    assert advised.text == "batch 2: 92.9 % of the best throughput at 37.5 % of its latency"


def test_on_the_edge_of_nearly_best():
    near = sweep_of(row(100, 9.0), row(200, 10.0)).recommendation
    far = sweep_of(row(100, 8.9), row(200, 10.0)).recommendation

    assert near is not None
    assert far is not None
    assert (near.cell["batch"], far.cell["batch"]) == (1, 2)


def test_a_cell_without_figures_is_no_candidate():
    failed = {"status": "out_of_memory", "reason": "it took more than 1 GB of memory"}

    result = sweep_of(row(100, 10), failed, row(150, 13))

    assert list(result.pareto["batch"]) == [1, 4]
    assert math.isnan(result.table["samples_per_s"][1])
    assert "2: it took more than 1 GB of memory" in text_of(result)
    assert result.to_object()["cells"][1]["status"] == "out_of_memory"


def test_one_cell_recommends_nothing():
    assert sweep_of(row(100, 10)).recommendation is None
    assert sweep_of().pareto.empty


@pytest.mark.slow
def test_a_cell_is_a_process_of_its_own_with_a_run_of_its_own(net):
    result = flopprof.sweep(
        net, {"batch": [2]}, output="s", input="1x8", repeats=1, warmup=1, traces=1, ceilings=False
    )

    (cell,) = result.rows
    # [2,8] @ [8,4]: 2·4·8 multiply-adds × 2, and 2·4 for the bias.
    assert (cell["status"], cell["matmul_flops"], cell["flops"]) == ("ok", 128, 136)
    assert cell["samples_per_s"] == pytest.approx(2 / cell["latency_p50_us"] * 1e6)
    run = Run.load("s/runs/batch-2.flopprof")
    assert run.provenance.called.input == "2x8"


def answered(monkeypatch, rows):
    """Let cells answer with these rows, in their order; return the options that each was asked."""
    asked: list[dict[str, Any]] = []

    def answer(request: dict[str, Any], *_: Any) -> dict[str, Any]:
        asked.append(request["options"])
        each = rows[len(asked) - 1]
        if isinstance(each, BaseException):
            raise each
        return dict(each)

    monkeypatch.setattr(measure, "_row_of_process", answer)
    monkeypatch.setattr(measure, "_find_ceilings", lambda *_: None)
    return asked


def test_ceilings_are_measured_before_the_cells_and_without_their_limit(net, monkeypatch):
    asked = []

    def answer(task, memory_bytes, _time_s):
        asked.append((task.get("ceilings"), memory_bytes))
        return row(1, 1)

    monkeypatch.setattr(measure, "_row_of_process", answer)
    grid: dict[str, list[Any]] = {"batch": [1, 2], "threads": [1]}
    grid["dtype"] = ["float32", "bfloat16"]

    flopprof.sweep(net, grid, memory_limit="100M", input="1x8")

    ahead = {"device": None, "threads": 1, "dtypes": ["bfloat16", "float32"]}
    assert asked == [(ahead, measure.UNLIMITED)] + [(None, 100_000_000)] * 4


def test_a_sweep_that_was_stopped_goes_on_and_repeats_nothing(net, monkeypatch):
    grid = {"batch": [1, 2, 4]}
    answered(monkeypatch, [row(1, 1), KeyboardInterrupt()])
    with pytest.raises(KeyboardInterrupt):
        flopprof.sweep(net, grid, output="s", input="1x8")
    asked = answered(monkeypatch, [row(2, 2), row(3, 3)])

    result = flopprof.sweep(net, grid, output="s", input="1x8")

    assert [options["batch"] for options in asked] == [2, 4]
    assert list(result.table["latency_p50_us"]) == [1, 2, 3]


def test_a_grid_may_grow(net, monkeypatch):
    answered(monkeypatch, [row(1, 1)])
    flopprof.sweep(net, {"batch": [1]}, output="s", input="1x8")
    asked = answered(monkeypatch, [row(2, 2)])

    flopprof.sweep(net, {"batch": [1, 2]}, output="s", input="1x8")

    assert [options["batch"] for options in asked] == [2]


@pytest.mark.parametrize("change", ["options", "what", "model"])
def test_a_folder_of_another_sweep_is_not_mixed_with_this_one(net, monkeypatch, change):
    answered(monkeypatch, [row(1, 1)] * 2)
    flopprof.sweep(net, {"batch": [1]}, output="s", input="1x8")
    if change == "model":
        Path("net.py").write_text(NET + "\n\n")
    what = "net.py:other" if change == "what" else net
    size = "1x8:float16" if change == "options" else "1x8"

    with pytest.raises(UsageError, match=f"another {change}"):
        flopprof.sweep(what, {"batch": [1]}, output="s", input=size)

    assert flopprof.sweep(what, {"batch": [1]}, output="s", input=size, force=True).rows


def test_a_folder_that_holds_something_else_is_left_alone(net, monkeypatch):
    Path("s").mkdir()
    Path("s/thesis.tex").write_text("years of work")
    answered(monkeypatch, [row(1, 1)])

    with pytest.raises(UsageError, match="holds no sweep"):
        flopprof.sweep(net, {"batch": [1]}, output="s", force=True)

    assert Path("s/thesis.tex").read_text() == "years of work"


def test_a_damaged_cell_is_told_of(net, monkeypatch):
    answered(monkeypatch, [row(1, 1)])
    flopprof.sweep(net, {"batch": [1]}, output="s", input="1x8")
    Path("s/cells/batch-1.json").write_text("[1]")

    with pytest.raises(LoadError, match="batch-1"):
        flopprof.sweep(net, {"batch": [1]}, output="s", input="1x8")


@pytest.mark.parametrize(
    ("what", "options"), [(object(), {}), ("net.py:build", {"loss": max, "train": True})]
)
def test_what_another_process_cannot_be_told_is_refused(net, what, options):
    with pytest.raises(UsageError, match="process of its own"):
        flopprof.sweep(what, {"batch": [1]}, **options)


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        ({"broke": "memory"}, "out_of_memory"),
        ({"broke": "time"}, "timed_out"),
        ({"exit_code": -9}, "out_of_memory"),
        ({"exit_code": 1}, "failed"),
        ({"exit_code": 0}, "failed"),  # it ended without an answer
    ],
)
def test_a_process_that_gave_no_answer_is_a_row(net, monkeypatch, outcome, status):
    monkeypatch.setattr(measure, "supervised", lambda *_, **__: outcome)

    result = flopprof.sweep(net, {"batch": [1]}, output="s", input="1x8")

    assert result.rows[0]["status"] == status
    assert result.rows[0]["reason"]


def test_memory_that_runs_out_in_a_cell_is_a_row(net, tmp_path):
    # 10¹³ × 8 floats are 320 TB, more than any machine has.
    asked = {"what": net, "options": {"input": "10000000000000x8"}, "folder": str(tmp_path / "r")}

    answer = profile_cell(asked)

    assert answer["status"] == "out_of_memory"
    assert "10000000000000x8" in answer["reason"]
    assert not (tmp_path / "r").exists()


def test_the_command_prints_one_object_with_cells_front_and_recommendation(
    net, monkeypatch, capsys
):
    asked = answered(monkeypatch, [row(100, 10), row(150, 13)])

    code = main(["sweep", net, "--input", "1x8", "--batch", "1..2", "--repeats", "3", "--json"])

    said = json.loads(capsys.readouterr().out)
    assert code == 0
    assert asked[0] == {"input": ["1x8"], "repeats": 3, "batch": 1}
    assert [cell["batch"] for cell in said["cells"]] == [1, 2]
    assert said["pareto"] == [
        {"batch": 1, "latency_p50_us": 100, "samples_per_s": 10},
        {"batch": 2, "latency_p50_us": 150, "samples_per_s": 13},
    ]
    assert said["recommendation"]["cell"] == {"batch": 2}
    assert Path("build.sweep/sweep.csv").exists()


def test_files_hold_the_table_and_no_formula(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    result = Sweep("=cmd()", ["dtype"], [{"dtype": "=1+1", **row(100, 10)}])

    files = write_sweep(result, tmp_path / "s")

    assert {path.suffix for path in files} == {".csv", ".json", ".md", ".xlsx", ".png"}
    assert pd.read_csv(tmp_path / "s" / "sweep.csv")["dtype"][0] == "'=1+1"
    sheet = openpyxl.load_workbook(tmp_path / "s" / "sweep.xlsx").active
    assert sheet["A2"].data_type == "s"


def test_a_chart_is_drawn_along_the_numbers_that_vary(tmp_path):
    rows = [{"dtype": "float32", "batch": n, **row(n, n)} for n in (1, 2)]
    by_name = [{"dtype": d, "batch": 1, **row(1, 1)} for d in ("float32", "bfloat16")]

    assert axis_along(Sweep("net", ["dtype", "batch"], rows)) == "batch"
    assert axis_along(Sweep("net", ["dtype", "batch"], by_name)) == "dtype"
    draw_sweep(Sweep("net", ["dtype", "batch"], by_name), tmp_path / "s.svg")
    assert (tmp_path / "s.svg").read_text().startswith("<?xml")


def test_a_sweep_without_figures_is_not_drawn(tmp_path):
    failed = Sweep("net", ["batch"], [{"batch": 1, "status": "failed", "reason": "no"}])

    with pytest.raises(UsageError, match="no cell"):
        draw_sweep(failed, tmp_path / "s.png")


def test_names_of_cells_are_names_of_files():
    assert Cell({"device": "cuda:1", "batch": 2}).name == "device-cuda.1_batch-2"
