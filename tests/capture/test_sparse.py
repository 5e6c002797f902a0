"""Sparse tensors: counted by what they store while counting, bounded in traces."""

from typing import Any

import pytest
import torch
from torch import nn

import flopprof

DENSE = torch.ones(100, 8)
EYE = torch.eye(100)
LAYOUTS: dict[str, Any] = {
    "coo": EYE.to_sparse, "csr": EYE.to_sparse_csr, "csc": EYE.to_sparse_csc,
}  # fmt: skip


class Of(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_sparse_product_counts_its_stored_elements(layout):
    count = flopprof.count_flops(Of(torch.matmul), (LAYOUTS[layout](), DENSE))

    # 100 stored elements, each meets 8 columns: 100 · 8 multiply-adds.
    assert (count.matmul_flops, count.flops, count.flops_at_most) == (1600, 1600, 1600)


@pytest.mark.filterwarnings("ignore")
def test_other_sparse_ops_count_their_stored_elements_too():
    csr, coo = EYE.to_sparse_csr(), EYE.to_sparse()
    blocks = torch.block_diag(*[torch.ones(2, 2)] * 3).to_sparse_bsr((2, 2))  # 12 stored
    ones = torch.ones(100, 8)
    cases: list[Any] = [
        (lambda: torch.sparse.mm(csr, ones), (1600, 0)),
        # 100 outputs wanted, each of 8 multiply-adds; the pattern is added.
        (lambda: torch.sparse.sampled_addmm(csr, ones, ones.T), (1600, 100)),
        (lambda: torch.addmm(torch.ones(100, 8), csr, ones), (1600, 800)),
        (lambda: blocks @ torch.ones(6, 5), (2 * 12 * 5, 0)),
        (lambda: torch.sparse.softmax(coo, 1), (0, 500)),
        (lambda: torch.sparse.sum(coo), (0, 100)),
        (lambda: torch.sparse.mm(csr, ones, "sum"), (1600, 0)),
    ]  # fmt: skip

    for call, expected in cases:
        # A sparse input: the model is counted where it is, since the meta device stores nothing.
        count = flopprof.count_flops(Of(lambda _sparse, call=call: call()), (coo,))
        assert (count.matmul_flops, count.vector_flops) == expected
        assert count.flops_at_most == count.flops


@pytest.mark.filterwarnings("ignore")
def test_a_profile_bounds_a_sparse_product_by_the_dense_one():
    run = flopprof.profile(
        Of(torch.sparse.mm), (EYE.to_sparse_csr(), DENSE), repeats=1, warmup=1, ceilings=False
    )

    # No trace tells what is stored: at most 2 · 100 · 100 · 8.
    assert (run.totals.flops, run.totals.flops_at_most) == (0, 160_000)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_attention_of_jagged_tensors_is_known_by_what_it_calls():
    class Attends(nn.Module):
        def forward(self, q):
            return torch.nn.functional.scaled_dot_product_attention(q, q, q)

    rows = [torch.ones(3, 2, 8), torch.ones(5, 2, 8)]
    q = torch.nested.nested_tensor(rows, layout=torch.jagged).transpose(1, 2)
    count = flopprof.count_flops(Attends(), (q,))

    # It is padded: two sequences of 2 heads × 5·5 scores × 8 multiply-adds × 2, twice.
    assert count.matmul_flops == 3200
    assert count.flops == count.flops_at_most
