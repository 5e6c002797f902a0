"""The whole events of a damaged stretch of a trace, and where the others are missing.

All of it is linear: an event is scanned for its end once, whatever its text holds.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

# Between two objects. The key behind it is what tells it from a text that holds "},{": in a text
# a quotation mark is escaped. Nothing here looks back: the quantifiers give nothing up.
BOUNDARY = re.compile(rb'\}\s*+(?:,\s*+)?+(?=\{\s*+"[\w .]++"\s*+:)')
# Where to go on behind an event that is lost.
_EVENT_START = re.compile(
    rb'\}\s*+(?:,\s*+)?+(?=\{\s*+"(?:cat|name|pid|tid|ts|dur)"\s*+:)|(?=\{\s*+"ph"\s*+:)'
)
_SCANS = 8  # how often a stretch may be scanned in all, once damage has misled the first scan
_BETWEEN = re.compile(rb"[\s,\0]*+")
# A text, whose closing mark is the group; without one it goes to the end: no second look at it.
_TEXT = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:(")|\\?\Z)'
_TOKEN = re.compile(_TEXT + rb"|[{}\[\]]", re.DOTALL)
_NO_OBJECT = re.compile(_TEXT + rb'|[^\s,\[\]{}"]+|.', re.DOTALL)
_TEXT_OR_NO_JSON = re.compile(
    rb"(" + _TEXT + rb")|(,)(?=\s*+[}\]])|-?\b(?:NaN|nan|Infinity|inf|None|undefined)\b",
    re.DOTALL,
)
_LONE_BACKSLASH = re.compile(rb'\\(?:(["\\/bfnrt]|u[0-9a-fA-F]{4})|(?=.))', re.DOTALL)
_CLOSING_BACKSLASH = re.compile(rb'\\"(?=\s*+[,}\]])')
_CONTROL = re.compile(rb"[\x00-\x1f]")
_LONE_SURROGATE = re.compile(
    rb"(?<!\\)\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|"
    rb"(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
_OPEN = b"{["


@dataclass(slots=True)
class Damage:
    """What is missing of a trace, and where it begins.

    Attributes:
        missing: Events that could not be read.
        mended: Events that were read without a value that is no JSON.
        first_missing: Where the first missing event is, in words.
        first_mended: Where the first mended event is.
        faults: What else is wrong with the file, in words: where it ends early, what is no JSON.
        read: Events that were read.
        begin_us: Time of the first event that has one.
        last_us: Time of the last such event.
        head: How the file begins, unpacked: tells what it is where it is no trace.
    """

    missing: int = 0
    mended: int = 0
    first_missing: str = ""
    first_mended: str = ""
    faults: list[str] = field(default_factory=list)
    read: int = 0
    begin_us: float | None = None
    last_us: float | None = None
    head: bytes = b""

    def follow(self, events: Sequence[Any]) -> None:
        """Take note of events that were read: how many, and how far in time."""
        self.read += len(events)
        if self.begin_us is None:
            self.begin_us = _first_time(events)
        last = _first_time(reversed(events))
        if last is not None:
            self.last_us = last

    def place(self, byte: int) -> str:
        """Return where the next event is, in words."""
        text = f"event {self.read + self.missing + 1} (byte {byte}"
        if self.begin_us is not None and self.last_us is not None:
            text += f", {max(self.last_us - self.begin_us, 0.0) / 1e6:.6f} s into the trace"
        return text + ")"

    def lose(self, byte: int) -> None:
        """Count one event as missing."""
        self.first_missing = self.first_missing or self.place(byte)
        self.missing += 1

    def warnings(self, name: str) -> list[str]:
        """Return what to tell of the file called `name`."""
        texts = []
        if self.missing == 1:
            texts.append(f"{name} is damaged: 1 event is missing, {self.first_missing}")
        elif self.missing:
            texts.append(
                f"{name} is damaged: {self.missing} events are missing, the first is "
                f"{self.first_missing}"
            )
        if self.mended:
            texts.append(
                f"{name}: values that are no JSON (NaN, a lone backslash) in {self.mended} events "
                f"are left out, the first in {self.first_mended}"
            )
        return [*texts, *(f"{name} {fault}" for fault in self.faults)]


@dataclass(slots=True)
class Salvaged:
    """What a stretch held: whole events, how far it was used, and whether the events end there."""

    events: list[Any] = field(default_factory=list)
    used: int = 0
    ended: bool = False


def salvage(buffer: bytes, origin: int, damage: Damage, *, at_end: bool) -> Salvaged:
    """Return the whole events of `buffer`, which begins between events, one by one.

    Args:
        buffer: A stretch of a trace's events.
        origin: Which byte of the trace it begins at.
        damage: Takes note of what is missing.
        at_end: Whether nothing follows: an event without an end is missing then.
    """
    return _Stretch(buffer, origin, damage, at_end=at_end).read()


class _Stretch:
    """One stretch of events, and how far it is read."""

    def __init__(self, buffer: bytes, origin: int, damage: Damage, *, at_end: bool) -> None:
        self._buffer = buffer
        self._origin = origin
        self._damage = damage
        self._at_end = at_end
        self._position = 0
        self._scanned = 0  # up to here the ends of events were looked for
        self._to_scan = _SCANS * len(buffer)  # bytes that may be scanned a second time
        self._boundary = BOUNDARY.search(buffer)
        self._following = _EVENT_START.search(buffer)
        self._result = Salvaged()

    def read(self) -> Salvaged:
        """Return all events up to the end of the list, or of the last whole one."""
        buffer = self._buffer
        while True:
            between = _BETWEEN.match(buffer, self._position)
            self._position = between.end() if between else self._position
            self._result.used = self._position
            if self._position >= len(buffer):
                return self._result
            character = buffer[self._position]
            if character == ord("]"):
                self._result.ended = True
                return self._result
            if character not in _OPEN:
                self._pass_what_is_no_object()
            elif not self._read_one():
                return self._result

    def _pass_what_is_no_object(self) -> None:
        token = _NO_OBJECT.match(self._buffer, self._position)
        end = token.end() if token else len(self._buffer)
        if _parsed(self._buffer[self._position : end]) is None:
            self._damage.lose(self._origin + self._position)
        self._position = end

    def _read_one(self) -> bool:
        """Read the event at the position, or pass it; False where its end is not there yet."""
        buffer = self._buffer
        start = self._position
        while self._boundary is not None and self._boundary.start() < start:
            self._boundary = BOUNDARY.search(buffer, start)
        ends = []
        if self._boundary is not None:
            ends.append(self._boundary.start() + 1)
            if self._take(ends[0], _parsed(buffer[start : ends[0]])):
                return True
        closed = self._end_by_scan()  # a list of objects inside it, or the last event, or damage
        if closed is not None:
            ends.append(closed)
            if self._take(closed, _parsed(buffer[start:closed])):
                return True
        for end in ends:
            event = _mended(buffer[start:end])
            if event is not None and not _is_without_time(event):
                place = self._damage.place(self._origin + start)
                self._damage.first_mended = self._damage.first_mended or place
                self._damage.mended += 1
                return self._take(end, event)
        if closed is None and self._scanned == len(buffer) and not self._at_end:
            return False
        self._pass_the_lost(closed)
        return True

    def _end_by_scan(self) -> int | None:
        """Return where the event at the position ends, unless that was looked for too often."""
        start = self._position
        if start < self._scanned and self._to_scan <= 0:
            return None
        closed = _end_of_event(self._buffer, start)
        end = closed or len(self._buffer)
        if start < self._scanned:
            self._to_scan -= end - start
        self._scanned = max(self._scanned, end)
        return closed

    def _take(self, end: int, event: Any) -> bool:
        if event is None:
            return False
        self._result.events.append(event)
        self._damage.follow((event,))
        self._position = end
        return True

    def _pass_the_lost(self, closed: int | None) -> None:
        """Go on behind an event that cannot be read: at the next one, else at its end."""
        start = self._position
        while self._following is not None and self._following.end() <= start:
            self._following = _EVENT_START.search(self._buffer, start + 1)
        byte = self._origin + start
        following = self._following
        if following is None and closed is None and not self._buffer.rstrip().endswith(b"}"):
            self._damage.faults.append(
                f"is cut off inside {self._damage.place(byte)}: what follows is missing"
            )
            self._position = len(self._buffer)
            return
        self._damage.lose(byte)
        if following is not None:
            self._position = following.end()
        else:
            self._position = closed or len(self._buffer)


def _first_time(events: Iterable[Any]) -> float | None:
    for event in events:
        time: Any = event.get("ts") if type(event) is dict else getattr(event, "ts", None)
        if type(time) in (int, float) and time == time:  # NaN: it has none
            return float(time)
    return None


def _is_without_time(event: Any) -> bool:
    """Return whether a complete event lost its start or length."""
    if type(event) is not dict or event.get("ph") != "X":
        return False
    return event.get("ts") is None or event.get("dur", 0) is None


def _parsed(text: bytes) -> Any | None:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None


def _end_of_event(buffer: bytes, start: int) -> int | None:
    """Return the end of the object that begins at `start`; None if the buffer does not hold it."""
    depth = 0
    for token in _TOKEN.finditer(buffer, start):
        character = buffer[token.start()]
        if character in _OPEN:
            depth += 1
        elif character != ord('"'):
            depth -= 1
            if depth <= 0:
                return token.end()
        elif token[1] is None:  # a text without an end
            return None
    return None


def mend(text: bytes) -> bytes:
    """Return JSON without what programs write and JSON has not: NaN, lone backslashes, newlines."""
    text = text.decode("utf-8", "replace").encode()
    text = _CONTROL.sub(b" ", text)
    text = _LONE_BACKSLASH.sub(lambda m: m[0] if m[1] else rb"\\", text)
    text = _LONE_SURROGATE.sub(rb"\\ufffd", text)
    return _TEXT_OR_NO_JSON.sub(lambda m: m[1] or (b"" if m[3] else b"null"), text)


def _mended(text: bytes) -> Any | None:
    for attempt in (text, _CLOSING_BACKSLASH.sub(rb'\\\\"', text)):
        if (value := _parsed(mend(attempt))) is not None:
            return value
    return None
