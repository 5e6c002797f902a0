"""Provoke each piece of advice that a CPU can show, follow it, and write what came of it.

usage: python scripts/make_advice.py [RULE …]     writes results/advice.csv

Each case is a small model for which `flopprof.profile` gives the advice, and the same work as the
advice would have it. Times are of one sample, medians of bare calls, both in one process.
"""

import argparse
import csv
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional

import flopprof
from flopprof.report.advice import advice

RESULTS = Path(__file__).resolve().parents[1] / "results" / "advice.csv"
REPEATS = 20


class Side(NamedTuple):
    """What is profiled: a model, its input, and options of `flopprof.profile`."""

    model: nn.Module
    inputs: torch.Tensor
    options: dict[str, Any]


class Attend(nn.Module):
    """Attention by hand, or by PyTorch's own op."""

    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        self.fused = fused

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attend to `x`, [batch, heads, length, width]."""
        if self.fused:
            return functional.scaled_dot_product_attention(x, x, x)
        scores = torch.softmax(x @ x.transpose(-1, -2) / x.shape[-1] ** 0.5, dim=-1)
        return scores @ x


class Elementwise(nn.Module):
    """Many small ops in a row."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x` after ten times three ops, each of which reads and writes all of it."""
        for _ in range(10):
            x = torch.relu(x * 0.5 + 0.1)
        return x


class Turning(nn.Module):
    """A product behind copies that nothing needs, or without them."""

    def __init__(self, *, copies: bool) -> None:
        super().__init__()
        self.copies = copies
        self.layer = nn.Linear(256, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's result, after two transposed copies."""
        if self.copies:
            x = x.t().contiguous().t().contiguous()
        return self.layer(x)


class Loading(nn.Module):
    """A layer that waits for its data, or not."""

    def __init__(self, *, waits: bool) -> None:
        super().__init__()
        self.waits = waits
        self.layer = nn.Linear(512, 512)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's result, after 5 ms in which something is loaded."""
        if self.waits:
            time.sleep(0.005)
            x = x + float(np.zeros(1)[0])
        return self.layer(x)


class Steps(nn.Module):
    """The same product in many calls of Python, or in one."""

    def __init__(self, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.layer = nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's result for each part of the rows."""
        return torch.cat([self.layer(part) for part in x.chunk(self.parts)])


def cases() -> dict[str, Callable[[], tuple[Side, Side]]]:
    """Return, by rule, what makes a case: before, and as the advice would have it."""
    layer = nn.Linear(2048, 2048)
    products = nn.Sequential(*[nn.Linear(1024, 1024) for _ in range(4)])
    rows = torch.randn(256, 1024)
    many = torch.randn(2048, 1024)
    heads = torch.randn(4, 8, 256, 64)
    return {
        "batch": lambda: (
            Side(layer, torch.randn(1, 2048), {}),
            Side(layer, torch.randn(64, 2048), {}),
        ),
        "fuse": lambda: (
            Side(Elementwise(), many, {}),
            Side(Elementwise(), many, {"compile": True}),
        ),
        "attention": lambda: (
            Side(Attend(fused=False), heads, {}),
            Side(Attend(fused=True), heads, {}),
        ),
        "copies": lambda: (
            Side(Turning(copies=True), torch.randn(4096, 256), {}),
            Side(Turning(copies=False), torch.randn(4096, 256), {}),
        ),
        "hidden": lambda: (
            Side(Loading(waits=True), torch.randn(64, 512), {}),
            Side(Loading(waits=False), torch.randn(64, 512), {}),
        ),
        "host": lambda: (
            Side(Steps(256), torch.randn(256, 32), {}),
            Side(Steps(1), torch.randn(256, 32), {}),
        ),
        "threads": lambda: (
            Side(products, rows, {"threads": 1}),
            Side(products, rows, {"threads": 2}),
        ),
        "bf16": lambda: (Side(products, rows, {}), Side(products, rows, {"autocast": "bfloat16"})),
    }


def measure(rule: str, before: Side, after: Side) -> dict[str, Any]:
    """Return a row: the advice that was given, and the time of a sample before and after."""
    first = _profiled(before)
    second = _profiled(after)
    pieces = {each.rule: each for each in advice(first)}
    evidence = pieces[rule].evidence if rule in pieces else ""
    before_us = first.provenance.wall_us / len(before.inputs)
    after_us = second.provenance.wall_us / len(after.inputs)
    return {
        "rule": rule,
        "given": "yes" if rule in pieces else "no",
        "evidence": evidence,
        "before_us_per_sample": f"{before_us:.4g}",
        "after_us_per_sample": f"{after_us:.4g}",
        "times_as_fast": f"{before_us / after_us:.3g}",
    }


def _profiled(side: Side) -> flopprof.Run:
    options = {"threads": 1, **side.options}
    run = flopprof.profile(side.model.eval(), side.inputs, repeats=REPEATS, **options)
    assert isinstance(run, flopprof.Run)
    return run


def main() -> int:
    """Measure the rules that are asked for, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("rules", nargs="*", metavar="RULE", help="only these")
    asked = parser.parse_args().rules
    rows = []
    for rule, make in cases().items():
        if asked and rule not in asked:
            continue
        print(f"{rule} …", file=sys.stderr)
        row = measure(rule, *make())
        print(f"{row['rule']:12} given: {row['given']:4} {row['times_as_fast']} times as fast")
        rows.append(row)
    if not asked:
        with RESULTS.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
