"""Write what is made of the package itself: the guide's reference pages, and schema.json.

python scripts/make_guide.py          rewrites them
python scripts/make_guide.py --check  exits with 1 where one is not what it would write
"""

import argparse
import csv
import inspect
import json
import re
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import flopprof
from flopprof.cli import make_parser
from flopprof.cli.formulas import entries
from flopprof.report.answer import schema

PACKAGE = Path(__file__).resolve().parents[1] / "flopprof"
_ADDRESS = re.compile(r"<function (\w+) at 0x[0-9a-f]+>")  # a default that is a function
NOTE = "This page is written by `scripts/make_guide.py`.\n"


def cli_page() -> str:
    """Return the reference of the command line, out of its parser."""
    parts = ["# Commands and options\n", NOTE]
    parts.append(
        "Every command takes `--json` (one object on stdout) and `--help`. Exit codes: 0 done; 1 a "
        "check failed; 2 usage; 3 not a model, trace or run, or damaged; 4 refused, since the file "
        "would run code; 5 the architecture is unknown; 6 the model raised, or memory ran out; "
        "70 our own bug; 130 interrupted.\n"
    )
    for name, parser in make_parser().subcommands.items():
        parts += _command(name, parser)
    return "\n".join(parts)


def _command(name: str, parser: ArgumentParser) -> list[str]:
    lines = [f"## flopprof {name}\n", f"{parser.description}\n"]
    if parser.epilog:
        lines.append(f"```sh\n{parser.epilog.removeprefix('example: ')}\n```\n")
    lines += ["| argument | meaning |", "|---|---|"]
    for action in parser._actions:
        meaning = (action.help or "") % (vars(action) | {"prog": parser.prog})
        lines.append(f"| `{_spelling(action)}` | {_cell(meaning)} |")
    return [*lines, ""]


def _spelling(action: argparse.Action) -> str:
    """Return how an argument is typed: "--dtype`, `-d DTYPE" within its backquotes."""
    takes = "" if action.nargs == 0 else _metavar(action)
    names = "`, `".join(action.option_strings)
    return _cell(f"{names} {takes}".strip())


def _metavar(action: argparse.Action) -> str:
    if isinstance(action.metavar, str):
        return action.metavar
    if action.choices:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return action.dest.upper()


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def api_page() -> str:
    """Return the reference of the public names, out of their docstrings."""
    parts = ["# Public names\n", NOTE, "```python\nimport flopprof\n```\n"]
    for name in flopprof.__all__:
        parts += _public(name, getattr(flopprof, name))
    parts += [
        "## Settings\n",
        "The options that `load`, `count_flops` and `profile` take by keyword.\n",
    ]
    from flopprof.settings import Settings

    parts.append(_docstring(Settings))
    return "\n".join(parts)


def _public(name: str, item: Any) -> list[str]:
    parts = [f"## {name}\n", _signature(name, item), _docstring(item)]
    if inspect.isclass(item):
        for attribute, member in inspect.getmembers(item):
            if attribute.startswith("_") or attribute not in vars(item):
                continue
            doc = inspect.getdoc(member)
            if doc and (callable(member) or isinstance(member, property)):
                parts += [f"### {name}.{attribute}\n", f"{_docstring(member)}"]
    return parts


def _signature(name: str, item: Any) -> str:
    try:
        signature = _ADDRESS.sub(r"\1", str(inspect.signature(item)))
    except (TypeError, ValueError):
        return ""
    return f"```\n{name}{signature}\n```\n"


def _docstring(item: Any) -> str:
    """Return a docstring as Markdown: its sections are bold, their entries a list."""
    lines = []
    in_section = False
    for line in (inspect.getdoc(item) or "").splitlines():
        if line.endswith(":") and line[:-1] in (
            "Args",
            "Raises",
            "Returns",
            "Attributes",
            "Yields",
        ):
            lines += [f"**{line[:-1]}**", ""]
            in_section = True
        elif in_section and line.startswith("    ") and not line.startswith("     "):
            name, colon, meaning = line.strip().partition(": ")
            lines.append(f"- `{name}`{colon}{meaning}" if colon else f"- {line.strip()}")
        elif in_section and line.startswith("     "):
            lines.append("  " + line.strip())
        else:
            in_section = in_section and not line
            lines.append(line)
    return "\n".join(lines) + "\n"


