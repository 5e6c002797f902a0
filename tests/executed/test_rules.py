"""From readings to figures: each rule, by hand, on synthetic launches."""

import math

import pytest

from flopprof.executed.figures import figures_of
from flopprof.executed.launches import AMD, NVIDIA, Launch
from flopprof.executed.numbers import Reading
from flopprof.executed.read import read_counters
from flopprof.executed.rules import expanded, opcode_work, path_name, rows, tensor_metrics
from tests.executed.sheets import ADD, FMA, MUL

PATH = "sm__ops_path_tensor_"
NVIDIA_ARCHS = [f"sm_{n}" for n in (75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121)]

# What one unit of each metric is worth, by hand, from the vendors' definitions: FLOPs of a thread's
# instruction (a multiply-add is two, a packed one twice that), 64 lanes of a wave, 512 of a MOPS
# counter, bytes of a request, 1024 bytes of a KiB.
WORTH = {
    "fadd": 1,
    "fmul": 1,
    "ffma": 2,
    "dadd": 1,
    "dmul": 1,
    "dfma": 2,
    "fadd2": 2,
    "fmul2": 2,
    "ffma2": 4,
    "hadd": 2,
    "hmul": 2,
    "hfma": 4,
}


def launch(tool, arch="", **values):
    """Return a launch with readings; `__` in a name stays, a value may be (value, unit)."""
    made = Launch(tool, ("", 0), "k", arch=arch)
    for metric, value in values.items():
        value, unit = value if isinstance(value, tuple) else (value, "")
        made.add(metric, Reading(float(value), unit))
    return made


def worth(metric):
    """Return what one of a metric is worth, by what its name says."""
    name = metric.partition("_op_")[2].removesuffix("_pred_on")
    if metric.startswith("derived__"):
        return 1
    if name in WORTH:
        return WORTH[name]
    if "MOPS" in metric:
        return 512
    if metric.startswith("SQ_INSTS_VALU"):
        return 128 if "FMA" in metric else 64
    special = {"lts__lts2xbar_cycles_active": 32, "l1tex__lsu_writeback_active_mem_lg": 128}
    special |= {"l1tex__lsu_writeback_active_mem_lgds": 128}
    special |= dict.fromkeys(("FETCH_SIZE", "WRITE_SIZE", "FetchSize", "WriteSize"), 1024)
    if metric in special:
        return special[metric]
    return None


@pytest.mark.parametrize(
    "row", rows("rules.csv"), ids=lambda row: f"{row['metric']}-{row['choice']}"
)
def test_each_rule_by_hand(row):
    expected = worth(row["metric"])

    if expected is None:  # bytes of requests: of 32, 64 and 128 bytes, tested below
        assert "bytes" in row["metric"] or row["metric"].startswith("TCC_")
        expected = float(row["weight"])
        assert abs(expected) in (1, 32, 64, 128)
    assert float(row["weight"]) == expected
    assert row["source"]
    assert row["tool"] in (NVIDIA, AMD)


@pytest.mark.parametrize("arch", NVIDIA_ARCHS)
def test_names_of_matrix_counters_are_understood(arch):
    names = tensor_metrics(arch)

    assert len(names) == len(set(names)) > 4
    for name in names:
        parts = path_name(name)
        assert parts is not None, name
        assert parts.is_integer or parts.dtype != parts.src, name


def test_architectures_without_matrix_counters_have_none():
    assert tensor_metrics("sm_70") == ()
    assert tensor_metrics("gfx90a") == ()


def test_braces_stand_for_names():
    assert [*expanded("a_{b,c}_{d,e}")] == ["a_b_d", "a_b_e", "a_c_d", "a_c_e"]


def test_parents_and_children_are_never_added():
    readings = {
        PATH + "op_hgmma_src_bf16_dst_fp32_sparsity_off.sum": 100,
        PATH + "op_hmma_src_bf16_dst_fp32_sparsity_off.sum": 20,
        PATH + "src_bf16_dst_fp32.sum": 120,
        PATH + "op_hgmma_src_fp16_sparsity_off.sum": 7,  # no parent of it is there
        PATH + "src_int8.sum": 50,
        PATH + "op_imma_src_int8_sparsity_off.sum": 50,
    }

    found = figures_of(launch(NVIDIA, "sm_90", **readings))

    assert found.matmul == {"bfloat16": 120, "float16": 7}
    assert found.int_ops == 50


def test_children_are_added_where_the_parent_is_no_number():
    readings = {
        PATH + "op_hgmma_src_bf16_dst_fp32_sparsity_off.sum": 100,
        PATH + "op_hmma_src_bf16_dst_fp32_sparsity_off.sum": 20,
        PATH + "src_bf16_dst_fp32.sum": math.nan,
    }

    assert figures_of(launch(NVIDIA, "sm_90", **readings)).matmul_flops == 120


