"""Run a command on a trusted file in a child process, and stop it at its limits.

This contains crashes, endless loops, endless memory and processes left behind. It is no sandbox:
the child may read and write whatever the user may.
"""

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

from flopprof.errors import ModelError, RefusedError, UsageError
from flopprof.units import safe_text, si

MARK = "FLOPPROF_CONTAINED"  # in the child's environment: the process id of its supervisor
MEMORY_LIMIT = "16G"
TIME_LIMIT_S = 1800.0
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_NO_RESULT = "nothing was measured: check that it runs without flopprof"


@dataclass(frozen=True, slots=True)
class Trust:
    """The user's leave to run a file's code.

    Attributes:
        sha256: Of the one file whose code may run; None for whatever file is loaded.
        contained: Whether only a child process with limits may run it.
    """

    sha256: str | None = None
    contained: bool = False

    def check(self, path: Path) -> None:
        """Raise unless the code of the file at `path` may run in this process.

        Raises:
            RefusedError: It is not the file that is trusted, or this is not the child process.
        """
        check_sum(path, self.sha256)
        if self.contained and not is_contained():
            fact = f"{safe_text(path)} runs its code only in a child process, which this is not"
            raise RefusedError(fact, remedy="flopprof run and flopprof count start one: --trust")


def is_contained() -> bool:
    """Return whether this is the child process; what merely inherited its mark is not."""
    return os.environ.get(MARK) == str(os.getppid())


def parse_bytes(text: str) -> int:
    """Return the bytes that "16G", "500M" or "1000000" says.

    Raises:
        UsageError: It says none.
    """
    unit = "" if text[-1:].isdigit() else text[-1:]
    number = text.removesuffix(unit)
    try:
        amount_bytes = int(float(number) * _UNITS[unit.upper()])
        if amount_bytes < 1:
            raise ValueError("nothing")
        return amount_bytes
    except (ValueError, KeyError, OverflowError) as error:
        fact = f"{text!r} is no amount of memory"
        raise UsageError(fact, remedy="write it as 500M or 16G") from error


def check_sum(path: Path, wanted_sha256: str | None) -> str:
    """Return the sha256 of the file at `path`; '' for what is no file.

    Raises:
        RefusedError: It is not the one wanted.
    """
    sha256 = ""
    if path.is_file():
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if wanted_sha256 and sha256 != wanted_sha256.lower():
        fact = f"{safe_text(path)} has the sha256 {sha256 or 'of no file'}, not {wanted_sha256}"
        raise RefusedError(fact, remedy="get the file that you trust, or its right sum")
    return sha256


def announce(path: Path, wanted_sha256: str | None) -> None:
    """Say on stderr which file is trusted with what, and refuse it if it is not the one meant.

    Raises:
        RefusedError: Its sha256 is another.
        FlopprofError: It is no model, or damaged.
    """
    from flopprof.model.contents import read_contents
    from flopprof.model.detect import detect

    kind = detect(path)
    contents = read_contents(path, kind) if kind.is_readable else None
    sha256 = check_sum(path, wanted_sha256)
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
) -> tuple[int, str]:
    """Run `flopprof` with these arguments in a child process; return exit code and what it printed.

    Args:
        arguments: What the user typed.
        path: The file that is trusted, for messages.
        memory_bytes: Memory at most, of the child and all that it starts.
        time_s: Wall time at most.
        output: The folder that the child writes; nothing half-written is left of it.

    Raises:
        ModelError: A limit stopped it, or it ended before it gave a result.
    """
    scratch = tempfile.mkdtemp(prefix="flopprof-")
    answer = Path(scratch, "answer.json")
    exit_code = -1
    printed = ""
    try:
        outcome = supervised(
            _child_command(arguments, scratch, answer),
            memory_bytes=memory_bytes,
            time_s=time_s,
            scratch=scratch,
            output=output,
        )
        with suppress(OSError, ValueError, KeyError, TypeError):
            result = json.loads(answer.read_text("utf-8"))
            printed = str(result["printed"])
            exit_code = int(result["exit_code"])
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    _refuse_limits(outcome.get("broke"), path, memory_bytes, time_s)
    if exit_code < 0:
        raise ModelError(f"{safe_text(path)} {_ending(outcome)}", remedy=_NO_RESULT)
    return exit_code, printed


