"""Load a Hugging Face folder: the config says which class of transformers, the weights its state.

Nothing of the folder is executed: a config that asks for code of its own is refused.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from flopprof import dtypes
from flopprof.errors import FlopprofError, LoadError, ModelError, UnknownArchitectureError
from flopprof.model import Loaded, Request, loader, refuse_code
from flopprof.model.architectures import Architecture, build
from flopprof.model.building import check_room
from flopprof.model.configs import check_config, model_inputs, section, text
from flopprof.model.fit import fit_weights
from flopprof.model.weights import read_weights
from flopprof.units import safe_text, shape_text

# Parts of models that keys begin with, and that are no model type.
_PARTS = ("encoder", "decoder", "model", "transformer", "module", "embeddings", "layers", "h")
_TAKE_ITS_CONFIG = "take the config.json that was saved with the model"


@loader("huggingface")
def load_folder(request: Request) -> Loaded:
    """Return the model that the folder's config.json describes, with the folder's weights."""
    config = request.contents.config
    path = safe_text(request.contents.path)
    if "auto_map" in config and not text(config, "model_type"):
        refuse_code(request, "a model with code of its own (auto_map)")
    if name := text(config, "architecture"):  # as timm writes it
        of_timm = replace(request, arch=f"timm:{name}")
        return fit_weights(of_timm, "timm folder", lambda: read_weights(request.contents))
    if request.arch is not None:
        source = "weights in the folder"
        return fit_weights(request, source, lambda: read_weights(request.contents))
    check_config(config, path)
    if not text(config, "model_type"):
        config = {**config, "model_type": _type_by_keys(request.contents.tensors)}
    model_class, settings = _configured(config, path)
    architecture = Architecture(
        f"transformers:{model_class.__name__}", lambda: model_class._from_config(settings)
    )
    try:
        if not request.meta:
            check_room(build(architecture, meta=True), path)
        model = build(architecture, meta=request.meta)
    except ModelError as error:
        reason = error.problem.partition(" raised ")[2]
        fact = f"{path}: its config.json makes no {model_class.__name__}: {reason}"
        raise LoadError(fact, remedy=_TAKE_ITS_CONFIG) from error
    notes = take_weights(model, request)
    are_read = bool(request.contents.tensors) and not _quantisation(request.contents.config)
    return Loaded(
        model,
        architecture.text,
        "Hugging Face file" if Path(request.contents.path).is_file() else "Hugging Face folder",
        input_hint=model_inputs(str(model_class.main_input_name), config),
        recognised_by="config.json",
        weights="file" if are_read else "random",
        warnings=tuple(notes),
    )


def _type_by_keys(tensors: Mapping[str, Any]) -> str:
    """Return the model type that most keys begin with, as in "bert.encoder…"; '' for all else.

    Configurations of before transformers 2.5 do not name it.
    """
    prefixes = Counter(key.partition(".")[0] for key in tensors)
    if not prefixes:
        return ""
    prefix, count = prefixes.most_common(1)[0]
    is_type = 2 * count > len(tensors) and prefix not in _PARTS and prefix.isidentifier()
    return prefix if is_type else ""


def _configured(config: Mapping[str, Any], path: str) -> tuple[Any, Any]:
    """Return the class of transformers and its settings.

    Raises:
        UnknownArchitectureError: transformers is not there, or knows no such model.
    """
    kind = text(config, "model_type")
    names = config.get("architectures")
    class_name = safe_text(names[0] if isinstance(names, list) and names else kind)
    if not kind:
        fact = f"{path} is of Hugging Face's, and its config.json names no model_type"
        remedy = 'write it there, such as "model_type": "bert"; or name its code: '
        raise UnknownArchitectureError(fact, remedy=f"{remedy}--arch my_net.py:build")
    try:
        import transformers
    except ImportError as error:
        raise UnknownArchitectureError(
            f"{path} is transformers {class_name}, and transformers is not installed",
            remedy="pip install transformers",
        ) from error
    if kind not in transformers.CONFIG_MAPPING:
        fact = f"{path}: transformers {transformers.__version__} knows no model_type {kind!r}"
        raise UnknownArchitectureError(safe_text(fact), remedy="pip install -U transformers")
    try:
        settings = transformers.CONFIG_MAPPING[kind].from_dict(_without_quantisation(config))
        cls = getattr(transformers, class_name, None)
        if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
            cls = transformers.MODEL_MAPPING[type(settings)]
    except Exception as error:  # what its validation raises
        reason = str(error).partition("\n")[0]
        fact = f"{path}: its config.json does not fit {class_name}: {safe_text(reason)}"
        raise LoadError(fact, remedy=_TAKE_ITS_CONFIG) from error
    return (cls[0] if isinstance(cls, tuple) else cls), settings


def _without_quantisation(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of the dense model, which is what is counted."""
    return {key: value for key, value in config.items() if key != "quantization_config"}


