"""Read the ranks of a job, each to its sums, wherever that is done; and add these up.

A rank's trace is a million events, its sites are a thousand rows: what comes back to who asks is of
the size of one rank's sites, however many ranks there are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from flopprof.errors import LoadError
from flopprof.formulas import load_op_formulas
from flopprof.formulas.external import load_formulas
from flopprof.jobfacts import ModuleLoad
from flopprof.judge.reconcile import reconcile_rank
from flopprof.judge.spread import TracedCall
from flopprof.judge.sums import SiteSums, add_up_sums
from flopprof.judge.walk import owners
from flopprof.settings import Progress
from flopprof.tables import give_back_memory
from flopprof.trace.collectives import CollectiveSums, add_up_collectives, sums_of_trace
from flopprof.trace.foreign import check_is_no_model
from flopprof.trace.ranks import (
    DtypeSums,
    Job,
    RankFacts,
    add_up_dtypes,
    dtype_of_most_work,
    dtype_sums,
    facts_of,
    facts_of_unread,
    job_of,
    main_dtype_of,
)
from flopprof.trace.read import Trace, read_trace
from flopprof.trace.remote import base_name, local_copy
from flopprof.trace.replay import join_capture
from flopprof.trace.window import Window
from flopprof.trace.workers import Workers, read_all
from flopprof.units import file_text

_MOST_LOADS = 1000  # modules of which a run keeps how they differ by rank


@dataclass(frozen=True, slots=True)
class Reading:
    """How the ranks of a job are read.

    Attributes:
        window: Which part of each trace counts.
        formulas: Files with the user's formulas.
        capture: The trace of the capture of graphs that are replayed in the others.
    """

    window: Window
    formulas: tuple[str, ...] = ()
    capture: str | Path | None = None


@dataclass(frozen=True, slots=True)
class JobSums:
    """What one rank says, or several together.

    Attributes:
        facts: Of each rank, in the order of the files.
        on_host: The sites by times of the host, which hold where no rank has kernels; None where
            one has, or none was read.
        on_device: The sites by times of devices; None where no rank was read.
        dtypes: The work of each element type.
        collectives: The times of collectives.
    """

    facts: tuple[RankFacts, ...]
    on_host: SiteSums | None
    on_device: SiteSums | None
    dtypes: DtypeSums
    collectives: CollectiveSums

    def sites(self, job: Job) -> SiteSums:
        """Return the sums that hold.

        Args:
            job: Of these ranks: one of them was read.
        """
        sums = self.on_device if job.on_gpu else self.on_host
        assert sums is not None  # a rank was read
        return sums


def read_rank(file: str | Path, reading: Reading) -> Trace:
    """Return the trace of one rank, or the part of it that counts; done anywhere.

    Raises:
        UsageError: There is no such file, or nothing of it lies in the window.
        LoadError: It is no trace, or damaged.
    """
    for one in reading.formulas:
        load_formulas(one)
    with local_copy(file) as path:
        trace = read_trace(path)
        if reading.capture is not None:
            trace = captured(reading.capture)(trace)
        return trace if reading.window.is_whole else reading.window.cut(path, trace)


def read_sums(place: int, file: str | Path, reading: Reading) -> JobSums:
    """Return what one rank of a job says; done anywhere. A trace that is damaged says why.

    Args:
        place: Its place among the ranks.
        file: A trace file, or the address of one.
        reading: How it is read.

    Raises:
        UsageError: There is no such file, or nothing of it lies in the window.
    """
    load_op_formulas()
    try:
        trace = read_rank(file, reading)
    except LoadError as error:
        return JobSums((facts_of_unread(file, error),), None, None, {}, {})
    call = TracedCall(trace.ops, trace.gaps, trace.kernels)
    on_host = None
    if not len(trace.kernels):
        on_host = reconcile_rank(call, place=place, on_device=False)
    return JobSums(
        facts=(facts_of(file, trace),),
        on_host=on_host,
        on_device=reconcile_rank(call, place=place, on_device=True),
        dtypes=dtype_sums(trace.ops),
        collectives=sums_of_trace(trace),
    )


def add_up_job(parts: Sequence[JobSums]) -> JobSums:
    """Return what several ranks say together, or several such sums, in their order."""
    facts = tuple(one for part in parts for one in part.facts)
    on_host = None
    if not any(one.has_kernels for one in facts):
        on_host = _added([part.on_host for part in parts])
    return JobSums(
        facts=facts,
        on_host=on_host,
        on_device=_added([part.on_device for part in parts]),
        dtypes=add_up_dtypes(part.dtypes for part in parts),
        collectives=add_up_collectives(part.collectives for part in parts),
    )


def _added(parts: Sequence[SiteSums | None]) -> SiteSums | None:
    read_parts = [part for part in parts if part is not None]
    return add_up_sums(read_parts) if read_parts else None


@dataclass(frozen=True, slots=True)
class TracesRead:
    """What traces tell: one its tables, several their sums.

    Attributes:
        job: The ranks.
        dtype: The element type of most work.
        collectives: The times of collectives.
        call: The tables of a single trace; None of several.
        sites: The sums of several; None of one.
    """

    job: Job
    dtype: str
    collectives: CollectiveSums
    call: TracedCall | None = None
    sites: SiteSums | None = None


def read_traces(
    files: Sequence[str | Path], reading: Reading, workers: int | Workers, progress: Progress
) -> TracesRead:
    """Return what these traces tell, each a rank; of several, one that cannot be read is told.

    Args:
        files: Trace files, or addresses, each once.
        reading: How they are read.
        workers: Who reads several, or how many processes.
        progress: Called with the name of each file as it is read.

    Raises:
        UsageError: There is no such file, or nothing of it lies in the window.
        LoadError: None of the files is a trace that can be read.
    """
    who = Workers(processes=workers) if isinstance(workers, int) else workers
    if len(files) > 1:
        load_op_formulas()  # other processes may do the reading; the judge asks for them here
        sums = read_all(partial(read_sums, reading=reading), add_up_job, files, who, progress)
        job = job_of(sums.facts)
        return TracesRead(job, main_dtype_of(sums.dtypes), sums.collectives, sites=sums.sites(job))
    progress(f"reading {file_text(base_name(files[0]))}")
    trace = read_rank(files[0], reading)
    told = TracesRead(
        job=job_of([facts_of(files[0], trace)]),
        dtype=dtype_of_most_work(trace.ops),
        collectives=sums_of_trace(trace),
        call=TracedCall(trace.ops, trace.gaps, trace.kernels),
    )
    give_back_memory(trace.ops)
    return told


def loads_of(sums: SiteSums, job: Job) -> tuple[ModuleLoad, ...]:
    """Return the modules that several ranks have, those first where ranks wait for one the longest.

    Args:
        sums: The sites of all ranks.
        job: The ranks.
    """
    loads = []
    for row in sums.modules.itertuples(index=False):
        if row.ranks < 2 or not row.longest_us > 0:
            continue
        loads.append(
            ModuleLoad(
                module_path=str(row.module_path),
                ranks=int(row.ranks),
                mean_us=float(row.time_us / row.ranks),
                longest_us=float(row.longest_us),
                longest_rank=job.numbers[int(row.longest_place)],
            )
        )
    loads.sort(key=lambda load: (load.mean_us - load.longest_us, load.module_path))
    return tuple(loads[:_MOST_LOADS])


_CAPTURES: dict[tuple[str, int, int], Callable[[Trace], Trace]] = {}


def captured(capture: str | Path) -> Callable[[Trace], Trace]:
    """Return what gives a replay's kernels the ops of their capture, which is read once here.

    Raises:
        UsageError: There is no such file.
        LoadError: It is no trace, or damaged.
    """
    path = Path(capture)
    check_is_no_model(path)
    facts = path.stat()
    key = (str(path.resolve()), facts.st_mtime_ns, facts.st_size)
    if key not in _CAPTURES:
        _CAPTURES.clear()
        trace = read_trace(path, as_capture=True)
        owner = owners(trace.ops)
        _CAPTURES[key] = lambda replay: join_capture(replay, capture=trace, owner=owner)
    return _CAPTURES[key]
