"""Saved runs that are damaged: each reader of them exits 0 or 3, and never fails with a traceback.

Each value of `meta.json` is replaced by one of each other type, or left out; each column of each
table is renamed, doubled, left out, and filled with what does not belong there.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from flopprof.cli import main
from flopprof.errors import LoadError
from flopprof.metafile import encode
from flopprof.report.json import json_report
from flopprof.report.summary import summary
from flopprof.run import Run
from flopprof.saved import read_provenance
from flopprof.tables import TABLES
from tests.builders import make_run
from tests.events import ADDMM, kernel, launch, op, with_shapes, write_trace

SMALL = Path(__file__).parent / "runs" / "small.flopprof"
WRONG: list[Any] = [None, -5, "x", [None]]
READERS = [
    ["report", "RUN"],
    ["report", "RUN", "--format", "md"],
    ["report", "RUN", "--format", "json"],
    ["diff", "RUN", "RUN"],
    ["check", "RUN", "--min-coverage", "0", "--max-gflops", "9e9", "--no-verdict", "hidden"],
    ["misses", "RUN"],
]
DRAWERS = [["report", "RUN", "--format", "html"], ["plot", "RUN", "-o", "x.svg"]]
TELEMETRY = {
    "sm_clock_mhz": {"median": 1760.0, "p5": 1700.0, "p95": 1980.0},
    "power_w": None,
    "energy_j": 2.0,
    "throttle_reasons": ["idle", "power cap"],
    "calls": 10,
}
COMPILED = {
    "mode": "default",
    "kernels": [{"kernel": "triton_poi", "calls": 1, "time_us": 3.0, "fuses": ["aten::relu"]}],
    "extern_calls": 1,
    "graph_breaks": {"a print": 2},
    "min_bytes": 10.0,
    "eager_min_bytes": 20.0,
    "saved_bytes": 10.0,
}


def compiled_run() -> Run:
    """Return a run with every part that a live run may have."""
    return make_run(
        telemetry=TELEMETRY,
        compiled=COMPILED,
        eager_wall_us={"median": 60.0, "p5": 55.0, "p95": 70.0},
        observer={"changed_ops": {"aten::mm": 1}, "drift_frac": 0.1},
        alternatives=[{"architecture": "resnet18", "input": "1x3", "gflops": 1.8}],
        never_called=["spare"],
        warnings=["a warning"],
        totals={"matmul_flops": 480, "vector_flops": 48, "flops": 528},
        parameters=912,
        slowdown_frac=0.1,
        host_overhead_us=3.0,
        repeats=10,
        input="4x5",
        torch="2.14.1",
    )


def traced_run(folder: Path) -> Run:
    """Return the run of a trace of a step with one kernel."""
    from flopprof import analyse_traces

    path = write_trace(
        folder / "t.json",
        op("ProfilerStep#1", 0, 40) | {"cat": "user_annotation"},
        with_shapes(op("aten::addmm", 0, 10), ADDMM),
        launch(1, 2),
        kernel(1, 100, 10.0, name="gemm"),
    )
    return analyse_traces(path)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to each value inside `value`."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in inner:
        yield (*path, key)
        if isinstance(item, dict | list):
            yield from places(item, (*path, key))


def changed(meta: dict[str, Any], place: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """Return `meta` with `value` at a place; `...` leaves out what is there."""
    copy = json.loads(json.dumps(meta))
    inner = copy
    for key in place[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return dict(copy)


def codes(commands: list[list[str]], run: Path, capsys: pytest.CaptureFixture[str]) -> set[int]:
    """Return the exit codes of commands on a run; their output is read away."""
    found = {main([str(run) if word == "RUN" else word for word in words]) for words in commands}
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return found


@pytest.fixture(params=["live", "trace", "version 1"])
def saved(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    if request.param == "version 1":
        return Path(shutil.copytree(SMALL, tmp_path / "x.flopprof"))
    run = compiled_run() if request.param == "live" else traced_run(tmp_path)
    return run.save(tmp_path / "x.flopprof")


@pytest.mark.slow
@pytest.mark.filterwarnings("default::UserWarning")
def test_a_value_of_another_type_in_meta_json_is_read_or_refused(saved, capsys):
    meta = json.loads((saved / "meta.json").read_text())
    assert codes([*READERS, *DRAWERS], saved, capsys) == {0}
    run = Run.load(saved)
    written: set[bytes] = set()

    for place in places(meta):
        for value in [..., *WRONG]:
            (saved / "meta.json").write_text(json.dumps(changed(meta, place, value)))
            try:
                provenance = read_provenance(saved)  # as `Run.load` does
            except LoadError:  # exit code 3
                continue
            if encode(provenance) in written:  # another wrong value was read as the same
                continue
            written.add(encode(provenance))
            read = run.replaced(provenance=provenance)
            assert summary(read), (place, value)
            assert json_report(read), (place, value)


@pytest.mark.slow
@pytest.mark.filterwarnings("default::UserWarning")
def test_what_is_left_out_of_meta_json_is_read_or_refused_by_all(saved, capsys):
    meta = json.loads((saved / "meta.json").read_text())

    for name in meta:
        (saved / "meta.json").write_text(json.dumps(changed(meta, (name,), ...)))
        found = codes(READERS[:1], saved, capsys)
        if found == {0}:  # refused by one is refused by all: they load it alike
            found = codes([*READERS, *DRAWERS[:1]], saved, capsys)
        assert found in ({0}, {3}), name


@pytest.mark.parametrize("text", ["", "[]", "5", "null", '"x"', "{}", "[" * 100_000, "\0", "{"])
def test_what_is_no_object_is_refused(text, tmp_path, capsys):
    folder = make_run().save(tmp_path / "x.flopprof")
    (folder / "meta.json").write_text(text)

    assert codes(READERS, folder, capsys) == {3}


@pytest.mark.parametrize("version", [None, "1", 1.5, True, 0, -1, [], 10**30, 3])
def test_a_version_that_is_none_is_refused(version, tmp_path):
    folder = make_run().save(tmp_path / "x.flopprof")
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"schema_version": version}))

    with pytest.raises(LoadError):
        Run.load(folder)


@pytest.mark.parametrize("name", ["meta.json", "sites.csv", "ops.csv", "trace.json.gz"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "nothing", "bytes"])
def test_what_is_no_file_is_refused_and_never_waited_for(name, kind, tmp_path, capsys):
    folder = make_run().save(tmp_path / "x.flopprof")
    path = folder / name
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "bytes":
        path.write_bytes(b"\xff\xfe\0\xd8" * 100)

    expected = {0} if name == "trace.json.gz" and kind in ("nothing", "bytes") else {3}
    assert codes(READERS, folder, capsys) == expected


@pytest.mark.parametrize("name", ["module_calls", "ops", "kernels", "rooflines", "sites"])
def test_a_table_with_other_columns_is_refused(name, tmp_path):
    folder = Run.load(SMALL).save(tmp_path / "x.flopprof")
    path = folder / f"{name}.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    needed = [column for column in TABLES[name].columns if not column.optional]
    first = needed[0].name
    wrong = {
        "missing": table.drop(columns=first),
        "renamed": table.rename(columns={first: "x"}),
        "extra": table.assign(extra="1"),
        "doubled": pd.concat([table, table[[first]]], axis=1),
        "in another order": table[[*reversed(table.columns)]],
    }
    for frame in wrong.values():
        frame.to_csv(path, index=False)

        with pytest.raises(LoadError):
            Run.load(folder)


def cells() -> Iterator[tuple[str, str, str]]:
    """Yield a table, a column and a text that does not belong into it."""
    for name in ("module_calls", "ops", "kernels", "rooflines", "sites"):
        for column in TABLES[name].columns:
            if column.type != "str":
                yield name, column.name, "x"
            if column.type == "float" and column.name != "start_us":
                yield name, column.name, "-1e9"
            if column.name.endswith(("_us", "_flops", "min_bytes")) and column.type == "float":
                yield name, column.name, "inf"
    yield from (("ops", "parent_op_id", text) for text in ("99999", "-2"))
    yield from (("ops", "op_id", text) for text in ("99999", "-1"))
    yield from (("module_calls", "parent_call_id", text) for text in ("99999", "-2"))
    yield from (("sites", column, "99999999999999999999") for column in ("site_id", "calls"))
    yield ("sites", "calls", "-3")
    yield ("sites", "verdict", "unheard_of")


@pytest.mark.parametrize(("name", "column", "text"), [*cells()])
def test_a_value_that_cannot_be_in_a_table_is_refused(name, column, text, tmp_path):
    run = Run.load(SMALL)
    folder = run.save(tmp_path / "x.flopprof")
    table = pd.read_csv(folder / f"{name}.csv", dtype=str, keep_default_na=False)
    if not len(table):
        table.loc[0] = [str(c.blank) for c in TABLES[name].columns if not c.rare]
    table.loc[0, column] = text
    table.to_csv(folder / f"{name}.csv", index=False)

    with pytest.raises(LoadError):
        Run.load(folder)


def test_a_kernel_of_an_op_that_is_not_there_is_refused(tmp_path):
    folder = traced_run(tmp_path).save(tmp_path / "x.flopprof")
    text = (folder / "kernels.csv").read_text()
    assert text.splitlines()[1].startswith("0,0,")
    (folder / "kernels.csv").write_text(text.replace("\n0,0,", "\n0,7,"))

    with pytest.raises(LoadError, match="op_id that is not in ops"):
        Run.load(folder)


NAMES = [
    *("a\rb", "a\r\nb", "a\nb", 'a"b', "a,b", "a\0b", " a ", "nan", "NA", "", "None", "-1", "'"),
    *('"', "\t", "=1", "\x1b[31m", "\u202e", "\u2028", "#", "\\", "true", "1e5", "☃"),
]


def test_names_come_back_from_the_saved_tables_as_they_were(tmp_path):
    sites = make_run().sites.to_dict("records")
    rows = [sites[1] | {"site_id": n, "op": name, "reason": name} for n, name in enumerate(NAMES)]

    for number, part in enumerate([rows, rows[:2], rows[2:], [rows[5] | {"site_id": 0}]]):
        part = [row | {"site_id": n} for n, row in enumerate(part)]
        run = make_run(part, model="a\rb")
        loaded = Run.load(run.save(tmp_path / f"{number}.flopprof"))

        assert loaded.sites["op"].tolist() == [row["op"] for row in part]
        assert loaded.sites["reason"].tolist() == [row["op"] for row in part]
        assert loaded.sites["dtype"].tolist() == [""] * len(part)
        assert loaded.sites["flops"].isna().all()
        assert loaded.provenance.title == "a\rb"
