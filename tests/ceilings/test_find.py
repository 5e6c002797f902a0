import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flopprof.ceilings import find_ceilings, measure
from flopprof.ceilings.ceiling import Ceiling, Ceilings, load_ceilings
from flopprof.errors import LoadError

CPU = {
    "name": "a CPU",
    "kind": "cpu",
    "threads": 2,
    "memory_bytes": 2**34,
    "l2_bytes": 2**21,
    "l3_bytes": 2**25,
}
GPU = {
    "name": "NVIDIA A100-SXM4-80GB",
    "kind": "cuda",
    "sm_count": 108,
    "capability": "8.0",
    "bus_bits": 5120,
}


def fake_device(described: dict[str, Any]) -> Any:
    described = dict(described)
    caches = described.pop("caches", {})
    return SimpleNamespace(
        torch_device="cpu", describe=lambda: dict(described), caches=lambda: caches
    )


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "flopprof"


@pytest.fixture
def measured(monkeypatch):
    """Replace the micro-benchmarks; return what they were asked for, and their `valid` flag."""
    asked: list[Any] = []
    control = SimpleNamespace(valid=True)

    def fake(device, keys, *, notes, progress):
        asked.append(list(keys))
        return [
            Ceiling(
                "DRAM" if name == "main" else name,
                unit,
                1e9 * len(asked),
                "measured",
                "a test",
                valid=control.valid,
                measurement={"time": "2026-01-01T00:00:00+00:00"},
            )
            for name, unit in keys
        ]

    monkeypatch.setattr(measure, "measure_ceilings", fake)
    return asked, control


def test_only_what_is_missing_is_measured_and_then_kept(cache, measured):
    asked, _ = measured
    device = fake_device(CPU)

    first = find_ceilings(device, dtypes=["float32"])
    second = find_ceilings(device, dtypes=["float32", "bfloat16", "float32"])
    third = find_ceilings(device, dtypes=["bfloat16"])

    assert asked == [
        [("main", "memory"), ("float32", "tensor"), ("float32", "vector")],
        [("bfloat16", "tensor"), ("bfloat16", "vector")],
        [],
    ]
    assert first.resolved["main", "memory"] == third.resolved["main", "memory"]
    assert second.resolved["bfloat16", "tensor"] == third.resolved["bfloat16", "tensor"]
    assert third.measured_at == "2026-01-01T00:00:00+00:00"
    assert len(list(cache.iterdir())) == 1


def test_a_cache_no_faster_than_the_memory_is_left_out(cache, measured):
    # The fake measures all at 10⁹ byte/s in one go: the arrays cannot have lain in L3.
    found = find_ceilings(fake_device(CPU | {"caches": {"L2": 2**21, "L3": 2**25}}))

    assert ("main", "memory") in found.resolved
    assert ("L3", "memory") not in found.resolved


def test_each_cache_is_held_against_the_next_one_that_counts(cache, monkeypatch):
    rates = {"main": 10e9, "L3": 11e9, "L2": 13e9, "L1": 15e9}
    monkeypatch.setattr(
        measure,
        "measure_ceilings",
        lambda device, keys, **_: [
            Ceiling("DRAM" if name == "main" else name, unit, rates[name], "measured")
            for name, unit in keys
            if unit == "memory"
        ],
    )

    found = find_ceilings(
        fake_device(CPU | {"caches": {"L1": 2**15, "L2": 2**21, "L3": 2**25}}), dtypes=[]
    )

    # L3 is 1.1 times the memory, below 1.2; L2 1.3 times; L1 1.15 times that L2.
    levels = {name for name, unit in found.resolved if unit == "memory"}
    assert levels == {"main", "L2"}


def test_a_user_who_says_the_main_memory_says_all_memories(cache, monkeypatch):
    described = CPU | {"caches": {"L2": 2**21}}
    asked = []

    def measure_all(device, keys, **_):
        asked.append(list(keys))
        rates = {"main": 1e9, "L2": 9e9}
        return [
            Ceiling(
                "DRAM" if name == "main" else name, unit, rates[name], "measured", holds_bytes=1
            )
            for name, unit in keys
        ]

    monkeypatch.setattr(measure, "measure_ceilings", measure_all)
    find_ceilings(fake_device(described), dtypes=[])  # keeps L2
    user = Ceilings({}, (Ceiling("DRAM", "memory", 2e9),))

    found = find_ceilings(fake_device(described), user=user, dtypes=[])

    assert asked == [[("main", "memory"), ("L2", "memory")], []]
    assert {name for name, _ in found.resolved} == {"main"}
    assert found.resolved["main", "memory"].per_s == 2e9


def test_other_threads_are_other_ceilings(cache, measured):
    asked, _ = measured

    find_ceilings(fake_device(CPU), dtypes=["float32"])
    find_ceilings(fake_device({**CPU, "threads": 1}), dtypes=["float32"])

    assert len(asked[1]) == 3
    assert len(list(cache.iterdir())) == 2