def test_families_of_fp4_and_results_of_two_types_are_different_work():
    readings = {
        PATH + "src_fp4_dst_fp32.sum": 1,
        PATH + "src_fp4_fp6_fp8_dst_fp32.sum": 20,
        PATH + "src_fp4_fp6_fp8_dst_fp16.sum": 300,
        PATH + "op_utcqmma_src_fp4_fp6_fp8_dst_fp16_sparsity_off.sum": 300,
    }

    assert figures_of(launch(NVIDIA, "sm_100", **readings)).matmul_flops == 321


def test_structured_sparsity_is_told_apart_and_not_added():
    readings = {
        PATH + "src_bf16_dst_fp32_sparsity_off.sum": 100,
        PATH + "src_bf16_dst_fp32_sparsity_on.sum": 40,
        PATH + "src_int8_sparsity_off.sum": 5,
        PATH + "src_int8_sparsity_on.sum": 0,
    }

    found = figures_of(launch(NVIDIA, "sm_80", **readings))

    assert math.isnan(found.matmul_flops)
    assert any("40 operations with structured sparsity" in reason for reason in found.reasons)
    assert found.int_ops == 5


def test_times_512_holds_of_a_v100_alone_and_is_an_estimate():
    instructions = {"sm__inst_executed_pipe_tensor.sum": 67_108_864}

    v100 = figures_of(launch(NVIDIA, "sm_70", **instructions))
    t4 = figures_of(launch(NVIDIA, "sm_75", **instructions))

    assert v100.matmul_flops == 34_359_738_368  # 67,108,864 × 512
    assert v100.source == ["x512"]
    assert "estimated" in v100.reasons[-1]
    assert math.isnan(t4.matmul_flops)  # there it would be a quarter of the truth


def test_no_matrix_instruction_is_zero_flops_up_to_cc_8_9():
    nothing = {"sm__inst_executed_pipe_tensor.sum": 0}

    assert figures_of(launch(NVIDIA, "sm_89", **nothing)).matmul_flops == 0
    assert math.isnan(figures_of(launch(NVIDIA, "sm_100", **nothing)).matmul_flops)


def test_instructions_by_opcode_where_paths_are_missing():
    made = launch(NVIDIA, "sm_80")
    text = "30 (HMMA.16816.F32.BF16: 10; HMMA.1688.F32.TF32: 5; IMMA.16832.S8.S8: 2; FFMA: 13)"
    made.add("sass__inst_executed_per_opcode_with_modifier_all", Reading(math.nan, "", text))

    found = figures_of(made)

    # 10 × 4096 in bfloat16, 5 × 2048 in TF32, 2 × 8192 operations on int8.
    assert found.matmul == {"float16": 0, "bfloat16": 40_960, "tfloat32": 10_240}
    assert found.int_ops == 16_384
    assert found.source == ["opcode"]


@pytest.mark.parametrize(
    ("opcode", "work"),
    [
        ("HMMA.1688.F16", (2048, "float16")),
        ("HMMA.16816.F32", (4096, "float16")),
        ("HGMMA.64x128x16.F32.BF16", (2 * 64 * 128 * 16, "bfloat16")),
        ("DMMA.884", (512, "float64")),
        ("FFMA", None),
        ("HFMA2.MMA", None),
        ("UIADD3", None),
    ],
)
def test_work_of_an_opcode(opcode, work):
    assert opcode_work(opcode) == work


@pytest.mark.parametrize("opcode", ["HMMA.SP.16832.F32", "HMMA.999.F32", "QGMMA"])
def test_a_matrix_opcode_of_unknown_work_is_unknown(opcode):
    work = opcode_work(opcode)

    assert work is not None
    assert math.isnan(work[0])


def test_rates_per_cycle_and_per_second_are_multiplied_once():
    cycles = {"smsp__cycles_elapsed.avg": (1000, "cycle")}
    per_cycle = {
        ADD + ".per_cycle_elapsed": (1000, "inst/cycle"),
        MUL + ".per_cycle_elapsed": (0.5, "inst/cycle"),
        FMA + ".per_cycle_elapsed": (0, "inst/cycle"),
    }
    by_clock = {
        "smsp__cycles_elapsed.avg.per_second": (1e9, "hz"),
        "gpu__time_duration.sum": (1e-6, "s"),
    }
    per_second = {
        ADD + ".per_second": (5e8, "inst/s"),
        MUL + ".per_second": (0, "inst/s"),
        FMA + ".per_second": (1e9, "inst/s"),
        "gpu__time_duration.sum": (2e-6, "s"),
        "dram__bytes.sum.per_second": (1e12, "byte/s"),
    }

    # (1000 + 0.5) × 1000 cycles, twice: 10^9 Hz × 10^-6 s are 1000 cycles, too.
    assert figures_of(launch(NVIDIA, "sm_75", **per_cycle, **cycles)).vector_flops == 1_000_500
    assert figures_of(launch(NVIDIA, "sm_75", **per_cycle, **by_clock)).vector_flops == 1_000_500
    found = figures_of(launch(NVIDIA, "sm_75", **per_second))
    # (5·10^8 + 2·10^9) × 2·10^-6 s; 10^12 B/s × 2·10^-6 s.
    assert found.vector_flops == 5000
    assert found.bytes["dram"] == 2_000_000


