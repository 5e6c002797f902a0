"""Launches in counter files joined to a run: by range, by order, by name, or not at all."""

import math

import pytest

from flopprof.api import analyse_traces
from flopprof.errors import UsageError
from flopprof.executed.attach import join_counters
from flopprof.executed.names import range_name
from flopprof.run import Run
from tests.events import kernel, launch, op, with_shapes, write_trace
from tests.executed.sheets import ADD, FMA, MUL, wide_text

BF16 = "sm__ops_path_tensor_src_bf16_dst_fp32.sum"
READ = "dram__bytes_read.sum"
WRITE = "dram__bytes_write.sum"
HALF = ADD.replace("fadd", "hadd"), MUL.replace("fmul", "hmul"), FMA.replace("ffma", "hfma")
# M = 1 of a product in tiles of 64 rows: 2·1·32·16 = 1,024 counted, 64 × as many executed.
ROW = {"Input Dims": [[1, 32], [32, 16]], "Input type": ["float", "float"]}
# 2·64·32·16 = 65,536.
FULL = {"Input Dims": [[64, 32], [32, 16]], "Input type": ["float", "float"]}
# Nobody has a formula for it.
OWN = {"Input Dims": [[64, 16]], "Input type": ["float"]}


def sized(number, ts, name, grid, block=128, stream=7):
    event = kernel(number, ts, 10, name=name)
    event["args"] |= {"grid": [grid, 1, 1], "block": [block, 1, 1], "stream": stream}
    return event


# Ops 0, 1, 2, 3; the last launches two kernels.
EVENTS = (
    with_shapes(op("aten::mm", 0, 20), ROW),
    launch(1, 5),
    with_shapes(op("aten::mm", 30, 20), FULL),
    launch(2, 35),
    with_shapes(op("aten::silu", 60, 20), OWN),
    launch(3, 65),
    with_shapes(op("mylib::own", 90, 30), OWN),
    launch(4, 95),
    launch(5, 105),
    sized(1, 200, "void gemm<64, 64>(float*, int)", 1),
    sized(2, 220, "void gemm<64, 64>(float*, int)", 1),
    sized(3, 240, "silu_kernel", 8),
    sized(4, 260, "own_first", 8),
    sized(5, 280, "own_second", 4),
)
MATMUL = (65_536, 65_536, 0, 0, 0)
VECTOR = (0, 0, 5_120, 4_096, 300)
KERNELS = ("gemm", "gemm", "silu_kernel", "own_first", "own_second")
GRIDS = (1, 1, 8, 8, 4)
IDS = (0, 1, 2, 3, 3)
OPS = ("aten.mm", "aten.mm", "aten.silu", "mylib.own", "mylib.own")


def launches(*, ranges=False, rows=(0, 1, 2, 3, 4)):
    """Return the counters of these launches, in this order."""
    found = []
    for row in rows:
        one = {
            "kernel": f"{KERNELS[row]}<{row}>(float *)",
            "grid": f"({GRIDS[row]}, 1, 1)",
            BF16: str(MATMUL[row]),
            ADD: str(VECTOR[row]),
            MUL: "0",
            FMA: "0",
            READ: "1000",
            WRITE: str(24 + row),
        }
        if ranges:
            one["range"] = f"flopprof#{IDS[row]}#{OPS[row]}.default"
        found.append(one)
    return found


@pytest.fixture
def run(tmp_path):
    return analyse_traces(write_trace(tmp_path / "trace.json", *EVENTS))


def joined(tmp_path, run, rows):
    path = tmp_path / "counters.csv"
    path.write_text(wide_text(rows))
    return join_counters(run, path)


def by_op(run, column):
    """Return a column of the sites by op and shapes."""
    sites = run.sites
    return dict(
        zip(zip(sites["op"], sites["input_shapes"], strict=True), sites[column], strict=True)
    )


ROW_SITE = ("aten::mm", "1x32, 32x16")
FULL_SITE = ("aten::mm", "64x32, 32x16")
SILU = ("aten::silu", "64x16")
OWN_SITE = ("mylib::own", "64x16")


