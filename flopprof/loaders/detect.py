"""Say what a file or folder is, by its content, never by its name."""

import os
import re
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile, ZipFile, ZipInfo

from flopprof.errors import LoadError, UsageError

_STATE_DICT = "torch.save(model.state_dict(), 'model.pth')"
_RESAVE = f"where the model was made: {_STATE_DICT}; then: flopprof run model.pth --arch …"
_AGAIN = "download or save it again, and compare its size with the original's"
_MAX_DIRECTORY_BYTES = 16 << 20  # of a zip: 200,000 members; zipfile takes ten times that


@dataclass(frozen=True, slots=True)
class FileKind:
    """What a file is.

    Attributes:
        name: The key, such as "torch_zip".
        what: The noun for messages: "model.pth is …".
        remedy: What to do, since flopprof cannot profile it; '' where it can.
    """

    name: str
    what: str
    remedy: str = ""


KINDS = {
    kind.name: kind
    for kind in (
        FileKind("torch_zip", "a file by torch.save"),
        FileKind("torch_legacy", "a file by torch.save before PyTorch 1.6"),
        FileKind("torchscript", "a TorchScript archive"),
        FileKind("safetensors", "a safetensors file"),
        FileKind("torch_export", "a program by torch.export", _RESAVE),
        FileKind("aotinductor", "a package by AOTInductor: compiled machine code", _RESAVE),
        FileKind("torch_package", "an archive by torch.package", _RESAVE),
        FileKind("npz", "an archive of NumPy arrays", _RESAVE),
        FileKind("zip", "a zip archive without a model of PyTorch's", "unpack it, name the file"),
        FileKind("truncated", "a zip archive that ends before its directory: truncated", _AGAIN),
        FileKind("pickle", "a plain pickle, not written by torch.save", _RESAVE),
        FileKind("sharded", "the index of a checkpoint in several files", _RESAVE),
        FileKind("huggingface", "a Hugging Face model folder", f"load with AutoModel; {_RESAVE}"),
        FileKind("dcp", "a distributed checkpoint (DCP) folder",
                 "python -m torch.distributed.checkpoint.format_utils dcp_to_torch DIR model.pth"),
        FileKind("run", "a saved run of flopprof", "flopprof report DIR"),
        FileKind("onnx", "an ONNX model", f"profile the PyTorch original; {_RESAVE}"),
        FileKind("gguf", "a GGUF file of llama.cpp", f"profile the PyTorch original; {_RESAVE}"),
        FileKind("hdf5", "an HDF5 file: Keras weights?", f"profile a PyTorch model; {_RESAVE}"),
        FileKind("tflite", "a TensorFlow Lite model", f"profile a PyTorch model; {_RESAVE}"),
        FileKind("lfs", "a Git LFS pointer: the model itself was not downloaded", "git lfs pull"),
        FileKind("html", "an HTML page: the download was answered with a web page",
                 "open it in a browser; download the file itself"),
        FileKind("json", "a JSON file", "name the file with the weights"),
        FileKind("text", "a text file", "name the file with the weights"),
        FileKind("compressed", "a compressed file", "unpack it, name the file inside"),
        FileKind("tar", "a tar archive", "unpack it: tar -xf FILE; name the file inside"),
        FileKind("empty", "an empty file", _AGAIN),
        FileKind("special", "a pipe, socket or device", "name a file on disk"),
        FileKind("unknown", "of a format that flopprof does not know", _RESAVE),
    )
}  # fmt: skip

_MAGIC = (
    (0, b"GGUF", "gguf"),
    (0, b"\x89HDF\r\n\x1a\n", "hdf5"),
    (0, b"version https://git-lfs", "lfs"),
    (0, b"\x1f\x8b", "compressed"),  # gzip
    (0, b"BZh", "compressed"),
    (0, b"\xfd7zXZ\x00", "compressed"),
    (0, b"(\xb5/\xfd", "compressed"),  # zstd
    (0, b"7z\xbc\xaf\x27\x1c", "compressed"),
    (4, b"TFL3", "tflite"),
    (257, b"ustar", "tar"),
    # torch.serialization.MAGIC_NUMBER, pickled by any protocol from 2 on
    (2, b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "torch_legacy"),
)
_PICKLE = re.compile(rb"\x80[\x02-\x05]|c[a-z_.]+\n\w+\n[(pq]|\((?:[dl]p\d|S')")
_ONNX = re.compile(rb"\x08[\x01-\x1f][\x12\x1a\x22\x28\x32\x3a\x42]")  # ir_version, next field


