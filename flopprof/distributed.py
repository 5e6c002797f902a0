"""One call shared by several processes: each profiles its part, rank 0 gathers one run of all."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from flopprof.api import ceilings_of, ceilings_of_user, run_of
from flopprof.assemble import gathered
from flopprof.capture.call import telling_of_memory
from flopprof.capture.describe import main_dtype
from flopprof.capture.parallel import Shared, share_model
from flopprof.capture.peers import Peers, joined_peers, local_device, this_host
from flopprof.capture.subject import Subject, find_subject, training_of, with_gradients
from flopprof.capture.together import watch_together
from flopprof.capture.watch import Watched, on_device
from flopprof.errors import GradientsError, UsageError
from flopprof.jobfacts import Parallel
from flopprof.provenance import CallProvenance
from flopprof.run import Run
from flopprof.settings import STRATEGIES, Progress, Settings, silent
from flopprof.trace.ranks import rank_of

if TYPE_CHECKING:
    from flopprof.devices import Device

_COMMAND_TO_TYPE = "torchrun --nproc-per-node 2 -m flopprof run MODEL --distributed ddp"


def run_job(
    what: Any,
    inputs: Any,
    kwargs: Mapping[str, Any] | None,
    settings: Settings,
    progress: Progress = silent,
) -> Run:
    """Return the run of all ranks on rank 0, and on each other rank that of its own part.

    Args:
        what: A module, or what the command line takes for MODEL; of a module a copy is shared.
        inputs: As for `profile`; each rank has them as its own.
        kwargs: Keyword inputs.
        settings: How it is called; `distributed` says how the model is shared.
        progress: Called with the name of each stage as it begins.

    Raises:
        UsageError: There is one process, or the model cannot be shared so.
        RankError: This rank failed, or another one did.
    """
    with joined_peers(settings.device, _COMMAND_TO_TYPE, leave=False) as peers:
        return run_of_rank(what, inputs, kwargs, settings, peers, progress)


def run_of_rank(
    what: Any,
    inputs: Any,
    kwargs: Mapping[str, Any] | None,
    settings: Settings,
    peers: Peers,
    progress: Progress = silent,
) -> Run:
    """Do what `run_job` does, with ranks that have found each other.

    Raises:
        UsageError: The model cannot be shared so.
        ModelError: It raised.
    """
    from flopprof.devices import find_device

    user_ceilings = ceilings_of_user(settings)  # a fault in the file is told before long work
    device = find_device(local_device(settings.device))
    subject = _subject_of(what, inputs, kwargs, settings, device, progress)
    peers.meet()  # a file may take one rank longer to read than another
    progress("sharing the model")
    shared = share_model(subject, _strategy(settings), peers, device.torch_device)
    try:
        watched = watch_together(shared, subject, device, settings, peers, progress)
    except GradientsError:
        subject = with_gradients(subject)
        watched = watch_together(shared, subject, device, settings, peers, progress)
    dtype = settings.autocast or main_dtype(shared.inner, subject.inputs)
    ceilings = None
    if peers.rank == 0:  # the others keep still, so that it is measured alone
        ceilings = ceilings_of(device, watched.trace, dtype, settings, user_ceilings, progress)
    ceilings = peers.agree(ceilings)
    own = replace(subject, model=shared.inner)
    without_memory = replace(settings, memory=False)
    run = run_of(own, device, watched, without_memory, ceilings, progress)
    progress("gathering the ranks")
    runs = peers.gather(_part(run, shared, watched, peers))
    return gathered(runs) if runs else _part(run, shared, watched, peers)


def _subject_of(
    what: Any,
    inputs: Any,
    kwargs: Mapping[str, Any] | None,
    settings: Settings,
    device: "Device",
    progress: Progress,
) -> Subject:
    """Return a model of our own, on the device, and its inputs."""
    if isinstance(what, str | Path):
        progress(f"loading {what}")
        return find_subject(what, inputs, kwargs, settings, device=device.torch_device)
    subject = find_subject(what, inputs, kwargs, settings)
    training = training_of(settings)
    if training is not None and training.step is not None:
        raise UsageError(
            "a step of your own trains the model it knows, not one that ranks share",
            remedy="give a loss and an optimizer: flopprof.Training(loss=…, optimizer=…)",
        )
    subject = on_device(subject, device, None)
    if callable(settings.distributed):
        return subject  # what is shared already cannot be copied: the function decides
    with telling_of_memory("the model was copied, to be shared"):
        return replace(subject, model=copy.deepcopy(subject.model))


def _strategy(settings: Settings) -> Any:
    """Return the name of a strategy, or the function that shares the model."""
    if not isinstance(settings.distributed, str) or settings.distributed in STRATEGIES:
        return settings.distributed
    from flopprof.model.usercode import find_function

    return find_function(settings.distributed, "--distributed")


def _part(run: Run, shared: Shared, watched: Watched, peers: Peers) -> Run:
    """Return the run of this rank, as one of a job."""
    assert isinstance(run.provenance, CallProvenance)
    rank = msgspec.structs.replace(
        rank_of(peers.rank, "", watched.trace),
        host=this_host(),
        wall_us=run.provenance.wall_us,
    )
    parallel = Parallel(
        strategy=shared.strategy,
        backend=peers.backend,
        world_size=peers.size,
        shards=shared.shards,
    )
    provenance = msgspec.structs.replace(run.provenance, parallel=parallel, ranks=(rank,))
    sent = watched.trace.info["collectives"]
    trace = run.trace if peers.rank == 0 else None
    return run.replaced(provenance=provenance, collectives=sent, trace=trace)
