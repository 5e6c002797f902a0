"""`flopprof report`: a saved run, in any format."""

from argparse import SUPPRESS, Action, ArgumentParser, Namespace
from typing import Any, NoReturn

from flopprof.cli import Handler, command, print_json, tell_written


@command("report")
def report(parser: ArgumentParser) -> Handler:
    """Print a saved run as a report, or write it to a file.

    example: flopprof report resnet18.flopprof -o resnet18.html
    """
    parser.add_argument("run", metavar="DIR", help="folder written by flopprof run")
    parser.add_argument(
        "--schema",
        action=_PrintSchema,
        nargs=0,
        default=SUPPRESS,
        help="print the JSON Schema of what --json prints, and exit; needs no DIR",
    )
    from flopprof.cli.options import add_view_arguments
    from flopprof.report import format_names

    names = ", ".join(format_names())
    parser.add_argument("--format", help=f"{names} (default: text, or by -o's suffix)")
    parser.add_argument("-o", "--output", metavar="FILE", help="write here (default: stdout)")
    add_view_arguments(parser)

    def handle(args: Namespace) -> int:
        from flopprof.cli.options import view_of
        from flopprof.report import format_for
        from flopprof.report.json import to_object
        from flopprof.report.text import text_report
        from flopprof.run import Run

        args.output = None if args.output == "-" else args.output  # as others spell stdout
        form = format_for(args.output, args.format)
        view = view_of(args)
        loaded = Run.load(args.run)
        if args.output:
            loaded.save_report(args.output, form)
            tell_written([args.output])
        if args.json:
            print_json(to_object(loaded, [args.output] if args.output else []))
        elif args.output:
            return 0
        elif form == "text":
            print(text_report(loaded, view), end="")
        else:
            print(loaded.report(form), end="")
        return 0

    return handle


class _PrintSchema(Action):
    """Print the schema in place of a report."""

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        from flopprof.report.answer import schema

        print_json(schema())
        raise SystemExit(0)
