"""What a call may be run with: the last number that is taken, and the first that is not."""

import pytest

from flopprof.errors import UsageError
from flopprof.settings import Settings


@pytest.mark.parametrize(
    ("name", "least"), [("repeats", 1), ("warmup", 0), ("traces", 1), ("threads", 1)]
)
def test_a_number_is_taken_from_its_least_on(name, least):
    options = {name: least}

    assert getattr(Settings(**options), name) == least
    with pytest.raises(UsageError, match=f"--{name} is {least - 1}"):
        Settings(**{name: least - 1})


def test_as_many_threads_work_as_there_are_cores_and_no_more(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 4)

    assert Settings(threads=4).threads == 4
    with pytest.raises(UsageError, match="--threads is 5"):
        Settings(threads=5)
