"""A model of products at shapes that tiles fit: FILE.py:build of the stage `counters`.

Run as a script it calls the model once between CUDA's marks for profilers, and without
torch.profiler: Nsight Compute and it may not share the counters.
"""

import sys
from typing import Any

import torch
from torch import nn

SIZE = 2048  # a multiple of every tile: nothing is padded


class Products(nn.Module):
    """A product each in float16, bfloat16, float32 and float64."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.in_float16 = nn.Linear(size, size, bias=False, dtype=torch.float16)
        self.in_bfloat16 = nn.Linear(size, size, bias=False, dtype=torch.bfloat16)
        self.in_float32 = nn.Linear(size, size, bias=False)
        self.in_float64 = nn.Linear(size, size, bias=False, dtype=torch.float64)

    def forward(self, x: torch.Tensor) -> Any:
        """Return the products of x with each weight, in its element type."""
        layers = (self.in_float16, self.in_bfloat16, self.in_float32, self.in_float64)
        return [layer(x.to(layer.weight.dtype)) for layer in layers]


def build() -> nn.Module:
    """Return the model for a GPU."""
    return Products(SIZE)


def build_small() -> nn.Module:
    """Return the model for a rehearsal."""
    return Products(32)


def main(device: str) -> None:
    """Call the model, warm, where a profiler may look."""
    is_gpu = device != "cpu"
    model = (build() if is_gpu else build_small()).to(device)
    size = model.in_float16.in_features
    x = torch.randn(size, size, dtype=torch.float16, device=device)
    with torch.no_grad():
        model(x)
        if is_gpu:
            torch.cuda.synchronize()
            torch.cuda.profiler.start()
        model(x)
        if is_gpu:
            torch.cuda.synchronize()
            torch.cuda.profiler.stop()


if __name__ == "__main__":
    main(sys.argv[1])
