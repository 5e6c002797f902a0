"""Where the ranks of a job are read: in this process, in several, or on a Dask cluster.

Whatever does the work, the results come in the order of the files, so all else is the same.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Generic, TypeVar

from flopprof.errors import UsageError
from flopprof.settings import Progress
from flopprof.stages import Stage
from flopprof.trace.remote import base_name
from flopprof.units import file_text

T = TypeVar("T")
Task = Callable[[int, str | Path], T]
"""What is made of the file at a place in the list; done anywhere."""

Merge = Callable[[list[T]], T]
"""What is made of several results, in order; done anywhere."""

_ARITY = 8  # of the tree: so many results are made one at a time
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


class _Tree(Generic[T]):
    """Results as they come in, in order, of which at most `_ARITY` of each level are held.

    What is merged with what depends on how many there are, and on nothing else: sums of floats are
    the same to the bit, whoever does the work.
    """

    def __init__(self, merge: Callable[[list[T]], T]) -> None:
        self._merge = merge
        self._levels: list[list[T]] = [[]]

    def add(self, result: T) -> None:
        """Take the next result."""
        level = 0
        self._levels[0].append(result)
        while len(self._levels[level]) == _ARITY:
            merged = self._merge(self._levels[level])
            self._levels[level] = []
            level += 1
            if level == len(self._levels):
                self._levels.append([])
            self._levels[level].append(merged)

    def result(self) -> T:
        """Return all of them merged."""
        left = [one for level in reversed(self._levels) for one in level]
        return self._merge(left)


def read_all(
    task: Task[T],
    merge: Merge[T],
    files: Sequence[str | Path],
    workers: Workers,
    progress: Progress,
) -> T:
    """Return what `merge` makes of what `task` makes of each file.

    Args:
        task: Reads a file; it goes to other processes, so it is a function of a module.
        merge: Makes one result of several; so is it.
        files: The files, at least one.
        workers: Who reads them.
        progress: Is told each file.

    Raises:
        UsageError: There is no such file, or no such scheduler.
    """
    if workers.dask is not None:
        return _on_cluster(task, merge, files, workers.dask, progress)
    tree = _Tree(merge)
    if workers.processes > 1 and len(files) > 1:
        for result in _in_processes(task, files, workers.processes, progress):
            tree.add(result)
        return tree.result()
    for place, file in enumerate(files):
        progress(_stage(file, place, len(files)))
        tree.add(task(place, file))
    return tree.result()


def _in_processes(
    task: Task[T], files: Sequence[str | Path], processes: int, progress: Progress
) -> Iterator[T]:
    """Yield the results by processes; when one dies, this process reads what is left."""
    with ProcessPoolExecutor(min(processes, len(files)), get_context("spawn")) as pool:
        futures: list[Future[T]] = []
        for place, file in enumerate(files):
            while len(futures) < min(place + 1 + 2 * processes, len(files)):  # bounds the memory
                futures.append(_submitted(pool, task, len(futures), files[len(futures)]))
            progress(_stage(file, place, len(files)))
            future = futures[place]
            try:
                result = future.result()
            except BrokenProcessPool:
                result = task(place, file)
            futures[place] = Future()  # what was read is the caller's
            yield result


def _submitted(
    pool: ProcessPoolExecutor, task: Task[T], place: int, file: str | Path
) -> "Future[T]":
    try:
        return pool.submit(task, place, file)
    except BrokenProcessPool as error:
        broken: Future[T] = Future()
        broken.set_exception(error)
        return broken


def _on_cluster(
    task: Task[T],
    merge: Merge[T],
    files: Sequence[str | Path],
    address: str,
    progress: Progress,
) -> T:
    """Return the merged result; the cluster merges, and reads again what a worker lost."""
    with _client_of(address) as client:
        tree: _Tree[Any] = _Tree(lambda parts: client.submit(merge, parts, pure=False))
        read = [client.submit(task, *pair, pure=False) for pair in enumerate(files)]
        for future in read:
            tree.add(future)
        merged = tree.result()
        read.reverse()
        for place, file in enumerate(files):
            progress(_stage(file, place, len(files)))
            future = read.pop()  # and with it goes what the cluster holds of it for us
            if _state_of(future) == "error":
                future.result()  # raises
        result: T = merged.result()
        return result


def _state_of(future: Any) -> str:
    """Return how a task of a cluster ended, once it has."""
    from distributed import wait

    until_done: Any = wait
    until_done([future])
    return str(future.status)


@contextmanager
def _client_of(address: str) -> Iterator[Any]:
    """Yield a client of the cluster at an address."""
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
        yield client


def _stage(file: str | Path, place: int, count: int) -> str:
    name = f"reading {file_text(base_name(file))}"
    if count == 1:
        return name
    return Stage(f"{name} ({place + 1} of {count})", done=place, total=count)
