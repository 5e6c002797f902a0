"""One thread, stepped: what it executes is counted exactly, and the process is left as it was."""

import ctypes
import os
import shutil
import signal
import subprocess
import threading

import pytest

from flopprof.errors import UsageError
from flopprof.executed.stepping import _counted, _stepper, check_can_step, others_work, step

MOST = 1_000_000


@pytest.fixture(scope="module", autouse=True)
def _can_step():
    try:
        check_can_step()
    except UsageError as error:
        pytest.skip(f"calls cannot be stepped: {error.problem}")


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """A function in C: n products and n sums, one number at a time."""
    if not shutil.which("gcc"):
        pytest.skip("there is no gcc")
    folder = tmp_path_factory.mktemp("squares")
    source = folder / "squares.c"
    source.write_text(
        "double squares(const double *x, long n) {"
        " double s = 0; for (long i = 0; i < n; i++) s = s + x[i] * x[i]; return s; }"
    )
    command = ["gcc", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-o"]
    subprocess.run([*command, str(folder / "squares.so"), str(source)], check=True)
    return ctypes.CDLL(str(folder / "squares.so")).squares


def test_a_function_executes_what_its_source_says(squares):
    values = (ctypes.c_double * 500)(*range(500))

    done = step(lambda: squares(values, 500), most=MOST).operations

    assert done.by_instruction["mulsd"] == 500
    assert done.by_instruction["addsd"] == 500
    assert done.flops == 1000
    assert done.undecoded == 0


def test_signal_handler_and_garbage_collection_are_as_before():
    import gc

    traps = []
    before = signal.signal(signal.SIGTRAP, lambda *_: traps.append(1))
    try:
        step(lambda: None, most=MOST)
        os.kill(os.getpid(), signal.SIGTRAP)
        assert traps == [1]
        assert gc.isenabled()
    finally:
        signal.signal(signal.SIGTRAP, before)


def test_what_a_call_raises_passes_and_stepping_ends():
    calls = []

    def third_raises():
        calls.append(1)
        if len(calls) == 3:  # the one that is stepped
            raise ValueError("of its own")

    with pytest.raises(ValueError, match="of its own"):
        step(third_raises, most=MOST)

    assert step(lambda: None, most=MOST).operations.instructions < 20_000


def test_a_call_past_the_limit_runs_on_uncounted(squares):
    values = (ctypes.c_double * 500)(*range(500))
    results = []
    squares.restype = ctypes.c_double

    stepped = step(lambda: results.append(squares(values, 500)), most=1000)

    assert stepped.operations.instructions == 1000
    assert "more than 1,000 instructions" in stepped.why_stopped
    assert results[-1] == 41_541_750  # 499·500·999/6


def test_work_of_other_threads_is_noticed(squares):
    values = (ctypes.c_double * 100_000)()

    def beside():
        thread = threading.Thread(target=lambda: squares(values, 100_000))
        thread.start()
        thread.join()

    assert others_work(beside)
    assert not others_work(lambda: squares(values, 100_000))


def test_a_call_that_begins_a_thread_survives():
    # Beginning one blocks all signals for a moment: a blocked SIGTRAP would end the process.
    ran = []

    def begin():
        thread = threading.Thread(target=lambda: ran.append(1))
        thread.start()
        thread.join()

    step(begin, most=MOST)

    assert len(ran) == 3


def test_an_interrupted_call_is_stepped_no_further_and_raises_when_it_comes_back(squares):
    values = (ctypes.c_double * 200_000)()
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    calls = []

    def third_is_interrupted():
        calls.append(1)
        if len(calls) == 3:  # the one that is stepped: a second or two before its end
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        squares(values, 200_000)

    with pytest.raises(KeyboardInterrupt):
        step(third_is_interrupted, most=100 * MOST)

    counts = _counted(_stepper())
    assert sum(each.times for each in counts) < 200_000  # its loop alone has 200,000 rounds
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert step(lambda: None, most=MOST).why_stopped == ""
