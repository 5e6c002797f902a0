"""The scripts in Python still fit the package: no type checker reads what they import."""

import importlib.util
import random
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.model.mutations import mutate, mutate_inside, originals
from tests.model.test_corpus import CORPUS

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return a script as a module; its `main` does not run."""
    monkeypatch.setattr(sys, "path", list(sys.path))  # scripts add the root to it
    monkeypatch.syspath_prepend(SCRIPTS)  # as Python does
    spec = importlib.util.spec_from_file_location(f"script_{name}", SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.mark.parametrize("name", sorted(path.stem for path in SCRIPTS.glob("*.py")))
def test_what_a_script_imports_is_there(name, monkeypatch):
    assert callable(load(name, monkeypatch).main)


def test_mutated_model_files_come_to_a_description_or_to_an_error_with_a_remedy(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    script = load("fuzz_loaders", monkeypatch)
    files = originals(CORPUS, tmp_path)
    path = tmp_path / "mutated"
    outcomes = set()
    for number in range(100):
        chance = np.random.default_rng([1, number])
        content = files[random.Random(number).choice(sorted(files))]
        path.write_bytes((mutate, mutate_inside)[number % 2](content, chance))
        outcomes.add(script.read(path))

    assert "LoadError" in outcomes
    assert len(outcomes) > 3  # and kinds of files


def test_torchvisions_classifiers_are_counted(monkeypatch, capsys):
    load("bench_torchvision", monkeypatch).main(["alexnet"])

    # Multiply-adds of its five convolutions, outputs × filter, and its three linear layers.
    filters = [3 * 11 * 11, 64 * 5 * 5, 192 * 3 * 3, 384 * 3 * 3, 256 * 3 * 3]
    outputs = [64 * 55 * 55, 192 * 27 * 27, 384 * 13 * 13, 256 * 13 * 13, 256 * 13 * 13]
    macs = sum(o * f for o, f in zip(outputs, filters, strict=True))
    macs += 256 * 6 * 6 * 4096 + 4096 * 4096 + 4096 * 1000
    name, _, matmul_gflops, _ = capsys.readouterr().out.splitlines()[1].split()
    assert (name, float(matmul_gflops)) == ("alexnet", round(2 * macs / 1e9, 3))


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("tune_batch_size", ["net.py:build", "--batch", "few"], "give whole numbers"),
        ("compare_compile", ["no_such_file.py:build"], "no_such_file.py"),
        ("bench_torchvision", ["resnet17"], "no classifier 'resnet17'"),
    ],
)
def test_a_script_for_users_says_what_is_wrong(
    name, arguments, said, monkeypatch, capsys, tmp_path
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        load(name, monkeypatch).main(arguments)

    assert said in f"{ended.value.code}{capsys.readouterr().err}"
