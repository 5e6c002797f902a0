"""A callback for the Hugging Face Trainer: FLOPs per step, FLOP/s, MFU and tokens/s in its log."""

from typing import Any

from flopprof.errors import UsageError
from flopprof.integrations.meter import MeteredCallback

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise UsageError(
        "the callback for the Trainer needs transformers, and it is not installed",
        remedy="pip install 'flopprof[transformers]'",
    ) from error


class FlopsCallback(MeteredCallback, TrainerCallback):  # type: ignore[misc, unused-ignore]  # may be untyped
    """Logs what steps compute, and how fast, beside the Trainer's own figures.

    The first step, with all its micro-batches and the optimizer's part, is counted while it runs;
    after that only the clock is read. Steps of other sizes, the last of an epoch, are taken to do
    as much. Figures are of this process.

    `Trainer(…, callbacks=[FlopsCallback()])` logs to `state.log_history` and to the progress bar;
    `FlopsCallback().attach(trainer)` to TensorBoard, Weights & Biases and all others, too.

    Attributes:
        meter: Holds the run of the counted step, and what counting took.
    """

    def attach(self, trainer: Any) -> "FlopsCallback":
        """Join a Trainer ahead of the callbacks that report, so that they all see the figures."""
        trainer.callback_handler.callbacks.insert(1, self)  # after the one that controls the flow
        return self

    def on_train_begin(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:  # noqa: ARG002
        """Start over, since a step that raised is still being measured, and prepare the count."""
        self.meter.close()
        casts = {"bfloat16": args.bf16, "float16": args.fp16}
        dtypes = [name for name, is_used in casts.items() if is_used]
        self.meter.prepare(keywords.get("model"), dtypes)

    def on_step_begin(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:  # noqa: ARG002
        """Begin a step; of a compiled model ops are counted, since hooks would compile it anew."""
        self.meter.begin_step(None if args.torch_compile else keywords.get("model"))

    def on_step_end(self, *_arguments: Any, **_keywords: Any) -> None:
        """End a step."""
        self.meter.end_step()

    def on_log(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:  # noqa: ARG002
        """Add the figures to the Trainer's own, where those are of training."""
        logs = keywords.get("logs")
        if not logs or "loss" not in logs:
            return
        figures = self.named_figures()
        logs.update(figures)
        if state.log_history:
            state.log_history[-1].update(figures)

    def on_evaluate(self, *_arguments: Any, **_keywords: Any) -> None:
        """Leave the evaluation's time out."""
        self.meter.skip_time()

    def on_save(self, *_arguments: Any, **_keywords: Any) -> None:
        """Leave the time of saving out."""
        self.meter.skip_time()

    def on_train_end(self, *_arguments: Any, **_keywords: Any) -> None:
        """Stop."""
        self.meter.close()
