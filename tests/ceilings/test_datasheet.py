import csv
import gzip
import json
from importlib import resources

import pytest

from flopprof.ceilings import ceilings_of_trace
from flopprof.ceilings.datasheet import ceilings_for_gpu, flops_per_clk, peak_rows
from flopprof.errors import UsageError


def rooflines_for_gpu(properties):
    found = ceilings_for_gpu(properties)
    assert not found.warnings
    return found.rooflines()


H100 = {
    "id": 0,
    "name": "NVIDIA H100 80GB HBM3",
    "totalGlobalMem": 85028372480,
    "computeMajor": 9,
    "computeMinor": 0,
    "numSms": 132,
}


def peaks(rooflines):
    return {(r.dtype, r.unit): r.peak_flops_per_s for r in rooflines.itertuples()}


def test_h100_has_its_datasheet_figures_without_sparsity():
    rooflines = rooflines_for_gpu(H100)

    found = peaks(rooflines)
    # NVIDIA's H100 SXM column: 67 TFLOP/s FP32; with sparsity 989, 1,979 and 3,958 for TF32, BF16
    # and FP8, dense is half; 3.35 TB/s.
    assert found["float32", "vector"] == 67e12
    assert found["float32", "tensor"] == 67e12
    assert found["tfloat32", "tensor"] == pytest.approx(989e12 / 2, rel=0.001)
    assert found["bfloat16", "tensor"] == pytest.approx(1979e12 / 2, rel=0.001)
    assert found["float8_e4m3fn", "tensor"] == pytest.approx(3958e12 / 2, rel=0.001)
    assert found["bfloat16", "vector"] == 67e12
    assert set(rooflines["peak_bytes_per_s"]) == {3.35e12}
    assert set(rooflines["memory_level"]) == {"HBM"}
    assert set(rooflines["kind"]) == {"datasheet"}
    assert rooflines["source"].str.contains("H100").all()
    ridge = rooflines["peak_flops_per_s"] / rooflines["peak_bytes_per_s"]
    assert (rooflines["ridge_flops_per_byte"] == ridge).all()


@pytest.mark.parametrize(
    ("name", "sms", "dtype", "flops_per_s", "bytes_per_s"),
    [
        ("NVIDIA A100-SXM4-80GB", 108, "bfloat16", 312e12, 2.039e12),
        ("NVIDIA A100-PG509-200", 108, "bfloat16", 312e12, 1.555e12),
        ("NVIDIA PG509-210", 108, "tfloat32", 156e12, 2.039e12),
        ("Tesla V100-DGXS-32GB", 80, "float16", 125e12, 0.9e12),
        ("AMD Instinct MI300X VF", 304, "bfloat16", 1307.4e12, 5.3e12),
        ("AMD Instinct MI250X", 110, "bfloat16", 191.5e12, 1.6385e12),  # one of the two dies
        ("NVIDIA GeForce RTX 4090", 128, "float16", 165.2e12, 1.008e12),
        ("NVIDIA A10", 72, "bfloat16", 125e12, 0.6e12),
        ("NVIDIA A10G", 80, "bfloat16", 70e12, 0.6e12),
    ],
)
def test_names_as_drivers_spell_them_are_known(name, sms, dtype, flops_per_s, bytes_per_s):
    rooflines = rooflines_for_gpu({"name": name, "numSms": sms, "computeMajor": 8})

    assert peaks(rooflines)[dtype, "tensor"] == flops_per_s
    assert set(rooflines["peak_bytes_per_s"]) == {bytes_per_s}


@pytest.mark.parametrize(
    "properties",
    [
        {"name": "NVIDIA H25", "numSms": 78, "computeMajor": 9, "computeMinor": 0},
        {"name": "NVIDIA H200 NVL", "numSms": 132, "computeMajor": 9, "computeMinor": 0},
        {"name": "NVIDIA A100-SXM4-80GB", "numSms": 98, "computeMajor": 8, "computeMinor": 0},
        {"name": "AMD Radeon Graphics", "numSms": 304, "computeMajor": 9, "computeMinor": 4},
        {"name": "", "numSms": 132},
        {},
    ],
)
def test_an_unknown_gpu_has_no_roof_and_a_warning(properties):
    found = ceilings_for_gpu(properties)

    assert found.rooflines().empty
    (warning,) = found.warnings
    assert warning.startswith("no ceiling is known")


