"""Files of hardware counters: what they hold, by reference values, and what is no number."""

import json
import math

import pytest

from flopprof.errors import LoadError, UsageError
from flopprof.executed.launches import bare_kernel
from flopprof.executed.numbers import number, unit
from flopprof.executed.read import read_counters
from tests.executed.sheets import ADD, FMA, LONG, MUL, TENSOR, counts, long_file, long_text


def one(path):
    """Return the only launch of a file."""
    (row,) = read_counters(path).to_dict("records")
    return row


def test_fp64_of_a_real_file_of_an_rtx_4060(counter_files):
    row = one(counter_files / "ncu_long_gpp_sm89.csv")

    # dadd 158,180,752,242 + dmul 803,017,623,077 + 2 × dfma 817,773,953,820.
    assert row["executed_vector_flops"] == 2_596_746_282_959
    assert row["executed_matmul_flops"] == 0  # no tensor instruction
    assert row["executed_half_at_most_flops"] == 0
    assert row["dram_bytes"] == 516_327_794_816
    assert row["l2_bytes"] == 640_889_913_632
    assert row["l1_bytes"] == 1_288_549_677_760
    # 49,398,007,062.67 cycles at 1,619,999,997.89 Hz.
    assert row["duration_us"] == pytest.approx(30.492597e6, rel=1e-8)
    assert (row["grid"], row["block"], row["arch"]) == ("65535x1x1", "128x1x1", "sm_89")
    assert json.loads(row["executed_by_dtype"])["vector"] == {
        "float32": 0,
        "float64": 2_596_746_282_959,
    }
    assert row["executed_source"] == "ncu"


def test_a_details_page_without_such_counters_is_unknown_and_not_zero(counter_files):
    row = one(counter_files / "ncu_details_cublaslt_fp8_sm100.log")

    assert row["kernel"].startswith("cutlass3x_sm100_tensorop_s64x256x32gemm_f8")
    assert row["grid"] == "9x32x1"
    for name in ("executed_matmul_flops", "executed_vector_flops", "dram_bytes", "l2_bytes"):
        assert math.isnan(row[name])
    assert row["duration_us"] == 406.24
    assert "no counter" in row["reason"]


def test_reads_and_writes_of_a_real_file_of_an_rtx_5070(counter_files):
    row = one(counter_files / "ncu_long_sgemm2048_sm120.csv")

    assert row["dram_bytes"] == 80_808_960  # 54,207,744 read + 26,601,216 written
    assert row["duration_us"] == pytest.approx(9589.248)
    assert math.isnan(row["executed_vector_flops"])


def test_vector_copies_of_a_real_file_of_an_mi200(counter_files):
    rows = read_counters(counter_files / "rocprof_compute_vcopy_mi200_pmc_perf.csv")

    assert [*rows["executed_vector_flops"]] == [0, 0, 0]
    assert [*rows["executed_matmul_flops"]] == [0, 0, 0]
    assert [*rows["dram_read_bytes"]] == [8_389_504, 8_389_504, 8_389_568]
    assert [*rows["dram_write_bytes"]] == [8_388_608, 5_828_608, 5_831_232]
    assert [*rows["duration_us"].round(6)] == [20.48, 16.32, 15.52]


def test_a_real_file_of_rocprofv3_without_flop_counters(counter_files):
    rows = read_counters(counter_files / "rocprofv3_counter_collection.csv")

    assert [*rows["duration_us"].round(6)] == [52.151, 49.78, 46.818, 48.151]
    assert rows["executed_vector_flops"].isna().all()
    assert rows["kernel"].iloc[1].startswith("subtract_kernel(")


def test_measured_peaks_are_no_counters(counter_files):
    with pytest.raises(LoadError, match="measured peaks"):
        read_counters(counter_files / "rocprof_compute_vcopy_mi200_roofline.csv")


