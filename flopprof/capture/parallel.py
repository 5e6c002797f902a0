"""A model shared by the processes of a job: a replica each, its parameters in shards, or tensors.

The model is changed in place: it is a copy, or was loaded for this.
"""

import copy
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flopprof.capture.call import Call, Inputs
from flopprof.capture.hooks import tensors_in
from flopprof.capture.peers import Peers
from flopprof.capture.shards import plans_of
from flopprof.capture.subject import Subject
from flopprof.errors import FlopprofError, UsageError
from flopprof.units import safe_text

if TYPE_CHECKING:
    from torch import nn

_LEAST_BLOCKS = 2  # equal modules in a list that are layers of the model, each a unit of FSDP
_CLOSE = {"float64": 1e-6, "float32": 1e-3}  # of the largest output; sums in another order


@dataclass(frozen=True, slots=True)
class Shared:
    """A model that ranks share.

    Attributes:
        model: What is called.
        inner: The module whose paths are those of the model alone: it is hooked and named.
        strategy: How it is shared.
        shards: What each rank has a part of, "fc1: columns".
    """

    model: "nn.Module"
    inner: "nn.Module"
    strategy: str
    shards: tuple[str, ...] = ()


def share_model(subject: Subject, strategy: Any, peers: Peers, device: str) -> Shared:
    """Return the subject's model shared by the ranks.

    Args:
        subject: A model of this process alone, and its inputs.
        strategy: ddp, fsdp, tp, or a function that returns the shared model.
        peers: The ranks.
        device: Where the model is: cpu, cuda:0.

    Raises:
        UsageError: The model cannot be shared so.
    """
    if callable(strategy):
        name = getattr(strategy, "__name__", "function")
        with _told(name):
            model = strategy(subject.model)
        return Shared(model, _inner(model), name)
    if strategy == "ddp":
        return _replicated(subject.model, device)
    if strategy == "fsdp":
        return _fully_sharded(subject, peers, device)
    return _tensors_sharded(subject, peers, device)


def _inner(model: "nn.Module") -> "nn.Module":
    from torch.nn.parallel import DistributedDataParallel

    return model.module if isinstance(model, DistributedDataParallel) else model


@contextmanager
def _told(strategy: str) -> Iterator[None]:
    """Run the block, in which PyTorch may refuse to share a model, and say what it says."""
    try:
        yield
    except FlopprofError:
        raise
    except (RuntimeError, ValueError, TypeError, NotImplementedError, AssertionError) as error:
        said = safe_text((str(error).strip().splitlines() or [type(error).__name__])[0], 300)
        raise UsageError(
            f"the model cannot be shared by {strategy}: {said}",
            remedy="take another of ddp, fsdp, tp; or a function of your own: "
            "--distributed FILE.py:FUNCTION gets the model and returns the shared one",
        ) from error


def _replicated(model: "nn.Module", device: str) -> Shared:
    from torch.nn.parallel import DistributedDataParallel

    with _told("ddp"):
        if not any(parameter.requires_grad for parameter in model.parameters()):
            return Shared(model, model, "ddp")  # DDP refuses it, and there is nothing to send
        ids = [int(device.partition(":")[2] or 0)] if device.startswith("cuda") else None
        return Shared(DistributedDataParallel(model, device_ids=ids), model, "ddp")


def _fully_sharded(subject: Subject, peers: Peers, device: str) -> Shared:
    """Shard all parameters: of each layer together, and what is left with the model itself."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    _same_on_all(subject, peers, inputs=False)
    model = subject.model
    with _told("fsdp"):
        mesh = init_device_mesh(device.partition(":")[0], (peers.size,))
        units = list(_layers(model))
        for _, unit in [*units, ("", model)]:
            # Also the model itself, which would stay whole after a call: each call is alike.
            fully_shard(unit, mesh=mesh, reshard_after_forward=True)
    names = tuple(f"{path or '(model)'}: all parameters" for path, _ in [*units, ("", model)])
    return Shared(model, model, "fsdp", names)


def _layers(model: "nn.Module") -> Iterator[tuple[str, "nn.Module"]]:
    """Yield the model's layers, inner ones first: equal blocks in a list or sequence."""
    from torch import nn

    found = []
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential):
            continue
        blocks = [
            (name, child) for name, child in module.named_children() if list(child.children())
        ]
        kinds = {type(child) for _, child in blocks}
        if len(blocks) >= _LEAST_BLOCKS and len(kinds) == 1:
            found += [(f"{path}.{name}".lstrip("."), child) for name, child in blocks]
    yield from reversed(found)


