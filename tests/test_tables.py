import math

import pandas as pd
import pytest

from flopprof.errors import UsageError
from flopprof.registry import Registry
from flopprof.tables import SITES, TABLES


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
