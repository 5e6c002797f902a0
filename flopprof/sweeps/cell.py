"""Do what a cell's own process does: profile the model, save the run, and answer in a file.

usage: python -m flopprof.sweeps.cell ASKED.json ANSWER.json
"""

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from flopprof.errors import FlopprofError
from flopprof.run import Run, to_json

OUT_OF_MEMORY = "out_of_memory"
FAILED = "failed"
DONE = "ok"


def main(task_path: str, answer_path: str) -> int:
    """Do what the first file asks for, and write the answer into the second."""
    task = json.loads(Path(task_path).read_text(encoding="utf-8"))
    row = measure_ceilings(task["ceilings"]) if "ceilings" in task else profile_cell(task)
    unfinished = Path(answer_path + ".part")
    unfinished.write_text(json.dumps(to_json(row)), encoding="utf-8")
    unfinished.replace(answer_path)
    return 0


def measure_ceilings(wanted: dict[str, Any]) -> dict[str, Any]:
    """Find ceilings, which stay in the user's cache; the answer is whether that went well.

    Args:
        wanted: The `device`, `threads` and `dtypes` of cells.
    """
    from flopprof.ceilings import find_ceilings
    from flopprof.devices import find_device

    try:
        if wanted["threads"]:
            import torch

            torch.set_num_threads(wanted["threads"])
        find_ceilings(find_device(wanted["device"] or "cpu"), dtypes=wanted["dtypes"])
    except FlopprofError as error:
        return {"status": FAILED, "reason": f"{error.problem}; {error.remedy}"}
    return {"status": DONE, "reason": None}


def profile_cell(task: dict[str, Any]) -> dict[str, Any]:
    """Return the row of a cell: status and figures, or status and reason."""
    from flopprof.api import profile

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the run's own warnings are in its row
            run = profile(task["what"], **task["options"])
        assert isinstance(run, Run)
        run.save(task["folder"], force=True)
    except MemoryError:
        return {"status": OUT_OF_MEMORY, "reason": "there is not enough memory"}
    except FlopprofError as error:
        status = OUT_OF_MEMORY if _is_out_of_memory(error) else FAILED
        return {"status": status, "reason": f"{error.problem}; {error.remedy}"}
    return {"status": DONE, "reason": None} | row_of(run)


def _is_out_of_memory(error: FlopprofError) -> bool:
    """Return whether memory ran out somewhere below an error of ours."""
    import torch

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError | torch.OutOfMemoryError):
            return True
        if isinstance(cause, RuntimeError) and "allocate memory" in str(cause):
            return True  # torch's allocator on a CPU has no type of its own
        cause = cause.__cause__ or cause.__context__
    return False


def row_of(run: Run) -> dict[str, Any]:
    """Return a run's figures, as the table of a sweep has them."""
    from flopprof.provenance import CallProvenance
    from flopprof.report.figures import main_roofline

    provenance = run.provenance
    assert isinstance(provenance, CallProvenance)
    totals = run.totals
    of_run = run.figures
    wall_us = provenance.timing.wall_us
    roof = main_roofline(run)
    bounds = of_run.held_frac
    return {
        "input": provenance.called.input,
        "latency_p50_us": wall_us.median,
        "latency_p5_us": wall_us.p5,
        "latency_p95_us": wall_us.p95,
        "samples_per_s": of_run.samples_per_s,
        "tokens_per_s": of_run.tokens_per_s,
        "matmul_flops": totals.matmul_flops,
        "flops": totals.flops,
        "flops_at_most": totals.flops_at_most,
        "min_bytes": float(run.sites["min_bytes"].sum(min_count=1)),
        "achieved_flops_per_s": totals.flops_per_s,
        "mfu_frac": of_run.mfu_frac,
        "mbu_frac": of_run.mbu_frac,
        "bound": max(bounds, key=lambda name: bounds[name]) if bounds else None,
        "peak_memory_bytes": _peak_memory_bytes(provenance),
        "energy_per_sample_j": of_run.energy_per_sample_j,
        "coverage_frac": totals.coverage_frac,
        "peak_flops_per_s": float(roof.peak_flops_per_s) if roof is not None else None,
        "peak_bytes_per_s": float(roof.peak_bytes_per_s) if roof is not None else None,
        "warnings": provenance.warning_texts,
    }


def _peak_memory_bytes(provenance: Any) -> float:
    """Return the peak of the device; on a CPU, of this process with Python and torch."""
    telemetry = provenance.telemetry
    if telemetry is not None and telemetry.peak_memory_bytes > 0:
        return float(telemetry.peak_memory_bytes)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


if __name__ == "__main__":
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    sys.exit(main(*sys.argv[1:]))
