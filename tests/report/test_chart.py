"""The roofline chart: what it shows, and that nothing on it covers anything else."""

import math
import subprocess
import sys
import time
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from flopprof.cli import main
from flopprof.errors import UsageError
from flopprof.formulas import KINDS
from flopprof.report.chart import draw_figure, plot_roofline, write_points
from flopprof.report.chart.compare import compare_data
from flopprof.report.chart.data import chart_data
from flopprof.report.chart.layout import spread
from flopprof.report.chart.sheet import COLOURS, LIGHT, SERIES, SIZES
from flopprof.run import Run
from flopprof.tables import ROOFLINES, SITES, TABLES
from tests.builders import provenance_of

CPU = [("float32", "tensor", "DRAM", 100e9, 15e9, "measured", True)]
CPU += [("float32", "vector", "DRAM", 40e9, 15e9, "measured", True)]
CPU += [("float32", "tensor", "L3", 100e9, 60e9, "measured", True)]
H100 = [
    (dtype, "tensor", "HBM", peak, 3.35e12, "datasheet", True)
    for dtype, peak in (("bfloat16", 989e12), ("tfloat32", 495e12), ("float32", 67e12))
]
H100 += [("bfloat16", "tensor", "HBM", 810e12, 2.95e12, "measured", True)]
H100 += [("float32", "vector", "HBM", 67e12, 3.35e12, "datasheet", True)]


def rooflines(rows):
    names = ("dtype", "unit", "memory_level", "peak_flops_per_s", "peak_bytes_per_s", "kind")
    rows = [dict(zip((*names, "valid"), row, strict=True)) for row in rows]
    return ROOFLINES.from_rows(
        [
            row
            | {
                "ridge_flops_per_byte": row["peak_flops_per_s"] / row["peak_bytes_per_s"],
                "source": f"{row['kind']}: best of many calls",
            }
            for row in rows
        ]
    )


def site(op, path, *, flops, min_bytes, time_us, roofs=CPU, kind="other", **more):
    """One site, its rates and roof worked out as reconcile does."""
    dtype = more.get("dtype", "float32")
    matmul = flops if kind in ("convolution", "matmul", "attention", "recurrent") else 0.0
    unit = "tensor" if matmul else "vector"
    found = [r for r in roofs if r[0] == dtype and r[1] == unit] or [
        r for r in roofs if r[0] == dtype
    ]
    peak, bandwidth = (found[0][3], found[0][4]) if found else (math.nan, math.nan)
    intensity = flops / min_bytes if min_bytes else math.nan
    roof = min(peak, intensity * bandwidth) if found and intensity > 0 else math.nan
    known = not math.isnan(flops)
    row = {
        "op": op,
        "module_path": path,
        "phase": "forward",
        "input_shapes": f"{min_bytes:.0f}",
        "dtype": dtype,
        "calls": 1,
        "kind": kind if known else "unknown",
        "flops": flops,
        "matmul_flops": matmul if known else math.nan,
        "vector_flops": flops - matmul,
        "min_bytes": min_bytes,
        "time_us": time_us,
        "achieved_flops_per_s": flops / time_us * 1e6,
        "intensity_flops_per_byte": intensity,
        "attainable_flops_per_s": roof,
        "efficiency_frac": flops / time_us * 1e6 / roof,
        "bound": ""
        if math.isnan(roof)
        else ("memory" if intensity < peak / bandwidth else "compute"),
        "verdict": "unknown" if not known else ("free" if flops == 0 else "agrees"),
    }
    return row | more


def run_of(sites, roofs=CPU, **facts):
    total = sum(row["time_us"] for row in sites)
    rows = [
        row | {"site_id": number, "time_share_frac": row["time_us"] / total}
        for number, row in enumerate(sorted(sites, key=lambda row: -row["time_us"]))
    ]
    return SimpleNamespace(
        sites=SITES.from_rows(rows), rooflines=rooflines(roofs), provenance=provenance_of(facts)
    )


def resnet_like(seed=0):
    """About 60 sites on a CPU: convolutions, their norms and activations, pooling, a linear."""
    chance = np.random.default_rng(seed)
    sites = []

    def add(op, path, kind, flops, elements, efficiency, **more):
        row = site(
            f"aten::{op}", path, flops=flops, min_bytes=4.0 * elements, time_us=1.0, kind=kind
        )
        roof = row["attainable_flops_per_s"]
        time_us = flops / (roof * efficiency * chance.uniform(0.85, 1.15)) * 1e6
        sites.append(
            site(
                f"aten::{op}",
                path,
                flops=flops,
                min_bytes=4.0 * elements,
                time_us=time_us,
                kind=kind,
                **more,
            )
        )

    def conv(path, ci, co, k, out):
        weights, result = ci * co * k * k, co * out * out
        read = ci * (out * (2 if k > 3 else 1)) ** 2
        add("conv2d", path, "convolution", 2.0 * weights * out * out, weights + result + read, 0.62)
        add(
            "batch_norm",
            path.replace("conv", "bn"),
            "normalisation",
            2.0 * result,
            2 * result + 4 * co,
            0.7,
        )
        add(
            "relu_",
            path.rpartition(".")[0] + ".relu",
            "elementwise",
            1.0 * result,
            2 * result,
            0.9,
            profiler_flops=math.nan,
            verdict="functional" if out == 56 else "agrees",
        )

    conv("conv1", 3, 64, 7, 112)
    add("max_pool2d", "maxpool", "reduction", 9.0 * 64 * 56 * 56, 64 * (112**2 + 56**2), 0.35)
    for layer, (channels, out) in enumerate(((64, 56), (128, 28), (256, 14), (512, 7)), 1):
        for block in (0, 1):
            before = channels // 2 if layer > 1 and block == 0 else channels
            conv(f"layer{layer}.{block}.conv1", before, channels, 3, out)
            conv(f"layer{layer}.{block}.conv2", channels, channels, 3, out)
            size = channels * out * out
            add(
                "add_",
                f"layer{layer}.{block}",
                "elementwise",
                1.0 * size,
                3 * size,
                0.8,
                verdict="functional",
            )
    add("linear", "fc", "matmul", 2.0 * 512 * 1000, 513000, 0.9, profiler_flops=2.0 * 512 * 1000)
    total = sum(row["time_us"] for row in sites)
    sites.append(
        site("aten::flatten", "", flops=0.0, min_bytes=0.0, time_us=0.02 * total, verdict="free")
    )
    sites.append(
        site(
            "mylib::blur",
            "stem.blur",
            flops=math.nan,
            min_bytes=math.nan,
            time_us=0.05 * total,
            verdict="extension",
        )
    )
    return run_of(
        sites,
        model="resnet18",
        input="1x3x224x224:float32",
        dtype="float32",
        torch="2.15.0",
        flopprof="0.1.0",
        date="2025-01-01T00:00:00+00:00",
        device={"name": "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", "threads": 2},
        wall_us={"median": 1.06 * total, "p5": total, "p95": 1.2 * total},
    )


