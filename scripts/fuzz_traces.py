"""Analyse mutated traces and see that none crashes, hangs or grows.

usage: python scripts/fuzz_traces.py [--count N] [--seed S] [--seconds T] [TRACE.json.gz …]

Small traces of several kinds, and parts of the TRACEs given, are changed at random in ids, parents,
times, types, depth, names, order and text, and analysed as `flopprof trace` does, in this process.
What may come of it is a run or a FlopprofError. Prints how many came to what, the slowest, and the
memory; exits with 1, and leaves the file behind, at the first that came to anything else.
"""

import argparse
import gzip
import json
import random
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from flopprof.api import analyse_traces  # noqa: E402
from flopprof.errors import FlopprofError  # noqa: E402
from flopprof.report.perfetto import annotate_trace  # noqa: E402
from flopprof.trace.read import read_trace  # noqa: E402
from tests.trace.mutations import mutated, originals  # noqa: E402

LIMIT_S = 20  # of one trace
LIMIT_BYTES = 1 << 30  # of address space beyond what is mapped at the start
ANALYSED = 4  # every so many traces are not only read, but made a run of
REPORTED = 20  # every so many are reported and annotated, too
PART = 300  # events of a trace that is given


def main() -> int:
    """Mutate and analyse until the count or the time is reached."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("traces", nargs="*", type=Path)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    args = parser.parse_args()
    signal.signal(signal.SIGALRM, _hangs)
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + LIMIT_BYTES, resource.RLIM_INFINITY))
    sources = [*originals(), *map(part_of, args.traces)]
    outcomes: Counter[str] = Counter()
    slowest = (0.0, -1)  # seconds, and which mutation
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "mutated.json"
        for number in range(args.count):
            chance = random.Random(f"{args.seed}/{number}")
            path.write_bytes(mutated(chance.choice(sources), chance))
            start = time.monotonic()
            signal.alarm(LIMIT_S)
            try:
                outcomes[analyse(path, number)] += 1
            except BaseException as error:
                kept = Path(tempfile.gettempdir()) / f"flopprof-trace-{args.seed}-{number}.json"
                kept.write_bytes(path.read_bytes())
                print(f"mutation {number}: {error!r}; kept as {kept}")
                raise
            finally:
                signal.alarm(0)
            slowest = max(slowest, (time.monotonic() - start, number))
            if time.monotonic() - began > args.seconds:
                break
    count = sum(outcomes.values())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{count} mutations of {len(sources)} traces, seed {args.seed}: ", end="")
    print(", ".join(f"{outcome} {times}" for outcome, times in outcomes.most_common()))
    print(f"{60 * count / (time.monotonic() - began):.0f} a minute, ", end="")
    print(f"slowest {slowest[0]:.2f} s (mutation {slowest[1]}), memory at most {peak:.0f} MiB")
    return 0


def analyse(path: Path, number: int = 0) -> str:
    """Return what reading the file came to; by its number, it is analysed and reported, too."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            if number % ANALYSED:
                read_trace(path)
                return "trace"
            run = analyse_traces(path)
            if number % REPORTED == 0:
                run.report("text")
                run.report("json")
                annotate_trace(path, path.with_name("annotated.json"), run)
    except FlopprofError as error:
        if not (error.problem.isprintable() and error.remedy):
            raise RuntimeError(f"not fit to be printed: {error.problem!r}") from error
        return type(error).__name__
    return "run"


def part_of(path: Path) -> dict[str, Any]:
    """Return the first events of a trace, and its header."""
    packed = path.read_bytes()
    trace: dict[str, Any] = json.loads(
        gzip.decompress(packed) if packed[:2] == b"\x1f\x8b" else packed
    )
    middle = len(trace["traceEvents"]) // 2
    trace["traceEvents"] = trace["traceEvents"][middle : middle + PART]
    return trace


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def _hangs(_signal: int, _frame: FrameType | None) -> None:
    raise TimeoutError(f"took over {LIMIT_S} s")


if __name__ == "__main__":
    sys.exit(main())
