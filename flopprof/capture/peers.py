"""The processes of one job: how they find each other, wait for each other, and tell who failed."""

import atexit
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Self

from flopprof.errors import FlopprofError, RankError, UsageError
from flopprof.units import safe_text

PATIENCE_S: Final = 600.0
"""What a rank waits for others at most, as NCCL does: loading a large model takes minutes."""
GRACE_S: Final = 5.0
"""What is waited for word of the other ranks once one is lost: a rank that lives writes at once."""
FAREWELL_S: Final = 2.0
POLL_S: Final = 0.0005
LOOKS_UP: Final = 50
"""After so many polls a rank that waits asks whether one failed."""
_LOST = re.compile(
    r"closed by peer|reset by peer|broken pipe|\bgloo\b|\bnccl|timed out waiting", re.I
)
"""In what PyTorch raises where another rank is gone."""


def is_started_by_torchrun() -> bool:
    """Return whether this process is one of several that torchrun started."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


def local_device(name: str | None) -> str:
    """Return the device of this rank: of several GPUs in a machine each rank has its own.

    Args:
        name: What the user calls it: cpu, cuda, auto; None is auto.
    """
    import torch

    if name in (None, "auto"):
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return str(name)


@dataclass(slots=True)
class Peers:
    """The ranks of a job, as one of them sees them.

    Attributes:
        rank: Its own number.
        size: How many they are.
        backend: What they send with: gloo, nccl.
        is_ours: Whether we made the process group, and end it.
    """

    rank: int
    size: int
    backend: str
    is_ours: bool
    _store: Any = None
    _control: Any = None  # a group of gloo: what is agreed upon never goes over a GPU
    _meetings: int = 0

    @classmethod
    def of_group(cls, *, is_ours: bool) -> Self:
        """Return the ranks of the process group of this process."""
        import torch.distributed as dist

        rank = dist.get_rank()
        store = dist.distributed_c10d._get_default_store()
        # Each rank counts its own jobs: calls in one order have equal numbers on all ranks.
        job = store.add(f"flopprof/{rank}", 1)
        backend = str(dist.get_backend())
        control = None if "gloo" in backend else dist.new_group(backend="gloo")
        known = dist.distributed_c10d.PrefixStore(f"flopprof/job{job}", store)
        name = "nccl" if "nccl" in backend else backend
        return cls(rank, dist.get_world_size(), name, is_ours, known, control)

    def meet(self) -> None:
        """Wait until all ranks are here. No op and no collective shows of it in a trace.

        Raises:
            TimeoutError: One did not come, or failed.
        """
        self._meetings += 1
        key = f"meeting{self._meetings}"
        if self._store.add(key, 1) == self.size:
            self._store.set(f"{key}/all", "1")
        end_s = time.monotonic() + PATIENCE_S
        polls = 0
        while not self._store.check([f"{key}/all"]):
            time.sleep(POLL_S)  # not in the store's own waiting: there no signal is heard
            polls += 1
            if polls % LOOKS_UP == 0 and self._store.check(["fault"]):
                raise TimeoutError("timed out: another rank failed")
            if time.monotonic() > end_s:
                raise TimeoutError(f"timed out: not all ranks came in {PATIENCE_S:.0f} s")

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value, by rank, on rank 0; nothing on the others."""
        import torch.distributed as dist

        every: list[Any] | None = [None] * self.size if self.rank == 0 else None
        dist.gather_object(value, every, dst=0, group=self._control)
        return every or []

    def agree(self, value: Any) -> Any:
        """Return rank 0's value on all ranks."""
        import torch.distributed as dist

        held = [value]
        dist.broadcast_object_list(held, src=0, group=self._control)
        return held[0]

    def every(self, value: Any) -> list[Any]:
        """Return every rank's value, by rank, on all ranks."""
        return list(self.agree(self.gather(value)))

    @contextmanager
    def bound_together(self) -> Iterator[None]:
        """Run the block, and tell all ranks where one does not get through it.

        Raises:
            RankError: This rank failed, or another one did.
        """
        try:
            yield
        except RankError:
            raise  # told already
        except BaseException as error:
            raise self._verdict(error) from error

    def _verdict(self, error: BaseException) -> BaseException:
        """Return what is to be raised here, once it is known who failed."""
        with _undisturbed(for_good=self.is_ours):
            try:
                self._store.set(f"fault{self.rank}", json.dumps(_fault_of(error)))
                self._store.set("fault", "1")
                self._let_go()
                faults = self._faults()
            except Exception:  # the store is gone, and with it whoever kept it
                faults = {self.rank: _fault_of(error)}
        return self._judged(error, faults)

    def _let_go(self) -> None:
        """Close the connections: the others, which may wait for this rank, then hear of it."""
        import torch.distributed as dist

        if self.is_ours and dist.is_initialized():
            dist.distributed_c10d._abort_process_group()

    def _faults(self) -> dict[int, dict[str, Any]]:
        """Return what each rank says that is still there to say something."""
        end_s = time.monotonic() + GRACE_S
        missing = set(range(self.size))
        while missing and time.monotonic() < end_s:
            missing -= {rank for rank in missing if self._store.check([f"fault{rank}"])}
            time.sleep(0.02)
        told = sorted(set(range(self.size)) - missing)
        faults = {rank: json.loads(self._store.get(f"fault{rank}")) for rank in told}
        self._store.add("heard", 1)
        end_s = time.monotonic() + FAREWELL_S
        while self._store.add("heard", 0) < len(told) and time.monotonic() < end_s:
            time.sleep(0.02)  # the store may be this process's, and goes with it
        return faults

    def _is_first_to_tell(self) -> bool:
        """Return whether no other rank has told it, who may have heard of it long before."""
        try:
            return bool(self._store.add("told", 1) == 1)
        except Exception:  # the store is gone
            return True

    def _judged(self, error: BaseException, faults: dict[int, dict[str, Any]]) -> BaseException:
        reporter = min(faults)
        is_reporter = self.rank == reporter and self._is_first_to_tell()
        own = [rank for rank, fault in faults.items() if fault["kind"] == "own"]
        silent = sorted(set(range(self.size)) - set(faults))
        if own and own[0] == self.rank and not isinstance(error, FlopprofError):
            return error  # a bug of ours: with its traceback
        if own:
            fault = faults[own[0]]
            return RankError(
                f"rank {own[0]}: {fault['problem']}",
                remedy=fault["remedy"],
                exit_code=fault["exit_code"],
                is_told_here=is_reporter,
            )
        if silent:
            one = f"rank {silent[0]}" if len(silent) == 1 else f"ranks {_listed(silent)}"
            return RankError(
                f"{one} of {self.size} ended without a word while the others measured",
                remedy="killed, where memory ran out, or ended by its own code: torchrun tells its "
                "exit code, and dmesg whether memory was the cause",
                exit_code=6,
                is_told_here=is_reporter,
            )
        if any(fault["kind"] == "stopped" for fault in faults.values()):
            return KeyboardInterrupt()
        return RankError(
            f"the ranks lost each other: {faults[reporter]['problem']}",
            remedy="the model may call other collectives on one rank than on another: run it "
            "without flopprof, with TORCH_DISTRIBUTED_DEBUG=DETAIL",
            exit_code=6,
            is_told_here=is_reporter,
        )


