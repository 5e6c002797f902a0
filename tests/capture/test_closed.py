"""Paths of the modules inside TorchScript and exported programs, which no hook enters."""

import pytest
import torch
from torch import nn

import flopprof

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute"),  # of a scripted part's shapes
]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3, bias=False)

    def forward(self, x):
        return torch.relu(self.fc(x)) + self.helped(x)

    def helped(self, x):
        return x[:, :3] * 2.0


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(Block())
        self.head = nn.Linear(3, 5, bias=False)

    def forward(self, x):
        return self.head(self.blocks(x)) @ torch.ones(5, 1)


def exported(net, x):
    return torch.export.export(net, (x,)).module()


def scripted(net, _x):
    return torch.jit.script(net)


def traced(net, x):
    return torch.jit.trace(net, x)


@pytest.mark.parametrize("closed", [exported, scripted, traced])
@pytest.mark.parametrize("around", ["", "0"])
def test_ops_have_the_paths_of_the_modules_inside(closed, around):
    x = torch.ones(2, 4)
    model = closed(Net().eval(), x)
    model = nn.Sequential(model) if around else model
    # Layers: 2 rows × 4·3 and 3·5 multiply-adds × 2; the last product: 2 × 5 × 2.
    expected = {
        ("aten::linear", "blocks.0.fc"): 48,
        ("aten::relu", "blocks.0"): 6,
        ("aten::mul", "blocks.0"): 6,
        ("aten::add", "blocks.0"): 6,
        ("aten::linear", "head"): 60,
        ("aten::matmul", ""): 20,
    }
    expected = {(op, ".".join(filter(None, (around, p)))): n for (op, p), n in expected.items()}

    count = flopprof.count_flops(model, (x,))
    run = flopprof.profile(model, (x,), repeats=1, warmup=1, ceilings=False)

    for sites in (count.run.sites, run.sites):
        sites = sites[sites["flops"] > 0]
        found = zip(sites["op"], sites["module_path"], sites["flops"], strict=True)
        assert {(op, path): flops for op, path, flops in found} == expected
        assert set(sites["verdict"]) == {"opaque"}
