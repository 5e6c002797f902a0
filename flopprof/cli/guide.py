"""`flopprof guide`: the guide's pages in the terminal."""

import sys
from argparse import ArgumentParser, Namespace

from flopprof.cli import Handler, command, print_json

WIDEST = 100  # columns: longer lines of text are hard to read


@command("guide")
def guide(parser: ArgumentParser) -> Handler:
    """Read the guide: tutorial, how-to pages, reference; without TOPIC the list of pages.

    example: flopprof guide tutorial
    """
    parser.add_argument("topic", nargs="?", metavar="TOPIC", help="a page: tutorial, verdicts, …")
    parser.add_argument("--no-pager", action="store_true", help="print all of it at once")

    def handle(args: Namespace) -> int:
        from flopprof.guide import INDEX, page, title, topics

        text = page(args.topic or INDEX)
        if args.json:
            listed = [{"topic": topic, "title": title(topic)} for topic in topics()]
            print_json({"topic": args.topic, "text": text, "topics": listed})
        elif sys.stdout.isatty():
            _show(text, paged=not args.no_pager)
        else:
            print(text, end="")
        return 0

    return handle


def _show(markdown: str, *, paged: bool) -> None:
    """Print Markdown as a terminal shows it best, through the reader's own pager."""
    import os
    from contextlib import nullcontext

    from rich.console import Console
    from rich.markdown import Markdown

    os.environ.setdefault("LESS", "-RF")  # colours; and no waiting where a page is short
    console = Console()
    width = min(console.width, WIDEST)
    with console.pager(styles=True) if paged else nullcontext():
        console.print(Markdown(markdown), width=width)
