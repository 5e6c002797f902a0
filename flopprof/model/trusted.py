"""Run a command on a trusted file in a child process, and stop it at its limits.

This contains crashes, endless loops and endless memory. It is no sandbox: the child may read and
write whatever the user may.
"""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from flopprof.errors import ModelError, RefusedError, UsageError
from flopprof.units import safe_text, si

MARK = "FLOPPROF_CONTAINED"
MEMORY_LIMIT, TIME_LIMIT_S = "16G", 1800.0
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_POLL_S = 0.05


def is_contained() -> bool:
    """Return whether this is the child process."""
    return MARK in os.environ


def parse_bytes(text: str) -> int:
    """Return the bytes that "16G", "500M" or "1000000" says.

    Raises:
        UsageError: It says none.
    """
    number, unit = text[:-1], text[-1:].upper()
    if unit.isdigit():
        number, unit = text, ""
    try:
        if (amount := int(float(number) * _UNITS[unit])) < 1:
            raise ValueError("nothing")
        return amount
    except (ValueError, KeyError, OverflowError) as error:
        fact = f"{text!r} is no amount of memory"
        raise UsageError(fact, remedy="write it as 500M or 16G") from error


def announce(path: Path, wanted_sha256: str | None) -> None:
    """Say on stderr which file is trusted with what, and refuse it if it is not the one meant.

    Raises:
        RefusedError: Its sha256 is another.
        FlopprofError: It is no model, or damaged.
    """
    from flopprof.model.detect import detect
    from flopprof.model.pickles import read_contents

    kind = detect(path)
    contents = read_contents(path, kind) if kind.is_readable else None
    sha256 = ""
    if path.is_file():
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if wanted_sha256 and sha256 != wanted_sha256.lower():
        fact = f"{safe_text(path)} has the sha256 {sha256 or 'of no file'}, not {wanted_sha256}"
        raise RefusedError(fact, remedy="get the file that you trust, or its right sum")
    names = ", ".join(contents.globals) if contents else ""
    print(f"flopprof: trusting {safe_text(path)}, sha256 {sha256}", file=sys.stderr)
    print(f"  it wants {safe_text(names) or 'no names'}", file=sys.stderr, flush=True)


def run_contained(
    arguments: Sequence[str],
    path: Path,
    *,
    memory_bytes: int,
    time_s: float,
    output: Path | None,
    stdout: Any = None,
) -> int:
    """Run `flopprof` with these arguments in a child process and return its exit code.

    Args:
        arguments: What the user typed.
        path: The file that is trusted, for messages.
        memory_bytes: Resident memory at most.
        time_s: Wall time at most.
        output: The folder that the child writes; nothing half-written is left of it.
        stdout: Where the child's standard output goes; the parent's own unless given.

    Raises:
        ModelError: A limit stopped it, or it died.
    """
    before = _staged(output)
    package = str(Path(__file__).resolve().parents[2])
    with tempfile.TemporaryDirectory(prefix="flopprof-") as folder:
        old = os.environ.get("PYTHONPATH")
        env = {
            **os.environ,
            MARK: "1",
            "TMPDIR": folder,
            "PYTHONPATH": f"{package}{os.pathsep}{old}" if old else package,
        }
        command = [sys.executable, "-P", "-m", "flopprof", *arguments]
        process = subprocess.Popen(command, env=env, stdout=stdout, start_new_session=True)
        try:
            why = _watch(process, memory_bytes, time_s)
        finally:
            if process.poll() is None:
                _kill(process)
            for staging in _staged(output) - before:
                shutil.rmtree(staging, ignore_errors=True)
    if why:
        fact, remedy = why
        raise ModelError(f"{safe_text(path)} was stopped: {fact}", remedy=remedy)
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        fact = f"{safe_text(path)} ended its process with {name}"
        raise ModelError(fact, remedy="its own code crashed: check that it runs without flopprof")
    return process.returncode


def _watch(
    process: "subprocess.Popen[bytes]", memory_bytes: int, time_s: float
) -> tuple[str, str] | None:
    """Wait for the process to end; return what limit it broke, and the way out."""
    deadline = time.monotonic() + time_s
    while process.poll() is None:
        if time.monotonic() > deadline:
            return f"it took more than {time_s:g} s", "--time-limit takes more seconds"
        used = _resident_bytes(process.pid)
        if used > memory_bytes:
            limit = si(float(memory_bytes), "B")
            return f"it took more than {limit} of memory", "--memory-limit takes more, such as 32G"
        try:
            process.wait(_POLL_S)
        except subprocess.TimeoutExpired:
            continue
    return None


def _resident_bytes(pid: int) -> int:
    """Return a process's resident memory; 0 where the system does not tell."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """End the process and all that it started, at once."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _staged(output: Path | None) -> set[Path]:
    if output is None:
        return set()
    parent = output.resolve().parent
    return set(parent.glob(f".{output.name}-*")) if parent.is_dir() else set()
