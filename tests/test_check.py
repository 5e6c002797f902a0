"""`flopprof check` and `flopprof misses` on saved runs; nothing here calls a model."""

import json
import subprocess
import sys
from xml.etree import ElementTree as Xml

import pytest

from flopprof.cli import main
from flopprof.tables import ROOFLINES
from tests.builders import make_run


@pytest.fixture
def saved(tmp_path, capsys):
    """Return the folder of a run with 30 µs known and 10 µs unknown: coverage 75 %, 528 FLOPs."""
    return str(make_run().save(tmp_path / "net.flopprof"))


@pytest.mark.parametrize(
    ("rule", "holds"),
    [
        ("--min-coverage 0.75", True),
        ("--min-coverage 0.76", False),
        ("--max-unknown-frac 0.25", True),
        ("--max-unknown-frac 0.24", False),
        # 528 FLOPs are known, at most 1,000 are not.
        ("--max-gflops 1528e-9", True),
        ("--max-gflops 1527e-9", False),
        ("--max-gflops 528e-9 --allow-unknown", True),
        ("--max-gflops 527e-9 --allow-unknown", False),
        # A bare call takes 50 µs.
        ("--max-ms 0.05", True),
        ("--max-ms 0.049", False),
        # No ceiling, so no utilisation; nothing says what memory it needs.
        ("--min-mfu 0", False),
        ("--min-mfu 40% --allow-unknown", True),
        ("--max-memory 16G", False),
        ("--max-memory 1 --allow-unknown", True),
        ("--no-verdict disagrees", True),
        ("--no-verdict unknown", False),
    ],
)
def test_a_rule_holds_up_to_its_limit_and_not_beyond(saved, capsys, rule, holds):
    code = main(["check", saved, *rule.split()])

    printed = capsys.readouterr().out
    assert code == (0 if holds else 1)
    assert len(printed.splitlines()) == 1
    assert printed.startswith(rule.split()[0]) != holds


def test_each_broken_rule_is_one_line(saved, capsys):
    rules = "--min-coverage 0.9 --no-verdict unknown --no-verdict agrees --max-gflops 1"

    code = main(["check", saved, *rules.split()])

    lines = capsys.readouterr().out.splitlines()
    assert code == 1
    assert [line.split(":")[0] for line in lines] == [
        "--min-coverage 0.9",
        "--no-verdict unknown",
        "--no-verdict agrees",
    ]
    assert "75.0 % of the time" in lines[0]
    assert "aten::mystery in the model" in lines[1]


def test_a_coverage_that_is_not_known_breaks_the_rule(tmp_path, capsys):
    folder = str(make_run([]).save(tmp_path / "empty.flopprof"))

    assert main(["check", folder, "--min-coverage", "0"]) == 1
    assert main(["check", folder, "--max-unknown-frac", "1"]) == 1


def test_flops_without_a_bound_break_a_limit_unless_they_are_allowed(tmp_path, capsys):
    unknown = {"site_id": 0, "op": "aten::x", "calls": 1, "verdict": "unknown", "time_us": 5.0}
    folder = str(make_run([unknown]).save(tmp_path / "unknown.flopprof"))

    assert main(["check", folder, "--max-gflops", "1"]) == 1
    assert "some are unknown (their number has no bound)" in capsys.readouterr().out
    assert main(["check", folder, "--max-gflops", "1", "--allow-unknown"]) == 0


def test_a_pure_count_is_covered_by_calls(tmp_path, capsys):
    site = {"op": "aten::mm", "calls": 3, "flops": 6.0, "matmul_flops": 6.0, "vector_flops": 0.0}
    unknown = {"site_id": 1, "op": "aten::x", "calls": 1, "verdict": "unknown"}
    run = make_run([site | {"site_id": 0, "verdict": "agrees"}, unknown])
    folder = str(run.save(tmp_path / "count.flopprof"))

    # 3 of 4 calls have known FLOPs.
    assert main(["check", folder, "--min-coverage", "0.75"]) == 0
    assert main(["check", folder, "--min-coverage", "0.76"]) == 1
    assert "75.0 % of the calls" in capsys.readouterr().out


def test_the_outcome_is_written_as_junit(saved, tmp_path, capsys):
    file = tmp_path / "junit.xml"

    main(["check", saved, "--max-gflops", "1", "--no-verdict", "unknown", "--junit", str(file)])

    suite = Xml.parse(file).getroot()
    assert (suite.tag, suite.get("tests"), suite.get("failures")) == ("testsuite", "2", "1")
    failed = [case.get("name") for case in suite if case.find("failure") is not None]
    assert failed == ["--no-verdict unknown"]


