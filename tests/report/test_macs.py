"""Multiply-adds as others publish them."""

import json

from torch import nn

import flopprof
from flopprof.cli import main
from flopprof.report.macs import Macs

CODE = """
from torch import nn
from torch.nn import functional

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        q = self.linear(x)
        return functional.scaled_dot_product_attention(q, q, q)

def build():
    return Net()
"""


def test_macs_are_half_of_matmul_flops_and_attention_can_be_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(CODE)
    spec = ["count", "net.py:build", "--input", "1x10x8"]

    assert main([*spec, "--macs", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert main([*spec, "--macs"]) == 0
    text = capsys.readouterr().out
    assert main(spec) == 0

    # The linear: 10·8·8 = 640; Q·Kᵀ and P·V: 2 · 10·10·8 = 1,600.
    assert (found["macs"], found["macs_without_attention"]) == (2240, 640)
    assert found["matmul_flops"] == 2 * 2240
    assert "MACs 2.24 kMACs, without attention's products 640 MACs" in text
    assert "without attention" not in capsys.readouterr().out


def test_attention_within_a_module_is_left_out_and_its_projections_are_not():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    macs = Macs.of(flopprof.count_flops(layer, (1, 10, 8)).run.sites)

    # Projections 10·8·(3·8 + 8) = 2,560, feed-forward 2·10·8·16 = 2,560; attention 1,600.
    assert (macs.macs, macs.macs_without_attention) == (6720, 5120)
