"""Stage `counters`: what the hardware executed, by Nsight Compute, beside what was counted."""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

from acceptance import products
from acceptance.journal import Part, write_whole
from acceptance.products import SIZE
from acceptance.stage import NEEDS_CUDA, ROOT, Place, SkipUnitError, run_units
from flopprof.cli import main as flopprof_main
from flopprof.run import Run

NEEDS_S = 60.0
RAW = "counters.csv.gz"
CODE = Path(__file__).with_name("products.py")
TIME_LIMIT_S = 240
_PATHS = "sm__ops_path_tensor_"
_VECTOR = [
    f"smsp__sass_thread_inst_executed_op_{op}_pred_on.sum"
    for op in ("fadd", "fmul", "ffma", "dadd", "dmul", "dfma", "hadd", "hmul", "hfma")
]
# Parents hold their children over instruction and sparsity: with them nothing counts twice.
_TENSOR = [
    f"sm__ops_path_tensor_src_{kind}.sum"
    for kind in ("fp16", "bf16_dst_fp32", "tf32_dst_fp32", "int8", "fp64")
] + ["sm__ops_path_tensor_src_fp8_sparsity_off.sum"]
_MOVED = ["dram__bytes_read.sum", "dram__bytes_write.sum", "lts__t_bytes.sum", "l1tex__t_bytes.sum"]
_TIMED = ["gpu__time_duration.sum", "sm__cycles_elapsed.avg"]
METRICS = [*_TENSOR, *_VECTOR, *_MOVED, *_TIMED]
TOLERANCE = 0.001  # a product in float32 also scales each output: 1/2048 more


def units() -> list[str]:
    """Return the steps, each a unit; they build on each other, and each can be done again."""
    return ["run", "nsight compute", "executed by hand", "flopprof verify", "joined to the run"]


def run(place: Place, part: Part) -> bool:
    """Take the steps that are left; return whether all were reached."""
    with tempfile.TemporaryDirectory(prefix="flopprof-counters-") as folder:
        steps = Steps(Path(folder))
        return run_units("counters", place, part, units(), steps.take, needs_s=NEEDS_S)


class Steps:
    """The steps, and the folder that they share."""

    def __init__(self, folder: Path) -> None:
        """Begin in an empty folder."""
        self.folder = folder

    def take(self, unit: str, place: Place) -> dict[str, Any]:
        """Take one step."""
        steps = {
            "run": self.profiled,
            "nsight compute": self.counted,
            "executed by hand": self.by_hand,
            "flopprof verify": self.verified,
            "joined to the run": self.joined,
        }
        return steps[unit](place)

    def profiled(self, place: Place) -> dict[str, Any]:
        """Profile the products with flopprof, without counters: the times are those of this run."""
        if place.rehearses:  # what Nsight Compute would look at
            products.main(place.device)
        saved = self._saved(place)
        product = 2 * _size(place) ** 3  # each of 4: size² outputs of size multiply-adds
        counts = saved.sites.loc[saved.sites["matmul_flops"] > 0, "matmul_flops"]
        faults = [] if counts.tolist() == [product] * 4 else [f"counted {counts.tolist()}"]
        return {"matmul_flops": counts.tolist(), "faults": faults}

    def counted(self, place: Place) -> dict[str, Any]:
        """Run it under Nsight Compute, and keep the counters as CSV."""
        metrics = _metrics(place)
        report = self.folder / "products.ncu-rep"
        command = [
            *("ncu", "--target-processes", "all", "--profile-from-start", "off"),
            *("--replay-mode", "kernel", "--graph-profiling", "node"),
            *("--metrics", ",".join(metrics), "-f", "-o", str(report)),
            *(sys.executable, "-P", str(CODE), place.device),
        ]
        done = _call(command)
        if not report.exists():
            said = done.stdout + done.stderr
            raise RuntimeError(f"ncu wrote no report (exit code {done.returncode}): {said[-2000:]}")
        page = [*("ncu", "--import", str(report), "--page", "raw", "--csv")]
        content = _call([*page, "--print-units", "base", "--print-fp"]).stdout
        write_whole(place.output / RAW, gzip.compress(content.encode(), mtime=0))
        rows = read_raw(content)
        missing = sorted(set(METRICS) - set(metrics))
        return {"launches": len(rows), "metrics": metrics, "not_known_here": missing}

    def by_hand(self, place: Place) -> dict[str, Any]:
        """Compare the executed FLOPs of the products' kernels with 2·size³, by a rule each."""
        rows = read_raw(_raw(place))
        product = 2 * _size(place) ** 3
        executed = executed_flops(rows)
        # Each product is one kernel, or one and a small reduction: those of most FLOPs.
        found = executed[executed > product / 2]
        ratios = {
            f"{rows.loc[row, 'Kernel Name'][:100]}": flops / product for row, flops in found.items()
        }
        faults = [f"{ratio:.6f} of {name}" for name, ratio in ratios.items() if _differs(ratio)]
        if len(ratios) < 4:
            faults.append(f"{len(ratios)} kernels have the FLOPs of a product, not 4")
        return {"executed_over_counted": ratios, "faults": faults}

    def verified(self, place: Place) -> dict[str, Any]:
        """Have `flopprof verify --counters FILE` say what each launch executed."""
        answer = self._verify(place)
        product = 2 * _size(place) ** 3
        ratios = [
            row["executed_matmul_flops"] / product
            for row in answer["launches"]
            if (row["executed_matmul_flops"] or 0) > product / 2
        ]
        faults = [f"executed ÷ counted is {ratio:.6f}" for ratio in ratios if _differs(ratio)]
        if not ratios:
            faults.append("no launch has the FLOPs of a product")
        return {"executed_over_counted": ratios, "faults": faults}

    def joined(self, place: Place) -> dict[str, Any]:
        """Have `flopprof verify RUN --counters FILE` join launches to the run's ops."""
        raw = _raw(place)
        self._saved(place)
        answer = self._verify(place, raw, str(self.folder / "run.flopprof"))
        fracs = [row.get("useful_frac") for row in answer["launches"]]
        useful = [frac for frac in fracs if frac is not None]
        faults = [f"counted ÷ executed is {frac:.6f}" for frac in useful if _differs(frac)]
        if not useful:
            faults.append("no launch was joined to a product")
        return {"useful_frac": useful, "faults": faults}

    def _verify(self, place: Place, raw: str = "", *run: str) -> dict[str, Any]:
        """Return what the command answers; skip where this flopprof has no such command."""
        file = self.folder / "counters.csv"
        file.write_text(raw or _raw(place))
        done = _call(_flopprof("verify", *run, "--counters", str(file), "--json"))
        if done.returncode == 2 and re.search("invalid choice|unrecognized", done.stderr):
            said = "flopprof verify RUN --counters" if run else "flopprof verify --counters"
            raise SkipUnitError(f"this flopprof has no command `{said}`")
        if done.returncode != 0:
            raise RuntimeError(f"exit code {done.returncode}: {done.stderr[-2000:]}")
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def _saved(self, place: Place) -> Run:
        """Return the run of the products, made once."""
        target = self.folder / "run.flopprof"
        if not target.exists():
            code = flopprof_main(_arguments(place, target))
            if code != 0:
                raise RuntimeError(f"flopprof run ended with exit code {code}: see above")
        return Run.load(target)


