"""Ops and models stepped through a CPU, beside their counts."""

import json
from pathlib import Path

import jsonschema
import pandas as pd
import pytest
import torch
from torch import nn

from flopprof.cli import main
from flopprof.errors import UsageError
from flopprof.executed.measured import MeasuredOp, OwnWork, join_measured
from flopprof.executed.stepping import check_can_step
from flopprof.report.answer import schema
from flopprof.report.executed import executed_lines
from flopprof.run import Run
from flopprof.settings import Settings
from flopprof.stepped import default_calls, step_model, step_ops


@pytest.fixture(scope="module", autouse=True)
def _can_step():
    try:
        check_can_step()
    except UsageError as error:
        pytest.skip(f"calls cannot be stepped: {error.problem}")


def test_a_product_executes_two_flops_per_multiply_add_as_json(capsys):
    threads = torch.get_num_threads()
    command = ["verify", "aten::mm", "--device", "cpu", "--json", "--shapes", "16x16,16x16"]

    assert main(command) == 0

    answer = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator(schema()).validate(answer)
    (op,) = answer["ops"]
    assert op.keys() == schema()["$defs"]["SteppedCall"]["properties"].keys()
    assert (op["op"], op["dtype"]) == ("aten::mm", "float32")
    assert op["shapes"] == "16x16, 16x16"
    assert op["counted_matmul_flops"] == 8192  # 2·16³
    assert op["executed_fma_flops"] == 8192
    assert op["undecoded_instructions"] == 0
    assert (op["ratio"], op["verdict"], op["reason"]) == (1, "exact", None)
    assert torch.get_num_threads() == threads


def test_an_op_without_a_formula_is_measured():
    library = torch.library.Library("flopprof_stepped", "DEF")
    library.define("thrice(Tensor x) -> Tensor")
    library.impl("thrice", lambda x: x * 3, "CPU")

    (row,) = step_ops(["flopprof_stepped::thrice"], shapes=["64x16"])

    assert row.conclusion.verdict == "measured"
    assert row.counted_matmul_flops is None
    assert row.executed is not None
    assert row.executed.flops == 1024  # 64·16 products
    library._destroy()


def test_the_distinct_ops_of_a_model_are_stepped_once():
    layer = nn.Linear(16, 16, bias=False).eval()
    model = nn.Sequential(layer, nn.ReLU(), layer)

    rows = step_model(model, Settings(input="16x16"))

    product, relu = rows
    assert (product.calls, product.module_path) == (2, "0")
    assert product.counted_matmul_flops == 8192  # 2·16³
    assert product.conclusion.verdict == "exact"
    assert (relu.op, relu.module_path) == ("aten::relu", "1")
    assert relu.executed is not None
    assert relu.executed.flops == 256  # one maximum per element


OWN_OPS = """
import torch

library = torch.library.Library("flopprof_own", "DEF")
library.define("inner(Tensor x) -> Tensor")
library.impl("inner", lambda x: torch.from_numpy(x.numpy() * 3), "CPU")
library.define("outer(Tensor x) -> Tensor")
library.impl("outer", lambda x: torch.ops.flopprof_own.inner(x + 1) + 1, "CPU")

class Net(torch.nn.Module):
    def forward(self, x):
        return torch.ops.flopprof_own.outer(torch.ops.flopprof_own.outer(x))
"""


def test_a_run_says_what_ops_without_formula_executed_without_the_ops_below(tmp_path, capsys):
    (tmp_path / "own.py").write_text(OWN_OPS)  # a second time, torch refuses to define its ops
    folder = tmp_path / "out.flopprof"
    model = f"{tmp_path / 'own.py'}:Net"
    command = ["verify", model, "--input", "64x64", "--device", "cpu", "-o", str(folder)]

    assert main([*command, "--json"]) == 0

    answer = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator(schema()).validate(answer)
    sites = {site["op"]: site for site in answer["sites"]}
    inner = sites["flopprof_own::inner"]
    # numpy's 64·64 products, in each of two calls; a few of Python's own beside them.
    assert inner["executed_flops"] == pytest.approx(2 * 4096, rel=0.01)
    assert (inner["calls"], inner["flops"], inner["executed_source"]) == (2, None, "stepping")
    # The sums are aten::add's, the product is inner's: nothing of it is outer's.
    assert sites["flopprof_own::outer"]["executed_flops"] < 0.01 * 4096
    assert answer["executed"]["joined"] == {"shapes": 2}
    assert answer["executed"]["sites_stepped"] == 2
    assert answer["flops"] == 4 * 4096  # what is counted, as before: two sums in each of two calls
    assert str(folder / "sites.csv") in answer["files"]


SMALL = Path(__file__).parent / "runs" / "small.flopprof"


def test_a_run_whose_ops_all_have_formulas_says_that_none_was_stepped():
    run = Run.load(SMALL)
    run = run.replaced(sites=run.sites[run.sites["verdict"] != "extension"])

    joined = join_measured(run, [])

    line = ("Executed", "stepping: each op has a formula, so that none was stepped")
    assert line in executed_lines(joined)


@pytest.mark.parametrize(
    ("stepped", "flops", "fact"),
    [
        ([("elsewhere", 1, 7)], 7, ""),  # called from a module of another name
        ([("elsewhere", 1, 7), ("elsewhere", 1, 9)], None, "2 stepped calls that differ"),
        ([], None, "no call of it was found"),
    ],
)
def test_a_site_has_what_its_calls_executed_or_says_why_not(stepped, flops, fact):
    run = Run.load(SMALL)
    site = run.sites[run.sites["op"] == "mylib::twice"].iloc[0]
    assert site["calls"] == 1
    measured = [
        MeasuredOp("mylib::twice", site["input_shapes"], path, calls, OwnWork(0, each, 0, 0))
        for path, calls, each in stepped
    ]

    sites = join_measured(run, measured).sites

    executed = sites[sites["op"] == "mylib::twice"].iloc[0]
    assert (None if pd.isna(executed["executed_flops"]) else executed["executed_flops"]) == flops
    assert fact in executed["executed_reason"]
    assert executed["executed_source"] == ("stepping" if flops else "")
    assert sites["flops"].equals(run.sites["flops"])


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        (["aten::none_such"], "no op aten::none_such"),
        (["aten::mm", "--shapes", "16x16"], "takes other arguments"),
        (["aten::mm", "--shapes", "16x16,17x16"], "aten::mm raised RuntimeError"),
        (["aten::mm", "--shapes", "2048x2048,2048x2048"], "to step"),
        (["aten::cumsum"], "no default sizes"),
        (["aten::mm", "--train"], "--train does not go"),
        (["aten::mm", "--device", "cuda"], "stepped on a CPU"),
        (["aten::mm", "model.pt"], "model.pt is no op"),
    ],
)
def test_what_cannot_be_stepped_is_told_with_a_way_out(arguments, fact, capsys):
    code = main(["verify", *arguments])

    assert code in (2, 6)
    told = capsys.readouterr().err
    assert fact in told
    assert "Traceback" not in told


def test_the_default_arguments_fit_their_ops():
    from flopprof.capture.dispatched import op_with_arguments

    for op, arguments in default_calls():
        assert op_with_arguments(op, arguments, None).recorded.op == op