def _listed(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks[:8])) + (" and more" if len(ranks) > 8 else "")


def _fault_of(error: BaseException) -> dict[str, Any]:
    """Return what the other ranks are to know of an error."""
    kind = "own"
    if isinstance(error, KeyboardInterrupt):
        kind = "stopped"
    elif _is_of_another(error):
        kind = "lost"
    problem = f"{type(error).__name__}: {error}"
    remedy = "see the lines above"
    exit_code = 70
    if isinstance(error, FlopprofError):
        problem = error.problem
        remedy = error.remedy
        exit_code = error.exit_code
    return {
        "kind": kind,
        "problem": safe_text(problem, 500),
        "remedy": remedy,
        "exit_code": exit_code,
    }


def _is_of_another(error: BaseException | None) -> bool:
    """Return whether it was raised because another rank is gone."""
    import torch.distributed as dist

    while error is not None:
        if isinstance(error, dist.DistError | TimeoutError):
            return True
        if isinstance(error, RuntimeError) and _LOST.search(str(error)):
            return True
        error = error.__cause__
    return False


@contextmanager
def _undisturbed(*, for_good: bool) -> Iterator[None]:
    """Run the block, which takes some seconds, without being ended: torchrun ends what is left.

    Args:
        for_good: Whether this process ends anyway.
    """
    with ExitStack() as cleanup:
        if threading.current_thread() is threading.main_thread():
            before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if not for_good:
                cleanup.callback(signal.signal, signal.SIGTERM, before)
        yield


@contextmanager
def joined_peers(device: str | None, command: str, *, leave: bool) -> Iterator[Peers]:
    """Yield the ranks of the process group that there is, and end together or not at all.

    Where there is none, that which torchrun's variables describe is joined.

    Args:
        device: What the user calls the device: cpu, cuda, auto.
        command: What to type where there is one process.
        leave: Whether to leave what was joined. A process joins once: of a second time the others
            may find what is left of the first.

    Raises:
        UsageError: There is one process, or PyTorch cannot send.
        RankError: This rank failed, or another one did.
    """
    import torch.distributed as dist

    if not dist.is_available():
        fact = "this build of PyTorch has no torch.distributed"
        raise UsageError(fact, remedy="install a build with it: pip install torch")
    if dist.is_initialized():
        peers = Peers.of_group(is_ours=False)
        with peers.bound_together():
            yield peers
        return
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        fact = "distributed needs several processes, and nothing says that this is one of them"
        raise UsageError(fact, remedy=f"type: {command}")
    where = local_device(device)
    if where.startswith("cuda"):
        import torch

        torch.cuda.set_device(where)
    backend = "cpu:gloo,cuda:nccl" if where.startswith("cuda") else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=PATIENCE_S))
    peers = Peers.of_group(is_ours=True)
    try:
        with peers.bound_together():
            yield peers
    finally:
        if leave:
            _leave()
        else:
            atexit.register(_leave)


def _leave() -> None:
    """End the process group, where it has not been ended yet."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def this_host() -> str:
    """Return the name of this machine."""
    return socket.gethostname()
