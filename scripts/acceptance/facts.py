"""What device, driver, clocks and versions the stages ran on, as JSON on stdout."""

import contextlib
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
from typing import Any

from acceptance.stage import ROOT

_ASKED = (
    "name,uuid,driver_version,pstate,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,"
    "temperature.gpu,power.draw,power.limit,memory.total,memory.used,mig.mode.current"
)


def why_not(device: str) -> str:
    """Return why the device cannot be used; "" if it can."""
    if device == "cpu":
        return ""
    from flopprof.devices.cuda import why_no_cuda

    return why_no_cuda()


def facts_of(device: str) -> dict[str, Any]:
    """Return what is known of machine and software."""
    import torch

    import flopprof
    from flopprof.devices import find_device

    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "flopprof": flopprof.__version__,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "tools": {name: shutil.which(name) for name in ("nvcc", "ncu", "nvidia-smi", "g++")},
        "device": find_device(device).describe(),
        "nvidia_smi": nvidia_smi() if device != "cpu" else {},
    }


def commit() -> str:
    """Return the checkout's commit; "" where git or its folder is not there."""
    with contextlib.suppress(OSError):
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()
    return ""


def nvidia_smi(asked: str = _ASKED) -> dict[str, str]:
    """Return what nvidia-smi says of the first GPU, by its own names; {} where it is not there."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader,nounits", "-i", "0"],
            capture_output=True, text=True, check=False, timeout=30,
        )  # fmt: skip
        values = [value.strip() for value in done.stdout.split(",")]
        names = asked.split(",")
        if done.returncode == 0 and len(values) == len(names):
            return dict(zip(names, values, strict=True))
        return {"error": (done.stdout + done.stderr).strip()[:500]}
    return {}


if __name__ == "__main__":
    name = sys.argv[1]
    reason = why_not(name)
    print(json.dumps({"reason": reason} if reason else facts_of(name), default=str))
