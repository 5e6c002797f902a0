"""Say what each tensor of a file is applied as: a product's weight, a table, a norm, a buffer.

A file tells names and shapes, and of pickled modules the classes; no code is needed for it. Where
they tell nothing, the kind is "unknown", with the reason.
"""

import csv
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from flopprof import dtypes
from flopprof.model.pickles import PackedTensor, TensorInfo
from flopprof.model.quantised import packed_role
from flopprof.units import shape_text


class Role(NamedTuple):
    """What a tensor is applied as.

    Attributes:
        kind: "linear", "convolution", "transposed convolution", "recurrent", "bilinear", "filter
            bank": the weight of a product; "embedding", "table", "norm", "bias", "scale", "scalar",
            "statistics", "buffer": none; "unknown".
        why: What in the file says so.
        elements: How many numbers the tensor stands for: more than it stores where it is packed.
    """

    kind: str
    why: str
    elements: int


PRODUCTS = {
    "linear": "row",
    "convolution": "output position",
    "transposed convolution": "input position",
    "recurrent": "step",
    "bilinear": "row",
    "filter bank": "frame",
}
"""The kinds of weights that are multiplied, each with what 2 FLOPs per element are done for."""

NO_PARAMETERS = ("statistics", "buffer")
"""The kinds of tensors that are not learned."""

_RECURRENT = re.compile(r"(\w+_)?w(eight)?_(ih|hh|hr)(_l\d+)?(_reverse)?")
_EMBEDDING = re.compile(
    r"(?i)(\w*_)?(emb|embd|embed|embeds|embedding|embeddings|embedder|lut|lookup|codebook|vocab)(_\w+)?"
    r"|\w*embeddings?|wte|wpe|shared|relative_attention_bias|pos_emb\w*"
)
_NO_EMBEDDING = re.compile(r"(?i)unembed|embed_out|proj|linear|mlp|dense|_fc|transform|patch")
_TRANSPOSED = re.compile(
    r"(?i)deconv|conv_?t(r|rans|ranspose\w*)?(_?\d+d?)?(\.|$)|transpose|upconv|up_?sampl|tconv"
    r"|(^|\.)ups?(\.\d+)*(\.conv\w*)?$"
)
_NORM = re.compile(r"(?i)norm|(^|[._])(bn|ln|gn|in)_?\d*(\.\d+)?$|batch_?n|layer_?n")
_LINEAR_NAME = re.compile(r"(?i)(linear|fc|tp|tensor_product|fctp|self_interaction)\w*(\.\d+)?$")
_EXPERT = re.compile(r"(?i)(^|\.)experts?(\.|$)|moe\.(input|output)_linear|_exps(\.|$)")
_PARAMETRISED = re.compile(
    r"(?P<path>(?:.*\.)?)parametrizations\.(?P<leaf>\w+)\.(?P<rest>original[01]?|\d+\.(?P<own>\w+))"
)
_OF_A_WEIGHT = re.compile(r"(.*)\.(weight\.(?:nested_)?(?:absmax|quant_map|quant_state)[\w.]*)")
_MAX_CHANNELS = 65_536  # a longer 1-d weight is a matrix that was flattened
_TABLE_ROWS = 1_000  # of the first matrix of a file, which then is rather looked up

_CLASSES = {
    "Embedding": "embedding",
    "EmbeddingBag": "embedding",
    "Linear": "linear",
    "NonDynamicallyQuantizableLinear": "linear",
    "Conv1D": "linear",  # of transformers' GPT-2
    "Bilinear": "bilinear",
    **{f"Conv{n}d": "convolution" for n in "123"},
    **{f"ConvTranspose{n}d": "transposed convolution" for n in "123"},
}

with Path(__file__).with_name("roles.csv").open(encoding="utf-8", newline="") as _file:
    _RULES = [
        (re.compile(row["leaf"]), re.compile(row["dims"] or "."), row["kind"], row["why"])
        for row in csv.DictReader(_file)
    ]


@dataclass(frozen=True, slots=True)
class _Place:
    """A tensor, and what lies in the module around it."""

    path: str  # of the module
    leaf: str
    info: TensorInfo
    beside: Mapping[str, TensorInfo]  # tensors of the module, by leaf
    cls: str  # of the module, without its package; '' unless it was pickled
    is_first: bool  # matrix of the file
    widths: frozenset[int]  # sizes of the file's tensors, but for those that are called embeddings


