"""A callback for Lightning's Trainer: FLOPs per step, FLOP/s, MFU and tokens/s in its loggers."""

from typing import Any

from flopprof.errors import UsageError
from flopprof.integrations.meter import MeteredCallback

try:
    from lightning.pytorch import Callback
except ImportError as error:
    raise UsageError(
        "the callback for Lightning needs lightning, and it is not installed",
        remedy="pip install 'flopprof[lightning]'",
    ) from error


class FlopsCallback(MeteredCallback, Callback):  # type: ignore[misc, unused-ignore]  # may be untyped
    """Logs what steps compute, and how fast, to the Trainer's loggers at its own intervals.

    The first step, up to the optimizer's, is counted while it runs; after that only the clock is
    read. Steps of other sizes, the last of an epoch, are taken to do as much. Figures are of this
    process.

    Attributes:
        meter: Holds the run of the counted step, and what counting took.
    """

    _steps_before: int | None = None  # of the optimizer; None between steps

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Start over, and prepare the count."""
        self.meter.close()
        precision = str(trainer.precision)
        casts = {"bfloat16": "bf16-mixed", "float16": "16-mixed"}
        self.meter.prepare(pl_module, [name for name, told in casts.items() if told == precision])
        self._steps_before = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_arguments: Any) -> None:
        """Begin a step, if this is its first micro-batch."""
        if self._steps_before is None:
            self._steps_before = trainer.global_step
            is_compiled = getattr(pl_module, "_compiler_ctx", None) is not None
            # Hooks would have the step compiled anew.
            self.meter.begin_step(None if is_compiled else pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_arguments: Any) -> None:
        """End the step, if the optimizer took its part, and log where the Trainer does."""
        if trainer.global_step == self._steps_before:
            return
        self._steps_before = None
        self.meter.end_step()
        if trainer.global_step % max(trainer.log_every_n_steps, 1) == 0:
            if pl_module.device.type != "cpu":
                import torch

                torch.accelerator.synchronize(pl_module.device)
            self.log_dict(self.named_figures())  # type: ignore[attr-defined, unused-ignore]  # set by the Trainer

    def on_validation_end(self, *_arguments: Any) -> None:
        """Leave the validation's time out."""
        self.meter.skip_time()

    def on_exception(self, *_arguments: Any) -> None:
        """Stop measuring a step that raised."""
        self.meter.close()

    def on_train_end(self, *_arguments: Any) -> None:
        """Stop."""
        self.meter.close()
