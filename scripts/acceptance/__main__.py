"""Be the command."""

import sys

from acceptance.command import main

sys.exit(main(sys.argv[1:]))
