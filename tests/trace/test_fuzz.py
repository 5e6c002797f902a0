"""Mutated traces come to a run or to an error of ours; scripts/fuzz_traces.py does thousands."""

import importlib.util
import random
import sys
from pathlib import Path

from tests.trace.mutations import mutated, originals

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "fuzz_traces.py"


def test_mutated_traces_come_to_a_run_or_to_an_error_with_a_remedy(tmp_path):
    spec = importlib.util.spec_from_file_location("fuzz_traces", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(script)
    sys.path[:] = before
    sources = originals()
    outcomes = set()
    for number in range(150):
        chance = random.Random(f"suite/{number}")
        path = tmp_path / "mutated.json"
        path.write_bytes(mutated(chance.choice(sources), chance))
        outcomes.add(script.analyse(path, number))

    assert {"trace", "run", "LoadError"} <= outcomes