def detect(path: Path) -> FileKind:
    """Return what `path` is, from its type, its first 4 KiB and a zip's directory.

    Raises:
        UsageError: There is nothing at `path`, it cannot be read, or it is an unknown folder.
        LoadError: It is a zip whose directory is damaged.
    """
    try:
        info = path.stat()
        if stat.S_ISDIR(info.st_mode):
            return KINDS[_folder(path)]
        if not stat.S_ISREG(info.st_mode):
            return KINDS["special"]
        with path.open("rb") as file:
            head = file.read(4096)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        if os.path.islink(path):  # noqa: PTH114  # Path's raises on a NUL in the name
            reason = f"a link to {safe_text(path.readlink())}: {reason}"
        raise UsageError(
            f"{safe_text(path)}: {reason}", remedy="name a file that exists and can be read"
        ) from error
    return KINDS[_file(path, head, info.st_size)]


def _folder(path: Path) -> str:
    names = sorted(item.name for item in path.iterdir())
    if ".metadata" in names:
        return "dcp"
    if "config.json" in names:
        return "huggingface"
    if any(name.endswith(".index.json") for name in names):
        return "sharded"
    if {"meta.json", "sites.csv"} <= set(names):
        return "run"
    inside = ", ".join(names[:3]) if names else "nothing"
    raise UsageError(
        f"{safe_text(path)} is a folder that holds {safe_text(inside)}, not a model",
        remedy="name the model file",
    )


def _file(path: Path, head: bytes, size_bytes: int) -> str:
    if not head:
        return "empty"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zip(path)
    for offset, magic, name in _MAGIC:
        if head[offset:].startswith(magic):
            return name
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < max(size_bytes, 1 << 27):
        return "safetensors"
    if _PICKLE.match(head):
        return "pickle"
    if _ONNX.match(head):
        return "onnx"
    return _text(path, head)


def _text(path: Path, head: bytes) -> str:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "html"
    if re.search(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]", head):
        return "unknown"
    if start.startswith((b"{", b"[")):
        with path.open("rb") as file:  # an index is sorted: weight_map comes last of two keys
            return "sharded" if b'"weight_map"' in file.read(1 << 20) else "json"
    try:
        head[:-3].decode()  # without the last, perhaps cut, character
    except UnicodeDecodeError:
        return "unknown"
    return "text"


def _zip(path: Path) -> str:
    members = zip_members(path)
    if members is None:
        return "truncated"
    if any("data/aotinductor/" in name for name in members):
        return "aotinductor"
    if any(n in members for n in ("archive_format", "models/model.json")) or any(
        name.endswith("serialized_exported_program.json") for name in members
    ):
        return "torch_export"
    if ".data/extern_modules" in members:
        return "torch_package"
    if "constants.pkl" in members and any(name.startswith("code/") for name in members):
        return "torchscript"
    if "data.pkl" in members:
        return "torch_zip"
    return "npz" if members and all(name.endswith(".npy") for name in members) else "zip"


def zip_members(path: Path) -> dict[str, ZipInfo] | None:
    """Return a zip's members, by name below the one top folder; None where the directory is cut.

    Raises:
        LoadError: The directory is damaged, too large, or names a member twice.
    """
    directory_bytes = _directory_bytes(path)
    if directory_bytes is None:
        return None
    if directory_bytes > _MAX_DIRECTORY_BYTES:
        raise damaged(path, f"its directory takes {directory_bytes} bytes")
    try:
        with ZipFile(path) as archive:
            infos = archive.infolist()
    except (BadZipFile, NotImplementedError, OSError, ValueError, struct.error) as error:
        raise damaged(path, f"its directory: {error}") from error
    top = infos[0].filename.partition("/")[0] + "/" if infos else ""
    inside = all(info.filename.startswith(top) for info in infos)
    members = {i.filename.removeprefix(top if inside else ""): i for i in infos}
    if len(members) < len(infos):
        raise damaged(path, "it holds two members of one name")
    return members


def _directory_bytes(path: Path) -> int | None:
    """Return the size of a zip's directory as its end record says, or None if there is none."""
    with path.open("rb") as file:
        start = max(0, file.seek(0, 2) - 65_557)  # the longest end record, with its comment
        file.seek(start)
        tail = file.read()
        found = tail.rfind(b"PK\x05\x06")
        if found < 0 or len(tail) < found + 22:
            return None
        size_bytes = int.from_bytes(tail[found + 12 : found + 16], "little")
        if size_bytes < 0xFFFFFFFF or tail[found - 20 : found - 16] != b"PK\x06\x07":
            return size_bytes
        file.seek(min(start + found, int.from_bytes(tail[found - 12 : found - 4], "little")))
        return int.from_bytes(file.read(48)[40:48], "little")


def safe_text(text: object, width: int = 300) -> str:
    """Return `text`, which a file may have chosen, without control characters and not too long."""
    shown = str(text)[: width + 1]
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in shown)
    return shown if len(shown) <= width else shown[: width - 1] + "…"


def damaged(path: Path, fact: str) -> LoadError:
    """Return the error for a file that is of a known kind and does not hold together."""
    return LoadError(f"{safe_text(path)} is damaged: {safe_text(fact)}", remedy=_AGAIN)
