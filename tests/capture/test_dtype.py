"""A dtype that is asked for holds for the caller's own module, of which a copy is cast."""

import pytest
import torch
from torch import nn

import flopprof
from flopprof.errors import UsageError


def test_a_module_is_called_in_the_dtype_and_stays_as_it_was():
    model = nn.Linear(8, 4)
    x = torch.randn(2, 8)

    run = flopprof.profile(model, x, dtype="bfloat16", repeats=1, traces=1, ceilings=False)

    assert run.provenance.called.dtype == "bfloat16"
    assert run.provenance.called.input == "2x8:bfloat16"
    assert set(run.sites["dtype"]) == {"bfloat16"}
    assert model.weight.dtype == x.dtype == torch.float32


def test_sizes_and_keyword_inputs_are_cast_and_whole_numbers_stay():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(9, 8)

        def forward(self, ids, scale):
            return self.table(ids) * scale

    ids = torch.ones(2, 3, dtype=torch.int64)
    count = flopprof.count_flops(Net(), ids, kwargs={"scale": torch.ones(8)}, dtype="float64")

    assert count.run.provenance.called.input == "2x3:int64, scale=8:float64"
    # 2·3·8 products.
    assert count.vector_flops == 48


@pytest.mark.parametrize("dtype", ["int8", "bf16x", "bool"])
def test_what_is_no_floating_type_is_refused(dtype):
    with pytest.raises(UsageError, match="no floating dtype"):
        flopprof.count_flops(nn.Linear(8, 4), (2, 8), dtype=dtype)


def test_a_model_that_cannot_be_copied_says_what_to_do():
    class Alone(nn.Linear):
        def __deepcopy__(self, memo):
            raise TypeError("there is one of me")

    with pytest.raises(UsageError, match="there is one of me"):
        flopprof.count_flops(Alone(8, 4), (2, 8), dtype="float64")
