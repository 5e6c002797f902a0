"""Have every tool count every case, two processes side by side; nothing is counted twice."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from peers import environments
from peers.tools import TOOLS, Tool

SCRIPTS = Path(__file__).resolve().parents[1]
PROCESSES = 2
CASE_S = 30.0  # of CPU


class Journal:
    """What was counted so far: a file with a line for each tool and case."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers: dict[tuple[str, str], dict[str, Any]] = {}
        self.lock = threading.Lock()
        if path.exists():
            for line in path.read_text().splitlines():
                row = json.loads(line)
                self.answers[row.pop("tool"), row.pop("case")] = row

    def forget(self, tools: Sequence[str]) -> None:
        """Drop the answers of tools, on disk, too."""
        if not tools:
            return
        self.answers = {key: row for key, row in self.answers.items() if key[0] not in tools}
        lines = [
            json.dumps({"tool": tool, "case": case, **row})
            for (tool, case), row in self.answers.items()
        ]
        self.path.write_text("".join(f"{line}\n" for line in lines))

    def add(self, tool: str, case: str, answer: dict[str, Any]) -> None:
        """Keep an answer, at once on disk."""
        with self.lock:
            self.answers[tool, case] = answer
            with self.path.open("a") as file:
                file.write(json.dumps({"tool": tool, "case": case, **answer}) + "\n")


def count_all(work: dict[str, list[str]], folder: Path, say: Callable[[str], None]) -> Journal:
    """Return the answers of each tool on the cases that it is given."""
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder / "answers.jsonl")
    say("building the C++ extension of two cases")
    library = environments.build_extension(folder / "extension")
    pythons = install(folder / "environments", say)
    left: Queue[tuple[Tool, list[str]]] = Queue()
    total = 0
    for name, cases in work.items():
        missing = [case for case in cases if (name, case) not in journal.answers]
        total += len(missing)
        for part in portions(missing):
            left.put((TOOLS[name], part))
    clock = Clock(total, say)

    def serve() -> None:
        while True:
            try:
                tool, cases = left.get_nowait()
            except Empty:
                return
            python = pythons[tool.name]
            if isinstance(python, str):
                for case in cases:
                    journal.add(tool.name, case, {"error": python, "version": ""})
                continue
            for case, answer in ask(tool, python, cases, folder, library):
                journal.add(tool.name, case, answer)
                clock.tick(f"{tool.name}: {case}")

    threads = [threading.Thread(target=serve) for _ in range(PROCESSES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return journal


def install(folder: Path, say: Callable[[str], None]) -> dict[str, Path | str]:
    """Return each tool's Python, or why it has none."""
    pythons: dict[str, Path | str] = {}
    for tool in TOOLS.values():
        say(f"installing {tool.package or tool.name}")
        try:
            pythons[tool.name] = environments.make(tool.package, folder)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            pythons[tool.name] = f"not installed: {error}"
    return pythons


def portions(cases: list[str], size: int = 400) -> Iterator[list[str]]:
    """Yield the cases in portions, so that the processes end at about the same time."""
    for start in range(0, len(cases), size):
        yield cases[start : start + size]


def ask(
    tool: Tool, python: Path, cases: list[str], folder: Path, library: Path
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a tool's answers to cases, from one process that forks."""
    variables = environments.environment(
        PYTHONPATH=os.pathsep.join((str(SCRIPTS.parent), str(SCRIPTS))),
        PEERS_EXTENSION=str(library),
        TORCHINDUCTOR_CACHE_DIR=str(folder / "inductor"),
        XDG_CACHE_HOME=str(folder / "cache"),
    )
    process = subprocess.Popen(
        [str(python), "-P", "-m", "peers.worker", tool.name, str(CASE_S)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=variables, cwd=folder,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    first = json.loads(process.stdout.readline() or '{"cannot": "its process ended at once"}')
    for case in cases:
        if "cannot" in first:
            yield case, {"error": f"not imported: {first['cannot']}", "version": ""}
            continue
        process.stdin.write(case + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        answer = json.loads(line) if line else {"error": "its process ended"}
        yield case, {**answer, "version": first["version"]}
    process.stdin.close()
    process.wait()


class Clock:
    """Says how many are done, and how long the rest will take."""

    def __init__(self, total: int, say: Callable[[str], None]) -> None:
        self.total = total
        self.done = 0
        self.say = say
        self.started = time.monotonic()

    def tick(self, text: str) -> None:
        """Count one more."""
        self.done += 1
        each_s = (time.monotonic() - self.started) / self.done
        left_min = each_s * (self.total - self.done) / 60
        self.say(f"{self.done} of {self.total}, {left_min:.0f} min left: {text}")


def say_on_terminal(text: str) -> None:
    """Write progress over the line before, or on lines of their own where nobody watches."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text[:100]}", end="", file=sys.stderr, flush=True)
    else:
        print(text, file=sys.stderr, flush=True)
