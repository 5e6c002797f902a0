"""Stage `models`: whole models profiled, each a run folder with its chart, packed into one file."""

import io
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import make_results
import torch
import torchvision
import transformers
from torch import nn

import flopprof
from acceptance.journal import MOST_BYTES, Part, write_whole
from acceptance.stage import NEEDS_CUDA, Place, SkipUnitError, run_units
from flopprof.capture.training import Training
from flopprof.judge.roofs import above_roof
from flopprof.report.folder import CHART, save_run
from flopprof.run import Run

NEEDS_S = 30.0
ARCHIVE = "models.zip"
MOST_OF_A_TRACE = 400_000  # bytes: larger ones are left out of the archive
LEAST_LINKED = 0.9  # of the compute kernels' time
FEW: dict[str, Any] = {"repeats": 1, "warmup": 1, "traces": 1, "ceilings": False}

Built = tuple[nn.Module, Any]


@dataclass(frozen=True, slots=True)
class Case:
    """One model.

    Attributes:
        build: Returns it and its inputs, small where asked.
        options: As for `flopprof.profile`.
    """

    build: Callable[[bool], Built]
    options: dict[str, Any] = field(default_factory=dict)


def _resnet50(small: bool) -> Built:
    """Return ResNet-50 in halves and channels_last, batch 64."""
    dtype = torch.bfloat16 if small else torch.float16
    batch, side = (1, 64) if small else (64, 224)
    model = torchvision.models.resnet50().to(dtype).to(memory_format=torch.channels_last)
    x = torch.randn(batch, 3, side, side, dtype=dtype)
    return model, (x.to(memory_format=torch.channels_last),)


def _compiled(small: bool) -> Built:
    """Return what is to be compiled: ResNet-50; a convolution and its norm."""
    if not small:
        return _resnet50(small)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    return model, (torch.randn(1, 3, 8, 8),)


def _vit_large(small: bool) -> Built:
    """Return ViT-L/16 in bfloat16, batch 32."""
    if small:
        sizes = {"num_layers": 2, "num_heads": 2, "hidden_dim": 64, "mlp_dim": 128}
        model = torchvision.models.VisionTransformer(image_size=32, patch_size=16, **sizes)
        return model.to(torch.bfloat16), (torch.randn(1, 3, 32, 32, dtype=torch.bfloat16),)
    model = torchvision.models.vit_l_16().to(torch.bfloat16)
    return model, (torch.randn(32, 3, 224, 224, dtype=torch.bfloat16),)


def _llama_config(small: bool) -> Any:
    """Return the sizes of a Llama of 1 B parameters, as of 3.2."""
    sizes = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
    sizes |= {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256}
    if small:
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
        sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256}
    return transformers.LlamaConfig(**sizes, max_position_embeddings=4096)


def _llama_prefill(small: bool) -> Built:
    config = _llama_config(small)
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    return model, (torch.randint(config.vocab_size, (1, 16 if small else 2048)),)


class Decoding(nn.Module):
    """One token more, after a context whose keys and values are there."""

    def __init__(self, config: Any, context: int) -> None:
        super().__init__()
        self.model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
        width = config.hidden_size // config.num_attention_heads
        size = (1, config.num_key_value_heads, context, width)
        for layer in range(config.num_hidden_layers):
            self.register_buffer(f"keys{layer}", torch.randn(size, dtype=torch.bfloat16))
            self.register_buffer(f"values{layer}", torch.randn(size, dtype=torch.bfloat16))

    def forward(self, token: torch.Tensor) -> torch.Tensor:
        """Return the scores of the next token."""
        cache = transformers.DynamicCache()
        for layer in range(self.model.config.num_hidden_layers):
            cache.update(getattr(self, f"keys{layer}"), getattr(self, f"values{layer}"), layer)
        scores: torch.Tensor = self.model(token, past_key_values=cache, use_cache=True).logits
        return scores


