"""`flopprof count`: FLOPs from shapes, without weights and without timing."""

from argparse import ArgumentParser, Namespace
from dataclasses import asdict

from flopprof.cli import Handler, Progress, command, print_json


@command("count")
def count(parser: ArgumentParser) -> Handler:
    """Count a model file's FLOPs from shapes alone: no weights are read, nothing is timed.

    example: flopprof count resnet18.pth --arch torchvision:resnet18 --input 8x3x224x224
    """
    from flopprof.cli.model import add_model_arguments

    add_model_arguments(parser)
    parser.add_argument(
        "--macs",
        action="store_true",
        help="also print multiply-adds, with and without attention's products, as others publish",
    )

    def handle(args: Namespace) -> int:
        from flopprof.cli.model import contain
        from flopprof.errors import ModelError
        from flopprof.report.json import to_object
        from flopprof.report.macs import Macs

        if (code := contain(args)) is not None:
            return code
        with Progress() as progress:
            progress("loading")
            try:
                counted = _count(args, progress, meta=True)
            except ModelError:  # values decide its path, and the meta device has none
                progress("loading the weights: the model needs values")
                counted = _count(args, progress, meta=False)
        macs = Macs.of(counted.sites) if args.macs else None
        if args.json:
            print_json(to_object(counted) | (asdict(macs) if macs else {}))
            return 0
        print(counted.report("text"), end="")
        if macs:
            print(macs.text())
        return 0

    return handle


def _count(args: Namespace, progress: Progress, *, meta: bool) -> "Run":  # type: ignore[name-defined]  # noqa: F821
    from flopprof.api import run_count
    from flopprof.cli.model import load, training

    loaded, inputs, origin = load(args, device="cpu", meta=meta)
    return run_count(loaded.model, inputs, train=training(args), origin=origin, progress=progress)
