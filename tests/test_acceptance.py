"""What is run on a machine with a GPU, rehearsed on the CPU: a case or two of each stage."""

import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "scripts"


@pytest.fixture(autouse=True)
def _scripts_are_importable(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))


def acceptance(*arguments: str, output: Path) -> "subprocess.CompletedProcess[str]":
    path = os.pathsep.join([str(ROOT), str(SCRIPTS), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-P", "-m", "acceptance", "--here", *arguments, "--output", str(output)],
        env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def rows_of(path: Path) -> dict[str, dict[str, object]]:
    rows = map(json.loads, path.read_text().splitlines())
    return {row["unit"]: row for row in rows}