def _child_command(arguments: Sequence[str], scratch: str, answer: Path) -> list[str]:
    """Return the command of the child, whose code sets the environment that it alone shall see."""
    package = str(Path(__file__).resolve().parents[2])
    own_path = os.environ.get("PYTHONPATH")
    python_path = f"{package}{os.pathsep}{own_path}" if own_path else package
    code = (
        "import os, sys; "
        f"os.environ.update({{{MARK!r}: str(os.getppid()), 'TMPDIR': {scratch!r}, "
        f"'PYTHONPATH': {python_path!r}}}); "
        f"sys.path.insert(0, {package!r}); "
        "os.environ.setdefault('KINETO_LOG_LEVEL', '99'); "  # as in __main__, for which this stands
        "from flopprof.cli import main; "
        "from flopprof.model.trusted import answer_parent; "
        f"answer_parent(main, {str(answer)!r}, sys.argv[1:])"
    )
    return [sys.executable, "-P", "-c", code, *arguments]


def supervised(
    command: Sequence[str],
    *,
    memory_bytes: int,
    time_s: float,
    scratch: str,
    output: Path | None = None,
    stderr: IO[bytes] | None = None,
) -> dict[str, Any]:
    """Run a command within limits and return how it ended; what ends this process ends it, too.

    Args:
        command: The command and its arguments.
        memory_bytes: Memory at most, of the command and all that it starts.
        time_s: Wall time at most.
        scratch: A folder that is removed if this process is gone before the command.
        output: The folder that the command writes; nothing half-written is left of it.
        stderr: Where what it says goes; this process's own unless given.

    Returns:
        `exit_code`, or `broke`: "memory", "time" or "parent".
    """
    task = {
        "command": list(command),
        "memory_bytes": memory_bytes,
        "time_s": time_s,
        "output": str(output.resolve()) if output else None,
        "scratch": scratch,
    }
    script = str(Path(__file__).with_name("supervise.py"))
    supervisor = subprocess.Popen(
        [sys.executable, "-I", "-S", script, json.dumps(task)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        start_new_session=True,  # an interrupt from the keyboard is for this process
    )
    assert supervisor.stdin is not None
    assert supervisor.stdout is not None
    with supervisor.stdout, supervisor.stdin:
        try:
            text = supervisor.stdout.read()
        finally:
            supervisor.stdin.close()  # it ends all that it watches
            supervisor.wait()
    try:
        outcome: dict[str, Any] = json.loads(text)
    except ValueError:
        return {}
    return outcome


def _refuse_limits(broke: str | None, path: Path, memory_bytes: int, time_s: float) -> None:
    """Raise `ModelError` where a limit was broken: "time" or "memory"."""
    if broke == "time":
        fact = f"it took more than {time_s:g} s"
        remedy = "--time-limit takes more seconds"
    elif broke == "memory":
        limit = si(float(memory_bytes), "B")
        fact = f"it took more than {limit} of memory"
        remedy = "--memory-limit takes more, such as 32G"
    else:
        return
    raise ModelError(f"{safe_text(path)} was stopped: {fact}", remedy=remedy)


def _ending(outcome: dict[str, Any]) -> str:
    """Return in words how a child ended that gave no result."""
    code = outcome.get("exit_code")
    if code is None:
        return "ended the process that watches it, before there was a result"
    if code < 0:
        name = str(-code)
        with suppress(ValueError):
            name = signal.Signals(-code).name
        return f"ended its process with {name}, before there was a result"
    return f"ended its process with exit code {code}, before there was a result"


def answer_parent(
    run: Callable[[Sequence[str]], int], path: str, arguments: Sequence[str]
) -> NoReturn:
    """In the child: run the command, hand what it prints and its exit code over, and end.

    An exit code alone proves nothing: the file's code may call `os._exit(0)`.
    """
    printed = io.StringIO()
    with redirect_stdout(printed):
        exit_code = run(arguments)
    unfinished = Path(path).with_suffix(".part")
    text = json.dumps({"exit_code": exit_code, "printed": printed.getvalue()})
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
    sys.stderr.flush()
    os._exit(exit_code)  # code of the file's that waits for the end of Python does not run
