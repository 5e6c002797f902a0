"""`flopprof diff`: what is other in one saved run than in another."""

from argparse import ArgumentParser, Namespace

from flopprof.cli import Handler, command, print_json


@command("diff")
def diff(parser: ArgumentParser) -> Handler:
    """Compare two saved runs: totals, and the sites whose time or FLOPs changed most.

    example: flopprof diff before.flopprof after.flopprof
    """
    parser.add_argument("before", metavar="BEFORE", help="folder written by flopprof run or trace")
    parser.add_argument("after", metavar="AFTER", help="another")

    def handle(args: Namespace) -> int:
        from flopprof.report.diff import compared, compared_text
        from flopprof.run import SCHEMA_VERSION, Run, to_json

        comparison = compared(Run.load(args.before), Run.load(args.after))
        if args.json:
            print_json(to_json({"schema_version": SCHEMA_VERSION, **comparison}))
        else:
            print(compared_text(comparison, (args.before, args.after)), end="")
        return 0

    return handle
