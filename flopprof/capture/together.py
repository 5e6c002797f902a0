"""One call of a model that several processes share, watched by each of them.

Every rank makes the same calls in the same order, whatever its own clock says: a rank that made one
more would wait for the others for ever.
"""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

from flopprof.capture.alone import alone
from flopprof.capture.call import telling_of_memory, using_threads
from flopprof.capture.foreign import CallsSeen, foreign_modules
from flopprof.capture.load import busy_warning, host_load
from flopprof.capture.modules import count_modules
from flopprof.capture.parallel import CallTogether, Shared, local_sizes
from flopprof.capture.passes import gzipped, read_traces
from flopprof.capture.peers import Peers
from flopprof.capture.record import TRACES_BUDGET_S, Recording, record_trace, time_calls
from flopprof.capture.restore import Snapshot
from flopprof.capture.subject import Subject, training_of
from flopprof.capture.watch import Watched
from flopprof.devices import Device, keeping_random_states
from flopprof.provenance import Observer, Warned
from flopprof.settings import Progress, Settings


@alone()
def watch_together(
    shared: Shared,
    subject: Subject,
    device: Device,
    settings: Settings,
    peers: Peers,
    progress: Progress,
) -> Watched:
    """Call the shared model under every pass, on all ranks at once.

    Args:
        shared: The model, which need not be left as it was.
        subject: Its inputs.
        device: Where it is.
        settings: How it is called.
        peers: The ranks.
        progress: Called with the name of each stage as it begins.

    Raises:
        UsageError: The inputs do not fit the model.
        ModelError: The model raised, or memory ran out.
    """
    import torch

    with ExitStack() as stack:
        folder = stack.enter_context(_surroundings(device, settings))
        call = stack.enter_context(_calling(shared, subject, device, settings, peers))
        described = device.describe()
        progress("warming up")
        call()
        progress(f"timing {settings.repeats} calls")
        warmup = max(settings.warmup - 1, 0)
        with device.telemetry() as telemetry, host_load() as load:
            times_us = time_calls(call, device=device, warmup=warmup, repeats=settings.repeats)
        progress("tracing")
        fitting = _how_many_traces(times_us, settings, peers)
        recordings = _traced(shared, call, folder, device, peers, fitting)
        progress("counting")
        seen = CallsSeen(shared.inner)
        with seen, local_sizes(shared.inner):
            module_calls = count_modules(shared.inner, call)
        progress(f"reading {len(recordings)} traces")
        trace, *others = read_traces(recordings, shared.inner)
        packed = gzipped(recordings[0].path)
        busy = busy_warning(load, torch.get_num_threads())
    return Watched(
        module_calls=module_calls,
        trace=trace,
        others=others,
        packed=packed,
        traced_us=recordings[0].traced_us,
        times_us=times_us,
        device=described,
        telemetry=telemetry,
        observer=Observer(),
        foreign=foreign_modules(shared.inner, seen),
        doubts=[Warned(code="load", text=busy)] if busy else [],
    )


@contextmanager
def _surroundings(device: Device, settings: Settings) -> Iterator[Path]:
    """Run the block as the settings say, and yield a folder for its traces."""
    with ExitStack() as stack:
        stack.enter_context(telling_of_memory("the model was called"))
        stack.enter_context(using_threads(settings.threads))
        if settings.tf32:
            stack.enter_context(device.tf32())
        yield Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flopprof-")))


@contextmanager
def _calling(
    shared: Shared,
    subject: Subject,
    device: Device,
    settings: Settings,
    peers: Peers,
) -> Iterator[CallTogether]:
    """Yield the call; each begins with the same random states and attributes of the model.

    Parameters and what they are shared by go on: the model is one of our own.
    """
    import torch

    training = training_of(settings)
    shared.model.train(training is not None)
    inputs = subject.inputs
    if training:
        inputs = training.of(shared.model, inputs)
    needed = inputs.needs_gradients
    with keeping_random_states(device.torch_device), torch.set_grad_enabled(needed):
        snapshot = Snapshot(shared.inner, inputs.leaves, device=device.torch_device)
        call = CallTogether(shared.model, inputs, snapshot, peers=peers)
        if settings.autocast:
            kind = device.torch_device.partition(":")[0]
            call.context = partial(torch.autocast, kind, getattr(torch, settings.autocast))
        yield call


def _how_many_traces(times_us: list[float], settings: Settings, peers: Peers) -> int:
    """Return how many calls fit into the time for traces: the same number on all ranks."""
    longest_us = max(peers.every(median(times_us)))
    fitting = int(TRACES_BUDGET_S * 1e6 / max(longest_us, 1.0))
    return min(max(fitting, 1), settings.traces)


def _traced(
    shared: Shared, call: CallTogether, folder: Path, device: Device, peers: Peers, number: int
) -> list[Recording]:
    """Return traces of some calls, the one of median time first: the same call on all ranks."""
    call.begins_inside = True
    recordings = []
    for at in range(number):
        path = folder / f"trace{at}.json"
        recording = record_trace(shared.inner, call, path, device=device, attempts=1)
        traced_us = max(recording.traced_us - call.met_us, 0.0)
        recordings.append(replace(recording, traced_us=traced_us))
    call.begins_inside = False
    by_rank = peers.every([recording.traced_us for recording in recordings])
    longest = [max(times) for times in zip(*by_rank, strict=True)]
    middle = sorted(range(number), key=lambda at: longest[at])[(number - 1) // 2]
    return [recordings[middle], *(r for at, r in enumerate(recordings) if at != middle)]
