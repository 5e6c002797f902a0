"""The bytes of a trace, out of whatever holds it: gzip, bzip2, xz, zstandard, zip, tar, nested."""

import bz2
import codecs
import importlib
import lzma
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol
from zipfile import BadZipFile, ZipFile, is_zipfile

from flopprof.errors import LoadError, UsageError
from flopprof.units import file_text

BLOCK_BYTES = 1 << 16
_DEEPEST = 4  # containers in containers; more is no trace
_HEAD_BYTES = 512  # a tar archive says so at byte 257
_XZ_MEMORY_BYTES = 1 << 28  # what an xz file may ask for
_LIBRARY_ERRORS = ("ZstdError", "IsalError")
_LISTED = 8  # members named of an archive with several traces
_TRACE_SUFFIXES = (".json", ".json.gz", ".json.bz2", ".json.xz", ".json.zst", ".trace")


class Readable(Protocol):
    """What bytes are read from."""

    @property
    def fault(self) -> str:
        """Return why the bytes ended early; "" if they did not."""

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes, none at the end."""


_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class _Plain:
    """A file object, whose errors are told and not raised."""

    def __init__(self, file: Any, noun: str) -> None:
        self.fault = ""
        self._file = file
        self._noun = noun

    def read(self, size: int) -> bytes:
        try:
            block: bytes = self._file.read(size)
        except (OSError, EOFError, BadZipFile, zlib.error, tarfile.TarError) as error:
            self.fault = f"{self._noun} is cut off or damaged: {error}"
            return b""
        return block


class _Headed:
    """A source whose first bytes were looked at."""

    def __init__(self, head: bytes, source: Readable) -> None:
        self._head = head
        self._source = source

    @property
    def fault(self) -> str:
        return self._source.fault

    def read(self, size: int) -> bytes:
        if self._head:
            block = self._head[:size]
            self._head = self._head[size:]
            return block
        return self._source.read(size)


class _AsUtf8:
    """A source of text in UTF-16, as a redirection by PowerShell writes it."""

    def __init__(self, source: Readable) -> None:
        self._source = source
        self._decoder = codecs.getincrementaldecoder("utf-16")("replace")

    @property
    def fault(self) -> str:
        return self._source.fault

    def read(self, size: int) -> bytes:
        while block := self._source.read(size):
            if text := self._decoder.decode(block):
                return text.encode("utf-8", "replace")
        return b""


class _Unpacked:
    """What a compressed source holds; one stream behind the other, as far as it is whole."""

    def __init__(self, source: Readable, new: Callable[[], Any], noun: str) -> None:
        self._source = source
        self._new = new
        self._noun = noun
        self._decoder = new()
        self._packed = b""
        self._own_fault = ""

    @property
    def fault(self) -> str:
        return self._own_fault or self._source.fault

    def read(self, size: int) -> bytes:
        while not self._own_fault:
            if not self._packed and not self._holds_more():
                self._packed = self._source.read(BLOCK_BYTES)
                if not self._packed:
                    block = b"" if self._decoder.eof else self._step(size)
                    if block:  # what the decoder still held
                        return block
                    if not self._decoder.eof:
                        self._own_fault = f"{self._noun} is cut off"
                    return b""
            if self._decoder.eof:
                if not self._packed.strip(b"\0"):  # padding
                    self._packed = b""
                    continue
                self._decoder = self._new()
            block = self._step(size)
            if block:
                return block
        return b""

    def _holds_more(self) -> bool:
        """Return whether the decoder gives more without being given more."""
        return not self._decoder.eof and not getattr(self._decoder, "needs_input", True)

    def _step(self, size: int) -> bytes:
        try:
            block: bytes = self._decoder.decompress(self._packed, size)
        except (zlib.error, lzma.LZMAError, OSError, ValueError, EOFError, MemoryError) as error:
            self._own_fault = f"{self._noun} is damaged: {error}"
            return b""
        except Exception as error:  # of libraries that need not be there
            if type(error).__name__ not in _LIBRARY_ERRORS:
                raise
            self._own_fault = f"{self._noun} is damaged: {error}"
            return b""
        self._packed = getattr(self._decoder, "unconsumed_tail", b"")
        if self._decoder.eof:
            self._packed = self._decoder.unused_data
        return block


class _FirstFile(_Unpacked):
    """The first file of a zip archive whose end, where the directory is, was cut off."""

    def __init__(self, source: Readable) -> None:
        super().__init__(source, lambda: zlib.decompressobj(-15), "the zip archive")

    def read(self, size: int) -> bytes:
        return b"" if self._decoder.eof else super().read(size)


@contextmanager
def opened_trace(path: Path) -> Iterator[Readable]:
    """Yield the bytes of the trace at `path`; a zip's member may be named as `a.zip/member`.

    Raises:
        UsageError: There is no such file, or an archive holds several traces.
        LoadError: An archive holds none, or cannot be unpacked here.
    """
    archive, member = _split(path)
    if not archive.is_file():
        shown = file_text(path)
        fact = f"{shown} is no file" if path.exists() else f"there is no file {shown}"
        raise UsageError(fact, remedy="check the path")
    if member and not _is_archive(archive):
        raise UsageError(f"there is no file {file_text(path)}", remedy="check the path")
    with ExitStack() as opened:
        yield _layer(archive, member, _DEEPEST + 1, opened)


def _layer(path: Path, member: str, last: int, opened: ExitStack) -> Readable:
    """Return what lies in up to `last` containers, one in the other; the innermost unpacked."""
    if _is_zip(path):
        source: Readable = _from_zip(path, member, opened)
    else:
        source = _Plain(opened.enter_context(path.open("rb")), "the file")
    for depth in range(last):
        head = _read_head(source)
        if (offset := _first_file_at(head, member)) is not None:
            source = _FirstFile(_Headed(head[offset:], source))
            continue
        source = _Headed(head, source)
        if head[257:262] == b"ustar":
            names = _names_in_tar(source, opened)
            again = _layer(path, member, depth, opened)
            source = _from_tar(again, _chosen(path, names, member), opened)
        elif (new := _decoder(path, head)) is not None:
            source = _Unpacked(source, *new)
        else:
            return _AsUtf8(source) if head[:2] in _UTF16_MARKS else source
    if last > _DEEPEST:
        raise LoadError(
            f"{file_text(path)} is compressed more than {_DEEPEST} times", remedy="unpack it"
        )
    return source


def _first_file_at(head: bytes, member_name: str) -> int | None:
    """Return where in a zip archive that begins with `head` its first file is; None if unusable.

    That is a deflated and unencrypted one, called as `wanted` if that is given.
    """
    if head[:4] != b"PK\x03\x04" or len(head) < _HEAD_BYTES:
        return None
    flags, method = struct.unpack_from("<HH", head, 6)
    name_bytes, extra_bytes = struct.unpack_from("<HH", head, 26)
    name = head[30 : 30 + name_bytes].decode("utf-8", "replace")
    offset = 30 + name_bytes + extra_bytes
    is_usable = method == 8 and not flags & 1 and offset < len(head) and _is_trace_name(name)
    return offset if is_usable and member_name in ("", name) else None


def _is_archive(path: Path) -> bool:
    """Return whether a file may hold members: a zip, a tar archive, or a compressed one."""
    return _is_zip(path) or path.suffix.lower() in (".tar", ".tgz", ".gz", ".xz", ".bz2", ".zst")


def _is_zip(path: Path) -> bool:
    """Return whether a file begins as a zip and has its directory."""
    with path.open("rb") as file:
        return file.read(2) == b"PK" and is_zipfile(path)


def _split(path: Path) -> tuple[Path, str]:
    """Return the file and, where the path leads into a zip, the member's name."""
    if path.exists():
        return path, ""
    for parent in path.parents:
        if parent.is_file():
            return parent, path.relative_to(parent).as_posix()
    return path, ""