@pytest.mark.parametrize("ranges", [True, False], ids=["nvtx", "order"])
def test_a_run_gets_what_its_launches_executed(tmp_path, run, ranges):
    new = joined(tmp_path, run, launches(ranges=ranges))

    way = "nvtx" if ranges else "order"
    assert [*new.launches["joined_by"]] == [way] * 5
    assert [*new.launches["op_id"]] == [0, 1, 2, 3, 3]
    assert [*new.launches["kernel_id"]] == [0, 1, 2, 3, 4]
    assert [*new.kernels["executed_matmul_flops"]] == [65_536, 65_536, 0, 0, 0]
    assert [*new.ops["executed_flops"]] == [65_536, 65_536, 5_120, 4_396]
    assert [*new.ops["dram_bytes"]] == [1_024, 1_025, 1_026, 2_055]  # two launches: 1,027 + 1,028
    useful = by_op(new, "useful_frac")
    assert useful[ROW_SITE] == 1 / 64
    assert useful[FULL_SITE] == 1
    assert math.isnan(useful[SILU])  # of products alone
    assert by_op(new, "executed_flops")[OWN_SITE] == 4_396
    assert by_op(new, "executed_source")[OWN_SITE] == "ncu"
    assert "64.0 × the counted products" in by_op(new, "executed_reason")[ROW_SITE]
    assert not new.provenance.executed.notes


def test_a_site_without_a_formula_is_measured_and_never_counted(tmp_path, run):
    new = joined(tmp_path, run, launches())

    assert math.isnan(by_op(new, "flops")[OWN_SITE])
    assert repr(new.totals) == repr(run.totals)
    assert new.measured.flops == 4_396
    assert new.measured.sites == 1
    assert new.measured.coverage_frac == pytest.approx(20 / 50)  # two kernels of five, 10 µs each
    assert new.totals.coverage_frac == pytest.approx(30 / 50)
    assert new.measured.compared_frac == 1
    assert run.measured is None


def test_a_verified_run_is_saved_and_read_back(tmp_path, run):
    new = joined(tmp_path, run, launches())

    again = Run.load(new.save(tmp_path / "new.flopprof"))

    assert again.equals(new)
    assert again.measured == new.measured
    assert [*again.launches["joined_by"]] == ["order"] * 5
    assert again.provenance.executed is not None
    assert again.provenance.executed.joined == {"order": 5}
    assert not (run.save(tmp_path / "old.flopprof") / "launches.csv").exists()


# Rows of launches; a row that is there twice is a launch too many.
WRONG = {
    "wrong order": (2, 0, 1, 3, 4),
    "one missing": (0, 2, 3, 4),
    "one too many": (0, 1, 1, 2, 3, 4),
    "one missing and one too many": (0, 2, 2, 3, 4),
    "missing, too many, in wrong order": (4, 2, 3, 2, 0),
    "missing and too many of one op": (0, 1, 2, 4, 4),
}


