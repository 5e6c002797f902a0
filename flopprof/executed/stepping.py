"""Step one thread through a call, instruction by instruction: Linux on x86-64.

The processor's trap flag raises a signal after each instruction; a handler in C (stepping.c, which
gcc compiles on first use) counts their addresses. 20 to 40 thousand instructions a second.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median

from flopprof.collector import not_collecting
from flopprof.errors import UsageError
from flopprof.executed.decode import LONGEST, Executed, Operations, add_up, check_decoder
from flopprof.files import cache_folder, explain_os_errors, replacing
from flopprof.units import safe_text

PER_SECOND = 25_000
"""Instructions stepped in a second, at least, on a machine that does nothing else."""

_SOURCE = Path(__file__).with_name("stepping.c")
_FLAGS = ("-O2", "-fPIC", "-shared")
_TIME_LIMIT_S = 120  # of the compiler
_CALLS_TO_COMPARE = 3
_LEAST_NS = 20_000  # of processor time: a thread that is begun takes more
_LEAST_SHARE = 0.05  # of the calling thread's
_WHY_STOPPED = {
    0: "",
    1: "it executes more than {most:,} instructions",
    2: "its code has more than 65,536 distinct instructions",
    3: "it was interrupted",
}


@dataclass(frozen=True, slots=True)
class Stepped:
    """What a call executed.

    Attributes:
        operations: What was counted, up to where it stopped.
        why_stopped: Why counting ended before the call did; "" where it did not.
    """

    operations: Operations
    why_stopped: str = ""


def check_can_step() -> None:
    """Find out whether calls can be stepped here.

    Raises:
        UsageError: The platform is another one, or gcc or the decoder is missing.
    """
    check_decoder()
    _stepper()


def step(call: Callable[[], object], *, most: int) -> Stepped:
    """Make a call and count what the calling thread executes in it, a little of Python included.

    The call is made twice before, so that code is generated and memory is at hand. Work of other
    threads is not seen: have the library use one. The handler of SIGTRAP is as before afterwards.

    Args:
        call: What to call.
        most: Instructions at most; past them the call runs on uncounted.

    Raises:
        UsageError: Calls cannot be stepped here.
    """
    check_can_step()
    library = _stepper()
    call()
    call()
    with not_collecting():  # its work is no part of the call
        _begin(library, most)
        try:
            call()
        finally:
            stopped = library.step_end()
    return Stepped(add_up(_counted(library)), _WHY_STOPPED[stopped].format(most=most))


class PausedStepping:
    """Steps the parts of a call in which it is on."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.on = library.step_resume
        self.off = library.step_pause


def step_parts(call: Callable[[PausedStepping], object], *, most: int) -> Stepped:
    """Make a call and count what the calling thread executes in it while what it is given is on.

    Unlike `step`, it makes the call once.

    Args:
        call: What to call.
        most: Instructions at most; past them the call runs on uncounted.

    Raises:
        UsageError: Calls cannot be stepped here.
    """
    check_can_step()
    library = _stepper()
    parts = PausedStepping(library)
    with not_collecting():  # its work is no part of the call
        _begin(library, most)
        parts.off()
        try:
            call(parts)
        finally:
            stopped = library.step_end()
    return Stepped(add_up(_counted(library)), _WHY_STOPPED[stopped].format(most=most))


def _begin(library: ctypes.CDLL, most: int) -> None:
    if library.step_begin(most) != 0:
        raise UsageError("the signal SIGTRAP cannot be handled here", remedy="use Linux")


class OthersClock:
    """Adds up the processor time of other threads, and of the calling one, while it is on."""

    def __init__(self) -> None:
        self.own_ns = 0
        self.beside_ns = 0

    def on(self) -> None:
        """Begin, or go on."""
        self._thread_ns = time.thread_time_ns()  # around the other: reading takes time itself
        self._process_ns = time.process_time_ns()

    def off(self) -> None:
        """Stop for now."""
        process_ns = time.process_time_ns() - self._process_ns
        own_ns = time.thread_time_ns() - self._thread_ns
        self.own_ns += own_ns
        self.beside_ns += process_ns - own_ns


