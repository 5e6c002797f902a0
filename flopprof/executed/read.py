"""Read files of hardware counters into one table of launches."""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from flopprof.errors import UsageError
from flopprof.executed.figures import Figures, figures_of
from flopprof.executed.launches import AMD, Launch, launches_of
from flopprof.executed.ncurep import is_report, report_text
from flopprof.executed.sheets import find_sheets, read_text
from flopprof.tables import LAUNCHES
from flopprof.units import file_text


def read_counters(files: str | Path | Iterable[str | Path]) -> pd.DataFrame:
    """Return what the launches in counter files executed: table LAUNCHES, a row per launch.

    Files of Nsight Compute (`--csv`, any page; `.ncu-rep` where `ncu` is installed), rocprofv3,
    rocprof-compute (`pmc_perf.csv`) and rocprof. FLOPs and bytes are those of one launch; a figure
    that the file does not give is NaN, and `reason` says why.

    Raises:
        UsageError: A file is not there, or no file was given.
        LoadError: A file holds no counters, or numbers with a decimal comma.
    """
    paths = [files] if isinstance(files, str | Path) else list(files)
    if not paths:
        raise UsageError("no file of counters was given", remedy="--counters FILE.csv")
    loaded = [(Path(path), _launches(Path(path))) for path in paths]
    rows = []
    for path, launches in _merged(loaded):
        rows += [_row(path, launch) for launch in launches]
    for number, row in enumerate(rows):
        row["launch_id"] = number
    return LAUNCHES.from_rows(rows)


def _launches(path: Path) -> list[Launch]:
    text = report_text(path) if is_report(path) else read_text(path)
    return [launch for sheet in find_sheets(text, path) for launch in launches_of(sheet, path)]


def _merged(
    loaded: Sequence[tuple[Path, list[Launch]]],
) -> list[tuple[Path, list[Launch]]]:
    """Join files that AMD's profilers wrote of several passes over the same launches."""
    merged: list[tuple[Path, list[Launch]]] = []
    for path, launches in loaded:
        for _, before in merged:
            if _are_passes(before, launches):
                for launch, other in zip(before, launches, strict=True):
                    for metric, reading in other.readings.items():
                        launch.add(metric, reading)
                break
        else:
            merged.append((path, launches))
    return merged


def _are_passes(before: list[Launch], launches: list[Launch]) -> bool:
    """Return whether two files are of the same launches and of different counters."""

    def places(many: list[Launch]) -> list[tuple[int, str, str, str]]:
        return [(one.key[1], one.kernel, one.grid, one.block) for one in many]

    if not before or before[0].tool != AMD or places(before) != places(launches):
        return False
    counters = set(launches[0].readings) - {"duration_s"}
    return bool(counters) and not counters & set(before[0].readings)


def _row(path: Path, launch: Launch) -> dict[str, Any]:
    figures = figures_of(launch)
    is_known = bool(figures.source) or not math.isnan(sum(figures.bytes.values()) or math.nan)
    return {
        "file": file_text(path.name),
        "kernel": launch.kernel,
        "grid": launch.grid,
        "block": launch.block,
        "stream": launch.stream,
        "device_index": launch.device_index,
        "arch": launch.arch,
        "range_id": launch.op_id,
        "range_op": launch.op,
        "duration_us": figures.duration_us,
        "executed_matmul_flops": figures.matmul_flops,
        "executed_vector_flops": figures.vector_flops,
        "executed_fma_flops": figures.fma_flops,
        "executed_half_at_most_flops": figures.half_at_most_flops,
        "executed_int_ops": figures.int_ops,
        "executed_by_dtype": _by_dtype(figures),
        "dram_bytes": figures.bytes.get("dram", math.nan),
        "dram_read_bytes": figures.bytes.get("dram_read", math.nan),
        "dram_write_bytes": figures.bytes.get("dram_write", math.nan),
        "l2_bytes": figures.bytes.get("l2", math.nan),
        "l1_bytes": figures.bytes.get("l1", math.nan),
        "executed_source": launch.tool if is_known else "",
        "flops_source": ", ".join(figures.source),
        "metrics": json.dumps(figures.metrics),
        "reason": "; ".join(figures.reasons),
    }


def _by_dtype(figures: Figures) -> str:
    """Return the figures by class and element type, as JSON; unknown is null."""
    classes = {"matmul": figures.matmul, "vector": figures.vector, "int": figures.integer}
    whole = {
        name: {dtype: None if math.isnan(v) else int(v) for dtype, v in parts.items()}
        for name, parts in classes.items()
    }
    return json.dumps(whole)