def test_refresh_measures_again(cache, measured):
    find_ceilings(fake_device(CPU), dtypes=["float32"])
    again = find_ceilings(fake_device(CPU), dtypes=["float32"], refresh=True)
    later = find_ceilings(fake_device(CPU), dtypes=["float32"])

    assert again.resolved["float32", "tensor"].per_s == 2e9  # the second measurement
    assert later.resolved["float32", "tensor"].per_s == 2e9


def test_a_measurement_on_a_busy_machine_is_flagged_and_not_kept(cache, measured):
    asked, control = measured
    control.valid = False

    busy = find_ceilings(fake_device(CPU), dtypes=["float32"])
    control.valid = True
    again = find_ceilings(fake_device(CPU), dtypes=["float32"])

    assert "measured on a busy machine: float32 matmul" in busy.warnings
    assert not busy.rooflines()["valid"].any()
    assert not again.warnings
    assert again.rooflines()["valid"].all()
    assert len(asked[1]) == 3


def test_a_cache_that_cannot_be_written_is_only_a_warning(cache, measured):
    cache.parent.write_text("a file where the folder should be")

    found = find_ceilings(fake_device(CPU), dtypes=["float32"])

    assert found.resolved["float32", "tensor"].per_s == 1e9
    assert "not kept for the next run" in found.warnings[0]


def test_a_user_without_a_home_folder_gets_ceilings_too(measured, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for an unknown user id

    found = find_ceilings(fake_device(CPU), dtypes=["float32"])

    assert found.resolved["float32", "tensor"].per_s == 1e9
    assert "not kept for the next run: Could not determine home" in found.warnings[-1]


def test_a_cache_that_may_not_be_read_is_only_a_warning(cache, measured, monkeypatch):
    def refuse(*_args, **_options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    monkeypatch.setattr(Path, "write_text", refuse)

    found = find_ceilings(fake_device(CPU), dtypes=["float32"])

    assert found.resolved["float32", "tensor"].per_s == 1e9
    assert ["permission denied" in text.lower() for text in found.warnings] == [True, True]


def test_a_damaged_cache_is_measured_again(cache, measured):
    asked, _ = measured
    find_ceilings(fake_device(CPU), dtypes=["float32"])
    next(cache.iterdir()).write_text("{")

    found = find_ceilings(fake_device(CPU), dtypes=["float32"])

    assert len(asked[1]) == 3
    assert "measured again" in found.warnings[0]
    assert not find_ceilings(fake_device(CPU), dtypes=["float32"]).warnings


def test_the_users_file_goes_before_everything(cache, measured, tmp_path):
    asked, _ = measured
    path = tmp_path / "mine.json"
    path.write_text(
        json.dumps(
            {
                "version": 1,
                "device": {"name": "another CPU"},
                "compute": [{"dtype": "float32", "unit": "tensor", "flops_per_s": 7e9}],
                "memory": [{"level": "DRAM", "bytes_per_s": 1e9}],
            }
        )
    )

    found = find_ceilings(fake_device(CPU), dtypes=["float32"], user=load_ceilings(path))

    assert asked == [[("float32", "vector")]]
    row = found.rooflines().query("unit == 'tensor'").iloc[0]
    assert (row["peak_flops_per_s"], row["kind"], row["ridge_flops_per_byte"]) == (7e9, "user", 7)
    assert "another CPU" in found.warnings[0]
    path.write_text("{")
    with pytest.raises(LoadError):
        find_ceilings(fake_device(CPU), user=load_ceilings(path))


def test_a_gpu_is_measured_on_demand_only_and_then_goes_before_its_datasheet(cache, measured):
    asked, _ = measured
    device = fake_device(GPU)

    tables = find_ceilings(device, dtypes=["bfloat16"])
    find_ceilings(device, dtypes=["bfloat16"], refresh=True)
    after = find_ceilings(device, dtypes=["bfloat16"])

    assert len(asked) == 1
    assert tables.resolved["bfloat16", "tensor"].kind == "datasheet"
    assert after.resolved["bfloat16", "tensor"].kind == "measured"
    assert after.resolved["float16", "tensor"].kind == "datasheet"
    # Both are in the file: the chart draws a band between them.
    kinds = [e["kind"] for e in after.to_json()["compute"] if e["dtype"] == "bfloat16"]
    assert sorted(kinds) == ["datasheet", "datasheet", "measured"]  # the last of products alone


def test_an_unknown_gpu_has_a_warning_and_no_rows(cache, measured):
    unknown = {**GPU, "name": "NVIDIA X1"}

    found = find_ceilings(fake_device(unknown))

    assert found.rooflines().empty
    assert found.warnings[0].startswith("no ceiling is known for the GPU 'NVIDIA X1'")


def test_everything_is_measured_where_no_dtypes_are_given(cache, measured):
    asked, _ = measured

    find_ceilings(fake_device(CPU | {"caches": {"L2": 2**21, "L3": 2**25}}))

    names = {name for name, _ in asked[0]}
    assert names == {
        "main",
        "L2",
        "L3",
        "float32",
        "bfloat16",
        "float64",
        "float16",
        "int8",
        "float8_e4m3fn",
    }
