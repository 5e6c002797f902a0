"""What each of two processes does: every way of sharing a model, then faults.

Arguments: the folder to write to, and a port for each time that the two find each other. What a
rank has to say goes to `rankN.json` there.
"""

import json
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import flopprof
from flopprof.cli import main
from flopprof.errors import FlopprofError

FOLDER = Path(sys.argv[1])
PORTS = sys.argv[2:]
RANK = int(os.environ["RANK"])
QUICK: dict[str, Any] = {"repeats": 2, "warmup": 1, "traces": 1, "ceilings": False}

NETS = """
import os
from torch import nn

def pair():
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32))

class Unlucky(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        if os.environ["RANK"] == "1":
            raise ValueError("bad luck")
        return self.layer(x)
"""


def pair() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(64, 64) for _ in range(4))

    def forward(self, x: Any) -> Any:
        def heads(y: Any) -> Any:
            return y.view(*x.shape[:2], -1, 16).transpose(1, 2)

        q, k, v = heads(self.q_proj(x)), heads(self.k_proj(x)), heads(self.v_proj(x))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.norm = nn.LayerNorm(64)
        self.up = nn.Linear(64, 128)
        self.down = nn.Linear(128, 64)

    def forward(self, x: Any) -> Any:
        x = x + self.attention(x)
        return x + self.down(self.up(self.norm(x)).relu())


def saved(name: str, make: Callable[[], flopprof.Run]) -> None:
    run = make()
    if RANK == 0:
        run.save(FOLDER / name)


def problem_of(call: Callable[[], object]) -> str:
    try:
        call()
    except FlopprofError as error:
        return error.problem
    return ""


def command(*arguments: str) -> tuple[int, str, str]:
    printed = StringIO()
    told = StringIO()
    os.environ["MASTER_PORT"] = PORTS.pop()
    with redirect_stdout(printed), redirect_stderr(told):
        code = main(["run", *arguments, "--distributed", "ddp", "--repeats", "2"])
    return code, printed.getvalue(), told.getvalue()


def of_first_calls() -> dict[str, Any]:
    """Return FLOPs of what DTensor meets for the first time: it tries each op on shapes alone."""
    mesh = init_device_mesh("cpu", (2,))
    sharded = parallelize_module(pair(), mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    counted = flopprof.count_flops(sharded, torch.randn(24, 64))
    with flopprof.region(sharded, "step", ceilings=False) as first:
        sharded(torch.randn(40, 64)).sum().backward()
    units = pair()
    fully_shard(units)
    optimizer = torch.optim.SGD(units.parameters(), lr=0.1)
    with flopprof.region(units, "step", ceilings=False) as step:
        units(torch.randn(16, 64)).sum().backward()
        optimizer.step()
    of_optimizer = step.run.by_phase().set_index("phase").loc["optimizer"]
    return {
        "first_count": int(counted.matmul_flops),
        "first_region": int(first.run.totals.matmul_flops),
        "first_step": [int(step.run.totals.matmul_flops), int(of_optimizer["flops"])],
        "first_verdicts": sorted({*first.run.sites["verdict"], *step.run.sites["verdict"]}),
    }


def everything() -> dict[str, Any]:
    said: dict[str, Any] = {}
    os.chdir(FOLDER)
    if RANK == 0:
        Path("nets.py").write_text(NETS)
    os.environ["MASTER_PORT"] = PORTS.pop()
    distributed.init_process_group("gloo")
    x = torch.randn(8, 64)
    before = pair()
    state = {name: tensor.clone() for name, tensor in before.state_dict().items()}
    saved("ddp", lambda: flopprof.profile(before, x, distributed="ddp", train=True, **QUICK))
    saved("fsdp", lambda: flopprof.profile(before, x, distributed="fsdp", train=True, **QUICK))
    blocks = nn.Sequential(Block(), Block())
    tokens = torch.randn(2, 8, 64)
    saved("tp", lambda: flopprof.profile(before, x, distributed="tp", **QUICK))
    saved("blocks", lambda: flopprof.profile(blocks, tokens, distributed="tp", **QUICK))
    saved("units", lambda: flopprof.profile(blocks, tokens, distributed="fsdp", **QUICK))
    saved("own", lambda: flopprof.profile(before, x, distributed=lambda model: model, **QUICK))
    after = before.state_dict()
    said |= of_first_calls()
    said["unchanged"] = all(torch.equal(state[name], after[name]) for name in state)
    said["is_plain"] = type(before) is nn.Sequential and distributed.is_initialized()
    lone = nn.Linear(4, 4)
    said["nothing_to_share"] = problem_of(
        lambda: flopprof.profile(lone, torch.ones(2, 4), distributed="tp", **QUICK)
    )
    distributed.barrier()
    distributed.destroy_process_group()
    said["command"] = command("nets.py:pair", "--input", "8x64", "-o", "cli", "--json", "--train")
    said["unlucky"] = command("nets.py:Unlucky", "--input", "2x4")
    return said


if __name__ == "__main__":
    (FOLDER / f"rank{RANK}.json").write_text(json.dumps(everything()))
