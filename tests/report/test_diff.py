"""`flopprof diff` on saved runs."""

import json
import math
import subprocess
import sys

import pytest
import torch
from torch import nn

import flopprof
from flopprof.cli import main
from flopprof.report.diff import compared
from flopprof.report.difftext import compared_markdown, compared_text, figure_rows
from tests.builders import make_run


def row(op, path, flops, time_us, **more):
    site = {"op": op, "module_path": path, "phase": "forward", "calls": 1, "verdict": "agrees"}
    known = {"matmul_flops": flops, "vector_flops": flops * 0, "flops": flops, "kind": "matmul"}
    return site | known | {"time_us": time_us, "time_share_frac": 0.5, "reason": ""} | more


BEFORE = [row("aten::mm", "a", 100.0, 10.0), row("aten::mm", "b", 50.0, 5.0)]
AFTER = [
    row("aten::mm", "a", 400.0, 30.0, input_shapes="4x5"),
    row("aten::add", "b", math.nan, 4.0),
]


def test_sites_are_joined_whatever_their_shapes():
    found = compared(make_run(BEFORE), make_run(AFTER))

    sites = {(site["op"], site["module_path"]): site for site in found["sites"]}
    assert sites["aten::mm", "a"]["flops"] == [100.0, 400.0]
    assert sites["aten::mm", "a"]["time_us"] == [10.0, 30.0]
    changes = {key: site["change"] for key, site in sites.items()}
    assert changes == {
        ("aten::mm", "a"): "changed",
        ("aten::mm", "b"): "removed",
        ("aten::add", "b"): "added",
    }
    assert found["totals"]["matmul_flops"] == [150, 400]
    # |Δ time|: 20 of mm in a, 5 gone, 4 come.
    order = [(site["op"], site["module_path"]) for site in found["sites"]]
    assert order == [("aten::mm", "a"), ("aten::mm", "b"), ("aten::add", "b")]


def test_what_only_one_run_has_is_null_and_unknown_is_not_zero(tmp_path, capsys):
    folders = [str(make_run(s).save(tmp_path / n)) for s, n in ((BEFORE, "a"), (AFTER, "b"))]

    assert main(["diff", *folders, "--json"]) == 0

    found = json.loads(capsys.readouterr().out)
    [added] = [site for site in found["sites"] if site["change"] == "added"]
    assert added["calls"] == [None, 1.0]
    assert added["flops"] == [None, None]
    assert found["totals"]["flops_at_most"][1] is None


def test_a_run_is_the_same_as_itself_and_the_text_fits(tmp_path, capsys):
    folders = [str(make_run(s).save(tmp_path / n)) for s, n in ((BEFORE, "a"), (AFTER, "b"))]

    assert main(["diff", folders[0], folders[0]]) == 0
    assert "sites: 2 same, 0 changed, 0 added, 0 removed" in capsys.readouterr().out
    assert main(["diff", *folders]) == 0
    out = capsys.readouterr().out
    assert "sites: 0 same, 1 changed, 1 added, 1 removed" in out
    assert "10.0 µs     30.0 µs   × 3.00" in out
    assert max(map(len, out.splitlines()[1:])) <= 100
    assert main(["diff", folders[0], str(tmp_path / "none")]) == 2


@pytest.mark.parametrize(
    ("after_us", "told"),
    [(51.0, "−49.0 %"), (50.0, "× 0.500"), (199.0, "+99.0 %"), (200.0, "× 2.00")],
)
def test_from_twice_or_half_on_a_change_is_told_as_a_ratio(after_us, told):
    runs = [make_run([row("aten::mm", "a", 100.0, time_us)]) for time_us in (100.0, after_us)]

    text = compared_text(compared(*runs), ("before", "after"))

    [line] = [line for line in text.splitlines() if line.startswith("a mm")]
    assert told in line


def test_no_torch(tmp_path):
    folder = str(make_run(BEFORE).save(tmp_path / "a"))
    page = str(tmp_path / "diff.md")
    code = (
        "import sys; from flopprof.cli import main; "
        f"main(['diff', {folder!r}, {folder!r}, '-o', {page!r}, '--fail-flops', '0']);"
        f"main(['diff', {folder!r}, {folder!r}, '--fail-slower', '5%']);"
        "assert 'torch' not in sys.modules"
    )

    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_site_without_calls_in_both_runs_is_the_same():
    hidden = {"op": "(gap)", "module_path": "net", "calls": 0, "verdict": "hidden", "site_id": 0}

    [site] = compared(make_run([hidden]), make_run([hidden]))["sites"]

    assert site["change"] == "same"
    assert site["calls"] == [0, 0]


def layers(last=4, dtype=torch.float32):
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, last)).to(dtype)


