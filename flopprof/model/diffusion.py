"""Load a model of diffusers: its config.json names the class, the weights are its state."""

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


def _input(name: str, config: dict[str, Any]) -> str | None:
    """Return the inputs of the commonest classes, as specs; None for the others."""
    channels = number(config, "in_channels", default=4)
    sides = "x".join(map(str, image_size(config, 64)))
    if name == "UNet2DConditionModel":
        width = number(config, "cross_attention_dim", default=768)
        return (
            f"sample=1x{channels}x{sides} timestep=1:int64 "
            f"encoder_hidden_states=1x{_TOKENS}x{width}"
        )
    if name == "UNet2DModel":
        return f"sample=1x{channels}x{sides} timestep=1:int64"
    if name.startswith("AutoencoderKL"):
        return f"sample=1x{channels}x{sides}"
    return None