@pytest.mark.parametrize("rows", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("ranges", [True, False], ids=["nvtx", "none"])
def test_a_file_that_does_not_fit_gives_no_op_a_wrong_figure(tmp_path, run, rows, ranges):
    new = joined(tmp_path, run, launches(ranges=ranges, rows=rows))

    right = [65_536, 65_536, 5_120, 4_396]
    for value, truth in zip(new.ops["executed_flops"], right, strict=True):
        assert math.isnan(value) or value == truth
    if not ranges:
        assert new.ops["executed_flops"].isna().all()
        assert set(new.launches["joined_by"]) <= {"name", ""}
        assert "in the same order" in new.provenance.executed.notes[0]
    elif sorted(rows) != [0, 1, 2, 3, 4]:
        assert "no executed figure" in new.provenance.executed.notes[0]
    sites = by_op(new, "executed_flops")
    for site, truth in ((SILU, 5_120), (OWN_SITE, 4_396)):
        assert math.isnan(sites[site]) or sites[site] == truth


def test_totals_by_name_hold_for_a_site_that_has_all_kernels_of_that_name(tmp_path, run):
    new = joined(tmp_path, run, launches(rows=(2, 0, 1, 3, 4)))

    assert [*new.launches["joined_by"]] == ["name"] * 5
    assert by_op(new, "executed_flops")[SILU] == 5_120
    assert by_op(new, "joined_by")[SILU] == "name"
    # The two products share a name: which did what is not known.
    assert math.isnan(by_op(new, "executed_flops")[FULL_SITE])


def test_launches_of_other_sizes_are_not_the_same_by_their_names(tmp_path, run):
    rows = launches()
    rows[2]["grid"] = "(9, 1, 1)"

    new = joined(tmp_path, run, rows)

    assert [*new.launches["joined_by"]] == ["name", "name", "", "name", "name"]
    assert math.isnan(by_op(new, "executed_flops")[SILU])
    assert "silu_kernel" in new.provenance.executed.notes[1]


def test_launches_on_other_streams_are_not_joined_by_order(tmp_path, run):
    rows = [row | {"stream": "13"} for row in launches()]

    assert "order" not in set(joined(tmp_path, run, rows).launches["joined_by"])


def test_ranges_of_another_run_are_refused_as_a_whole(tmp_path, run):
    rows = launches(ranges=True)
    rows[0]["range"] = "flopprof#2#aten.mm.default"
    rows[1]["range"] = "flopprof#99#aten.mm.default"

    new = joined(tmp_path, run, rows)

    assert set(new.launches["joined_by"]) == {""}
    (note,) = new.provenance.executed.notes
    assert "op 2 is aten.silu" in note
    assert "range 99 is of no op" in note


def test_a_kernel_that_differs_between_runs_is_still_its_ops_by_the_range(tmp_path, run):
    rows = launches(ranges=True)
    rows[0]["kernel"] = "another_gemm"

    new = joined(tmp_path, run, rows)

    assert new.launches["op_id"].iloc[0] == 0
    assert new.launches["kernel_id"].iloc[0] == -1
    assert new.ops["executed_flops"].iloc[0] == 65_536


def test_unknown_counters_of_one_launch_leave_its_op_unknown(tmp_path, run):
    rows = launches()
    rows[4][ADD] = "n/a"

    new = joined(tmp_path, run, rows)

    assert math.isnan(by_op(new, "executed_flops")[OWN_SITE])
    assert new.measured.sites == 0
    assert by_op(new, "executed_flops")[SILU] == 5_120


def test_a_product_on_vector_units_is_compared_with_its_multiply_adds(tmp_path, run):
    rows = launches()
    for row in rows:
        row[BF16] = "0"
    rows[1] |= {FMA: "32768", ADD: "512"}  # 32,768 multiply-adds and an epilogue

    new = joined(tmp_path, run, rows)

    assert by_op(new, "useful_frac")[FULL_SITE] == 1
    assert "vector units" in by_op(new, "executed_reason")[FULL_SITE]


def test_float16_on_vector_units_is_no_known_figure(tmp_path):
    half = {"Input Dims": [[64, 16]], "Input type": ["c10::Half"]}
    trace = write_trace(
        tmp_path / "half.json",
        with_shapes(op("mylib::own", 0, 30), half),
        launch(1, 5),
        sized(1, 100, "own_first", 8),
    )
    row = launches(rows=(3,))[0] | dict.fromkeys(HALF, "10")

    new = joined(tmp_path, analyse_traces(trace), [row])

    assert math.isnan(new.sites["executed_flops"].iloc[0])
    assert new.sites["executed_vector_flops"].iloc[0] == 4_096
    assert "at most 80" in new.sites["executed_reason"].iloc[0]


def test_the_run_of_several_ranks_is_refused_with_what_to_do(tmp_path):
    ranks = [
        write_trace(tmp_path / f"rank{rank}.json", *EVENTS, distributedInfo={"rank": rank})
        for rank in range(2)
    ]

    with pytest.raises(UsageError, match="of several ranks") as error:
        joined(tmp_path, analyse_traces(ranks), launches())

    assert "flopprof trace rank0.json.gz" in error.value.remedy


def test_kernels_that_no_op_launched_are_measured_by_order(tmp_path):
    trace = write_trace(
        tmp_path / "orphan.json",
        with_shapes(op("aten::mm", 0, 20), FULL),
        launch(1, 5),
        sized(1, 100, "gemm", 1),
        sized(99, 300, "own_first", 8),
    )

    new = joined(tmp_path, analyse_traces(trace), launches(rows=(1, 3)))

    hidden = new.sites[new.sites["op"] == "(kernels)"]
    assert [*hidden["executed_flops"]] == [4_096]
    assert new.measured.flops == 4_096


def test_amds_sizes_are_in_threads(tmp_path, run):
    path = tmp_path / "rocm.csv"
    head = "Dispatch_ID,Kernel_Name,GPU_ID,Grid_Size,Workgroup_Size,SQ_INSTS_VALU_ADD_F32,"
    head += "SQ_INSTS_VALU_MUL_F32,SQ_INSTS_VALU_FMA_F32,SQ_INSTS_VALU_TRANS_F32\n"
    rows = [f"{n},{KERNELS[n]}.kd,0,{GRIDS[n] * 128},128,2,0,0,0\n" for n in range(5)]
    path.write_text(head + "".join(rows))

    new = join_counters(run, path)

    assert set(new.launches["joined_by"]) == {"order"}
    assert [*new.kernels["executed_vector_flops"]] == [128] * 5  # 2 × 64


def test_names_of_ranges_have_no_colons_slashes_or_spaces():
    assert range_name("aten::mm") == "aten.mm"
    assert range_name("my lib::an op/2:x") == "my_lib.an_op_2_x"
