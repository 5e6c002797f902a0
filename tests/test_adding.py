"""ARCHITECTURE.md, "Adding things": each file or row is enough, tried in a copy of the package."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROWS = {
    "formulas/ops/per_element.csv": "made_up_sum,elementwise,output,3,1,,,,",
    "formulas/free.csv": "made_up_view,view,,",
    "devices/trace_categories.csv": "made_up_kernel,someone,compute",
}
FILES = {
    "formulas/ops/made_up.py": (
        "from flopprof.formulas import OpCall, Work, op_formula\n"
        '@op_formula("aten::made_up_op")\n'
        "def made_up(call: OpCall) -> Work:\n"
        '    """Seven of them."""\n'
        "    return Work(vector_flops=7)\n"
    ),
    "devices/made_up.py": (
        "from flopprof.devices import device\n"
        '@device("made_up")\n'
        "class MadeUp:\n"
        "    def __init__(self, name): self.torch_device = name\n"
        "    @classmethod\n"
        '    def matches(cls, name): return name == "made_up"\n'
    ),
    "model/made_up.py": (
        "from flopprof.model import Loaded, Request, loader\n"
        '@loader("made_up")\n'
        "def load_made_up(request: Request) -> Loaded:\n"
        "    from torch import nn\n"
        '    return Loaded(nn.Linear(4, 5), "made up", "file of", input_hint="2x4")\n'
    ),
    "report/made_up.py": (
        "from flopprof.report import report_format\n"
        '@report_format("made_up", ".made")\n'
        "def made_up(run): return run.sites.op.iloc[0]\n"
        "from flopprof.report.answer import json_block\n"
        "from flopprof.run import Run\n"
        '@json_block("made_up_block")\n'
        "def made_up_block(run: Run) -> int:\n"
        '    """Seven of them."""\n'
        "    return 7\n"
    ),
    "cli/made_up.py": (
        "from flopprof.cli import command\n"
        '@command("made_up")\n'
        "def made_up(parser):\n"
        '    """Be made up."""\n'
        '    return lambda args: print("made up") or 0\n'
    ),
}


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """Return a folder with a copy of the package in which one of each kind was added."""
    folder = tmp_path_factory.mktemp("copy")
    package = folder / "flopprof"
    shutil.copytree(ROOT / "flopprof", package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, code in FILES.items():
        (package / name).write_text(code)
    for name, row in ROWS.items():
        with (package / name).open("a") as file:
            file.write(f"{row}\n")
    kinds = package / "model" / "kinds.csv"
    head, *others = kinds.read_text().splitlines(keepends=True)
    kinds.write_text("".join([head, "head,\\AMADE UP,made_up,a made-up file,\n", *others]))
    columns = package / "columns.csv"
    lines = columns.read_text().splitlines(keepends=True)
    place = next(i for i, line in enumerate(lines) if line.startswith("sites,reason,"))
    lines.insert(place, "sites,made_up_frac,float?,A column.\n")
    columns.write_text("".join(lines))
    (folder / "model.made").write_bytes(b"MADE UP")
    return folder


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        ("made_up", "made up"),
        ("formulas aten::made_up_op", "Seven of them."),
        ("formulas aten::made_up_sum", "3 FLOPs"),
        ("formulas aten::made_up_view", "0 FLOPs: view"),
        ("report RUN --format made_up", "conv2d"),
        ("report RUN --format csv", "made_up_frac"),
        ("report RUN --format json", '"made_up_block": 7'),
        ("report --schema", '"description": "Seven of them."'),
        # [2,4] @ [4,5]: 2·5 outputs × 4 multiply-adds × 2 = 80 FLOPs.
        ("count model.made", "matmul 80 FLOPs"),
    ],
)
def test_one_file_or_row_is_enough_for_the_command_line(extended, arguments, printed):
    run = str(ROOT / "tests" / "runs" / "small.flopprof")
    command = [sys.executable, "-m", "flopprof", *arguments.replace("RUN", run).split()]

    # -m puts the current folder on the path, and flopprof takes it off: PYTHONPATH has it, too.
    env = {"PYTHONPATH": str(extended), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=extended, env=env, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert printed in done.stdout


def test_one_file_or_row_is_enough_for_devices_and_traces(extended):
    code = (
        "from flopprof.devices import find_device\n"
        "from flopprof.devices.categories import category_kind\n"
        "print(find_device('made_up').torch_device, category_kind('made_up_kernel'))\n"
    )
    env = {"PYTHONPATH": str(extended), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=extended, env=env, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr
    assert "made_up compute" in done.stdout


def test_the_table_names_every_place_that_is_tried_here():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    table = text.partition("## Adding things")[2].partition("\n## ")[0]

    for name in (*ROWS, *{Path(file).parent for file in FILES}, "model/kinds.csv", "columns.csv"):
        assert re.search(rf"`(flopprof/)?{re.escape(str(name))}/?`", table), name