def test_what_roofline_sections_collect_is_weighted_already():
    readings = {
        ADD + ".per_cycle_elapsed": (2, "inst/cycle"),
        MUL + ".per_cycle_elapsed": (3, "inst/cycle"),
        "derived__smsp__sass_thread_inst_executed_op_ffma_pred_on_x2": (8, "inst"),
        "derived__sm__sass_thread_inst_executed_op_ffma_pred_on_x2": (999, "inst"),  # a peak
        "smsp__cycles_elapsed.avg": (100, "cycle"),
    }

    found = figures_of(launch(NVIDIA, "sm_80", **readings))

    assert found.vector_flops == 1300  # (2 + 3 + 8) × 100


def test_packed_instructions_count_and_are_needed_on_cc_10():
    plain = {ADD: 1, MUL: 2, FMA: 3}
    packed = {name.replace("_pred", "2_pred"): value for name, value in plain.items()}

    without = figures_of(launch(NVIDIA, "sm_100", **plain))
    with_both = figures_of(launch(NVIDIA, "sm_100", **plain, **packed))

    assert math.isnan(without.vector_flops)
    assert any("at least 9" in reason for reason in without.reasons)  # 1 + 2 + 2·3
    assert with_both.vector_flops == 27  # 9 + 2·1 + 2·2 + 4·3
    assert figures_of(launch(NVIDIA, "sm_90", **plain)).vector_flops == 9


def test_float16_on_vector_units_is_a_bound_in_no_sum():
    half = {name.replace("_op_f", "_op_h"): 10 for name in (ADD, MUL, FMA)}

    found = figures_of(launch(NVIDIA, "sm_90", **half, **{ADD: 1, MUL: 1, FMA: 1}))

    assert found.vector_flops == 4
    assert found.half_at_most_flops == 80  # 2·10 + 2·10 + 4·10
    assert any("at most 80" in reason for reason in found.reasons)


def test_definitions_of_cache_traffic_are_not_mixed():
    both = {"lts__t_bytes.sum": (640, "byte"), "lts__lts2xbar_cycles_active.sum": (30, "cycle")}
    section = {
        "lts__lts2xbar_cycles_active.sum": (30, "cycle"),
        "l1tex__lsu_writeback_active_mem_lg.sum": (2, "cycle"),
    }
    newer = {"l1tex__lsu_writeback_active_mem_lgds.sum": (2, "cycle")}

    assert figures_of(launch(NVIDIA, "sm_80", **both)).bytes["l2"] == 640
    found = figures_of(launch(NVIDIA, "sm_80", **section))
    assert (found.bytes["l2"], found.bytes["l1"]) == (960, 256)  # 30 × 32, 2 × 128
    assert found.metrics["l2"] == ["lts__lts2xbar_cycles_active"]
    assert figures_of(launch(NVIDIA, "sm_90", **newer)).bytes["l1"] == 256
    assert "l1" not in figures_of(launch(NVIDIA, "sm_80", **newer)).bytes


def test_amd_waves_and_matrix_operations():
    readings = {f"SQ_INSTS_VALU_{what}_F16": 1 for what in ("ADD", "MUL", "TRANS", "FMA")}
    readings |= {"SQ_INSTS_VALU_MFMA_MOPS_F8": 3, "SQ_INSTS_VALU_MFMA_MOPS_I8": 2}

    found = figures_of(launch(AMD, "gfx942", **readings))

    assert found.vector_flops == 320  # 64 × (1 + 1 + 1 + 2)
    assert found.matmul_flops == 1536  # 3 × 512
    assert found.int_ops == 1024
    assert found.fma_flops == 128


def test_bytes_that_an_mi200_and_an_mi300_read():
    mi200 = {"TCC_EA_RDREQ_sum": 10, "TCC_EA_RDREQ_32B_sum": 4}
    mi300 = {"TCC_EA0_RDREQ_sum": 10, "TCC_EA0_RDREQ_32B_sum": 4, "TCC_BUBBLE_sum": 1}

    assert figures_of(launch(AMD, "gfx90a", **mi200)).bytes["dram_read"] == 512  # 4·32 + 6·64
    assert figures_of(launch(AMD, "", **mi200)).bytes["dram_read"] == 512
    # 4 of 32, 1 of 128, 5 of 64: 128 + 128 + 320.
    assert figures_of(launch(AMD, "gfx942", **mi300)).bytes["dram_read"] == 576
    assert figures_of(launch(AMD, "", **mi300)).bytes["dram_read"] == 576  # the bubble tells


