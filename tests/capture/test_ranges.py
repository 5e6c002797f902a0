"""NVTX ranges around each op: every one that would be pushed is seen, without a GPU."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from flopprof.capture.ranges import align
from flopprof.tables import OPS

SOURCE = Path(__file__).with_name("nvtx_inject.c")

# A training step of two layers, one of them in a module with a space in its name, and an op of a
# library whose ranges lie around ours.
CODE = """
import torch
from torch import nn
from flopprof.api import profile
from flopprof.capture.ranges import profile_in_ranges
from flopprof.capture.subject import find_subject
from flopprof.devices import find_device
from flopprof.settings import Settings

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.add_module("first layer", nn.Linear(4, 8))
        self.last = nn.Linear(8, 2)
    def forward(self, x):
        torch.cuda.nvtx.range_push("a user's range: with colons")
        x = torch.relu(getattr(self, "first layer")(x))
        torch.cuda.nvtx.range_pop()
        return self.last(x)

model = Net()
inputs = (3, 4)
settings = Settings.of({"train": True, "ceilings": False, "repeats": 1, "traces": 1})
run = profile(model, inputs, train=True, ceilings=False, repeats=1, traces=1)
subject = find_subject(model, inputs, None, settings)
run.ops.to_csv("ops.csv", index=False)
print(profile_in_ranges(subject, find_device("cpu"), settings, run.ops))
"""


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[tuple[int, str]], pd.DataFrame]:
    """Return what an injection library saw, (depth, text) with "-" for an end, and the ops."""
    if shutil.which("gcc") is None or sys.platform != "linux":
        pytest.skip("the injection library is compiled by gcc on Linux")
    import torch

    try:
        torch.cuda.nvtx.range_push("x")
        torch.cuda.nvtx.range_pop()
    except RuntimeError:
        pytest.skip("this build of PyTorch has no NVTX")
    folder = tmp_path_factory.mktemp("nvtx")
    library = folder / "libinject.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, SOURCE], check=True)
    seen = folder / "seen.txt"
    environment = os.environ | {
        "NVTX_INJECTION64_PATH": str(library),
        "NVTX_SEEN": str(seen),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "True"
    lines = [line.split(" ", 1) for line in seen.read_text().splitlines()]
    events = [(int(depth), text) for depth, text in lines]
    ends = [number for number, event in enumerate(events) if event == (0, "flopprof#model")]
    return events[ends[-1] :], pd.read_csv(folder / "ops.csv", keep_default_na=False)


def names(events):
    """Return the ops of ranges, in order, without their overloads."""
    found = [re.match(r"flopprof#\d+#(\w+\.\w+)", text) for _, text in events]
    return [match[1] for match in found if match]


def test_each_op_of_forward_and_backward_is_in_a_range_of_its_own(pushed):
    events, _ = pushed

    found = names(events)

    # Each layer is one addmm forward. Backward: a product for the weight of each, and one for the
    # input of the last alone (the first one's input needs no gradient).
    assert found.count("aten.addmm") == 2
    assert found.count("aten.mm") == 3
    assert found.index("aten.relu") < found.index("aten.threshold_backward")
    assert found.index("aten.mm") > max(at for at, op in enumerate(found) if op == "aten.addmm")


def test_ranges_carry_the_numbers_of_the_runs_ops(pushed):
    events, ops = pushed

    for _, text in events:
        match = re.match(r"flopprof#(\d+)#(.*)", text)
        if match:
            own = ops["op"].iloc[int(match[1])].replace("::", ".")
            assert match[2] == own or match[2].startswith(own + ".")
    numbers = [int(t.split("#")[1]) for _, t in events if re.match(r"flopprof#\d+#", t)]
    assert len(set(numbers)) == len(numbers)


def test_our_ranges_have_no_colon_slash_or_space_and_are_nested(pushed):
    events, _ = pushed

    own = [(depth, text) for depth, text in events if text.startswith("flopprof#")]
    assert not [text for _, text in own if re.search(r"[:/\s]", text)]
    assert own[0] == (0, "flopprof#model")
    assert events[-1] == (0, "-")  # every range ends
    user = events.index((1, "a user's range: with colons"))
    inside = [depth for depth, text in events[user + 1 :] if "aten.relu" in text]
    assert inside == [2]  # below the user's, which is below the whole call's
    assert sum(text == "-" for _, text in events) * 2 == len(events)


def tree(*rows):
    """Return ops of a tree: name, parent, start."""
    return OPS.from_rows(
        [
            {"op_id": number, "op": op, "parent_op_id": parent, "start_us": float(start)}
            for number, (op, parent, start) in enumerate(rows)
        ]
    )


def test_dispatched_ops_are_the_outermost_of_their_names():
    ops = tree(
        ("aten::linear", -1, 0),
        ("aten::addmm", 0, 1),
        ("aten::copy_", 1, 2),  # inside: not dispatched
        ("aten::copy_", -1, 5),
    )

    assert align(["aten::addmm", "aten::copy_"], ops) == [1, 3]


def test_ops_of_other_threads_are_found_by_their_time():
    # The table has one thread after the other: forward and optimizer, then backward.
    ops = tree(("aten::mm", -1, 0), ("aten::add_", -1, 30), ("aten::mm", -1, 10))

    assert align(["aten::mm", "aten::mm", "aten::add_"], ops) == [0, 2, 1]


BOTH = (("aten::mm", -1, 0), ("aten::relu", -1, 5))


def test_what_the_profiler_does_not_record_has_no_number():
    ops = tree(("aten::mm", -1, 0), ("aten::relu", -1, 5))

    assert align(["aten::mm", "prim::odd", "aten::relu"], ops) == [0, -1, 1]
    twice = ["aten::mm", "aten::relu", "aten::detach", "aten::detach"]
    assert align(twice, tree(*BOTH, ("aten::detach", -1, 9))) == [0, 1, -1, -1]


@pytest.mark.parametrize(
    "dispatched", [["aten::relu", "aten::mm"], ["aten::mm", "aten::mm"], ["aten::mm"] * 3]
)
def test_another_call_than_the_runs_has_no_numbers(dispatched):
    assert align(dispatched, tree(*BOTH)) == [-1] * len(dispatched)
