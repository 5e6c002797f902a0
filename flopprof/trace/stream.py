"""Stream the events of a Chrome trace, packed or not, in bounded memory; damaged, what is whole."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from flopprof.errors import LoadError
from flopprof.trace.containers import Readable, opened_trace
from flopprof.trace.decode import Event, decode_events, event_from
from flopprof.trace.foreign import HEAD_BYTES, what_else
from flopprof.trace.salvage import BOUNDARY, Damage, mend, salvage
from flopprof.units import file_text

CHUNK_BYTES = 1 << 20
LARGEST_BYTES = 1 << 25  # of one event, and of the header: real ones stay below a megabyte
BRACES_TRIED = 64  # per chunk, from its end, until one lies between events
PARSES_TRIED = 3  # per chunk: a boundary may also lie inside an event
_START = re.compile(rb'"traceEvents"\s*:\s*\[')
_START_BYTES = 64  # what may lie of it in the last block
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_REMEDY = "give a trace that torch.profiler exported: export_chrome_trace(FILE)"


def stream_events(
    path: Path, header: dict[str, Any], damage: Damage | None = None
) -> Iterator[Sequence[Any]]:
    """Yield the trace's events in lists, and put every other top-level key into `header`.

    The keys may come before and after the events. Of a damaged file, what is whole is read.

    Args:
        path: The file, or a member of an archive: `a.zip/trace.json`.
        header: Takes the other keys.
        damage: Takes note of what is missing.

    Raises:
        UsageError: There is no such file.
        LoadError: It is no trace, or nothing of it is whole.
    """
    with opened_trace(path) as source:
        yield from _Stream(path, source, header, damage or Damage(), orjson.loads).events()


def stream_typed_events(
    path: Path, header: dict[str, Any], damage: Damage
) -> Iterator[Sequence[Event]]:
    """Yield the trace's events as `Event`s; all else is as in `stream_events`."""
    with opened_trace(path) as source:
        for events in _Stream(path, source, header, damage, decode_events).events():
            is_typed = len(events) > 0 and type(events[0]) is Event
            yield events if is_typed else [event_from(value) for value in events]


