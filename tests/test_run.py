"""A run is added up, saved and loaded without loss, in one step or not at all."""

import errno
import json
import math
from pathlib import Path

import pandas as pd
import pytest

from flopprof.errors import LoadError, UsageError
from flopprof.files import write_atomically, writing
from flopprof.metafile import encode
from flopprof.provenance import CallProvenance
from flopprof.run import Run
from tests.builders import make_run


def test_totals_add_what_is_known_and_bound_the_rest():
    totals = make_run().totals

    # 480 + 48 are known; the unknown site may do 1,000 more; 30 of 40 µs are covered.
    assert (totals.matmul_flops, totals.vector_flops, totals.flops) == (480, 48, 528)
    assert totals.flops_at_most == 1528
    assert totals.coverage_frac == 0.75
    assert totals.wall_us == 50
    assert totals.flops_per_s == 528 / 50e-6


def test_an_unbounded_site_leaves_the_total_without_an_upper_bound():
    run = make_run()
    run.sites["flops_at_most"] = [528.0, math.nan]

    assert math.isnan(run.totals.flops_at_most)


def test_a_run_saved_and_loaded_is_equal(tmp_path):
    run = make_run()

    loaded = Run.load(run.save(tmp_path / "x.flopprof"))

    pd.testing.assert_frame_equal(loaded.sites, run.sites, check_dtype=False)
    assert encode(loaded.provenance) == encode(run.provenance)
    assert loaded.trace == b"packed"
    assert loaded.totals == run.totals


def test_unknown_is_empty_in_csv_and_null_in_json(tmp_path):
    folder = make_run(device_busy_us=math.nan).save(tmp_path / "x.flopprof")

    unknown = (folder / "sites.csv").read_text().splitlines()[2]
    assert ",,,," in unknown
    assert "nan" not in unknown.lower()
    assert json.loads((folder / "meta.json").read_text())["timing"]["device_busy_us"] is None


def test_saving_again_replaces_a_run_and_nothing_else(tmp_path):
    folder = make_run().save(tmp_path / "x.flopprof")
    make_run().save(folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").touch()

    with pytest.raises(UsageError, match="not a run"):
        make_run().save(tmp_path / "mine")

    assert (tmp_path / "mine" / "diary.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "x.flopprof"]


def test_a_full_disk_leaves_the_old_run_and_no_rest(tmp_path):
    make_run().save(tmp_path / "x.flopprof")

    def fill_up():
        with writing(tmp_path / "x.flopprof") as new:
            (new / "sites.csv").touch()
            raise OSError(errno.ENOSPC, "no space")

    with pytest.raises(UsageError, match="disk is full"):
        fill_up()

    assert [path.name for path in tmp_path.iterdir()] == ["x.flopprof"]
    assert len(Run.load(tmp_path / "x.flopprof").sites) == 2


def test_an_interruption_leaves_no_folder(tmp_path):
    with pytest.raises(KeyboardInterrupt), writing(tmp_path / "x.flopprof"):
        raise KeyboardInterrupt

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("meta.json", "{", "meta.json is damaged"),
        ("meta.json", '{"schema_version": 99}', "newer flopprof"),
        ("sites.csv", "a,b\n1,2\n", "sites"),
    ],
)
def test_a_damaged_run_is_named_with_the_way_out(tmp_path, name, text, says):
    folder = make_run().save(tmp_path / "x.flopprof")
    (folder / name).write_text(text)

    with pytest.raises(LoadError, match=says) as caught:
        Run.load(folder)

    assert "flopprof" in caught.value.remedy


def test_a_folder_without_a_run_and_a_missing_one(tmp_path):
    with pytest.raises(LoadError, match="not a run"):
        Run.load(tmp_path)
    with pytest.raises(UsageError, match="no folder"):
        Run.load(tmp_path / "nowhere")


def test_text_is_written_in_one_step(tmp_path):
    write_atomically(tmp_path / "a.md", "text")

    assert (tmp_path / "a.md").read_text() == "text"
    assert [path.name for path in tmp_path.iterdir()] == ["a.md"]
    with pytest.raises(UsageError, match="cannot be written"):
        write_atomically(Path("/proc/nowhere.md"), "text")


def test_tables_that_do_not_fit_their_totals_are_damaged(tmp_path):
    totals = {"matmul_flops": 480, "vector_flops": 48, "flops": 528}
    folder = make_run(totals=totals).save(tmp_path / "x.flopprof")
    assert Run.load(folder).totals.flops == 528
    table = folder / "sites.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:1]) + "\n")

    with pytest.raises(LoadError, match="adds up to other FLOPs"):
        Run.load(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("timing", {"wall_us": {"median": "x"}}),
        ("timing", 3),
        ("device", 3),
        ("called", {"dtype": 5}),
        ("source", {"model": "Net", "parameters": "y"}),
        ("totals", 5),
    ],
)
def test_metadata_of_another_type_is_damaged(tmp_path, name, value):
    folder = make_run().save(tmp_path / "x.flopprof")
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {name: value}))

    with pytest.raises(LoadError, match=r"meta\.json is damaged"):
        Run.load(folder)