def test_a_widened_layer_is_exactly_what_changed():
    runs = [flopprof.count_flops(layers(last), (2, 6)).run for last in (4, 8)]

    found = compared(*runs)

    # 2·5·4 multiply-adds × 2 = 80, and 2·4 biases: 88; twice as wide, twice as many.
    changed = [(m["module_path"], m["flops"]) for m in found["modules"] if m["change"] != "same"]
    assert changed == [("2", [88.0, 176.0])]
    assert [m["module_path"] for m in found["modules"]].count("") == 1
    assert found["conditions"] == []
    assert [op["change"] for op in found["ops"] if op["op"] == "aten::linear"] == ["changed"]


def test_the_element_type_is_the_first_condition_that_differs(capsys, tmp_path):
    dtypes = (torch.float32, torch.bfloat16)
    folders = []
    for name, dtype in zip("ab", dtypes, strict=True):
        run = flopprof.count_flops(layers(dtype=dtype), torch.zeros(2, 6, dtype=dtype)).run
        folders.append(str(run.save(tmp_path / name)))

    assert main(["diff", *folders, "--fail-flops", "0"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[2:4] == ["conditions that differ:", "  dtype         float32 → bfloat16"]
    assert "modules: 4 same, 0 changed, 0 added, 0 removed" in lines


def test_conditions_are_those_of_the_provenance():
    before = make_run(BEFORE, dtype="float32", train=False, torch="2.10.0", input="1x3")
    device = {"name": "a CPU", "kind": "cpu", "threads": 4}
    after = make_run(
        BEFORE, train=True, torch="2.11.0", input="2x3", device=device, autocast="bf16"
    )

    found = compared(before, after)["conditions"]

    assert [(one["name"], one["before"], one["after"]) for one in found] == [
        ("autocast", None, "bf16"),
        ("train", False, True),
        ("input", "1x3", "2x3"),
        ("threads", 2, 4),
        ("torch", "2.10.0", "2.11.0"),
    ]


def test_a_module_that_only_one_run_has_is_added_or_removed():
    found = compared(make_run(BEFORE), make_run([*BEFORE, row("aten::mm", "c", 7.0, 1.0)]))

    changes = {module["module_path"]: module["change"] for module in found["modules"]}
    assert changes == {"a": "same", "b": "same", "c": "added"}
    assert found["ops"][0]["calls"] == [2.0, 3.0]


def test_names_become_no_markup():
    sites = [row("aten::mm", "<img src=x>|`a`", 1.0, 1.0)]

    text = compared_markdown(compared(make_run([]), make_run(sites)), ("a|b", "*c*"))

    assert "<img" not in text
    assert "### flopprof: a\\|b → \\*c\\*" in text
    assert "added" in text


def test_a_rate_is_noise_where_only_the_time_changed():
    wall = {"wall_us": {"median": 50.0, "p5": 40.0, "p95": 60.0}, "repeats": 100, "samples": 4}
    later = wall | {"wall_us": {"median": 55.0, "p5": 45.0, "p95": 65.0}}
    moved = {"min_bytes": 400.0}
    before = make_run([BEFORE[0] | moved], **wall)
    same_bytes = make_run([BEFORE[0] | moved], **later)
    half_bytes = make_run([BEFORE[0] | {"min_bytes": 200.0}], **later)

    def told(after):
        rows = figure_rows(compared(before, after))
        return {name: change for name, _, change in rows}["achieved_bytes_per_s"]

    # 400 B in 50 µs are 8 MB/s, in 55 µs 7.27: 9.1 % less; 200 B in 55 µs 3.64: × 0.455.
    assert told(same_bytes) == "−9.1 % (noise)"
    assert told(half_bytes) == "× 0.455"


def test_what_changed_is_listed_before_what_may_have():
    unsure = {"time_p5_us": math.nan, "time_p95_us": math.nan, "samples": 1}
    before = [row("aten::mm", "slow", 10.0, 10.0, **unsure), row("aten::mm", "b", 5.0, 5.0)]
    after = [row("aten::mm", "slow", 10.0, 90.0, **unsure), row("aten::mm", "b", 6.0, 5.0)]

    text = compared_text(compared(make_run(before), make_run(after)), ("before", "after"))

    sites = text.partition("sites: ")[2].splitlines()
    assert [line.split()[0] for line in sites[1:3]] == ["b", "slow"]
    assert sites[2].endswith("spread unknown")  # one traced call has none


def test_one_site_more_is_one_site():
    one_more = row("aten::mm", "c", 7.0, 1.0)

    text = compared_text(compared(make_run(BEFORE), make_run([*AFTER, one_more])), ("a", "b"), 3)

    # Four sites differ: mm in a, mm in b, add in b, mm in c; three are listed.
    assert "… and 1 site more: see --json" in text
