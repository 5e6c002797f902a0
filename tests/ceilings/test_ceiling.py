import json

import pytest

from flopprof.ceilings.ceiling import (
    Ceiling,
    Ceilings,
    by_precedence,
    cache_path,
    load_ceilings,
    save_ceilings,
)
from flopprof.errors import LoadError, UsageError


def ceiling(name="float32", unit="tensor", per_s=1e12, kind="measured", **more):
    return Ceiling(name, unit, per_s, kind, "a source", **more)


MEMORY = ceiling("DRAM", "memory", 1e11, measurement={"array_bytes": 4096})


def test_what_is_saved_is_loaded(tmp_path):
    saved = Ceilings(
        {"name": "a CPU", "threads": 2},
        (ceiling(clock="1000 MHz", measurement={"calls": 3}), ceiling(valid=False), MEMORY),
        {"datasheet": "boost 1 MHz"},
        ("a warning",),
    )

    save_ceilings(tmp_path / "c.json", saved)

    assert load_ceilings(tmp_path / "c.json") == saved
    assert [p.name for p in tmp_path.iterdir()] == ["c.json"]


def test_the_file_says_what_the_figures_are(tmp_path):
    save_ceilings(tmp_path / "c.json", Ceilings({"name": "a CPU"}, (ceiling(), MEMORY)))

    content = json.loads((tmp_path / "c.json").read_text())

    assert content["version"] == 1
    assert content["valid"] is True
    assert content["compute"][0]["flops_per_s"] == 1e12
    assert content["compute"][0]["unit"] == "tensor"
    assert content["memory"][0]["bytes_per_s"] == 1e11
    assert content["memory"][0]["measurement"]["array_bytes"] == 4096


def test_a_handwritten_file_needs_four_figures(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(
        '{"version": 1, "compute": [{"dtype": "bfloat16", "unit": "tensor", "flops_per_s": 4e14}],'
        '"memory": [{"level": "HBM", "bytes_per_s": 2e12}]}'
    )

    rooflines = load_ceilings(path).rooflines()

    assert rooflines["kind"].tolist() == ["user"]
    assert rooflines["ridge_flops_per_byte"].tolist() == [200]  # 4e14 / 2e12


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"version": 2}',
        '{"compute": []}',
        '{"version": 1, "compute": [{"dtype": "float32", "unit": "tensor"}]}',
        '{"version": 1, "compute": [{"dtype": "float32", "unit": "gpu", "flops_per_s": 1}]}',
        '{"version": 1, "memory": [{"level": "HBM", "bytes_per_s": -1}]}',
        '{"version": 1, "memory": [{"level": "HBM", "bytes_per_s": NaN}]}',
        '{"version": 1, "memory": [{"level": "HBM", "bytes_per_s": "3 TB/s"}]}',
        '{"version": 1, "memory": 3}',
        "[" * 100_000,
    ],
)
def test_a_damaged_file_is_a_load_error(tmp_path, text):
    path = tmp_path / "c.json"
    path.write_text(text)

    with pytest.raises(LoadError, match="is not a ceilings file"):
        load_ceilings(path)


def test_a_binary_file_is_a_load_error_and_a_missing_one_is_usage(tmp_path):
    (tmp_path / "c.json").write_bytes(b"\xff\xfe\x00")

    with pytest.raises(LoadError):
        load_ceilings(tmp_path / "c.json")
    with pytest.raises(UsageError, match="No such file"):
        load_ceilings(tmp_path / "none.json")
    with pytest.raises(UsageError, match="cannot be written"):
        save_ceilings(tmp_path / "none" / "c.json", Ceilings({}))


def test_precedence_is_user_then_valid_measurement_then_datasheet_then_formula():
    kinds = ("formula", "datasheet", "measured", "user")
    entries = [*(ceiling(kind=kind) for kind in kinds), ceiling(valid=False)]

    found = by_precedence(entries)

    assert [(e.kind, e.valid) for e in found] == [
        ("user", True),
        ("measured", True),
        ("datasheet", True),
        ("formula", True),
        ("measured", False),
    ]


def test_rooflines_have_one_row_per_dtype_unit_and_memory_level():
    entries = (
        ceiling(per_s=4e12),
        ceiling(per_s=8e12, kind="datasheet"),  # the same key: the first counts
        ceiling(unit="vector", per_s=1e12, valid=False),
        ceiling("HBM", "memory", 2e12),
        ceiling("DRAM", "memory", 1e12),  # main memory under another name
        ceiling("L3", "memory", 4e12),
    )

    rooflines = Ceilings({}, entries).rooflines().set_index(["unit", "memory_level"])

    assert len(rooflines) == 4  # two units × HBM and L3
    assert rooflines["ridge_flops_per_byte"]["tensor", "HBM"] == 2  # 4e12 / 2e12
    assert rooflines["ridge_flops_per_byte"]["tensor", "L3"] == 1
    assert rooflines["valid"]["tensor", "HBM"]
    assert not rooflines["valid"]["vector", "HBM"]


def test_an_unknown_bandwidth_is_nan_and_not_zero():
    rooflines = Ceilings({}, (ceiling(),)).rooflines()

    assert rooflines["peak_flops_per_s"].tolist() == [1e12]
    assert rooflines["peak_bytes_per_s"].isna().all()
    assert rooflines["ridge_flops_per_byte"].isna().all()
    assert Ceilings({}).rooflines().empty


def test_the_age_is_that_of_the_oldest_measurement():
    old, new = {"time": "2026-01-02T03:04:05+00:00"}, {"time": "2026-05-01T00:00:00+00:00"}

    found = Ceilings(
        {}, (ceiling(measurement=new), ceiling("DRAM", "memory", 1.0, measurement=old))
    )

    assert found.measured_at == old["time"]
    assert Ceilings({}, (ceiling(kind="datasheet"),)).measured_at == ""


def test_the_cache_is_apart_by_processor_threads_and_torch(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    device = {"name": "a CPU", "cores": 8, "threads": 8}

    path = cache_path(device, "2.15")

    assert path.parent == tmp_path / "flopprof"
    assert path == cache_path(dict(device), "2.15")
    others = [
        cache_path({**device, "threads": 4}, "2.15"),
        cache_path({**device, "name": "another"}, "2.15"),
        cache_path(device, "2.16"),
    ]
    assert len({path, *others}) == 4
