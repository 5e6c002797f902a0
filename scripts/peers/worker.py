"""A process with one tool, imported once, that forks a child for each case.

Run as `python -P -m peers.worker TOOL SECONDS` with `scripts/` on the path. Reads a case's name a
line, writes a line of JSON each. A child has limits of memory and of time, its crash is a result,
and what it changes dies with it.
"""

import contextlib
import importlib
import json
import os
import resource
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from peers.case import Case, Subject, calling
from peers.models import find_case
from peers.tools import TOOLS, Tool, call, import_tool, silence

WALL_OVER_CPU = 10  # a busy machine gives a process a tenth of its time; one that waits no more
MOST_LEFT_OUT = 6  # names of what a tool says that it left out
LONGEST_ERROR = 240  # letters
QUICK_S = 0.1  # calls of a case are repeated until they took so long together
MEMORY_BYTES = 6 << 30  # more than the largest model of the comparison takes, beyond what is mapped
SEED = 0
COMPILED_FIRST = ("compiled code", "higher-order op")
REFUSALS = ("NotImplementedError", "FlopprofError", "UsageError", "ModelError", "LoadError")


def main() -> None:
    """Serve until the input ends."""
    tool = TOOLS[sys.argv[1]]
    limit_s = float(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    torch.set_num_threads(1)
    try:
        with silence():
            import_tool(tool)
        print(json.dumps({"version": tool.version()}), file=answers, flush=True)
    except Exception as error:
        print(json.dumps({"cannot": describe(error)}), file=answers, flush=True)
        return
    with silence():
        warm_up(tool)  # here, so that what a first use costs is paid once, and is no case's
    for line in sys.stdin:
        case = find_case(line.strip())
        if case.library:
            importlib.import_module(case.library)  # here, once, and not in each child
        result = in_child(lambda case=case: count(case, tool), limit_s)
        print(json.dumps(result), file=answers, flush=True)
    os._exit(0)  # threads that a tool started would be waited for


def in_child(work: Any, limit_s: float) -> dict[str, Any]:
    """Return what `work` returns in a forked child; how it ended, where it did not return."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        os.setpgid(0, 0)
        os._exit(serve(work, writing, limit_s))
    os.close(writing)
    until = time.monotonic() + WALL_OVER_CPU * limit_s
    chunks: list[bytes] = []
    timed_out = False
    while True:
        ready, _, _ = select.select([reading], [], [], max(until - time.monotonic(), 0))
        if not ready:
            timed_out = True
            break
        chunk = os.read(reading, 1 << 16)
        if not chunk:
            break
        chunks.append(chunk)
    os.close(reading)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)  # and whatever it started
    _, status = os.waitpid(child, 0)
    if timed_out:
        return {"error": f"took more than {WALL_OVER_CPU * limit_s:.0f} s"}
    try:
        return dict(json.loads(b"".join(chunks)))
    except ValueError:
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        if number == signal.SIGXCPU:
            return {"error": f"took more than {limit_s:.0f} s of CPU"}
        ended = signal.Signals(number).name if number else f"exit {os.WEXITSTATUS(status)}"
        return {"error": f"the process ended: {ended}"}


def serve(work: Any, writing: int, limit_s: float) -> int:
    """Do the work in the child, and write what it returns."""
    used_s = int(time.process_time())
    seconds = used_s + int(limit_s)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    _, hard_limit = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    mapped_bytes = pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped_bytes + MEMORY_BYTES, hard_limit))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        with silence():
            result = work()
    except BaseException as error:
        result = {"error": describe(error)}
    with os.fdopen(writing, "w") as file:
        json.dump(result, file)
    return 0


def warm_up(tool: Tool) -> None:
    """Count a small model, forward only: a backward pass would start threads, which do not fork."""
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 2, 1), torch.nn.Flatten(), torch.nn.Linear(8, 2))
    try:
        tool.count(calling(model, torch.randn(1, 2, 2, 2)))
    except Exception:  # the cases will say
        return


def count(case: Case, tool: Tool) -> dict[str, Any]:
    """Return the tool's answer, its time, and that of one call of the model, in CPU seconds."""
    forward_s = forward_time(build(case)) if case.device == "cpu" else None
    subject = build(case)
    if case.needs in COMPILED_FIRST:  # compiling is no part of the call
        call(subject)
        with torch.no_grad():
            call(subject)
    started = time.process_time()
    try:
        answer = tool.count(subject)
    except Exception as error:
        own = type(error).__module__.split(".")[0] == tool.module.split(".")[0]
        refused = own or type(error).__name__ in REFUSALS
        return {"refused" if refused else "error": describe(error), "forward_s": forward_s}
    return {
        "flops": None if answer.flops is None or answer.flops != answer.flops else answer.flops,
        "left_out": answer.left_out[:MOST_LEFT_OUT],
        "with_elementwise": answer.with_elementwise,
        "all_work": answer.all_work,
        "count_s": time.process_time() - started,
        "forward_s": forward_s,
    }


def build(case: Case) -> Subject:
    """Return the case's model and inputs, the same each time."""
    torch.manual_seed(SEED)
    return case.build()


def forward_time(subject: Subject) -> float:
    """Return the CPU seconds of one call, after one that warms up where that is quick.

    Raises:
        RuntimeError: The case itself does not run.
    """
    times = []
    for _ in range(3):
        started = time.process_time()
        try:
            with torch.no_grad():
                call(subject)
        except Exception as error:
            raise RuntimeError(f"the case does not run: {describe(error)}") from error
        times.append(time.process_time() - started)
        if sum(times) > QUICK_S:
            break
    return sorted(times)[len(times) // 2]


def describe(error: BaseException) -> str:
    """Return an error on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:LONGEST_ERROR]}".rstrip(": ")


if __name__ == "__main__":
    main()
