"""Say what a file or folder is, by its content, never by its name."""

import csv
import io
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile, ZipFile, ZipInfo, is_zipfile

from flopprof.errors import LoadError, UsageError
from flopprof.units import safe_text

_HEAD_BYTES = 1 << 16  # the index of a sharded checkpoint has its metadata first
_ONLY_WEIGHTS = ("pickle", "gguf", "npy", "hdf5", "keras", "flax")  # which no model is made of
_MAX_DIRECTORY_BYTES = 16 << 20  # of a zip: 200,000 members; zipfile takes ten times that


@dataclass(frozen=True, slots=True)
class FileKind:
    """What a file is called, and what to do where we cannot profile it."""

    where: str  # the pattern is searched in the head, or in the names in a zip or folder
    pattern: str
    name: str
    what: str
    remedy: str

    @property
    def is_readable(self) -> bool:
        """Return whether its contents can be read, be it without a model made of them."""
        return not self.remedy or self.name in _ONLY_WEIGHTS


with Path(__file__).with_name("kinds.csv").open(encoding="utf-8", newline="") as _file:
    _KINDS = [FileKind(**row) for row in csv.DictReader(_file)]


def _kind(where: str, text: str) -> FileKind | None:
    """Return the first kind that fits; every head and every zip fits their last."""
    for kind in _KINDS:
        if kind.where == where and re.search(kind.pattern, text, re.DOTALL | re.MULTILINE):
            return kind
    return None


def detect(path: Path) -> FileKind:
    """Return what `path` is, from its type, its beginning and a zip's directory.

    Raises:
        UsageError: It is not there, may not be read, or is a folder without a model.
        LoadError: It is a zip whose directory is damaged.
    """
    names: list[str] = []
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            names = sorted(entry.name for entry in path.iterdir())
            kind = _kind("folder", "\n".join(names))
        elif stat.S_ISREG(mode):
            with path.open("rb") as file:
                kind = _kind("head", file.read(_HEAD_BYTES).decode("latin-1"))
        else:
            kind = _kind("special", "")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        if path.is_symlink():
            reason = f"a link to {safe_text(path.readlink())}: {reason}"
        raise UsageError(f"{safe_text(path)}: {reason}", remedy="name a readable file") from error
    if kind is None:
        listed = safe_text(", ".join(names[:3]) or "nothing")
        fact = f"{safe_text(path)} is a folder that holds {listed}, not a model"
        raise UsageError(fact, remedy="name the model file")
    members = zip_members(path) if kind.name == "zip" else None
    if members is None:
        return kind
    return _kind("zip", "".join(f"{name}\n" for name in members)) or kind


class _Directory(io.FileIO):
    """A zip of which no directory is read that would take too much memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_DIRECTORY_BYTES:
            raise BadZipFile(f"it takes {size} bytes")
        return super().read(size) or b""


def zip_members(path: Path) -> dict[str, ZipInfo] | None:
    """Return a zip's members by name below the one top folder; None if it has no directory.

    Raises:
        LoadError: The directory is damaged, or has a name twice.
    """
    try:
        if not is_zipfile(path):
            return None
        with _Directory(path) as file, ZipFile(file) as archive:
            infos = archive.infolist()
    except Exception as error:  # a hostile directory may make zipfile raise anything
        raise damaged(path, f"its directory: {error}") from error
    top = infos[0].filename.partition("/")[0] + "/" if infos else ""
    if not all(info.filename.startswith(top) for info in infos):
        top = ""
    members = {info.filename.removeprefix(top): info for info in infos}
    if len(members) < len(infos):
        raise damaged(path, "it holds two members of one name")
    return members


def damaged(path: Path, fact: str) -> LoadError:
    """Return the error for a file that is of a known kind and does not hold together."""
    remedy = "download or save it again, and compare its size with the original's"
    return LoadError(f"{safe_text(path)} is damaged: {safe_text(fact)}", remedy=remedy)
