"""Building a model on meta leaves the libraries that it uses as they are."""

import sys
from typing import Any

import pytest
import torch
from torch import nn

from flopprof.cli import main
from flopprof.errors import UsageError
from flopprof.model import load_model
from flopprof.model.building import without_memory

LIBRARY = """
from functools import lru_cache
import torch

TABLE = torch.arange(3.0)
REGISTRY = {}

class Results:
    boxes = torch.empty(0)

@lru_cache
def positions(n):
    return torch.arange(float(n))

def register(name):
    return REGISTRY.setdefault(name, torch.ones(3))
"""
NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        import {library} as library
        self.layer = nn.Linear(3, 3)
        self.other = nn.Linear(3, 3, bias=False)
        self.other.weight = self.layer.weight
        self.plain = library.positions(3)
        self.library = library

    def forward(self, x):
        library = self.library
        kept = library.TABLE + library.positions(3) + library.register("x") + self.plain
        if kept.sum() < 0:
            return x
        return self.other(self.layer(x)) + kept + library.Results.boxes.sum()

def build():
    return Net()
"""


@pytest.fixture(
    params=[
        "import {library} as library",
        "from importlib import import_module\n        library = import_module('{library}')",
    ]
)
def arch(request, tmp_path, monkeypatch):
    name = f"a_library_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(LIBRARY)
    code = NET.replace("import {library} as library", request.param).replace("{library}", name)
    (tmp_path / "net.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    yield f"{tmp_path}/net.py:build"
    sys.modules.pop(name, None)


def test_what_a_library_keeps_is_real_after_a_build_on_meta(arch):
    on_meta = load_model(arch, meta=True)
    real = load_model(arch)

    assert all(parameter.is_meta for parameter in on_meta.model.parameters())
    assert real.model(torch.ones(1, 3)).shape == (1, 3)
    library: Any = real.model.library
    kept = (library.TABLE, library.positions(3), library.register("x"), library.Results.boxes)
    assert not any(tensor.is_meta for tensor in kept)


def test_a_model_of_such_a_library_is_counted(arch, capsys):
    assert main(["count", arch, "--input", "1x3", "--json"]) == 0

    # Two products of 1×3 with 3×3: 2 · (2 · 3 · 3).
    assert '"matmul_flops": 36' in capsys.readouterr().out


def test_shared_parameters_stay_shared_and_memory_is_not_taken():
    with without_memory():
        weight = nn.Parameter(torch.empty(5, 5))
        first, second = nn.Linear(5, 5), nn.Linear(5, 5)
        first.weight = weight
        second.weight = weight
        many = [nn.Linear(1 << 14, 1 << 14) for _ in range(100)]  # 107 GB of float32

    assert first.weight is second.weight
    assert all(linear.weight.is_meta for linear in many)
    assert nn.Linear(2, 2).weight.device.type == "cpu"


def test_one_tensor_larger_than_all_memory_is_built_on_meta(tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef build():\n    return nn.Linear(10**7, 10**7, bias=False)\n"
    )

    loaded = load_model(f"{tmp_path}/net.py:build", meta=True)

    assert loaded.parameters == 10**14


def test_more_modules_than_any_model_has_are_not_made(tmp_path, monkeypatch):
    monkeypatch.setattr("flopprof.model.building.MAX_MODULES", 3_000)
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    return nn.Sequential(*(nn.Identity() for _ in range(10**9)))\n"
    )

    with pytest.raises(UsageError, match="more than 3,000 modules"):
        load_model(f"{tmp_path}/net.py:build", meta=True)
