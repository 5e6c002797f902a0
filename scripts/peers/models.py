"""Whole models whose figures were published: torchvision's and timm's, as cases."""

import csv
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from peers.case import Case, Subject, calling
from peers.cases import all_cases

TIMM_FIGURES = Path(__file__).with_name("timm_gmacs.csv")
"""Of timm's results/benchmark-infer-amp-nchw-pt240-cu124-rtx3090.csv: size of the image, GMACs."""
ON_CPU = (  # called with values and timed; the others are counted from shapes
    "convnext_tiny", "densenet121", "efficientnet_b0", "mobilenet_v3_large", "resnet18", "resnet50",
    "swin_t", "vit_b_16",
)  # fmt: skip
LARGE_GMACS = 20.0
TIMM_MODELS = 400
FRAMES = 16
TIMM_ELEMENTWISE_FRAC = 0.2  # timm's table counts norms and activations of most models as well
PUBLISHED_WITHIN = 0.01
TORCHVISION_WORDS = "twice the published multiply-adds (`weights.meta`)"
TIMM_WORDS = "twice the published multiply-adds (timm's benchmark table)"


def find_case(name: str) -> Case:
    """Return the case of this name: by hand, `torchvision:NAME`, `timm:NAME`, or `meta:…` of them.

    Raises:
        KeyError: There is none.
    """
    if name.startswith("meta:"):
        return replace(find_case(name.removeprefix("meta:")), name=name, device="meta")
    source, _, model = name.partition(":")
    if source == "torchvision" and model:
        return torchvision_case(model)
    if source == "timm" and model:
        return timm_case(model, *timm_figures()[model])
    return hand_cases()[name]


@cache
def hand_cases() -> dict[str, Case]:
    """Return the cases derived by hand, imported once."""
    return all_cases()


def torchvision_names() -> Iterator[str]:
    """Yield the torchvision models with a published figure."""
    import torchvision

    for name in torchvision.models.list_models():
        if "_ops" in torchvision.models.get_model_weights(name).DEFAULT.meta:
            yield name


def torchvision_case(name: str) -> Case:
    """Return a torchvision model at the size of its weights' transforms."""
    import torchvision

    weights = torchvision.models.get_model_weights(name).DEFAULT
    gmacs = weights.meta["_ops"]
    device = "cpu" if name in ON_CPU or needs_values(name) else "meta"
    return Case(
        f"torchvision:{name}", round(2e9 * gmacs), TORCHVISION_WORDS,
        partial(build_torchvision, name, weights, device), family="torchvision",
        needs="published", within=PUBLISHED_WITHIN, rounding_flops=1_000_000, device=device,
        library="torchvision",
    )  # fmt: skip


def too_large(name: str) -> bool:
    """Return whether a torchvision model needs values, and minutes of them: large detectors."""
    import torchvision

    gmacs = torchvision.models.get_model_weights(name).DEFAULT.meta["_ops"]
    return bool(needs_values(name) and gmacs > LARGE_GMACS)


def timm_names() -> list[str]:
    """Return `TIMM_MODELS` of the timm models with a published figure, evenly."""
    names = list(timm_figures())
    return [
        name for place, name in enumerate(names) if place * TIMM_MODELS % len(names) < TIMM_MODELS
    ]


def needs_values(name: str) -> bool:
    """Return whether a torchvision model needs values: it sorts out boxes, or is quantised."""
    kind = torchvision_builder(name).__module__
    return "detection" in kind or "quantization" in kind


def build_torchvision(name: str, weights: Any, device: str) -> Subject:
    """Return the model, with random weights, and an input of the size its transforms make."""
    kind = torchvision_builder(name).__module__
    try:
        with torch.device(device):
            model = torchvision_model(name)
    except NotImplementedError:  # RegNets compute their widths with tensors
        model = torchvision_model(name).to(device)
    with torch.device(device):
        inputs = [torch.rand(*size) for size in input_sizes(kind, weights.transforms())]
    if "detection" in kind:
        return calling(model, inputs)
    return calling(model, *inputs)


def torchvision_builder(name: str) -> Callable[..., nn.Module]:
    """Return the function that makes a torchvision model."""
    import torchvision

    builder: Callable[..., nn.Module] = torchvision.models.get_model_builder(name)
    return builder


def torchvision_model(name: str) -> nn.Module:
    """Return the model as its published weights have it, with random ones."""
    builder = torchvision_builder(name)
    options: dict[str, Any] = {"quantize": True} if name.startswith("quantized_") else {}
    if "weights_backbone" in builder.__annotations__:
        options["weights_backbone"] = None
    if "aux_loss" in builder.__annotations__:
        options["aux_loss"] = True  # as the published weights have it
    if name == "vit_h_14":
        options["image_size"] = 518
    return builder(weights=None, **options)


def input_sizes(kind: str, transforms: Any) -> list[tuple[int, ...]]:
    """Return the sizes of a model's inputs, by the module that it comes from."""
    if "detection" in kind:
        return [(3, 800, 800)]
    if "optical_flow" in kind:
        return [(1, 3, 512, 512)] * 2
    if "segmentation" in kind:
        return [(1, 3, transforms.resize_size[0], transforms.resize_size[0])]
    size = transforms.crop_size[-1]
    if "video" in kind:
        return [(1, 3, FRAMES, size, size)]
    return [(1, 3, size, size)]


@cache
def timm_figures() -> dict[str, tuple[int, float]]:
    """Return image size and published multiply-adds, in 10⁹, by model."""
    with TIMM_FIGURES.open(newline="") as file:
        return {
            row["model"]: (int(row["image_size"]), float(row["gmacs"]))
            for row in csv.DictReader(file)
        }


def timm_case(name: str, size: int, gmacs: float) -> Case:
    """Return a timm model at the size of its published figure."""
    return Case(
        f"timm:{name}", round(2e9 * gmacs), TIMM_WORDS, partial(build_timm, name, size),
        family="timm", needs="published", within=PUBLISHED_WITHIN, rounding_flops=10_000_000,
        elementwise_frac=TIMM_ELEMENTWISE_FRAC,
        device="meta", library="timm",
    )  # fmt: skip


def build_timm(name: str, size: int) -> Subject:
    """Return the model on the meta device: shapes alone."""
    import timm

    expected = timm.get_pretrained_cfg(name).input_size[-1]
    options = {} if size == expected or not sizes_matter(name) else {"img_size": size}
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False, **options)
    return calling(model, torch.empty(1, 3, size, size, device="meta"))


def sizes_matter(name: str) -> bool:
    """Return whether the model is built for one size of image."""
    import timm

    return bool(timm.get_pretrained_cfg(name).fixed_input_size)
