"""The command: a process per stage, the budget, and a summary."""

import argparse
import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acceptance.journal import FAILED, PASSED, SKIPPED, Part, plain, write_whole
from acceptance.stage import ROOT
from acceptance.worker import ALL_PASSED, STAGES, UNFINISHED, WHOLE_STAGE

SOME_FAILED = 1
UNUSABLE = 2  # no CUDA, a package that is missing, another device's output
UNIT_LIMIT_S = {"tests": 240, "ceilings": 90, "models": 240, "counters": 420, "peers": 180}
GRACE_S = 3.0  # after the budget, for a unit that is about to end
# Modules of packages that are called otherwise.
MODULES = {"nvidia-ml-py": "pynvml"}


@dataclass(frozen=True, slots=True)
class Job:
    """One run of the command.

    Attributes:
        device: "cuda" or "cpu".
        output: The folder of what is found.
        only: Names of units, or parts of names; all if empty.
        deadline: Time at which the budget ends.
        run: The run's name.
        environment: What its processes run in.
    """

    device: str
    output: Path
    only: tuple[str, ...]
    deadline: float
    run: str
    environment: dict[str, str]


def main(arguments: Sequence[str]) -> int:
    """Run the stages that are asked for, and return the exit code."""
    args = _parser().parse_args(arguments)
    args.output.mkdir(parents=True, exist_ok=True)
    with _environment(args.wheels) as environment:
        job = Job(
            device="cpu" if args.rehearse else "cuda",
            output=args.output.resolve(),
            only=tuple(args.only),
            deadline=time.time() + args.budget,
            run=time.strftime("%Y-%m-%dT%H:%M:%S"),
            environment=environment,
        )
        problem = _missing_packages(environment) or _note_facts(job)
        if problem:
            print(f"gpu_acceptance: {problem}", file=sys.stderr)
            return UNUSABLE
        finished = {}
        for stage in args.stage or STAGES:
            if args.again:
                (job.output / f"{stage}.jsonl").unlink(missing_ok=True)
            finished[stage] = supervise(stage, job)
    return _sum_up(job, finished)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gpu_acceptance",
        description="See on a GPU what can be seen only there. What passed is not repeated.",
        epilog="exit codes: 0 all passed, 1 something failed, 2 nothing could run, "
        "5 the budget ended first",
    )
    parser.add_argument("--here", action="store_true", help="use the interpreter as it is, no venv")
    parser.add_argument(
        "--wheels", type=Path, metavar="DIR", help="first install the wheels that lie there"
    )
    parser.add_argument(
        "--stage", action="append", choices=STAGES, help="only this one; again for several"
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="TEXT",
        help="only tests, models, … whose name has this text; again for several",
    )  # fmt: skip
    parser.add_argument(
        "--budget", type=float, default=math.inf, metavar="SECONDS", help="stop in time"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("gpu_acceptance.out"), metavar="DIR",
        help="folder of what is found, 8 files at most (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--again", action="store_true", help="repeat what passed, too")
    parser.add_argument("--rehearse", action="store_true", help="all of it on the CPU, small")
    return parser


