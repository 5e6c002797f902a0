"""Write results/accuracy.csv: every torchvision model's count beside its published GMACs.

usage: python scripts/make_accuracy.py [MODEL …]

Published figures are `weights.meta["_ops"]`, in 10⁹ multiply-adds, rounded to a thousandth. Inputs
are of the size that reproduces them: crops of the weights' transforms, 16 frames of video,
800 × 800 for detectors, 512 × 512 for optical flow. Weights are random: what depends on values
(how many boxes a detector keeps) differs from the trained model, and the row says so.
"""

import argparse
import csv
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torchvision
from peers.models import input_sizes, torchvision_builder, torchvision_model
from torch.utils.flop_counter import FlopCounterMode

import flopprof

TARGET = Path(__file__).resolve().parents[1] / "results" / "accuracy.csv"
NEAR = 0.01  # of the published figure: what is further off is printed
WHY = {
    "rcnn": "two-stage: how many boxes reach the heads is decided by the trained weights",
    "shufflenet_v2_x0_5": "published rounded to 0.04",
}


def main() -> None:
    """Count each model and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=torchvision.models.list_models())
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = []
    for name in args.models:
        print(f"\r\x1b[K{name}", end="", file=sys.stderr)
        rows.append(row(name))
    print("\r\x1b[K", end="", file=sys.stderr)
    near = [each for each in rows if abs(each["ratio"] - 1) <= NEAR]
    for each in rows:
        if each not in near or each["disagrees"]:
            print(each)
    print(f"{len(rows)} models, {len(near)} within {NEAR:.0%}")
    if not sys.argv[1:]:
        with TARGET.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def row(name: str) -> dict[str, Any]:
    """Return one model's row."""
    weights = torchvision.models.get_model_weights(name).DEFAULT
    model, inputs = build(name, weights)
    run = flopprof.count_flops(model, inputs).run
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*inputs)
    gmacs = run.totals.matmul_flops / 2e9
    published = weights.meta["_ops"]
    verdicts = run.sites["verdict"].value_counts()
    return {
        "model": name,
        "input": run.provenance.called.input,
        "gmacs": round(gmacs, 4),
        "published_gmacs": published,
        "ratio": round(gmacs / published, 4),
        "flop_counter_mode_gmacs": round(counter.get_total_flops() / 2e9, 4),
        "hooks_gmacs": round(float(run.module_calls["self_hook_matmul_flops"].sum()) / 2e9, 4),
        "unknown": int(verdicts.get("unknown", 0) - (run.sites["flops_source"] == "hook").sum()),
        "disagrees": int(verdicts.get("disagrees", 0)),
        "why": next((why for part, why in WHY.items() if part in name), ""),
    }


def build(name: str, weights: Any) -> tuple[torch.nn.Module, tuple[Any, ...]]:
    """Return the model, with random weights, and an input of the size its transforms make."""
    kind = torchvision_builder(name).__module__
    torch.manual_seed(0)
    model = torchvision_model(name).eval()
    inputs = [torch.rand(*size) for size in input_sizes(kind, weights.transforms())]
    return model, (inputs,) if "detection" in kind else tuple(inputs)


if __name__ == "__main__":
    main()