class _Stream:
    """One file being read.

    `decode` makes events of a JSON list of them; it raises ValueError for what is no JSON.
    """

    def __init__(
        self,
        path: Path,
        source: Readable,
        header: dict[str, Any],
        damage: Damage,
        decode: Callable[[bytes], Sequence[Any]],
    ) -> None:
        self._path = path
        self._source = source
        self._header = header
        self._damage = damage
        self._decode = decode
        self._used = 0  # bytes before the buffer
        self._is_bare = False  # nothing but a list of events

    def events(self) -> Iterator[Sequence[Any]]:
        """Yield lists of events."""
        buffer = self._skip_to_events()
        block_bytes = CHUNK_BYTES
        while True:
            block = self._source.read(block_bytes)
            buffer += block
            if not block:
                yield from self._last(buffer)
                return
            events: Sequence[Any]
            events, used = _whole_events(buffer, self._decode)
            if used:
                self._damage.follow(events)
            else:
                salvaged = salvage(buffer, self._used, self._damage, at_end=False)
                events = salvaged.events
                used = salvaged.used
                if salvaged.ended:
                    yield events
                    self._take_rest(self._all_of(buffer[used:]))
                    return
            if used:
                self._used += used
                buffer = buffer[used:]
                block_bytes = CHUNK_BYTES
                yield events
            elif len(buffer) > LARGEST_BYTES:
                self._damage.lose(self._used)
                buffer = self._skip_to_boundary(buffer)
            else:
                block_bytes = len(buffer)  # twice as much the next time: linear in all

    def _skip_to_events(self) -> bytes:
        """Read up to the first event and return what was read behind it."""
        buffer = b""
        searched = 0
        while block := self._source.read(CHUNK_BYTES):
            buffer += block
            self._damage.head = self._damage.head or block[:HEAD_BYTES]
            text = buffer.removeprefix(_BYTE_ORDER_MARK).lstrip()
            if text[:1] == b"[":  # Chrome's older form: nothing but the events
                self._is_bare = True
                self._used = len(buffer) - len(text) + 1
                return text[1:]
            if start := _START.search(buffer, searched):
                self._take_header(buffer[: start.start()].removeprefix(_BYTE_ORDER_MARK))
                self._used = start.end()
                return buffer[start.end() :]
            searched = max(len(buffer) - _START_BYTES, 0)
            if len(buffer) > LARGEST_BYTES:
                break
        fact = "holds no traceEvents" if buffer.strip() else "is empty"
        raise self._fault(self._source.fault or fact)

    def _take_header(self, text: bytes) -> None:
        """Take the keys before the events."""
        text = text.rstrip().rstrip(b",") + b"}"
        for attempt in (text, mend(text)):
            try:
                self._header.update(orjson.loads(attempt))
            except (orjson.JSONDecodeError, TypeError, ValueError):
                continue
            return
        self._damage.faults.append("has no JSON object before its traceEvents: that is left out")

    def _skip_to_boundary(self, buffer: bytes) -> bytes:
        """Pass over an event that is too large; return what follows it."""
        while True:
            if boundary := BOUNDARY.search(buffer):
                self._used += boundary.end()
                return buffer[boundary.end() :]
            tail = buffer[-_START_BYTES:]
            self._used += len(buffer) - len(tail)
            block = self._source.read(CHUNK_BYTES)
            if not block:
                fault = f"holds no whole event within {LARGEST_BYTES >> 20} MiB"
                if not self._damage.read:
                    raise self._fault(fault)
                return b""
            buffer = tail + block

    def _last(self, buffer: bytes) -> Iterator[Sequence[Any]]:
        """Yield the last events, and put what follows them into the header."""
        for text in (b'{"traceEvents":[' + buffer, b'{"traceEvents":[' + buffer + b"}"):
            try:
                other_keys = orjson.loads(text)
            except orjson.JSONDecodeError:
                continue
            events: list[Any] = other_keys.pop("traceEvents")
            self._header.update(other_keys)
            self._damage.follow(events)
            yield events
            return
        salvaged = salvage(buffer, self._used, self._damage, at_end=True)
        if not self._damage.read:
            raise self._fault(
                self._source.fault or "is cut off or damaged: no event of it is whole"
            )
        yield salvaged.events
        place = self._damage.place(self._used + salvaged.used)
        if self._source.fault:
            self._damage.faults.append(f"ends early, at {place}: {self._source.fault}")
        if salvaged.ended:
            self._take_rest(buffer[salvaged.used :])
        elif not self._is_bare and not self._damage.faults:
            self._damage.faults.append(f"is cut off before {place}: what follows is missing")

    def _all_of(self, buffer: bytes) -> bytes:
        """Return the rest of the file, as far as a header may be long."""
        blocks = [buffer]
        size = len(buffer)
        while size <= LARGEST_BYTES and (block := self._source.read(CHUNK_BYTES)):
            blocks.append(block)
            size += len(block)
        return b"".join(blocks)

    def _take_rest(self, text: bytes) -> None:
        """Take the keys behind the events; `text` begins with the end of their list."""
        whole = b'{"traceEvents":[' + text
        for attempt in (whole, whole + b"}", mend(whole), mend(whole) + b"}"):
            try:
                other_keys = orjson.loads(attempt)
            except (orjson.JSONDecodeError, ValueError):
                continue
            other_keys.pop("traceEvents")
            self._header.update(other_keys)
            return
        self._damage.faults.append("has no JSON behind its traceEvents: that is left out")

    def _fault(self, fact: str) -> LoadError:
        if kind := what_else(self._damage.head):
            return kind.error(self._path)
        shown = file_text(self._path)
        separator = ": " if fact.startswith("the ") else " "
        return LoadError(f"{shown}{separator}{fact}", remedy=_REMEDY)


def _whole_events(
    buffer: bytes, decode: Callable[[bytes], Sequence[Any]]
) -> tuple[Sequence[Any], int]:
    """Return the events up to the last boundary between two, and the bytes they and it take.

    Only at a boundary between events does the text before it parse. Nothing where that is not
    found soon.
    """
    end = len(buffer)
    parses = 0
    for _ in range(BRACES_TRIED):
        end = buffer.rfind(b"}", 0, end)
        if end < 0 or parses == PARSES_TRIED:
            break
        boundary = BOUNDARY.match(buffer, end)
        if boundary:
            parses += 1
            try:
                return decode(b"[" + buffer[: end + 1] + b"]"), boundary.end()
            except ValueError:
                continue
    return [], 0
