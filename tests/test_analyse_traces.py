"""Traces recorded elsewhere, from file to report: small ones of our own, and real GPU traces."""

import gzip
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flopprof.api import analyse_traces
from flopprof.cli import main
from flopprof.errors import FlopprofError, UsageError
from flopprof.report.perfetto import annotate_trace
from tests.builders import recorded
from tests.events import ADDMM, kernel, launch, op, with_shapes, write_trace

# [4,5] @ [5,6] + [6]: 4·6·5 multiply-adds × 2, 4·6 additions.
MATMUL, BIAS = 240, 24
H100 = {"id": 0, "name": "NVIDIA H100 80GB HBM3", "numSms": 132, "computeMajor": 9}


def matmul(at, correlation, dur=10.0, name="nvjet_tst_64x8", dtype="c10::BFloat16"):
    """Return an addmm of 10 µs at `at`, and its kernel, 100 µs later."""
    shapes = ADDMM | {"Input type": [dtype] * 3}
    event = with_shapes(op("aten::addmm", at, 10), shapes)
    return [event, launch(correlation, at + 2), kernel(correlation, at + 100, dur, name=name)]


def small(folder, *, rank=0, compute_us=10.0, name="t.json", **more):
    """Write a rank's trace: two steps with a matmul each, a collective, an orphan kernel."""
    return write_trace(
        folder / name,
        op("ProfilerStep#1", 0, 40) | {"cat": "user_annotation"},
        *matmul(0, 1, compute_us),
        op("ProfilerStep#2", 50, 40) | {"cat": "user_annotation"},
        *matmul(50, 2, compute_us),
        op("c10d::allreduce_", 70, 5),
        launch(3, 72),
        # From 155 to 195: behind the second matmul's kernel, which begins at 150.
        kernel(3, 155, 40, name="ncclDevKernel_AllReduce_Sum_bf16"),
        kernel(9, 300, 5, name="lost"),
        deviceProperties=[H100],
        distributedInfo={"rank": rank, "world_size": 2},
        **more,
    )