def test_a_synthetic_wide_file_with_both_forms_of_ranges(counter_files):
    rows = read_counters(counter_files / "synthetic_ncu_wide_sm90.csv")

    assert [*rows["range_id"]] == [17, 18, 19, 20]
    assert rows["range_op"].iloc[1] == "aten.silu.default"
    # M = 1 padded to 64: 64 × 33,554,432. The parent holds its children and counts once.
    assert [*rows["executed_matmul_flops"][:3]] == [2_147_483_648, 0, 0]
    # 134,217,728 + 0 + 2 × 0 …: fadd 134,217,728, fmul 201,326,592; hfma is in no sum.
    assert [*rows["executed_vector_flops"][:3]] == [4096, 335_544_320, 0]
    assert [*rows["executed_int_ops"][:3]] == [0, 0, 2_147_483_648]
    assert rows["dram_bytes"].iloc[0] == 33_578_190
    assert rows["duration_us"].iloc[0] == pytest.approx(14.34)
    unknown = rows.iloc[3]
    for name in rows.columns[rows.dtypes == "float64"]:
        assert math.isnan(unknown[name])


def test_a_synthetic_long_file_of_packed_fp32_and_fp8(counter_files):
    rows = read_counters(counter_files / "synthetic_ncu_long_sm100_nvtx.csv")

    assert [*rows["range_id"]] == [3, 4, 5]
    assert rows["executed_matmul_flops"].iloc[0] == 137_438_953_472
    assert rows["duration_us"].iloc[0] == pytest.approx(52)
    # 2 × 2^20 + 2 × 2^20 + 4 × 2^20 packed, 2 × 1024 plain.
    assert rows["executed_vector_flops"].iloc[1] == 8_390_656
    assert rows["executed_matmul_flops"].iloc[2] == 137_438_957_568  # 2·4096³ + 4096
    assert math.isnan(rows["executed_vector_flops"].iloc[2])


def test_an_application_range_has_no_grid(counter_files):
    row = one(counter_files / "synthetic_ncu_app_range_sm90.csv")

    assert (row["kernel"], row["grid"], row["range_id"]) == ("range", "", -1)
    assert row["executed_matmul_flops"] == 10**12
    assert row["executed_vector_flops"] == 1_100_000_000  # 10^8 + 0 + 2 × 5·10^8
    assert row["duration_us"] == pytest.approx(2500)


def test_a_failed_launch_is_unknown_and_says_why(counter_files):
    row = one(counter_files / "synthetic_ncu_launchfailed.csv")

    assert math.isnan(row["executed_vector_flops"])
    assert "LaunchFailed" in row["reason"]
    assert row["grid"] == ""


def test_synthetic_matrix_work_of_an_mi300(counter_files):
    rows = read_counters(counter_files / "synthetic_rocprofv3_mfma_gfx942.csv")

    assert [*rows["executed_matmul_flops"]] == [137_438_953_472, 0]  # 268,435,456 × 512
    assert [*rows["executed_vector_flops"]] == [16_777_216, 2_097_152]  # 262,144 × 64; 2·64·16384
    assert [*rows["dram_read_bytes"]] == [67_108_864, 8_388_608]
    assert [*rows["dram_write_bytes"]] == [33_554_432, 4_194_304]
    assert [*rows["duration_us"]] == [400, 20]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234", 1234),
        ("20,289,776,014.33", 20_289_776_014.33),
        ("1 234 567", 1_234_567),
        ("1\u202f234", 1234),
        ("8.1097E+14", 8.1097e14),
        ("16384.000000", 16384),
        ("-3", -3),
        (".5", 0.5),
    ],
)
def test_numbers_as_profilers_and_spreadsheets_print_them(text, value):
    assert number(text) == value


@pytest.mark.parametrize(
    "text", ["", " ", "n/a", "N/A", "nan", "NaN", "(!) nan", "no data", "-", "inf", "CachePreferL1"]
)
def test_what_is_no_number_is_unknown(text):
    assert math.isnan(number(text))


@pytest.mark.parametrize(
    "text", ["1,5", "0,001", "1234,5", "1.234.567,8", "12,3456", "1,5E+3", "1.234.567"]
)
def test_a_decimal_comma_is_refused(tmp_path, text):
    path = long_file(tmp_path, counts(add=1, mul=1) | {FMA: ("inst", text)})

    with pytest.raises(LoadError, match="decimal comma") as caught:
        read_counters(path)
    assert "--print-fp" in caught.value.remedy


def test_a_list_of_numbers_is_no_decimal_comma(tmp_path):
    row = one(long_file(tmp_path, counts(add=1, mul=1, fma=1) | {"Enabled TPC IDs": ("", "0,1")}))

    assert row["executed_vector_flops"] == 4


