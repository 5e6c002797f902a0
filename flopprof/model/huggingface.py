"""Load a Hugging Face folder: the config says which class of transformers, the weights its state.

Nothing of the folder is executed: a config that asks for code of its own is refused.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from flopprof.errors import LoadError, UnknownArchitectureError
from flopprof.model import Loaded, Request, loader, refuse_code
from flopprof.model.architectures import Architecture, build, fit_weights
from flopprof.model.programs import read_weights
from flopprof.units import safe_text, shape_text

_TEXT_LENGTH = 128
_SAMPLES = 16_000  # a second of sound


@loader("huggingface")
def load_folder(request: Request) -> Loaded:
    """Return the model that the folder's config.json describes, with the folder's weights."""
    config, path = request.contents.config, safe_text(request.contents.path)
    if "auto_map" in config and config.get("model_type") is None:
        refuse_code(request, "a model with code of its own (auto_map)")
    if isinstance(name := config.get("architecture"), str):  # as timm writes it
        named = Request(request.contents, f"timm:{name}", request.trust, request.meta)
        return fit_weights(named, "timm folder", lambda: read_weights(request))
    if request.arch is not None:
        return fit_weights(request, "weights in the folder", lambda: read_weights(request))
    made, settings = _configured(config, path)
    architecture = Architecture(
        f"transformers:{made.__name__}", lambda: made._from_config(settings)
    )
    model = build(architecture, meta=request.meta)
    notes = _take_weights(model, request)
    return Loaded(
        model,
        architecture.text,
        "Hugging Face folder",
        input_hint=_inputs(made.main_input_name, config),
        recognised_by="config.json",
        weights="file" if request.contents.tensors else "random",
        warnings=tuple(notes),
    )


def _configured(config: Mapping[str, Any], path: str) -> tuple[Any, Any]:
    """Return the class of transformers and its settings.

    Raises:
        UnknownArchitectureError: transformers is not there, or knows no such model.
    """
    kind, names = str(config.get("model_type") or ""), config.get("architectures") or []
    if not kind:
        fact = f"{path} is a Hugging Face model folder whose config.json names no model_type"
        raise UnknownArchitectureError(fact, remedy="name its code: --arch my_net.py:build")
    named = safe_text(f"{names[0] if names else kind}")
    try:
        import transformers
    except ImportError as error:
        raise UnknownArchitectureError(
            f"{path} is transformers {named}, and transformers is not installed",
            remedy="pip install transformers",
        ) from error
    if kind not in transformers.CONFIG_MAPPING:
        fact = f"{path}: transformers {transformers.__version__} knows no model_type {kind!r}"
        raise UnknownArchitectureError(safe_text(fact), remedy="pip install -U transformers")
    try:
        settings = transformers.CONFIG_MAPPING[kind].from_dict(dict(config))
        found = getattr(transformers, named, None)
        if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
            found = transformers.MODEL_MAPPING[type(settings)]
    except Exception as error:  # what its validation raises
        said = str(error).partition("\n")[0]
        fact = f"{path}: its config.json does not fit {named}: {safe_text(said)}"
        raise LoadError(
            fact, remedy="take the config.json that was saved with the model"
        ) from error
    return (found[0] if isinstance(found, tuple) else found), settings


def _take_weights(model: nn.Module, request: Request) -> list[str]:
    """Give the model the folder's tensors, and return what to say of those it does not have."""
    given = request.contents.tensors
    if not given:
        return ["the folder holds no weights: their values are random"]
    state = dict(model.state_dict(keep_vars=True))
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    names = {key: key if key in given else key.removeprefix(prefix) for key in state}
    names = {key: name if name in given else prefix + key for key, name in names.items()}
    fits = {k: n for k, n in names.items() if n in given}
    for key, name in fits.items():
        if given[name].shape != state[key].shape:
            raise LoadError(
                f"{safe_text(request.contents.path)}: {safe_text(name)} is "
                f"{shape_text(given[name].shape)}, by its config.json "
                f"{shape_text(state[key].shape)}",
                remedy="take the config.json that was saved with the weights",
            )
    found = {} if request.meta else read_weights(request)
    for key, name in fits.items():
        dtype = getattr(torch, given[name].dtype)
        shape = given[name].shape
        state[key].data = (
            torch.empty(shape, dtype=dtype, device="meta") if request.meta else found[name]
        )
    placed = {id(state[key]) for key in fits}
    lacking = [key for key, tensor in state.items() if id(tensor) not in placed]
    if not lacking:
        return []
    shown = safe_text(", ".join(lacking[:3]))
    return [f"{len(lacking)} of {len(state)} tensors are not in the folder: random ({shown}, …)"]


def _inputs(main: str, config: Mapping[str, Any]) -> str | None:
    """Return the inputs that a model of this configuration takes, as specs."""
    text = {**config, **(config.get("text_config") or {})}
    vision = {**config, **(config.get("vision_config") or {})}
    longest = text.get("max_position_embeddings") or text.get("n_positions") or _TEXT_LENGTH
    length = min(_TEXT_LENGTH, int(longest))
    words = int(text.get("vocab_size") or 1000)
    ids = f"1x{length}:int64:0-{words}"
    side, channels = vision.get("image_size") or 224, vision.get("num_channels") or 3
    size = side if isinstance(side, list) else [side, side]
    found = {
        "input_ids": f"input_ids={ids}",  # without a mask all count
        "pixel_values": f"pixel_values=1x{channels}x{'x'.join(map(str, size))}",
        "input_features": f"input_features=1x{config.get('num_mel_bins', 80)}x"
        f"{2 * int(config.get('max_source_positions') or 1500)}",
        "input_values": f"input_values=1x{_SAMPLES}",
    }.get(main)
    if "text_config" in config and "vision_config" in config:
        found = f"input_ids={ids} pixel_values=1x{channels}x{'x'.join(map(str, size))}"
    if found and config.get("is_encoder_decoder"):
        found += f" decoder_input_ids={ids}"
    return found
