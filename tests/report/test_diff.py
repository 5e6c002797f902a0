"""`flopprof diff` on saved runs."""

import json
import math
import subprocess
import sys

import pytest

from flopprof.cli import main
from flopprof.report.diff import compared, compared_text
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
    code = (
        "import sys; from flopprof.cli import main; "
        f"main(['diff', {folder!r}, {folder!r}]); assert 'torch' not in sys.modules"
    )

    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_site_without_calls_in_both_runs_is_the_same():
    hidden = {"op": "(gap)", "module_path": "net", "calls": 0, "verdict": "hidden", "site_id": 0}

    [site] = compared(make_run([hidden]), make_run([hidden]))["sites"]

    assert site["change"] == "same"
    assert site["calls"] == [0, 0]
