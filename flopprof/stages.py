"""Say what is under way, and how much of it is done."""

import time
from collections.abc import Callable

from flopprof.settings import Progress

EVERY_S = 0.5  # between two tellings of one stage: telling takes time of what is measured


class Stage(str):
    """The name of a stage that has steps.

    Attributes:
        done: Steps that are done; those of the step under way are not.
        total: Steps in all.
    """

    __slots__ = ("done", "total")
    done: int
    total: int

    def __new__(cls, name: str, *, done: int, total: int) -> "Stage":
        """Return the name, which is what it is to everyone who asks for no more."""
        stage = super().__new__(cls, name)
        stage.done = done
        stage.total = total
        return stage


def stepping(progress: Progress, name: str, total: int) -> Callable[[], None]:
    """Begin a stage of so many steps, and return what is to be called after each of them."""
    done = 0
    told_s = time.monotonic()
    progress(Stage(name, done=0, total=total))

    def step() -> None:
        nonlocal done, told_s
        done = min(done + 1, total)
        now_s = time.monotonic()
        if now_s - told_s >= EVERY_S:
            told_s = now_s
            progress(Stage(name, done=done, total=total))

    return step
