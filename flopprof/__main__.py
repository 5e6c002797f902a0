# PYTHON_ARGCOMPLETE_OK
"""`python -m flopprof`, and the command `flopprof`."""

import gc
import os
import sys

INTERRUPTED = 130


def main() -> int:
    """Run the command line on `sys.argv` and return its exit code."""
    # `python -m` puts the current folder first on sys.path: a torch.py lying beside a downloaded
    # model would be imported. flopprof itself is found already.
    if sys.path and sys.path[0] in ("", os.getcwd()):  # noqa: PTH109  # pathlib is third in line
        del sys.path[0]
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # before torch: kineto reads it once

    try:
        if "_ARGCOMPLETE" in os.environ:  # the shell asks what may follow
            from flopprof.cli.completion import complete

            complete()
        from flopprof.cli import main as run_command

        code = run_command(sys.argv[1:])
        if code == INTERRUPTED:
            # CPython dies of SIGINT at exit, in place of our code, where the interrupt reached it
            # inside code that C ran (PyRun_*).
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        gc.freeze()  # at exit CPython looks for garbage among all objects: 0.9 s of torch's
        return code
    except KeyboardInterrupt:  # before the command line could take it
        print("flopprof: interrupted\n  nothing half-written is left", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
