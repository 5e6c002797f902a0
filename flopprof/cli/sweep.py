"""`flopprof sweep`: one model over a grid of settings."""

from argparse import ArgumentParser, Namespace
from dataclasses import fields
from pathlib import Path
from typing import Any

from flopprof.cli import Handler, Progress, clean_lines, command, print_json

_AXES = {
    "batch": "batches: 1,2,4..64 (4..64 doubles)",
    "dtype": "element types: float32,bfloat16",
    "threads": "CPU threads: 1,2",
    "compile": "none, default, max-autotune, …",
    "input_size": "heights and widths: 160,224",
    "device": "cpu,cuda",
}


@command("sweep")
def sweep(parser: ArgumentParser) -> Handler:
    """Profile a model at every combination of settings, and say which one to take.

    example: flopprof sweep resnet18.pth --batch 1,2,4..64 --dtype float32,bfloat16
    """
    from flopprof.cli.options import add_model_arguments, add_repeat_arguments

    add_model_arguments(parser, swept=True)
    for axis, meaning in _AXES.items():
        parser.add_argument(f"--{axis.replace('_', '-')}", metavar="VALUES", help=meaning)
    add_repeat_arguments(parser)
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        help="folder that keeps the cells (default: MODEL's stem + .sweep); a sweep that was "
        "stopped goes on there",
    )
    parser.add_argument("--force", action="store_true", help="begin anew in DIR")

    def handle(args: Namespace) -> int:
        from flopprof.model import model_name
        from flopprof.model.trusted import announce
        from flopprof.sweeps.measure import sweep
        from flopprof.sweeps.write import text_of, write_sweep

        grid = _grid(args)
        options = _shared_options(args)
        if options.get("trust"):
            announce(Path(args.model), args.trust_sha256)
        folder = Path(args.output or f"{model_name(args.model)}.sweep")
        with Progress() as progress:
            result = sweep(
                args.model,
                grid,
                output=folder,
                memory_limit=args.memory_limit,
                time_limit_s=args.time_limit,
                force=args.force,
                progress=progress,
                **options,
            )
            progress("drawing")
            files = write_sweep(result, folder)
        if args.json:
            print_json(result.to_object() | {"files": [str(path) for path in files]})
        else:
            print(text_of(result))
            print("\n".join(clean_lines(path) for path in files))
        return 0

    return handle


def _grid(args: Namespace) -> dict[str, list[Any]]:
    """Return the axes that were given, and take them from the arguments."""
    from flopprof.sweeps.grid import parse_values

    grid = {}
    for axis in _AXES:
        text = getattr(args, axis)
        delattr(args, axis)
        if text is not None:
            grid[axis] = parse_values(axis, text)
    return grid


def _shared_options(args: Namespace) -> dict[str, Any]:
    """Return the options of all cells: those that are not the default."""
    from flopprof.cli.options import settings_of
    from flopprof.settings import Settings

    settings = settings_of(args)
    options = {}
    for field in fields(Settings):
        value = getattr(settings, field.name)
        if value != field.default:
            options[field.name] = value
    if options.get("trust"):
        options["trust"] = True  # the cell's process is the child in which the code may run
    return options
