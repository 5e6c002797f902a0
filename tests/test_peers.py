"""The comparison with other tools: README and page say what the table says."""

import itertools
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
EVERY = 4  # cases that are counted again here; scripts/bench_peers.py counts them all


@pytest.fixture
def peers(monkeypatch):
    """The modules of scripts/peers."""
    pytest.importorskip("torchvision")
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from peers import cases, page, table, tools, verdict

    return SimpleNamespace(cases=cases, page=page, table=table, tools=tools, verdict=verdict)


@pytest.fixture
def rows(peers):
    if not (RESULTS / "peers.csv").exists():
        pytest.skip("results/peers.csv is not there; scripts/bench_peers.py writes it")
    return peers.table.read_csv((RESULTS / "peers.csv").read_text())


def test_the_page_is_what_the_table_makes_of_it(peers, rows):
    page = (RESULTS / "peers.md").read_text()

    assert page == peers.page.write_page(rows)
    assert "not explained" not in page


def test_readme_quotes_the_summary_of_the_page(peers, rows):
    readme = " ".join((ROOT / "README.md").read_text().split())

    assert peers.page.summary(rows).strip().rstrip(".") in readme
    assert "(results/peers.md)" in readme


def test_every_tool_has_a_row_on_every_case_derived_by_hand(peers, rows):
    cases = peers.cases.all_cases()
    by_hand = {(row.tool, row.case) for row in rows if row.family in peers.cases.FAMILIES}

    assert by_hand == set(itertools.product(peers.tools.TOOLS, cases))
    assert len(cases) >= 120
    assert {row.right_flops for row in rows if row.case in cases} == {
        str(case.flops) for case in cases.values()
    }


def test_a_verdict_tells_silence_from_what_is_said(peers):
    case = SimpleNamespace(
        flops=100, also=(50,), within=0.0, rounding_flops=0, vector_flops=8, elementwise_frac=0.0
    )

    def verdict(mixes=False, **answer):
        return peers.verdict.judge(case, {"left_out": [], **answer}, mixes=mixes)

    assert verdict(flops=100) == verdict(flops=50) == "exact"
    assert verdict(flops=96) == verdict(flops=116) == verdict(flops=119, mixes=True) == "off"
    assert verdict(flops=98) == "exact"  # by a multiply-add, since some tools print rounded figures
    assert verdict(flops=116, mixes=True) == "exact"  # elementwise work, doubled with the rest
    assert verdict(flops=0) == "zero"
    assert verdict(flops=0, left_out=["aten::lstm"]) == verdict(flops=None) == "told"
    assert verdict(error="ValueError") == "crash"
    assert verdict(refused="NotImplementedError") == "refused"


def test_a_published_figure_with_elementwise_work_lies_between_contractions_and_all(peers):
    case = SimpleNamespace(
        flops=1000, also=(), within=0.01, rounding_flops=0, vector_flops=0, elementwise_frac=0.2
    )

    def verdict(**answer):
        return peers.verdict.judge(case, {"left_out": [], **answer}, mixes=False)

    assert verdict(flops=800) == verdict(flops=1010) == "exact"  # contractions alone
    assert verdict(flops=799) == verdict(flops=1011) == "off"
    # 900 + 2·45 = 990, the table's figure but for rounding: elementwise work is doubled, too.
    assert verdict(flops=900, all_work=945) == "exact"
    assert verdict(flops=900, all_work=944) == "off"  # all work there is does not reach it


NOT_HERE = ("extension_calls_torch", "extension_own_loops", "compiled_inductor", "sharded_linear")


@pytest.mark.slow
def test_our_counts_of_some_cases_come_out_again(peers, rows):
    ours = {row.case: row for row in rows if row.tool == "flopprof"}
    tool = peers.tools.TOOLS["flopprof"]
    chosen = list(peers.cases.all_cases().items())[::EVERY]

    for name, row in ours.items():
        if row.verdict == "exact" and row.family in peers.cases.FAMILIES:
            case = peers.cases.all_cases()[name]
            assert int(row.flops) in (case.flops, *case.also), name
    for name, case in chosen:
        if name in NOT_HERE or case.library:
            continue
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            answer = tool.count(case.build())
        assert f"{answer.flops:.0f}" == ours[name].flops, name
