"""Ops and models stepped through a CPU, beside their counts."""

import json
import math
from pathlib import Path

import jsonschema
import pandas as pd
import pytest
import torch
from torch import nn

from flopprof.capture.dispatched import OpOfModel
from flopprof.cli import main
from flopprof.errors import UsageError
from flopprof.executed.measured import MeasuredGaps, MeasuredOp, OwnWork, join_measured
from flopprof.executed.stepping import check_can_step
from flopprof.report.answer import schema
from flopprof.report.executed import executed_lines
from flopprof.run import Run
from flopprof.settings import Settings
from flopprof.stepped import default_calls, step_calls, step_model, step_ops
from tests.builders import has_op


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


def test_an_op_that_only_calls_others_is_compared_with_their_counts():
    (row,) = step_ops(["aten::einsum"], shapes=["'ij,jk->ik',[16x16,16x16]"])

    assert row.counted_matmul_flops == 8192  # 2·16³, of the product that the equation asks for
    assert row.conclusion.verdict == "exact"


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_a_packed_weight_whose_size_no_shape_tells_is_measured_and_not_compared_with_zero():
    weight = torch.quantize_per_tensor(torch.rand(16, 16), 0.05, 0, torch.qint8)
    packed = torch.ops.quantized.linear_prepack(weight, None)
    op = torch.ops.quantized.linear_dynamic.default

    (row,) = step_calls([OpOfModel(op, (torch.rand(16, 16), packed))])

    assert row.counted_matmul_flops is None
    assert row.conclusion.verdict == "measured"
    assert row.executed is not None
    assert row.executed.int_fma_ops >= 8192  # 2·16³


def test_stored_elements_alone_count_of_a_sparse_matrix():
    stored = torch.eye(16).to_sparse()
    op = torch.ops.aten._sparse_mm.default

    (row,) = step_calls([OpOfModel(op, (stored, torch.rand(16, 16)))])

    assert row.counted_matmul_flops == 512  # 16 stored elements, each with 16 columns, two each
    assert row.conclusion.verdict == "exact"


def test_bare_numbers_in_a_list_of_tensors_are_their_sizes():
    arguments = "2x1x8,1x1x8,[8x8,8x8,8,8],True,1,0.0,False,False,False"

    (row,) = step_ops(["aten::rnn_relu"], shapes=[arguments])

    assert row.counted_matmul_flops == 512  # 2 steps of 8·8 + 8·8 multiply-adds


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

    line = (
        "Executed",
        "stepping: each op has a formula, and no time is hidden: nothing was stepped",
    )
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
        (["aten::mm", "--shapes", "16xx16"], "--shapes 16xx16: '' is not a size"),
        (["aten::mm", "--train"], "--train does not go"),
        (["small.py:Net", "--device", "cpu", "--autocast", "bfloat16"], "--autocast does not go"),
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

    there = [call for call in default_calls() if has_op(call[0])]

    assert len(there) > 0.9 * len(default_calls())  # the others are of newer versions of torch
    for op, arguments in there:
        assert op_with_arguments(op, arguments, None).recorded.op == op


BETWEEN_OPS = """
import numpy
import torch
from torch import nn

class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 64)

    def forward(self, x):
        values = self.layer(x).numpy()
        return torch.from_numpy(values * values) + 1

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Inner()
        self.plain = nn.Linear(64, 64)

    def forward(self, x):
        return self.plain(self.inner(self.inner(x)))
"""


def test_work_between_ops_is_measured_without_the_ops_around_it(tmp_path, capsys):
    (tmp_path / "between.py").write_text(BETWEEN_OPS)
    folder = tmp_path / "out.flopprof"
    model = f"{tmp_path / 'between.py'}:Net"
    command = ["verify", model, "--input", "64x64", "--device", "cpu", "-o", str(folder)]

    assert main([*command, "--json"]) == 0

    answer = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator(schema()).validate(answer)
    (gap,) = [site for site in answer["sites"] if site["op"] == "(gap)"]
    assert (gap["module_path"], gap["verdict"]) == ("inner", "hidden")
    # numpy's 64·64 products in each of two calls; the layer's 2·64³ = 524,288 are none of them.
    assert gap["executed_flops"] == pytest.approx(2 * 4096, rel=0.02)
    assert (gap["flops"], gap["executed_source"], gap["joined_by"]) == (None, "stepping", "module")
    assert answer["executed"]["joined"] == {"module": 1}
    assert answer["executed"]["measured_flops"] == gap["executed_flops"]
    assert answer["executed"]["measured_frac"] > 0
    # Three layers of 2·64³ and their biases, and two sums: nothing of it changed.
    assert answer["flops"] == 3 * (524_288 + 4096) + 2 * 4096


