"""Keep a command and all that it starts within limits, and end them all when it ends.

usage: python -I -S supervise.py JSON, as `trusted` starts it: on its own, without flopprof.

Standard input is a pipe of which the other end closes when the process that waits is gone, however
it went. Standard output takes one JSON object: how the command ended, or which limit it broke.
Orphans of the command become this process's children (Linux), so none escapes by a double fork.
"""

import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

_SET_PARENT_DEATH_SIGNAL = 1  # prctl's, from linux/prctl.h, as the next
_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.05
_PAUSE_PER_LOOK = 20  # × what a look at the processes takes: it takes 5 % of the time at most
_PATIENCE_S = 10.0  # for what the kernel does not let go of


def main() -> int:
    """Run the command that the argument describes, and say on standard output how it ended."""
    task = json.loads(sys.argv[1])
    for number in (signal.SIGINT, signal.SIGHUP):  # meant for the process that waits
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os.close(0))
    _prctl(_SET_CHILD_SUBREAPER, 1)
    output = Path(task["output"]) if task["output"] else None
    before = _staged(output)
    outcome: dict[str, Any] = {"broke": "parent"}
    try:
        outcome = _watch(task["command"], task["memory_bytes"], task["time_s"])
    finally:
        _end_all()
        _clear(output, before)
        if outcome.get("broke") == "parent":  # else the answer in there is still to be read
            shutil.rmtree(task["scratch"], ignore_errors=True)
    with suppress(BrokenPipeError):
        print(json.dumps(outcome), flush=True)
    return 0


def _watch(command: list[str], memory_bytes: int, time_s: float) -> dict[str, Any]:
    """Run `command` and return its exit code, or the limit that it broke."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=2,  # what it says goes through a file; what its code prints is talk
        start_new_session=True,
        preexec_fn=_die_with_parent,
    )
    deadline = time.monotonic() + time_s
    while (code := _reap(process.pid)) is None:
        start = time.monotonic()
        if start > deadline:
            return {"broke": "time"}
        if _memory_bytes(_descendants()) > memory_bytes:
            return {"broke": "memory"}
        pause_s = max(_POLL_S, _PAUSE_PER_LOOK * (time.monotonic() - start))
        try:
            is_gone = bool(select.select([0], [], [], pause_s)[0])
        except (OSError, ValueError):  # closed by a signal
            is_gone = True
        if is_gone:
            return {"broke": "parent"}
    process.returncode = code
    return {"exit_code": code}


def _reap(pid: int) -> int | None:
    """Take the exit codes of all children that ended; return that of `pid`."""
    code = None
    with suppress(ChildProcessError):
        while True:
            ended_pid, status = os.waitpid(-1, os.WNOHANG)
            if not ended_pid:
                break
            if ended_pid == pid:
                code = os.waitstatus_to_exitcode(status)
    return code


def _die_with_parent() -> None:
    _prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    with suppress(AttributeError, OSError):  # Linux has it
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _end_all() -> None:
    """Kill every descendant; first all are stopped, so that none can fork meanwhile."""
    deadline = time.monotonic() + _PATIENCE_S
    stopped: set[int] = set()
    while (pids := set(_descendants())) and time.monotonic() < deadline:
        if pids - stopped:
            _signal(pids - stopped, signal.SIGSTOP)
            stopped |= pids
            continue
        _signal(pids, signal.SIGKILL)
        time.sleep(0.01)
        _reap(0)


def _signal(pids: set[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _descendants() -> list[int]:
    """Return the processes below this one; none where the system has no /proc."""
    children: dict[int, list[int]] = {}
    for pid in [int(name) for name in _entries("/proc") if name.isdecimal()]:
        with suppress(OSError, ValueError, IndexError):
            after_name = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2]
            _state, parent, *_ = after_name.split()
            children.setdefault(int(parent), []).append(pid)
    pids: list[int] = []
    pending = [os.getpid()]
    while pending:
        below = children.get(pending.pop(), [])
        pids += below
        pending += below
    return pids


def _entries(folder: str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208  # names are all that is wanted
    except OSError:
        return []


def _memory_bytes(pids: list[int]) -> int:
    """Return the memory of these processes, what they share counted once; 0 if not told."""
    if len(pids) == 1:
        return _resident_bytes(pids[0])
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        except (OSError, ValueError, IndexError):
            total += _resident_bytes(pid)
    return total


def _resident_bytes(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _staged(output: Path | None) -> set[Path]:
    """Return what lies half-written beside the output, by the names that flopprof gives it."""
    if output is None or not output.parent.is_dir():
        return set()
    beginning = f".{output.name}-"
    return {path for path in output.parent.iterdir() if path.name.startswith(beginning)}


def _clear(output: Path | None, before: set[Path]) -> None:
    """Remove what was half-written; a folder that was being replaced goes back."""
    for path in _staged(output) - before:
        if output and path.name.endswith("-old") and not output.exists():
            path.rename(output)
        else:
            shutil.rmtree(path, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
