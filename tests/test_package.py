"""What is installed is all that the package needs, and the shell completes its commands."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from setuptools import Distribution

ROOT = Path(__file__).parents[1]


def installed_files(monkeypatch):
    """Return what a wheel has of the package, by pyproject.toml alone: nothing is built."""
    monkeypatch.chdir(ROOT)
    distribution = Distribution({"script_name": "pyproject.toml"})
    distribution.parse_config_files()
    distribution.include_package_data = False  # which would write the manifest beside
    build = distribution.get_command_obj("build_py")
    build.ensure_finalized()
    files = {Path(path) for _, _, path in build.find_all_modules()}
    for _, folder, _, names in build.data_files:
        files |= {Path(folder) / name for name in names}
    return {str(path) for path in files}


@pytest.mark.filterwarnings("ignore:Support for .*tool.setuptools")  # setuptools 65: it is beta
def test_a_wheel_has_each_file_of_the_package(monkeypatch):
    needed = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "flopprof").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }

    installed = installed_files(monkeypatch)

    assert needed - installed == set()
    assert {"flopprof/py.typed", "flopprof/guide/tutorial.md"} <= installed
    assert "flopprof/executed/stepping.c" in installed
    assert not [path for path in installed if not path.startswith("flopprof/")]


def test_the_project_says_what_it_runs_on():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert "Typing :: Typed" in project["classifiers"]
    assert "urls" not in project  # there are none yet
    assert not [each for each in project["classifiers"] if "MacOS" in each]  # not tried
    for name in ("stepping", "completion", "onnx", "xlsx", "parquet"):
        assert project["optional-dependencies"][name]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("flopprof ver", {"verify"}),
        ("flopprof verify --coun", {"--counters"}),
        ("flopprof report --no-adv", {"--no-advice"}),
    ],
)
def test_the_shell_completes_commands_and_options(line, expected, tmp_path):
    pytest.importorskip("argcomplete")
    answer = tmp_path / "answer"
    asked = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "_ARGCOMPLETE_IFS": "\n",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": "9",
    }

    subprocess.run([sys.executable, "-m", "flopprof"], env=os.environ | asked, check=True)

    assert set(answer.read_text().split()) == expected
