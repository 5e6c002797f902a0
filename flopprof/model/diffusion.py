"""Load a model of diffusers: its config.json names the class, the weights are its state."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from flopprof.errors import UnknownArchitectureError
from flopprof.model import Loaded, Request, loader
from flopprof.model.architectures import Architecture
from flopprof.model.configs import check_config, image_size, number, text
from flopprof.model.fit import fit_to, fit_weights
from flopprof.model.weights import read_weights
from flopprof.units import safe_text

_TOKENS = 77  # of CLIP's text encoder
_SIGMA_SIDE = 128  # the latent side from which on PixArt knows resolution and aspect ratio
_LONG_TEXTS = {
    "Flux": 512,
    "StableDiffusion3": 256,
    "PixArtAlpha": 120,
    "PixArtSigma": 300,
    "Sana": 300,
    "AuraFlow": 256,
    "Lumina": 256,
}
"""Tokens that T5 and its like are given, by how the pipeline's class begins: its own default."""


@loader("diffusers")
def load_diffusers(request: Request) -> Loaded:
    """Return the model of diffusers that config.json describes, with the folder's weights."""
    contents = request.contents
    path = safe_text(contents.path)
    config = contents.config
    if request.arch is not None:
        source = "weights of diffusers by"
        return fit_weights(request, source, lambda: read_weights(contents))
    name = text(config, "_class_name")
    fact = f"{path} is diffusers' {safe_text(name)} with {len(contents.tensors)} tensors"
    try:
        diffusers = import_module("diffusers")
    except ImportError as error:
        raise UnknownArchitectureError(
            f"{fact}, and diffusers is not installed",
            remedy="pip install diffusers, or name its code: --arch my_net.py:build",
        ) from error
    cls: Any = getattr(diffusers, name, None) if name.isidentifier() else None
    if not hasattr(cls, "from_config"):
        remedy = "pip install -U diffusers, or name its code: --arch my_net.py:build"
        raise UnknownArchitectureError(f"{fact}, which diffusers does not have", remedy=remedy)
    check_config(config, path)
    settings = {key: value for key, value in config.items() if not key.startswith("_")}
    architecture = Architecture(
        f"diffusers:{name}", lambda: cls.from_config(settings), _input(name, config)
    )
    return fit_to(architecture, request, "diffusers folder", lambda: read_weights(contents))


def latent_side(config: Mapping[str, Any]) -> int:
    """Return the side of the latent image that a denoiser's configuration is made for."""
    is_flux = text(config, "_class_name").startswith("Flux")  # says no size: its own is 1024 pixels
    return image_size(config, 128 if is_flux else 64)[0]


def text_tokens(pipeline: str, model_type: str) -> int:
    """Return how many tokens a pipeline gives a text encoder: all that it is padded to."""
    if "clip" in model_type or not model_type:
        return _TOKENS
    lengths = (length for name, length in _LONG_TEXTS.items() if pipeline.startswith(name))
    return next(lengths, _TOKENS)


def _input(name: str, config: dict[str, Any]) -> str | None:
    """Return the inputs of the commonest classes, as specs; None for the others."""
    channels = number(config, "in_channels", default=4)
    side = latent_side(config)
    image = f"1x{channels}x{side}x{side}"
    if name == "UNet2DConditionModel":
        width = number(config, "cross_attention_dim", default=768)
        condition = f"encoder_hidden_states=1x{_TOKENS}x{width}"
        return f"sample={image} timestep=1:int64 {condition}{_sdxl(config)}"
    if name == "UNet2DModel":
        return f"sample={image} timestep=1:int64"
    if name.startswith("AutoencoderKL"):
        return f"sample={image}"
    if name == "DiTTransformer2DModel":
        classes = number(config, "num_embeds_ada_norm", default=1000)
        return f"hidden_states={image} timestep=1:int64 class_labels=1:int64:0-{classes - 1}"
    if name == "PixArtTransformer2DModel":
        width = number(config, "caption_channels", default=4096)
        is_sigma = side >= _SIGMA_SIDE
        tokens = _LONG_TEXTS["PixArtSigma" if is_sigma else "PixArtAlpha"]
        added = "{resolution:None,aspect_ratio:None}"
        if config.get("use_additional_conditions", is_sigma):
            added = "{resolution:1x2,aspect_ratio:1x1}"
        return (
            f"hidden_states={image} timestep=1:int64 encoder_hidden_states=1x{tokens}x{width} "
            f"added_cond_kwargs={added}"
        )
    if name == "SD3Transformer2DModel":
        width = number(config, "joint_attention_dim", default=4096)
        pooled = number(config, "pooled_projection_dim", default=2048)
        tokens = _TOKENS + _LONG_TEXTS["StableDiffusion3"]
        return (
            f"hidden_states={image} timestep=1:int64 encoder_hidden_states=1x{tokens}x{width} "
            f"pooled_projections=1x{pooled}"
        )
    if name == "FluxTransformer2DModel":
        return _flux(config, channels, side)
    return None


def _sdxl(config: Mapping[str, Any]) -> str:
    """Return what SDXL's UNet takes besides: the pooled text, and six sizes."""
    if text(config, "addition_embed_type") != "text_time":
        return ""
    size_width = number(config, "addition_time_embed_dim", default=256)
    joint_width = number(config, "projection_class_embeddings_input_dim", default=2816)
    pooled = joint_width - 6 * size_width
    return f" added_cond_kwargs={{text_embeds:1x{pooled},time_ids:1x6}}" if pooled > 0 else ""


def _flux(config: Mapping[str, Any], channels: int, side: int) -> str:
    """Return Flux's inputs: patches of 2 × 2 latents in a row, the text, and where both lie."""
    patches = (side // 2) ** 2
    tokens = _LONG_TEXTS["Flux"]
    guidance = " guidance=1:float32" if config.get("guidance_embeds") is True else ""
    return (
        f"hidden_states=1x{patches}x{channels} timestep=1:float32 "
        f"encoder_hidden_states=1x{tokens}x{number(config, 'joint_attention_dim', default=4096)} "
        f"pooled_projections=1x{number(config, 'pooled_projection_dim', default=768)} "
        f"img_ids={patches}x3 txt_ids={tokens}x3{guidance}"
    )
