"""The threads of numpy's matrix products."""

import os

import numpy as np
import pytest

from flopprof.executed.blas import _FUNCTIONS, _loaded, one_blas_thread


def threads():
    return [
        getattr(library, getter)()
        for library in _loaded()
        for getter, setter in _FUNCTIONS
        if hasattr(library, getter) and hasattr(library, setter)
    ]


def test_numpys_products_use_one_thread_in_the_block_and_as_many_as_before_after_it():
    np.ones((2, 2)) @ np.ones((2, 2))
    before = threads()
    if not before:
        pytest.skip("numpy has a library of products that is not known")

    with one_blas_thread():
        inside = threads()

    assert set(inside) == {1}
    assert threads() == before
    assert all(1 <= each <= (os.cpu_count() or 1) for each in before)
