"""Read from weights what a library's models can be told: classes, channels, the image's side."""

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from flopprof.model.architectures import Architecture
from flopprof.model.compare import Fit
from flopprof.model.pickles import TensorInfo


def find_overrides(
    architecture: Architecture, model: nn.Module, fit: Fit, tensors: Mapping[str, TensorInfo]
) -> dict[str, Any]:
    """Return what a registry's models can be told, so that the shapes come out as saved."""
    overrides: dict[str, Any] = {}
    shapes = {key: (tensor.shape, info.shape) for key, (tensor, info, _) in fit.pairs.items()}
    differing = [
        (built_shape, saved_shape)
        for built_shape, saved_shape in shapes.values()
        if built_shape != saved_shape
    ]
    # A detector's heads have four outputs for each class, or as many for each anchor.
    classes_of_heads = [
        saved_shape[0] * architecture.classes // built_shape[0] or saved_shape[0]
        for built_shape, saved_shape in differing
        if saved_shape and built_shape[0] and saved_shape[1:] == built_shape[1:]
    ]
    if classes_of_heads:
        overrides["num_classes"] = min(classes_of_heads)
    convolutions = (path for path, module in model.named_modules() if isinstance(module, nn.Conv2d))
    conv = next(convolutions, "")
    built, saved = shapes.get(f"{conv}.weight", ((), ()))
    if built[1:2] != saved[1:2]:
        overrides["channels"] = saved[1]
    if side := _image_size(model, shapes):
        overrides["image_size"] = side
    missing = fit.missing
    unexpected = fit.unexpected
    heads = _timm_heads(model)
    if missing and heads and all(key.startswith(heads) for key in missing):
        overrides["num_classes"] = 0
    if unexpected and heads and all(key.rpartition(".")[0].endswith(heads) for key in unexpected):
        # The file has a head, and the model none.
        ending = f"{heads[0]}.weight"
        classes = [info.shape[0] for key, info in tensors.items() if key.endswith(ending)]
        overrides["num_classes"] = min(classes, default=0)
    if missing and all(key.startswith(("aux1.", "aux2.", "AuxLogits.")) for key in missing):
        overrides["aux_logits"] = False
    if unexpected and all(key.startswith("aux_classifier.") for key in unexpected):
        overrides["aux_loss"] = True
    return overrides


def _timm_heads(model: nn.Module) -> tuple[str, ...]:
    """Return the paths of the classifiers that a model of timm says it has; () for others."""
    heads = getattr(model, "pretrained_cfg", {}).get("classifier")
    return (heads,) if isinstance(heads, str) else tuple(heads or ())


def _image_size(model: nn.Module, shapes: Mapping[str, tuple[Any, Any]]) -> int | None:
    """Return the image side that a vision transformer's position embedding was saved for."""
    patch = getattr(model, "patch_size", None) or getattr(
        getattr(model, "patch_embed", None), "patch_size", None
    )
    patch = patch[0] if isinstance(patch, tuple) else patch
    for key in ("encoder.pos_embedding", "pos_embed"):
        built, saved = shapes.get(key, ((), ()))
        if built != saved and len(saved) == 3 and built[::2] == saved[::2] and patch:
            # The class token and registers have positions, too, unless the model says otherwise.
            if getattr(model, "no_embed_class", False):
                extra = 0
            else:
                extra = 1 if key.startswith("encoder") else getattr(model, "num_prefix_tokens", 0)
            return int(patch) * math.isqrt(max(saved[1] - extra, 1))
    return None
