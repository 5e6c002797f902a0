"""The sites of a compiled program: its library calls, and its generated kernels."""

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from flopprof.judge.levels import memory_of_sites
from flopprof.judge.roofs import main_units, site_roofline
from flopprof.provenance import CallProvenance, Compiled
from flopprof.tables import SITES

if TYPE_CHECKING:
    from flopprof.run import Run


def compiled_of(run: "Run") -> Compiled | None:
    """Return what is known of the compiled program; None for other runs, and for older ones."""
    provenance = run.provenance
    if not isinstance(provenance, CallProvenance) or provenance.compiled is None:
        return None
    return provenance.compiled if provenance.compiled.program else None


def program_sites(run: "Run", compiled: Compiled) -> pd.DataFrame:
    """Return the table SITES of the compiled program, held against the run's ceilings."""
    blank = {column.name: column.blank for column in SITES.columns if not column.rare}
    rows = []
    for number, op in enumerate(compiled.program):
        row = blank | {
            "site_id": number,
            "op": op.op,
            "phase": "forward",
            "input_shapes": op.input_shapes,
            "dtype": op.dtype,
            "calls": op.calls,
            "kind": op.kind,
            "matmul_flops": op.matmul_flops,
            "vector_flops": op.vector_flops,
            "flops": op.matmul_flops + op.vector_flops,
            "min_bytes": op.min_bytes,
            "time_us": op.time_us,
            "verdict": "fused" if op.is_generated else "recorded_elsewhere",
            "flops_source": "generated" if op.is_generated else "formula",
        }
        rows.append(row)
    sites = SITES.from_rows(rows)
    time_us = sites["time_us"].where(sites["time_us"] > 0)
    intensity = sites["flops"] / sites["min_bytes"].where(sites["min_bytes"] > 0)
    achieved = sites["flops"] / time_us * 1e6
    sites = sites.assign(unit=main_units(sites["matmul_flops"], sites["vector_flops"]))
    roof = site_roofline(sites, run.rooflines).at(intensity.to_numpy())
    return sites.assign(
        time_share_frac=time_us / time_us.sum(),
        achieved_flops_per_s=achieved,
        intensity_flops_per_byte=intensity,
        memory_level=memory_of_sites(sites, run.rooflines)[0],
        attainable_flops_per_s=roof.attainable_flops_per_s,
        efficiency_frac=achieved / roof.attainable_flops_per_s,
        bound=roof.bound(achieved.to_numpy()),
    )


def with_eager(run: "Run", compiled: Compiled, whole: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of two stars: the compiled program over its wall time, and the eager call.

    Both do the FLOPs of the mathematics, which the eager call shows; the bytes are each one's own.

    Args:
        run: The run.
        compiled: Its compiled program.
        whole: The row of the program's sites together.
    """
    provenance = run.provenance
    assert isinstance(provenance, CallProvenance)
    eager_us = provenance.timing.eager_wall_us
    flops = float(run.totals.flops)
    program = whole.assign(
        flops=flops,
        min_bytes=compiled.min_bytes,
        time_us=provenance.wall_us,
        name="whole compiled run (wall time)",
    )
    eager = program.assign(
        place="eager",
        label="☆",
        min_bytes=compiled.eager_min_bytes,
        time_us=eager_us.median if eager_us else math.nan,
        calls=int(run.sites["calls"].sum()),
        name="whole eager run, for comparison (wall time)",
    )
    both = pd.concat([program, eager], ignore_index=True)
    return both.assign(share_frac=np.nan, ideal_us=np.nan)