def test_a_slice_has_its_share_of_the_sms_and_no_bandwidth():
    name = "NVIDIA A100-SXM4-40GB MIG 3g.20gb"

    rooflines = rooflines_for_gpu({"name": name, "numSms": 42, "computeMajor": 8})

    # 42 of 108 SMs: 312 × 42/108 = 121.3 TFLOP/s.
    assert peaks(rooflines)["bfloat16", "tensor"] == pytest.approx(121.33e12, rel=1e-4)
    assert set(rooflines["kind"]) == {"formula"}
    assert rooflines["peak_bytes_per_s"].isna().all()


def test_a_cut_down_part_is_computed_from_its_own_clock_and_bus():
    live = {
        "name": "NVIDIA H25",
        "kind": "cuda",
        "sm_count": 78,
        "capability": "9.0",
        "clock_mhz": 1980.0,
        "memory_clock_mhz": 2619.0,
        "bus_bits": 6144,
    }

    rooflines = rooflines_for_gpu(live)

    # 78 SMs × 4,096 FLOPs per clock × 1.98 GHz = 632.6 TFLOP/s; 2 × 2.619 GHz × 768 B = 4.02 TB/s.
    assert peaks(rooflines)["bfloat16", "tensor"] == pytest.approx(632.6e12, rel=1e-3)
    assert rooflines["peak_bytes_per_s"].iloc[0] == pytest.approx(4.0228e12, rel=1e-3)
    assert set(rooflines["kind"]) == {"formula"}
    assert rooflines["source"].str.contains("upper bound").all()


def test_a_narrower_bus_is_another_device():
    live = {"name": "NVIDIA A100-SXM4-40GB", "sm_count": 108, "bus_bits": 4096}

    assert not ceilings_for_gpu(live).entries
    assert ceilings_for_gpu({**live, "bus_bits": 5120}).entries


def test_geforce_boards_take_half_the_matmul_rate():
    facts = {"capability": "8.9", "sm_count": 60, "clock_mhz": 2500.0}

    geforce = ceilings_for_gpu({**facts, "name": "NVIDIA GeForce RTX 4070 SUPER"}).rooflines()
    pro = ceilings_for_gpu({**facts, "name": "NVIDIA RTX 4500 Ada Generation"}).rooflines()

    # 60 SMs × 512 or 1,024 FLOPs per clock × 2.5 GHz.
    assert peaks(geforce)["bfloat16", "tensor"] == pytest.approx(76.8e12)
    assert peaks(pro)["bfloat16", "tensor"] == pytest.approx(153.6e12)


def test_a_gpu_is_found_by_a_name_that_a_person_types():
    assert peaks(rooflines_for_gpu({"name": "mi300x"}))["float32", "vector"] == 163.4e12
    assert not rooflines_for_gpu({"name": "H100 SXM5 80GB"}).empty
    several = ceilings_for_gpu({"name": "H100"})  # three boards: which one?
    assert not several.entries
    assert "H100 PCIe 80GB" in several.warnings[0]
    # A10 is the name of one board and part of others'.
    assert peaks(rooflines_for_gpu({"name": "a10"}))["bfloat16", "tensor"] == 125e12


def test_the_clock_explains_the_datasheet_within_two_percent():
    low_precision = {"tf32", "fp16", "bf16", "fp8", "int8"}
    close, off = 0, []
    for row in peak_rows():
        per_clk = flops_per_clk()[row["arch_key"]]
        for column, flops in per_clk.items():
            printed = row[f"peak_{column}_tflops"]
            if printed:
                mhz = row["tensor_boost_mhz" if column in low_precision else "boost_mhz"]
                ratio = flops * float(row["sm_count"]) * float(mhz) * 1e6 / (float(printed) * 1e12)
                if abs(ratio - 1) <= 0.02:
                    close += 1
                else:
                    off.append((row["name"], column))

    # A10G's tensor cores run at half A10's rate; B200's TF32 is printed as 1.1, GB200's vector
    # figures as 40 and 80 (rounded).
    assert (close, len(off)) == (389, 5)
    assert set(off) == {
        ("A10G", "fp16"),
        ("A10G", "bf16"),
        ("B200 SXM 180/192GB", "tf32"),
        ("GB200 (one GPU)", "fp64"),
        ("GB200 (one GPU)", "fp32"),
    }


