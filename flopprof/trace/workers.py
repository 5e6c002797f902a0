"""Where the ranks of a job are read: in this process, in several, or on a Dask cluster.

Whatever does the work, the results come in the order of the files, so all else is the same.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from flopprof.errors import LoadError, UsageError
from flopprof.settings import Progress
from flopprof.stages import Stage
from flopprof.trace.read import Trace
from flopprof.trace.remote import base_name
from flopprof.units import file_text

Outcome = Trace | LoadError
"""A rank's trace, or why there is none."""

Task = Callable[[str | Path], Trace]
_CONNECT_S = 10  # to a scheduler; it is there or it is not


@dataclass(frozen=True, slots=True)
class Workers:
    """Who reads ranks.

    Attributes:
        processes: How many at once on this machine; with one it is this process.
        dask: Address of a Dask scheduler, "tcp://host:8786", whose workers read instead.
    """

    processes: int = 1
    dask: str | None = None

    def __post_init__(self) -> None:
        """Refuse a number of processes that cannot be."""
        if self.processes < 1:
            raise UsageError(f"--workers is {self.processes}", remedy="give at least 1")


def read_all(
    task: Task, files: Sequence[str | Path], workers: Workers, progress: Progress
) -> Iterator[Outcome]:
    """Yield what `task` makes of each file, in order; for a damaged one, why.

    Args:
        task: Reads a file; it goes to other processes, so it is a function of a module.
        files: The files.
        workers: Who reads them.
        progress: Is told each file.

    Raises:
        UsageError: There is no such file, or no such scheduler.
    """
    if workers.dask is not None:
        with _on_cluster(task, files, workers.dask) as futures:
            yield from _with_progress(futures, files, progress)
    elif workers.processes > 1 and len(files) > 1:
        yield from _in_processes(task, files, workers.processes, progress)
    else:
        for number, file in enumerate(files, start=1):
            progress(_stage(file, number, len(files)))
            yield outcome_of(task, file)


def outcome_of(task: Task, file: str | Path) -> Outcome:
    """Return what a task makes of a file, or why it can make nothing of it."""
    try:
        return task(file)
    except LoadError as error:
        return error


def _in_processes(
    task: Task, files: Sequence[str | Path], processes: int, progress: Progress
) -> Iterator[Outcome]:
    """Yield the outcomes by processes; when one dies, this process reads what is left."""
    with ProcessPoolExecutor(min(processes, len(files)), get_context("spawn")) as pool:
        futures: list[Future[Outcome]] = []
        for number, file in enumerate(files, start=1):
            while len(futures) < min(number + 2 * processes, len(files)):  # bounds the memory
                futures.append(_submitted(pool, task, files[len(futures)]))
            progress(_stage(file, number, len(files)))
            future = futures[number - 1]
            try:
                outcome = future.result()
            except BrokenProcessPool:
                outcome = outcome_of(task, file)
            futures[number - 1] = _done()  # what was read is the caller's
            yield outcome


def _submitted(pool: ProcessPoolExecutor, task: Task, file: str | Path) -> "Future[Outcome]":
    try:
        return pool.submit(outcome_of, task, file)
    except BrokenProcessPool as error:
        broken = _done()
        broken.set_exception(error)
        return broken


def _done() -> "Future[Outcome]":
    return Future()


@contextmanager
def _on_cluster(
    task: Task, files: Sequence[str | Path], address: str
) -> Iterator[Iterable[Callable[[], Outcome]]]:
    """Yield functions that wait for the outcomes; the cluster reads again what a worker lost."""
    try:
        from distributed import Client
    except ImportError as error:
        raise UsageError(
            "--dask needs Dask's distributed engine, which is not installed",
            remedy="pip install 'flopprof[dask]'",
        ) from error
    try:
        make_client: Any = Client
        client = make_client(address, timeout=_CONNECT_S)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"no Dask scheduler answers at {file_text(address)}",
            remedy="start one: dask scheduler, dask worker ADDRESS; name its tcp://host:8786",
        ) from error
    with client:
        futures = [client.submit(outcome_of, task, file, pure=False) for file in files]
        yield [future.result for future in futures]


def _with_progress(
    waits: Iterable[Callable[[], Outcome]], files: Sequence[str | Path], progress: Progress
) -> Iterator[Outcome]:
    for number, (wait, file) in enumerate(zip(waits, files, strict=True), start=1):
        progress(_stage(file, number, len(files)))
        yield wait()


def _stage(file: str | Path, number: int, count: int) -> str:
    name = f"reading {file_text(base_name(file))}"
    if count == 1:
        return name
    return Stage(f"{name} ({number} of {count})", done=number - 1, total=count)
