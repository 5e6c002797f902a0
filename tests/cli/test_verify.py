"""`flopprof verify`: counters alone."""

import json
import subprocess
import sys

import jsonschema
import pytest

from flopprof.cli import main
from flopprof.report.answer import schema
from flopprof.run import Run
from tests.events import write_trace
from tests.executed.sheets import FMA, counts, long_file, wide_text
from tests.executed.test_join import EVENTS, launches

FIGURES = ("executed_matmul_flops", "executed_vector_flops", "executed_int_ops")
BYTES = ("dram_bytes", "l2_bytes", "l1_bytes")
JOINED = {"op_id", "kernel_id", "joined_by"}  # fields of launches that a run alone has


def printed_as_described(capsys, *arguments):
    """Return the object that `verify --json` prints, after holding it against the schema."""
    assert main(["verify", *map(str, arguments), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator(schema()).validate(answer)
    assert answer.keys() <= fields_of("VerifiedAnswer")
    for launch in answer["launches"]:
        assert launch.keys() | JOINED == fields_of("Launch")
    for site in answer.get("sites", []):
        assert site.keys() == fields_of("VerifiedSite")
    return answer


def fields_of(kind):
    return schema()["$defs"][kind]["properties"].keys()


COUNTER_FILES = {  # and how many launches each has
    "ncu_details_cublaslt_fp8_sm100.log": 1,
    "ncu_long_gpp_sm89.csv": 1,
    "ncu_long_sgemm2048_sm120.csv": 1,
    "rocprof_compute_vcopy_mi200_pmc_perf.csv": 3,
    "rocprofv3_counter_collection.csv": 4,
    "synthetic_ncu_app_range_sm90.csv": 1,
    "synthetic_ncu_launchfailed.csv": 1,
    "synthetic_ncu_long_sm100_nvtx.csv": 3,
    "synthetic_ncu_wide_sm90.csv": 4,
    "synthetic_rocprofv3_mfma_gfx942.csv": 2,
}


@pytest.mark.parametrize("name", COUNTER_FILES)
def test_what_is_printed_of_real_counters_is_what_the_schema_says(name, counter_files, capsys):
    answer = printed_as_described(capsys, "--counters", counter_files / name)

    assert len(answer["launches"]) == COUNTER_FILES[name]


@pytest.mark.parametrize(
    "change",
    [{"kernel": None}, {"executed_vector_flops": 0.5}, {"dram_bytes": -1}, {"metrics": "dram"}],
)
def test_a_launch_that_breaks_the_promise_does_not_fit(change, tmp_path, capsys):
    path = long_file(tmp_path, counts(add=1, mul=2, fma=3))
    answer = printed_as_described(capsys, "--counters", path)
    answer["launches"][0] |= change

    assert not jsonschema.Draft202012Validator(schema()).is_valid(answer)


def test_launches_as_json_have_null_for_what_is_unknown(tmp_path, capsys):
    path = long_file(tmp_path, counts(add=1, mul=2, fma=3) | {"dram__bytes.sum": ("Kbyte", "1.5")})

    assert main(["verify", "--json", "--counters", str(path)]) == 0

    (launch,) = json.loads(capsys.readouterr().out)["launches"]
    assert launch["kernel"] == "k"
    assert [launch[name] for name in FIGURES] == [None, 9, None]  # 1 + 2 + 2·3
    assert [launch[name] for name in BYTES] == [1500, None, None]
    assert launch["duration_us"] is None
    assert launch["executed_source"] == "ncu"
    assert launch["metrics"]["dram"] == ["dram__bytes"]
    assert "matrix units" in launch["reason"]
    assert launch["range_id"] is None


def test_launches_as_a_table_and_no_torch_for_it(tmp_path):
    path = long_file(tmp_path, counts(add=1, mul=2) | {FMA: ("inst", "n/a")})
    code = (
        "import sys\nfrom flopprof.cli import main\ncode = main(sys.argv[1:])\n"
        "sys.exit(9 if 'torch' in sys.modules else code)"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, "verify", "--counters", str(path)],
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    assert "at least 3" in done.stdout
    assert "2x1x1" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code"), [(["verify"], 2), (["verify", "--counters", "none.csv"], 2)]
)
def test_what_is_missing_is_said(arguments, code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    assert main(arguments) == code
    assert "flopprof: " in capsys.readouterr().err


@pytest.fixture
def trace(tmp_path):
    return write_trace(tmp_path / "trace.json", *EVENTS)


@pytest.fixture
def counters(tmp_path):
    path = tmp_path / "counters.csv"
    path.write_text(wide_text(launches()))
    return path


def test_a_trace_with_counters_is_saved_as_a_run_that_reports_them(
    trace, counters, tmp_path, capsys
):
    folder = tmp_path / "out.flopprof"

    printed = printed_as_described(capsys, trace, "--counters", counters, "-o", folder)

    assert [launch["joined_by"] for launch in printed["launches"]] == ["order"] * 5
    assert [launch["op_id"] for launch in printed["launches"]] == [0, 1, 2, 3, 3]
    own = next(site for site in printed["sites"] if site["op"] == "mylib::own")
    assert (own["flops"], own["executed_flops"]) == (None, 4396)
    # 1,024 + 65,536 counted, twice 65,536 executed.
    assert printed["executed"]["useful_frac"] == pytest.approx(66_560 / 131_072)
    assert printed["executed"]["measured_flops"] == 4396
    assert printed["coverage_frac"] == pytest.approx(0.6)
    assert str(folder / "launches.csv") in printed["files"]
    for form in ("text", "md"):
        assert "4.40 kFLOPs in 1 site of unknown FLOPs" in Run.load(folder).report(form)
    assert "executed_flops" in Run.load(folder).report("csv").partition("\n")[0]
    assert "executed_flops" in Run.load(folder).report("html")
    modules = Run.load(folder).by_module()
    assert "dram_bytes" in modules.columns


def test_a_saved_run_with_counters_in_another_order_says_so(trace, tmp_path, capsys):
    main(["trace", str(trace), "-o", str(tmp_path / "run.flopprof")])
    path = tmp_path / "wrong.csv"
    path.write_text(wide_text(launches(rows=(2, 0, 1, 3, 4))))
    capsys.readouterr()

    assert main(["verify", str(tmp_path / "run.flopprof"), "--counters", str(path)]) == 0

    text = " ".join(capsys.readouterr().out.split())
    assert "joined 5 by name" in text
    assert "no op has an executed figure" in text


def test_an_annotated_trace_has_what_was_executed(trace, counters, tmp_path):
    out = tmp_path / "annotated.json"

    arguments = ["--counters", str(counters), "--annotate", str(out)]
    assert main(["verify", str(trace), *arguments]) == 0

    events = json.loads(out.read_text())["traceEvents"]
    first = next(event for event in events if event.get("name") == "aten::mm")
    assert first["args"]["executed FLOPs"] == 65_536
    assert first["args"]["counted / executed"] == 1 / 64
    assert first["args"]["DRAM bytes"] == 1024
