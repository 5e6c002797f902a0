import math

import pytest

from flopprof.units import columns, duration, percent, shapes_text, shorten, si, three_digits


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3.638e9, "3.64 GFLOPs"),
        (999_999.0, "1.00 MFLOPs"),
        (0.0, "0 FLOPs"),
        (math.nan, "–"),
        (12.0, "12 FLOPs"),
        (2.5e20, "250 EFLOPs"),
    ],
)
def test_si_prints_three_digits_with_a_decimal_prefix(value, text):
    assert si(value, "FLOPs") == text


def test_percent_never_rounds_up_to_all():
    assert percent(0.99999) == "99.9 %"
    assert percent(1.0) == "100.0 %"
    assert percent(math.nan) == "–"


def test_durations_take_the_unit_that_fits():
    assert [duration(v) for v in (0.5, 12.34, 999.7, 1234.5, 7.89e6)] == [
        "0.500 µs",
        "12.3 µs",
        "1.00 ms",
        "1.23 ms",
        "7.89 s",
    ]


def test_shapes_read_like_the_command_line():
    assert shapes_text([(1, 3, 8, 8), (), ((2, 3), (4,))]) == "1x3x8x8, [2x3, 4]"


def test_long_names_are_cut_in_the_middle():
    assert shorten("encoder.layers.11.self_attn", 11) == "encod…_attn"
    assert shorten("short", 11) == "short"


def test_three_digits():
    assert [three_digits(v) for v in (0.825, 10.0, 123.4, 98765.0)] == [
        "0.825",
        "10.0",
        "123",
        "98765",
    ]


def test_wide_letters_take_two_columns():
    assert columns("层1") == 3
    assert shorten("层" * 10, 9) == "层层…层层"  # 4 · 2 + 1
    assert shorten("abcdefghij", 9) == "abcd…ghij"
    assert shorten("层层", 4) == "层层"
    assert shorten("层层", 0) == ""