def _read_head(source: Readable) -> bytes:
    head = b""
    while len(head) < _HEAD_BYTES and (block := source.read(_HEAD_BYTES - len(head))):
        head += block
    return head


def _decoder(path: Path, head: bytes) -> tuple[Callable[[], Any], str] | None:
    """Return what unpacks a container that begins with `head`, and its name; None if it is none."""
    if head[:2] == b"\x1f\x8b":
        return _gzip_decoder(), "the gzip data"
    if head[:3] == b"BZh":
        return bz2.BZ2Decompressor, "the bzip2 data"
    if head[:6] == b"\xfd7zXZ\0":
        return lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY_BYTES), "the xz data"
    if head[:4] == b"(\xb5/\xfd":
        return _zstandard(path), "the zstandard data"
    sevenzip = head[:6] == b"7z\xbc\xaf\x27\x1c"
    if sevenzip or head[:4] == b"PK\x03\x04":
        kind = "7z" if sevenzip else "zip"
        raise LoadError(
            f"{file_text(path)} holds a {kind} archive that cannot be read as it is",
            remedy="unpack it, name the trace inside",
        )
    return None


def _gzip_decoder() -> Callable[[], Any]:
    """Return what makes decoders of gzip: python-isal's, which take a quarter of the time."""
    try:
        from isal import isal_zlib
    except ImportError:
        return lambda: zlib.decompressobj(31)
    return lambda: isal_zlib.decompressobj(31)


