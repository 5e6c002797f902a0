"""Bounds of what runs past PyTorch."""

import importlib
import math
import sys
import threading
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import flopprof
from flopprof.judge.hidden import bound_by_all_cores
from flopprof.tables import ROOFLINES, SITES


def rooflines(**peaks: float) -> pd.DataFrame:
    rows: list[dict[str, Any]] = [
        {"dtype": dtype, "unit": "tensor", "memory_level": "DRAM", "valid": True,
         "peak_flops_per_s": peak}
        for dtype, peak in peaks.items()
    ]  # fmt: skip
    return ROOFLINES.from_rows(rows)


def sites() -> pd.DataFrame:
    # 2 ms at 50 GFLOP/s are 100 MFLOPs; the third op's shapes allow 70 MFLOPs at most.
    return SITES.from_rows(
        [
            {"op": "(gap)", "time_us": 2000.0, "flops": math.nan, "flops_at_most": 100e6},
            {"op": "mylib::numpy_mm", "time_us": 2000.0, "flops": math.nan, "flops_at_most": 100e6},
            {"op": "mylib::small", "time_us": 2000.0, "flops": math.nan, "flops_at_most": 70e6},
            {"op": "aten::unknown", "time_us": 2000.0, "flops": math.nan, "flops_at_most": 100e6},
            {"op": "aten::mm", "time_us": 2000.0, "flops": 3e6, "flops_at_most": 3e6},
        ]
    )


@pytest.mark.parametrize(
    ("peaks", "dtype", "cores", "threads", "most"),
    [
        ({"float32": 50e9}, "float32", 4, 1, 400e6),  # four cores where torch had one
        ({"float32": 50e9}, "float32", 4, 4, 100e6),
        ({"float32": 50e9}, "float32", 2, 4, 100e6),  # more threads than cores add nothing
        ({"float64": 50e9}, "float64", 1, 1, 200e6),  # in float32 twice as fast
        ({"float64": 50e9, "float32": 90e9}, "float64", 1, 1, 180e6),
    ],
)
def test_what_is_not_pytorchs_own_may_use_every_core(peaks, dtype, cores, threads, most):
    bounded = bound_by_all_cores(
        sites(), rooflines(**peaks), dtype=dtype, cores=cores, threads=threads
    )

    assert list(bounded["flops_at_most"]) == [most, most, 70e6, 100e6, 3e6]


def test_without_a_ceiling_nothing_is_bounded():
    unbounded = sites().assign(flops_at_most=math.nan)

    bounded = bound_by_all_cores(unbounded, rooflines(), dtype="float32", cores=4, threads=1)

    assert bounded["flops_at_most"].isna().all()


class Numpy(nn.Module):
    """Multiplies past PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = np.ones((4, 4), np.float32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + float((self.matrix @ self.matrix).sum())


class Calls(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        np.ones((4, 4)) @ np.ones((4, 4))
        return x + 1


@pytest.mark.parametrize("kind", [Numpy, Calls])
def test_a_count_says_that_it_cannot_see_numpy(kind):
    count = flopprof.count_flops(nn.Sequential(kind(), kind()), (3,))

    [said] = [text for text in count.run.provenance.warning_texts if "numpy" in text]
    assert said.startswith(f"0: {kind.__name__} uses numpy, whose work is in no count")


def test_a_count_of_plain_layers_has_no_such_warning():
    count = flopprof.count_flops(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), (1, 3))

    assert not count.run.provenance.warning_texts


def multiplied(values):
    return values @ values


class Helped(nn.Module):
    """Leaves PyTorch through a method and a function of its own."""

    def forward(self, x):
        return self.product(x)

    def product(self, x):
        return torch.from_numpy(multiplied(x.numpy()))


class Given(nn.Module):
    def __init__(self):
        super().__init__()
        self.function = lambda x: x + sum(float(np.dot(row, row)) for row in np.ones((2, 3)))

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize("kind", [Numpy, Calls, Helped, Given])
def test_a_count_of_what_uses_numpy_is_a_lower_bound(kind):
    model = nn.Sequential(kind(), nn.Linear(4, 4))
    count = flopprof.count_flops(model, (torch.ones(4, 4),))

    # The layer: 4·4·4 multiply-adds × 2. How much the other did, nothing says.
    assert count.matmul_flops == 128
    assert math.isnan(count.flops_at_most)
    assert count.coverage_calls_frac < 1
    [site] = count.run.sites.query("op == '(gap)'").to_dict("records")
    assert (site["module_path"], site["verdict"], site["calls"]) == ("0", "hidden", 1)


def test_a_short_stretch_of_numpy_is_hidden_work_and_bounded():
    model = nn.Sequential(Calls(), nn.Linear(4, 4))
    run = flopprof.profile(model, (torch.ones(4, 4),), repeats=1, warmup=1, ceilings=False)

    [site] = run.sites.query("op == '(gap)' and module_path == '0'").to_dict("records")
    assert site["verdict"] == "hidden"
    assert site["time_us"] > 0
    assert run.totals.coverage_frac < 1
    assert math.isnan(run.totals.flops_at_most)  # no ceiling


MATRIX = np.ones((4, 4))


class Sizes(nn.Module):
    """Uses numpy for a size, and in what a call does not reach."""

    def forward(self, x, profiled=False):
        if profiled:
            return self.measured(x)
        return x * (1 / np.sqrt(np.prod(x.shape[1:])))

    def measured(self, x):
        return torch.from_numpy(multiplied(x.numpy()))


class Reached(Sizes):
    def forward(self, x, profiled=True):
        return super().forward(x, profiled)


class HandsOver(nn.Module):
    def forward(self, x):
        return x * float(np.prod(tuple(x)))


class Local(nn.Module):
    def forward(self, x):
        import numpy

        return x * float((numpy.ones(4) * 2).sum())


class OfAGlobal(nn.Module):
    def forward(self, x):
        return x * float((MATRIX @ MATRIX).sum())


class Imported(nn.Module):
    exponential = staticmethod(np.exp)

    def forward(self, x):
        return x * self.exponential(2.0)


class InAThread(nn.Module):
    def forward(self, x):
        thread = threading.Thread(target=self.multiply)
        thread.start()
        thread.join()
        return x

    def multiply(self):
        np.ones((4, 4)) @ np.ones((4, 4))


@pytest.mark.parametrize(
    "kind", [Reached, HandsOver, Local, OfAGlobal, Imported, InAThread], ids=lambda k: k.__name__
)
def test_numpy_that_a_call_reaches_computes_past_every_count(kind):
    count = flopprof.count_flops(nn.Sequential(kind(), nn.Linear(4, 4)), (torch.ones(4, 4),))

    assert set(count.run.sites.query("op == '(gap)'")["module_path"]) == {"0"}
    assert math.isnan(count.flops_at_most)


def test_numpy_for_sizes_or_in_what_is_not_reached_leaves_a_count_exact(monkeypatch):
    # What runs tests in several processes has a thread of its own, and calls may be in threads.
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    model = nn.Sequential(Sizes(), nn.Linear(4, 4))
    count = flopprof.count_flops(model, (torch.ones(4, 4),))
    run = flopprof.profile(model, (torch.ones(4, 4),), repeats=1, warmup=1, ceilings=False)

    # 16 products with the factor; the layer's 4·4·4 multiply-adds × 2 and 16 biases.
    assert (count.flops, count.flops_at_most) == (160, 160)
    assert not count.run.provenance.warning_texts
    assert "foreign_gaps" not in set(run.sites["reason_code"])
    assert sys.getprofile() is None


HELPERS = """
import numpy as np
import scratch_more


