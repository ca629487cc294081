"""What the trainers of judge and student share: data drawn anew each epoch, metrics from a function.

It is transformers' Trainer, so accelerate, DeepSpeed, checkpoints, resuming and loggers work as documented there.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from transformers import Trainer, TrainerCallback

from .files import share_files


@runtime_checkable
class EpochDataset(Protocol):
    """A dataset whose rows depend on the epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0."""
        ...


class SetEpoch(TrainerCallback):  # type: ignore[misc]
    """Tells the dataset its epoch, also that in the middle of which a resumed run starts."""

    def __init__(self, dataset: EpochDataset) -> None:
        self.dataset = dataset

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """`state.epoch` is a fraction after resuming; the small term absorbs its rounding."""
        self.dataset.set_epoch(math.floor((state.epoch or 0.0) + 1e-6))


class EvaluatingTrainer(Trainer):  # type: ignore[misc]
    """A Trainer whose evaluation is a function of the model.

    Args:
        evaluator: scores held-out rows with the unwrapped model and returns numbers; called at each evaluation, on
            every process. None evaluates nothing.
        options: Trainer's own.
    """

    def __init__(
        self, *, evaluator: Callable[[Any], Mapping[str, float]] | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        self.evaluator = evaluator
        if isinstance(self.train_dataset, EpochDataset):
            self.add_callback(SetEpoch(self.train_dataset))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Trainer's, for checkpoints too; others may read the files, and the empty card that peft adds is removed."""
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            (folder / "README.md").unlink(missing_ok=True)
            share_files(folder)

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Run the evaluator with the model in `eval` mode and log its numbers under prefixed keys, as Trainer does."""
        if self.evaluator is None:
            return {}
        model = self.accelerator.unwrap_model(self.model)
        training = model.training
        model.eval()
        metrics = {f"{metric_key_prefix}_{key}": value for key, value in self.evaluator(model).items()}
        model.train(training)
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
