"""`flopprof formulas`: what is covered, and how each count is defined."""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from typing import Any

from flopprof.cli import Handler, command, print_json

_FIGURES = ("flops", "per_element", "per_row", "kind")


@command("formulas")
def formulas(parser: ArgumentParser) -> Handler:
    """List every op and module whose FLOPs are known, or explain one.

    example: flopprof formulas aten::addmm
    """
    parser.add_argument("name", nargs="?", metavar="NAME", help="an op or module, or part of one")
    parser.add_argument("--formulas", metavar="FILE.py", help="file with formulas of your own")

    def handle(args: Namespace) -> int:
        from flopprof.errors import UsageError
        from flopprof.formulas.external import load_formulas
        from flopprof.run import SCHEMA_VERSION

        if args.formulas:
            load_formulas(args.formulas)
        all_entries = list(entries())
        exact = [entry for entry in all_entries if entry["name"] == args.name]
        matching = exact or [
            entry for entry in all_entries if not args.name or args.name in entry["name"]
        ]
        if not matching:
            raise UsageError(
                f"there is no formula for {args.name!r}",
                remedy="write one: @flopprof.op_formula(NAME), and give its file to --formulas",
            )
        if args.json:
            print_json({"schema_version": SCHEMA_VERSION, "formulas": matching})
        elif exact:
            for entry in exact:
                print(f"{entry['name']} ({entry['kind']}, {entry['source']})\n{entry['doc']}")
        else:
            for entry in matching:
                print(f"{entry['name']:40} {entry['doc'].splitlines()[0]}")
        return 0

    return handle


def entries() -> Iterator[dict[str, Any]]:
    """Yield name, kind, definition and source file of every formula."""
    import flopprof.formulas.modules  # noqa: F401  # registers on import
    from flopprof.formulas import FREE_OPS, MODULE_FORMULAS, OP_FORMULAS, load_op_formulas
    from flopprof.formulas.kernels import KERNEL_FORMULAS

    load_op_formulas()
    for registry in (OP_FORMULAS, FREE_OPS):
        for name, formula in registry.items():
            yield _entry(name, formula.kind, formula.function)
    for name, function in MODULE_FORMULAS.items():
        yield _entry(name, "module", function)
    for name, of_kernel in KERNEL_FORMULAS.items():
        yield _entry(name, "kernel", of_kernel)


def _entry(name: str, kind: str, function: Any) -> dict[str, Any]:
    import inspect

    function = inspect.unwrap(function)
    file = getattr(function, "func", function).__module__.replace(".", "/") + ".py"
    return {"name": name, "kind": kind, "source": file, "doc": _definition(function)}


def _definition(function: Any) -> str:
    """Return what the function's docstring says, with the figures of its row in a data file."""
    import inspect

    fields = dict(getattr(function, "keywords", {}))
    if "row" in fields:  # of a table of ops, where `kind` is that of the op and no figure
        fields = {key: value for key, value in fields["row"].items() if key != "kind"}
    row = {key: str(value) for key, value in fields.items() if value}
    text = inspect.getdoc(getattr(function, "func", function)) or "It says nothing of itself."
    if "reason" in row:
        return f"0 FLOPs: {row['reason']}"
    figures = ", ".join(_figure(row[key], key) for key in _FIGURES if key in row)
    because = f" ({row['definition']})" if "definition" in row else ""
    if row.get("per") == "matrix":  # its numbers are factors of n³ and the like, thirds of them
        figures = row["definition"]
        because = ""
    return f"{figures}{because}: {text[0].lower()}{text[1:]}" if figures else text


def _figure(text: str, key: str) -> str:
    """Return one figure of a row in words: "5?1?2" of `flops` is 5, and 1 for arguments given."""
    if key == "kind":
        return text
    least, *optional = text.split("?")
    also = f", 1 more for each of arguments {' and '.join(optional)} given" if optional else ""
    per = key.replace("flops", "").replace("_", " ")
    unit = "FLOP" if least == "1" else "FLOPs"
    return f"{least} {unit} {per}".rstrip() + also