def place_of(key: str) -> tuple[str, str]:
    """Return the path of a tensor's module and its name there; parametrisations are looked through.

    Both spellings of weight normalisation thus have `weight_g` (lengths) and `weight_v`.
    """
    match = _PARAMETRISED.fullmatch(key)
    if match is None:
        of_weight = _OF_A_WEIGHT.fullmatch(key)
        if of_weight:
            return of_weight[1], of_weight[2]
        path, _, leaf = key.rpartition(".")
        return path, leaf
    endings = {"original": "orig", "original0": "g", "original1": "v"}
    ending = endings.get(match["rest"]) or str(match["own"] or match["rest"]).strip("_")
    return match["path"].removesuffix("."), f"{match['leaf']}_{ending}"


def is_expert(key: str) -> bool:
    """Return whether a tensor belongs to one of several experts, of which a router chooses."""
    return bool(_EXPERT.search(key)) and "shared_expert" not in key


def find_roles(
    tensors: Mapping[str, TensorInfo],
    modules: Mapping[str, tuple[str, dict[str, Any]]],
    config: Mapping[str, Any],
) -> dict[str, Role]:
    """Return the role of each tensor, by key.

    Args:
        tensors: Shapes and dtypes, in the order of the file.
        modules: Class and attributes by path, of pickled modules.
        config: The config.json beside the weights, which says how they are packed.
    """
    places = {key: place_of(key) for key in tensors}
    inside: dict[str, dict[str, TensorInfo]] = {}
    for key, (path, leaf) in places.items():
        inside.setdefault(path, {})[leaf] = tensors[key]
    first = next((key for key, info in tensors.items() if len(info.shape) > 1), "")
    widths = frozenset(
        size
        for key, info in tensors.items()
        if not _EMBEDDING.fullmatch(_name_of(places[key][0]))
        for size in info.shape
    )
    roles = {}
    for key, (path, leaf) in places.items():
        cls = modules.get(path, ("", {}))[0].rpartition(".")[2]
        place = _Place(path, leaf, tensors[key], inside[path], cls, key == first, widths)
        roles[key] = _role(place, config)
    return roles


def _role(place: _Place, config: Mapping[str, Any]) -> Role:
    """Return the role of one tensor: what is certain first, what names suggest last."""
    size = math.prod(place.info.shape)
    if packed := packed_role(place.leaf, place.info, place.beside, config):
        return Role(*packed)
    kind, why = (
        _by_class(place)
        or _by_neighbours(place)
        or _by_dtype(place)
        or _by_name(place)
        or _by_shape(place)
    )
    return Role(kind, why, size)


def _by_class(place: _Place) -> tuple[str, str] | None:
    """Return what the pickled module's class says of its own parameters."""
    kind = _CLASSES.get(place.cls)
    if kind is None or place.leaf not in ("weight", "weight_v", "weight_orig"):
        return None
    return kind, f"of a pickled {place.cls}"


def _by_neighbours(place: _Place) -> tuple[str, str] | None:
    """Return what the other tensors of the module say."""
    leaf = place.leaf
    dims = len(place.info.shape)
    if _RECURRENT.fullmatch(leaf) and dims == 2:
        return "recurrent", f"{leaf} of a recurrent layer or cell"
    if "recurrent_kernel" in place.beside and leaf.endswith("kernel") and dims == 2:
        return "recurrent", f"{leaf} of a recurrent layer or cell, as Keras names it"
    if "running_mean" in place.beside and leaf in ("weight", "bias"):
        return "norm", "beside running statistics"
    if leaf.endswith("_g") and f"{leaf[:-1]}v" in place.beside:
        return "scale", "the lengths of a weight-normalised weight"
    is_spectral = f"{leaf[:-2]}_orig" in place.beside
    if leaf.endswith(("_u", "_v")) and dims == 1 and is_spectral:
        return "buffer", "a singular vector of a spectrally normalised weight"
    for ending in ("_v", "_orig"):
        name = leaf.removesuffix(ending)
        if leaf.endswith(ending) and dims > 1:
            plain = replace(place, leaf=name, beside={**place.beside, name: place.info})
            kind, why = _by_name(plain) or _by_shape(plain)
            return kind, f"{why}, reparametrised"
    if leaf == "bias" and dims > 1 and place.info.shape[-1] == place.info.shape[-2]:
        return "buffer", "a square bias: a causal mask"
    return None


