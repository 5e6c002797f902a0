"""The callback for the Hugging Face Trainer: what it logs, and that training stays the same."""

import pytest
import torch
from torch.nn.modules import module as base

from flopprof.errors import UsageError
from flopprof.integrations.meter import StepMeter

pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")

# A Llama of width 32, with 4 heads of 8 and 2 of keys and values, 2 layers, 64 between, 64 words.
# Products of one token, in multiply-adds: queries and output 2·32·32, keys and values 2·32·16, the
# three of the MLP 3·32·64, in each layer; the head 32·64. Attention of 16 tokens: 2 products of
# 16·16·32 in each layer. A step has 2 micro-batches of 2 sequences of 16 tokens.
LINEARS = 2 * 64 * (2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64) + 32 * 64)
ATTENTION = 2 * 4 * 2 * (2 * 16 * 16 * 32)
FORWARD = LINEARS + ATTENTION

CEILINGS = """{"version": 1, "compute": [
    {"dtype": "float32", "unit": "tensor", "flops_per_s": 1e12},
    {"dtype": "float32", "unit": "vector", "flops_per_s": 1e12}
], "memory": [{"level": "DRAM", "bytes_per_s": 1e11}]}"""


@pytest.fixture(scope="module")
def data():
    torch.manual_seed(0)
    rows = [torch.randint(0, 64, (16,)) for _ in range(16)]
    return [{"input_ids": row, "labels": row} for row in rows]


def trained(data, folder, callback=None, *, checkpointing=False, attached=False, **options):
    """Train six steps; return the Trainer."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=32,
        )
    )
    if checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)()  # by its name before transformers 5
    arguments = transformers.TrainingArguments(
        str(folder),
        max_steps=6,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        logging_steps=2,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        **options,
    )
    callbacks = [callback] if callback and not attached else None
    trainer = transformers.Trainer(model, arguments, train_dataset=data, callbacks=callbacks)
    if attached:
        callback.attach(trainer)
    trainer.train()
    return trainer


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"bf16": True, "checkpointing": True}])
def test_the_callback_logs_rates_and_changes_nothing(data, tmp_path, options, capsys):
    from flopprof.integrations.transformers import FlopsCallback

    callback = FlopsCallback(ceilings=False)
    plain = trained(data, tmp_path, **options)
    watched = trained(data, tmp_path, callback, **options)

    run = callback.meter.run
    assert run is not None
    phases = run.by_phase().set_index("phase")["matmul_flops"]
    assert phases["forward"] == FORWARD
    assert phases.get("recompute", 0) > 0 or not options
    first, second, third, _ = watched.state.log_history
    assert first["flopprof/flops_per_step"] == run.totals.flops
    for logged in (second, third):
        rate = logged["flopprof/tokens_per_s"]
        assert rate * logged["flopprof/step_s"] == pytest.approx(64)
        assert logged["flopprof/flops_per_s"] == pytest.approx(run.totals.flops / 64 * rate)
        assert "flopprof/mfu_frac" not in logged  # no ceiling was asked for
    assert "flopprof/tokens_per_s" in capsys.readouterr().out  # the Trainer's own printing
    weights = (trainer.model.state_dict().values() for trainer in (plain, watched))
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))
    states = (trainer.optimizer.state_dict() for trainer in (plain, watched))
    assert len({str(state) for state in states}) == 1
    assert not base._global_forward_hooks
    assert not torch.autograd.profiler._is_profiler_enabled


@pytest.mark.slow
def test_attached_it_comes_before_what_reports_and_mfu_is_of_the_ceiling(data, tmp_path):
    from flopprof.integrations.transformers import FlopsCallback

    ceilings = tmp_path / "ceilings.json"
    ceilings.write_text(CEILINGS)
    callback = FlopsCallback(ceilings=ceilings)
    trainer = trained(data, tmp_path, callback, attached=True)

    assert trainer.callback_handler.callbacks[1] is callback
    logged = trainer.state.log_history[1]
    # Flash attention's backward makes the scores once more: five products where forward has two.
    matmul_flops = 3 * LINEARS + ATTENTION + ATTENTION * 5 // 2
    assert logged["flopprof/mfu_frac"] == pytest.approx(
        matmul_flops / logged["flopprof/step_s"] / 1e12
    )


def test_a_step_that_raised_is_let_go_of():
    meter = StepMeter(ceilings=False)
    meter.begin_step(torch.nn.Linear(2, 2))
    inner = StepMeter(ceilings=False)
    inner.begin_step(None)  # within another measurement
    inner.end_step()
    meter.close()

    assert "inside a region" in inner.problem
    assert inner.figures() == {}
    assert meter.run is None
    assert not base._global_forward_hooks
    assert not torch.autograd.profiler._is_profiler_enabled
    meter.begin_step(None)
    _ = torch.ones(2, 2) @ torch.ones(2, 2)
    meter.end_step()
    assert meter.figures()["flops_per_step"] == 2 * 2 * 2 * 2


def test_what_is_missing_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "flopprof.integrations.transformers", raising=False)

    with pytest.raises(UsageError) as caught:
        __import__("flopprof.integrations.transformers")
    assert "flopprof[transformers]" in str(caught.value.remedy)
