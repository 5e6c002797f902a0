"""Small runs made by hand, for tests of what lies below `Run`."""

from typing import Any

import msgspec

from flopprof.errors import UsageError
from flopprof.metafile import decode
from flopprof.provenance import AnyProvenance, CallProvenance, Compiled, TraceProvenance
from flopprof.run import Run
from flopprof.tables import KERNELS, MODULE_CALLS, OPS, ROOFLINES, SITES


def provenance_of(facts: dict[str, Any]) -> AnyProvenance:
    """Return the provenance of these facts, which stand side by side as in version 1."""
    return decode(msgspec.json.encode({"schema_version": 1, **facts}))


def has_op(op: str) -> bool:
    """Return whether this version of torch has an op: newer ones have more."""
    from flopprof.capture.dispatched import overloads

    try:
        return bool(overloads(op))
    except UsageError:
        return False


def called(run: Run) -> CallProvenance:
    """Return the provenance of a run that was timed here."""
    assert isinstance(run.provenance, CallProvenance)
    return run.provenance


def recorded(run: Run) -> TraceProvenance:
    """Return the provenance of a run of traces recorded elsewhere."""
    assert isinstance(run.provenance, TraceProvenance)
    return run.provenance


def compiled(run: Run) -> Compiled:
    """Return what torch.compile made of the model of a run."""
    facts = called(run).compiled
    assert facts is not None
    return facts


def changed_ops(run: Run) -> dict[str, int] | None:
    """Return what tracing changed in a run that was timed here."""
    observer = called(run).timing.observer
    assert observer is not None
    return observer.changed_ops


def make_run(sites: list[dict[str, Any]] | None = None, **facts: Any) -> Run:
    """Return a run of two sites, one known and one not, unless others are given.

    Further facts are of its provenance, by their names of version 1.
    """
    if sites is None:
        sites = [
            {
                "site_id": 0,
                "op": "aten::linear",
                "module_path": "fc",
                "module_type": "torch.nn.Linear",
                "phase": "forward",
                "input_shapes": "4x5, 6x5, 6",
                "dtype": "float32",
                "calls": 2,
                "kind": "matmul",
                "flops": 528.0,
                "matmul_flops": 480.0,
                "vector_flops": 48.0,
                "flops_at_most": 528.0,
                "hook_flops": 528.0,
                "formula_flops": 528.0,
                "flops_source": "formula",
                "min_bytes": 592.0,
                "time_us": 30.0,
                "time_share_frac": 0.75,
                "achieved_flops_per_s": 17.6e6,
                "intensity_flops_per_byte": 528 / 592,
                "attainable_flops_per_s": 528 / 592 * 1e9,
                "efficiency_frac": 0.0197,
                "bound": "memory",
                "verdict": "agrees",
                "reason": "hook and formula agree",
            },
            {
                "site_id": 1,
                "op": "aten::mystery",
                "phase": "forward",
                "calls": 1,
                "kind": "unknown",
                "flops_at_most": 1000.0,
                "flops_source": "none",
                "time_us": 10.0,
                "time_share_frac": 0.25,
                "verdict": "unknown",
                "reason": 'no formula, with a comma, and a "quote"',
            },
        ]
    return Run(
        module_calls=MODULE_CALLS.empty(),
        ops=OPS.empty(),
        kernels=KERNELS.empty(),
        rooflines=ROOFLINES.empty(),
        sites=SITES.from_rows(sites),
        provenance=provenance_of(
            {
                "model": "Net",
                "device": {"name": "a CPU", "kind": "cpu", "threads": 2},
                "dtype": "float32",
                "wall_us": {"median": 50.0, "p5": 45.0, "p95": 60.0},
                **facts,
            }
        ),
        trace=b"packed",
    )
