"""Fill results/gpu-NAME from what the stages found: tables, charts, and on what all of it ran."""

import json
import re
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from flopprof.errors import UsageError
from flopprof.run import Run

STAGES = ("tests", "ceilings", "models", "counters", "peers")
REMEDY = "scripts/gpu_acceptance --here --output DIR, on a machine with CUDA"


def fill(found: Path, results: Path, about: dict[str, Any], write_run: Callable[..., None]) -> Path:
    """Write the results of a GPU and return their folder.

    Args:
        found: The folder that gpu_acceptance wrote.
        results: Where results are kept.
        about: What is said of this command in each run's meta.json.
        write_run: Writes one run's files: of a folder, a run and what to say of it.

    Raises:
        UsageError: There is none, or what it holds was not seen on a GPU.
    """
    facts = _facts(found)
    last = facts["runs"][-1]
    folder = results / slug(last["device"]["name"])
    folder.mkdir(parents=True, exist_ok=True)
    for stage in STAGES:
        path = found / f"{stage}.jsonl"
        if path.exists():
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            _table(rows).to_csv(folder / f"{stage}.csv", index=False)
    for name, run in _runs(found / "models.zip"):
        if run.provenance.device.kind == "cpu":
            raise UsageError(f"the run of {name} in {found} is of a CPU", remedy=REMEDY)
        seen_at = {key: last[key] for key in ("date", "commit", "nvidia_smi")}
        write_run(folder / name, run, about | {"seen": seen_at})
    text = json.dumps(facts, indent=1, ensure_ascii=False)
    (folder / "acceptance.json").write_text(f"{text}\n", encoding="utf-8")
    return folder


def slug(name: str) -> str:
    """Return a GPU's folder: "gpu-nvidia-h100-80gb-hbm3"."""
    return "gpu-" + re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _facts(found: Path) -> dict[str, Any]:
    """Return on what the stages ran.

    Raises:
        UsageError: It was no GPU, or nothing was run.
    """
    path = found / "acceptance.json"
    if not path.exists():
        raise UsageError(f"{found} holds nothing of gpu_acceptance", remedy=REMEDY)
    facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if facts["device"] == "cpu":
        problem = f"{found} holds a rehearsal: nothing of it was seen on a GPU"
        raise UsageError(problem, remedy=REMEDY)
    names = {run["device"]["name"] for run in facts["runs"]}
    if len(names) > 1:
        problem = f"{found} holds what several GPUs did: {', '.join(sorted(names))}"
        raise UsageError(problem, remedy="give each an --output of its own")
    return facts


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Return rows as a table: what is nested becomes JSON, a reason one line."""
    flat = []
    for row in rows:
        cells = {key: _cell(value) for key, value in row.items()}
        cells["reason"] = " ".join(str(row.get("reason", "")).split())[-300:]
        flat.append(cells)
    return pd.DataFrame(flat)


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value


def _runs(archive: Path) -> list[tuple[str, Run]]:
    """Return the runs in an archive, by name."""
    if not archive.exists():
        return []
    with tempfile.TemporaryDirectory(prefix="flopprof-results-") as unpacked:
        with zipfile.ZipFile(archive) as file:
            file.extractall(unpacked)
        folders = sorted(Path(unpacked).glob("*.flopprof"))
        runs = []
        for folder in folders:
            run = Run.load(folder)
            _ = (run.sites, run.rooflines, run.kernels)  # read before the folder goes
            runs.append((folder.name.removesuffix(".flopprof"), run))
        return runs
