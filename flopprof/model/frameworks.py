"""Read weights that are kept in other libraries' formats: GGUF, NumPy, Keras, Flax."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flopprof.model.arrays import Arrays, read_msgpack, read_npy, read_npz
from flopprof.model.gguf import read_gguf
from flopprof.model.keras import read_keras
from flopprof.model.pickles import TensorInfo
from flopprof.units import counted, safe_text

KINDS = ("gguf", "npz", "npy", "hdf5", "keras", "flax")
_MAX_KEY = 100  # letters that are kept of a key of metadata


@dataclass(frozen=True, slots=True)
class ForeignWeights:
    """What a file of another library's holds.

    Attributes:
        tensors: Shapes and element types, by name.
        metadata: Numbers and texts beside them.
        configuration: Nested values beside them, such as Keras's description of the layers.
        config: What of it a config.json would say, by the names that it would have there.
        notes: What of the file was left aside, in words.
    """

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str | int | float] = field(default_factory=dict)
    configuration: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_foreign(path: Path, kind: str) -> ForeignWeights:
    """Return what the file of one of KINDS holds; no values are read, nothing is executed.

    Raises:
        UsageError: A package that reads it is not installed.
        ValueError: It does not hold together; libraries that read it may raise others.
    """
    if kind == "gguf":
        return _of_gguf(path)
    if kind in ("hdf5", "keras"):
        tensors, configuration = read_keras(path, kind)
        return ForeignWeights(tensors, configuration=configuration)
    read = {"npz": read_npz, "npy": read_npy, "flax": read_msgpack}[kind]
    arrays = read(path)
    return ForeignWeights(arrays.tensors, arrays.plain, notes=_left_out(arrays))


def _left_out(arrays: Arrays) -> tuple[str, ...]:
    """Return a note on what is no array of numbers, such as objects that only unpickling reads."""
    if not arrays.left_out:
        return ()
    shown = safe_text(", ".join(arrays.left_out[:3])) + (", …" if len(arrays.left_out) > 3 else "")
    count = counted(len(arrays.left_out), "array")
    return (f"{count} of texts or objects, which numpy would unpickle, not read: {shown}",)


def _of_gguf(path: Path) -> ForeignWeights:
    """Return a GGUF file's tensors, and what of its metadata describes the model."""
    header = read_gguf(path)
    metadata: dict[str, str | int | float] = {}
    for key, value in header.metadata.items():
        if key.startswith("tokenizer.") or isinstance(value, bool):
            continue
        is_single = isinstance(value, str | int | float)
        metadata[key[:_MAX_KEY]] = value if is_single else ", ".join(map(str, value))
    architecture = str(metadata.get("general.architecture", ""))
    used = metadata.get(f"{architecture}.expert_used_count")
    config = {"num_experts_per_tok": used} if type(used) is int else {}
    return ForeignWeights(header.tensors, metadata, config=config)
