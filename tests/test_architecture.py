"""The drawing in ARCHITECTURE.md holds: who imports whom, sizes, and what stays out of start-up."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "flopprof"

# Top may import down, never sideways (but within itself) or up.
LEVELS = [
    ["__main__"],
    ["cli"],
    ["api", "elsewhere"],
    ["assemble"],
    ["report"],
    ["run"],
    ["judge"],
    ["capture"],
    ["trace", "ceilings"],
    ["devices", "formulas"],
    ["model"],
    ["metafile"],
    ["tables", "registry", "dtypes", "files", "provenance"],
    ["units"],
    ["errors"],
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
# `run` offers reports and charts as methods, imported on use.
ALLOWED = {("run", "report")}
FILES = sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flopprof"):
            names = [node.module or ""]
            if node.module == "flopprof":
                names = [f"flopprof.{alias.name}" for alias in node.names]
            found |= {name.split(".")[1] for name in names if "." in name}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("flopprof.")}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_import_downwards_only(path):
    part = part_of(path)
    if part == "__init__":
        return
    for other in imports(path) - {part, "__version__"}:
        assert (part, other) in ALLOWED or LEVEL[other] > LEVEL[part], f"{part} imports {other}"


def test_the_two_witnesses_share_no_code():
    modules = ast.parse((PACKAGE / "formulas" / "modules.py").read_text())
    text = ast.dump(modules)

    assert "formulas.ops" not in text
    for path in (PACKAGE / "formulas" / "ops").glob("*.py"):
        assert "formulas.modules" not in ast.dump(ast.parse(path.read_text()))


def test_no_file_is_over_500_lines():
    for path in FILES:
        assert len(path.read_text().splitlines()) <= 500, path


@pytest.mark.parametrize(
    "code",
    [
        "import flopprof",
        "import flopprof.cli; flopprof.cli._parser().format_help()",
        "from flopprof.trace import read",
        "from flopprof.run import Run; import flopprof.report, flopprof.report.chart",
        "from flopprof.formulas import load_op_formulas; load_op_formulas()",
        "from flopprof.run import Run; "
        f"Run.load({str(PACKAGE.parent / 'tests/runs/small.flopprof')!r}).report('html')",
    ],
)
def test_start_up_leaves_torch_alone(code):
    check = f"import sys; {code}; assert 'torch' not in sys.modules"

    subprocess.run([sys.executable, "-c", check], check=True)


def test_help_needs_no_pandas_either():
    code = (
        "import sys, flopprof.cli; flopprof.cli._parser().format_help();"
        "assert not {'pandas', 'numpy', 'matplotlib', 'torch'} & set(sys.modules)"
    )

    subprocess.run([sys.executable, "-c", code], check=True)