@contextmanager
def _environment(wheels: Path | None) -> Iterator[dict[str, str]]:
    """Yield the environment of the stages' processes, with the wheels in a folder of their own."""
    # What an interpreter's packages bring as commands (ninja), and where nvcc and ncu usually are.
    places = [str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/local/cuda/bin"]
    path = os.pathsep.join(filter(None, places))
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg", "PATH": path}
    if wheels is None:
        yield environment
        return
    site = Path(tempfile.mkdtemp(prefix="flopprof-wheels-"))
    try:
        names = sorted({path.name.split("-")[0] for path in wheels.glob("*.whl")})
        if not names:
            print(f"gpu_acceptance: {wheels} holds no wheels", file=sys.stderr)
        elif subprocess.run(_pip(names, wheels, site), check=False).returncode != 0:
            print(f"gpu_acceptance: not all wheels of {wheels} fit", file=sys.stderr)
        imported = f"{site}{os.pathsep}{environment.get('PYTHONPATH', '')}"
        yield environment | {"PYTHONPATH": imported}
    finally:
        shutil.rmtree(site, ignore_errors=True)


def _pip(names: Sequence[str], wheels: Path, site: Path) -> list[str]:
    options = ["--quiet", "--disable-pip-version-check", "--no-index", "--no-deps", "--no-compile"]
    places = ["--find-links", str(wheels.resolve()), "--target", str(site)]
    return [sys.executable, "-m", "pip", "install", *options, *places, *names]


def _missing_packages(environment: dict[str, str]) -> str:
    """Return which packages that flopprof needs are not there, and what to do; "" if none."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], "pytest", "torchvision", "transformers"]
    names = [text.partition(">")[0].strip() for text in needed]
    modules = {name: MODULES.get(name, name) for name in names}
    code = f"import importlib.util as u; print(*(n for n, m in {modules!r}.items() if not u.find_spec(m)))"  # noqa: E501
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    missing = done.stdout.split()
    if not missing:
        return ""
    return (
        f"not installed here: {', '.join(missing)}; carry their wheels: "
        f"pip download --only-binary :all: --no-deps -d wheels {' '.join(missing)}, "
        "then --wheels wheels"
    )


def _note_facts(job: Job) -> str:
    """Write what the stages run on; return why they cannot, or ""."""
    path = job.output / "acceptance.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    if before and before["device"] != job.device:
        return f"{job.output} holds what was found on {before['device']}: give another --output"
    done = subprocess.run(
        [sys.executable, "-P", "-m", "acceptance.facts", job.device],
        env=job.environment, stdout=subprocess.PIPE, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        return f"the device could not be asked (exit code {done.returncode}; see above)"
    facts = json.loads(lines[-1])
    if facts.get("reason"):
        return f"{facts['reason']}; nothing was run (--rehearse runs all of it on the CPU)"
    runs = [*before.get("runs", []), {"run": job.run, **facts}]
    _write_json(path, {"device": job.device, "runs": runs, "stages": before.get("stages", {})})
    return ""


def supervise(stage: str, job: Job) -> bool:
    """Run a stage in processes of their own; return whether it was done before the budget ended."""
    path = job.output / f"{stage}.jsonl"
    while time.time() < job.deadline:
        code, why = _watch(_start(stage, job), path, job, UNIT_LIMIT_S[stage])
        part = Part(path, job.run)
        begun = list(part.under_way())
        for unit in begun:
            if why == "budget":
                part.forget(unit)  # it was not reached
            else:
                part.end(unit, FAILED, reason=why or f"its process ended with {_ending(code)}")
        if code == UNFINISHED or why == "budget":
            return False
        if code == ALL_PASSED:
            return True
        if not begun:  # it would end so each time
            if WHOLE_STAGE not in part.rows:
                part.end(WHOLE_STAGE, FAILED, reason=f"its process ended with {_ending(code)}")
            return True
    return False


def _start(stage: str, job: Job) -> "subprocess.Popen[bytes]":
    deadline = job.deadline if math.isfinite(job.deadline) else time.time() + 1e9
    told = {
        "stage": stage,
        "device": job.device,
        "output": str(job.output),
        "deadline": deadline,
        "only": list(job.only),
        "run": job.run,
    }
    command = [sys.executable, "-P", "-m", "acceptance.worker", json.dumps(told)]
    # Its stdout is no result: models and compilers print there.
    return subprocess.Popen(
        command, env=job.environment, cwd=ROOT, stdout=sys.stderr, start_new_session=True
    )


def _watch(
    process: "subprocess.Popen[bytes]", path: Path, job: Job, limit_s: float
) -> tuple[int, str]:
    """Wait for a stage's process; return its exit code, and why it was ended, "" if it was not."""
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(timeout=0.5), ""
            now = time.time()
            if now > job.deadline + GRACE_S:
                return _end(process), "budget"
            begun = Part(path, job.run).under_way().values()
            if begun and now - min(begun) > limit_s:
                return _end(process), f"it took longer than {limit_s} s and was ended"
    except BaseException:
        _end(process)
        raise


def _end(process: "subprocess.Popen[bytes]") -> int:
    """End a process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _sum_up(job: Job, finished: dict[str, bool]) -> int:
    """Print what was found, note it beside the facts, and return the exit code.

    Args:
        job: The run of the command.
        finished: Stage → whether it was done before the budget ended.
    """
    path = job.output / "acceptance.json"
    known = json.loads(path.read_text())
    failed = 0
    for stage, is_finished in finished.items():
        part = Part(job.output / f"{stage}.jsonl", job.run)
        counts = part.counts()
        failed += counts[FAILED]
        seconds = sum(row.get("seconds", 0) for row in part.rows.values())
        facts = {"seconds": seconds, "finished": is_finished, "run": job.run}
        known["stages"][stage] = counts | facts
        left = "" if is_finished else "  the budget ended first"
        print(
            f"{stage:9} {counts[PASSED]:4} passed {counts[FAILED]:4} failed "
            f"{counts[SKIPPED]:4} skipped {seconds:7.0f} s{left}"
        )
        for row in part.rows.values():
            if row["outcome"] == FAILED:
                last = (row["reason"].strip().splitlines() or [""])[-1]
                print(f"    {row['unit']}: {last[:200]}")
    _write_json(path, known)
    print(f"written to {job.output}")
    if failed:
        return SOME_FAILED
    return ALL_PASSED if all(finished.values()) else UNFINISHED


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_whole(path, (json.dumps(plain(content), indent=1) + "\n").encode())
