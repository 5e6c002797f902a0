"""What the callbacks cost: training loops with and without one, in turn, in one process.

usage: python scripts/bench_callbacks.py transformers|lightning [--pairs N] [--steps N] [--width N]

Each loop trains a model made anew from the same seed. Printed are the CPU and wall time of the loop
alone (from its first step's beginning to its last one's end), the ratio pair by pair, what the
logged MFU was, and whether parameters and the optimizer's state came out the same. Ceilings are
measured once, before the loops.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

ROWS = 8  # of a batch
TOKENS = 64  # of a row
WORDS = 1000  # of the vocabulary


class Loop:
    """What one training loop took, and what it left.

    Attributes:
        cpu_s: CPU time from the first step's beginning to the last one's end.
        wall_s: Wall time of the same.
        mfu_frac: As the callback logged it last; None without one.
        state: Parameters and the optimizer's state.
    """

    def __init__(self) -> None:
        self.cpu_s = 0.0
        self.wall_s = 0.0
        self.mfu_frac: float | None = None
        self.state: dict[str, Any] = {}

    def begin(self) -> None:
        """Begin to read the clocks; later calls do nothing."""
        if not self.wall_s:
            self.cpu_s = -time.process_time()
            self.wall_s = -time.perf_counter()

    def end(self) -> None:
        """Read the clocks."""
        self.cpu_s += time.process_time()
        self.wall_s += time.perf_counter()


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("what", choices=("transformers", "lightning"))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--width", type=int, default=384)
    args = parser.parse_args()
    trained: Callable[..., Loop] = by_trainer if args.what == "transformers" else by_lightning
    with tempfile.TemporaryDirectory() as folder:
        trained(folder, steps=2, width=args.width, has_callback=True)  # imports, ceilings
        ratios = []
        for number in range(args.pairs):
            train = partial(trained, folder, steps=args.steps, width=args.width)
            if number % 2 == 0:  # which of the two comes first, alternates
                plain = train(has_callback=False)
                watched = train(has_callback=True)
            else:
                watched = train(has_callback=True)
                plain = train(has_callback=False)
            ratios.append(watched.cpu_s / plain.cpu_s)
            print(
                f"{plain.wall_s:6.2f} s plain, {watched.wall_s:6.2f} s with the callback; ratio of "
                f"CPU {ratios[-1]:.3f}, of wall {watched.wall_s / plain.wall_s:.3f}; MFU "
                f"{watched.mfu_frac}; same state: {same(plain.state, watched.state)}"
            )
    ratios.sort()
    print(f"CPU: median {statistics.median(ratios):.3f}, {ratios[0]:.3f} to {ratios[-1]:.3f}")


def same(one: Any, other: Any) -> bool:
    """Return whether two states, with tensors in them, are equal to the bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def by_trainer(folder: str, *, steps: int, width: int, has_callback: bool) -> Loop:
    """Train a Llama of six layers by the Hugging Face Trainer."""
    import transformers

    from flopprof.integrations.transformers import FlopsCallback

    class Clock(transformers.TrainerCallback):  # type: ignore[misc, unused-ignore]
        def on_step_begin(self, *_arguments: Any, **_keywords: Any) -> None:
            loop.begin()

    loop = Loop()
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=WORDS,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=6,
        num_attention_heads=8,
        max_position_embeddings=TOKENS,
    )
    model = transformers.LlamaForCausalLM(config)
    rows = torch.randint(0, WORDS, (ROWS * steps, TOKENS))
    data = [{"input_ids": row, "labels": row} for row in rows]
    arguments = transformers.TrainingArguments(
        folder,
        max_steps=steps,
        per_device_train_batch_size=ROWS,
        logging_steps=10,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    callback = FlopsCallback()
    callbacks = [Clock(), callback] if has_callback else [Clock()]
    trainer = transformers.Trainer(model, arguments, train_dataset=data, callbacks=callbacks)
    trainer.train()
    loop.end()
    logged = [entry for entry in trainer.state.log_history if "flopprof/mfu_frac" in entry]
    loop.mfu_frac = round(logged[-1]["flopprof/mfu_frac"], 3) if logged else None
    loop.state = {"model": model.state_dict(), "optimizer": trainer.optimizer.state_dict()}
    return loop


def by_lightning(folder: str, *, steps: int, width: int, has_callback: bool) -> Loop:
    """Train an encoder of four layers by Lightning."""
    import lightning.pytorch as lightning

    from flopprof.integrations.lightning import FlopsCallback

    class Net(lightning.LightningModule):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(width, 8, 4 * width, dropout=0.0, batch_first=True)
            self.words = nn.Embedding(WORDS, width)
            self.layers = nn.TransformerEncoder(layer, 4)
            self.head = nn.Linear(width, WORDS)

        def training_step(self, batch: torch.Tensor, _number: int) -> torch.Tensor:
            scores = self.head(self.layers(self.words(batch)))
            return nn.functional.cross_entropy(scores.flatten(0, 1), batch.flatten())

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters())

    class Clock(lightning.Callback):  # type: ignore[misc, unused-ignore]
        def on_train_batch_start(self, *_arguments: Any, **_keywords: Any) -> None:
            loop.begin()

    loop = Loop()
    torch.manual_seed(0)
    model = Net()
    data: Any = torch.randint(0, WORDS, (ROWS * steps, TOKENS))
    trainer = lightning.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_steps=steps,
        log_every_n_steps=10,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Clock(), FlopsCallback()] if has_callback else [Clock()],
    )
    trainer.fit(model, torch.utils.data.DataLoader(data, batch_size=ROWS))
    loop.end()
    logged = trainer.callback_metrics.get("flopprof/mfu_frac")
    loop.mfu_frac = None if logged is None else round(float(logged), 3)
    loop.state = {"model": model.state_dict(), "optimizer": trainer.optimizers[0].state_dict()}
    return loop


if __name__ == "__main__":
    main()
