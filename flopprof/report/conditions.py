"""In which conditions two runs differ: what a change of figures may be of, beside the code."""

from typing import Any

from flopprof.provenance import AnyProvenance, CallProvenance
from flopprof.run import Run

_TELLING = ("load", "drift", "threads", "recompiled", "changed_ops")
"""Codes of the warnings that say why times of a run may wander."""


def differing_conditions(before: Run, after: Run) -> list[dict[str, Any]]:
    """Return each condition that differs, as `name`, `before`, `after`; None is not known or none.

    In the order of how much they usually change: element types, what was called, where, by what.
    """
    earlier = _conditions(before.provenance)
    later = _conditions(after.provenance)
    return [
        {"name": name, "before": earlier[name], "after": later[name]}
        for name in earlier
        if earlier[name] != later[name]
    ]


def _conditions(provenance: AnyProvenance) -> dict[str, Any]:
    called = provenance.called
    device = provenance.device
    environment = provenance.environment
    compiled = provenance.compiled if isinstance(provenance, CallProvenance) else None
    return {
        "dtype": called.dtype,
        "autocast": called.autocast,
        "tf32": called.tf32,
        "train": called.train,
        "input": called.input,
        "device": device.name or None,
        "device_kind": device.kind or None,
        "threads": device.threads,
        "compile": compiled.mode if compiled else None,
        "torch": environment.torch,
        "flopprof": environment.flopprof,
        "python": environment.python,
        "platform": environment.platform,
        "driver": device.driver,
        "runtime": device.runtime,
        "kind": type(provenance).__struct_config__.tag,
        "model": provenance.title,
    }


def doubts_of(run: Run) -> list[str]:
    """Return the warnings of a run that say why its times may wander."""
    return [one.text for one in run.provenance.warnings if one.code in _TELLING]
