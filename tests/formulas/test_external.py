"""Formulas from elsewhere: files of the user's, and torch's own registry."""

import json
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import register_flop_formula

import flopprof
from flopprof.cli import main
from flopprof.errors import FlopprofError
from flopprof.formulas import OpCall, Work, kind_of, looks_below, op_formula
from flopprof.formulas.external import find_op_formula, load_formulas, source_of


@torch.library.custom_op("flopproftest::product", mutates_args=())
def product(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.matmul(x, y)


@product.register_fake
def _(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape[0], y.shape[1])


@register_flop_formula(torch.ops.flopproftest.product)
def product_flops(x_shape: Any, y_shape: Any, *, out_shape: Any = None, **_: Any) -> int:
    assert tuple(out_shape) == (x_shape[0], y_shape[1])
    return int(2 * x_shape[0] * x_shape[1] * y_shape[1])


class Product(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = product(x, x.t())
        return out


def test_a_formula_registered_with_torch_is_picked_up_and_named_as_the_source():
    count = flopprof.count_flops(Product(), (3, 5))

    sites = count.run.sites.set_index("op")
    assert sites.loc["flopproftest::product", "flops_source"] == "torch"
    assert sites.loc["flopproftest::product", "verdict"] == "extension"
    assert count.matmul_flops == 2 * 3 * 5 * 3
    # torch's formula says nothing of bytes: not known, not zero.
    assert sites.loc["flopproftest::product", ["min_bytes"]].isna().all()


def test_torchs_own_formulas_supply_nothing():
    assert find_op_formula("aten::_no_such_op") is None
    assert source_of("aten::_no_such_op") == "none"
    for own in ("aten::mm", "aten::relu", "aten::view", "aten::softmax", "aten::_foreach_add_"):
        assert source_of(own) == "formula"


def test_every_formula_says_how_it_is_defined(capsys):
    assert main(["formulas", "--json"]) == 0

    found = json.loads(capsys.readouterr().out)["formulas"]

    assert len(found) > 1000
    for entry in found:
        assert entry["doc"], entry
        assert "partial" not in entry["doc"], entry
        assert entry["source"].startswith("flopprof/formulas/"), entry
    by_name = {entry["name"]: entry for entry in found}
    assert by_name["aten::softmax"]["doc"].startswith(
        "5 FLOPs (maximum; subtract; exp; sum; divide)"
    )
    assert by_name["torch.nn.GRU"]["kind"] == "module"


FORMULAS = """
import flopprof
from flopprof.formulas import Work

@flopprof.op_formula("flopproftest::twice")
def twice(call):
    return Work(vector_flops=call.shape(0)[0])
"""


def test_formulas_lists_kernels_and_claims_nothing_of_a_formula_without_a_docstring(
    tmp_path, capsys
):
    path = tmp_path / "listed.py"
    path.write_text(
        "import flopprof\nfrom flopprof.formulas import Work\n"
        '@flopprof.op_formula("listed_lib::bare")\n'
        "def bare(call):\n    return Work(vector_flops=7)\n"
        '@flopprof.kernel_formula("listed_lib_kernel")\n'
        'def kernel(call):\n    """Seven a launch."""\n    return Work(vector_flops=7)\n'
    )

    assert main(["formulas", "listed_lib", "--formulas", str(path)]) == 0

    bare, kernel = capsys.readouterr().out.splitlines()
    assert bare.split(maxsplit=1) == ["listed_lib::bare", "It says nothing of itself."]
    assert kernel.split(maxsplit=1) == ["listed_lib_kernel", "Seven a launch."]


def test_a_file_of_formulas_is_the_users_and_is_loaded_once(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FORMULAS)

    load_formulas(path)
    load_formulas(path)

    assert source_of("flopproftest::twice") == "user"


def test_the_kind_of_a_users_formula_is_what_he_says_and_not_his_files_name(tmp_path):
    path = tmp_path / "attention.py"
    named = FORMULAS.replace("flopproftest::twice", "flopproftest::thrice")
    said = '@flopprof.op_formula("flopproftest::scores", kind="reduction")'
    path.write_text(f"{named}\n{said}\ndef scores(call):\n    return Work()\n")

    load_formulas(path)

    assert kind_of("flopproftest::thrice") == "other"
    assert kind_of("flopproftest::scores") == "reduction"


def test_a_function_that_claims_to_be_of_the_package_is_still_the_users():
    def four_times(call: OpCall) -> Work:
        return Work(vector_flops=4)

    four_times.__module__ = "flopprof.formulas.ops.matmul"
    op_formula("flopproftest::four_times")(four_times)

    formula = find_op_formula("flopproftest::four_times")

    assert formula is not None
    assert (formula.name, formula.kind, formula.source) == (
        *("flopproftest::four_times", "other", "user"),
    )
    assert not formula.looks_below


def test_a_kind_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="there is no kind 'matrix'"):
        op_formula("flopproftest::none", kind="matrix")


def test_an_op_whose_padding_may_be_text_looks_below_and_others_do_not():
    assert looks_below("aten::conv2d")
    assert looks_below("aten::einsum")
    assert looks_below("aten::_foreach_exp")
    assert not looks_below("aten::convolution")
    assert not looks_below("aten::mm")
    assert not looks_below("aten::_no_such_op")


@pytest.mark.parametrize(
    ("name", "text", "fact"),
    [
        ("none.py", None, "there is no file"),
        ("broken.py", "1/0", "raised ZeroDivisionError"),
        ("taken.py", FORMULAS.replace("flopproftest::twice", "aten::mm"), "two implementations"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, name, text, fact):
    if text is not None:
        (tmp_path / name).write_text(text)

    with pytest.raises(FlopprofError, match=fact) as caught:
        load_formulas(tmp_path / name)

    assert name in caught.value.problem