def answer(capsys, *arguments):
    code = main(["trace", *map(str, arguments), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == 0, found
    return found


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def test_a_trace_has_the_keys_of_a_run_and_those_of_its_kernels(tmp_path, capsys):
    found = answer(capsys, small(tmp_path))

    assert found["schema_version"] == 1
    assert (found["matmul_flops"], found["vector_flops"]) == (2 * MATMUL, 2 * BIAS)
    assert found["gpu"] == "NVIDIA H100 80GB HBM3"
    assert found["kernels"] == 3  # the collective is kept apart
    assert found["kernel_time_us"] == 10 + 10 + 5
    assert found["device_busy_us"] == 25
    assert found["communication_us"] == 40
    assert found["linked_kernel_frac"] == pytest.approx(2 / 3)
    assert found["linked_kernel_time_frac"] == pytest.approx(20 / 25)
    assert found["coverage_frac"] == pytest.approx(20 / 25)
    assert found["verdicts"]["hidden"]["time_frac"] == pytest.approx(5 / 25)
    assert found["ops"]["aten::addmm"]["time_us"] == 20
    assert found["ops"]["aten::addmm"]["achieved_flops_per_s"] == 2 * (MATMUL + BIAS) / 20e-6
    # Busy time at the H100's 989.4 TFLOP/s: 5 µs of the lost kernel at most.
    assert found["flops_at_most"] == pytest.approx(2 * (MATMUL + BIAS) + 5e-6 * 989.4e12, rel=1e-3)
    written = {Path(name).name for name in found["files"]}
    assert written >= {"report.md", "roofline.png", "sites.csv", "kernels.csv", "meta.json"}
    assert Path("t.flopprof/report.md").exists()


def test_a_cpu_rank_that_is_listed_first_does_not_hide_the_gpu_of_the_next(tmp_path):
    on_cpu = write_trace(
        tmp_path / "cpu.json",
        with_shapes(op("aten::addmm", 0, 10), ADDMM),
        distributedInfo={"rank": 1, "world_size": 2},
    )

    run = analyse_traces([on_cpu, small(tmp_path, rank=0)])

    assert run.provenance.device.name == H100["name"]
    assert run.rooflines["peak_flops_per_s"].max() == 1978.9e12  # fp8


def test_properties_of_2021_are_read_too(tmp_path):
    path = write_trace(
        tmp_path / "old.json", *matmul(0, 1), computeProperties=[H100 | {"name": "Tesla P40"}]
    )

    assert analyse_traces(path).provenance.device.name == "Tesla P40"


def test_a_device_that_has_ceilings_but_none_for_the_runs_dtype_says_so(tmp_path):
    path = write_trace(tmp_path / "int32.json", *matmul(0, 1, dtype="int"), deviceProperties=[H100])

    text = analyse_traces(path).report("text")

    assert "the device has no ceiling for int32 products (it has for float64" in text
    assert "no ceiling is known for this device" not in text


def test_steps_have_their_own_rows_and_the_first_may_be_left_out(tmp_path, capsys):
    path = small(tmp_path)

    every = answer(capsys, path)
    later = answer(capsys, path, "--skip-steps", "1")

    assert [(s["step"], s["matmul_flops"], s["kernel_time_us"]) for s in every["steps"]] == [
        ("1", MATMUL, 10),
        ("2", MATMUL, 10),
    ]
    assert [s["step"] for s in later["steps"]] == ["2"]
    assert later["matmul_flops"] == MATMUL
    assert later["kernel_time_us"] == 10 + 5
    assert main(["trace", str(path), "--skip-steps", "2"]) == 2


def test_ranks_add_up_and_the_one_that_worked_longest_is_named(tmp_path, capsys):
    paths = [small(tmp_path, rank=n, compute_us=10 + 5 * n, name=f"r{n}.json") for n in (0, 1)]

    found = answer(capsys, *paths, "-o", "job")

    assert found["matmul_flops"] == 4 * MATMUL
    assert [rank["rank"] for rank in found["ranks"]] == [0, 1]
    assert [rank["kernel_time_us"] for rank in found["ranks"]] == [25, 35]
    assert found["slowest_rank"] == 1
    # Rank 0: the collective (155…195) runs beside the matmul (150…160) for 5 of its 40 µs.
    assert found["ranks"][0]["overlap_frac"] == pytest.approx(5 / 40)
    # Rank 1: 150…165, so 10 of 40.
    assert found["ranks"][1]["overlap_frac"] == pytest.approx(10 / 40)
    # 40 of the union of all kernels: 10 + 10 + 5 + 40 − 5 beside each other.
    assert found["ranks"][0]["communication_frac"] == pytest.approx(40 / 60)
    assert found["ops"]["aten::addmm"]["calls"] == 4


@pytest.mark.parametrize(
    ("compute_us", "slowest"),
    [
        (48.5, None),  # rank 1: 2 × 48.5 + 5 = 102 µs, of which 2 more than rank 0 are 1.96 %
        (48.6, 1),  # 102.2 µs, of which 2.2 are 2.15 %
    ],
)
def test_a_rank_is_the_slowest_from_2_percent_on(tmp_path, capsys, compute_us, slowest):
    # Rank 0: two products of 47.5 µs and the orphan of 5 µs are 100 µs.
    ranks = [small(tmp_path, rank=0, compute_us=47.5, name="r0.json")]
    ranks.append(small(tmp_path, rank=1, compute_us=compute_us, name="r1.json"))

    assert answer(capsys, *ranks)["slowest_rank"] == slowest


@pytest.mark.parametrize(
    ("at_us", "of_steps"),
    [
        (39.0, [2 * MATMUL, MATMUL]),  # the first step is from 0 to 40 µs, the second from 50 on
        (41.0, [MATMUL, MATMUL]),  # between the two: in none
        (51.0, [MATMUL, 2 * MATMUL]),
    ],
)
def test_an_op_between_two_steps_is_in_neither(tmp_path, capsys, at_us, of_steps):
    path = write_trace(
        tmp_path / "between.json",
        op("ProfilerStep#1", 0, 40) | {"cat": "user_annotation"},
        *matmul(0, 1),
        op("ProfilerStep#2", 50, 40) | {"cat": "user_annotation"},
        *matmul(70, 2),
        *(event | {"tid": 2} for event in matmul(at_us, 3)[:1]),  # another thread, beside them
    )

    found = answer(capsys, path)

    assert [step["matmul_flops"] for step in found["steps"]] == of_steps
    assert found["matmul_flops"] == 3 * MATMUL


def test_two_traces_of_one_rank_are_told_apart_and_one_trace_twice_is_refused(tmp_path):
    first, second = (small(tmp_path, name=name) for name in ("a.json", "b.json"))

    run = analyse_traces([first, second])

    assert [rank.rank for rank in run.provenance.ranks] == [0, 1]  # type: ignore[union-attr]
    assert any("rank 0 again" in text for text in run.provenance.warning_texts)
    with pytest.raises(UsageError, match="given twice"):
        analyse_traces([first, first])


def test_the_ceiling_follows_the_kernel(tmp_path):
    path = write_trace(
        tmp_path / "t.json",
        *matmul(0, 1, name="cutlass_80_tensorop_s1688gemm_128", dtype="float"),
        *matmul(20, 2, name="ampere_sgemm_32x32", dtype="double"),
        *matmul(40, 3, name="void gemv2T_kernel_val", dtype="c10::Half"),
        *matmul(60, 4, name="nvjet_qqtst_64x8", dtype="c10::Float8_e4m3fn"),
        deviceProperties=[H100],
    )

    sites = analyse_traces(path).sites.set_index("dtype")

    # 6 + 20 + 30 + 24 = 80 elements; all are far left of the ridge: intensity × 3.35 TB/s.
    assert set(sites.index) == {"tfloat32", "float64", "float16", "float8_e4m3fn"}
    assert sites.loc["tfloat32", "attainable_flops_per_s"] == pytest.approx(264 / 320 * 3.35e12)


def big(dtype, name, dur):
    """Return a 4096³ product: 2 · 4096³ = 137.4 GFLOPs."""
    shapes = {"Input Dims": [[4096, 4096], [4096, 4096]], "Input type": [dtype] * 2}
    event = with_shapes(op("aten::mm", 0, 10), shapes)
    return [event, launch(1, 2), kernel(1, 100, dur, name=name)]


@pytest.mark.parametrize(
    ("dtype", "kernel_name", "peak"),
    [
        # NVIDIA's H100 SXM datasheet, dense.
        ("float", "sm80_xmma_gemm_f32f32_tf32f32_f32_nn", 494.7e12),
        ("float", "ampere_sgemm_128x64_nn", 67e12),
        ("c10::Half", "nvjet_hsh_128x256", 989.4e12),
        ("c10::Half", "void gemv2N_kernel", 67e12),
        ("double", "cutlass_80_tensorop_d884gemm", 67e12),
        ("double", "cutlass_80_simt_dgemm_128", 34e12),
        ("c10::Float8_e4m3fn", "nvjet_qqtst", 1978.9e12),
        ("signed char", "cutlass_80_tensorop_i16832gemm_s8", 1978.9e12),
    ],
)
def test_each_dtype_and_unit_has_its_ceiling(tmp_path, dtype, kernel_name, peak):
    events = big(dtype, kernel_name, 1000)
    path = write_trace(tmp_path / "t.json", *events, deviceProperties=[H100])

    (site,) = analyse_traces(path).sites.itertuples()

    assert site.attainable_flops_per_s == pytest.approx(peak, rel=0.002)


@pytest.mark.parametrize(
    ("dtype", "name", "why"),
    [
        ("float", "sm90_gemm", "may multiply in TF32"),
        ("c10::BFloat16", "nvjet_tst", "of a lower clock, or kernels are missing"),
        ("float", "volta_scudnn_winograd_128x128", "multiply less than is counted"),
    ],
)
def test_what_is_above_its_ceiling_is_flagged_with_the_likeliest_reason(tmp_path, dtype, name, why):
    # 137.4 GFLOPs in 50 µs: 2.7 PFLOP/s.
    events = big(dtype, name, 50)
    path = write_trace(tmp_path / "t.json", *events, deviceProperties=[H100])

    run = analyse_traces(path)

    assert "above the compute roof" in run.sites["reason"][0]
    assert why in run.sites["reason"][0]
    assert any(why in text for text in run.provenance.warning_texts)


def test_an_unknown_device_has_no_ceiling_until_one_is_given(tmp_path, capsys):
    path = write_trace(
        tmp_path / "t.json",
        *matmul(0, 1),
        deviceProperties=[{"id": 3, "name": "AMD GPU"}],
    )
    own = tmp_path / "own.json"
    own.write_text(
        json.dumps(
            {
                "version": 1,
                "compute": [{"dtype": "bfloat16", "unit": "tensor", "flops_per_s": 1e12}],
                "memory": [{"level": "HBM", "bytes_per_s": 1e12}],
            }
        )
    )

    unknown = analyse_traces(path)
    named = analyse_traces(path, gpu="MI300X")
    given = analyse_traces(path, ceilings=own)

    assert unknown.rooflines.empty
    assert any("no ceiling is known" in text for text in unknown.provenance.warning_texts)
    assert unknown.sites["attainable_flops_per_s"].isna().all()
    assert named.rooflines["peak_flops_per_s"].max() > 1e15
    assert given.sites["attainable_flops_per_s"][0] == 1e12  # 1.65 FLOP/B: compute
    assert main(["trace", str(path), "--gpu", "Nonsense"]) == 2
    assert "MI300X" in capsys.readouterr().err
    assert main(["trace", str(path), "--gpu", "MI300X", "--ceilings", str(own)]) == 2


def test_kernels_of_another_device_number_take_the_only_properties_there_are(tmp_path):
    event = {**kernel(1, 20, 5), "args": {"correlation": 1, "device": 9, "stream": 0}}
    mi300x = {"id": 0, "name": "AMD Instinct MI300X VF", "numSms": 304, "warpSize": 64}
    path = write_trace(
        tmp_path / "t.json", op("aten::neg", 0, 9), launch(1, 1), event, deviceProperties=[mi300x]
    )

    run = analyse_traces(path)

    assert run.provenance.device.kind == "rocm"
    assert len(run.rooflines)


def test_a_replayed_graph_is_one_hidden_site_with_its_kernels_names(tmp_path):
    path = write_trace(
        tmp_path / "t.json",
        op("aten::neg", 0, 5),
        launch(2, 20) | {"name": "cudaGraphLaunch"},
        *(kernel(2, 30 + 10 * n, 3 + n, name=name) for n, name in enumerate(("gemm", "relu"))),
    )

    hidden = analyse_traces(path).sites.query("verdict == 'hidden'")

    assert list(hidden["input_shapes"]) == ["graph 1"]
    assert list(hidden["time_us"]) == [3 + 4]
    assert "relu 57.1 %; gemm 42.9 %" in hidden["reason"].iloc[0]


def test_a_trace_of_a_cpu_is_analysed_on_host_times(tmp_path, capsys):
    path = write_trace(tmp_path / "t.json", with_shapes(op("aten::addmm", 0, 10), ADDMM))

    found = answer(capsys, path)

    assert found["ops"]["aten::addmm"]["time_us"] == 10
    assert found["kernels"] == 0
    assert found["kernel_time_us"] is None
    assert any("no kernels" in text for text in found["warnings"])


def test_a_trace_without_shapes_says_how_to_record_them(tmp_path, capsys):
    path = write_trace(
        tmp_path / "t.json", op("aten::addmm", 0, 10), launch(1, 2), kernel(1, 20, 5)
    )

    found = answer(capsys, path)

    assert found["ops"]["aten::addmm"]["matmul_flops"] is None
    assert any("record_shapes=True" in text for text in found["warnings"])


def test_a_trace_of_kernels_alone_is_a_table_of_kernels_and_says_why_there_are_no_flops(tmp_path):
    path = write_trace(
        tmp_path / "t.json",
        *(kernel(n, 20 + 10 * n, 5, name="gemm") for n in range(2)),
        kernel(3, 50, 7, name="softmax"),
        kernel(4, 60, 2, name="Memcpy HtoD", cat="gpu_memcpy"),
    )

    run = analyse_traces(path)

    sites = run.sites.set_index("input_shapes")
    assert sites["time_us"].to_dict() == {"gemm": 5 + 5, "softmax": 7}
    assert set(run.sites["verdict"]) == {"hidden"}
    assert run.totals.matmul_flops != run.totals.matmul_flops or not run.totals.matmul_flops
    assert any(
        "kernels and no ops, so FLOPs are unknown" in w for w in run.provenance.warning_texts
    )
    text = " ".join(run.report("text").split())
    assert "FLOPs unknown" in text
    assert "gemm" in text
    assert "softmax" in text


def test_the_report_of_a_trace_names_device_time_ranks_and_steps(tmp_path, capsys):
    assert main(["trace", str(small(tmp_path))]) == 0

    text = capsys.readouterr().out
    assert "NVIDIA H100 80GB HBM3, mostly bfloat16" in text
    assert "3 compute kernels, 25.0 µs in sum" in text
    assert "20.0 % of kernel time belongs to no op" in text
    assert "collectives 40.0 µs (66.7 %), 12.5 % of them behind computation" in " ".join(
        text.split()
    )
    assert "lost" in text


def test_a_saved_trace_reports_and_plots_as_it_did(tmp_path, capsys):
    host = write_trace(tmp_path / "host.json", with_shapes(op("aten::addmm", 0, 10), ADDMM))
    for path in (small(tmp_path), host):
        run = str(tmp_path / f"{path.stem}.flopprof")
        assert main(["trace", str(path), "-o", run]) == 0
        printed = capsys.readouterr().out

        assert main(["report", run]) == 0
        assert capsys.readouterr().out.strip() == printed.partition("\nChart")[0].strip()
        assert main(["report", run, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["traces"] == [str(path)]
        assert main(["plot", run, "-o", str(tmp_path / "again.png")]) == 0
        capsys.readouterr()


def test_analysing_a_trace_imports_no_torch(tmp_path):
    path = small(tmp_path)
    code = (
        "import sys; from flopprof.cli import main;"
        f"assert main(['trace', {str(path)!r}, '--annotate', 'a.json.gz']) == 0;"
        "assert 'torch' not in sys.modules"
    )

    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b\x08", b"[]", b'{"traceEvents": [{"ph"', b"{}"])
def test_what_is_no_trace_exits_with_3_and_writes_nothing(tmp_path, capsys, content):
    path = tmp_path / "bad.json.gz"
    path.write_bytes(content)

    assert main(["trace", str(path)]) == 3
    assert str(path) in capsys.readouterr().err
    assert list(Path.cwd().iterdir()) == []


def test_a_missing_trace_exits_with_2(capsys):
    assert main(["trace", "nowhere.json"]) == 2
    assert "nowhere.json: No such file" in capsys.readouterr().err


def test_the_annotated_trace_has_the_figures_in_its_events(tmp_path):
    path = small(tmp_path)

    assert main(["trace", str(path), "--annotate", "out.json.gz"]) == 0

    before = json.loads(path.read_text())
    after = json.loads(gzip.decompress(Path("out.json.gz").read_bytes()))
    assert after["deviceProperties"] == before["deviceProperties"]
    addmm = [e["args"] for e in after["traceEvents"] if e.get("name") == "aten::addmm"]
    # bf16: (6 + 20 + 30 + 24) elements × 2 bytes; 264 FLOPs in 10 µs; roof 264/160 × 3.35 TB/s.
    assert [a["FLOPs"] for a in addmm] == [264, 264]
    assert addmm[0]["bytes"] == 160
    assert addmm[0]["FLOP/s"] == 26.4e6
    assert addmm[0]["% of roof"] == pytest.approx(100 * 26.4e6 / (264 / 160 * 3.35e12))
    assert addmm[0]["verdict"] == "formula_only"
    assert addmm[0]["Input Dims"] == ADDMM["Input Dims"]
    kernels = {e["name"]: e["args"] for e in after["traceEvents"] if e.get("cat") == "kernel"}
    assert kernels["nvjet_tst_64x8"]["counted op"] == "aten::addmm"
    assert kernels["lost"]["verdict"] == "hidden"
    assert "verdict" not in kernels["ncclDevKernel_AllReduce_Sum_bf16"]
    counters = [e for e in after["traceEvents"] if e.get("ph") == "C"]
    assert {e["name"] for e in counters} == {"FLOP/s", "coverage %"}
    rates = [e["args"]["FLOP/s"] for e in counters if e["name"] == "FLOP/s"]
    assert rates.pop() == 0  # it ends
    # Over the 205 µs from the first kernel's start to the last one's end, all FLOPs are there.
    assert sum(rates) / len(rates) * 205e-6 == pytest.approx(2 * 264)
    assert max(rates) == pytest.approx(264 / 10e-6)
    kept = [e for e in after["traceEvents"] if e.get("ph") != "C"]
    assert len(kept) == len(before["traceEvents"])


def test_an_annotated_trace_that_cannot_be_written_is_a_usage_error(tmp_path):
    path = small(tmp_path)

    assert main(["trace", str(path), "--annotate", "no/such/folder/out.json"]) == 2
    assert main(["trace", str(path), str(path), "--annotate", "out.json"]) == 2
    assert list(Path.cwd().iterdir()) == []


def test_a_pattern_that_means_several_traces_is_not_annotated_as_one(tmp_path, capsys):
    for name in ("rank0.json", "rank1.json"):
        small(tmp_path, name=name)

    assert main(["trace", str(tmp_path / "rank*.json"), "--annotate", "out.json"]) == 2

    assert "--annotate writes one trace" in capsys.readouterr().err
    assert list(Path.cwd().iterdir()) == []


def test_the_first_events_of_a_damaged_trace_are_not_taken_for_all(tmp_path):
    path = tmp_path / "cut.json"
    path.write_text(small(tmp_path).read_text()[:-40])

    run = analyse_traces(path)

    assert any("is cut off" in text for text in run.provenance.warning_texts)


def test_odd_values_anywhere_in_a_trace_are_no_crash(tmp_path):
    chance = random.Random(0)
    odd: list[Any] = [
        None,
        True,
        -1,
        1.5,
        1e300,
        2**64 - 1,
        -(2**63),
        "",
        "x",
        [],
        [[]],
        {},
        [1, [2]],
    ]
    original = small(tmp_path).read_text()
    path = tmp_path / "odd.json"
    read = 0
    for _ in range(60):
        trace = json.loads(original)
        events = trace["traceEvents"]
        args = [e["args"] for e in events if e["args"]]
        for part in [*chance.sample(events, 3), *chance.sample(args, 3)]:
            part[chance.choice(list(part))] = json.loads(json.dumps(chance.choice(odd)))
        path.write_text(json.dumps(trace))
        try:
            run = analyse_traces(path)
        except FlopprofError:
            continue
        annotate_trace(path, tmp_path / "out.json", run)
        assert run.report("text")
        read += 1

    assert read > 10


# Real traces recorded by others, where they are: figures as the project's brief gives them.


def test_h100_vit_inference_is_linked_and_covered(gpu_traces, capsys):
    found = answer(capsys, gpu_traces / "h100_vit_infer.json.gz")

    addmm = found["ops"]["aten::addmm"]
    assert (addmm["calls"], found["kernels"]) == (73, 154)
    assert addmm["matmul_flops"] == pytest.approx(1.339e11, rel=0.001)
    assert addmm["time_us"] == pytest.approx(735, abs=1)
    assert found["linked_kernel_frac"] == 1
    assert found["coverage_frac"] >= 0.97
    assert found["gpu"] == "NVIDIA H100 80GB HBM3"


def test_h100_training_of_both_ranks_together(gpu_traces, capsys):
    files = [gpu_traces / f"h100_nanogpt_train_rank{rank}.json.gz" for rank in (0, 1)]

    alone = answer(capsys, files[0], "-o", "alone")
    both = answer(capsys, *files, "-o", "both")

    mm, scaled = alone["ops"]["aten::mm"], alone["ops"]["aten::_scaled_mm"]
    assert (mm["calls"], scaled["calls"]) == (636, 12)
    assert mm["matmul_flops"] == pytest.approx(2.969e13, rel=0.001)
    assert mm["time_us"] == pytest.approx(42_900, rel=0.001)
    assert mm["achieved_flops_per_s"] == pytest.approx(692e12, rel=0.002)
    assert scaled["matmul_flops"] == pytest.approx(1.519e13, rel=0.001)
    assert scaled["achieved_flops_per_s"] == pytest.approx(1401e12, rel=0.002)
    attention = alone["ops"]["flash_attn_3::fwd"]
    assert attention["matmul_flops"] is None
    assert attention["flops_at_most"] > 0
    assert 0 < 1 - alone["linked_kernel_time_frac"] < 0.32
    assert [rank["rank"] for rank in both["ranks"]] == [0, 1]
    assert both["ops"]["aten::mm"]["calls"] == 2 * 636
    # A rank's part is what was counted; the whole has lower bounds, of packed attention, too.
    counted = sum(rank["matmul_flops"] for rank in both["ranks"])
    assert counted < both["matmul_flops"] < 1.001 * counted
    assert 0 < both["communication_frac"] < 1
    assert both["slowest_rank"] == 1  # 131 against 122 ms of its own kernels


def test_fp8_products_are_held_against_the_fp8_ceiling(gpu_traces):
    run = analyse_traces(gpu_traces / "h100_nanogpt_train_rank0.json.gz")

    scaled = run.sites[run.sites["op"] == "aten::_scaled_mm"]
    # H100 SXM: 1,979 TFLOP/s dense; the shapes are far right of the ridge.
    assert scaled["attainable_flops_per_s"].tolist() == [pytest.approx(1978.9e12, rel=1e-3)] * len(
        scaled
    )
    assert scaled["efficiency_frac"].between(0.5, 1).all()


def test_mi300x_inference_has_its_ceilings_though_device_numbers_differ(gpu_traces, capsys):
    found = answer(capsys, gpu_traces / "mi300x_bert_small_infer.json.gz")

    assert found["linked_kernel_frac"] == 1
    assert found["gpu"] == "AMD Instinct MI300X VF"
    assert not any("no ceiling" in text for text in found["warnings"])


def test_v100_training_of_2021_counts_the_published_flops(gpu_traces):
    run = analyse_traces(gpu_traces / "v100_resnet50_train_2021.json.gz")

    forward = run.sites[run.sites["op"] == "aten::conv2d"]
    # torchvision publishes 4.089 GMACs for ResNet-50, 2 M of them in its linear layer.
    assert forward["flops"].sum() == pytest.approx(6 * 32 * 2 * 4.089e9, rel=0.01)
    backward = run.sites.query("phase == 'backward' and kind == 'convolution'")
    assert backward["flops"].sum() == pytest.approx(2 * 6 * 32 * 2 * 4.089e9, rel=0.03)
    assert (backward["time_us"] > 0).any()
    assert len(recorded(run).steps) == 6


def test_an_annotated_trace_replaces_no_trace(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trace = small(tmp_path, name="trace.json")
    before = trace.read_bytes()

    assert main(["trace", str(trace), "--annotate", "trace.json"]) == 2
    assert main(["trace", str(trace), "--annotate", "trace.json", "--force"]) == 2
    assert "would replace the trace itself" in capsys.readouterr().err
    (tmp_path / "other.json").write_text("mine")
    assert main(["trace", str(trace), "--annotate", "other.json"]) == 2
    assert "other.json exists" in capsys.readouterr().err

    assert trace.read_bytes() == before
    assert (tmp_path / "other.json").read_text() == "mine"


def test_a_trace_without_shapes_has_unknown_flops_and_not_zero(tmp_path):
    events = op("aten::mm", 0, 100), launch(1, 10), kernel(1, 20, 50)
    trace = write_trace(tmp_path / "trace.json", *events)

    text = " ".join(analyse_traces(trace).report("text").split())

    assert "FLOPs unknown: no op that does any has known ones" in text
    assert "Rate –" in text
    assert "the formula of aten::mm needs shapes or values that are not recorded" in text


def test_what_is_no_trace_is_named_for_what_it_is(tmp_path, capsys):
    (tmp_path / "page.json").write_text("<!DOCTYPE html><html></html>")
    (tmp_path / "link.json").symlink_to(tmp_path / "none")

    assert main(["trace", str(tmp_path / "page.json")]) == 3
    assert "an HTML page" in capsys.readouterr().err
    assert main(["trace", str(tmp_path / "link.json")]) == 2
    assert "a link to" in capsys.readouterr().err


def test_a_trace_of_kernels_alone_can_be_annotated(tmp_path):
    path = write_trace(tmp_path / "t.json", kernel(1, 20, 5), kernel(2, 30, 7))

    annotate_trace(path, tmp_path / "out.json", analyse_traces(path))

    after = json.loads((tmp_path / "out.json").read_text())
    verdicts = [e["args"].get("verdict") for e in after["traceEvents"] if e.get("cat") == "kernel"]
    assert verdicts == ["hidden", "hidden"]
