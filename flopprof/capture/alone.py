"""One measurement at a time in a process: PyTorch's profiler and global hooks are the process's."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from flopprof.errors import UsageError

POLL_S = 0.5
PATIENCE_S = 5.0
"""A measurement whose thread waits that long for others, while another asks for its turn, is taken
to wait for that very one."""
_WAITING_IN = ("threading", "queue", "concurrent.futures._base")  # where Python code waits

_turn = threading.Lock()
_measuring: list[int] = []  # the thread that has its turn


def _after_fork() -> None:
    """Forget, in a forked child, a measurement that goes on in its parent."""
    global _turn
    _turn = threading.Lock()
    _measuring.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def alone() -> Iterator[None]:
    """Run the block once no other thread measures; refuse to be nested.

    Raises:
        UsageError: It is entered by what is being measured, or a profiler is at work already.
    """
    _take_turn()
    try:
        _refuse_foreign_profiler()
        yield
    finally:
        _measuring.clear()
        _turn.release()


def _take_turn() -> None:
    if threading.get_ident() in _measuring:
        raise UsageError(
            "flopprof is called by the model that it is measuring, or inside a region: only one "
            "call can be measured at a time",
            remedy="call flopprof outside forward and regions; FlopsCounter may be used inside",
        )
    blocked_s = 0.0
    while not _turn.acquire(timeout=POLL_S):
        blocked_s = blocked_s + POLL_S if _holder_waits() else 0.0
        if blocked_s >= PATIENCE_S:
            raise UsageError(
                "flopprof is called while it measures a model that waits for this thread",
                remedy="call flopprof outside forward, also outside threads that forward starts",
            )
    _measuring.append(threading.get_ident())


def _holder_waits() -> bool:
    """Return whether the thread that measures waits for another one."""
    frames = sys._current_frames()
    holder_frames = [frames[thread] for thread in _measuring if thread in frames]
    return any(frame.f_globals.get("__name__") in _WAITING_IN for frame in holder_frames)


def _refuse_foreign_profiler() -> None:
    import torch

    if torch.autograd.profiler._is_profiler_enabled:
        raise UsageError(
            "a profiler of PyTorch is at work around this call, and it runs one at a time",
            remedy="call flopprof outside `with torch.profiler.profile(…)`",
        )
