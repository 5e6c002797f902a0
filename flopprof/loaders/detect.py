"""Say what a file or folder is, by its content, never by its name."""

import csv
import io
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile, ZipFile, ZipInfo, is_zipfile

from flopprof.errors import LoadError, UsageError

_HEAD_BYTES = 1 << 16  # the index of a sharded checkpoint has its metadata first
_MAX_DIRECTORY_BYTES = 16 << 20  # of a zip: 200,000 members; zipfile takes ten times that


@dataclass(frozen=True, slots=True)
class FileKind:
    """What a file is: a key, the noun for messages, and what to do where we cannot profile it."""

    name: str
    what: str
    remedy: str


def _read_kinds() -> dict[str, list[tuple[re.Pattern[bytes], FileKind]]]:
    """Return the kinds by where their patterns look: a file's head, or a zip's or folder's names."""
    rows: dict[str, list[tuple[re.Pattern[bytes], FileKind]]] = {}
    with Path(__file__).with_name("kinds.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            where, pattern = row.pop("where"), row.pop("pattern")
            anchored = rf"\A(?:{pattern})" if where == "head" else pattern
            compiled = re.compile(anchored.encode(), re.DOTALL | re.MULTILINE)
            rows.setdefault(where, []).append((compiled, FileKind(**row)))
    return rows


_KINDS = _read_kinds()


def _kind(where: str, text: bytes) -> FileKind | None:
    """Return the first kind whose pattern is found; the last of heads and of zips always is."""
    return next((kind for pattern, kind in _KINDS[where] if pattern.search(text)), None)


def detect(path: Path) -> FileKind:
    """Return what `path` is, from its type, its beginning and a zip's directory.

    Raises:
        UsageError: There is nothing at `path`, it cannot be read, or it is an unknown folder.
        LoadError: It is a zip whose directory is damaged.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            names = sorted(item.name for item in path.iterdir())
            kind = _kind("folder", os.fsencode("\n".join(names)))
        elif not stat.S_ISREG(mode):
            kind = _kind("special", b"")
        else:
            with path.open("rb") as file:
                kind = _kind("head", file.read(_HEAD_BYTES))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        if os.path.islink(path):  # noqa: PTH114  # Path's raises on a NUL in the name
            reason = f"a link to {safe_text(path.readlink())}: {reason}"
        raise UsageError(
            f"{safe_text(path)}: {reason}", remedy="name a file that exists and can be read"
        ) from error
    if kind is None:
        inside = safe_text(", ".join(names[:3]) or "nothing")
        raise UsageError(
            f"{safe_text(path)} is a folder that holds {inside}, not a model",
            remedy="name the model file",
        )
    if kind.name == "zip" and is_zipfile(path):
        members = "".join(f"{name}\n" for name in zip_members(path))
        return _kind("zip", members.encode(errors="replace")) or kind
    return kind


class _Directory(io.FileIO):
    """A zip of which no directory is read that would take too much memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_DIRECTORY_BYTES:
            raise BadZipFile(f"it takes {size} bytes")
        return super().read(size) or b""


def zip_members(path: Path) -> dict[str, ZipInfo]:
    """Return a zip's members, by name below the one top folder.

    Raises:
        LoadError: The directory is damaged, too large, or names a member twice.
    """
    try:
        with _Directory(path) as file, ZipFile(file) as archive:
            infos = archive.infolist()
    except Exception as error:  # a hostile directory may make zipfile raise anything
        raise damaged(path, f"its directory: {error}") from error
    top = infos[0].filename.partition("/")[0] + "/" if infos else ""
    inside = all(info.filename.startswith(top) for info in infos)
    members = {i.filename.removeprefix(top if inside else ""): i for i in infos}
    if len(members) < len(infos):
        raise damaged(path, "it holds two members of one name")
    return members


def safe_text(text: object, width: int = 300) -> str:
    """Return `text`, which a file may have chosen, without control characters and not too long."""
    shown = str(text)[: width + 1]
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in shown)
    return shown if len(shown) <= width else shown[: width - 1] + "…"


def damaged(path: Path, fact: str) -> LoadError:
    """Return the error for a file that is of a known kind and does not hold together."""
    return LoadError(
        f"{safe_text(path)} is damaged: {safe_text(fact)}",
        remedy="download or save it again, and compare its size with the original's",
    )
