"""Say what a generation by a pipeline of diffusers costs: its parts, and its denoiser each step."""

from typing import TYPE_CHECKING

import pandas as pd

from flopprof.units import si

if TYPE_CHECKING:
    from torch import nn


def steps_told(model: "nn.Module", sites: pd.DataFrame) -> list[str]:
    """Return in words each part's FLOPs and those of a generation; nothing of any other model."""
    from flopprof.model.pipelines import PipelineCall

    if not isinstance(model, PipelineCall):
        return []
    flops = {share.part: _flops_of(share.part, sites) for share in model.shares}
    part_texts = [
        f"{share.part} {si(flops[share.part], 'FLOPs')}{' a step' if share.is_each_step else ''}"
        for share in model.shares
    ]
    once = sum(flops[share.part] for share in model.shares if not share.is_each_step)
    step = sum(flops[share.part] for share in model.shares if share.is_each_step)
    total = si(once + model.steps * step, "FLOPs")
    guided = si(2 * (once - _decoding(flops)) + _decoding(flops) + 2 * model.steps * step, "FLOPs")
    plain = f"{si(once, 'FLOPs')} + {model.steps} × {si(step, 'FLOPs')} = {total}"
    is_unknown = bool(sites["flops"].isna().any())
    least = "at least " if is_unknown else ""
    return [
        f"one call of each part is counted: {', '.join(part_texts)}; an image in {model.steps} "
        f"steps takes {least}{plain}; with classifier-free guidance, which calls text encoders and "
        f"denoiser on twice as much, {least}{guided}"
    ]


def _decoding(flops: dict[str, float]) -> float:
    return sum(value for part, value in flops.items() if "vae" in part or part == "movq")


def _flops_of(part: str, sites: pd.DataFrame) -> float:
    """Return the known FLOPs of the sites below a part."""
    paths = sites["module_path"].astype(str)
    own = sites[(paths == part) | paths.str.startswith(f"{part}.")]
    return float(own["flops"].sum())
