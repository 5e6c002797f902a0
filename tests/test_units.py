import math

import pytest

from flopprof.units import (
    clean_text,
    columns,
    duration,
    percent,
    shapes_text,
    shorten,
    shorten_path,
    shorten_point,
    shown,
    si,
    three_digits,
)


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


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (999.0, "999 FLOPs"),
        (1000.0, "1.00 kFLOPs"),
        (999_400.0, "999 kFLOPs"),
        (999_600.0, "1.00 MFLOPs"),  # of three digits, 999.6 is 1000
    ],
)
def test_a_prefix_begins_at_a_thousand_of_three_digits(value, text):
    assert si(value, "FLOPs") == text


@pytest.mark.parametrize(
    ("us", "text"),
    [
        (999.4, "999 µs"),
        (999.6, "1.00 ms"),
        (1000.0, "1.00 ms"),
        (999_400.0, "999 ms"),
        (999_600.0, "1.00 s"),
        (1e6, "1.00 s"),
    ],
)
def test_a_unit_of_time_begins_at_a_thousand_of_three_digits(us, text):
    assert duration(us) == text


@pytest.mark.parametrize(
    ("frac", "text"),
    [(0.9984, "99.8 %"), (0.9994, "99.9 %"), (0.9996, "99.9 %"), (1.0, "100.0 %")],
)
def test_only_all_is_100_percent(frac, text):
    assert percent(frac) == text


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


@pytest.mark.parametrize(
    ("path", "width", "short"),
    [
        ("model.layers.11.input_layernorm", 31, "model.layers.11.input_layernorm"),
        ("model.layers.11.input_layernorm", 27, "m…layers.11.input_layernorm"),
        ("model.layers.11.input_layernorm", 22, "m…l…11.input_layernorm"),
        ("model.layers.11.input_layernorm", 16, "m…l…11.inpu…norm"),
        ("short", 11, "short"),
    ],
)
def test_layers_stay_apart_where_their_paths_are_cut(path, width, short):
    assert shorten_path(path, width) == short
    assert columns(shorten_path(path, width)) <= width


def test_a_table_s_values_are_printed_by_the_unit_in_the_column_s_name():
    values = {
        "flops": 24.0,
        "time_us": 1234.5,
        "time_share_frac": 0.9999,
        "intensity_flops_per_byte": 0.25,
        "achieved_flops_per_s": 3.64e9,
        "min_bytes": 592.0,
        "peak_bytes_per_s": 2e12,
        "calls": 3,
        "verdict": "agrees",
        "bound": "",
        "efficiency_frac": math.nan,
    }

    assert [shown(name, value) for name, value in values.items()] == [
        *("24", "1.23 ms", "99.9 %", "0.250", "3.64 G", "592 B", "2.00 TB/s", "3", "agrees"),
        *("–", "–"),
    ]


def test_what_would_act_on_a_terminal_is_shown_and_does_not_act():
    assert clean_text("a\x1b[31m\u202e\u2028\0\r☃") == "a�[31m����☃"
    assert clean_text("in\udcff.json") == "in\\xff.json"
    assert clean_text("\ud800") == "\\ud800"


@pytest.mark.parametrize(
    ("name", "width", "short"),
    [
        ("layers.*.mlp · _grouped_mm 256x512, 8", 37, "layers.*.mlp · _grouped_mm 256x512, 8"),
        ("layers.*.mlp · _grouped_mm 256x512, 8", 33, "l…*.mlp · _grouped_mm 256x512, 8"),
        ("layers.*.mlp · _grouped_mm 256x512, 8", 28, "l…*.mlp · _grouped_mm 256x5…"),
        ("layers.*.mlp · _grouped_mm 256x512, 8", 21, "l…*.mlp · _grouped_mm"),
        ("layers.*.attention · linear", 23, "l…*.attention · linear"),
        ("attn · scaled_dot_product_attention", 33, "… · scaled_dot_product_attention"),
        ("a kernel of no module, nor op", 9, "a ke…r op"),
    ],
)
def test_a_points_op_never_breaks_inside(name, width, short):
    assert shorten_point(name, width) == short
    assert columns(shorten_point(name, width)) <= width
