"""Run a command under Nsight Compute: which counters, which options, what can go wrong."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from flopprof.errors import LoadError, UsageError
from flopprof.executed.ncurep import SUFFIX
from flopprof.executed.rules import groups, path_name, tensor_metrics
from flopprof.executed.sheets import permission_error
from flopprof.units import safe_text

TIME_LIMIT_S = 3600.0
"""Kernels run once for each group of counters: a call takes many times as long."""

_ALWAYS = ("gpu__time_duration", "sm__cycles_elapsed")
_WANTED = ("vector", "half", "dram_read", "dram_write", "l2", "l1")
_QUERY_LIMIT_S = 120


def find_ncu() -> str | None:
    """Return where `ncu` is; None where it is not on the path."""
    return shutil.which("ncu")


def wanted_metrics(arch: str) -> list[str]:
    """Return the counters that give FLOPs, bytes and time on an architecture, without suffixes.

    Of matrix operations the parents, which hold their children, where there are any.
    """
    names: dict[str, None] = {}
    for (figure, _), choices in groups("ncu", arch).items():
        if figure in _WANTED:
            names |= dict.fromkeys(term.metric for term in choices[0] if term.required)
    paths = {metric: path_name(metric) for metric in tensor_metrics(arch)}
    for metric, path in paths.items():
        is_below_another = any(other and path and other.holds(path) for other in paths.values())
        if not is_below_another:
            names[metric] = None
    return [*names]


def available_metrics(ncu: str) -> set[str]:
    """Return the counters that `ncu` knows on this machine's GPU; empty where it does not say."""
    try:
        outcome = subprocess.run(
            [ncu, "--query-metrics"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_QUERY_LIMIT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return set()
    return set(re.findall(r"^\s*([a-z]\w*__\w+)", outcome.stdout, re.MULTILINE))


def ncu_command(
    ncu: str, metrics: Iterable[str], report: Path, command: Sequence[str]
) -> list[str]:
    """Return the command that profiles another one into a report.

    Only what runs between cudaProfilerStart and cudaProfilerStop is profiled; each kernel is run
    again for each group of counters, with its memory as it was.
    """
    names = [f"{metric}.sum" for metric in metrics]
    names += ["gpu__time_duration.sum", "sm__cycles_elapsed.avg"]
    options = ["--target-processes", "all", "--nvtx", "--profile-from-start", "off"]
    options += ["--replay-mode", "kernel", "--graph-profiling", "node"]
    options += ["--metrics", ",".join(names), "--force-overwrite", "--export", str(report)]
    return [ncu, *options, *command]


def run_under_ncu(ncu: str, arch: str, folder: Path, command: Sequence[str]) -> Path:
    """Run a command under `ncu` and return the report that it wrote.

    Args:
        ncu: Where it is.
        arch: The GPU's, "sm_90".
        folder: Where the report goes.
        command: What makes the one call between cudaProfilerStart and cudaProfilerStop.

    Raises:
        LoadError: The driver refuses access to counters, or nothing was profiled.
    """
    metrics = wanted_metrics(arch)
    available = available_metrics(ncu)
    metrics = [name for name in metrics if name in available] or metrics  # a wrong name fails
    report = folder / f"counters{SUFFIX}"
    full = ncu_command(ncu, metrics, report, command)
    try:
        outcome = subprocess.run(
            full,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIME_LIMIT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LoadError(f"ncu could not run: {safe_text(error)}", remedy=by_hand(full)) from error
    output = outcome.stdout + outcome.stderr
    if "ERR_NVGPUCTRPERM" in output:
        raise permission_error("ncu says so")
    if outcome.returncode or not report.is_file():
        errors = re.findall(r"^==ERROR==\s*(.*)|^flopprof: (.*)", output, re.MULTILINE)
        texts = [ours or theirs for theirs, ours in errors] or [output.strip()[-300:]]
        raise LoadError(
            f"ncu wrote no report (exit code {outcome.returncode}): {safe_text('; '.join(texts))}",
            remedy=by_hand(full),
        )
    return report


def by_hand(command: Sequence[str]) -> str:
    """Return the remedy that is to run a command by hand."""
    return f"try it by hand: {safe_text(shlex.join(command), 3000)}"


def check_there(gpu_problem: str) -> str:
    """Return where `ncu` is.

    Args:
        gpu_problem: Why no GPU can be used; "" where one can.

    Raises:
        UsageError: It is not on the path, or there is no GPU: all that is missing is told.
    """
    ncu = find_ncu()
    missing = [] if ncu else ["there is no ncu (Nsight Compute) on the path"]
    missing += [gpu_problem] if gpu_problem else []
    if missing or ncu is None:
        raise UsageError(
            "counters cannot be read here: " + "; ".join(missing),
            remedy="run it where both are, or join counters of elsewhere: flopprof verify RUN "
            "--counters FILE (flopprof guide executed)",
        )
    return ncu
