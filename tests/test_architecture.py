"""The drawing in ARCHITECTURE.md holds: who imports whom, sizes, and what stays out of start-up."""

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "flopprof"
TEXT = (ROOT / "ARCHITECTURE.md").read_text()
FILES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES = 500
MOST_LINES_OF_A_FUNCTION = 60


def module_name(path: Path, package: Path = PACKAGE) -> str:
    """Return the name of the module in a file, below flopprof: "trace.read", "trace"."""
    parts = path.relative_to(package).with_suffix("").parts
    if parts[-1] == "__init__" and len(parts) > 1:
        parts = parts[:-1]
    return ".".join(parts)


MODULES = {module_name(path): path for path in FILES}


@dataclass(frozen=True)
class Import:
    """One import of a module of ours: which, and where it stands."""

    module: str
    in_function: bool = False
    for_types: bool = False


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imports_of(code: str, modules: frozenset[str] = frozenset(MODULES)) -> set[Import]:
    """Return the imports of ours in code; `from a import b` is of a.b where that is a module."""
    found: set[Import] = set()

    def names(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
            return
        assert node.level == 0, "imports are absolute"
        for alias in node.names:
            below = f"{node.module}.{alias.name}"
            yield below if below.removeprefix("flopprof.") in modules else node.module or ""

    def visit(node: ast.AST, *, in_function: bool, for_types: bool) -> None:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for name in names(node):
                if name == "flopprof" or name.startswith("flopprof."):
                    module = name.removeprefix("flopprof").removeprefix(".") or "__init__"
                    found.add(Import(module, in_function, for_types))
        inside = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        typing = for_types or is_type_checking(node)
        for child in ast.iter_child_nodes(node):
            visit(child, in_function=inside, for_types=typing)

    visit(ast.parse(code), in_function=False, for_types=False)
    return found


@dataclass(frozen=True)
class Row:
    """A row of the "sees" table: a file or a folder, and what it may import, by place."""

    name: str
    sees: tuple[str, ...] = ()
    on_use: tuple[str, ...] = ()
    for_types: tuple[str, ...] = ()
    modules: tuple[str, ...] = field(default=(), compare=False)


def sees_table(text: str) -> list[Row]:
    """Return the rows of the table whose head is "| module | … | sees |", without modules."""
    (table,) = re.findall(
        r"^\| module \|.*\| sees \|\n\|[-|]+\|\n((?:\|.*\n)+)", text, re.MULTILINE
    )
    rows = []
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        (name,) = re.findall(r"`([^`]+)`", cells[0])
        parts = {"": (), "on use": (), "for types": ()} | {
            part.partition("`")[0].strip(): tuple(re.findall(r"`([^`]+)`", part))
            for part in cells[-1].split(";")
            if "`" in part
        }
        assert len(parts) == 3, f"only 'on use' and 'for types' may stand in: {line}"
        dotted = name.rstrip("/").replace("/", ".")
        rows.append(Row(dotted, parts[""], parts["on use"], parts["for types"]))
    return rows


def owner_of(module: str, rows: list[str]) -> str:
    """Return the row that a module belongs to: its own, else that of the nearest folder."""
    name = module
    while name not in rows and "." in name:
        name = name.rpartition(".")[0]
    return name if name in rows else ""


def faults(text: str, sources: dict[str, str]) -> list[str]:
    """Return where the table and the imports of these modules differ, each in a sentence."""
    rows = sees_table(text)
    names = [row.name for row in rows]
    modules = frozenset(sources)
    told = [f"two rows are {name}" for name in set(names) if names.count(name) > 1]
    told += [f"no row has {module}" for module in sources if not owner_of(module, names)]
    for place, row in enumerate(rows):
        own = [module for module in sources if owner_of(module, names) == row.name]
        if not own:
            told.append(f"the row {row.name} is of nothing")
        imports = {
            one
            for module in own
            for one in imports_of(sources[module], modules)
            if owner_of(one.module, names) != row.name
        }
        told += row_faults(row, imports, names, place)
    return told


def row_faults(row: Row, imports: set[Import], names: list[str], place: int) -> Iterator[str]:
    """Yield where a row and its modules' imports from other rows differ."""

    def are_of(entry: str) -> set[Import]:
        return {
            one
            for one in imports
            if one.module == entry or (entry in names and owner_of(one.module, names) == entry)
        }

    allowed: set[Import] = set()
    for entry in row.sees:
        real = {one for one in are_of(entry) if not one.for_types}
        if not real:
            yield f"{row.name} does not import {entry}: the table says that it sees it"
        if owner_of(entry, names) not in names[place + 1 :]:
            yield f"{row.name} sees {entry}, which is no row below it"
        allowed |= are_of(entry)
    for entry in row.on_use:
        real = {one for one in are_of(entry) if not one.for_types}
        if not real:
            yield f"{row.name} does not import {entry} on use"
        allowed |= {one for one in are_of(entry) if one.in_function or one.for_types}
    for entry in row.for_types:
        real = {one for one in are_of(entry) if one.for_types}
        if not real:
            yield f"{row.name} does not import {entry} for types"
        allowed |= real
    for one in sorted(imports - allowed, key=lambda one: one.module):
        yield f"{row.name} imports {one.module}, which the table does not say"


def test_modules_import_what_the_table_says_and_nothing_else():
    sources = {module: path.read_text() for module, path in MODULES.items()}

    assert faults(TEXT, sources) == []


HEAD = "\n| module | responsibility | sees |\n|---|---|---|\n"
SMALL = {"a": "from flopprof.b import c", "b": "", "b.c": "", "d": ""}
SMALL_TABLE = f"{HEAD}| `a` | . | `b` |\n| `b/` | . | nothing |\n| `d` | . | nothing |\n"


def test_a_table_that_says_what_is_imported_has_no_faults():
    assert faults(SMALL_TABLE, SMALL) == []
    assert faults(SMALL_TABLE.replace("`b` |", "`b.c` |"), SMALL) == []


@pytest.mark.parametrize(
    ("module", "code", "fault"),
    [
        ("d", "import flopprof.b.c", "d imports b.c, which the table does not say"),
        ("d", "def f():\n    from flopprof import b", "d imports b, which the table does not say"),
        (
            "d",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from flopprof.a import x",
            "d imports a, which the table does not say",
        ),
        ("b.c", "from flopprof.d import x", "b imports d, which the table does not say"),
        ("a", "", "a does not import b: the table says that it sees it"),
        ("e", "", "no row has e"),
    ],
)
def test_an_import_that_the_table_does_not_say_is_a_fault_and_so_is_a_stale_one(
    module, code, fault
):
    assert faults(SMALL_TABLE, SMALL | {module: code}) == [fault]


@pytest.mark.parametrize(
    ("was", "now", "fault"),
    [
        ("| `d` |", "| `b` | . | nothing |\n| `d` |", "two rows are b"),
        ("| `d` |", "| `e` | . | nothing |\n| `d` |", "the row e is of nothing"),
        ("`b` |\n", "`b.c`, `d` |\n", "a does not import d: the table says that it sees it"),
        ("`b` |\n", "`b`; on use `d` |\n", "a does not import d on use"),
        ("`b` |\n", "`b`; for types `d` |\n", "a does not import d for types"),
        ("`b` |\n", "for types `b` |\n", "a does not import b for types"),
        ("`b` |\n", "on use `b` |\n", "a imports b.c, which the table does not say"),
    ],
)
def test_a_row_that_is_not_so_is_a_fault(was, now, fault):
    assert was in SMALL_TABLE
    assert fault in faults(SMALL_TABLE.replace(was, now), SMALL)


def test_nothing_sees_a_row_above_it_but_on_use():
    upwards = {"a": "", "b": "from flopprof.a import x"}
    table = f"{HEAD}| `a` | . | nothing |\n| `b` | . | SEES |\n"
    on_use = upwards | {"b": "def f():\n    from flopprof.a import x"}

    assert faults(table.replace("SEES", "`a`"), upwards) == ["b sees a, which is no row below it"]
    assert faults(table.replace("SEES", "on use `a`"), on_use) == []


def test_no_module_imports_itself_around_a_circle_when_it_is_imported():
    needs = {
        module: {
            one.module
            for one in imports_of(path.read_text())
            if not (one.in_function or one.for_types) and one.module != module
        }
        for module, path in MODULES.items()
    }
    while True:
        leaves = {module for module, others in needs.items() if not others & set(needs)}
        if not leaves:
            break
        needs = {module: others for module, others in needs.items() if module not in leaves}

    assert needs == {}


WITNESSES = {"formulas.ops": "formulas.modules", "formulas.modules": "formulas.ops"}
"""Each witness, and the other one."""


def shares(code: str, package: str) -> bool:
    """Return whether code imports the package, or anything in it."""
    modules = (one.module for one in imports_of(code))
    return any(f"{module}.".startswith(f"{package}.") for module in modules)


@pytest.mark.parametrize("own", WITNESSES)
def test_the_two_witnesses_share_no_code(own):
    files = [path for module, path in MODULES.items() if f"{module}.".startswith(f"{own}.")]

    assert files
    for path in files:
        assert not shares(path.read_text(), WITNESSES[own]), path


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

    assert shares(f"{own}\n{code}\n", "formulas.ops")
    assert not shares("from flopprof.formulas import ops_of, op_formula", "formulas.ops")


FOR_OTHERS = {
    "__init__.__getattr__",
    "__init__.__dir__",
    "integrations.transformers.FlopsCallback",
    "pytest_plugin.pytest_addoption",
    "report.answer.json_block",
    "executed.launches.bare_kernel",
    "executed.rules.tensor_metrics",
}
"""What nothing in the package uses: Python calls it, or what is added does."""


def definitions(tree: ast.Module) -> list[ast.FunctionDef | ast.ClassDef]:
    """Return the module's own functions and classes that no decorator hands on."""
    kinds = ast.FunctionDef | ast.ClassDef
    return [node for node in tree.body if isinstance(node, kinds) and not hands_on(node)]


def hands_on(node: ast.FunctionDef | ast.ClassDef) -> bool:
    """Return whether a decorator registers it: those that only change it are named here."""
    names = {ast.unparse(one).partition("(")[0] for one in node.decorator_list}
    return bool(names - {"dataclass", "cache", "contextmanager", "overload", "lru_cache"})


def names_used(tree: ast.AST) -> Counter[str]:
    """Return how often each name is used: read, as attribute, in a text that is no docstring."""
    used: Counter[str] = Counter()
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            used[node.id] += 1
        elif isinstance(node, ast.Attribute):
            used[node.attr] += 1
        elif isinstance(node, ast.Constant) and id(node) not in docstrings:
            used.update(re.findall(r"\w+", node.value) if isinstance(node.value, str) else ())
    return used


def dead_names(sources: dict[str, str]) -> list[str]:
    """Return the functions and classes that nothing uses but themselves."""
    trees = {module: ast.parse(code) for module, code in sources.items()}
    used: Counter[str] = sum((names_used(tree) for tree in trees.values()), Counter())
    return [
        f"{module}.{node.name}"
        for module, tree in trees.items()
        for node in definitions(tree)
        if used[node.name] == names_used(node)[node.name]
    ]


def test_nothing_is_defined_that_nothing_uses():
    scripts = {path.stem: path.read_text() for path in (ROOT / "scripts").glob("*.py")}
    sources = {module: path.read_text() for module, path in MODULES.items()} | scripts

    assert set(dead_names(sources)) <= FOR_OTHERS


@pytest.mark.parametrize(
    ("code", "dead"),
    [
        ("def f(): pass", ["a.f"]),
        ("def f(): f()", ["a.f"]),
        ("class C:\n    def m(self): return C", ["a.C"]),
        ("@dataclass\nclass C: pass", ["a.C"]),
        ("@command('x')\ndef f(): pass", []),
        ("def f(): pass\ndef g(): f()\nX = {'g': 1}", []),
        ('def f():\n    """As f does."""', ["a.f"]),
    ],
)
def test_what_only_uses_itself_is_dead(code, dead):
    assert dead_names({"a": code}) == dead
    assert dead_names({"a": code, "b": "import a\na.f()\na.C()"}) == []


def test_no_file_is_over_500_lines():
    for path in FILES:
        assert len(path.read_text().splitlines()) <= MOST_LINES, path


def test_no_function_is_over_60_lines():
    long = [
        f"{module}.{node.name}"
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > MOST_LINES_OF_A_FUNCTION
    ]

    assert long == []


# A file that registers itself is found by its folder: "Adding things" names that.
REGISTERED = re.compile(r"^@(command|report_format|json_block|device|loader)\(", re.MULTILINE)


def test_the_drawing_is_at_most_400_lines_and_shows_each_file_in_its_room():
    layout = TEXT.partition("## Layout")[2].partition("\n## ")[0]
    words = set(re.findall(r"[\w.]+", layout))

    assert len(TEXT.splitlines()) <= 400
    for module, path in MODULES.items():
        is_entry = path.name in ("__init__.py", "__main__.py") or module.startswith("cli.")
        if not is_entry and not REGISTERED.search(path.read_text()):
            assert words & {path.name, path.stem}, f"the layout does not show {module}"
    for path in PACKAGE.rglob("*.csv"):
        assert path.name in words or f"{path.stem}.csv" in words, path


@pytest.mark.parametrize(
    "code",
    [
        "import flopprof",
        "import flopprof.cli; flopprof.cli.make_parser('--help').format_help()",
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
        "import sys, flopprof.cli; flopprof.cli.make_parser('--help').format_help();"
        "assert not {'pandas', 'numpy', 'matplotlib', 'torch'} & set(sys.modules)"
    )

    subprocess.run([sys.executable, "-c", code], check=True)
