"""`flopprof inspect`: what a file is and holds, without running or loading any of it."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from flopprof.cli import Handler, command, print_json

MOST_LISTED = 8  # globals, tensors and files of code, each; --json has all
NEAREST = 3  # models named where none is the file's own
LABEL_WIDTH = 10  # columns


@command("inspect")
def inspect(parser: ArgumentParser) -> Handler:
    """Say what a file or folder is and holds; nothing of it is imported, executed or loaded.

    example: flopprof inspect model.pth
    """
    parser.add_argument("file", metavar="FILE", help="any file, or a folder")

    def handle(args: Namespace) -> int:
        from flopprof.cli.stored import print_weights
        from flopprof.model.facts import file_facts
        from flopprof.units import safe_text

        facts = file_facts(Path(args.file))
        if args.json:
            print_json(facts)
            return 0
        for label, text in _lines(facts):
            print(_wrapped(label, safe_text(text)))
        if facts.get("weights"):
            print_weights(facts["weights"])
        return 0

    return handle


def _wrapped(label: str, text: str) -> str:
    """Return a line for people, in as many lines as the terminal needs; no word is broken."""
    import textwrap

    from flopprof.units import text_width

    indent = " " * LABEL_WIDTH
    return textwrap.fill(
        text,
        text_width(),
        initial_indent=f"{label:{LABEL_WIDTH}}",
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines for people."""
    from flopprof.units import si

    several = f" in {facts['files']} files" if facts["files"] > 1 else ""
    of_class = f": {facts['class']}" if facts.get("class") else ""
    lines = [
        ("File", f"{facts['file']}, {si(float(facts['size_bytes']), 'B')}{several}"),
        ("Kind", facts["what"] + of_class),
    ]
    if facts["remedy"]:
        lines.append(("To do", facts["remedy"]))
    if "inside" in facts:
        lines += _lines_of_inside(facts["inside"])
    if "tensors" in facts:
        lines += _lines_of_contents(facts) + _lines_of_model(facts)
    return lines


def _lines_of_inside(inside: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines on what an archive holds that is no model to load."""
    lines = []
    for label, kind in (("Input", "inputs"), ("Output", "outputs"), ("Tensor", "tensors")):
        tensors = inside[kind]
        lines += [(label, _tensor_text(tensor)) for tensor in tensors[:MOST_LISTED]]
        if len(tensors) > MOST_LISTED:
            lines.append(("", f"and {len(tensors) - MOST_LISTED} more: --json has all"))
    files = inside["code_files"]
    lines += [("Code", name) for name in files[:MOST_LISTED]]
    if len(files) > MOST_LISTED:
        lines.append(("", f"and {len(files) - MOST_LISTED} more files of code"))
    return [*lines, *(("Note", note) for note in inside["notes"])]


def _tensor_text(tensor: dict[str, Any]) -> str:
    """Return a tensor's name, sizes and element type; "?" for what the file does not say."""
    shape = tensor["shape"]
    sizes = "of unknown shape" if shape is None else "x".join(str(n or "?") for n in shape) or "()"
    return f"{tensor['name']}: {sizes} {tensor['dtype'] or 'of unknown type'}"


def _lines_of_contents(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines on what the file holds, and what loading it would do."""
    from flopprof.units import si

    parts = ["not read" if facts["tensors"] is None else str(facts["tensors"])]
    for dtype, count in facts["parameters"].items():
        parts.append(f"{si(float(count), '') if count >= 1000 else count} {dtype}")
    lines = [("Tensors", ", ".join(parts))]
    if facts["wrapper_keys"]:
        lines.append(("Under", ".".join(facts["wrapper_keys"])))
    lines += [("Beside", f"{count} tensors under {key}") for key, count in facts["beside"].items()]
    lines += [("Note", note) for note in facts["notes"]]
    lines += [("Metadata", f"{key} = {value}") for key, value in facts["metadata"].items()]
    names = facts["globals"]
    if names:
        more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
        lines.append(("Globals", ", ".join(names[:MOST_LISTED]) + more))
    if facts["dangerous"]:
        lines.append(("DANGEROUS", ", ".join(facts["dangerous"])))
    if facts["runs_code"]:
        then = "flopprof asks for --trust"
        if facts["rebuilds"]:
            then = "flopprof rebuilds it from the library's own code, else asks for --trust"
        lines.append(("Loading", f"runs code of the file's choice; {then}"))
    return lines


def _lines_of_model(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines on which model it is."""
    lines = []
    if facts["diffusers_class"]:
        lines.append(("Config", f"_class_name {facts['diffusers_class']} (diffusers)"))
    if facts["adapter_of"]:
        lines.append(("Adapter", f"of {facts['adapter_of']}"))
    if facts["model_type"]:
        lines.append(("Config", f"model_type {facts['model_type']} (transformers)"))
    if facts["architecture"]:
        same = [other["architecture"] for other in facts["alternatives"]]
        others = f", or {', '.join(same)}" if same else ""
        lines.append(("Model", facts["architecture"] + others))
        if facts["input"]:
            lines.append(("Input", f"{facts['input']} (canonical for {facts['architecture']})"))
    elif facts["nearest"] and not facts["model_type"]:
        nearest = f"{', '.join(facts['nearest'][:NEAREST])}, with another head, input or layers"
        lines.append(("Nearest", f"{nearest}: flopprof count builds and compares"))
    elif facts["tensors"] and not (
        facts["model_type"] or facts["diffusers_class"] or facts["remedy"]
    ):
        lines.append(("Model", "not recognised: no model of the index is alike"))
    return lines
