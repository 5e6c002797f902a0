"""Fixtures that every test has."""

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

MANY_MODULES = 50  # so many new ones hold enough objects to be worth setting aside


@pytest.fixture(autouse=True)
def _no_hook_is_left_behind() -> Iterator[None]:
    yield
    module = sys.modules.get("torch.nn.modules.module")
    if module is not None:
        assert not module._global_forward_hooks
        assert not module._global_forward_pre_hooks


@pytest.fixture(autouse=True)
def _the_compiler_still_compiles() -> Iterator[None]:
    """Fail the test after which compiled models run eagerly, not a later one that compiles."""
    yield
    frames = sys.modules.get("torch._dynamo.eval_frame")
    if frames is not None:
        assert frames._stance.stance == "default"


@pytest.fixture(scope="session")
def modules_set_aside() -> list[int]:
    """Return how many modules there were when garbage collection last set objects aside."""
    return [0]


@pytest.fixture(autouse=True)
def _what_is_imported_is_no_garbage(modules_set_aside: list[int]) -> None:
    """Keep torch's million objects out of each garbage collection: `profile` asks for one."""
    if len(sys.modules) > modules_set_aside[0] + MANY_MODULES:
        gc.collect()
        gc.freeze()
        modules_set_aside[0] = len(sys.modules)


@pytest.fixture(scope="session")
def gpu_traces() -> Path:
    """Return the folder of real GPU traces, or skip: it is not part of the repository."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "traces"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder} with recorded GPU traces")
    return folder


@pytest.fixture(scope="session")
def counter_files() -> Path:
    """Return the folder of real counter files, or skip: it is not part of the repository."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "counters"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder} with files of hardware counters")
    return folder


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name a case of bytes by its argument: what is compressed holds the time of its making."""
    return argname if isinstance(val, bytes) else None
