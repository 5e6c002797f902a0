"""Open reports of Nsight Compute by its own command."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

from flopprof.errors import LoadError, UsageError
from flopprof.units import safe_text

SUFFIX = ".ncu-rep"
_TIME_LIMIT_S = 600
_AS_CSV = ("--page", "raw", "--csv", "--print-units", "base", "--print-fp")


def is_report(path: Path) -> bool:
    """Return whether a file is a report of Nsight Compute, by its name or its first bytes."""
    if path.suffix == SUFFIX:
        return True
    try:
        with path.open("rb") as file:
            return file.read(3) == b"NVR"
    except OSError:
        return False


def import_command(path: Path, ncu: str = "ncu") -> list[str]:
    """Return the command that prints a report as CSV."""
    return [ncu, "--import", os.fspath(path), *_AS_CSV]


def report_text(path: Path) -> str:
    """Return a report as CSV, by `ncu --import`.

    Raises:
        UsageError: There is no such file, or no `ncu` on the path: the command to type is told.
        LoadError: `ncu` cannot read it.
    """
    if not path.is_file():
        raise UsageError(f"{safe_text(path)} is not there", remedy="name a file of counters")
    ncu = shutil.which("ncu")
    if ncu is None:
        command = shlex.join(import_command(path))
        raise UsageError(
            f"{safe_text(path)} is opened by Nsight Compute, and there is no ncu on the path",
            remedy=f"where it is installed: {safe_text(command)} > {safe_text(path.stem)}.csv",
        )
    try:
        outcome = subprocess.run(
            import_command(path, ncu),
            capture_output=True,
            timeout=_TIME_LIMIT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LoadError(
            f"ncu could not read {safe_text(path)}: {safe_text(error)}", remedy="try it by hand"
        ) from error
    text = outcome.stdout.decode("utf-8", errors="replace")
    if outcome.returncode:
        message = safe_text((outcome.stderr.decode(errors="replace") + text).strip()[-300:])
        raise LoadError(
            f"ncu could not read {safe_text(path)} (exit code {outcome.returncode}): {message}",
            remedy="write it again, or use the ncu that wrote it",
        )
    return text
