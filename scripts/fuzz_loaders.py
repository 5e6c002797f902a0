"""Read mutated model files and see that none crashes, hangs, grows or runs anything.

usage: python scripts/fuzz_loaders.py [--count N] [--seed S] [--seconds T]

Every file of the tests' corpus, good, odd and hostile, is changed at random and read as `flopprof
inspect` reads it, in this process. What may come of it is a description or a LoadError,
RefusedError or UsageError. Prints how many came to what, the slowest, and the memory; exits with 1,
and leaves the file behind, at the first that came to anything else.
"""

import argparse
import os
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import FrameType

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from flopprof.errors import LoadError, RefusedError, UsageError  # noqa: E402
from flopprof.model.facts import file_facts  # noqa: E402
from tests.model.mutations import mutate, mutate_inside, originals  # noqa: E402
from tests.model.test_corpus import CORPUS, MARKER  # noqa: E402

LIMIT_S = 15  # of this process's own time: others may be busy


class Hangs(BaseException):
    """Nothing that reads a file may take it for a fault of the file."""


def main() -> int:
    """Mutate and read until the count or the time is reached."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    args = parser.parse_args()
    signal.signal(signal.SIGVTALRM, _hangs)
    outcomes: Counter[str] = Counter()
    slowest = (0.0, -1)  # seconds, and which mutation
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = originals(CORPUS, folder)
        for path in folder.iterdir():  # what writing the corpus left behind
            if not path.is_dir():
                path.unlink()
        os.chdir(folder)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        for number in range(args.count):
            random = np.random.default_rng([args.seed, number])
            which = list(files)[int(random.integers(0, len(files)))]
            path = folder / "mutated"
            change = mutate if number % 2 == 0 else mutate_inside
            path.write_bytes(change(files[which], random))
            start = time.process_time()
            signal.setitimer(signal.ITIMER_VIRTUAL, LIMIT_S)
            try:
                outcomes[read(path)] += 1
            except BaseException as error:
                kept = Path(tempfile.gettempdir()) / f"flopprof-{which}-{args.seed}-{number}"
                kept.write_bytes(path.read_bytes())
                print(f"{which}, mutation {number}: {error!r}; kept as {kept}")
                raise
            finally:
                signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            slowest = max(slowest, (time.process_time() - start, number))
            if (folder / MARKER).exists():
                print(f"{which}, mutation {number} was executed: {MARKER} is there")
                return 1
            if time.monotonic() - began > args.seconds:
                break
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{sum(outcomes.values())} mutations of {len(files)} files, seed {args.seed}")
    print(", ".join(f"{outcome} {times}" for outcome, times in outcomes.most_common()))
    print(
        f"slowest {slowest[0]:.2f} s (mutation {slowest[1]}), memory at most {peak:.0f} MiB", end=""
    )
    print(f": {peak - before:.0f} more than before")
    return 0


def read(path: Path) -> str:
    """Return what reading the file came to."""
    try:
        return str(file_facts(path)["kind"])
    except (LoadError, RefusedError, UsageError) as error:
        if not (error.problem.isprintable() and error.remedy):
            raise RuntimeError(f"not fit to be printed: {error.problem!r}") from error
        return type(error).__name__


def _hangs(_signal: int, _frame: FrameType | None) -> None:
    raise Hangs(f"took over {LIMIT_S} s")


if __name__ == "__main__":
    sys.exit(main())
