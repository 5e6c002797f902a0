"""Hide one kind of hardware behind one small protocol."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from flopprof.errors import UsageError
from flopprof.registry import Registry, import_all

RandomState = tuple[Callable[[], Any], Callable[[Any], None]]
"""What returns a state, and what sets it."""


class Device(Protocol):
    """One device that runs models; made from a name that its class `matches`.

    Attributes:
        torch_device: What torch calls it: "cpu", "cuda:0".
    """

    torch_device: str

    def __init__(self, name: str) -> None: ...

    @classmethod
    def matches(cls, name: str) -> bool:
        """Return whether `name` ("cuda:1") means a device of this kind."""

    @classmethod
    def random_state(cls, name: str) -> RandomState:
        """Return how the state of the device's random numbers is read, and how it is set."""

    def activities(self) -> list[Any]:
        """Return what `torch.profiler` should record for this device."""

    def synchronize(self) -> None:
        """Wait until all work given to the device is done."""

    def elapsed_us(self, call: Callable[[], object]) -> float:
        """Return how long the device, idle before, is at one call, until all of it is done."""

    def describe(self) -> dict[str, Any]:
        """Return name, kind, memory, caches and what else tells this device from others."""

    def caches(self) -> dict[str, int]:
        """Return the bytes by cache level, "L1" and on, that work in this process can use.

        Empty where the caches' bandwidths cannot be measured.
        """

    def free_bytes(self) -> int | None:
        """Return the memory that this process may still take; None where nothing tells."""

    def telemetry(self) -> AbstractContextManager[dict[str, Any]]:
        """Return a context whose dict holds clocks, power and energy once it is left."""

    def tf32(self) -> AbstractContextManager[None]:
        """Return a context in which float32 products may round to TF32.

        Raises:
            UsageError: This kind of device has no TF32.
        """


DEVICES: Registry[type[Device]] = Registry("kind of device")
device = DEVICES.register


def find_device(name: str) -> Device:
    """Return the device called `name`: a kind such as "cpu", "cuda:1", or "auto": CUDA or CPU.

    Raises:
        UsageError: There is no such device here, or its kind is not supported.
    """
    import_all("flopprof.devices")
    device_name = str(name).strip().lower()
    if device_name == "auto":
        from flopprof.devices.cuda import why_no_cuda

        device_name = "cpu" if why_no_cuda() else "cuda"
    kind = _kind_of(device_name)
    if kind is not None:
        return kind(device_name)
    kinds = ", ".join(kind for kind, _ in DEVICES.items())
    raise UsageError(
        f"the device {name!r} is not supported yet; these are: {kinds} (ROCm is cuda)",
        remedy="--device cpu, cuda, cuda:1 or another of these, or auto",
    )


def random_state_of(torch_device: str) -> RandomState | None:
    """Return how the random state of a device is read and set; None for one that has none."""
    import_all("flopprof.devices")
    kind = _kind_of(torch_device)
    return kind.random_state(torch_device) if kind is not None else None


@contextmanager
def keeping_random_states(torch_device: str) -> Iterator[None]:
    """Put the random states of the CPU and of a device back when the block is left."""
    kept = []
    for name in dict.fromkeys(("cpu", torch_device)):
        state = random_state_of(name)
        if state is not None:
            get, put = state
            kept.append((get(), put))
    try:
        yield
    finally:
        for value, put in kept:
            put(value)


def _kind_of(name: str) -> type[Device] | None:
    return next((kind for _, kind in DEVICES.items() if kind.matches(name)), None)
