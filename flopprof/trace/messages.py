"""What a collective's kernel sends: which collective it is, how much, and among whom."""

import math
import re
from typing import Any, NamedTuple

import numpy as np
import orjson
import pandas as pd

from flopprof.dtypes import itemsize, parse_dtype
from flopprof.trace.decode import NOTHING, Arguments

# In names of collectives and of kernels, letters alone; what holds another stands before it.
_KINDS = {
    "allreduce": "all_reduce",
    "allgather": "all_gather",
    "reducescatter": "reduce_scatter",
    "alltoall": "all_to_all",
    "broadcast": "broadcast",
    "sendrecv": "send_recv",
    "barrier": "barrier",
    "gather": "gather",
    "scatter": "scatter",
    "reduce": "reduce",
    "send": "send",
    "recv": "recv",
}
_NO_LETTER = re.compile(r"[^a-z]")
_LARGEST = 1 << 53  # elements, and ranks of a group; more is a damaged number


class Message(NamedTuple):
    """What one call of a collective sends; NaN and "" where the trace does not tell.

    Attributes:
        kind: all_reduce, all_gather, reduce_scatter, …
        bytes: The larger of what a rank gives and what it gets, as NCCL's tests count a size.
        group: Name of the process group.
        group_size: Ranks in it.
    """

    kind: str = ""
    bytes: float = math.nan
    group: str = ""
    group_size: float = math.nan


def has_message(args: Arguments) -> bool:
    """Return whether a kernel's arguments say what it sends: PyTorch adds them since 2.2."""
    return args.collective is not NOTHING


def message_texts(args: Arguments) -> tuple[bytes, ...]:
    """Return the arguments that make a message, as the file has them: few differ in a trace."""
    fields = (
        args.collective,
        args.elements_in,
        args.elements_out,
        args.dtype,
        args.group,
        args.group_size,
    )
    return tuple(bytes(field) for field in fields)


def read_message(texts: tuple[bytes, ...]) -> Message:
    """Return the message of `message_texts`; what is of no known form is not known."""
    collective, elements_in, elements_out, dtype, group, group_size = map(_value, texts)
    size = itemsize(parse_dtype(dtype)) if isinstance(dtype, str) else None
    counts = [_count(elements_in), _count(elements_out)]
    sent = math.nan
    if size is not None:
        sent = float(np.max(counts)) * size  # NaN where one of them is
    return Message(
        kind=collective_kind(collective) if isinstance(collective, str) else "",
        bytes=sent,
        group=group if isinstance(group, str) else "",
        group_size=_count(group_size),
    )


def _value(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None


def _count(value: Any) -> float:
    return float(value) if type(value) is int and 0 <= value < _LARGEST else math.nan


def collective_kind(name: str) -> str:
    """Return the collective that a name tells, ours or a kernel's; "" where it tells none."""
    letters = _NO_LETTER.sub("", name.partition("(")[0].lower())
    return next((kind for part, kind in _KINDS.items() if part in letters), "")


def message_columns(
    messages: list[Message],
    sent: np.ndarray,
    names: np.ndarray,
    texts: list[str],
    is_collective: np.ndarray,
) -> dict[str, Any]:
    """Return the columns of KERNELS that tell of collectives; none where no kernel is one.

    Args:
        messages: The different messages of a trace.
        sent: Each kernel's, by number; -1 where it tells none.
        names: Each kernel's name, by number.
        texts: The names.
        is_collective: Whether each kernel is one.
    """
    if not is_collective.any():
        return {}
    by_number = [*messages, Message()]  # the last is for -1
    kinds = np.array([message.kind for message in by_number], dtype=object)[sent]
    kinds_by_name = np.array([collective_kind(text) for text in texts], dtype=object)[names]
    kinds = np.where(kinds == "", kinds_by_name, kinds)
    groups = np.array([message.group for message in by_number], dtype=object)[sent]
    sizes = np.array([message.bytes for message in by_number])[sent]
    ranks = np.array([message.group_size for message in by_number])[sent]
    return {
        "collective": pd.Categorical(np.where(is_collective, kinds, "")),
        "message_bytes": np.where(is_collective, sizes, math.nan),
        "process_group": pd.Categorical(np.where(is_collective, groups, "")),
        "group_size": np.where(is_collective, ranks, math.nan),
    }