def multiplied(values):
    return np.asarray(values) @ np.asarray(values)


def further(values):
    return scratch_more.multiplied(values)


class Helper:
    def run(self, values):
        return multiplied(values)

    @staticmethod
    def run_apart(values):
        return multiplied(values)
"""

MORE = """
def multiplied(values):
    import numpy
    return numpy.asarray(values) @ numpy.asarray(values)
"""

FORWARDS = {
    "by its name": ("from scratch_helpers import multiplied", "multiplied(values)"),
    "of its module": ("import scratch_helpers", "scratch_helpers.multiplied(values)"),
    "under another name": ("import scratch_helpers as h", "h.multiplied(values)"),
    "two files away": ("import scratch_helpers", "scratch_helpers.further(values)"),
    "imported inside": ("", "__import__('scratch_helpers').multiplied(values)"),
    "a method": ("from scratch_helpers import Helper", "self.helper.run(values)"),
    "of a class": ("from scratch_helpers import Helper", "Helper.run_apart(values)"),
    "partly": ("import functools, scratch_helpers", "self.partly()"),
    "backward": ("import scratch_helpers", "0 * Own.apply(x).sum().item()"),
}

FILE = """
import torch
from torch import nn
{imports}


class Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        scratch_helpers.multiplied([[1.0]])
        return x.clone()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        {attribute}

    def forward(self, x):
        {local}
        values = [[1.0, 2.0], [3.0, 4.0]]
        return x * float(torch.as_tensor({expression}).sum())
"""


@pytest.mark.parametrize("way", FORWARDS)
def test_numpy_in_a_helper_of_another_file_is_work_past_every_count(way, tmp_path, monkeypatch):
    imports, expression = FORWARDS[way]
    attribute = {
        "a method": "self.helper = Helper()",
        "partly": "self.partly = functools.partial(scratch_helpers.multiplied, [[1.0]])",
    }.get(way, "")
    local = ""
    if way == "imported inside":
        local, expression = "from scratch_helpers import multiplied", "multiplied(values)"
    text = FILE.format(
        imports=imports, expression=expression, attribute=attribute or "pass", local=local or "pass"
    )
    (tmp_path / "scratch_helpers.py").write_text(HELPERS)
    (tmp_path / "scratch_more.py").write_text(MORE)
    (tmp_path / "scratch_net.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("scratch_helpers", "scratch_more", "scratch_net"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    model = nn.Sequential(importlib.import_module("scratch_net").Net(), nn.Linear(4, 4))

    count = flopprof.count_flops(model, (torch.ones(4, 4),))

    assert set(count.run.sites.query("op == '(gap)'")["module_path"]) == {"0"}
    assert math.isnan(count.flops_at_most)
