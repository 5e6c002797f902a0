"""What flopprof itself costs: a run beside a script by hand, a trace with ranges beside a bare one.

usage: python scripts/bench_own_cost.py run [--repeats N]
       python scripts/bench_own_cost.py ranges [--repeats N] [--threads N]

`run` makes a file of ResNet-18's weights, and has processes of their own call `flopprof run` on it
and the script HAND below, in turn: CPU and wall seconds, and the ratios pair by pair. Ceilings are
measured in the first run and found in the later ones: "cold" and "warm". `ranges` traces ResNet-18,
ViT-B/16 and GPT-2 in turn as flopprof does, with ranges that name modules, and by a bare profiler.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

HAND = """
import torch, torchvision
from torch.profiler import ProfilerActivity, profile
model = torchvision.models.resnet18()
model.load_state_dict(torch.load("resnet18.pth", weights_only=True))
model.eval()
x = torch.randn(1, 3, 224, 224)
with torch.no_grad():
    for _ in range(13):
        model(x)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True, with_flops=True) as traced:
        model(x)
traced.export_chrome_trace("trace.json")
print(traced.key_averages().table(sort_by="self_cpu_time_total", row_limit=20))
"""


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("run", "ranges"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of ranges (default: %(default)s)")
    args = parser.parse_args()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # before torch: a line for each trace else
    if args.what == "run":
        measure_runs(args.repeats)
    else:
        measure_ranges(args.repeats, args.threads)


def measure_runs(repeats: int) -> None:
    """Print what whole processes take."""
    import torch
    import torchvision

    with tempfile.TemporaryDirectory() as folder:
        torch.save(torchvision.models.resnet18().state_dict(), Path(folder) / "resnet18.pth")
        hand = [sys.executable, "-c", HAND]
        ours = [sys.executable, "-m", "flopprof", "run", "resnet18.pth", "-o", "out"]
        for name in ("cold", "warm"):
            pairs = []
            for _ in range(repeats):
                cache = tempfile.mkdtemp(dir=folder) if name == "cold" else f"{folder}/cache"
                if name == "warm" and not pairs:
                    cost(ours, folder, cache)
                pairs.append((cost(ours, folder, cache), cost(hand, folder, cache)))
            for index, kind in enumerate(("CPU", "wall")):
                ratios = [mine[index] / theirs[index] for mine, theirs in pairs]
                print(
                    f"{name} {kind}: flopprof {spread([mine[index] for mine, _ in pairs])} s, by "
                    f"hand {spread([theirs[index] for _, theirs in pairs])} s, ratio "
                    f"{spread(ratios)}",
                    flush=True,
                )


def cost(command: list[str], folder: str, cache: str) -> tuple[float, float]:
    """Return the CPU and wall seconds of a command, whose caches are in a folder of its own."""
    paths = os.pathsep.join([str(Path(__file__).resolve().parents[1]), *sys.path])
    environment = os.environ | {"XDG_CACHE_HOME": cache, "PYTHONPATH": paths}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    wall_s = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu_s, wall_s


def measure_ranges(repeats: int, threads: int) -> None:
    """Print what a traced call takes with ranges, over one by a bare profiler."""
    import torch
    import torchvision
    import transformers

    torch.set_num_threads(threads)
    language_model: Any = transformers.AutoModelForCausalLM
    image = torch.zeros(1, 3, 224, 224)
    models = {
        "resnet18": (torchvision.models.resnet18().eval(), image),
        "vit_b_16": (torchvision.models.vit_b_16().eval(), image),
        "gpt2": (
            language_model.from_config(transformers.GPT2Config()).eval(),
            torch.zeros(1, 64, dtype=torch.long),
        ),
    }
    for name, (model, x) in models.items():
        bare = [traced_ms(model, x, ranges=False)]
        ranged = [traced_ms(model, x, ranges=True)]
        for number in range(repeats):
            if number % 2 == 0:  # which of the two comes first, alternates
                ranged.append(traced_ms(model, x, ranges=True))
                bare.append(traced_ms(model, x, ranges=False))
            else:
                bare.append(traced_ms(model, x, ranges=False))
                ranged.append(traced_ms(model, x, ranges=True))
        for index, kind in enumerate(("CPU", "wall")):
            mine = [times[index] for times in ranged[1:]]
            theirs = [times[index] for times in bare[1:]]
            ratio = statistics.median(mine) / statistics.median(theirs)
            pairs = [ours / bare_ms for ours, bare_ms in zip(mine, theirs, strict=True)]
            print(
                f"{name} {kind}: with ranges {spread(mine)} ms, bare {spread(theirs)} ms, ratio of "
                f"pairs {spread(pairs)}, of medians {ratio:.3f}, of the least "
                f"{min(mine) / min(theirs):.3f}",
                flush=True,
            )


def traced_ms(model: Any, x: Any, *, ranges: bool) -> tuple[float, float]:
    """Return CPU and wall time of one call under the profiler: ours, or as a script has it."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from flopprof.capture.hooks import module_ranges
    from flopprof.capture.record import tracing
    from flopprof.devices import find_device

    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if ranges:
            stack.enter_context(module_ranges(model))
            stack.enter_context(tracing(find_device("cpu")))
        else:
            activities = [ProfilerActivity.CPU]
            stack.enter_context(profile(activities=activities, record_shapes=True, with_flops=True))
        cpu_start_s = time.process_time()
        wall_start_s = time.perf_counter()
        model(x)
        cpu_s = time.process_time() - cpu_start_s
        wall_s = time.perf_counter() - wall_start_s
    return cpu_s * 1e3, wall_s * 1e3


def spread(values: list[float]) -> str:
    """Return median and range as text."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


if __name__ == "__main__":
    main()