@pytest.mark.parametrize(
    ("text", "factor", "base"),
    [
        ("byte", 1, "byte"),
        ("Kbyte", 1e3, "byte"),
        ("Mbyte", 1e6, "byte"),
        ("Gbyte", 1e9, "byte"),
        ("Tbyte", 1e12, "byte"),
        ("Kibyte", 1024, "byte"),
        ("Gbyte/s", 1e9, "byte/s"),
        ("Gbyte/second", 1e9, "byte/s"),
        ("ns", 1e-9, "s"),
        ("us", 1e-6, "s"),
        ("ms", 1e-3, "s"),
        ("nsecond", 1e-9, "s"),
        ("usecond", 1e-6, "s"),
        ("msecond", 1e-3, "s"),
        ("second", 1, "s"),
        ("hz", 1, "hz"),
        ("Ghz", 1e9, "hz"),
        ("inst/cycle", 1, "inst/cycle"),
        ("byte/ns", 1e9, "byte/s"),
        ("%", 1, "%"),
        ("", 1, ""),
        ("furlong", 1, "furlong"),
    ],
)
def test_units_and_their_prefixes(text, factor, base):
    by, name = unit(text)

    assert by == pytest.approx(factor)
    assert name == base


def test_a_unit_that_cannot_be_is_said_and_not_used(tmp_path):
    readings = {"gpu__time_duration.sum": ("furlong", "3"), "dram__bytes.sum": ("", "12")}

    row = one(long_file(tmp_path, readings))

    assert math.isnan(row["duration_us"])
    assert math.isnan(row["dram_bytes"])
    assert "'furlong'" in row["reason"]


# Two launches' worth of one: fadd 10 + fmul 20 + 2 × ffma 30 = 90.
GOOD = long_text(counts(add=10, mul=20, fma=30))


@pytest.mark.parametrize(
    "data",
    [
        GOOD.encode(),
        b"\xef\xbb\xbf" + GOOD.encode(),
        GOOD.encode("utf-16"),  # as Windows shells write what a command prints
        GOOD.replace("\n", "\r\n").encode(),
        b"loss 1.5, done\n==PROF== Connected to process 7\n\n" + GOOD.encode() + b"==PROF== bye\n",
        GOOD.replace('"', "").replace(", 1, 1", " 1 1").encode(),  # a spreadsheet's copy
        GOOD.replace('","', '";"').encode(),
        GOOD.replace('","', '"\t"').encode(),
        GOOD.encode() + b'"3 epochs, 5 to go\nit is 5" long, I think\n',
        GOOD.replace('"a.out"', '"my\nprogram"').encode(),
        GOOD.encode() + GOOD.partition("\n")[2].replace('"30"', '"99"').encode(),  # sections
    ],
    ids=[
        "plain",
        "bom",
        "utf16",
        "crlf",
        "log",
        "bare",
        "semicolon",
        "tab",
        "prints",
        "lines",
        "2",
    ],
)
def test_forms_of_one_file(tmp_path, data):
    path = tmp_path / "counters.csv"
    path.write_bytes(data)

    assert one(path)["executed_vector_flops"] == 90


def test_a_number_of_a_launch_may_have_separators_of_thousands(tmp_path):
    path = tmp_path / "many.csv"
    path.write_text(GOOD.replace('"0","1","a.out"', '"1,024","1","a.out"'))

    assert one(path)["executed_vector_flops"] == 90


def test_two_tables_in_one_file(tmp_path):
    path = tmp_path / "both.csv"
    path.write_text(GOOD + "more output\n" + GOOD.replace('"30"', '"40"'))

    assert [*read_counters(path)["executed_vector_flops"]] == [90, 110]


def test_launches_come_in_the_order_in_which_they_were_launched(tmp_path):
    later = GOOD.replace('"0","1","a.out"', '"1","1","a.out"').replace('"k"', '"later"')
    path = tmp_path / "shuffled.csv"
    path.write_text(LONG + "\n" + later.partition("\n")[2] + GOOD.partition("\n")[2])

    assert [*read_counters(path)["kernel"]] == ["k", "later"]