def others_work_in_parts(call: Callable[[OthersClock], object]) -> bool:
    """Return whether other threads work for the parts of a call in which what it is given is on."""
    clocks = [OthersClock() for _ in range(_CALLS_TO_COMPARE)]
    for clock in clocks:
        call(clock)
    return _is_work_of_others(clocks)


def others_work(call: Callable[[], object]) -> bool:
    """Return whether other threads work for a call: `step` does not see what they execute.

    Of several calls the median counts: a thread that has nothing to do with the call may run beside
    it by chance, and the time of one that has just ended is now and then in no clock yet.
    """

    def whole(clock: OthersClock) -> None:
        clock.on()
        call()
        clock.off()

    return others_work_in_parts(whole)


def _is_work_of_others(clocks: Sequence[OthersClock]) -> bool:
    beside_ns = median(clock.beside_ns for clock in clocks)
    own_ns = median(clock.own_ns for clock in clocks)
    return beside_ns > max(_LEAST_NS, _LEAST_SHARE * own_ns)


def _counted(library: ctypes.CDLL) -> list[Executed]:
    """Return what was counted at each address."""
    entries = library.step_counts(None, None, None, 0)
    addresses = (ctypes.c_uint64 * entries)()
    counts = (ctypes.c_uint64 * entries)()
    products = (ctypes.c_uint64 * entries)()
    library.step_counts(addresses, counts, products, entries)
    memory = os.open("/proc/self/mem", os.O_RDONLY)
    try:
        return [
            Executed(_code_at(memory, address), times, of_tiles)
            for address, times, of_tiles in zip(addresses, counts, products, strict=True)
        ]
    finally:
        os.close(memory)


def _code_at(memory: int, address: int) -> bytes:
    """Return the code at an address; b"" where it is gone."""
    try:
        return os.pread(memory, LONGEST, address)
    except OSError:
        return b""


@cache
def _stepper() -> ctypes.CDLL:
    """Return the handler, compiled if it is not yet."""
    machine = platform.machine()
    if not sys.platform.startswith("linux") or machine not in ("x86_64", "AMD64"):
        raise UsageError(
            f"calls cannot be stepped on {safe_text(platform.system())} {safe_text(machine)}",
            remedy="use Linux on x86-64; for a GPU: --device cuda, or --counters FILE",
        )
    try:
        library = ctypes.CDLL(str(_compiled()))
    except OSError as error:
        raise UsageError(
            f"the compiled stepper cannot be loaded: {safe_text(error)}",
            remedy=f"remove it, and try again: rm {cache_folder()}/stepping-*.so",
        ) from error
    library.step_begin.argtypes = [ctypes.c_uint64]
    library.step_counts.argtypes = [*[ctypes.c_void_p] * 3, ctypes.c_uint64]
    library.step_counts.restype = ctypes.c_uint64
    return library


def _compiled() -> Path:
    """Return the compiled handler, in the user's cache folder, named by what it is made of."""
    content = hashlib.sha256(_SOURCE.read_bytes() + " ".join(_FLAGS).encode()).hexdigest()
    folder = cache_folder()
    target = folder / f"stepping-{content[:16]}.so"
    if target.is_file():
        return target
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise UsageError(
            "there is no gcc, which compiles what steps", remedy="install it: apt install gcc"
        )
    with explain_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with replacing(target) as unfinished:
        command = [compiler, *_FLAGS, "-o", str(unfinished), str(_SOURCE)]
        try:
            outcome = subprocess.run(
                command, capture_output=True, text=True, timeout=_TIME_LIMIT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise _not_compiled(error) from error
        if outcome.returncode:
            raise _not_compiled(outcome.stderr.strip()[-300:])
    return target


def _not_compiled(message: object) -> UsageError:
    return UsageError(
        f"gcc could not compile what steps: {safe_text(message)}",
        remedy="install gcc and the C library's headers: apt install gcc libc6-dev",
    )
