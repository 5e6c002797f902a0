"""Names and sizes of element types, as traces spell them and as we do."""

from csv import DictReader
from pathlib import Path

# Kineto's names of element types, as traces of any year and vendor have them → (ours, bytes).
with Path(__file__).with_name("dtypes.csv").open(encoding="utf-8", newline="") as _file:
    _TRACE_DTYPES = {row["spelling"]: (row["name"], int(row["bytes"])) for row in DictReader(_file)}
_SIZES: dict[str, int] = dict(_TRACE_DTYPES.values())


def parse_dtype(spelling: str) -> str:
    """Return our name for a trace's type string ("c10::Half" → "float16"), or it unchanged.

    Strings that name no element type ("Scalar", "ScalarList", "TensorList", "") stay as they are.
    """
    listed = _TRACE_DTYPES.get(spelling)
    return listed[0] if listed else spelling


def itemsize(dtype: str) -> int | None:
    """Return the bytes of one element of `dtype` (our name), or None if it is no element type."""
    return _SIZES.get(dtype)


def is_floating(dtype: str) -> bool:
    """Return whether arithmetic on `dtype` is floating point, real or complex."""
    return dtype.startswith(("float", "bfloat", "complex"))


def is_complex(dtype: str) -> bool:
    """Return whether `dtype` is complex."""
    return dtype.startswith("complex")