def _by_dtype(place: _Place) -> tuple[str, str] | None:
    """Return what tensors of whole numbers are; None for floating and packed ones."""
    info = place.info
    if place.leaf == "num_batches_tracked":
        return "statistics", "the batches that were averaged"
    is_packed = isinstance(info, PackedTensor)  # in blocks of few bits
    if dtypes.is_floating(info.dtype) or info.dtype.startswith("q") or is_packed:
        return None
    if info.dtype in ("int8", "uint8") and len(info.shape) > 1:
        return None
    return "buffer", f"of {info.dtype}: counters or indices"


def _by_name(place: _Place) -> tuple[str, str] | None:
    """Return what the first rule of roles.csv says that fits."""
    if place.leaf in ("weight", "bias"):
        return None
    if math.prod(place.info.shape) == 1:
        return "scalar", "one number"
    dims = str(len(place.info.shape))
    for leaf, wanted_dims, kind, why in _RULES:
        if leaf.fullmatch(place.leaf) and wanted_dims.fullmatch(dims):
            return kind, why
    return None


def _by_shape(place: _Place) -> tuple[str, str]:
    """Return what name and shape make likely of a module's weight or bias."""
    shape = place.info.shape
    if math.prod(shape) <= 1:
        return "scalar", "one number"
    if "bias" in place.leaf:
        return "bias", "named as a bias"
    if sum(size > 1 for size in shape) <= 1 and place.leaf != "weight":
        return "scale", "one number for each channel"
    if len(shape) == 1:
        return _vector(place)
    if place.leaf != "weight" and not _EXPERT.search(place.path):
        return "unknown", f"{place.leaf} is no name of a weight that is known"
    bias = place.beside.get("bias")
    if bias is not None and bias.shape == shape:
        return "norm", "its bias has its shape: a normalisation of several dimensions"
    return _matrix(place) if len(shape) == 2 else _filters(place)


def _vector(place: _Place) -> tuple[str, str]:
    """Return whether a 1-d weight scales, normalises, or is a matrix that was flattened."""
    size = place.info.shape[0]
    if _NORM.search(place.path) or "norm" in place.cls.lower():
        return "norm", "1-d, and its module is named as a normalisation"
    if size > _MAX_CHANNELS or _LINEAR_NAME.search(place.path):
        return "unknown", f"a 1-d weight of {size} elements: flattened?"
    return "scale", "1-d: of a normalisation or an activation"


def _name_of(path: str) -> str:
    """Return the last part of a module's path that is no number."""
    names = [name for name in path.split(".") if not name.isdecimal()]
    return names[-1] if names else ""


def _matrix(place: _Place) -> tuple[str, str]:
    """Return whether a 2-d weight is looked up or multiplied."""
    rows, columns = place.info.shape
    has_bias = "bias" in place.beside
    name = _name_of(place.path)
    if not has_bias and _EMBEDDING.fullmatch(name) and not _NO_EMBEDDING.search(name):
        if rows < _TABLE_ROWS and rows in place.widths and columns not in place.widths:
            why = f"called {name}, but {rows} is a width of other weights and {columns} is none"
            return "unknown", f"{why}: looked up, or multiplied"
        return "embedding", f"2-d without a bias, and its module is called {name}"
    if not has_bias and place.is_first and rows >= max(_TABLE_ROWS, 4 * columns):
        return "embedding", f"the file's first matrix, of {rows} rows without a bias"
    with_bias = " with a bias" if has_bias else ""
    return "linear", f"2-d {shape_text((rows, columns))}{with_bias}"


def _filters(place: _Place) -> tuple[str, str]:
    """Return which product filters belong to, by the bias beside them and the module's name."""
    shape = place.info.shape
    if _EXPERT.search(place.path) and len(shape) == 3:
        return "linear", f"a matrix for each of {shape[0]} experts"
    bias = place.beside.get("bias")
    outputs = bias.shape[0] if bias and len(bias.shape) == 1 else 0
    sides = shape_text(shape[2:])
    if outputs and outputs != shape[0] and shape[1] and outputs % shape[1] == 0:
        why = f"its bias is as long as its second dimension, {outputs}"
        return "transposed convolution", why
    if _TRANSPOSED.search(place.path) and outputs in (0, shape[1]):
        return "transposed convolution", "named as one, and its bias does not speak against it"
    if shape[1] == 1 and shape[0] > 1:
        return "convolution", f"{shape[0]} filters of {sides} on one channel each: depthwise"
    return "convolution", f"{shape[0]} filters of {sides} on {shape[1]} channels"
