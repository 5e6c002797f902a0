"""Load a LoRA adapter of PEFT with the model that it adapts, where that is on this machine."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flopprof.errors import LoadError, UnknownArchitectureError
from flopprof.model import LOADERS, Loaded, Request, loader
from flopprof.model.beside import base_folder
from flopprof.model.configs import text
from flopprof.model.contents import Contents, read_contents
from flopprof.model.detect import detect
from flopprof.model.pickles import TensorInfo
from flopprof.model.weights import read_weights
from flopprof.units import safe_text

_KEY = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.\w+)?\.weight")
_HUB = Path.home() / ".cache" / "huggingface" / "hub"


class LoraLinear(nn.Module):
    """A linear layer and, beside it, two narrow ones whose scaled output is added."""

    def __init__(self, base_layer: nn.Linear, rank: int, scaling: float) -> None:
        super().__init__()
        as_base = {"device": base_layer.weight.device, "dtype": base_layer.weight.dtype}
        self.base_layer = base_layer
        self.lora_A = nn.Linear(base_layer.in_features, rank, bias=False, **as_base)
        self.lora_B = nn.Linear(rank, base_layer.out_features, bias=False, **as_base)
        self.scaling = scaling

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the base layer computes plus what the adapter adds."""
        added: torch.Tensor = self.lora_B(self.lora_A(x)) * self.scaling
        result: torch.Tensor = self.base_layer(x) + added
        return result


@loader("adapter")
def load_adapter(request: Request) -> Loaded:
    """Return the base model with the adapter's layers in it, as PEFT runs it unmerged."""
    contents = request.contents
    path = safe_text(contents.path)
    base_name = text(contents.adapter, "base_model_name_or_path")
    method = text(contents.adapter, "peft_type") or "an unnamed method"
    fact = (
        f"{path} is an adapter by {safe_text(method)} with {len(contents.tensors)} tensors for "
        f"{safe_text(base_name) or 'a model that it does not name'}"
    )
    if method.upper() != "LORA":
        remedy = "merge it into its base where it was trained, and name the merged model"
        raise LoadError(f"{fact}: flopprof reads LoRA alone", remedy=remedy)
    base = _find_base(contents, base_name)
    if base is None:
        remedy = (
            f"download the base model to {contents.path.resolve().parent / 'base'} and write "
            "that path into base_model_name_or_path of adapter_config.json"
        )
        raise UnknownArchitectureError(f"{fact}, which is not on this machine", remedy=remedy)
    loaded = LOADERS.require(base.kind)(replace(request, contents=base))
    count = _adapt(loaded.model, request)
    note = f"{count} layers have the LoRA adapter's beside them, as PEFT runs it unmerged"
    return replace(loaded, source="LoRA adapter and its base by", warnings=(*loaded.warnings, note))


def _find_base(contents: Contents, name: str) -> Contents | None:
    """Return the contents of the folder that the adapter names, here or in the hub's cache."""
    folder = base_folder(contents.path)
    if contents.config:  # base and adapter in one folder
        return replace(contents, kind="huggingface", tensors={}, shards=())
    if not name or safe_text(name, 1000) != name:
        return None
    cached = (_HUB / f"models--{name.replace('/', '--')}" / "snapshots").glob("*")
    places = [Path(name), folder / name, folder.parent / Path(name).name, *sorted(cached)]
    for place in places:
        try:
            is_model = (place / "config.json").is_file() and place.resolve() != folder.resolve()
        except OSError:  # a name too long, a folder that may not be read
            continue
        if is_model:
            kind = detect(place)
            base = read_contents(place, kind)
            return base if base.kind in ("huggingface", "diffusers") else None
    return None


def _adapt(model: nn.Module, request: Request) -> int:
    """Put the adapter's layers beside the model's, and return how many there are."""
    contents = request.contents
    path = safe_text(contents.path)
    layers = _layers(contents.tensors, path)
    weights = None if request.meta else read_weights(contents)
    modules = dict(model.named_modules())
    for name, keys in layers.items():
        base = modules.get(name)
        rank, width = contents.tensors[keys["A"]].shape
        out_width, rank_out = contents.tensors[keys["B"]].shape
        if not isinstance(base, nn.Linear):
            fact = f"{path} adapts {safe_text(name)}, which is no linear layer of its base"
            raise LoadError(fact, remedy="get the base that it was trained on")
        if (width, out_width, rank_out) != (base.in_features, base.out_features, rank):
            fact = (
                f"{path}: {safe_text(name)} is {base.out_features}x{base.in_features} in its base"
            )
            raise LoadError(
                f"{fact}, {out_width}x{width} in the adapter",
                remedy="get the base that it was trained on",
            )
        adapted = LoraLinear(base, rank, _scaling(contents.adapter, rank))
        if weights is not None:
            dtype = base.weight.dtype
            adapted.lora_A.weight.data = weights[keys["A"]].to(dtype)
            adapted.lora_B.weight.data = weights[keys["B"]].to(dtype)
        parent, _, last = name.rpartition(".")
        setattr(modules[parent], last, adapted)
    return len(layers)


def _layers(tensors: Mapping[str, TensorInfo], path: str) -> dict[str, dict[str, str]]:
    """Return the keys of A and B by the path of the layer that they adapt."""
    layers: dict[str, dict[str, str]] = {}
    for key, info in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None or len(info.shape) != 2 or 0 in info.shape:
            fact = f"{path} holds {safe_text(key)}, which is no matrix of LoRA's for a linear layer"
            remedy = "merge it into its base where it was trained, and name the merged model"
            raise LoadError(fact, remedy=remedy)
        layers.setdefault(match[1], {})[match[2]] = key
    halves = [name for name, keys in layers.items() if len(keys) < 2]
    if halves or not layers:
        fact = f"{path} lacks the other half of {safe_text(halves[0] if halves else 'all layers')}"
        raise LoadError(fact, remedy="download it again")
    return layers


def _scaling(adapter: Mapping[str, Any], rank: int) -> float:
    """Return what the adapter's output is multiplied by: alpha ÷ rank, or ÷ √rank by rsLoRA."""
    alpha = adapter.get("lora_alpha")
    if not isinstance(alpha, int | float):
        alpha = rank
    divisor = rank**0.5 if adapter.get("use_rslora") is True else rank
    return float(alpha / divisor)