def test_every_row_of_the_peaks_names_its_source():
    text = resources.files("flopprof.ceilings").joinpath("peaks.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))

    assert len(rows) == 71
    assert all(row["source"] and row["arch_key"] in flops_per_clk() for row in rows)
    assert len({row["name"] for row in rows}) == len(rows)


@pytest.mark.parametrize(
    ("file", "bf16_or_fp16"),
    [
        ("h100_vit_infer", 989.4e12),
        ("v100_resnet50_train_2021", 125e12),
        ("mi300x_bert_small_infer", 1307.4e12),
    ],
)
def test_recorded_devices_have_ceilings(gpu_traces, file, bf16_or_fp16):
    with gzip.open(gpu_traces / f"{file}.json.gz") as stream:
        properties = json.load(stream)["deviceProperties"][0]

    found = peaks(rooflines_for_gpu(properties))

    assert found["float16", "tensor"] == bf16_or_fp16


@pytest.mark.parametrize(
    ("name", "sms", "dtype", "flops_per_s", "bytes_per_s"),
    [
        # GeForce boards multiply 16-bit numbers with fp32 accumulate at half rate.
        ("NVIDIA GeForce RTX 2080 Ti", 68, "float16", 53.8e12, 616e9),
        ("NVIDIA GeForce RTX 3060", 28, "bfloat16", 25.5e12, 360e9),
        ("NVIDIA GeForce RTX 3080", 68, "bfloat16", 59.5e12, 760e9),
        ("NVIDIA GeForce RTX 4060", 24, "bfloat16", 30.2e12, 272e9),
        ("NVIDIA GeForce RTX 5080", 84, "bfloat16", 112.6e12, 960e9),
        ("NVIDIA TITAN RTX", 72, "float16", 130.5e12, 672e9),
        ("Tesla P100-SXM2-16GB", 56, "float16", 21.2e12, 732e9),
        ("Tesla P40", 30, "float32", 11.8e12, 346e9),
        ("Tesla V100S-PCIE-32GB", 80, "float16", 130e12, 1134e9),
        ("NVIDIA A40", 84, "bfloat16", 149.7e12, 696e9),
        ("NVIDIA RTX A5000", 64, "bfloat16", 111.1e12, 768e9),
        ("NVIDIA L40", 142, "bfloat16", 181.05e12, 864e9),
        ("NVIDIA L20", 92, "bfloat16", 119.5e12, 864e9),
        ("NVIDIA A800-SXM4-80GB", 108, "bfloat16", 312e12, 2039e9),
        ("NVIDIA H800", 132, "bfloat16", 989.4e12, 3350e9),
        ("NVIDIA H20", 78, "bfloat16", 148e12, 4000e9),
        ("NVIDIA GB200", 148, "bfloat16", 2500e12, 8000e9),
        ("NVIDIA B300 SXM6 AC", 148, "bfloat16", 2250e12, 8000e9),
        ("AMD Instinct MI210", 104, "bfloat16", 181e12, 1638.4e9),
        ("AMD Instinct MI250", 104, "bfloat16", 181e12, 1638.4e9),
        ("AMD Instinct MI250X", 110, "bfloat16", 191.5e12, 1638.5e9),
        ("AMD Instinct MI325X", 304, "bfloat16", 1307.4e12, 6000e9),
        ("AMD Instinct MI355X", 256, "bfloat16", 2516.6e12, 8000e9),
    ],
)
def test_boards_have_the_dense_figures_of_their_datasheets(
    name, sms, dtype, flops_per_s, bytes_per_s
):
    rooflines = rooflines_for_gpu({"name": name, "numSms": sms})

    assert peaks(rooflines)[dtype, "tensor"] == pytest.approx(flops_per_s)
    assert set(rooflines["peak_bytes_per_s"]) == {bytes_per_s}


@pytest.mark.parametrize("name", ["", "AMD Radeon Graphics"])
def test_a_gpu_without_a_name_is_asked_back_with_the_one_that_fits(name):
    # 304 compute units and 192 GiB: an MI300X; an MI325X has 256 GiB.
    properties = {"name": name, "numSms": 304, "totalGlobalMem": 206141652992}

    found = ceilings_for_gpu(properties)

    assert not found.entries
    (warning,) = found.warnings
    assert "MI300X has as many and as much" in warning
    assert warning.endswith("give --gpu 'MI300X'")
    assert "MI325X" not in warning


def test_every_name_in_the_table_fits_one_row_alone():
    for row in peak_rows():
        assert not rooflines_for_gpu({"name": row["name"]}).empty, row["name"]


def test_a_name_of_several_boards_is_answered_with_them():
    with pytest.raises(UsageError, match="'H100' may be any of") as caught:
        ceilings_of_trace({}, "H100", None, on_gpu=True)

    assert "H100 PCIe" in caught.value.remedy
    assert "A100" not in caught.value.remedy


def test_a_name_of_no_board_is_answered_with_all():
    with pytest.raises(UsageError, match="no GPU of the table is called 'Voodoo'") as caught:
        ceilings_of_trace({}, "Voodoo", None, on_gpu=True)

    assert "A100" in caught.value.remedy
