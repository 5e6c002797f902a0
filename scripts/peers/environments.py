"""An environment for each package, beside ours: its own packages, and torch from here."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

INSTALL_S = 600  # that installing a package may take
LONGEST_REASON = 300  # letters of why it failed
EXTENSION_SOURCE = Path(__file__).with_name("extension.cpp")


def make(package: str, folder: Path) -> Path:
    """Return the Python of the package's environment, made where it is missing.

    Raises:
        RuntimeError: The package cannot be installed; the text is pip's last line.
    """
    if not package:
        return Path(sys.executable)
    home = folder / package
    python = home / "bin" / "python"
    stamp = home / "installed"
    if stamp.exists():
        return python
    venv.create(home, with_pip=False, clear=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    ours = home / "lib" / version / "site-packages" / "ours.pth"
    ours.write_text(sysconfig.get_paths()["purelib"] + "\n")
    # DeepSpeed's build asks torch for CUDA; its profiler needs none of what it would compile.
    command = [
        sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet",
        "--no-build-isolation", "--disable-pip-version-check", package,
    ]  # fmt: skip
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=INSTALL_S, env=environment(), check=False
    )
    if ended.returncode:
        raise RuntimeError(ended.stderr.strip().splitlines()[-1][:LONGEST_REASON])
    stamp.touch()
    return python


def environment(**more: str) -> dict[str, str]:
    """Return the variables that installing and counting see."""
    fixed = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "DS_BUILD_OPS": "0"}
    return {**os.environ, **fixed, "HF_HUB_OFFLINE": "1", **more}


def build_extension(folder: Path) -> Path:
    """Return the C++ extension that two cases call, compiled where it is missing."""
    library = folder / "peers_extension.so"
    if library.exists() and library.stat().st_mtime > EXTENSION_SOURCE.stat().st_mtime:
        return library
    folder.mkdir(parents=True, exist_ok=True)
    code = (
        "import sys; from torch.utils.cpp_extension import load; "
        "load('peers_extension', [sys.argv[1]], build_directory=sys.argv[2],"
        " is_python_module=False, extra_cflags=['-O1'])"
    )
    arguments = [sys.executable, "-c", code, str(EXTENSION_SOURCE), str(folder)]
    subprocess.run(arguments, capture_output=True, env=environment(), check=True)
    return library
