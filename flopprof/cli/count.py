"""`flopprof count`: FLOPs from shapes, without weights and without timing."""

from argparse import ArgumentParser, Namespace

from flopprof.cli import Handler, Progress, command, print_json


@command("count")
def count(parser: ArgumentParser) -> Handler:
    """Count a model file's FLOPs from shapes alone: no weights are read, nothing is timed.

    example: flopprof count resnet18.pth --arch torchvision:resnet18 --input 8x3x224x224
    """
    from flopprof.cli.model import add_model_arguments

    add_model_arguments(parser)

    def handle(args: Namespace) -> int:
        from flopprof.cli.model import contain
        from flopprof.errors import ModelError
        from flopprof.report.json import to_object

        if (code := contain(args)) is not None:
            return code
        with Progress() as progress:
            progress("loading")
            try:
                counted = _count(args, progress, meta=True)
            except ModelError:  # values decide its path, and the meta device has none
                progress("loading the weights: the model needs values")
                counted = _count(args, progress, meta=False)
        if args.json:
            print_json(to_object(counted))
        else:
            print(counted.report("text"), end="")
        return 0

    return handle


def _count(args: Namespace, progress: Progress, *, meta: bool) -> "Run":  # type: ignore[name-defined]  # noqa: F821
    from flopprof.api import run_count
    from flopprof.cli.model import load, training

    loaded, inputs, origin = load(args, device="cpu", meta=meta)
    return run_count(loaded.model, inputs, train=training(args), origin=origin, progress=progress)