def tables_page() -> str:
    """Return the reference of the tables, out of columns.csv."""
    parts = ["# Tables and columns\n", NOTE]
    parts.append(
        "`run.sites`, `run.ops` and so on are pandas DataFrames. Units are in the names. NaN is "
        "not known; 0 is known to be zero. A type that ends in `?` may be missing in older runs.\n"
    )
    with (PACKAGE / "columns.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["column"]:
                parts.append(f"| `{row['column']}` | {row['type']} | {_cell(row['meaning'])} |")
            else:
                parts += [f"\n## {row['table']}\n", f"{row['meaning']}\n"]
                parts += ["| column | type | meaning |", "|---|---|---|"]
    return "\n".join(parts) + "\n"


def json_page() -> str:
    """Return the reference of what --json prints, out of its schema."""
    described = schema()
    parts = ["# What --json prints\n", NOTE, f"{described['description']}\n"]
    parts.append(
        "`run`, `count`, `trace` and `report` print one object, an Answer or a Failure; "
        "`verify` prints a SteppedAnswer of what is stepped, and a VerifiedAnswer of counters and "
        "of a run with what was executed, in place of the first. "
        "`flopprof report --schema` prints its JSON Schema.\n"
    )
    for name, definition in described["$defs"].items():
        if "properties" not in definition:
            continue
        parts += [f"## {name}\n"]
        if "description" in definition:
            parts.append(f"{definition['description']}\n")
        parts += ["| key | type | meaning |", "|---|---|---|"]
        for key, value in definition["properties"].items():
            meaning = _cell(value.get("description", ""))
            parts.append(f"| `{key}` | {_cell(_type(value))} | {meaning} |")
        parts.append("")
    return "\n".join(parts)


def _type(value: dict[str, Any]) -> str:
    """Return a schema's type in words: "integer or null", "list of site"."""
    if "$ref" in value:
        return str(value["$ref"]).rpartition("/")[2]
    if "anyOf" in value or "oneOf" in value:
        return " or ".join(map(_type, value.get("anyOf") or value["oneOf"]))
    if "enum" in value:
        return " or ".join(map(str, value["enum"]))
    if "const" in value:
        return str(value["const"])
    kind = value.get("type", "any")
    if isinstance(value.get("additionalProperties"), dict):
        return f"object of {_type(value['additionalProperties'])}"
    if kind == "array":
        return f"list of {_type(value.get('items', {}))}"
    return " or ".join(kind) if isinstance(kind, list) else str(kind)


def formulas_page() -> str:
    """Return the reference of the formulas: name, kind, definition."""
    parts = ["# Formulas\n", NOTE]
    parts.append("`flopprof formulas NAME` prints a definition in full, with its file.\n")
    kinds: dict[str, list[dict[str, Any]]] = {}
    for entry in entries():
        kinds.setdefault(entry["kind"], []).append(entry)
    for kind, members in sorted(kinds.items()):
        parts.append(f"## {kind}\n")
        parts += _without_arithmetic(members) if kind == "free" else _counted(members)
        parts.append("")
    return "\n".join(parts)


def _counted(members: list[dict[str, Any]]) -> list[str]:
    """Return a table of definitions, each with all names that it holds for."""
    names: dict[str, list[str]] = {}
    for entry in members:
        definition = entry["doc"].partition("\n\n")[0].replace("\n", " ")
        figures = re.match(r"\d.*?(?=: [a-z])", definition)  # what follows is said of all such rows
        names.setdefault(figures[0] if figures else definition, []).append(f"`{entry['name']}`")
    rows = [f"| {', '.join(group)} | {_cell(definition)} |" for definition, group in names.items()]
    return ["| names | definition |", "|---|---|", *rows]


def _without_arithmetic(members: list[dict[str, Any]]) -> list[str]:
    """Return the ops of 0 FLOPs by the reason why."""
    reasons: dict[str, list[str]] = {}
    for entry in members:
        reasons.setdefault(entry["doc"].removeprefix("0 FLOPs: "), []).append(entry["name"])
    return [
        f"- {why}: {', '.join(f'`{name}`' for name in names)}" for why, names in reasons.items()
    ]


PAGES = {
    "api": api_page,
    "cli": cli_page,
    "formulas": formulas_page,
    "json": json_page,
    "tables": tables_page,
}


def main() -> int:
    """Write the pages, or compare them."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 where pages differ")
    only_check = parser.parse_args().check
    stale = []
    files = {PACKAGE / "guide" / f"{topic}.md": write for topic, write in PAGES.items()}
    files[PACKAGE / "report" / "schema.json"] = lambda: json.dumps(schema(), indent=1)
    for path, write in files.items():
        text = write().rstrip() + "\n"
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(path.name)
        if not only_check:
            path.write_text(text, encoding="utf-8")
    if stale:
        print(("differ: " if only_check else "written: ") + ", ".join(stale))
    return 1 if only_check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
