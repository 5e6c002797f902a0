"""`flopprof run`: the whole job on one model file."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from flopprof.cli import Handler, Progress, clean_lines, command, print_json

if TYPE_CHECKING:
    from flopprof.report.folder import Saved
    from flopprof.report.text import View


@command("run")
def run(parser: ArgumentParser) -> Handler:
    """Profile a model file: count, measure, reconcile, and save everything in a folder.

    example: flopprof run resnet18.pth --arch torchvision:resnet18
    """
    from flopprof.cli.options import (
        add_generation_arguments,
        add_measuring_arguments,
        add_model_arguments,
        add_view_arguments,
    )

    add_model_arguments(parser)
    add_generation_arguments(parser)
    add_measuring_arguments(parser)
    parser.add_argument(
        "-o", "--output", metavar="DIR", help="folder to write (default: MODEL's stem + .flopprof)"
    )
    parser.add_argument(
        "--partial",
        action="store_true",
        help="take weights that lack keys of --arch (their values stay random) or have others",
    )
    parser.add_argument("--force", action="store_true", help="replace DIR even if it is no run")
    add_view_arguments(parser)
    parser.set_defaults(memory=True)

    def handle(args: Namespace) -> int:
        from flopprof.cli.options import contain, settings_of, view_of
        from flopprof.model import model_name
        from flopprof.report.folder import folder_of_model, save_run

        settings = settings_of(args)
        view = view_of(args)
        name = model_name(args.model)
        target = Path(args.output) if args.output else folder_of_model(name)
        if (code := contain(args, target)) is not None:
            return code
        from flopprof.api import run_profile  # which imports torch

        with Progress() as progress:
            saved = save_run(
                lambda: run_profile(args.model, None, None, settings, progress),
                target,
                sources=[args.model],
                force=args.force,
                progress=progress,
            )
        print_saved(saved, view, as_json=args.json)
        return 0

    return handle


def print_saved(saved: "Saved", view: "View", *, as_json: bool) -> None:
    """Print a run, and where its chart and its report are."""
    from flopprof.report.folder import CHART, PAGE
    from flopprof.report.json import to_object
    from flopprof.report.text import text_report

    if as_json:
        print_json(to_object(saved.run, [str(path) for path in saved.files]))
        return
    print(text_report(saved.run, view))
    for label, name in (("Chart", CHART), ("Report", PAGE)):
        path = saved.folder / name
        if path in saved.files:
            print(f"{label:8}{clean_lines(path)}")
