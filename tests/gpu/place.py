"""The device of a test, and what tests say about what ran there."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import nn

import flopprof
from flopprof.judge.verdicts import GOOD
from flopprof.run import Run


@dataclass
class Place:
    """Where a test runs.

    Attributes:
        device: "cuda", or "cpu" in a rehearsal.
        note: Is told, as a property of the test, what was left out for want of a GPU.
    """

    device: str
    note: Callable[[str, object], None]

    @property
    def is_gpu(self) -> bool:
        """Whether kernels run here."""
        return self.device == "cuda"

    def has_cuda(self, to_see: str) -> bool:
        """Return whether there is a GPU; where not, note what is not seen for want of it."""
        if not self.is_gpu:
            self.note("not_seen", f"skipped: needs CUDA: {to_see}")
        return self.is_gpu

    def size(self, on_gpu: int, rehearsed: int) -> int:
        """Return the size of a dimension: one that fills a GPU, or a small one."""
        return on_gpu if self.is_gpu else rehearsed

    def profile(self, model: nn.Module, inputs: Any, **options: Any) -> Run:
        """Return a run of the model here, of few calls and without ceilings unless asked for."""
        few: dict[str, Any] = {"repeats": 2, "warmup": 2, "traces": 2, "ceilings": False}
        few |= {"device": self.device}
        inputs = inputs if isinstance(inputs, tuple | dict) else (inputs,)
        run: Run = flopprof.profile(model, inputs, **(few | options))
        return run


def counted(run: Run, op: str) -> dict[str, Any]:
    """Return the one site of an op that does matmul FLOPs."""
    sites = run.sites[(run.sites["op"] == op) & (run.sites["matmul_flops"] > 0)]
    assert len(sites) == 1, reasons(run)
    site: dict[str, Any] = sites.to_dict("records")[0]
    return site


def compute_kernels(run: Run) -> pd.DataFrame:
    """Return the kernels that compute."""
    return run.kernels[run.kernels["kind"] == "compute"]


def names(kernels: pd.DataFrame) -> list[str]:
    """Return the kernels' names, for messages."""
    return sorted({str(name)[:120] for name in kernels["kernel"]})


def assert_linked(place: Place, run: Run) -> None:
    """Assert that every compute kernel belongs to an op whose site has its time."""
    if not place.has_cuda("every kernel is linked to its op"):
        assert len(run.kernels) == 0
        return
    kernels = compute_kernels(run)
    assert len(kernels) > 0
    lost = kernels[kernels["op_id"] < 0]
    assert len(lost) == 0, names(lost)
    owners = run.ops.set_index("op_id").loc[kernels["op_id"], "site_id"]
    assert (owners >= 0).all()
    timed = run.sites["time_us"].fillna(0.0).sum()
    # Sites have the median of the traced calls, kernels are of one of them.
    assert 0.2 < kernels["duration_us"].sum() / timed < 5


def assert_multiplies(place: Place, run: Run, op: str, matmul_flops: int) -> None:
    """Assert that one site of `op` has these FLOPs, and on a GPU kernels that did them."""
    site = counted(run, op)
    assert site["matmul_flops"] == matmul_flops
    assert run.totals.matmul_flops == matmul_flops
    assert site["verdict"] in GOOD | {"functional", "fused"}, site["reason"]
    if place.has_cuda("the site has the time of its kernels"):
        ops = run.ops[run.ops["site_id"] == site["site_id"]]
        kernels = compute_kernels(run)
        own = kernels[kernels["op_id"].isin(ops["op_id"])]
        assert len(own) > 0, names(kernels)
        assert site["time_us"] > 0


def flagged(run: Run) -> dict[str, str]:
    """Return op → verdict of the sites whose verdict is no good news."""
    sites = run.sites[~run.sites["verdict"].isin(GOOD)]
    return dict(zip(sites["op"], sites["verdict"], strict=True))


def reasons(run: Run) -> list[tuple[str, str, str]]:
    """Return op, verdict and reason of every site, for messages."""
    columns = run.sites[["op", "verdict", "reason"]]
    return [(row.op, row.verdict, row.reason) for row in columns.itertuples()]


def dtype_of(name: str) -> torch.dtype:
    """Return the element type of this name."""
    dtype: torch.dtype = getattr(torch, name)
    return dtype
