"""The garbage collector rests where it is told to, and works again afterwards."""

import gc
import sys

import pytest

from flopprof.collector import import_quickly, not_collecting


def test_nothing_is_collected_inside_and_again_afterwards():
    assert gc.isenabled()

    with not_collecting():
        inside = gc.isenabled()

    assert not inside
    assert gc.isenabled()


def test_the_collector_works_again_after_an_exception():
    with pytest.raises(KeyError), not_collecting():
        raise KeyError

    assert gc.isenabled()


def test_a_collector_that_rests_already_is_left_at_rest():
    gc.disable()
    try:
        with not_collecting():
            pass
        after = gc.isenabled()
    finally:
        gc.enable()

    assert not after


def test_nothing_changes_where_it_is_not_wanted():
    with not_collecting(wanted=False):
        assert gc.isenabled()


def test_a_module_is_imported_while_the_collector_rests(tmp_path, monkeypatch):
    (tmp_path / "asks_collector.py").write_text("import gc\ncollects = gc.isenabled()\n")
    monkeypatch.syspath_prepend(tmp_path)

    module = import_quickly("asks_collector")

    monkeypatch.delitem(sys.modules, "asks_collector")
    assert module.collects is False
    assert gc.isenabled()
