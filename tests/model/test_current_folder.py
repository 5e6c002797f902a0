"""Files that lie where the command is run are not imported in place of Python's own."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "name", ["typing", "random", "torchvision", "torch", "argparse", "json", "pickle", "numpy"]
)
@pytest.mark.parametrize("command", ["--version", "inspect"])
def test_a_hostile_file_in_the_current_folder_is_not_imported(name, command, tmp_path):
    (tmp_path / f"{name}.py").write_text("open('was_executed', 'w')\nraise SystemExit(9)\n")
    (tmp_path / "model.pth").write_bytes(b"cat\ndog\nemu\n")
    arguments = [command] if command == "--version" else [command, "model.pth"]

    done = subprocess.run(
        [sys.executable, "-m", "flopprof", *arguments],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "was_executed").exists()


def test_the_package_itself_is_found_in_the_current_folder():
    root = Path(__file__).resolve().parents[2]

    done = subprocess.run(
        [sys.executable, "-m", "flopprof", "--version"],
        cwd=root, capture_output=True, text=True, timeout=120, check=False, env={"PATH": ""},
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