def _zstandard(path: Path) -> Callable[[], Any]:
    """Return what makes decoders of zstandard, which Python has from 3.14 on."""
    for name in ("compression.zstd", "backports.zstd"):  # one interface
        try:
            module: Any = importlib.import_module(name)
        except ImportError:
            continue
        decoder: Callable[[], Any] = module.ZstdDecompressor
        return decoder
    raise LoadError(
        f"{file_text(path)} is compressed by zstandard, which this Python cannot unpack",
        remedy="pip install 'flopprof[zstd]', or unpack it: zstd -d FILE",
    )


def _from_zip(path: Path, member_name: str, opened: ExitStack) -> Readable:
    try:
        archive = opened.enter_context(ZipFile(path))
        members = {info.filename: info for info in archive.infolist() if not info.is_dir()}
        info = members[_chosen(path, list(members), member_name)]
        if info.flag_bits & 1:
            raise LoadError(
                f"{file_text(path)} is encrypted", remedy="unpack it, name the trace inside"
            )
        return _Plain(opened.enter_context(archive.open(info)), "the zip archive")
    except (BadZipFile, OSError, NotImplementedError, ValueError, RuntimeError) as error:
        raise LoadError(
            f"{file_text(path)} is a zip archive that cannot be read: {error}",
            remedy="copy it again, or unpack it and name the trace inside",
        ) from error


def _from_tar(source: Readable, chosen: str, opened: ExitStack) -> Readable:
    """Return a member of a tar archive, which is read through only once."""
    reader: Any = source
    archive = opened.enter_context(tarfile.TarFile.open(fileobj=reader, mode="r|"))
    member = next(info for info in archive if info.name == chosen and info.isfile())
    return _Plain(archive.extractfile(member), "the tar archive")


def _names_in_tar(source: Readable, opened: ExitStack) -> list[str]:
    """Return the names of the files, as far as the archive is whole."""
    names: list[str] = []
    reader: Any = source
    with suppress(tarfile.TarError, EOFError, OSError, ValueError):
        archive = opened.enter_context(tarfile.TarFile.open(fileobj=reader, mode="r|"))
        names.extend(info.name for info in archive if info.isfile())
    return names


def _is_trace_name(name: str) -> bool:
    base = name.rpartition("/")[2]
    hidden = name.startswith("__MACOSX/") or base.startswith(".")
    return not hidden and base.lower().endswith(_TRACE_SUFFIXES)


def _chosen(path: Path, names: list[str], member: str) -> str:
    """Return the member to read: the one asked for, the only trace, or the only file."""
    if member:
        if member in names:
            return member
        raise UsageError(
            f"{file_text(path)} holds no {file_text(member)}",
            remedy=f"it holds: {_listed(names) or 'nothing'}",
        )
    traces = [name for name in names if _is_trace_name(name)] or names
    if len(traces) == 1:
        return traces[0]
    shown = file_text(path)
    if not traces:
        raise LoadError(f"{shown} is an archive without files", remedy="copy it again")
    raise UsageError(
        f"{shown} holds {len(traces)} files: {_listed(traces)}",
        remedy=f"name one: flopprof trace {shown}/{file_text(traces[0])}",
    )


def _listed(names: list[str]) -> str:
    more = f", and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(file_text(name) for name in names[:_LISTED]) + more
