"""Join witnesses, rooflines and provenance into a `Run`."""

import datetime
import math
import platform
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

import flopprof
from flopprof.capture.call import Inputs, first_float, home
from flopprof.run import Run
from flopprof.tables import KERNELS

if TYPE_CHECKING:
    from torch import nn

    from flopprof.trace.read import Trace


def assemble(
    model: "nn.Module",
    inputs: Inputs,
    module_calls: pd.DataFrame,
    trace: "Trace",
    rooflines: pd.DataFrame,
    *,
    meta: dict[str, Any],
    timed: bool = True,
    doubts: Sequence[str] = (),
    packed: bytes | None = None,
) -> Run:
    """Reconcile what the passes found and return it as a `Run` with its provenance."""
    from flopprof.capture.hooks import module_paths
    from flopprof.judge.reconcile import reconcile
    from flopprof.judge.roofs import roof_doubts

    dtype = meta.get("dtype") or home(model)[1] or first_float(inputs) or "float32"
    called = set(module_calls["module_path"])
    never = [
        path
        for module, path in module_paths(model).items()
        if path not in called and type(module).__name__ not in ("ModuleList", "ModuleDict")
    ]
    sites, ops = reconcile(
        module_calls,
        trace.ops,
        trace.gaps,
        trace.kernels if timed else KERNELS.empty(),
        rooflines,
        dtype=dtype,
        never_called=never,
        timed=timed,
    )
    if not timed:
        ops = ops.assign(cpu_us=math.nan, self_cpu_us=math.nan, device_us=math.nan)
    hidden_us = sites.loc[sites["op"] == "(gap)", "time_us"].sum()
    gaps_us = trace.gaps["duration_us"].sum() - hidden_us if timed else math.nan
    provenance = {
        "model": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "input": inputs.text,
        "dtype": dtype,
        "flopprof": flopprof.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "never_called": never,
        "host_overhead_us": gaps_us,
        "device_busy_us": trace.info.get("device_busy_us", math.nan),
        **meta,
        "warnings": [
            *meta.get("warnings", []),
            *doubts,
            *trace.info["warnings"],
            *roof_doubts(sites),
        ],
    }
    run = Run(module_calls, ops, trace.kernels, rooflines, sites, provenance, packed)
    totals = run.totals
    provenance["totals"] = {
        name: getattr(totals, name)
        for name in ("matmul_flops", "vector_flops", "flops", "flops_at_most", "coverage_frac")
    }
    return run
