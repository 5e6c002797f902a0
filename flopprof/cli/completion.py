"""Tell the shell what may follow on a command line, by argcomplete."""

import os

from flopprof.cli import make_parser


def complete() -> None:
    """Answer the shell's question in the variables that argcomplete sets, and end the process.

    Returns where argcomplete is not installed.
    """
    try:
        import argcomplete
    except ImportError:
        return
    argcomplete.autocomplete(make_parser(_first_word()), always_complete_options="long")


def _first_word() -> str:
    """Return the subcommand; "--help", of which the parser has no arguments, while it is typed."""
    point = int(os.environ.get("COMP_POINT", "0"))
    before = os.environ.get("COMP_LINE", "").encode()[:point].decode(errors="replace")
    words = before.split()
    is_typed = len(words) > 2 or (len(words) == 2 and before.endswith(" "))
    return words[1] if is_typed else "--help"
