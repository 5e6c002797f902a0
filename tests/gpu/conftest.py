"""Where tests of GPUs run: on the GPU; in a rehearsal on the CPU, with small sizes."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.gpu.place import Place

REHEARSE = "FLOPPROF_REHEARSE"
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests of this folder; libraries' warnings about a device are no faults of ours."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(scope="session")
def _little_garbage() -> Iterator[None]:
    """Leave what libraries made out of collections: a second of each run on a busy machine."""
    import gc

    import torch._dynamo  # noqa: F401  # which profiling imports, and is most of it

    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def place(record_property: Callable[[str, object], None], _little_garbage: None) -> Iterator[Place]:
    """Return where the test runs, or skip it: there is no GPU, and it is no rehearsal."""
    import torch

    has_gpu = torch.cuda.is_available()
    if not has_gpu and os.environ.get(REHEARSE) != "1":
        pytest.skip("needs CUDA: scripts/gpu_acceptance --rehearse runs it on the CPU")
    there = Place("cuda" if has_gpu else "cpu", record_property)
    torch.manual_seed(0)
    yield there
    if has_gpu:
        torch.cuda.synchronize()
