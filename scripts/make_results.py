"""Fill results/: runs of twelve models with random weights on this machine.

usage: scripts/make_results.py [--device cpu|cuda] [--threads N] [MODEL …]
       scripts/make_results.py --from DIR

Writes into results/DEVICE/MODEL/ the chart (roofline.png), the points on it (points.csv), the
tables sites.csv and rooflines.csv, and meta.json; results/DEVICE/accuracy.csv with a row per model:
our counts beside FlopCounterMode's and torchvision's published GMACs; results/formulas.txt. Models
that are not named keep their files and rows. Run it on a quiet machine. With --from it fills
results/gpu-NAME of what scripts/gpu_acceptance found, and runs nothing.
"""

import argparse
import contextlib
import io
import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd
import torch
import torchvision
import transformers
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import flopprof
from flopprof.cli import main as flopprof_main
from flopprof.errors import FlopprofError
from flopprof.judge.roofs import above_roof
from flopprof.metafile import encode
from flopprof.provenance import CallProvenance

ROOT = Path(__file__).resolve().parents[1]
IMAGE = (1, 3, 224, 224)


class Tagger(nn.Module):
    """A two-layer bidirectional LSTM over embedded words, as taggers have it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10000, 256)
        self.lstm = nn.LSTM(256, 512, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(1024, 64)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        """Return scores per word."""
        return self.head(self.lstm(self.embed(words))[0])


class Residual(nn.Module):
    """A diffusion U-Net's residual block: two normalised convolutions, shifted by the time step."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(32, channels)
        self.norm2 = nn.GroupNorm(32, out)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.time = nn.Linear(512, out)
        self.act = nn.SiLU()
        self.skip = nn.Conv2d(channels, out, 1)

    def forward(self, x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """Return the block's output."""
        shift = self.time(self.act(step))[:, :, None, None]
        inner = self.conv1(self.act(self.norm1(x))) + shift
        return self.conv2(self.act(self.norm2(inner))) + self.skip(x)


class UNetBlock(nn.Module):
    """One level of a diffusion U-Net: down, attention over the pixels, up."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(128, 512), nn.SiLU(), nn.Linear(512, 512))
        self.enter = nn.Conv2d(4, 128, 3, padding=1)
        self.down = Residual(128, 256)
        self.pool = nn.Conv2d(256, 256, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(32, 256)
        self.attention = nn.MultiheadAttention(256, 8, batch_first=True)
        self.up = nn.Upsample(scale_factor=2)
        self.leave = nn.Conv2d(128, 4, 3, padding=1)
        self.merge = Residual(512, 128)

    def forward(self, x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """Return the noise in `x` at that step."""
        step = self.embed(step)
        skip = self.down(self.enter(x), step)
        low = self.pool(skip)
        pixels = self.norm(low).flatten(2).transpose(1, 2)
        attended, _ = self.attention(pixels, pixels, pixels, need_weights=False)
        low = low + attended.transpose(1, 2).reshape(low.shape)
        return self.leave(self.merge(torch.cat([self.up(low), skip], dim=1), step))


def _torchvision(name: str) -> Callable[[], tuple[nn.Module, Any]]:
    return lambda: (torchvision.models.get_model(name), IMAGE)


def _transformer(name: str, length: int = 128, **options: Any) -> tuple[nn.Module, Any]:
    """Return a model of transformers and words for it."""
    kind = options.pop("kind", "Model")
    config = getattr(transformers, f"{name}Config")(**options)
    model = getattr(transformers, f"{name}{kind}")(config)
    return model, torch.randint(config.vocab_size, (1, length))


LLAMA = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 16000,
}
MOE = LLAMA | {"num_hidden_layers": 4, "num_local_experts": 8, "num_experts_per_tok": 2}


def _llama() -> tuple[nn.Module, Any]:
    model, words = _transformer("Llama", kind="ForCausalLM", **LLAMA)
    return model.to(torch.bfloat16), words


def _compiled() -> tuple[nn.Module, Any]:
    return torch.compile(torchvision.models.resnet18().eval()), IMAGE


def _detection() -> tuple[nn.Module, Any]:
    build = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn
    model = build(weights=None, weights_backbone=None, box_score_thresh=0.0)
    return model, ([torch.rand(3, 320, 320)],)


MODELS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "resnet18": _torchvision("resnet18"),
    "resnet18_compiled": _compiled,
    "convnext_tiny": _torchvision("convnext_tiny"),
    "vit_b_16": _torchvision("vit_b_16"),
    "swin_t": _torchvision("swin_t"),
    "lstm": lambda: (Tagger(), torch.randint(10000, (1, 64))),
    "bert": lambda: _transformer("Bert"),
    "gpt2": lambda: _transformer("GPT2", kind="LMHeadModel"),
    "llama_bf16": _llama,
    "moe": lambda: _transformer("Mixtral", kind="ForCausalLM", **MOE),
    "unet_block": lambda: (UNetBlock(), (torch.randn(1, 4, 64, 64), torch.randn(1, 128))),
    "detection": _detection,
}


def build(name: str) -> tuple[nn.Module, Any]:
    """Return a model with the same random weights each time, and its input."""
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    return model.eval(), inputs


def main() -> int:
    """Profile each model, write its files, then the table of all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--from", type=Path, dest="found", metavar="DIR")
    parser.add_argument("models", nargs="*", default=[*MODELS], metavar="MODEL")
    args = parser.parse_args()
    about = {
        "command": " ".join(["scripts/make_results.py", *sys.argv[1:]]),
        "commit": _commit(),
        "torchvision": torchvision.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    if args.found:
        return _of_acceptance(args.found, about)
    rows = []
    for name in args.models:
        print(f"{name} …", file=sys.stderr)
        model, inputs = build(name)
        run = flopprof.profile(model, inputs, device=args.device, threads=args.threads)
        device = ROOT / "results" / _slug(args.device, run.provenance.device.name)
        folder = device / name
        # A load over 1 a thread: times say little.
        write_run(folder, run, about | {"load": os.getloadavg()[0]})
        rows.append(_accuracy(name, run))
    _merge_rows(device / "accuracy.csv", rows)
    listed = io.StringIO()
    with contextlib.redirect_stdout(listed):
        flopprof_main(["formulas"])
    (ROOT / "results" / "formulas.txt").write_text(listed.getvalue())
    print(f"wrote {device.relative_to(ROOT)}")
    return 0


def write_run(folder: Path, run: flopprof.Run, extra: dict[str, Any]) -> None:
    """Write what is kept of a run: chart, its points, sites, roofs, and how it was made."""
    folder.mkdir(parents=True, exist_ok=True)
    chart = folder / "roofline.png"
    run.plot_roofline(chart)
    run.plot_roofline(folder / "points.csv")
    shrink_picture(chart)
    run.sites.to_csv(folder / "sites.csv", index=False)
    run.rooflines.to_csv(folder / "rooflines.csv", index=False)
    environment = msgspec.structs.replace(run.provenance.environment, extra=extra)
    provenance = msgspec.structs.replace(run.provenance, environment=environment)
    (folder / "meta.json").write_bytes(encode(provenance))


def _of_acceptance(acceptance_folder: Path, about: dict[str, Any]) -> int:
    """Fill results/gpu-NAME from a folder of gpu_acceptance; return the exit code."""
    from acceptance.results import fill

    try:
        folder = fill(acceptance_folder, ROOT / "results", about, write_run)
    except FlopprofError as error:
        print(f"make_results: {error.problem}\n  {error.remedy}", file=sys.stderr)
        return error.exit_code
    print(f"wrote {folder.relative_to(ROOT)}")
    return 0


def shrink_picture(path: Path) -> None:
    """Keep 256 colours of a picture: a quarter of the bytes, no eye sees it."""
    with Image.open(path) as opened:
        few = opened.convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE)
    few.save(path, optimize=True, dpi=(200, 200))


def _merge_rows(path: Path, rows: list[dict[str, object]]) -> None:
    """Write the rows into a table, in place of older ones of the same models."""
    table = pd.DataFrame(rows)
    if path.exists():
        old = pd.read_csv(path)
        old = old[old["model"].isin(MODELS) & ~old["model"].isin(table["model"])]
        table = pd.concat([old, table]) if len(old) else table
    order = [*MODELS]
    table.sort_values("model", key=lambda names: names.map(order.index)).to_csv(path, index=False)


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def _slug(device: str, name: str) -> str:
    from acceptance.results import slug

    return "cpu" if device == "cpu" else slug(name)


def _accuracy(name: str, run: flopprof.Run) -> dict[str, object]:
    """Return one model's row: every count there is of it, and what flopprof says of its own."""
    model, inputs = build(name.removesuffix("_compiled"))
    if inputs is IMAGE:  # a size, of which FlopCounterMode needs a tensor
        tensors: tuple[Any, ...] = (torch.zeros(IMAGE),)
    else:
        tensors = inputs if isinstance(inputs, tuple) else (inputs,)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*tensors)
    counted = flopprof.count_flops(model, inputs)
    published = math.nan
    with contextlib.suppress(ValueError):  # not one of torchvision's
        weights = torchvision.models.get_model_weights(name.removesuffix("_compiled")).DEFAULT
        published = weights.meta["_ops"]
    totals = run.totals
    sites = run.sites
    assert isinstance(run.provenance, CallProvenance)
    return {
        "model": name,
        "input": run.provenance.called.input,
        "matmul_flops": totals.matmul_flops,
        "vector_flops": totals.vector_flops,
        "published_gmacs": published,
        "ratio_to_published": round(totals.matmul_flops / 2e9 / published, 5),
        "flop_counter_mode": counter.get_total_flops(),
        "matmul_flops_counted": counted.matmul_flops,
        "vector_flops_counted": counted.vector_flops,
        "sites": len(sites),
        "disagrees": int((sites["verdict"] == "disagrees").sum()),
        "unknown": int(sites["verdict"].isin(("unknown", "hidden")).sum()),
        "above_roof": len(above_roof(sites)),
        "coverage_frac": round(totals.coverage_frac, 5),
        "wall_ms": round(totals.wall_us / 1e3, 2),
        "gflops_per_s": round(totals.flops_per_s / 1e9, 1),
        "slowdown_frac": round(run.provenance.timing.slowdown_frac, 3),
    }


if __name__ == "__main__":
    sys.exit(main())
