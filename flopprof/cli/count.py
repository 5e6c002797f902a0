"""`flopprof count`: FLOPs from shapes, without weights and without timing."""

from argparse import ArgumentParser, Namespace

from flopprof.cli import Handler, Progress, command, print_json
from flopprof.errors import FlopprofError


@command("count")
def count(parser: ArgumentParser) -> Handler:
    """Count a model file's FLOPs from shapes alone: no weights are read, nothing is timed.

    Where no code is known for a file's weights, it prints what they say alone, and exits with 5.

    example: flopprof count resnet18.pth --arch torchvision:resnet18 --input 8x3x224x224
    """
    from flopprof.cli.options import (
        add_generation_arguments,
        add_model_arguments,
        add_view_arguments,
    )

    add_model_arguments(parser)
    add_generation_arguments(parser)
    parser.add_argument(
        "--macs",
        action="store_true",
        help="also print multiply-adds, with and without attention's products, as others publish",
    )
    add_view_arguments(parser)
    parser.set_defaults(memory=True)

    def handle(args: Namespace) -> int:
        from flopprof.cli.options import contain, settings_of, view_of

        settings = settings_of(args)
        view = view_of(args)
        if (code := contain(args)) is not None:
            return code
        from flopprof.api import run_count  # which imports torch
        from flopprof.cli.stored import print_weights
        from flopprof.report.json import to_object
        from flopprof.report.macs import Macs
        from flopprof.report.text import text_report

        try:
            with Progress() as progress:
                run = run_count(args.model, None, None, settings, progress)
        except FlopprofError as error:
            if not args.json and "weights" in error.details:
                print_weights(error.details["weights"])
            raise
        macs = Macs.of(run.sites) if args.macs else None
        if args.json:
            print_json(to_object(run, macs=macs))
            return 0
        print(text_report(run, view), end="")
        if macs:
            print(macs.text())
        return 0

    return handle
