"""Specs with another batch, or pictures of another size."""

import pytest
import torch

import flopprof
from flopprof.errors import UsageError
from flopprof.model.resize import resized
from flopprof.settings import Settings


@pytest.mark.parametrize(
    ("texts", "changes", "expected"),
    [
        (["1x3x224x224"], {"batch": 8}, ["8x3x224x224"]),
        (["1x3x224x224"], {"input_size": 160}, ["1x3x160x160"]),
        (["2x3x224x192:float16"], {"batch": 1, "input_size": 64}, ["1x3x64x64:float16"]),
        (["ids=1x128:int64:0-99", "mask=1x128:bool"], {"batch": 4},
         ["ids=4x128:int64:0-99", "mask=4x128:bool"]),
        (["1x4x64x64", "1:int64", "1x77x768"], {"batch": 2}, ["2x4x64x64", "2:int64", "2x77x768"]),
        (["4x8", "8x8"], {"batch": 2}, ["2x8", "8x8"]),  # the second is no batch
        (["1x3x8x8", "1x16:int64"], {"input_size": 4}, ["1x3x4x4", "1x16:int64"]),
        (["()"], {}, ["()"]),
    ],
)  # fmt: skip
def test_sizes_change_where_they_are_the_batch_or_the_picture(texts, changes, expected):
    assert resized(texts, **changes) == expected


@pytest.mark.parametrize(
    ("texts", "changes"),
    [(["()"], {"batch": 2}), ([], {"batch": 2}), (["1x128:int64"], {"input_size": 32})],
)
def test_a_size_that_no_input_has_is_refused(texts, changes):
    with pytest.raises(UsageError, match="input"):
        resized(texts, **changes)


def test_a_batch_multiplies_the_work_of_a_model_whose_input_is_known():
    one = flopprof.count_flops("torchvision:alexnet", batch=1)
    two = flopprof.count_flops("torchvision:alexnet", batch=2)

    assert two.flops == 2 * one.flops
    assert two.run.provenance.called.samples == 2


def test_inputs_that_are_given_are_not_changed_in_silence():
    with pytest.raises(UsageError, match="and these are"):
        flopprof.count_flops(torch.nn.Linear(8, 4), (2, 8), batch=4)


@pytest.mark.parametrize("name", ["batch", "input_size"])
def test_a_size_of_nothing_is_refused(name):
    with pytest.raises(UsageError, match=name.replace("_", "-")):
        Settings.of({name: 0})  # type: ignore[misc]