def test_an_op_is_of_one_of_the_sites_and_not_of_the_row_behind_the_last(tmp_path):
    folder = Run.load(Path(__file__).parent / "runs" / "small.flopprof").save(tmp_path / "x")
    sites = len(pd.read_csv(folder / "sites.csv"))
    ops = pd.read_csv(folder / "ops.csv", dtype=str, keep_default_na=False)

    ops.assign(site_id=sites - 1).to_csv(folder / "ops.csv", index=False)
    assert Run.load(folder).ops["site_id"].max() == sites - 1
    ops.assign(site_id=sites).to_csv(folder / "ops.csv", index=False)
    with pytest.raises(LoadError, match=r"site_id that is not in sites\.csv"):
        Run.load(folder)


def test_a_verdict_that_is_none_is_damaged(tmp_path):
    folder = make_run().save(tmp_path / "x.flopprof")
    text = (folder / "sites.csv").read_text()
    (folder / "sites.csv").write_text(text.replace(",unknown,", ",unheard_of,"))

    with pytest.raises(LoadError, match="there is no verdict 'unheard_of'"):
        Run.load(folder)


def test_a_run_equals_itself_saved_and_loaded_and_no_other(tmp_path):
    run = Run.load(make_run().save(tmp_path / "a"))

    assert run.equals(Run.load(run.save(tmp_path / "b")))
    assert not run.equals(make_run(dtype="bfloat16"))
    assert (run == make_run()) is False  # another object, and no exception


def test_a_run_of_version_1_is_still_read(tmp_path):
    folder = make_run().save(tmp_path / "old.flopprof")
    old = {
        "schema_version": 1,
        "model": "Net",
        "dtype": "float32",
        "device": {"name": "a CPU", "kind": "cpu"},
        "wall_us": {"median": 50.0, "p5": 45.0, "p95": None},
        "warnings": ["a doubt"],
        "telemetry": {},
    }
    (folder / "meta.json").write_text(json.dumps(old))

    provenance = Run.load(folder).provenance

    assert isinstance(provenance, CallProvenance)
    assert provenance.timing.wall_us.median == 50.0
    assert math.isnan(provenance.timing.wall_us.p95)  # null is not known
    assert provenance.warning_texts == ["a doubt"]


def test_a_run_explains_itself():
    run = make_run(never_called=["spare"])

    # The second site, aten::mystery, has no formula.
    assert [(miss.verdict, [op.op for op in miss.ops]) for miss in run.misses] == [
        ("unknown", ["aten::mystery"])
    ]
    assert run.unknown_ops == ["aten::mystery"]
    assert run.uncalled_modules == ["spare"]


def test_a_large_table_is_read_when_it_is_asked_for(tmp_path, monkeypatch):
    folder = make_run().save(tmp_path / "x.flopprof")
    small = (folder / "ops.csv").read_text()
    monkeypatch.setattr("flopprof.saved.LARGE_BYTES", len(small) - 1)
    (folder / "ops.csv").write_text(small.replace("op_id", "op_ID"))

    run = Run.load(folder)

    assert run.totals.flops == 528
    with pytest.raises(LoadError, match="ops"):
        _ = run.ops
    # One byte less is no large table: it is read, and refused, at once.
    monkeypatch.setattr("flopprof.saved.LARGE_BYTES", len(small))
    with pytest.raises(LoadError, match="ops"):
        Run.load(folder)


def test_large_tables_are_saved_as_parquet_and_read_when_asked_for(tmp_path, monkeypatch):
    run = make_run()
    monkeypatch.setattr("flopprof.tables.LARGE_ROWS", -1)
    run.save(tmp_path / "large")

    names = {path.name for path in (tmp_path / "large").iterdir()}
    assert "ops.parquet" in names
    assert not {"ops.csv", "sites.parquet", "module_calls.parquet", "rooflines.parquet"} & names
    assert Run.load(tmp_path / "large").equals(run)

    (tmp_path / "large" / "ops.parquet").write_bytes(b"PAR1")
    loaded = Run.load(tmp_path / "large")  # nothing of the ops is read
    assert loaded.sites.equals(run.sites)
    with pytest.raises(LoadError, match="ops"):
        _ = loaded.ops


def test_without_pyarrow_large_tables_are_csv_as_others(tmp_path, monkeypatch):
    monkeypatch.setattr("flopprof.tables.LARGE_ROWS", -1)
    monkeypatch.setattr("flopprof.tables.has_parquet", lambda: False)
    run = make_run()

    run.save(tmp_path / "large")

    assert (tmp_path / "large" / "ops.csv").exists()
    assert Run.load(tmp_path / "large").equals(run)
