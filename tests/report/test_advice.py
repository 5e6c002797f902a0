"""Advice: each rule on both sides of its threshold, by runs made by hand."""

import json
from typing import Any

import msgspec
import pytest

from flopprof.cli import main
from flopprof.jobfacts import TraceFacts
from flopprof.provenance import DeviceFacts, TraceProvenance, Warned
from flopprof.report.advice import ROWS, RULES, _has_odd_size, advice
from flopprof.run import Run
from flopprof.tables import KERNELS, ROOFLINES
from tests.builders import called, make_run

FILLER = "aten::filler"


def site(time_us: float, **changes: Any) -> dict[str, Any]:
    row = {
        "op": "aten::linear",
        "module_path": "fc",
        "phase": "forward",
        "dtype": "float32",
        "input_shapes": "4x8, 8x8",
        "calls": 1,
        "kind": "matmul",
        "flops": 100.0,
        "matmul_flops": 100.0,
        "vector_flops": 0.0,
        "min_bytes": 100.0,
        "intensity_flops_per_byte": 1.0,
        "time_us": time_us,
        "bound": "compute",
        "verdict": "agrees",
    }
    return row | changes


def run_of(*sites: dict[str, Any], overhead_us: float = 0.0, **device: Any) -> Run:
    """Return a run of 100 µs: these sites, and one that no rule is about for the rest."""
    rest_us = 100.0 - sum(each["time_us"] for each in sites)
    filler = site(rest_us, op=FILLER, kind="convolution", dtype="int8", module_path="rest")
    rows = [{**each, "site_id": n} for n, each in enumerate([*sites, filler])]
    run = make_run(rows, wall_us={"median": 100.0})
    provenance = called(run)
    facts = DeviceFacts(name="a CPU", kind="cpu", cores=2, threads=2)
    facts = msgspec.structs.replace(facts, **device)
    timing = msgspec.structs.replace(provenance.timing, host_overhead_us=overhead_us)
    return run.replaced(provenance=msgspec.structs.replace(provenance, device=facts, timing=timing))


def on_gpu(run: Run, *kernels: tuple[str, float], busy_us: float = 100.0, **roofs: float) -> Run:
    """Return the run with kernels of these names and durations, and matmul roofs by type."""
    rows = [
        {
            "kernel_id": n,
            "kernel": name,
            "kind": "compute",
            "op_id": -1,
            "start_us": float(n),
            "duration_us": duration_us,
        }
        for n, (name, duration_us) in enumerate(kernels)
    ]
    ceilings = [
        {
            "dtype": dtype,
            "unit": "tensor",
            "memory_level": "HBM",
            "peak_flops_per_s": peak,
            "peak_bytes_per_s": 1e9,
            "kind": "datasheet",
            "source": "by hand",
            "valid": True,
        }
        for dtype, peak in roofs.items()
    ]
    provenance = called(run)
    timing = msgspec.structs.replace(provenance.timing, device_busy_us=busy_us)
    return run.replaced(
        kernels=KERNELS.from_rows(rows),
        rooflines=ROOFLINES.from_rows(ceilings) if ceilings else ROOFLINES.empty(),
        provenance=msgspec.structs.replace(provenance, timing=timing),
    )


def with_roofs(run: Run, **roofs: float) -> Run:
    """Return the run of a CPU with matmul roofs by type, over 1 GB/s."""
    return on_gpu(run, **roofs)


LARGE = {"matmul_flops": 40e6, "flops": 40e6, "min_bytes": 2000.0}


def rules(run: Run) -> list[str]:
    return [each.rule for each in advice(run)]


BIG = ("gemm", 100.0)  # µs: no launch is waited for


