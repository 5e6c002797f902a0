"""A trusted file's child without torch, which takes seconds to import: its processes are real."""

import sys
from collections.abc import Sequence
from pathlib import Path

from flopprof.cli import main
from flopprof.model import trusted

ROOT = str(Path(__file__).parents[2])

# It runs the code of the environment's CODE in the place of loading the file, and answers as a
# count does.
CHILD = """
import os, sys
sys.path.insert(0, {root!r})
os.environ['{mark}'] = str(os.getppid())
from flopprof.model.trusted import answer_parent
def run(arguments):
    exec(os.environ['CODE'])
    print('{{"matmul_flops": 8}}')
    return 0
answer_parent(run, {answer!r}, sys.argv[1:])
"""


def child_command(arguments: Sequence[str], scratch: str, answer: Path) -> list[str]:
    """Return the command of such a child, in the place of `trusted._child_command`."""
    code = CHILD.format(root=ROOT, mark=trusted.MARK, answer=str(answer))
    return [sys.executable, "-c", code, *arguments]


if __name__ == "__main__":  # the command line, with such a child
    trusted._child_command = child_command
    sys.exit(main(sys.argv[1:]))
