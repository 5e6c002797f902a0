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
    ["api"],
    ["assemble"],
    ["report"],
    ["run"],
    ["judge"],
    ["capture"],
    ["trace", "ceilings"],
    ["devices", "formulas"],
    ["model"],
    ["saved"],
    ["metafile"],
    ["tables", "registry", "dtypes", "files", "provenance", "settings"],
    ["units"],
    ["errors"],
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
# `run` offers reports and charts as methods, imported on use; settings name the type `Training`.
ALLOWED = {("run", "report"), ("settings", "capture"), ("settings", "model")}
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


def imports_of(code: str) -> set[str]:
    """Return the modules that code imports, `from a import b` being a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    return found


def shares(code: str, package: str) -> bool:
    """Return whether code imports the package, or anything in it."""
    return any(f"{name}.".startswith(f"{package}.") for name in imports_of(code))


WITNESSES = {
    "flopprof.formulas.ops": sorted((PACKAGE / "formulas").glob("modules*"))
    + sorted((PACKAGE / "formulas" / "modules").glob("*.py")),
    "flopprof.formulas.modules": sorted((PACKAGE / "formulas" / "ops").glob("*.py")),
}
"""The other witness of each: its package, and the files that must not import it."""


@pytest.mark.parametrize("other", WITNESSES)
def test_the_two_witnesses_share_no_code(other):
    files = [path for path in WITNESSES[other] if path.suffix == ".py"]

    assert files
    for path in files:
        assert not shares(path.read_text(), other), path


@pytest.mark.parametrize(
    "code",
    [
        "from flopprof.formulas import ops",
        "from flopprof.formulas import ops as o, Work",
        "from flopprof.formulas.ops import matmul",
        "import flopprof.formulas.ops.matmul",
        "def f():\n    from flopprof.formulas.ops.matmul import addmm",
    ],
)
def test_a_witness_that_imports_the_other_is_caught(code):
    own = (PACKAGE / "formulas" / "modules.py").read_text()

    assert shares(f"{own}\n{code}\n", "flopprof.formulas.ops")
    assert not shares("from flopprof.formulas import ops_of, op_formula", "flopprof.formulas.ops")


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
