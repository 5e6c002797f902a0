"""Fill results/: real runs of real models on this machine, each as chart, table and metadata.

usage: scripts/make_results.py [--device cpu|cuda] [MODEL …]

Writes results/DEVICE/MODEL.png (chart), MODEL.csv (sites), meta.json (how it was made) and
accuracy.csv: our counts beside torchvision's published GMACs and FlopCounterMode's; and the list of
all formulas, results/formulas.txt.
"""

import argparse
import contextlib
import io
import json
import math
import platform
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode

import flopprof
from flopprof.cli import main as flopprof_main
from flopprof.run import to_json

ROOT = Path(__file__).resolve().parents[1]
MODELS = (
    "resnet18",
    "resnet50",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "vit_b_16",
    "swin_t",
    "convnext_tiny",
    "densenet121",
)


def main() -> int:
    """Profile each model, write its files, then the table of all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL")
    args = parser.parse_args()
    rows, meta = [], {}
    for name in args.models:
        print(f"{name} …", file=sys.stderr)
        weights = torchvision.models.get_model_weights(name).DEFAULT
        size = weights.transforms().crop_size[0]
        torch.manual_seed(0)
        model = torchvision.models.get_model(name).eval()
        run = flopprof.profile(model, (1, 3, size, size), device=args.device)
        folder = ROOT / "results" / _slug(args.device, run.meta["device"])
        folder.mkdir(parents=True, exist_ok=True)
        run.plot_roofline(folder / f"{name}.png")
        run.sites.to_csv(folder / f"{name}.csv", index=False)
        rows.append(_accuracy(name, model, size, weights, run))
        meta[name] = {key: run.meta[key] for key in run.meta if key != "never_called"}
    pd.DataFrame(rows).to_csv(folder / "accuracy.csv", index=False)
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    about = {
        "command": " ".join(["scripts/make_results.py", *sys.argv[1:]]),
        "commit": commit,
        "flopprof": flopprof.__version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
        "runs": meta,
    }
    (folder / "meta.json").write_text(json.dumps(to_json(about), indent=1) + "\n")
    listed = io.StringIO()
    with contextlib.redirect_stdout(listed):
        flopprof_main(["formulas"])
    (ROOT / "results" / "formulas.txt").write_text(listed.getvalue())
    print(f"wrote {folder.relative_to(ROOT)}")
    return 0


def _slug(device: str, described: dict[str, object]) -> str:
    if device == "cpu":
        return "cpu"
    return "gpu-" + re.sub(r"[^a-z0-9]+", "-", str(described["name"]).lower()).strip("-")


def _accuracy(
    name: str, model: torch.nn.Module, size: int, weights: object, run: flopprof.Run
) -> dict[str, object]:
    """Return one model's row: every count there is of it, and what flopprof says of its own."""
    model = model.to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, size, size, device="meta"))
    on_meta = flopprof.count_flops(model, (1, 3, size, size))
    hooks = run.module_calls["self_hook_matmul_flops"].sum()
    published = 1e9 * weights.meta["_ops"]  # type: ignore[attr-defined]  # GMACs
    totals = run.totals
    return {
        "model": name,
        "input": run.meta["input"],
        "matmul_flops": totals.matmul_flops,
        "vector_flops": totals.vector_flops,
        "published_gmacs": published / 1e9,
        "ratio_to_published": round(totals.matmul_flops / 2 / published, 5),
        "flop_counter_mode_meta": counter.get_total_flops(),
        "matmul_flops_on_meta": on_meta.matmul_flops,
        "vector_flops_on_meta": on_meta.vector_flops,
        "hook_matmul_flops": int(hooks),
        "sites": len(run.sites),
        "disagrees": int((run.sites["verdict"] == "disagrees").sum()),
        "unknown": int(run.sites["verdict"].isin(("unknown", "hidden")).sum()),
        "coverage_frac": round(totals.coverage_frac, 5),
        "wall_ms": round(totals.wall_us / 1e3, 2),
        "gflops_per_s": round(totals.flops_per_s / 1e9, 1),
        "slowdown_frac": round(float(run.meta.get("slowdown_frac", math.nan)), 3),
    }


if __name__ == "__main__":
    sys.exit(main())
