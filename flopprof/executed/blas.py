"""Have the libraries of matrix products beside PyTorch, such as numpy's, use one thread."""

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LIBRARIES = re.compile(r"openblas|mkl_rt|blis", re.IGNORECASE)
# Names of the functions that tell and set the threads, by library; numpy's and scipy's wheels have
# OpenBLAS under names of their own. Names that end in a bare "_" are Fortran's, and take pointers.
_FUNCTIONS = [
    (f"{prefix}openblas_get_num_threads{suffix}", f"{prefix}openblas_set_num_threads{suffix}")
    for prefix in ("", "scipy_")
    for suffix in ("", "64_", "_64")
] + [
    ("MKL_Get_Max_Threads", "MKL_Set_Num_Threads"),
    ("bli_thread_get_num_threads", "bli_thread_set_num_threads"),
]


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Have each such library that is loaded use one thread in the block, then as many as before."""
    changed = []
    for library in _loaded():
        for getter, setter in _FUNCTIONS:
            if hasattr(library, getter) and hasattr(library, setter):
                changed.append((getattr(library, setter), getattr(library, getter)()))
    try:
        for set_threads, _ in changed:
            set_threads(1)
        yield
    finally:
        for set_threads, threads in changed:
            set_threads(threads)


def _loaded() -> list[ctypes.CDLL]:
    """Return the libraries of matrix products that this process has loaded."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    fields = (line.split(maxsplit=5) for line in maps.splitlines())
    files = {parts[5] for parts in fields if len(parts) == 6}
    libraries = []
    for file in sorted(files):
        if file.startswith("/") and _LIBRARIES.search(Path(file).name):
            try:
                libraries.append(ctypes.CDLL(file))
            except OSError:  # it was replaced or removed since
                continue
    return libraries
