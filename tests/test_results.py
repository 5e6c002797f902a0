"""What results/ holds: tables that fit their declaration, counts that come out again today."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torchvision

import flopprof
from flopprof.tables import SITES

RESULTS = Path(__file__).resolve().parents[1] / "results"
TABLES = sorted(path for path in RESULTS.glob("*/*.csv") if path.with_suffix(".png").exists())


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


@pytest.mark.parametrize("path", TABLES, ids=name_of)
def test_a_table_fits_its_declaration_and_says_how_it_was_made(path):
    sites = SITES.read_csv(path)
    about = json.loads((path.parent / "meta.json").read_text())

    assert len(sites) > 0
    assert about["commit"]
    assert about["command"].startswith("scripts/make_results.py")
    run = about["runs"][path.stem]
    assert run["device"]["name"]
    assert run["totals"]["flops"] == sites["flops"].sum()
    # Nothing that a CPU did stands under a GPU's name, nor the other way round.
    assert path.parent.name.startswith("cpu") == (run["device"]["kind"] == "cpu")


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [p for p in TABLES if p.stem in torchvision.models.list_models()], ids=name_of
)
def test_the_counts_come_out_again(path):
    saved = SITES.read_csv(path)
    about = json.loads((path.parent / "meta.json").read_text())["runs"][path.stem]
    model = torchvision.models.get_model(path.stem).eval()

    again = flopprof.count_flops(model, about["input"]).run.sites

    columns = ["matmul_flops", "vector_flops"]
    assert saved[columns].sum().to_dict() == again[columns].sum().to_dict()
    # Site by site, but for attention: fused on the CPU, made of products on the meta device.
    saved, again = (
        sites[~sites["module_path"].str.contains("attention")] for sites in (saved, again)
    )
    pd.testing.assert_frame_equal(
        *(
            sites[sites["flops"] > 0].groupby(["op", "module_path"])[columns].sum()
            for sites in (saved, again)
        )
    )


def test_there_are_results():
    assert TABLES