def test_separators_of_thousands_without_quotes_are_refused_with_the_line(tmp_path):
    path = tmp_path / "bare.csv"
    text = long_text(counts(add=1000, mul=1, fma=1)).replace('"', "").replace(", 1, 1)", " 1 1)")
    path.write_text(text)

    with pytest.raises(LoadError, match=r"line 2 .* has 16 cells, its header 15"):
        read_counters(path)
    path.write_text(text.replace("Metric Value", "Metric Value,Rule Name,Rule Type"))
    with pytest.raises(LoadError, match=r"line 2 .*thousands"):
        read_counters(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("hello\n", "no table of counters"),
        ("==PROF== Connected\n==ERROR== No kernels were profiled.\n", "No kernels were profiled"),
        ("==ERROR== ERR_NVGPUCTRPERM - The user has no permission\n", "refused access"),
        ("a\0b", "binary"),
        ("SQLite format 3\0…", "database of rocprofv3"),
        ("  k (2, 1, 1)x(128, 1, 1), Context 1\n    Section: GPU Speed Of Light\n", "no table"),
    ],
)
def test_files_without_counters_say_what_they_are(tmp_path, text, says):
    path = tmp_path / "no.csv"
    path.write_text(text)

    with pytest.raises(LoadError, match=says) as caught:
        read_counters(path)
    assert caught.value.remedy


def test_a_missing_file_a_folder_and_no_file(tmp_path):
    nothing: list[str] = []
    for path in (tmp_path / "none.csv", tmp_path, nothing):
        with pytest.raises(UsageError):
            read_counters(path)


def test_a_report_is_opened_by_ncu_or_the_command_is_told(tmp_path, monkeypatch):
    report = tmp_path / "run of mine.ncu-rep"
    report.write_bytes(b"NVR\0")
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(UsageError) as caught:
        read_counters(report)
    assert "--page raw --csv --print-units base --print-fp" in caught.value.remedy
    assert "run of mine.ncu-rep'" in caught.value.remedy  # quoted for a shell

    ncu = tmp_path / "ncu"
    (tmp_path / "answer.csv").write_text(GOOD)
    ncu.write_text(f'#!/bin/sh\n[ "$1" = --import ] && /bin/cat {tmp_path}/answer.csv\n')
    ncu.chmod(0o755)
    assert one(report)["executed_vector_flops"] == 90

    ncu.write_text("#!/bin/sh\necho newer version >&2\nexit 3\n")
    with pytest.raises(LoadError, match=r"exit code 3.*newer version"):
        read_counters(report)


@pytest.mark.parametrize(
    "name",
    [
        "void at::native::sgemm<float, 4>(float *, int)",
        "sgemm",
        "unnamed>::sgemm(const float *)",
        "sgemm [clone .kd]",
        "sgemm.kd",
        "sgemm (.kd)",
        "void (anonymous namespace)::sgemm<(int)3>(int)",
        "void <unnamed>::sgemm(float *)",
    ],
)
def test_names_of_one_kernel_in_forms_of_several_tools(name):
    assert bare_kernel(name) == "sgemm"


def test_ranges_take_the_last_of_flopprof_in_the_cell(tmp_path):
    header = LONG.replace('"Kernel Name"', '"thread Domain:Push/Pop_Range:…","Kernel Name"')
    cell = (
        '"1  ""<default domain>:flopprof#3#outer:none""  ""<default domain>:flopprof#14#aten.mm'
        '.default:none:none"" "'
    )
    path = tmp_path / "ranges.csv"
    body = GOOD.partition("\n")[2].replace('"k"', f'{cell},"k"')
    path.write_text(header + "\n" + body)

    row = one(path)

    assert (row["range_id"], row["range_op"]) == (14, "aten.mm.default")


def test_counters_of_zero_are_zero_and_not_unknown(tmp_path):
    row = one(long_file(tmp_path, counts(add=0, mul=0, fma=0) | {f"{TENSOR}fp64.sum": ("", "0")}))

    assert row["executed_vector_flops"] == 0
    assert row["executed_matmul_flops"] == 0
    assert math.isnan(row["executed_int_ops"])


def test_one_missing_counter_leaves_the_figure_unknown_with_its_lower_bound(tmp_path):
    row = one(long_file(tmp_path, {ADD: ("inst", "5"), MUL: ("inst", "n/a"), FMA: ("inst", "7")}))

    assert math.isnan(row["executed_vector_flops"])
    # 5 + 2 × 7
    assert "at least 19" in row["reason"]
    assert "fmul" in row["reason"]