def test_an_mi350_whose_bubble_reads_zero_is_a_lower_bound():
    readings = {"TCC_EA0_RDREQ_sum": 65_536, "TCC_EA0_RDREQ_32B_sum": 0, "TCC_BUBBLE_sum": 0}
    sizes = {"TCC_EA0_RDREQ_32B_sum": 0, "TCC_EA0_RDREQ_64B_sum": 0}
    sizes |= {"TCC_EA0_RDREQ_128B_sum": 65_536}

    for arch in ("gfx950", ""):
        found = figures_of(launch(AMD, arch, **readings))
        assert "dram_read" not in found.bytes
        assert any("at least 4194304 bytes" in reason for reason in found.reasons)
    for arch in ("gfx950", ""):
        assert figures_of(launch(AMD, arch, **sizes)).bytes["dram_read"] == 8_388_608
    assert "dram_read" not in figures_of(launch(AMD, "gfx950", FETCH_SIZE=4096)).bytes


def test_an_mi100_has_no_counters_of_flops():
    found = figures_of(launch(AMD, "gfx908", SQ_WAVES=7))

    assert math.isnan(found.vector_flops)
    assert "gfx908 has no counters of FLOPs" in "; ".join(found.reasons)


COUNTERS = ("SQ_INSTS_VALU_ADD_F32", "SQ_INSTS_VALU_MUL_F32", "SQ_INSTS_VALU_TRANS_F32")


def test_channels_are_added_and_later_passes_are_the_same_counter(tmp_path):
    path = tmp_path / "pmc_perf.csv"
    path.write_text(
        "Dispatch_ID,Kernel_Name,GPU_ID,Grid_Size,Workgroup_Size,TCC_EA_WRREQ[0],TCC_EA_WRREQ[1],"
        "TCC_EA_WRREQ_64B[0],TCC_EA_WRREQ_64B[1],SQ_INSTS_VALU_FMA_F64_1,SQ_INSTS_VALU_ADD_F64,"
        "SQ_INSTS_VALU_MUL_F64,SQ_INSTS_VALU_TRANS_F64,Start_Timestamp,End_Timestamp\n"
        '0,"k(int, int) (.kd)",1,64,64,3,4,1,2,5,0,0,0,8.1097E+14,8.1097E+14\n'
        "1,k (.kd),1,64,64,3,4,1,2,5,0,0,0,1411551767635712.5,1411551767656192\n"
    )

    rows = read_counters(path)

    assert [*rows["dram_write_bytes"]] == [320, 320]  # (3 + 4) × 32 + (1 + 2) × 32
    assert [*rows["executed_vector_flops"]] == [640, 640]  # 5 × 64 × 2
    assert math.isnan(rows["duration_us"].iloc[0])  # a spreadsheet cut the stamps
    assert rows["duration_us"].iloc[1] == pytest.approx(20.4795)  # 656,192 − 635,712.5 ns


def test_passes_in_files_of_their_own_are_one_launch(tmp_path):
    head = '"Dispatch_Id","Agent_Id","Process_Id","Grid_Size","Kernel_Name","Workgroup_Size",'
    head += '"Counter_Name","Counter_Value","Start_Timestamp","End_Timestamp"\n'
    paths = []
    for number, names in enumerate((COUNTERS, ("SQ_INSTS_VALU_FMA_F32",))):
        path = tmp_path / f"pass_{number}.csv"
        rows = [f'1,"Agent 4",{70 + number},64,"k.kd",64,"{name}",2.0,100,300' for name in names]
        path.write_text(head + "\n".join(rows) + "\n")
        paths.append(path)

    (row,) = read_counters(paths).to_dict("records")

    assert row["executed_vector_flops"] == 640  # 64 × (2 + 2 + 2 + 2·2)
    assert row["device_index"] == 4
    assert len(read_counters([paths[0], paths[0]])) == 2  # the same counters: two programs


def test_a_file_of_the_first_rocprof(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text(
        "Index,KernelName,gpu-id,queue-id,pid,tid,grd,wgr,FetchSize,WriteSize,BeginNs,EndNs\n"
        '0,"void axpy<float>(float*) [clone .kd]",2,0,81,81,1048576,256,8.0,4.0,1000,21000\n'
    )

    (row,) = read_counters(path).to_dict("records")

    assert (row["dram_read_bytes"], row["dram_write_bytes"]) == (8192, 4096)  # KiB
    assert (row["grid"], row["block"], row["duration_us"]) == ("1048576", "256", 20)
