"""Synthetic counter files: no GPU made them; their forms are those of real ones."""

from collections.abc import Mapping, Sequence
from pathlib import Path

LONG = (
    '"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size",'
    '"Grid Size","Device","CC","Section Name","Metric Name","Metric Unit","Metric Value"'
)
ADD = "smsp__sass_thread_inst_executed_op_fadd_pred_on.sum"
MUL = "smsp__sass_thread_inst_executed_op_fmul_pred_on.sum"
FMA = "smsp__sass_thread_inst_executed_op_ffma_pred_on.sum"
TENSOR = "sm__ops_path_tensor_src_"
RANGES = "thread Domain:Push/Pop_Range:PL_Type:PL_Value:CLR_Type:Color:Msg_Type:Msg"


def long_text(readings: Mapping[str, tuple[str, str]], *, cc: str = "8.0") -> str:
    """Return a long table of one launch: metric → (unit, value)."""
    rows = [
        f'"0","1","a.out","127.0.0.1","k","1","7","(128, 1, 1)","(2, 1, 1)","0","{cc}",'
        f'"Command line profiler metrics","{metric}","{unit}","{value}"'
        for metric, (unit, value) in readings.items()
    ]
    return "\n".join([LONG, *rows]) + "\n"


def long_file(folder: Path, readings: Mapping[str, tuple[str, str]], *, cc: str = "8.0") -> Path:
    """Write `long_text` and return the file."""
    path = folder / "counters.csv"
    path.write_text(long_text(readings, cc=cc))
    return path


def counts(**values: int) -> dict[str, tuple[str, str]]:
    """Return fp32 vector counters as readings: add, mul, fma."""
    names = {"add": ADD, "mul": MUL, "fma": FMA}
    return {names[name]: ("inst", f"{value:,}") for name, value in values.items()}


def wide_text(launches: Sequence[Mapping[str, str]], *, cc: str = "9.0") -> str:
    """Return a wide table, in base units: each launch's columns and metrics by name.

    Known columns: kernel, grid, block, stream, range (the innermost NVTX range's text).
    """
    own = ("kernel", "grid", "block", "stream", "range")
    metrics = [name for name in launches[0] if name not in own]
    head = ["ID", "Process ID", "Process Name", "Host Name", RANGES, "Kernel Name", "Context"]
    head += ["Stream", "Block Size", "Grid Size", "Device", "CC", *metrics]
    lines = [_quoted(head), _quoted([""] * 12 + [_unit(name) for name in metrics])]
    for number, launch in enumerate(launches):
        text = launch.get("range", "")
        cell = f' "0:<default domain>:{text}:none:none:none:none:none:none" ' if text else ""
        row = [str(number), "1", "python", "127.0.0.1", cell, launch["kernel"], "1"]
        row += [launch.get("stream", "7"), launch.get("block", "(128, 1, 1)")]
        row += [launch.get("grid", "(1, 1, 1)"), "0", cc, *(launch[name] for name in metrics)]
        lines.append(_quoted(row))
    return "\n".join(lines) + "\n"


def _unit(metric: str) -> str:
    if "bytes" in metric:
        return "byte"
    return "ns" if "duration" in metric else "inst"


def _quoted(cells: Sequence[str]) -> str:
    return ",".join('"' + cell.replace('"', '""') + '"' for cell in cells)
