"""Stream the events of a Chrome trace, gzipped or not, in bounded memory."""

import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import orjson

from flopprof.errors import LoadError, UsageError

CHUNK_BYTES = 1 << 20
LARGEST_BYTES = 1 << 25  # of one event, and of the header: real ones stay below a megabyte
BOUNDARIES_TRIED = 64  # per chunk; a "},{" may also lie inside an event
_START = re.compile(rb'"traceEvents"\s*:\s*\[')
_BOUNDARY = re.compile(rb"\}\s*,\s*\{")
_REMEDY = "give a trace that torch.profiler exported: export_chrome_trace(FILE)"


def stream_events(path: Path, header: dict[str, Any]) -> Iterator[list[Any]]:
    """Yield the trace's events in lists, and put every other top-level key into `header`.

    The keys may come before and after the events.

    Raises:
        UsageError: There is no such file.
        LoadError: It is no trace, or a damaged one.
    """
    if not path.is_file():
        fact = f"{path} is no file" if path.exists() else f"there is no file {path}"
        raise UsageError(fact, remedy="check the path")
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with cast(BinaryIO, gzip.open(path) if packed else path.open("rb")) as file:
            yield from _events(file, path, header)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise LoadError(
            f"{path} is a damaged gzip file: {error}", remedy="copy it again"
        ) from error


def _events(file: BinaryIO, path: Path, header: dict[str, Any]) -> Iterator[list[Any]]:
    buffer = _skip_to_events(file, path, header)
    wanted = CHUNK_BYTES
    while True:
        block = file.read(wanted)
        buffer += block
        if not block:
            yield _last(buffer, path, header)
            return
        events, used = _whole_events(buffer)
        if used:
            buffer, wanted = buffer[used:], CHUNK_BYTES
            yield events
        elif len(buffer) > LARGEST_BYTES:
            raise _fault(path, f"holds no whole event within {LARGEST_BYTES >> 20} MiB")
        else:
            wanted = len(buffer)  # twice as much the next time: linear in all


def _skip_to_events(file: BinaryIO, path: Path, header: dict[str, Any]) -> bytes:
    """Read up to the first event and return what was read behind it."""
    buffer = b""
    while block := file.read(CHUNK_BYTES):
        buffer += block
        if buffer.lstrip()[:1] == b"[":  # Chrome's older form: nothing but the events
            return buffer.lstrip()[1:]
        if found := _START.search(buffer):
            before = buffer[: found.start()].rstrip().rstrip(b",")
            try:
                header.update(orjson.loads(before + b"}"))
            except (orjson.JSONDecodeError, TypeError, ValueError) as error:
                fact = "has no JSON object before its traceEvents"
                raise _fault(path, fact) from error
            return buffer[found.end() :]
        if len(buffer) > LARGEST_BYTES:
            break
    raise _fault(path, "holds no traceEvents" if buffer.strip() else "is empty")


def _whole_events(buffer: bytes) -> tuple[list[Any], int]:
    """Return the events up to the last boundary between two, and the bytes they and it take.

    Only at a boundary between events does the text before it parse.
    """
    end = len(buffer)
    for _ in range(BOUNDARIES_TRIED):
        end = buffer.rfind(b"}", 0, end)
        if end < 0:
            break
        boundary = _BOUNDARY.match(buffer, end)
        if boundary:
            try:
                return orjson.loads(b"[" + buffer[: end + 1] + b"]"), boundary.end() - 1
            except orjson.JSONDecodeError:
                continue
    return [], 0


def _last(buffer: bytes, path: Path, header: dict[str, Any]) -> list[Any]:
    """Return the last events and put what follows them into `header`."""
    for text in (b'{"traceEvents":[' + buffer, b'{"traceEvents":[' + buffer + b"}"):
        try:
            rest = orjson.loads(text)
        except orjson.JSONDecodeError:
            continue
        events: list[Any] = rest.pop("traceEvents")
        header.update(rest)
        return events
    raise _fault(path, "is cut off or damaged: its last events are not JSON")


def _fault(path: Path, fact: str) -> LoadError:
    return LoadError(f"{path} {fact}", remedy=_REMEDY)
