"""One event of a trace as a typed object: only the keys that are of use are made Python objects of.

Nearly all events fit the types and are decoded by the million. One that does not (an id as text, a
time as null) is decoded on its own, with the tolerance of `event_from`; both give the same event.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import orjson

_LARGEST = (1 << 63) - 1
Id = Annotated[int, msgspec.Meta(ge=-_LARGEST, le=_LARGEST)]
NOTHING = msgspec.Raw()
"""What stands for an argument that an event does not have."""


class Arguments(msgspec.Struct, gc=False):
    """The arguments of an event, of those that the reader uses; a number that is not there is -1.

    Shapes, types, values, strides and sizes stay JSON text until they are first met.
    """

    external_id: Id = msgspec.field(name="External id", default=-1)
    external_id_of_2021: Id = msgspec.field(name="external id", default=-1)
    sequence_nr: Id = msgspec.field(name="Sequence number", default=-1)
    sequence_nr_of_2021: Id = msgspec.field(name="sequence number", default=-1)
    correlation: Id = -1
    stream: Id = -1
    device: Id = -1
    graph: Id = msgspec.field(name="graph id", default=-1)
    kernel: str | None = None
    dims: msgspec.Raw = msgspec.field(name="Input Dims", default=NOTHING)
    dims_of_2021: msgspec.Raw = msgspec.field(name="Input dims", default=NOTHING)
    types: msgspec.Raw = msgspec.field(name="Input type", default=NOTHING)
    values: msgspec.Raw = msgspec.field(name="Concrete Inputs", default=NOTHING)
    strides: msgspec.Raw = msgspec.field(name="Input Strides", default=NOTHING)
    grid: msgspec.Raw = NOTHING
    block: msgspec.Raw = NOTHING
    kernel_hash: msgspec.Raw = NOTHING
    kernel_file: msgspec.Raw = NOTHING
    kernel_backend: msgspec.Raw = NOTHING
    collective: msgspec.Raw = msgspec.field(name="Collective name", default=NOTHING)
    elements_in: msgspec.Raw = msgspec.field(name="In msg nelems", default=NOTHING)
    elements_out: msgspec.Raw = msgspec.field(name="Out msg nelems", default=NOTHING)
    dtype: msgspec.Raw = NOTHING
    group: msgspec.Raw = msgspec.field(name="Process Group Name", default=NOTHING)
    group_size: msgspec.Raw = msgspec.field(name="Group size", default=NOTHING)

    @property
    def is_of_triton(self) -> bool:
        """Whether the event is a call of a Triton kernel."""
        keys = (self.kernel_hash, self.kernel_file, self.kernel_backend)
        return any(key is not NOTHING for key in keys)


NO_ARGUMENTS = Arguments()


class Event(msgspec.Struct, gc=False):
    """An event; times in µs, NaN where the event has none that is a number."""

    ph: str = ""
    cat: str | None = None
    name: str | None = None
    pid: Id | str | None = None
    tid: Id | str | None = None
    ts: float = math.nan
    dur: float = 0.0
    args: Arguments | None = None


_EVENTS = msgspec.json.Decoder(list[Event])
_EVENT = msgspec.json.Decoder(Event)
_TEXTS = msgspec.json.Decoder(list[msgspec.Raw])
_ENCODER = msgspec.json.Encoder()


def decode_events(text: bytes) -> list[Event]:
    """Return the events of a JSON list, a blank one for what in it is no event.

    Raises:
        ValueError: It is no JSON.
    """
    try:
        return _EVENTS.decode(text)
    except (msgspec.ValidationError, UnicodeDecodeError):  # of one event, which is to be found
        return [_decode_one(one) for one in _TEXTS.decode(text)]
    except RecursionError as error:
        raise ValueError("lists in lists, too deep") from error


def _decode_one(text: msgspec.Raw) -> Event:
    try:
        return _EVENT.decode(text)
    except (msgspec.ValidationError, UnicodeDecodeError):
        return event_from(orjson.loads(bytes(text)))


def event_from(value: Any) -> Event:
    """Return the event that a JSON object is, as far as its values are of use; else a blank one.

    Ids may be texts, times too; arguments that are no object make it no event.
    """
    if type(value) is not dict:
        return Event()
    args = value.get("args") or {}
    name = value.get("name")
    category = value.get("cat")
    phase = value.get("ph")
    if type(args) is not dict:
        return Event()
    pid = value.get("pid")
    tid = value.get("tid")
    if not isinstance(pid, str | int) or not isinstance(tid, str | int):
        pid = str(pid)
        tid = str(tid)
    return Event(
        ph=phase if type(phase) is str else "",
        cat=category if type(category) is str else None,
        name=name if type(name) is str else None,
        pid=pid,
        tid=tid,
        ts=_number(value.get("ts")),
        dur=_number(value.get("dur", 0.0)),
        args=_arguments_from(args),
    )


def _arguments_from(args: Mapping[str, Any]) -> Arguments:
    kernel = args.get("kernel")
    return Arguments(
        external_id=_integer(args, "External id", "external id"),
        sequence_nr=_integer(args, "Sequence number", "sequence number"),
        correlation=_integer(args, "correlation"),
        stream=_integer(args, "stream"),
        device=_integer(args, "device"),
        graph=_integer(args, "graph id"),
        kernel=kernel if type(kernel) is str else None,
        dims=_text(args, "Input Dims"),
        dims_of_2021=_text(args, "Input dims"),
        types=_text(args, "Input type"),
        values=_text(args, "Concrete Inputs"),
        strides=_text(args, "Input Strides"),
        grid=_text(args, "grid"),
        block=_text(args, "block"),
        kernel_hash=_text(args, "kernel_hash"),
        kernel_file=_text(args, "kernel_file"),
        kernel_backend=_text(args, "kernel_backend"),
        collective=_text(args, "Collective name"),
        elements_in=_text(args, "In msg nelems"),
        elements_out=_text(args, "Out msg nelems"),
        dtype=_text(args, "dtype"),
        group=_text(args, "Process Group Name"),
        group_size=_text(args, "Group size"),
    )


def _text(args: Mapping[str, Any], key: str) -> msgspec.Raw:
    """Return an argument as JSON text, as the typed decoder leaves it."""
    if key not in args:
        return NOTHING
    try:
        return msgspec.Raw(_ENCODER.encode(args[key]))
    except (RecursionError, UnicodeEncodeError):
        return msgspec.Raw(b"null")


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _integer(args: Mapping[str, Any], *names: str) -> int:
    """Return the first of these arguments that is an integer, or the text of one; else -1."""
    for name in names:
        value = args.get(name)
        if isinstance(value, str) and value.isdecimal() and len(value) < 20:
            value = int(value)
        if type(value) is int:
            return value if abs(value) <= _LARGEST else -1
    return -1
