"""`meta.json`: the provenance as text, and back; also that of earlier versions.

A number that is not known is NaN in the provenance and null in the text.
"""

from typing import Any

import msgspec

from flopprof.provenance import AnyProvenance, plain
from flopprof.units import clean_text

RUN_VERSION = 2
"""Version of `meta.json` and of the folder around it; see CHANGELOG.md."""


def encode(provenance: AnyProvenance) -> bytes:
    """Return the provenance as JSON text, as `meta.json` holds it; NaN is null."""
    whole = {"schema_version": RUN_VERSION, **plain(provenance)}
    try:
        text = msgspec.json.encode(whole)
    except UnicodeEncodeError:  # a file's name that is no text, or half a pair of surrogates
        text = msgspec.json.encode(_with_escapes(whole))
    return msgspec.json.format(text, indent=1) + b"\n"


def _with_escapes(value: Any) -> Any:
    """Return `value` with what of its texts UTF-8 cannot hold written out as people see it."""
    if isinstance(value, dict):
        return {_with_escapes(key): _with_escapes(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_with_escapes(inner) for inner in value]
    if not isinstance(value, str):
        return value
    letters = [clean_text(one) if "\ud800" <= one <= "\udfff" else one for one in value]
    return "".join(letters)


def decode(text: bytes) -> AnyProvenance:
    """Return the provenance that `text` holds, of this version or an earlier one.

    Raises:
        NewerVersionError: It was written by a newer flopprof.
        ValueError: It is no JSON, or something in it is of another type than declared.
    """
    fields = msgspec.json.decode(text)
    if not isinstance(fields, dict):
        raise ValueError(f"it holds {type(fields).__name__}, no object")
    version = fields.pop("schema_version", None)
    if type(version) is not int or version < 1:
        raise ValueError(f"its schema_version is {version!r}")
    if version > RUN_VERSION:
        raise NewerVersionError(version)
    if version == 1:
        try:
            fields = _from_version_1(fields)
        except (TypeError, AttributeError) as error:  # of lists and objects that are neither
            raise ValueError(f"a key of version 1 is of another type: {error}") from error
    provenance: AnyProvenance = msgspec.convert(_without_nulls(fields), AnyProvenance)
    return provenance


class NewerVersionError(Exception):
    """A run was written by a newer flopprof; `version` is that of its schema."""

    def __init__(self, version: int) -> None:
        super().__init__(f"schema {version}, this one reads {RUN_VERSION}")
        self.version = version


def _without_nulls(value: Any) -> Any:
    """Return `value` without the keys that are null: not known is what a field is by default."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    return value


# Field of a part → its key in version 1, where all keys stood side by side.
_VERSION_1: dict[str, dict[str, str]] = {
    "source": {
        "model": "model",
        "parameters": "parameters",
        "architecture": "architecture",
        "architecture_source": "architecture_source",
        "alternatives": "alternatives",
        "file": "source",
        "weights": "weights",
        "never_called": "never_called",
    },
    "called": {
        "dtype": "dtype",
        "input": "input",
        "input_source": "input_source",
        "train": "train",
        "tf32": "tf32",
        "autocast": "autocast",
    },
    "environment": {
        "flopprof": "flopprof",
        "date": "date",
        "torch": "torch",
        "python": "python",
        "platform": "platform",
        "command": "command",
    },
    "timing": {
        "wall_us": "wall_us",
        "eager_wall_us": "eager_wall_us",
        "repeats": "repeats",
        "traced_us": "traced_us",
        "slowdown_frac": "slowdown_frac",
        "host_overhead_us": "host_overhead_us",
        "device_busy_us": "device_busy_us",
        "observer": "observer",
    },
}


def _from_version_1(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of version 1 as the parts of today."""
    parts: dict[str, Any] = {}
    for part, names in _VERSION_1.items():
        parts[part] = {name: fields[old] for name, old in names.items() if old in fields}
    parts["source"].setdefault("model", "")
    parts["called"].setdefault("dtype", "float32")
    parts["environment"].setdefault("flopprof", "")
    for name in ("device", "totals"):
        parts[name] = fields.get(name)
    parts["device"] = parts["device"] or {}
    parts["warnings"] = [{"text": text} for text in fields.get("warnings") or ()]
    if "trace" in fields:
        parts["kind"] = "trace"
        for name in ("trace", "ranks", "steps"):
            parts[name] = fields.get(name) or []
    elif fields.get("wall_us"):
        parts["kind"] = "call"
        parts["telemetry"] = fields.get("telemetry") or None
        parts["compiled"] = fields.get("compiled") or None
    else:
        parts["kind"] = "count"
    if parts["kind"] != "call":
        del parts["timing"]
    return parts