@pytest.mark.parametrize(
    ("rule", "below", "above"),
    [
        ("batch", run_of(site(29, bound="memory")), run_of(site(31, bound="memory"))),
        (
            "fuse",
            run_of(site(19, kind="elementwise", op="aten::add", calls=2)),
            run_of(site(21, kind="elementwise", op="aten::add", calls=2)),
        ),
        (
            "attention",
            run_of(
                site(2, op="aten::softmax", kind="other", module_path="a"),
                site(2, op="aten::bmm", module_path="a"),
            ),
            run_of(
                site(2, op="aten::softmax", kind="other", module_path="a"),
                site(4, op="aten::bmm", module_path="a"),
            ),
        ),
        (
            "copies",
            run_of(site(9, kind="free", op="aten::copy_")),
            run_of(site(11, kind="free", op="aten::copy_")),
        ),
        (
            "hidden",
            run_of(site(9, kind="unknown", op="(gap)")),
            run_of(site(11, kind="unknown", op="(gap)")),
        ),
        # Between ops: 24 of 124 µs are 19.4 %, 26 of 126 are 20.6 %.
        ("host", run_of(site(10), overhead_us=24), run_of(site(10), overhead_us=26)),
        ("threads", run_of(site(10)), run_of(site(10), threads=1)),
        # Of 100 µs a product of 40 MFLOPs at 1 TFLOP/s needs 40; at twice that it saves 20, and
        # converting 2,000 bytes costs 1.5 × 2,000 B at 1 GB/s, 3 µs: 17 %. At eight times: 35 - 3.
        (
            "bf16",
            with_roofs(run_of(site(60, **LARGE)), float32=1e12, bfloat16=2e12),
            with_roofs(run_of(site(60, **LARGE)), float32=1e12, bfloat16=8e12),
        ),
        (
            "channels_last",
            on_gpu(run_of(site(10, kind="convolution")), BIG, ("nchwToNhwcKernel", 1.9)),
            on_gpu(run_of(site(10, kind="convolution")), BIG, ("nchwToNhwcKernel", 2.1)),
        ),
        (
            "tile",
            on_gpu(run_of(site(4, dtype="float16", input_shapes="8x7, 7x8")), BIG),
            on_gpu(run_of(site(6, dtype="float16", input_shapes="8x7, 7x8")), BIG),
        ),
        (
            "tf32",
            on_gpu(run_of(site(60, **LARGE)), BIG, float32=1e12, tfloat32=1.4e12),
            on_gpu(run_of(site(60, **LARGE)), BIG, float32=1e12, tfloat32=2.1e12),
        ),
        (
            "graphs",
            on_gpu(run_of(site(10)), ("small", 9.0), busy_us=71),
            on_gpu(run_of(site(10)), ("small", 9.0), busy_us=69),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_rule_holds_from_its_threshold_on(rule, below, above):
    assert rule not in rules(below)
    assert rule in rules(above)


def test_kernels_that_take_long_need_no_graphs():
    assert "graphs" not in rules(on_gpu(run_of(site(10)), ("long", 11.0), busy_us=10))


def test_one_small_op_has_nothing_to_be_fused_with():
    assert "fuse" not in rules(run_of(site(50, kind="elementwise", op="aten::add", calls=1)))


@pytest.mark.parametrize(
    "product",
    [
        LARGE | {"matmul_flops": 29e6},  # small: its overhead outweighs what it saves
        LARGE | {"calls": 2},  # two of 20 MFLOPs
        LARGE | {"bound": "overhead"},
        LARGE | {"bound": ""},  # on a busy machine nothing is known of it
        LARGE | {"dtype": "bfloat16"},
        LARGE | {"min_bytes": 10_000.0},  # 15 µs of conversion: 20 % are left
    ],
)
def test_bf16_is_not_advised_where_it_would_not_help(product):
    run = run_of(site(60, **product))

    assert "bf16" not in rules(with_roofs(run, float32=1e12, bfloat16=8e12))


def test_bf16_is_not_advised_without_both_ceilings():
    assert "bf16" not in rules(with_roofs(run_of(site(60, **LARGE)), float32=1e12))


def test_small_products_that_would_be_converted_for_nothing_count_against_bf16():
    small = site(10, **LARGE | {"matmul_flops": 1e6, "min_bytes": 3_000.0})
    run = run_of(site(60, **LARGE), small)

    # 35 µs less 3 for the large one and 4.5 for the small one: 27.5 of 100.
    assert "bf16" not in rules(with_roofs(run, float32=1e12, bfloat16=8e12))


def test_one_of_two_types_is_recommended():
    run = on_gpu(run_of(site(60, **LARGE)), BIG, float32=1e12, tfloat32=8e12, bfloat16=16e12)

    assert "bf16" not in rules(run)  # TF32 is one switch and no change of the model
    assert "tf32" in rules(run)


def test_advice_on_a_trace_names_no_option_of_ours():
    for row in ROWS.values():
        assert "--" not in (row["text_of_trace"] or row["text"])
    run = run_of(site(21, kind="elementwise", op="aten::add", calls=2))
    facts = {name: getattr(run.provenance, name) for name in ("source", "called", "environment")}
    traced = TraceProvenance(
        **facts, device=run.provenance.device, trace=TraceFacts(files=("a.json",))
    )
    trace = run.replaced(provenance=traced)

    (of_call,) = [each.text for each in advice(run) if each.rule == "fuse"]
    (of_trace,) = [each.text for each in advice(trace) if each.rule == "fuse"]

    assert "--compile" in of_call
    assert "torch.compile" in of_trace


def test_time_between_ops_of_a_busy_machine_is_nobodys_advice():
    run = run_of(site(10), overhead_us=60)
    warnings = (Warned(code="load", text="the machine was busy"),)
    busy = run.replaced(provenance=msgspec.structs.replace(run.provenance, warnings=warnings))

    assert "host" in rules(run)
    assert "host" not in rules(busy)
    # Between ops: 60 of 160 µs.
    assert run.figures.held_frac["overhead"] == pytest.approx(60 / 160)
    assert busy.figures.held_frac["unknown"] == pytest.approx(60 / 160)


def test_evidence_has_the_figures():
    (finding,) = [each for each in advice(run_of(site(40, bound="memory"))) if each.rule == "batch"]

    assert finding.evidence == (
        "products left of the ridge take 40.0 % of the time, such as fc linear at 1.00 FLOP/byte"
    )


def test_the_largest_share_comes_first():
    run = run_of(site(30, kind="free", op="aten::copy_"), site(50, bound="memory"))

    assert rules(run) == ["batch", "copies"]


@pytest.mark.parametrize(
    ("shapes", "is_odd"),
    [
        ("4x8, 8x8", False),
        ("4x197x768, 3072x768, 3072", False),  # rows may be of any number
        ("4x7, 7x8", True),
        ("8x8, 8x10", True),
        ("8x8", False),
        ("", False),
        ("[2x2], 8x8", False),
    ],
)
def test_sizes_that_are_no_multiples_of_a_tile(shapes, is_odd):
    assert _has_odd_size(shapes) is is_odd


def test_every_rule_has_a_row_and_every_row_a_rule_with_a_source():
    assert {name for name, _ in RULES.items()} == set(ROWS)
    for name, row in ROWS.items():
        assert row["text"], name
        assert row["source"], name
        assert 0 < float(row["threshold"]) < 1
        assert row["excludes"] in ("", *ROWS)


def test_no_advice_is_given_where_it_is_not_wanted(tmp_path, capsys):
    folder = run_of(site(40, bound="memory")).save(tmp_path / "net.flopprof")

    assert main(["report", str(folder)]) == 0
    assert "Next      give it a larger batch" in capsys.readouterr().out
    assert main(["report", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["advice"][0]["rule"] == "batch"
    assert main(["report", str(folder), "--no-advice"]) == 0
    assert "Next " not in capsys.readouterr().out
    assert main(["report", str(folder), "--no-advice", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["advice"] == []
    assert advice(Run.load(folder))  # the next command gives it again
