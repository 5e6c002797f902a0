"""`flopprof diff --fail-slower --fail-flops`: what fails, what passes, and what is said of it."""

import json
import math

import pytest

from flopprof.cli import main
from flopprof.errors import UsageError
from flopprof.report.limits import share_of
from tests.builders import make_run


def one_site(flops=100.0, **more):
    site = {"op": "aten::mm", "module_path": "fc", "phase": "forward", "calls": 1, "kind": "matmul"}
    known = {"flops": flops, "matmul_flops": flops, "vector_flops": 0.0, "flops_at_most": flops}
    return [site | known | {"verdict": "agrees", "time_us": 10.0} | more]


def wall(median, p5, p95):
    return {"wall_us": {"median": median, "p5": p5, "p95": p95}, "repeats": 100}


STEADY = wall(100.0, 99.0, 101.0)


@pytest.fixture
def outcome(tmp_path, capsys):
    """Return a function from two runs and options to exit code and the lines of the rules."""

    def diff(before, after, *options):
        folders = [str(run.save(tmp_path / name)) for run, name in ((before, "a"), (after, "b"))]
        code = main(["diff", *folders, *options])
        lines = capsys.readouterr().out.splitlines()
        return code, [line for line in lines if line.startswith(("holds", "fails"))]

    return diff


@pytest.mark.parametrize(
    ("times", "code", "says"),
    [
        (wall(104.0, 103.0, 105.0), 0, "noise"),  # below the floor
        (wall(106.0, 105.0, 107.0), 1, "100 µs → 106 µs, +6.0 %"),
        (wall(110.0, 90.0, 130.0), 0, "+10.0 %: noise"),
        (wall(80.0, 79.0, 81.0), 0, "−20.0 %"),
        (wall(300.0, 290.0, 310.0), 1, "× 3.00"),
        (wall(None, None, None), 1, "not known: the run after has not one"),
        ({"wall_us": {"median": 106.0, "p5": 106.0, "p95": 106.0}, "repeats": 1}, 1, "not known"),
        ({"wall_us": {"median": 101.0, "p5": 101.0, "p95": 101.0}, "repeats": 1}, 0, "not known"),
    ],
)
def test_slower_is_what_is_slower_by_more_and_no_noise(outcome, times, code, says):
    runs = [make_run(one_site(), **facts) for facts in (STEADY, times)]

    found, (line,) = outcome(*runs, "--fail-slower", "5%")

    assert found == code
    assert line.startswith("fails: --fail-slower 5%" if code else "holds: --fail-slower 5%")
    assert says in line


def test_what_is_not_known_passes_only_where_that_is_allowed_and_it_is_said(outcome):
    runs = [make_run(one_site(), **facts) for facts in (STEADY, wall(None, None, None))]

    code, (line,) = outcome(*runs, "--fail-slower", "5%", "--allow-unknown")

    assert code == 0
    assert "is not known" in line


@pytest.mark.parametrize(
    ("limit", "flops", "code"),
    [
        ("0", 100.0, 0),
        ("0", 101.0, 1),
        ("0", 99.0, 0),
        ("5%", 105.0, 0),
        ("0.05", 106.0, 1),
        ("200%", 300.0, 0),
    ],
)
def test_flops_grow_up_to_the_limit_and_not_beyond(outcome, limit, flops, code):
    found, (line,) = outcome(make_run(one_site()), make_run(one_site(flops)), "--fail-flops", limit)

    assert found == code
    assert ("grown: fc +" in line) == (flops > 100)


UNKNOWN = {
    "op": "aten::x",
    "phase": "forward",
    "calls": 1,
    "verdict": "unknown",
    "flops": math.nan,
}


@pytest.mark.parametrize(
    ("bound", "options", "code", "says"),
    [
        (5.0, ["--fail-flops", "0"], 1, "some are unknown"),
        (5.0, ["--fail-flops", "5%"], 0, "unchanged"),  # at most 105 of 100
        (5.0, ["--fail-flops", "0", "--allow-unknown"], 0, "(allowed)"),
        (math.nan, ["--fail-flops", "500%"], 1, "some are unknown"),
    ],
)
def test_unknown_flops_count_with_their_bound(outcome, bound, options, code, says):
    after = [*one_site(), UNKNOWN | {"flops_at_most": bound, "site_id": 1}]

    found, (line,) = outcome(make_run(one_site()), make_run(after), *options)

    assert found == code
    assert says in line


def test_flops_that_grew_fail_also_where_unknown_ones_are_allowed(outcome):
    before = make_run([*one_site(), UNKNOWN | {"flops_at_most": 5.0}])
    after = make_run([*one_site(104.0), UNKNOWN | {"flops_at_most": 5.0}])

    code, (line,) = outcome(before, after, "--fail-flops", "0", "--allow-unknown")

    assert code == 1
    assert "+4.0 %" in line


def test_flops_from_none_are_more(outcome):
    code, (line,) = outcome(make_run([]), make_run(one_site()), "--fail-flops", "50%")

    assert code == 1
    assert "from none" in line


@pytest.mark.parametrize(
    ("text", "share"), [("5%", 0.05), ("0", 0.0), ("0.05", 0.05), ("150 %", 1.5), (None, None)]
)
def test_a_share_is_a_fraction_or_a_percentage(text, share):
    assert share_of("--fail-slower", text) == share


@pytest.mark.parametrize("text", ["5", "-1%", "nan", "inf%", "", "%", "five"])
def test_what_may_be_meant_otherwise_is_refused(text):
    with pytest.raises(UsageError):
        share_of("--fail-slower", text)


def test_files_have_the_format_of_their_name_and_broken_rules_are_printed(tmp_path, capsys):
    folders = [
        str(make_run(one_site(flops)).save(tmp_path / name))
        for flops, name in ((100.0, "a"), (200.0, "b"))
    ]
    page = tmp_path / "diff.md"

    assert main(["diff", *folders, "-o", str(page), "--fail-flops", "0"]) == 1
    assert capsys.readouterr().out.startswith("--fail-flops 0%: 100 FLOPs → 200 FLOPs, × 2.00")
    text = page.read_text()
    assert "- **fails**: --fail-flops 0%" in text
    assert "| fc | 100 FLOPs | 200 FLOPs | 10.0 µs | 10.0 µs | = | FLOPs × 2.00 |" in text
    assert main(["diff", *folders, "-o", str(tmp_path / "d.json")]) == 0
    assert json.loads((tmp_path / "d.json").read_text())["rules"] == []
    assert main(["diff", *folders, "-o", str(tmp_path / "d.pdf")]) == 2


def test_rules_are_in_the_object(tmp_path, capsys):
    folder = str(make_run(one_site(), **STEADY).save(tmp_path / "a"))

    assert main(["diff", folder, folder, "--fail-flops", "0", "--fail-slower", "5%", "--json"]) == 0

    found = json.loads(capsys.readouterr().out)
    assert [(rule["name"], rule["holds"]) for rule in found["rules"]] == [
        ("--fail-slower 5%", True),
        ("--fail-flops 0%", True),
    ]
    assert (found["time"]["change_frac"], found["time"]["significance"]) == (0.0, "noise")


def test_a_growth_however_small_is_told_apart_from_none(outcome):
    runs = [make_run(one_site(flops)) for flops in (1e8, 1e8 + 100)]

    code, (line,) = outcome(*runs, "--fail-flops", "0")

    assert code == 1  # 100 in 10⁸ are 0.0001 %
    assert "+0.000100 %" in line
