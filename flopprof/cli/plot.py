"""`flopprof plot`: the roofline chart of a saved run."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from flopprof.cli import Handler, command, print_json


@command("plot")
def plot(parser: ArgumentParser) -> Handler:
    """Draw the roofline chart of a saved run.

    example: flopprof plot resnet18.flopprof -o roofline.svg
    """
    parser.add_argument("run", metavar="DIR", help="folder written by flopprof run")
    parser.add_argument(
        "-o", "--output", metavar="FILE", default="roofline.png", help="default: %(default)s"
    )
    parser.add_argument("--title", help="title (default: what the chart shows)")

    def handle(args: Namespace) -> int:
        from flopprof.run import SCHEMA_VERSION, Run

        path = Run.load(args.run).plot_roofline(Path(args.output), title=args.title)
        if args.json:
            print_json({"schema_version": SCHEMA_VERSION, "files": [str(path)]})
        else:
            print(path)
        return 0

    return handle