def _llama_decode(small: bool) -> Built:
    config = _llama_config(small)
    model = Decoding(config, context=8 if small else 2048)
    return model, (torch.randint(config.vocab_size, (1, 1)),)


class UNet(nn.Module):
    """A diffusion U-Net: three levels of residual blocks, attention over the smallest's pixels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        block = make_results.Residual
        wider, widest = 2 * width, 4 * width
        self.embed = nn.Sequential(nn.Linear(128, 512), nn.SiLU(), nn.Linear(512, 512))
        self.enter = nn.Conv2d(4, width, 3, padding=1)
        self.down = nn.ModuleList([block(width, width), block(width, wider), block(wider, widest)])
        self.norm = nn.GroupNorm(32, widest)
        self.attention = nn.MultiheadAttention(widest, 8, batch_first=True)
        self.middle = block(widest, widest)
        self.up = nn.ModuleList([
            block(2 * widest, wider), block(2 * wider, width), block(2 * width, width)
        ])  # fmt: skip
        self.leave = nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """Return the noise in `x` at that step."""
        step = self.embed(step)
        h = self.enter(x)
        skips = []
        for block in self.down:
            h = block(h, step)
            skips.append(h)
            h = nn.functional.avg_pool2d(h, 2)
        pixels = self.norm(h).flatten(2).transpose(1, 2)
        seen, _ = self.attention(pixels, pixels, pixels, need_weights=False)
        h = self.middle(h + seen.transpose(1, 2).reshape(h.shape), step)
        for block in self.up:
            h = nn.functional.interpolate(h, scale_factor=2.0)
            h = block(torch.cat([h, skips.pop()], dim=1), step)
        noise: torch.Tensor = self.leave(h)
        return noise


def _unet(small: bool) -> Built:
    dtype = torch.float32 if small else torch.float16
    batch, side = (1, 16) if small else (8, 64)
    model = UNet(32 if small else 256).to(dtype)
    return model, (torch.randn(batch, 4, side, side, dtype=dtype),
                   torch.randn(batch, 128, dtype=dtype))  # fmt: skip


def _gpt2(small: bool) -> Built:
    sizes = {"n_layer": 2, "n_embd": 64, "n_head": 2, "vocab_size": 256} if small else {}
    config = transformers.GPT2Config(use_cache=False, **sizes)
    model = transformers.GPT2LMHeadModel(config)
    return model, (torch.randint(config.vocab_size, (1, 16) if small else (8, 1024)),)


def _mean_of_scores(output: Any) -> torch.Tensor:
    loss: torch.Tensor = output.logits.float().mean()
    return loss


_TRAINING = {"train": Training(loss=_mean_of_scores, optimizer="adamw"), "autocast": "bfloat16"}
LARGER = {
    "resnet50_b64_fp16_channels_last": Case(_resnet50),
    "vit_l_16_bf16": Case(_vit_large),
    "llama_1b_prefill": Case(_llama_prefill),
    "llama_1b_decode": Case(_llama_decode),
    "diffusion_unet_fp16": Case(_unet),
    "gpt2_training_step": Case(_gpt2, _TRAINING),
    "resnet50_compiled": Case(_compiled, {"compile": "default"}),
}
COMPILED_AT_LENGTH = "resnet18_compiled"  # minutes of a CPU, for what another one rehearses


def units() -> list[str]:
    """Return the models' names."""
    return [*make_results.MODELS, *LARGER]


def run(place: Place, part: Part) -> bool:
    """Profile the models that are left; return whether all were reached."""
    return run_units("models", place, part, units(), profile, needs_s=NEEDS_S)


def build(name: str, small: bool) -> tuple[nn.Module, Any, dict[str, Any]]:
    """Return a model with the same random weights each time, its inputs, and options."""
    torch.manual_seed(0)
    if name in LARGER:
        case = LARGER[name]
        model, inputs = case.build(small)
        return model.eval(), inputs, case.options
    model, inputs = make_results.build(name)
    if small and inputs is make_results.IMAGE and name not in ("vit_b_16", "swin_t"):
        inputs = (1, 3, 64, 64)
    return model, inputs, {}