def test_gaps_of_one_module_that_are_told_by_two_sites_are_not_told_apart():
    run = Run.load(SMALL)
    gap = run.sites.iloc[[0]].assign(op="(gap)", verdict="hidden", phase="forward", flops=math.nan)
    sites = pd.concat([gap, gap, run.sites], ignore_index=True)
    run = run.replaced(sites=sites.assign(site_id=range(len(sites))))
    path = gap["module_path"].iloc[0]

    joined = join_measured(run, [], {path: MeasuredGaps(OwnWork(0, 9, 0, 0))}).sites

    assert joined["executed_flops"].isna().all()
    assert "2 sites of hidden time in one module" in joined["executed_reason"].iloc[0]
    assert "9 FLOPs in all" in joined["executed_reason"].iloc[0]


def test_a_training_step_has_its_backward_pass_and_its_optimizer_stepped():
    model = nn.Sequential(nn.Linear(16, 16, bias=False), nn.ReLU(), nn.Linear(16, 16, bias=False))

    rows = step_model(model, Settings(input="16x16", train=True))

    products = [row for row in rows if row.counted_matmul_flops]
    # Forward x·Wᵀ of both layers; backward dW of both and dx of the second: each 2·16³.
    assert sum(row.calls * (row.counted_matmul_flops or 0) for row in products) == 5 * 8192
    assert {row.phase for row in products} == {"forward", "backward"}
    assert {row.conclusion.verdict for row in products} == {"exact"}
    relu_back = next(row for row in rows if row.op == "aten::threshold_backward")
    assert (relu_back.phase, relu_back.counted_vector_flops) == ("backward", 256)
    updates = [row for row in rows if row.phase == "optimizer"]
    assert {row.op for row in updates} == {"aten::add_"}  # SGD: w - lr·dw, an FMA for each element
    assert all(row.executed and row.executed.flops == 512 for row in updates)  # 2·16²
    assert "aten::equal" not in {row.op for row in rows}  # of our own bookkeeping


OWN_BACKWARD = """
import torch

@torch.library.custom_op("flopprof_trained::thrice", mutates_args=())
def thrice(x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(x.numpy() * 3)

@torch.library.custom_op("flopprof_trained::back", mutates_args=())
def back(gradient: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(gradient.numpy() * 3 * 5)

thrice.register_autograd(lambda _, gradient: torch.ops.flopprof_trained.back(gradient))

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(64, 64)

    def forward(self, x):
        return torch.ops.flopprof_trained.thrice(self.layer(x))
"""


def test_a_training_step_is_measured_forward_and_backward(tmp_path, capsys):
    (tmp_path / "trained.py").write_text(OWN_BACKWARD)
    model = f"{tmp_path / 'trained.py'}:Net"
    command = ["verify", model, "--input", "64x64", "--device", "cpu", "--train", "--json"]

    assert main([*command, "-o", str(tmp_path / "out.flopprof")]) == 0

    answer = json.loads(capsys.readouterr().out)
    sites = {site["op"]: site for site in answer["sites"]}
    forward, backward = (sites[f"flopprof_trained::{name}"] for name in ("thrice", "back"))
    assert (forward["phase"], backward["phase"]) == ("forward", "backward")
    # numpy's 64·64 products: one each forward, two each backward; a few of Python's beside them.
    assert forward["executed_flops"] == pytest.approx(4096, rel=0.02)
    assert backward["executed_flops"] == pytest.approx(2 * 4096, rel=0.02)