def take_weights(model: nn.Module, request: Request) -> list[str]:
    """Give the model the folder's tensors, and return what to say of those it does not have."""
    tensors = request.contents.tensors
    if not tensors:
        return ["the folder holds no weights: their values are random"]
    if method := _quantisation(request.contents.config):
        return [
            f"its weights are packed by {method} ({len(tensors)} tensors) and were not read: the "
            "dense model that they stand for is counted, with random values"
        ]
    state = dict(model.state_dict(keep_vars=True))
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    fits = {}
    for key in state:  # a file of the base model alone lacks its prefix, and the other way round
        for name in (key, key.removeprefix(prefix), prefix + key):
            if name in tensors:
                fits[key] = name
                break
    misfit = [key for key, name in fits.items() if tensors[name].shape != state[key].shape]
    placed = {id(state[key]) for key in fits}  # tied tensors lie in one place
    weights = None if request.meta else read_weights(request.contents)
    if misfit or len(placed) < len({id(tensor) for tensor in state.values()}):
        converted = _convert(model, request, weights)
        if converted is not None:
            return converted
    if misfit:
        name = fits[misfit[0]]
        raise LoadError(
            f"{safe_text(request.contents.path)}: {safe_text(name)} is "
            f"{shape_text(tensors[name].shape)}, by its config.json "
            f"{shape_text(tuple(state[misfit[0]].shape))}",
            remedy="take the config.json that was saved with the weights",
        )
    for key, name in fits.items():
        state[key].data = _empty(tensors[name]) if weights is None else weights[name]
    return _lacking([key for key, tensor in state.items() if id(tensor) not in placed], len(state))


def _lacking(keys: list[str], count: int) -> list[str]:
    """Return a note on which of the model's `count` tensors stay random; [] where none does."""
    if not keys:
        return []
    shown = safe_text(", ".join(keys[:3]))
    return [f"{len(keys)} of {count} tensors are not in the folder: random ({shown}, …)"]


def _empty(info: Any) -> torch.Tensor:
    return torch.empty(info.shape, dtype=getattr(torch, info.dtype), device="meta")


def _quantisation(config: Mapping[str, Any]) -> str:
    """Return in words by which method the weights are quantised; '' where they are not."""
    settings = config.get("quantization_config")
    settings = settings or section(config, "text_config").get("quantization_config")
    if not isinstance(settings, dict) or not settings:
        return ""
    bits = ""
    if type(settings.get("bits")) is int:
        bits = f"{settings['bits']} bits, "
    elif settings.get("load_in_4bit") is True:
        bits = "4 bits, "
    elif settings.get("load_in_8bit") is True:
        bits = "8 bits, "
    method = text(settings, "quant_method") or "a method that it does not name"
    return f"{safe_text(method, 40)} ({bits}quantization_config)"


def _convert(
    model: Any, request: Request, weights: Mapping[str, torch.Tensor] | None
) -> list[str] | None:
    """Load weights whose keys transformers renames or joins, by its own rules.

    Returns:
        What to say of the tensors that are not there; None where the rules do not help: none are
        for this model, transformers is older than 5, or they leave more tensors out.
    """
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig
        from transformers.utils import logging as transformers_logging
    except ImportError:
        return None
    tensors = request.contents.tensors
    floats = Counter(info.dtype for info in tensors.values() if dtypes.is_floating(info.dtype))
    if floats:
        model.to(getattr(torch, floats.most_common(1)[0][0]))
    if weights is None:
        weights = {key: _empty(info) for key, info in tensors.items()}
    device = "meta" if request.meta else "cpu"
    progress: Any = transformers_logging
    shows_progress = progress.is_progress_bar_enabled()
    progress.disable_progress_bar()
    try:
        rules = get_model_conversion_mapping(model)
        settings = LoadStateDictConfig(weight_mapping=cast("Any", rules), device_map={"": device})
        info, _ = convert_and_load_state_dict_in_model(model, dict(weights), settings)
    except FlopprofError:
        raise
    except Exception:  # whatever rules of another version raise on these tensors
        return None
    finally:
        if shows_progress:
            progress.enable_progress_bar()
    if info.mismatched_keys or info.conversion_errors:
        return None
    tie = getattr(model, "tie_weights", None)
    if callable(tie):
        tie()
    state = dict(model.state_dict(keep_vars=True))
    missing = set(map(str, info.missing_keys))
    placed = {id(tensor) for key, tensor in state.items() if key not in missing}
    lacking = [key for key in missing if key in state and id(state[key]) not in placed]
    notes = _lacking(sorted(lacking), len(state))
    if info.unexpected_keys:
        shown = safe_text(", ".join(sorted(map(str, info.unexpected_keys))[:3]))
        count = len(info.unexpected_keys)
        notes.append(f"{count} of the folder's tensors are not this model's: left out ({shown})")
    return notes