def transformer_like(layers=12, seed=1):
    """A bf16 decoder on a GPU, with fp32 norms and a tf32 head, ten layers of equal shapes."""
    chance = np.random.default_rng(seed)
    sites = []
    batch, d, length, heads = 8, 4096, 2048, 32
    tokens = batch * length

    def add(op, path, kind, flops, nbytes, efficiency, dtype="bfloat16", **more):
        row = site(
            op, path, flops=flops, min_bytes=nbytes, time_us=1, roofs=H100, kind=kind, dtype=dtype
        )
        roof = row["attainable_flops_per_s"]
        time_us = flops / (roof * efficiency * chance.uniform(0.95, 1.05)) * 1e6
        more = {"verdict": "formula_only"} | more
        sites.append(
            site(
                op,
                path,
                flops=flops,
                min_bytes=nbytes,
                time_us=time_us,
                roofs=H100,
                kind=kind,
                dtype=dtype,
                **more,
            )
        )

    for n in range(layers):
        at = f"model.layers.{n}"
        for name, out in (("q_proj", d), ("k_proj", d // 4), ("v_proj", d // 4), ("o_proj", d)):
            nbytes = 2.0 * (tokens * d + d * out + tokens * out)
            add(
                "aten::linear",
                f"{at}.self_attn.{name}",
                "matmul",
                2.0 * tokens * d * out,
                nbytes,
                0.6,
                profiler_flops=2.0 * tokens * d * out,
            )
        for name in ("gate_proj", "up_proj", "down_proj"):
            nbytes = 2.0 * (tokens * d + d * 14336 + tokens * 14336)
            add(
                "aten::linear",
                f"{at}.mlp.{name}",
                "matmul",
                2.0 * tokens * d * 14336,
                nbytes,
                0.66,
                profiler_flops=2.0 * tokens * d * 14336,
            )
        attention = 4.0 * batch * heads * length**2 * 128
        add(
            "aten::_flash_attention_forward",
            f"{at}.self_attn",
            "attention",
            attention,
            8.0 * tokens * d,
            0.5,
        )
        add(
            "aten::silu",
            f"{at}.mlp.act_fn",
            "elementwise",
            1.0 * tokens * 14336,
            4.0 * tokens * 14336,
            0.8,
        )
        add(
            "aten::mul",
            f"{at}.mlp",
            "elementwise",
            1.0 * tokens * 14336,
            6.0 * tokens * 14336,
            0.85,
            verdict="disagrees",
        )
        for name in ("input_layernorm", "post_attention_layernorm"):
            add(
                "aten::rms_norm",
                f"{at}.{name}",
                "normalisation",
                4.0 * tokens * d,
                8.0 * tokens * d,
                0.55,
                dtype="float32",
            )
        add("aten::add", at, "elementwise", 1.0 * tokens * d, 6.0 * tokens * d, 1.04)
    add(
        "aten::linear",
        "lm_head",
        "matmul",
        2.0 * tokens * d * 32000,
        4.0 * tokens * 36000,
        0.55,
        dtype="tfloat32",
    )
    total = sum(row["time_us"] for row in sites)
    sites.append(
        site(
            "aten::copy_",
            "",
            flops=0.0,
            min_bytes=1e9,
            time_us=0.09 * total,
            roofs=H100,
            verdict="free",
        )
    )
    sites.append(
        site(
            "(kernels)",
            "",
            flops=math.nan,
            min_bytes=math.nan,
            time_us=0.12 * total,
            roofs=H100,
            verdict="hidden",
        )
    )
    return run_of(
        sites,
        H100,
        model="LlamaForCausalLM",
        input="input_ids=8x2048:int64",
        dtype="bfloat16",
        torch="2.15.0",
        flopprof="0.1.0",
        date="2025-01-01T00:00:00+00:00",
        device={"name": "NVIDIA H100 80GB HBM3", "driver": "570.86"},
        wall_us={"median": 1.2 * total},
        telemetry={
            "clock_mhz": {"datasheet": 1830, "maximum": 1980, "sampled_median": 1410},
            "power_limit_w": 700,
            "throttling": "power cap 38 % of samples",
        },
    )


def random_run(seed, count=24):
    """A run of `count` sites scattered around a roof, in clusters, with random kinds."""
    chance = np.random.default_rng(seed)
    kinds = ["convolution", "matmul", "attention", "normalisation", "elementwise", "reduction"]
    clusters = chance.uniform([-1.0, -2.0], [2.5, 0.02], (4, 2))
    sites: list[dict[str, Any]] = []
    for n in range(count):
        x, y = clusters[chance.integers(4)] + chance.normal(0, chance.choice([0.02, 0.3]), 2)
        intensity = 10.0**x
        roof = min(100e9, intensity * 15e9)
        time_us = 10 ** chance.uniform(1, 3)
        flops = roof * 10.0 ** min(y, 0.03) * time_us / 1e6
        sites.append(
            site(
                f"aten::op{n}",
                f"block.{n}",
                flops=flops,
                min_bytes=flops / intensity,
                time_us=time_us,
                kind=str(chance.choice(kinds)),
                verdict=str(chance.choice(["agrees", "formula_only", "disagrees"])),
            )
        )
    if seed % 2:
        sites.append(site("x::y", "", flops=math.nan, min_bytes=math.nan, time_us=500.0))
    if seed % 3:
        sites.append(site("aten::copy_", "", flops=0.0, min_bytes=1.0, time_us=300.0))
    return run_of(sites, model="random")


# What the chart shows


def small_run(**meta):
    """Five sites of 100 µs in all, one of each fate."""
    return run_of(
        [
            # 80 MFLOP / 1 MB = 80 FLOP/B: above the ridge 100/15 = 6.7, so the roof is 100 GFLOP/s.
            site("aten::mm", "a", flops=4e6, min_bytes=5e4, time_us=50.0, kind="matmul"),
            # 1 FLOP/B: the roof is 15 GFLOP/s; 0.3 MFLOP / 30 µs = 10 GFLOP/s: 67 %.
            site("aten::add", "b", flops=3e5, min_bytes=3e5, time_us=30.0, kind="elementwise"),
            # 0.4 % of the time: too small for a mark of its own.
            site("aten::relu", "c", flops=1e3, min_bytes=4e3, time_us=0.4, kind="elementwise"),
            site("aten::copy_", "d", flops=0.0, min_bytes=1e5, time_us=12.0),
            site("x::y", "e", flops=math.nan, min_bytes=math.nan, time_us=7.6),
        ],
        **meta,
    )


def test_every_sites_time_is_on_the_chart_and_adds_up_to_100_percent():
    for run in (small_run(), resnet_like(), transformer_like(), random_run(5)):
        for group_by in ("op", "site", "module", "kind"):
            data = chart_data(run, group_by=group_by)

            shown = [*data.points["share_frac"], *data.merged["share_frac"]]
            assert math.fsum(shown) == pytest.approx(1.0, abs=1e-12)
            assert math.fsum(data.table["share_frac"]) == pytest.approx(1.0, abs=1e-12)
            times = [*data.points["time_us"], *data.merged["time_us"]]
            assert math.fsum(times) == pytest.approx(run.sites["time_us"].sum(), rel=1e-12)
            assert sum([*data.points["sites"], *data.merged["sites"]]) == len(run.sites)


def test_time_goes_to_a_point_or_to_other_or_to_the_rug():
    data = chart_data(small_run())

    assert list(data.points["name"]) == ["a · mm", "b · add"]
    shares = dict(zip(data.merged["place"], data.merged["share_frac"], strict=True))
    assert shares == pytest.approx({"other": 0.004, "free": 0.12, "unknown": 0.076})
    assert list(data.table["label"]) == ["1", "2", "a", "b", "c"]


def test_of_many_small_sites_the_largest_are_still_points():
    # 1,000 equal sites: each 0.1 % of the time, so all would be merged.
    rows = [
        site("aten::mm", f"{n}", flops=4e6, min_bytes=5e4, time_us=50.0, kind="matmul")
        for n in range(1000)
    ]

    data = chart_data(run_of(rows), group_by="site")

    assert len(data.points) == 40
    assert data.merged["share_frac"].sum() == pytest.approx(0.96)


def of_shares(*percents):
    """Return a run of one product for each of these shares of the time."""
    rows = [
        site("aten::mm", f"{n}", flops=4e6, min_bytes=5e4, time_us=100 * percent, kind="matmul")
        for n, percent in enumerate(percents)
    ]
    return run_of(rows)


def test_a_point_below_half_a_percent_of_the_time_is_merged_and_one_above_is_drawn():
    data = chart_data(of_shares(99.0, 0.6, 0.4), group_by="site")

    assert list(data.points["share_frac"]) == pytest.approx([0.99, 0.006])
    assert list(data.merged["share_frac"]) == pytest.approx([0.004])


@pytest.mark.parametrize(
    ("small", "points"),
    [
        (120, 1),  # 120 × 0.4 % are 48 % of the time: merged
        (130, 40),  # 52 %: the largest of them are drawn, 40 points in all
    ],
)
def test_no_more_than_half_of_the_time_is_merged(small, points):
    rest = 100 - 0.4 * small

    data = chart_data(of_shares(rest, *[0.4] * small), group_by="site")

    assert len(data.points) == points


def test_a_point_lies_at_its_intensity_and_rate_and_knows_its_roof():
    first, second = chart_data(small_run()).points.itertuples()

    assert first.intensity_flops_per_byte == pytest.approx(80.0)  # 4e6 FLOPs / 5e4 B
    assert first.achieved_flops_per_s == pytest.approx(80e9)  # 4e6 FLOPs / 50 µs
    assert first.efficiency_frac == pytest.approx(0.8)  # of 100 GFLOP/s
    assert second.attainable_flops_per_s == pytest.approx(15e9)  # 1 FLOP/B at 15 GB/s
    assert second.efficiency_frac == pytest.approx(2 / 3)  # 10 of 15 GFLOP/s


def test_merged_work_is_measured_against_the_roof_of_each_part():
    # Two parts of one op, 10 µs each, one at 100 % of 100 GFLOP/s and one at 50 %: 75 %.
    run = run_of(
        [
            site("aten::mm", "a.0", flops=1e6, min_bytes=1e4, time_us=10.0, kind="matmul"),
            site("aten::mm", "a.1", flops=5e5, min_bytes=1e4, time_us=10.0, kind="matmul"),
        ]
    )

    (point,) = chart_data(run).points.itertuples()

    assert (point.name, point.sites, point.calls) == ("a.* · mm", 2, 2)
    assert point.efficiency_frac == pytest.approx(0.75)


def test_the_star_is_all_known_flops_over_wall_time_next_to_its_coverage():
    data = chart_data(small_run(wall_us={"median": 200.0}))

    # 4e6 + 3e5 + 1e3 FLOPs in 200 µs; all but 7.6 µs of 100 µs is known.
    assert data.run["achieved_flops_per_s"].iloc[0] == pytest.approx(4.301e6 / 200e-6)
    assert data.coverage_frac == pytest.approx(0.924)


def test_the_title_states_the_finding():
    assert chart_data(small_run()).finding == "50 % of time is compute-bound, at 80 % of its roof"
    memory = run_of([site("aten::add", "", flops=3e5, min_bytes=3e5, time_us=30.0)])
    assert chart_data(memory).finding == "100 % of time is memory-bound, at 67 % of its roof"
    blind = run_of([site("x::y", "", flops=math.nan, min_bytes=math.nan, time_us=1.0)])
    assert chart_data(blind).finding == "100 % of time has unknown FLOPs"


def test_there_is_one_flat_roof_per_dtype_and_measured_counts_before_datasheet():
    data = chart_data(transformer_like())

    assert [(r.name, r.origin, r.solid) for r in data.roofs.itertuples()] == [
        ("bf16", "measured", True),
        ("bf16", "datasheet", False),
        ("TF32", "datasheet", False),
        ("fp32 vector", "datasheet", False),  # only norms run in fp32
        ("HBM", "measured", True),
        ("HBM", "datasheet", False),
    ]
    assert list(data.roofs["value"][4:]) == [2.95e12, 3.35e12]


def test_a_measurement_on_a_busy_machine_counts_last_and_is_not_solid():
    roofs = [("float32", "tensor", "DRAM", 70e9, 9e9, "measured", False)]
    roofs += [("float32", "tensor", "DRAM", 100e9, 15e9, "datasheet", True)]
    mm = site("aten::mm", "", flops=4e6, min_bytes=5e4, time_us=50.0, kind="matmul")

    found = chart_data(run_of([mm], roofs)).roofs

    assert [(r.origin, r.solid) for r in found[found["name"] == "fp32"].itertuples()] == [
        ("datasheet", False),
        ("measured, busy machine", False),
    ]


def test_an_unknown_device_has_no_roof_and_is_still_drawn(tmp_path):
    run = run_of(
        [site("aten::mm", "", flops=4e6, min_bytes=5e4, time_us=50.0, roofs=[], kind="matmul")], []
    )

    data = chart_data(run)

    assert len(data.roofs) == 0
    assert data.finding == "100 % of time is matmul, without a valid ceiling"
    assert plot_roofline(run, tmp_path / "a.svg")[0].stat().st_size > 0


def test_a_run_of_unknown_time_only_is_drawn(tmp_path):
    run = run_of([site("x::y", "", flops=math.nan, min_bytes=math.nan, time_us=1.0)])

    assert "100.0 % of time: FLOPs unknown" in texts_of(draw_figure(run))


def test_eight_kinds_have_eight_colours():
    assert len(set(COLOURS.values())) == len(KINDS) == 8


def test_shape_tells_how_flops_are_known_and_hollow_that_nothing_confirms_them():
    sites = [
        site("aten::mm", str(n), flops=4e6, min_bytes=5e4 * n, time_us=50, kind="matmul", **how)
        for n, how in enumerate[dict[str, Any]](
            (
                {"verdict": "agrees"},
                {"verdict": "formula_only", "profiler_flops": 4e6},
                {"verdict": "functional"},
                {"verdict": "disagrees", "profiler_flops": 3e6},
            ),
            1,
        )
    ]
    figure = draw_figure(run_of(sites))

    holes = [mark.get_xdata()[0] for mark in marks_of(figure) if mark.get_gid() == "hole"]
    found = {
        mark.get_xdata()[0]: (mark.get_marker(), mark.get_xdata()[0] in holes)
        for mark in marks_of(figure)
        if str(mark.get_gid()).startswith("point")
    }
    # From left to right intensity falls with the number of bytes, so 4, 3, 2, 1.
    order = [found[x] for x in sorted(found)]
    assert order == [("^", True), ("s", True), ("s", False), ("o", False)]


def test_areas_are_proportional_to_shares_of_time():
    run = run_of(
        [
            site("aten::mm", "a", flops=4e6, min_bytes=5e4, time_us=80.0, kind="matmul"),
            site("aten::mm", "b", flops=4e5, min_bytes=5e3, time_us=20.0, kind="matmul"),
        ]
    )

    sizes = [
        line.get_markersize()
        for line in marks_of(draw_figure(run))
        if str(line.get_gid()).startswith("point")
    ]

    assert sizes[0] / sizes[1] == pytest.approx(2.0)  # √(80 / 20)


@pytest.mark.parametrize(
    ("percents", "legend"),
    [((70.0, 30.0), {"1 %", "5 %", "70.0 %"}), ([2.0] * 50, {"1 %", "2.0 %"})],
)
def test_the_legend_of_areas_ends_with_the_largest_point(percents, legend):
    figure = draw_figure(of_shares(*percents), group_by="site")

    assert legend <= set(texts_of(figure))
    marks = marks_of(figure)
    points = [mark for mark in marks if str(mark.get_gid()).startswith("point")]
    in_legend = [mark for mark in marks if mark.get_markerfacecolor() == LIGHT[3]]
    largest = [max(mark.get_markersize() for mark in kind) for kind in (points, in_legend)]
    assert largest[0] == pytest.approx(largest[1])


def test_a_point_above_its_roof_is_outlined_and_explained():
    fast = site("aten::mm", "a", flops=4e6, min_bytes=5e4, time_us=30.0, kind="matmul")
    figure = draw_figure(run_of([fast]))  # 4e6 / 30 µs = 133 GFLOP/s, of 100

    text = " ".join(texts_of(figure))
    assert "! 1 (133.3 %): above its roof: doubt its dtype, the clock, the count" in text
    assert "133.3 %!" in text
    assert any(line.get_gid() == "ring" for line in marks_of(figure))
    told = draw_figure(run_of([fast | {"roof_code": "roof_tf32", "reason": "; above the moon"}]))
    text = " ".join(texts_of(told))
    assert "above the compute roof: its kernels may multiply in TF32 without saying so." in text


def test_the_caption_says_what_was_not_recorded():
    text = " ".join(texts_of(draw_figure(small_run(device={"name": "A CPU", "threads": 2}))))

    assert "device threads 2" in text
    assert "not recorded: driver, clock, power limit, throttling, torch, date" in text


def test_names_from_a_model_are_shown_as_text(tmp_path):
    evil = site("aten::mm", "<b>$\\frac{x$.名前\n", flops=4e6, min_bytes=5e4, time_us=50.0)

    (path,) = plot_roofline(run_of([evil]), tmp_path / "a.svg")

    assert "<b>" not in path.read_text()


# Files


def test_two_draws_are_byte_identical(tmp_path):
    one, other = (plot_roofline(small_run(), tmp_path / name)[0] for name in ("a.svg", "b.svg"))

    assert one.read_bytes() == other.read_bytes()


@pytest.mark.slow
def test_a_draw_in_another_process_is_byte_identical(tmp_path):
    suffixes = ("png", "svg", "pdf", "csv")
    here = plot_roofline(small_run(), [tmp_path / f"a.{suffix}" for suffix in suffixes])
    code = (
        "import importlib.util as u, sys; spec = u.spec_from_file_location('t', sys.argv[1]);"
        "t = u.module_from_spec(spec); spec.loader.exec_module(t);"
        "t.plot_roofline(t.small_run(), sys.argv[2:])"
    )
    there = [str(tmp_path / f"b.{suffix}") for suffix in suffixes]

    subprocess.run([sys.executable, "-c", code, __file__, *there], check=True)

    assert [path.read_bytes() for path in here] == [
        (tmp_path / f"b.{suffix}").read_bytes() for suffix in suffixes
    ]
    assert b"/Type /Font" in here[2].read_bytes()
    assert b"/FontFile2" in here[2].read_bytes()  # TrueType, embedded
    assert "<text" not in here[1].read_text()  # outlines: no font is needed


def test_a_png_is_at_least_1600_pixels_wide_and_other_sizes_are_wider(tmp_path):
    (path,) = plot_roofline(small_run(), tmp_path / "a.png", size="page")

    assert int.from_bytes(path.read_bytes()[16:20], "big") >= 1600  # width in the IHDR chunk
    assert min(width for width, _ in SIZES.values()) == SIZES["page"][0]


def test_the_csv_holds_every_row(tmp_path):
    frame = pd.read_csv(write_points(small_run(), tmp_path / "a.csv"))

    assert list(frame["label"]) == ["1", "2", "a", "b", "c", "★"]
    assert frame["share_frac"].sum() == pytest.approx(1.0)
    assert frame["intensity_flops_per_byte"][0] == pytest.approx(80.0)


def test_what_cannot_be_drawn_or_written_is_a_usage_error(tmp_path):
    run = small_run()
    untimed = site("x::y", "", flops=1.0, min_bytes=1.0, time_us=1.0) | {"time_us": math.nan}
    for call in (
        lambda: plot_roofline(run, tmp_path / "a.gif"),
        lambda: plot_roofline(run, tmp_path / "a.png", size="vast"),
        lambda: plot_roofline(run, tmp_path / "a.png", group_by="mood"),
        lambda: write_points(run, tmp_path / "missing" / "a.csv"),
        lambda: plot_roofline(run_of([untimed]), tmp_path / "a.png"),
    ):
        with pytest.raises(UsageError):
            call()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_drawing_leaves_matplotlib_as_it_was_and_imports_neither_pyplot_nor_torch():
    code = (
        "import sys, flopprof.report.chart; assert 'matplotlib' not in sys.modules;"
        "import importlib.util as u; spec = u.spec_from_file_location('t', sys.argv[1]);"
        "t = u.module_from_spec(spec); spec.loader.exec_module(t);"
        "import matplotlib; before = matplotlib.rcParams.copy();"
        "t.draw_figure(t.small_run()); assert dict.__eq__(matplotlib.rcParams.copy(), before);"
        "assert not {'torch', 'matplotlib.pyplot'} & set(sys.modules)"
    )

    subprocess.run([sys.executable, "-c", code, __file__], check=True)


@pytest.mark.slow
def test_five_thousand_sites_are_drawn_in_five_seconds(tmp_path):
    run = random_run(7, count=5000)
    start = time.process_time()

    plot_roofline(run, tmp_path / "a.png", group_by="site")

    assert time.process_time() - start < 5.0


# Layout


def texts_of(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def marks_of(figure):
    return [a for a in figure.axes[0].lines if getattr(a, "get_marker", lambda: "None")() != "None"]


def polygon(corners):
    return np.array(corners, dtype=float)


def apart(one, other):
    """Whether two convex polygons (or segments) are disjoint: some side's normal separates them."""
    if (one.max(0) <= other.min(0)).any() or (other.max(0) <= one.min(0)).any():
        return True
    for shape in (one, other):
        edges = np.roll(shape, -1, axis=0) - shape
        for normal in np.stack([-edges[:, 1], edges[:, 0]], axis=1):
            if np.allclose(normal, 0):
                continue
            a, b = one @ normal, other @ normal
            if a.max() <= b.min() or b.max() <= a.min():
                return True
    return False


@cache
def glyphs_box(text, weight, size):
    """The lower left and the upper right corner of a text's glyphs, in points."""
    font = FontProperties(family="DejaVu Sans Mono", weight=weight, size=size)
    outline = TextPath((0, 0), text, prop=font).vertices
    return outline.min(axis=0), outline.max(axis=0)


def ink(text, renderer, scale):
    """The corners of what a text covers, in pixels: its glyphs' box, turned as it is turned."""
    box = glyphs_box(text.get_text(), text.get_weight(), text.get_size())
    (left, low), (right, high) = box
    x, y = text.get_transform().transform(text.get_position())
    angle = math.radians(text.get_rotation())
    if angle:
        w, h = (right - left) * scale / 2, (high - low) * scale / 2
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        return polygon([(-w, -h), (w, -h), (w, h), (-w, h)]) @ turn.T + [x, y]
    extent = text.get_window_extent(renderer)
    low, high = y + low * scale, y + high * scale
    return polygon([(extent.x0, low), (extent.x1, low), (extent.x1, high), (extent.x0, high)])


@cache
def renderer_of_pages():
    """One renderer for all figures: it remembers the width of each text."""
    return RendererAgg(100, 100, 200)


def boxes(shapes):
    """The lower left and the upper right corner of each shape: two arrays of points."""
    low = np.array([shape.min(axis=0) for shape in shapes]).reshape(-1, 2)
    high = np.array([shape.max(axis=0) for shape in shapes]).reshape(-1, 2)
    return low, high


def touching(shapes, others):
    """Which shape covers part of which other, by their numbers: only boxes that meet are tried."""
    low, high = boxes(shapes)
    other_low, other_high = boxes(others)
    meets = (low[:, None] < other_high) & (high[:, None] > other_low)
    near = np.argwhere(meets.all(axis=2))
    return [(a, b) for a, b in near if not apart(shapes[a], others[b])]


def layout_faults(figure, top):
    """Everything that CHART forbids, in words; empty for a good layout."""
    figure.set_dpi(200)  # as a PNG
    renderer, scale = renderer_of_pages(), 200 / 72
    texts = [(text, ink(text, renderer, scale)) for text in figure.axes[0].texts if text.get_text()]
    words = [repr(text.get_text()) for text, _ in texts]
    inks = [shape for _, shape in texts]
    faults = []
    for text, _ in texts:
        box = text.get_window_extent(renderer)
        if box.x0 < 0 or box.y0 < 0 or box.x1 > figure.bbox.x1 or box.y1 > figure.bbox.y1:
            faults.append(f"outside: {text.get_text()}")
    for one, other in touching(inks, inks):
        if one < other:
            faults.append(f"text on text: {words[one]} {words[other]}")
    circle = np.stack([(math.cos(a), math.sin(a)) for a in np.linspace(0, 2 * math.pi, 17)])
    markers, lines = {}, {}
    shapes, owners = [], []
    for artist in figure.axes[0].lines:
        if not hasattr(artist, "get_xydata") or artist.get_gid() == "grid":
            continue
        points = artist.get_transform().transform(artist.get_xydata())
        if artist.get_marker() != "None":
            radius = artist.get_markersize() / 2 + artist.get_markeredgewidth() / 2
            markers[artist] = (points[0], radius * scale)
            parts = [points[0] + 0.98 * radius * scale * circle]
        else:
            lines[str(artist.get_gid())] = points
            parts = [points[i : i + 2] for i in range(len(points) - 1)]
        shapes += parts
        owners += [f"{artist.get_gid()} {artist}"] * len(parts)
    for one, other in touching(inks, shapes):
        faults.append(f"text on {owners[other]}: {words[one]}")
    labels = {t.get_gid(): s.mean(axis=0) for t, s in texts if str(t.get_gid()).startswith("label")}
    names = ("point-", "other", "run")
    points = {str(a.get_gid()): m for a, m in markers.items() if str(a.get_gid()).startswith(names)}
    if len(labels) != min(top, len([p for p in points if p.startswith("point-")])):
        faults.append(f"{len(labels)} numbers")
    for name, centre in labels.items():
        number = name.removeprefix("label-")
        end = lines.get(f"leader-{number}", [None, centre])[1]
        distances = {
            key: math.dist(end, where) - (radius if end is centre else 0)
            for key, (where, radius) in points.items()
        }
        if min(distances, key=distances.__getitem__) != f"point-{number}":
            faults.append(f"{name} is nearest to {min(distances, key=distances.__getitem__)}")
    return faults


@pytest.mark.parametrize("build", [resnet_like, transformer_like])
def test_nothing_covers_anything_on_a_realistic_run(build):
    assert layout_faults(draw_figure(build(), size="page"), 8) == []


def test_the_layout_test_sees_a_text_that_covers_another_and_one_that_lost_its_point():
    figure = draw_figure(small_run())
    axes = figure.axes[0]
    number, other = (next(t for t in axes.texts if t.get_gid() == f"label-{n}") for n in (2, 1))

    number.set_position(other.get_position())
    assert "text on text: '1' '2'" in layout_faults(figure, 8)

    marks = {str(line.get_gid()): line for line in axes.lines}
    x, y = np.asarray(marks["point-1"].get_xydata())[0]
    number.set_position((x, y))
    if "leader-2" in marks:
        marks["leader-2"].remove()
    assert "label-2 is nearest to point-1" in layout_faults(figure, 8)


@pytest.mark.slow  # all of them
@pytest.mark.parametrize("build", [resnet_like, transformer_like, *range(50)])
def test_nothing_covers_anything_in_any_size(build, monkeypatch):
    run = random_run(build) if isinstance(build, int) else build()
    data = chart_data(run)  # the same for each size
    monkeypatch.setattr("flopprof.report.chart.chart_data", lambda _run: data)

    faults = {
        size: layout_faults(draw_figure(run, size=size), 8) for size in ("wide", "compact", "page")
    }

    assert faults == {"wide": [], "compact": [], "page": []}


def test_spread_moves_overlapping_intervals_apart():
    # Two of width 4 at 10 and 11 touch when the second moves to 14. The third is free.
    assert spread([10, 11, 30], [4, 4, 4], 0, 100) == [10, 14, 30]
    # At the lower edge the first cannot start before 0; at the upper all move back in order.
    assert spread([1, 2], [4, 4], 0, 100) == [2, 6]
    assert spread([99, 98], [4, 4], 0, 100) == [98, 94]


# What is asked for


def three_levels():
    # A product of 100 FLOP/B at the roof of 100 GFLOP/s; a norm of 1 FLOP/B at 10 GFLOP/s.
    return run_of(
        [
            site("aten::mm", "a", flops=8e6, min_bytes=8e4, time_us=80.0, kind="matmul"),
            site("aten::add", "b", flops=2e5, min_bytes=2e5, time_us=20.0, kind="elementwise"),
        ]
    )


def test_the_roof_may_be_that_of_a_cache():
    main, dram, l3 = (chart_data(three_levels(), level=level) for level in (None, "dram", "l3"))

    # 1 FLOP/B: 15 GFLOP/s from DRAM; from L3 60 GB/s would do 60 and the vector units do 40.
    assert list(main.points["attainable_flops_per_s"]) == pytest.approx([100e9, 15e9])
    assert list(l3.points["attainable_flops_per_s"]) == pytest.approx([100e9, 40e9])
    assert list(l3.points["bound"]) == ["compute", "compute"]
    told = ["memory_level"]  # the level that was asked for, or each site's own
    pd.testing.assert_frame_equal(main.points.drop(columns=told), dram.points.drop(columns=told))
    # 100 GFLOP/s over 15 GB/s is 6.67 FLOP/B, over 60 GB/s 1.67.
    assert main.roofs["ridge"].max() == pytest.approx(6.667, abs=0.01)
    assert l3.roofs["ridge"].max() == pytest.approx(1.667, abs=0.01)
    with pytest.raises(UsageError, match="no bandwidth of L2"):
        chart_data(three_levels(), level="L2")


def test_sites_are_grouped_by_the_kernel_that_took_most_of_their_time():
    run = three_levels()
    run.kernel_sums = pd.DataFrame(  # of the product's site
        [
            {"site_id": 0, "kernel": "gemm", "kind": "compute", "time_us": 30.0},
            {"site_id": 0, "kernel": "copy", "kind": "compute", "time_us": 50.0},
        ]
    )

    data = chart_data(run, group_by="kernel")

    assert dict(zip(data.points["name"], data.points["time_us"], strict=True)) == {
        "copy": 80.0,
        "(no kernel of an op)": 20.0,
    }
    run.kernel_sums = run.kernel_sums.iloc[:0]
    with pytest.raises(UsageError, match="no kernels"):
        chart_data(run, group_by="kernel")


def test_most_time_far_below_both_roofs_is_told_as_overhead():
    # 2e5 FLOPs of 15 GFLOP/s attainable take 13.3 µs of 1,333: 1 % of the roof.
    slow = site("aten::add", "b", flops=2e5, min_bytes=2e5, time_us=1333.3, bound="overhead")

    finding = chart_data(run_of([slow])).finding

    assert finding == "100 % of time is overhead-bound, at 1 % of its roof"


def test_time_whose_bound_is_not_known_for_others_work_is_told_as_that():
    unsure = site("aten::add", "b", flops=2e5, min_bytes=2e5, time_us=1333.3, bound="")

    finding = chart_data(run_of([unsure])).finding

    assert finding == "100 % of time has no bound that can be told: others had the machine"


def test_the_table_says_which_cache_bounds_a_point():
    sites = [
        site("aten::add", "a", flops=3e5, min_bytes=3e5, time_us=30.0, memory_level="L2"),
        site("aten::mul", "b", flops=3e5, min_bytes=3e5, time_us=20.0, memory_level="DRAM"),
    ]

    texts = " ".join(texts_of(draw_figure(run_of(sites))))

    assert texts.count("memory L2") == 1


@pytest.mark.parametrize(
    ("p5_us", "p95_us", "told"),
    [
        # 60 µs against 40 µs: the ranges 50 to 70 and 30 to 48 are apart, 45 and 48 are not.
        (50.0, 48.0, "60 % of time is compute-bound"),
        (45.0, 48.0, "cannot tell what takes most time: 60 % of time is compute-bound, 40 % is"),
    ],
)
def test_a_headline_is_made_only_where_the_spread_of_the_traced_calls_carries_it(
    p5_us, p95_us, told
):
    rows = [
        site("aten::mm", "a", flops=4e6, min_bytes=1e4, time_us=60.0, kind="matmul")
        | {"bound": "compute", "time_p5_us": p5_us, "time_p95_us": 70.0, "samples": 5},
        site("aten::add", "b", flops=4e5, min_bytes=4e5, time_us=40.0)
        | {"bound": "memory", "time_p5_us": 30.0, "time_p95_us": p95_us, "samples": 5},
    ]

    assert chart_data(run_of(rows)).finding.startswith(told)


def test_of_one_module_the_name_is_the_path_itself():
    # Two sites of one shape in blocks 0 and 1 are "*"; one of block 0 alone is not.
    rows = [
        site("aten::mm", path, flops=4e6, min_bytes=size, time_us=50.0, kind="matmul")
        for path, size in (("net.0.fc", 5e4), ("net.1.fc", 5e4), ("net.0.out", 6e4))
    ]

    names = chart_data(run_of(rows)).points["name"]

    assert list(names) == ["net.*.fc · mm", "net.0.out · mm"]


def two_runs():
    return {"before": resnet_like(0), "after & <b>": resnet_like(3)}


def test_of_several_runs_every_ones_time_adds_up_and_equal_names_share_a_number():
    data = compare_data(two_runs())

    assert data.names == {"A": "before", "B": "after & <b>"}
    for rows in (pd.concat([data.points, data.merged]), data.table):
        sums = rows.groupby("series")["share_frac"].sum()
        assert sums.to_dict() == pytest.approx({"A": 1.0, "B": 1.0}, abs=1e-12)
    numbered = data.points[data.points["label"] != ""]
    assert numbered.groupby("label")["key"].nunique().eq(1).all()
    assert numbered.groupby("label")["head"].sum().eq(1).all()
    assert numbered["label"].nunique() == 8
    assert list(data.table["label"])[:4] == ["1A", "1B", "2A", "2B"]
    assert len(data.roofs) == len(chart_data(resnet_like()).roofs)  # one device: equal roofs


def test_an_arrow_leads_from_each_run_to_the_next():
    fast = site("aten::mm", "a", flops=8e6, min_bytes=8e4, time_us=100.0, kind="matmul")
    slow = fast | {"time_us": 1000.0, "achieved_flops_per_s": 8e9}

    figure = draw_figure({"fast": run_of([fast]), "slow": run_of([slow])})

    marks = {str(line.get_gid()): line for line in figure.axes[0].lines}
    (arrow, *_) = [line for line in figure.axes[0].lines if line.get_gid() == "arrow"]
    start, end = np.asarray(arrow.get_xydata())
    # One tenth of the rate at equal intensity: straight down (y grows downwards on the sheet).
    assert start[0] == pytest.approx(end[0])
    assert start[1] < end[1] < np.asarray(marks["point-1"].get_xydata())[0, 1]
    assert [marks[name].get_markerfacecolor() for name in ("point-A1", "point-1")] == [*SERIES[:2]]


def test_roofs_of_two_devices_bear_their_runs_letter():
    data = compare_data({"cpu": resnet_like(), "gpu": transformer_like()})

    names = {*data.roofs["name"]}
    assert "A fp32" in names or "fp32" in names
    assert {*data.roofs["series"]} == {"A", "B"}
    assert len(data.roofs.drop_duplicates(["unit", "name", "kind"])) == len(data.roofs)


@pytest.mark.parametrize("size", ["wide", "page"])
def test_nothing_covers_anything_on_a_chart_of_several_runs(size):
    assert layout_faults(draw_figure(two_runs(), size=size), 8) == []


def test_too_many_runs_are_a_usage_error():
    with pytest.raises(UsageError, match="7 runs"):
        compare_data({str(n): small_run() for n in range(7)})


def test_the_command_draws_what_its_options_say(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        run = small_run()
        tables = {t: getattr(run, t, TABLES[t].empty()) for t in ("sites", "rooflines")}
        empty = {t: TABLES[t].empty() for t in ("module_calls", "ops", "kernels")}
        Run(**tables, **empty, provenance=provenance_of({"model": name})).save(
            tmp_path / f"{name}.flopprof"
        )

    options = ["--top=1", "--group-by=module", "--level=l3", "--size=page", "--dark", "--title=T"]
    code = main(["plot", "one.flopprof", "two.flopprof", *options, "-o", "a.svg", "-o", "a.csv"])

    assert code == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == ["written: a.svg", "written: a.csv"]
    points = pd.read_csv("a.csv")
    assert {*points["series"]} == {"one", "two"}
    assert points.query("place == 'point'").groupby("series").size().to_dict() == {
        "one": 2,
        "two": 2,
    }
    assert main(["plot", "one.flopprof", "--top", "-1"]) == 2
