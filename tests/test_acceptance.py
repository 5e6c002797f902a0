"""What is run on a machine with a GPU, rehearsed on the CPU: a case or two of each stage."""

import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "scripts"


@pytest.fixture(autouse=True)
def _scripts_are_importable(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))


def acceptance(*arguments: str, output: Path) -> "subprocess.CompletedProcess[str]":
    path = os.pathsep.join([str(ROOT), str(SCRIPTS), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-P", "-m", "acceptance", "--here", *arguments, "--output", str(output)],
        env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def rows_of(path: Path) -> dict[str, dict[str, object]]:
    rows = map(json.loads, path.read_text().splitlines())
    return {row["unit"]: row for row in rows}


@pytest.mark.slow
def test_rehearsed_tests_pass_and_say_what_was_not_seen(tmp_path):
    wanted = ["--only", "test_products.py::test_an_int8", "--only", "replay_of_a_cuda_graph"]

    done = acceptance("--rehearse", "--stage", "tests", *wanted, output=tmp_path)

    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "tests.jsonl")
    names = [name.partition("::")[2] for name in rows]
    assert names == [
        "test_an_int8_product_counts_in_its_own_element_type",
        "test_the_replay_of_a_cuda_graph_is_hidden_and_says_so",
    ]
    seen = [row["not_seen"] for row in rows.values()]
    assert "skipped: needs CUDA: every kernel is linked to its op" in str(seen[0])
    assert seen[1] == ["skipped: needs CUDA: CUDA graphs"]
    assert "2 passed    0 failed" in done.stdout
    facts = json.loads((tmp_path / "acceptance.json").read_text())
    assert facts["device"] == "cpu"
    assert facts["stages"]["tests"]["finished"]


def test_tests_that_passed_are_not_repeated_and_too_few_are_told_of(tmp_path):
    from types import SimpleNamespace as Namespace

    from acceptance.journal import FAILED, PASSED, Part
    from acceptance.stage import Place
    from acceptance.tests import LEAST_TESTS, Recorder

    def collected(part: Part, number: int) -> list[str]:
        place = Place("cpu", tmp_path, time.time() + 1000, only=("test_",))
        config = Namespace(hook=Namespace(pytest_deselected=lambda items: None))
        items = [Namespace(nodeid=f"tests/gpu/test_{n}") for n in range(number)]
        Recorder(place, part).pytest_collection_modifyitems(config, items)
        return [item.nodeid for item in items]

    part = Part(tmp_path / "tests.jsonl", "before")
    part.end("test_0", PASSED)
    part.end("test_1", FAILED)
    part = Part(tmp_path / "tests.jsonl", "now")

    left = collected(part, LEAST_TESTS)

    assert left[:2] == ["tests/gpu/test_1", "tests/gpu/test_2"]
    assert len(left) == LEAST_TESTS - 1
    assert "(collection)" not in part.rows
    collected(part, LEAST_TESTS - 1)
    assert part.rows["(collection)"]["outcome"] == FAILED


def test_without_cuda_nothing_is_run_and_the_rehearsal_is_named(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")

    done = acceptance(output=tmp_path)

    assert done.returncode == 2
    assert "nothing was run" in done.stderr
    assert "--rehearse" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of libraries; the stages themselves make no errors of any
@pytest.mark.parametrize(
    ("stage", "only", "outcomes"),
    [
        ("ceilings", ("float32",), ["passed", "skipped"]),
        ("models", ("llama_1b_decode",), ["passed"]),
        ("counters", (), ["passed", *["skipped"] * 4]),
        ("peers", ("lstm",), ["passed"]),
    ],
)
def test_each_stage_is_rehearsed(tmp_path, stage, only, outcomes):
    pytest.importorskip("transformers")
    from acceptance.stage import Place
    from acceptance.worker import run_stage

    place = Place("cpu", tmp_path, time.time() + 1000, only)

    finished = run_stage(stage, place, "now")

    rows = rows_of(tmp_path / f"{stage}.jsonl")
    assert finished
    assert [row["outcome"] for row in rows.values()] == outcomes, rows
    for row in rows.values():
        assert row["outcome"] != "skipped" or "CUDA" in str(row["reason"])


def test_a_unit_that_fails_does_not_stop_the_next_and_is_tried_again_later(tmp_path):
    from acceptance.journal import Part
    from acceptance.stage import Place, SkipUnitError, run_units

    tried = []

    def run(unit: str, _place: Place) -> dict[str, object]:
        tried.append(unit)
        if unit == "breaks":
            raise ValueError("as planned")
        if unit == "elsewhere":
            raise SkipUnitError("skipped: needs CUDA")
        return {"value": float("nan"), "faults": ["too slow"] if unit == "slow" else []}

    place = Place("cpu", tmp_path, time.time() + 1000)
    units = ("breaks", "good", "slow", "elsewhere")
    path = tmp_path / "stage.jsonl"
    for name in ("first", "first", "second"):
        assert run_units("stage", place, Part(path, name), units, run, needs_s=1.0)

    # In one run what failed is left; in the next it is tried again, and nothing else is.
    assert tried == [*units, "breaks", "slow"]
    rows = rows_of(path)
    assert [row["outcome"] for row in rows.values()] == ["failed", "passed", "failed", "skipped"]
    assert "ValueError: as planned" in str(rows["breaks"]["reason"])
    assert rows["slow"]["reason"] == "too slow"
    assert rows["good"]["value"] is None


def test_no_unit_begins_when_the_budget_is_nearly_spent(tmp_path):
    from acceptance.journal import Part
    from acceptance.stage import Place, run_units

    place = Place("cpu", tmp_path, time.time() + 5)
    part = Part(tmp_path / "stage.jsonl", "now")

    assert not run_units("stage", place, part, ["one"], lambda _u, _p: {}, needs_s=10.0)
    assert part.rows == {}


def job_of(folder: Path, budget_s: float = 1000.0) -> Any:
    from acceptance.command import Job

    return Job("cpu", folder, (), time.time() + budget_s, "now", dict(os.environ))


STAGE = """
import os, signal, sys, time
sys.path.insert(0, {scripts!r})
from pathlib import Path
from acceptance.journal import Part
part = Part(Path({folder!r}) / "stage.jsonl", "now")
for unit in ("one", "two", "three"):
    if part.is_done(unit):
        continue
    part.begin(unit)
    if unit == "two":
        {two}
    part.end(unit, "passed")
"""


@pytest.mark.parametrize(
    ("two", "budget_s", "outcomes", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", 60.0, ["passed", "failed", "passed"], "signal 11"),
        ("sys.exit(77)", 60.0, ["passed", "failed", "passed"], "exit code 77"),
        ("time.sleep(60)", 60.0, ["passed", "failed", "passed"], "longer than 0.6 s"),
        ("time.sleep(60)", 0.2, ["passed"], ""),
    ],
    ids=["crash", "broken device", "hangs", "budget"],
)
def test_a_process_that_dies_takes_one_unit_with_it(
    tmp_path, monkeypatch, two, budget_s, outcomes, reason
):
    from acceptance import command

    code = STAGE.format(scripts=str(SCRIPTS), folder=str(tmp_path), two=two)

    def start(_stage: str, _job: object) -> "subprocess.Popen[bytes]":
        return subprocess.Popen([sys.executable, "-c", code], start_new_session=True)

    monkeypatch.setattr(command, "_start", start)
    monkeypatch.setitem(command.UNIT_LIMIT_S, "stage", 0.6 if budget_s > 1 else 60)
    monkeypatch.setattr(command, "GRACE_S", 1.0)

    finished = command.supervise("stage", job_of(tmp_path, budget_s))

    rows = rows_of(tmp_path / "stage.jsonl")
    assert finished is (budget_s > 1)
    assert [row["outcome"] for row in rows.values()] == outcomes
    if reason:
        assert reason in str(rows["two"]["reason"])


def test_an_output_of_another_device_is_not_added_to(tmp_path):
    from acceptance.command import _note_facts

    (tmp_path / "acceptance.json").write_text(json.dumps({"device": "cuda", "runs": []}))

    assert "holds what was found on cuda" in _note_facts(job_of(tmp_path))


def test_a_file_that_grows_too_large_is_refused_and_the_old_one_stays(tmp_path):
    from acceptance.journal import MOST_BYTES, write_whole

    path = tmp_path / "rows"
    write_whole(path, b"old")

    with pytest.raises(ValueError, match="at most"):
        write_whole(path, b"0" * (MOST_BYTES + 1))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_carried_wheels_are_installed_apart_and_are_gone_after(tmp_path):
    from acceptance.command import _environment, _missing_packages

    wheel = tmp_path / "flopprof_carried-1.0-py3-none-any.whl"
    info = "flopprof_carried-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("flopprof_carried.py", "")
        file.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: flopprof-carried\nVersion: 1.0\n"
        )
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")

    with _environment(tmp_path) as environment:
        site = Path(environment["PYTHONPATH"].split(os.pathsep)[0])
        assert (site / "flopprof_carried.py").exists()
        assert _missing_packages(environment) == ""

    assert not site.exists()
    bare = {"PATH": os.environ["PATH"], "PYTHONNOUSERSITE": "1"}
    assert isinstance(_missing_packages(bare), str)


def gpu_run() -> Any:
    """Return a small run as if an H100 had done it."""
    import msgspec

    import flopprof

    run = flopprof.Run.load(ROOT / "tests" / "runs" / "small.flopprof")
    device = msgspec.structs.replace(run.provenance.device, kind="cuda", name="NVIDIA H100")
    return run.replaced(provenance=msgspec.structs.replace(run.provenance, device=device))


def found_of(folder: Path, device: str, run: Any = None) -> Path:
    """Write what gpu_acceptance would have found: facts, a row and perhaps a run."""
    from acceptance.models import _keep

    described = {"name": "NVIDIA H100"}
    seen = {"date": "2026-12-01", "commit": "abc", "nvidia_smi": {"clocks.sm": "1980"}}
    facts = {"device": device, "runs": [{"run": "now", "device": described, **seen}], "stages": {}}
    (folder / "acceptance.json").write_text(json.dumps(facts))
    row = {"unit": "L2", "outcome": "passed", "reason": "", "per_s": 5e12, "how": {"rounds": 64}}
    (folder / "ceilings.jsonl").write_text(json.dumps(row) + "\n")
    if run is not None:
        _keep("small", run, folder / "models.zip")
    return folder


def test_results_are_filled_from_what_was_found_with_device_date_and_clocks(tmp_path):
    pytest.importorskip("transformers")
    import make_results
    from acceptance.results import fill

    from flopprof.metafile import decode

    found = found_of(tmp_path, "cuda", gpu_run())

    folder = fill(found, tmp_path / "results", {"command": "x"}, make_results.write_run)

    assert folder.name == "gpu-nvidia-h100"
    names = {path.name for path in (folder / "small").iterdir()}
    assert names == {"roofline.png", "points.csv", "sites.csv", "rooflines.csv", "meta.json"}
    about = decode((folder / "small" / "meta.json").read_bytes())
    assert about.device.kind == "cuda"
    assert about.environment.extra["seen"]["nvidia_smi"] == {"clocks.sm": "1980"}
    assert about.environment.extra["seen"]["date"] == "2026-12-01"
    assert "L2,passed" in (folder / "ceilings.csv").read_text()


@pytest.mark.parametrize(
    ("device", "has_run", "message"),
    [("cpu", False, "holds a rehearsal"), ("cuda", True, "is of a CPU")],
)
def test_what_was_not_seen_on_a_gpu_makes_no_results_of_one(tmp_path, device, has_run, message):
    pytest.importorskip("transformers")
    import make_results
    from acceptance.results import fill

    import flopprof
    from flopprof.errors import UsageError

    small = flopprof.Run.load(ROOT / "tests" / "runs" / "small.flopprof")
    found = found_of(tmp_path, device, small if has_run else None)

    with pytest.raises(UsageError, match=message):
        fill(found, tmp_path / "results", {}, make_results.write_run)


def test_a_run_is_replaced_in_the_archive_and_its_page_left_out(tmp_path):
    pytest.importorskip("transformers")
    from acceptance.models import _keep

    archive = tmp_path / "models.zip"
    for name in ("one", "one"):
        _keep(name, gpu_run(), archive)

    with zipfile.ZipFile(archive) as file:
        names = file.namelist()
    assert len(names) == len(set(names))
    assert {name.partition("/")[0] for name in names} == {"one.flopprof"}
    assert "one.flopprof/roofline.png" in names
    assert not any(name.endswith(".html") for name in names)


RAW = """==PROF== Connected to process 1
"ID","Kernel Name","sm__ops_path_tensor_src_fp16.sum","smsp__sass_thread_inst_executed_op_ffma_pred_on.sum","smsp__sass_thread_inst_executed_op_fadd_pred_on.sum","smsp__sass_thread_inst_executed_op_hfma_pred_on.sum"
"","","","inst","inst","inst"
"0","gemm","17,179,869,184","0","0","128"
"1","add","n/a","1,000","500","0"
"""  # noqa: E501


def test_executed_flops_are_tensor_operations_and_weighted_instructions():
    from acceptance.counters import executed_flops, read_raw

    executed = executed_flops(read_raw(RAW))

    # Tensor operations count once; a fused multiply-add is two, an add one; halves load constants.
    assert executed.tolist() == [17_179_869_184, 2 * 1000 + 500]
    assert 17_179_869_184 == 2 * 2048**3
