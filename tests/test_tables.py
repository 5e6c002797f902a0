import math
import sys

import pandas as pd
import pytest

from flopprof.errors import LoadError, UsageError
from flopprof.registry import Registry
from flopprof.tables import KERNELS, SITES, TABLES, is_same


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_every_column_has_a_meaning_and_units_in_its_name(table):
    for column in table.columns:
        assert column.doc.endswith((".", "…"))
        assert not {"time", "size", "flops_rate"} & {column.name}
    assert len(set(table.names)) == len(table.names)


def test_missing_numbers_are_nan_and_never_zero():
    row = SITES.from_rows([{"op": "aten::mm"}]).iloc[0]

    assert math.isnan(row["flops"])
    assert row["reason"] == ""


def test_a_frame_with_other_columns_or_types_is_refused():
    good = SITES.from_rows([{"op": "aten::mm"}])

    with pytest.raises(ValueError, match="columns differ"):
        SITES.check(good.drop(columns="flops"))
    with pytest.raises(ValueError, match="calls is float64"):
        SITES.check(good.assign(calls=1.5))
    assert SITES.check(good.astype({"op": "category"})) is not None


def test_integers_of_a_large_table_take_32_bits_where_all_fit(monkeypatch):
    rows = [{"kernel_id": 0, "correlation_id": 2**31}, {"kernel_id": 1, "correlation_id": -1}]
    small = KERNELS.from_rows(rows)

    monkeypatch.setattr("flopprof.tables.LARGE_ROWS", 1)
    large = KERNELS.from_rows(rows)

    assert small["kernel_id"].dtype == small["correlation_id"].dtype == "int64"
    assert large["kernel_id"].dtype == "int32"
    assert large["correlation_id"].tolist() == [2**31, -1]
    assert is_same(small, large)


def test_an_empty_table_is_read_back(tmp_path):
    SITES.empty().to_csv(tmp_path / "sites.csv", index=False)

    pd.testing.assert_frame_equal(SITES.read_csv(tmp_path / "sites.csv"), SITES.empty())


def test_a_registry_refuses_duplicates_and_lists_what_it_knows():
    registry: Registry[int] = Registry("number")
    registry.register("one")(1)

    with pytest.raises(ValueError, match="two implementations of the number 'one'"):
        registry.register("one")(2)
    with pytest.raises(UsageError) as caught:
        registry.require("two")
    assert caught.value.remedy == "known: one"


ODD_TEXTS = ["", "a,b", 'say "x"', "two\nlines", "a\rb", " x ", "NaN", "é", "=1+1", "'"]


def kernels_with(texts: list[str]) -> pd.DataFrame:
    """Return a table of kernels called like that, with odd lengths."""
    odd = [0.1 + 0.2, 0.0, 1e22, 5e-324, 12345678.9]
    rows = [
        {"kernel_id": n, "kernel": text, "kind": "compute", "duration_us": odd[n % len(odd)]}
        for n, text in enumerate(texts)
    ]
    return KERNELS.from_rows(rows)


@pytest.mark.parametrize("form", ["csv", "parquet"])
@pytest.mark.parametrize("coded", [True, False])
def test_a_table_is_read_back_as_it_was_written(tmp_path, form, coded):
    frame = kernels_with(ODD_TEXTS)
    if coded:
        frame = frame.astype({"kernel": "category", "kind": "category"})
    path = tmp_path / f"kernels.{form}"

    getattr(KERNELS, f"write_{form}")(frame, path)
    read = getattr(KERNELS, f"read_{form}")(path)

    assert read["kernel"].astype("str").tolist() == ODD_TEXTS
    assert is_same(read, frame)


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_numbers_that_are_unknown_or_without_end_are_read_back(tmp_path, form):
    rows = [
        {"op": "a", "flops": value, "efficiency_frac": value}
        for value in (math.nan, math.inf, 0.0, 2.0)
    ]
    frame = SITES.from_rows(rows)
    path = tmp_path / f"sites.{form}"

    getattr(SITES, f"write_{form}")(frame, path)

    read = getattr(SITES, f"read_{form}")(path)
    assert read["flops"].tolist()[1:] == [math.inf, 0.0, 2.0]
    assert math.isnan(read["efficiency_frac"][0])
    assert is_same(read, frame)


def test_some_columns_of_a_parquet_file_are_read_alone(tmp_path):
    KERNELS.write_parquet(kernels_with(["a", "b"]), tmp_path / "k.parquet")

    frame = KERNELS.read_parquet(tmp_path / "k.parquet", ["duration_us", "kernel"])

    assert list(frame.columns) == ["kernel", "duration_us"]


def test_what_is_no_parquet_file_of_the_table_is_refused(tmp_path):
    path = tmp_path / "k.parquet"
    path.write_bytes(b"PAR1" + bytes(50))
    with pytest.raises(LoadError, match="does not hold the table 'kernels'"):
        KERNELS.read_parquet(path)

    SITES.write_parquet(SITES.from_rows([{"op": "a"}]), path)
    with pytest.raises(LoadError, match="columns differ"):
        KERNELS.read_parquet(path)

    pd.DataFrame({"kernel": ["a", None]}).to_parquet(path)
    with pytest.raises(LoadError, match="kernel lacks values"):
        KERNELS.read_parquet(path, ["kernel"])


def test_without_pyarrow_a_parquet_file_names_what_to_install(tmp_path, monkeypatch):
    KERNELS.write_parquet(kernels_with(["a"]), tmp_path / "k.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)

    with pytest.raises(LoadError) as caught:
        KERNELS.read_parquet(tmp_path / "k.parquet")

    assert "pip install 'flopprof[parquet]'" in caught.value.remedy