def test_check_prints_one_json_object(saved, capsys):
    code = main(["check", saved, "--min-coverage", "0.9", "--max-gflops", "1", "--json"])

    found = json.loads(capsys.readouterr().out)
    assert (code, found["holds"]) == (1, False)
    assert [rule["holds"] for rule in found["rules"]] == [False, True]
    assert found["rules"][0]["value"] == 0.75


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--min-coverage", "95"],
        ["--max-unknown-frac", "nan"],
        ["--max-gflops", "-1"],
        ["--max-ms", "nan"],
        ["--min-mfu", "40"],
        ["--max-memory", "much"],
        ["--no-verdict", "wrong"],
        ["--max-gflops", "1", "--junit", "/nowhere/at/all.xml"],
    ],
)
def test_a_rule_that_makes_no_sense_is_a_usage_error(saved, capsys, arguments):
    assert main(["check", saved, *arguments]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_misses_are_grouped_with_bound_and_advice(saved, capsys):
    assert main(["misses", saved]) == 0

    printed = capsys.readouterr().out
    assert "unknown: 1 call, 25.0 % of the time" in printed
    assert "FLOPs unknown, at most 1.00 kFLOPs" in printed
    assert "What to do: Give the op a formula" in printed
    assert "agrees" not in printed


def test_misses_as_json_bound_the_whole_run(saved, capsys):
    main(["misses", saved, "--json"])

    found = json.loads(capsys.readouterr().out)
    # 528 counted; the unknown op can add 1,000 at most.
    assert (found["flops"], found["flops_at_most"]) == (528, 1528)
    assert (found["coverage_frac"], found["coverage_calls_frac"]) == (0.75, pytest.approx(2 / 3))
    [miss] = found["misses"]
    assert (miss["verdict"], miss["op"], miss["flops"]) == ("unknown", "aten::mystery", None)


def test_a_run_without_misses_says_so(tmp_path, capsys):
    folder = str(make_run([]).save(tmp_path / "empty.flopprof"))

    assert main(["misses", folder]) == 0
    assert capsys.readouterr().out == "The count is complete: the hooks missed nothing.\n"


def test_a_stub_is_a_file_of_formulas_that_say_unknown_until_filled_in(tmp_path, capsys):
    names = ["mylib::twice", "odd::\"''\\ name\n"]
    sites = [
        {"site_id": n, "op": op, "input_shapes": "4x5, 5", "dtype": "float32", "calls": 1,
         "verdict": "extension"}
        for n, op in enumerate(names)
    ]  # fmt: skip
    folder = str(make_run(sites).save(tmp_path / "net.flopprof"))
    stub = tmp_path / "stub.py"

    main(["misses", folder, "--stub", str(stub)])

    text = stub.read_text()
    assert "4x5, 5 (float32)" in text
    code = (
        f"import runpy; from flopprof.formulas import OP_FORMULAS as known, OpCall;"
        f"runpy.run_path({str(stub)!r});"
        f"assert all(known.get(n)(OpCall(n)) is None for n in {names!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_neither_imports_torch(saved):
    limits = ["--max-gflops", "1", "--max-ms", "1", "--min-mfu", "0", "--max-memory", "1G"]
    limits.append("--allow-unknown")
    for command in (["check", saved, *limits], ["misses", saved]):
        code = (
            f"import sys; from flopprof.cli import main; assert main({command!r}) == 0;"
            "assert 'torch' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_limit_on_flops_says_what_the_unknown_may_add(saved, capsys):
    assert main(["check", saved, "--max-gflops", "1"]) == 0

    # 10 µs are unknown, at most 100 kFLOPs of them.
    assert "; counted 528 FLOPs, with what is unknown at most" in capsys.readouterr().out


def test_a_stub_that_may_be_filled_in_is_not_replaced(saved, tmp_path, capsys):
    stub = tmp_path / "mine.py"
    assert main(["misses", saved, "--stub", str(stub)]) == 0
    stub.write_text("# filled in\n")

    assert main(["misses", saved, "--stub", str(stub)]) == 2
    assert "may be filled in" in capsys.readouterr().err
    assert stub.read_text() == "# filled in\n"
    assert main(["misses", saved, "--stub", str(stub), "--force"]) == 0
    assert "op_formula" in stub.read_text()


def test_what_was_measured_is_held_against_its_limit(tmp_path, capsys):
    roof = {"dtype": "float32", "unit": "tensor", "memory_level": "DRAM", "valid": True}
    peaks = {"peak_flops_per_s": 96e6, "peak_bytes_per_s": 1e9, "kind": "user"}
    run = make_run(telemetry={"calls": 1, "peak_memory_bytes": 5e8})
    folder = str(run.replaced(rooflines=ROOFLINES.from_rows([roof | peaks])).save(tmp_path / "a"))

    # 480 matmul FLOPs in 50 µs are 9.6 MFLOP/s: 10 % of 96.
    assert main(["check", folder, "--min-mfu", "10%", "--max-memory", "500M"]) == 0
    assert main(["check", folder, "--min-mfu", "0.11"]) == 1
    assert main(["check", folder, "--max-memory", "499M"]) == 1
    printed = capsys.readouterr().out
    assert "--min-mfu 0.11: MFU is 10.0 %" in printed
    assert "--max-memory 499 MB: a call needs 500 MB at its peak" in printed


def test_a_pass_says_what_was_not_known(saved, capsys):
    assert main(["check", saved, "--max-memory", "1G", "--allow-unknown"]) == 0

    assert "the peak of memory is not known" in capsys.readouterr().out


def test_the_span_of_a_trace_is_no_time_of_a_call(tmp_path, capsys):
    run = make_run(wall_us=None, trace={"files": ["t.json"], "span_us": 10.0})
    folder = str(run.save(tmp_path / "trace"))

    assert main(["check", folder, "--max-ms", "1000"]) == 1
    assert "the time of a call is not known" in capsys.readouterr().out
