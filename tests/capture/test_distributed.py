"""A training step of two processes: what PyTorch does to share gradients is known."""

import subprocess
import sys
import textwrap

import pytest
import torch

import flopprof

SCRIPT = textwrap.dedent(
    """
    import sys
    import torch
    from torch import distributed, nn
    from torch.nn.parallel import DistributedDataParallel

    folder, rank = sys.argv[1], int(sys.argv[2])
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    model = DistributedDataParallel(
        nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step():
        optimizer.zero_grad()
        model(torch.ones(4, 8)).sum().backward()
        optimizer.step()

    step()
    with torch.profiler.profile(record_shapes=True) as profiler:
        step()
    profiler.export_chrome_trace(f"{folder}/{rank}.json")
    distributed.destroy_process_group()
    """
)


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_a_step_of_distributed_data_parallel_is_wholly_known(tmp_path):
    ranks = [
        subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path), str(rank)])
        for rank in (0, 1)
    ]
    assert [rank.wait(timeout=300) for rank in ranks] == [0, 0]

    run = flopprof.analyse_traces([tmp_path / "0.json", tmp_path / "1.json"])

    # Per rank forward 4·8·16·2 + 4·16·4·2 = 1,536; backward both weights, and the second's input:
    # 1,024 + 512 + 512.
    assert run.totals.matmul_flops == 2 * (1536 + 2048)
    assert not set(run.sites["verdict"]) & {"extension", "unknown"}
    assert run.totals.coverage_calls_frac == 1 or "hidden" in set(run.sites["verdict"])
