"""Read what HDF5 files and .keras archives by Keras say of weights: names, shapes, types.

h5py (an extra) opens them; links to other files are not followed, and no values are read.
"""

import json
import zipfile
from pathlib import Path
from typing import Any

from flopprof.errors import UsageError
from flopprof.model.detect import zip_members
from flopprof.model.pickles import MAX_BYTES, TensorInfo
from flopprof.units import safe_text

_MAX_TENSORS = 100_000
_LEAST_BYTES = 48  # of an HDF5 file's first block
_WEIGHTS = "model.weights.h5"  # in an archive by Keras 3
_TRAINER_STATE = ("optimizer_weights", "optimizer", "_optimizer", "training_config")
_MATRICES = ("kernel", "recurrent_kernel", "bias")  # of a layer; a GRU's bias is one, too
_VARIABLES = {
    "normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "embedding": ("embeddings",),
    "seed_generator": ("seed_index",),
}
"""The order of a layer's variables, by what its class is called, where shapes do not tell."""


def read_keras(path: Path, kind: str) -> tuple[dict[str, TensorInfo], dict[str, Any]]:
    """Return tensors by name, and the model's configuration where the file has it.

    Args:
        path: The file.
        kind: "hdf5" or "keras", an archive.

    Raises:
        UsageError: h5py is not installed.
        ValueError: It does not hold together.
    """
    if path.stat().st_size < _LEAST_BYTES:
        raise ValueError("its header ends too soon: truncated")
    try:
        import h5py
    except ImportError as error:
        fact = f"{safe_text(path)} is an HDF5 file, as Keras keeps weights, which h5py reads"
        raise UsageError(fact, remedy="pip install 'flopprof[keras]'") from error
    if kind == "hdf5":
        with h5py.File(path, "r") as file:
            return _tensors(file), _json(file.attrs.get("model_config"))
    members = zip_members(path) or {}
    with zipfile.ZipFile(path) as archive:
        info = members[_WEIGHTS]
        if info.compress_type or info.compress_size > path.stat().st_size:
            raise ValueError(f"its {_WEIGHTS} is compressed, which Keras never does")
        with archive.open(info) as stored, h5py.File(stored, "r") as file:
            tensors = _tensors(file)
        described = members["config.json"]
        text = archive.read(described) if described.file_size <= MAX_BYTES else b""
    return tensors, _json(text)


def _json(text: Any) -> dict[str, Any]:
    """Return a configuration of JSON; {} where there is none."""
    if not isinstance(text, str | bytes) or not text:
        return {}
    value = json.loads(text)
    return value if isinstance(value, dict) else {}


def _tensors(file: Any) -> dict[str, TensorInfo]:
    """Return the file's arrays of numbers by their paths; a trainer's state is left out."""
    import h5py

    stored: dict[str, TensorInfo] = {}

    def visit(name: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset) or item.dtype.kind not in "biuf":
            return
        if name.partition("/")[0] in _TRAINER_STATE or item.shape is None:
            return
        if len(stored) >= _MAX_TENSORS:
            raise ValueError(f"it holds over {_MAX_TENSORS} tensors")
        stored[name] = TensorInfo(tuple(map(int, item.shape)), item.dtype.name)

    file.visititems(visit)
    keys = {name: _key(name) for name in stored}
    if len(set(keys.values())) < len(keys):
        keys = {name: name.replace("/", ".") for name in stored}
    return _with_short_names({keys[name]: info for name, info in stored.items()})


def _key(name: str) -> str:
    """Return a path as a dotted key: "conv/conv/kernel:0" of Keras 2 is "conv.kernel"."""
    parts = [part for part in name.removesuffix(":0").split("/") if part != "model_weights"]
    kept: list[str] = []
    for part in parts:
        plain = part.replace(".", "_")
        if not kept or plain != kept[-1]:
            kept.append(plain)
    return ".".join(kept)


def _with_short_names(tensors: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Return the tensors with names where Keras 3 has numbers: its variables in a layer's order.

    "layers.dense_1.vars.0" is a Dense's kernel: the path has the name of the layer's class, which
    tells the order.
    """
    renamed = {}
    matrices: dict[str, int] = {}  # how many of each layer were seen
    for key, info in tensors.items():
        layer, is_numbered, number = key.partition(".vars.")
        if not is_numbered or not number.isdecimal():
            renamed[key] = info
            continue
        names = next((names for part, names in _VARIABLES.items() if part in layer), ())
        if int(number) < len(names):
            name = names[int(number)]
        elif len(info.shape) > 1:
            place = matrices.get(layer, 0)
            matrices[layer] = place + 1
            name = _MATRICES[place] if place < len(_MATRICES) else f"weight_{number}"
        else:
            name = "bias" if f"{layer}.bias" not in renamed else f"bias_{number}"
        renamed[f"{layer}.{name}"] = info
    return renamed
