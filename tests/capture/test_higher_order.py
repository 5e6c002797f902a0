"""Operators that call functions: loops, branches, maps, attention with a function of scores."""

import pytest
import torch
from torch import nn
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.attention.flex_attention import flex_attention

import flopprof

WEIGHT = torch.eye(5)


class Applied(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def steps_of_a_scan(size):
    """Return how often torch calls the operator with values: 2.10 and 2.11 do so once more."""
    calls = []

    def operator(carry, one):
        calls.append(not isinstance(one, FakeTensor))
        return carry.clone(), one.clone()

    with torch.compiler.set_stance("force_eager"):
        scan(operator, torch.ones(2), torch.ones(size, 2))
    return sum(calls)


def scanned(x):
    return scan(lambda carry, one: (carry @ WEIGHT, one @ WEIGHT), torch.ones(2, 5), x)[1]


def looped(x):
    def is_on(step, _x):
        return step < 3

    return while_loop(is_on, lambda step, x: (step + 1, x @ WEIGHT), (torch.tensor(0), x))[1]


def branched(x):
    return torch.cond(x.sum() > 1e9, lambda x: x @ WEIGHT, lambda x: x @ WEIGHT @ WEIGHT, (x,))


@pytest.mark.filterwarnings("ignore")  # what Dynamo says of itself, by version
@pytest.mark.parametrize(
    ("function", "shape", "matmul_flops"),
    [
        # Four steps (or five), each 2·5·5 and 3·5·5 multiply-adds × 2.
        (scanned, (4, 3, 5), steps_of_a_scan(4) * (100 + 150)),
        # Three turns of 4·5·5 × 2; the branch taken has two such products.
        (looped, (4, 5), 600),
        (branched, (4, 5), 400),
        # Two products of 2 heads · 128·128 scores · 16 × 2.
        (lambda q: flex_attention(q, q, q), (1, 2, 128, 16), 2_097_152),
    ],
)
def test_what_an_operator_of_higher_order_calls_is_counted(function, shape, matmul_flops):
    count = flopprof.count_flops(Applied(function), (torch.ones(shape),))

    run = flopprof.profile(Applied(function), (torch.ones(shape),), repeats=1, warmup=1)

    for totals in (count, run.totals):
        assert totals.matmul_flops == matmul_flops
        assert totals.flops == totals.flops_at_most
    assert run.totals.vector_flops == count.vector_flops