def _tensors_sharded(subject: Subject, peers: Peers, device: str) -> Shared:
    """Shard pairs of linear layers; the first plan under which the model says the same is taken."""
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import parallelize_module

    plans = plans_of(subject.model, peers.size)
    if not plans:
        raise UsageError(
            f"tp finds nothing to share among {peers.size} ranks: no pair of linear layers, one "
            "after the other, whose size between them is a multiple of that",
            remedy="take ddp or fsdp; or a function of your own: --distributed FILE.py:FUNCTION",
        )
    _same_on_all(subject, peers, inputs=True)
    mesh = init_device_mesh(device.partition(":")[0], (peers.size,))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        alone = _answer_of(subject.model, subject.inputs)
    problem = ""
    for plan in plans:
        model = copy.deepcopy(subject.model)
        try:
            with _told("tp"):
                parallelize_module(model, mesh, plan.styles())
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                shared = _answer_of(model, subject.inputs)
            problem = _difference(alone, shared)
        except FlopprofError as error:
            problem = error.problem
        if not any(peers.every(problem)):
            return Shared(model, model, "tp", plan.texts)
    raise UsageError(
        f"under tp the model does not do the same as alone: {problem}",
        remedy="its code may rely on the whole number of heads or channels: take ddp or fsdp; or a "
        "function of your own: --distributed FILE.py:FUNCTION",
    )


def _same_on_all(subject: Subject, peers: Peers, *, inputs: bool) -> None:
    """Give all ranks the model of rank 0, of which each has a part, and its `inputs` too."""
    import torch
    import torch.distributed as dist

    if peers.size == 1:
        return
    with torch.no_grad():
        for tensor in [*subject.model.parameters(), *subject.model.buffers()]:
            if not tensor.is_meta:
                dist.broadcast(tensor.detach(), src=0)
        for tensor in subject.inputs.tensors if inputs else ():
            dist.broadcast(tensor.detach(), src=0)


def _answer_of(model: "nn.Module", inputs: Inputs) -> list[Any]:
    mode = model.training
    model.eval()
    try:
        return [_whole(tensor) for tensor in tensors_in(Call(model, inputs)())]
    finally:
        model.train(mode)


def _whole(tensor: Any) -> Any:
    """Return a tensor with all that other ranks have of it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _difference(alone: list[Any], shared: list[Any]) -> str:
    """Return how two outputs differ; "" where they are the same but for rounding."""
    if [tensor.shape for tensor in alone] != [tensor.shape for tensor in shared]:
        return "its outputs have other shapes"
    for one, other in zip(alone, shared, strict=True):
        if not one.numel() or not one.is_floating_point():
            continue
        largest = float(one.abs().max())
        far = float((one - other).abs().max())
        allowed = _CLOSE.get(str(one.dtype).removeprefix("torch."), 0.05)
        if not far <= allowed * max(largest, 1e-6):
            return f"outputs differ by {far:.3g}, the largest is {largest:.3g}"
    return ""


@contextmanager
def local_sizes(model: "nn.Module") -> Iterator[None]:
    """Have linear layers whose weights are sharded say the sizes of this rank's part.

    The formulas of layers read these; a sharded layer keeps saying those of the whole.
    """
    from torch import nn

    with ExitStack() as cleanup:
        for module in model.modules():
            local = getattr(getattr(module, "weight", None), "_local_tensor", None)
            if not isinstance(module, nn.Linear) or local is None or local.dim() != 2:
                continue
            for name, size in zip(("out_features", "in_features"), local.shape, strict=True):
                cleanup.callback(setattr, module, name, getattr(module, name))
                setattr(module, name, size)
        yield


@dataclass(slots=True)
class CallTogether(Call):
    """A call that all ranks begin at one time.

    Attributes:
        peers: The ranks; None for none.
        begins_inside: Whether they also meet once the call is under way, in a trace: a profiler
            takes longer to begin on one rank than on another.
        met_us: How long the last such meeting took.
    """

    peers: Peers | None = None
    begins_inside: bool = False
    met_us: float = 0.0

    def prepare(self) -> None:
        """Make the next call's inputs, and wait for the other ranks."""
        super(CallTogether, self).prepare()
        if self.peers and not self.begins_inside:
            self.peers.meet()

    def __call__(self) -> Any:
        """Call the model once, when all ranks do."""
        if self._ready is None:
            self.prepare()
        if self.peers and self.begins_inside:
            start = time.perf_counter()
            self.peers.meet()
            self.met_us = (time.perf_counter() - start) * 1e6
        output = super(CallTogether, self).__call__()
        for tensor in tensors_in(output):
            if hasattr(tensor, "trigger_wait"):  # a collective's result that nobody has read yet
                tensor.trigger_wait()
        return output