def _size(place: Place) -> int:
    return 32 if place.rehearses else SIZE


def _flopprof(*arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", "flopprof", *arguments]


def _arguments(place: Place, target: Path) -> list[str]:
    """Return the command line that profiles the products."""
    build = "build_small" if place.rehearses else "build"
    size = _size(place)
    return [
        *("run", f"{CODE}:{build}", "--input", f"{size}x{size}", "--device", place.device),
        *("--repeats", "1", "--warmup", "1", "--traces", "1", "-o", str(target)),
    ]


def _call(command: list[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=TIME_LIMIT_S,
        env=os.environ, cwd=ROOT,
    )  # fmt: skip


def _metrics(place: Place) -> list[str]:
    """Return those of the metrics that this device has: a wrong name fails the whole run."""
    if place.rehearses:
        raise SkipUnitError(NEEDS_CUDA)
    if not shutil.which("ncu"):
        raise SkipUnitError("not installed: ncu")
    import torch

    major, minor = torch.cuda.get_device_capability()
    chip = _chip(f"{major}.{minor}")
    done = _call(["ncu", "--query-metrics", *(["--chip", chip] if chip else [])])
    known = set(re.findall(r"^(\w+__\w+)", done.stdout, re.MULTILINE))
    metrics = [metric for metric in METRICS if metric.partition(".")[0] in known]
    if not set(metrics) & set(_TENSOR):  # only children are there, which do not hold each other
        metrics += sorted(f"{name}.sum" for name in known if name.startswith(_PATHS))
    if not metrics:
        raise RuntimeError(f"ncu names none of the metrics: {(done.stdout + done.stderr)[-1000:]}")
    return metrics


def _chip(capability: str) -> str:
    """Return what ncu calls the chip of a compute capability; "" to have it look itself."""
    return {"8.0": "ga100", "9.0": "gh100"}.get(capability, "")


def _raw(place: Place) -> str:
    path = place.output / RAW
    if not path.exists():
        why = NEEDS_CUDA if place.rehearses else "there are no counters: see `nsight compute`"
        raise SkipUnitError(why)
    return gzip.decompress(path.read_bytes()).decode()


def read_raw(content: str) -> pd.DataFrame:
    """Return the launches of a raw page: the header begins with "ID", units stand below it."""
    import io

    lines = content.splitlines()
    first = next((n for n, line in enumerate(lines) if line.startswith('"ID"')), None)
    if first is None:
        raise ValueError(f"ncu's page has no header: {content[:500]!r}")
    return pd.read_csv(io.StringIO("\n".join(lines[first:])), skiprows=[1], thousands=",")


def executed_flops(rows: pd.DataFrame) -> pd.Series:
    """Return each launch's executed FLOPs: math ops of tensor paths, and vector instructions.

    Half-precision instructions are left out: they also load constants. What is not in the file is
    left out, too.
    """
    total = pd.Series(0.0, index=rows.index)
    paths = [name for name in rows if name.startswith(_PATHS) and "src_int" not in name]
    weights = dict.fromkeys(paths, 1.0)
    for metric in _VECTOR[:6]:
        weights[metric] = 2.0 if "fma" in metric else 1.0
    for metric, weight in weights.items():
        if metric in rows:
            total += weight * pd.to_numeric(rows[metric], errors="coerce").fillna(0.0)
    return total


def _differs(ratio: float) -> bool:
    return abs(ratio - 1) > TOLERANCE
