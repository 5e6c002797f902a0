"""The callback for Lightning: what it logs, and that training stays the same."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules import module as base

lightning: Any = pytest.importorskip("lightning.pytorch")

# Two layers, 64 → 32 → 8, on two micro-batches of 4 rows. Forward and the gradients of the weights
# have two FLOPs for each multiply-add, and so has the gradient of the second one's input.
STEP = 2 * 8 * (2 * (64 * 32 + 32 * 8) + 32 * 8)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning"),  # Lightning's own advice
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def trained(folder, callback=None, *, fails=False, compiles=""):
    """Train six steps; return the Trainer and what it logged."""

    class Net(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
            if compiles == "layers":
                self.layers.compile(backend="aot_eager")

        def training_step(self, batch, number):
            if fails:
                raise ValueError("mine")
            return self.layers(batch).square().mean()

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters())

    class Kept(lightning.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, trainer, *rest):
            logged.append(dict(trainer.callback_metrics))

    logged: list[dict[str, torch.Tensor]] = []
    torch.manual_seed(0)
    model: Any = Net()
    if compiles == "all":
        model = torch.compile(model, backend="aot_eager")
    data: Any = torch.randn(48, 64)
    rows: Any = torch.utils.data.DataLoader(data, batch_size=4)
    trainer = lightning.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_steps=6,
        accumulate_grad_batches=2,
        log_every_n_steps=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback, Kept()] if callback else [Kept()],
    )
    trainer.fit(model, rows)
    return trainer, logged


def test_the_callback_logs_rates_and_changes_nothing(tmp_path):
    from flopprof.integrations.lightning import FlopsCallback

    callback = FlopsCallback(ceilings=False, tokens_per_step=80)
    plain, nothing = trained(tmp_path)
    watched, logged = trained(tmp_path, callback)

    run = callback.meter.run
    assert run is not None
    assert run.totals.matmul_flops == STEP
    phases = run.by_phase().set_index("phase")["matmul_flops"]
    assert phases["forward"] == 2 * 8 * (64 * 32 + 32 * 8)  # though the optimizer's step calls it
    assert phases["optimizer"] == 0
    assert "not_run" not in set(run.sites["verdict"])
    assert not any(name.startswith("flopprof/") for name in nothing[-1])
    last = {name: float(value) for name, value in logged[-1].items()}
    assert last["flopprof/flops_per_step"] == pytest.approx(run.totals.flops)
    assert last["flopprof/tokens_per_s"] * last["flopprof/step_s"] == pytest.approx(80, rel=1e-4)
    weights = (trainer.model.state_dict().values() for trainer in (plain, watched))
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))
    states = (trainer.optimizers[0].state_dict() for trainer in (plain, watched))
    assert len({str(state) for state in states}) == 1
    assert not base._global_forward_hooks


@pytest.mark.parametrize("compiles", ["layers", "all"])
def test_of_compiled_code_a_step_is_counted_that_compiles_nothing(tmp_path, compiles):
    from flopprof.integrations.lightning import FlopsCallback

    torch._dynamo.reset()
    callback = FlopsCallback(ceilings=False)
    _, logged = trained(tmp_path, callback, compiles=compiles)
    torch._dynamo.reset()

    run = callback.meter.run
    assert run is not None
    assert run.totals.matmul_flops == STEP  # the first step had the compiler's tries in it
    assert "flopprof/flops_per_step" in logged[-1]


def test_a_step_that_raises_leaves_nothing(tmp_path):
    from flopprof.integrations.lightning import FlopsCallback

    with pytest.raises(ValueError, match="mine"):
        trained(tmp_path, FlopsCallback(ceilings=False), fails=True)

    assert not base._global_forward_hooks
    assert not torch.autograd.profiler._is_profiler_enabled