def profile(name: str, place: Place) -> dict[str, Any]:
    """Profile one model, keep its run, and return its figures."""
    if place.rehearses and name == COMPILED_AT_LENGTH:
        raise SkipUnitError(f"{NEEDS_CUDA}: it compiles for minutes")
    model, inputs, options = build(name, place.rehearses)
    few = FEW if place.rehearses else {}
    result: Run = flopprof.profile(model, inputs, device=place.device, **few, **options)
    _keep(name, result, place.output / ARCHIVE)
    return _figures(result)


def _figures(run: Run) -> dict[str, Any]:
    """Return what the summary tells of a run, and its faults."""
    totals = run.totals
    kernels = run.kernels[run.kernels["kind"] == "compute"]
    spent_us = kernels["duration_us"].sum()
    linked = (
        kernels.loc[kernels["op_id"] >= 0, "duration_us"].sum() / spent_us if spent_us else None
    )
    above = above_roof(run.sites)
    unexplained = above[~above["reason"].str.contains("above the (?:compute|memory) roof: ")]
    faults = [f"{row.op} is above its roof without a reason" for row in unexplained.itertuples()]
    if linked is not None and linked < LEAST_LINKED:
        faults.append(f"{linked:.3f} of the kernels' time is linked to ops")
    disagreeing = run.sites[run.sites["verdict"] == "disagrees"]
    telemetry = getattr(run.provenance, "telemetry", None)
    return {
        "matmul_flops": totals.matmul_flops,
        "vector_flops": totals.vector_flops,
        "coverage_frac": totals.coverage_frac,
        "linked_frac": linked,
        "kernels": len(run.kernels),
        "sites": len(run.sites),
        "disagrees": len(disagreeing),
        "unknown": int(run.sites["verdict"].isin(("unknown", "hidden")).sum()),
        "above_roof": len(above),
        "wall_us": totals.wall_us,
        "flops_per_s": totals.flops_per_s,
        "peak_memory_bytes": getattr(telemetry, "peak_memory_bytes", None),
        "warnings": run.provenance.warning_texts,
        "faults": faults,
    }


def _keep(name: str, run: Run, archive: Path) -> None:
    """Add a run's folder, as the command line writes it, to the archive of all."""
    with tempfile.TemporaryDirectory(prefix="flopprof-run-") as folder:
        target = Path(folder) / f"{name}.flopprof"
        save_run(lambda: run, target, sources=(), force=False, progress=lambda _: None)
        if (target / CHART).exists():
            make_results.shrink_picture(target / CHART)
        packed = io.BytesIO(archive.read_bytes() if archive.exists() else b"")
        with zipfile.ZipFile(packed, "a", zipfile.ZIP_DEFLATED) as file:
            names = set(file.namelist())
        if any(entry.startswith(f"{name}.flopprof/") for entry in names):
            packed = _without(packed, f"{name}.flopprof/")
        with zipfile.ZipFile(packed, "a", zipfile.ZIP_DEFLATED) as file:
            for path in sorted(target.iterdir()):
                if _is_kept(path):
                    file.write(path, f"{target.name}/{path.name}")
    if packed.tell() > MOST_BYTES:
        raise ValueError(f"with {name} the archive would have {packed.tell()} bytes")
    write_whole(archive, packed.getvalue())


def _is_kept(path: Path) -> bool:
    """Return whether a file of a run goes into the archive: no page of HTML, no large trace."""
    if path.suffix == ".html":
        return False
    return "trace" not in path.name or path.stat().st_size <= MOST_OF_A_TRACE


def _without(packed: io.BytesIO, folder: str) -> io.BytesIO:
    """Return the archive without the files of a folder."""
    left = io.BytesIO()
    with zipfile.ZipFile(packed) as old, zipfile.ZipFile(left, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.namelist():
            if not entry.startswith(folder):
                new.writestr(entry, old.read(entry))
    return left
