"""Profile each of four models ten times, and say whether the top site by time is the same.

usage: python scripts/check_ranking.py [--times 10] [--threads 1] [MODEL …]

A model passes where one site is first in nine of ten runs, or where each run in which another one
is first says itself that it cannot tell. Run it on a machine that others use. Exits with 1 where a
model does not pass.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import flopprof

ENOUGH = 0.9  # of the runs


class Sleeper(nn.Module):
    """A small convolution net that waits for 20 ms in its middle."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the second convolution's result."""
        x = self.first(x)
        time.sleep(0.02)
        return self.second(x)


def resnet18() -> tuple[Any, Any]:
    """Return ResNet-18 and a picture."""
    from torchvision.models import resnet18 as build

    return build(), (1, 3, 224, 224)


def gpt2() -> tuple[Any, Any]:
    """Return GPT-2 with random weights, and 64 tokens."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config()), torch.randint(0, 50257, (1, 64))


def llama12() -> tuple[Any, Any]:
    """Return a Llama of 12 layers with random weights, and 64 tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        num_hidden_layers=12,
        hidden_size=512,
        intermediate_size=1408,
        num_attention_heads=8,
        vocab_size=4096,
    )
    return LlamaForCausalLM(config), torch.randint(0, 4096, (1, 64))


def sleeper() -> tuple[Any, Any]:
    """Return the net that waits, and a picture."""
    return Sleeper(), (1, 3, 64, 64)


MODELS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "resnet18": resnet18,
    "gpt2": gpt2,
    "llama12": llama12,
    "sleeper": sleeper,
}


def passes(name: str, times: int, threads: int | None) -> bool:
    """Profile one model, print what came first in its runs, and return whether it passes."""
    model, inputs = MODELS[name]()
    firsts: list[str] = []
    told: list[bool] = []
    for _ in range(times):
        run = flopprof.profile(model.eval(), inputs, threads=threads)
        site = run.sites.iloc[0]
        firsts.append(f"{site['module_path']} {site['op']}".strip())
        told.append(run.figures.tied_sites > 0)
    first, count = Counter(firsts).most_common(1)[0]
    silent = sum(site != first and not says for site, says in zip(firsts, told, strict=True))
    good = count >= ENOUGH * times or silent <= (1 - ENOUGH) * times
    print(
        f"{name:10} {'passes' if good else 'FAILS'}: {first} is first in {count} of {times}; "
        f"{sum(told)} runs cannot tell; another is first and none says so in {silent}",
        flush=True,
    )
    return good


def main() -> int:
    """Check the models that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    results = [passes(name, args.times, args.threads) for name in args.models or MODELS]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
