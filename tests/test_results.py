"""What results/ holds: tables that fit their declaration, counts that come out again today."""

import importlib.util
import json
from pathlib import Path

import msgspec
import pandas as pd
import pytest

import flopprof
from flopprof.metafile import decode
from flopprof.provenance import AnyProvenance
from flopprof.tables import ROOFLINES, SITES
from tests.builders import has_op

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = sorted(path.parent for path in (ROOT / "results").glob("*/*/sites.csv"))


def name_of(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


def make_results():
    """The script's module; skips where the models' libraries are missing."""
    for library in ("torchvision", "transformers", "PIL"):
        pytest.importorskip(library)
    path = ROOT / "scripts" / "make_results.py"
    spec = importlib.util.spec_from_file_location("make_results", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def saved_provenance(folder: Path) -> AnyProvenance:
    """What a result says of itself; before version 2 the script's own facts stood among them."""
    facts = json.loads((folder / "meta.json").read_bytes())
    provenance = decode(json.dumps({"schema_version": 1} | facts).encode())
    if "schema_version" in facts:
        return provenance
    extra = {name: facts[name] for name in ("commit", "command", "load")}
    environment = msgspec.structs.replace(provenance.environment, extra=extra)
    return msgspec.structs.replace(provenance, environment=environment)


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_the_files_fit_their_tables_and_say_how_they_were_made(folder):
    sites = SITES.read_csv(folder / "sites.csv")
    rooflines = ROOFLINES.read_csv(folder / "rooflines.csv")
    points = pd.read_csv(folder / "points.csv")
    provenance = saved_provenance(folder)
    about = provenance.environment

    assert len(sites) > 0
    assert about.extra["commit"]
    assert about.extra["command"].startswith("scripts/make_results.py")
    assert provenance.device.name
    assert provenance.totals is not None
    assert provenance.totals.flops == sites["flops"].sum()
    # Every site's time is on the chart: points, "other" and rug add up to 100 %.
    on_chart = points.query("place != 'run'")
    assert on_chart["share_frac"].sum() == pytest.approx(1.0)
    assert on_chart["time_us"].sum() == pytest.approx(sites["time_us"].sum())
    # Nothing that a CPU did stands under a GPU's name, nor the other way round.
    assert folder.parent.name.startswith("cpu") == (provenance.device.kind == "cpu")
    assert rooflines["valid"].all()
    assert (folder / "roofline.png").stat().st_size < 500_000


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_no_site_exceeds_its_roof_by_five_percent_unless_its_row_says_why(folder):
    sites = SITES.read_csv(folder / "sites.csv")

    above = sites[sites["efficiency_frac"] > 1.05]

    assert above["reason"].str.contains("above the (?:compute|memory) roof: ").all()


# What a compiled model fuses has no count of its own; detection's FLOPs depend on how many boxes
# it keeps.
NOT_REPEATABLE = ("detection", "resnet18_compiled")
REPEATABLE = [f for f in FOLDERS if f.parent.name == "cpu" and f.name not in NOT_REPEATABLE]


@pytest.mark.slow
@pytest.mark.parametrize("folder", REPEATABLE, ids=name_of)
def test_the_counts_come_out_again(folder):
    saved = SITES.read_csv(folder / "sites.csv")
    model, inputs = make_results().build(folder.name)

    again = flopprof.count_flops(model, inputs)

    columns = ["matmul_flops", "vector_flops"]
    if folder.name == "moe":  # transformers counts tokens in floats on a CPU, else in integers
        columns.remove("vector_flops")
    assert saved[columns].sum().to_dict() == again.run.sites[columns].sum().to_dict()


def test_there_are_results_of_twelve_models():
    models = {folder.name for folder in FOLDERS if folder.parent.name == "cpu"}

    assert models == {*make_results().MODELS}
    assert len(models) == 12


def test_what_a_cpu_executed_stands_beside_counts_that_come_out_again():
    from flopprof.capture.dispatched import op_with_arguments
    from flopprof.stepped import count_call, default_calls

    rows = pd.read_csv(ROOT / "results" / "executed.csv")
    as_text = set(default_calls())

    for row in rows.itertuples(index=False):
        if (row.op, row.arguments) not in as_text:
            continue  # of packed or sparse tensors, by scripts/executed/packed_calls.py
        if not has_op(row.op):
            continue  # of a newer torch
        dtype = None if ":" in row.arguments else row.dtype
        counted = count_call(op_with_arguments(row.op, row.arguments, dtype))
        told = (row.counted_matmul_flops, row.counted_vector_flops)
        if counted.matmul_flops is None:
            assert pd.isna(told[0]), row
        else:
            assert (counted.matmul_flops, counted.vector_flops) == told, row
    exact = rows[(rows["counted_matmul_flops"] > 0) & (rows["verdict"] == "exact")]
    multiply_adds = exact[["executed_fma_flops", "executed_int_fma_ops"]].max(axis=1)
    assert (multiply_adds == exact["counted_matmul_flops"]).all()
    assert (rows["cpu"] != "").all()
    assert sum(map(has_op, set(rows["op"]))) > 0.9 * rows["op"].nunique()


def test_every_op_with_products_was_stepped_or_a_reason_says_why_not():
    from flopprof.formulas import OP_FORMULAS, load_op_formulas

    load_op_formulas()
    kinds = ("matmul", "convolution", "attention", "recurrent")
    of_products = {op for op, formula in OP_FORMULAS.items() if formula.kind in kinds}
    rows = pd.read_csv(ROOT / "results" / "executed.csv")
    without = pd.read_csv(ROOT / "results" / "executed_none.csv", keep_default_na=False)

    assert of_products - set(rows["op"]) == set(without["op"])
    assert (without["reason"] != "").all()
    assert set(rows["verdict"]) <= {"exact", "explained", "measured"}
    assert {"float32", "float64", "bfloat16", "int8"} <= set(rows["dtype"])
