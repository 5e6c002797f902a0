"""Load a pipeline of diffusers: its models, each called once as the pipeline calls them.

A generation calls the text encoders once, the denoiser once a step, the decoder once. Inputs are
named after the part that they go to: `unet__sample`, `text_encoder__input_ids`.
"""

import inspect
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from typing import Any, NamedTuple

from torch import nn

from flopprof.errors import LoadError
from flopprof.model import LOADERS, Loaded, Request, loader
from flopprof.model.configs import number, text
from flopprof.model.contents import Contents
from flopprof.model.diffusion import latent_side, text_tokens
from flopprof.units import safe_text

_BETWEEN = "__"  # a part's name and its input's
_DENOISERS = ("unet", "transformer")
_DECODERS = ("vae", "vqvae", "movq")
_NEVER = 9  # the place of a part that a plain generation does not call
_USUAL_STEPS = 50  # of a generation, where the pipeline's class does not say
_MAX_STEPS = 100_000


class Share(NamedTuple):
    """How often a generation calls a part."""

    part: str
    is_each_step: bool


class PipelineCall(nn.Module):
    """The models of a pipeline; called, each runs once, and of the autoencoder its decoder.

    Attributes:
        shares: How often a generation calls each.
        steps: Of a generation, as the pipeline's class has it.
    """

    def __init__(self, parts: Mapping[str, nn.Module], steps: int) -> None:
        super().__init__()
        self.shares = tuple(Share(part, part in _DENOISERS) for part in parts)
        self.steps = steps
        for part, model in parts.items():
            self.add_module(part, model)

    def forward(self, **inputs: Any) -> dict[str, Any]:
        """Return each part's result, by its name."""
        results = {}
        for part, _ in self.shares:
            prefix = part + _BETWEEN
            own = {
                name.removeprefix(prefix): value
                for name, value in inputs.items()
                if name.startswith(prefix)
            }
            model: Any = getattr(self, part)
            results[part] = model.decode(**own) if part in _DECODERS else model(**own)
        return results


@loader("pipeline")
def load_pipeline(request: Request) -> Loaded:
    """Return the pipeline's text encoders, denoiser and decoder as one module.

    Raises:
        LoadError: None of them is in the folder.
        UnknownArchitectureError: diffusers or transformers is not installed, or too old.
    """
    contents = request.contents
    path = safe_text(contents.path)
    parts: dict[str, Loaded] = {}
    left_out = []
    for part in sorted(contents.parts, key=_order):
        if _order(part) == _NEVER:
            left_out.append(part)
            continue
        parts[part] = _load_part(contents.parts[part], request)
    if not any(part in _DENOISERS for part in parts):
        fact = f"{path} is a diffusers pipeline without its unet or transformer"
        raise LoadError(fact, remedy="download the folder again, or name one of its models")
    name = text(contents.config, "_class_name")
    module = PipelineCall({part: loaded.model for part, loaded in parts.items()}, _steps_of(name))
    notes = [f"{part}: {note}" for part, loaded in parts.items() for note in loaded.warnings]
    if left_out:
        notes.append(f"not called by a plain generation, and not counted: {', '.join(left_out)}")
    return Loaded(
        module,
        f"diffusers:{safe_text(name)}",
        "diffusers pipeline",
        weights="file" if all(loaded.weights == "file" for loaded in parts.values()) else "random",
        input_hint=_inputs(contents, parts),
        recognised_by="model_index.json",
        warnings=tuple(safe_text(note, 1000) for note in notes),
    )


def _order(part: str) -> int:
    """Return when a generation calls a part; those that a plain one does not call come last."""
    if part.startswith("text_encoder"):
        return 0
    if part in _DENOISERS:
        return 1
    return 2 if part in _DECODERS else _NEVER


def _load_part(folder: Contents, request: Request) -> Loaded:
    """Return one model of the pipeline."""
    load = LOADERS.get(folder.kind)
    if load is None:
        fact = f"{safe_text(folder.path)} holds no model that flopprof loads"
        raise LoadError(fact, remedy="download the folder again")
    return load(replace(request, contents=folder, arch=None))


def _inputs(contents: Contents, parts: Mapping[str, Loaded]) -> str | None:
    """Return the inputs of one call of each part, by name; None where those of one are unknown."""
    denoiser = next(part for part in _DENOISERS if part in parts)
    side = latent_side(contents.parts[denoiser].config)
    specs = []
    for part, loaded in parts.items():
        config = contents.parts[part].config
        if part in _DECODERS:
            hint: str | None = f"z=1x{number(config, 'latent_channels', default=4)}x{side}x{side}"
        elif part.startswith("text_encoder"):
            tokens = text_tokens(text(contents.config, "_class_name"), text(config, "model_type"))
            hint = f"input_ids=1x{tokens}:int64:0-{number(config, 'vocab_size', default=1000) - 1}"
        else:
            hint = loaded.input_hint
        if hint is None:
            return None
        specs += [f"{part}{_BETWEEN}{spec}" for spec in hint.split()]
    return " ".join(specs)


def _steps_of(class_name: str) -> int:
    """Return how many steps the pipeline's class takes unless told."""
    diffusers = import_module("diffusers")
    cls: Any = getattr(diffusers, class_name, None) if class_name.isidentifier() else None
    try:
        steps = inspect.signature(cls.__call__).parameters["num_inference_steps"].default
    except (AttributeError, KeyError, TypeError, ValueError):
        return _USUAL_STEPS
    return steps if type(steps) is int and 0 < steps <= _MAX_STEPS else _USUAL_STEPS
