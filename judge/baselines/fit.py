"""Train heads with fixed outputs on precomputed embeddings: targets, options and the training loop."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from judge.data.images import open_image
from judge.errors import ConfigError
from judge.protocol import Classifier, score_each_category
from prompts.example import Example
from prompts.taxonomy import Taxonomy

OPTIMIZERS = ("adam", "sgd")


class Targets(NamedTuple):
    """Training targets: probabilities in [0, 1], NaN where unknown."""

    unsafe: Tensor
    """(N,) float32, that any category is violated."""
    categories: Tensor
    """(N, K) float32."""


def label_targets(examples: Sequence[Example], taxonomy: Taxonomy) -> Targets:
    """Labels as targets; an image that violates one category is unsafe, even if others are unknown.

    Raises:
        ConfigError: a category without images known to violate it, or without images known not to.
    """
    known = {True: 1.0, False: 0.0, None: float("nan")}
    rows = [[known[label] for label in taxonomy.label(example)] for example in examples]
    categories = torch.tensor(rows, dtype=torch.float32).reshape(len(rows), len(taxonomy))
    for name, column in zip(taxonomy.names, categories.T, strict=True):
        violating, free = int((column == 1).sum()), int((column == 0).sum())
        if not violating or not free:
            raise ConfigError(
                f"{violating} training images violate {name!r} and {free} are known not to; both are needed. "
                "Add such images, or hold the category out."
            )
    some_unknown = categories.isnan().any(-1)
    unsafe = (categories == 1).any(-1).float()
    unsafe[some_unknown & (unsafe == 0)] = float("nan")
    return Targets(unsafe, categories)


def judge_targets(
    classifier: Classifier,
    examples: Sequence[Example],
    taxonomy: Taxonomy,
    *,
    batch_size: int = 32,
    progress: Callable[[int], Any] | None = None,
) -> Targets:
    """A classifier's probabilities as targets, with one question per category where it supports that.

    Args:
        classifier: the teacher; it scores each image with its prompt.
        examples: N images with prompts.
        taxonomy: of K categories.
        batch_size: images in one call.
        progress: called with the number of images done, for a progress bar.
    """
    unsafe, categories = [torch.zeros(0)], [torch.zeros(0, len(taxonomy))]
    for start in range(0, len(examples), batch_size):
        part = examples[start : start + batch_size]
        scores = score_each_category(
            classifier,
            [open_image(example.image) for example in part],
            [example.prompt for example in part],
            taxonomy,
        )
        unsafe.append(torch.as_tensor(scores.unsafe, dtype=torch.float32))
        categories.append(torch.as_tensor(scores.category_probabilities, dtype=torch.float32))
        if progress is not None:
            progress(start + len(part))
    return Targets(torch.cat(unsafe), torch.cat(categories))


@dataclass
class FitOptions:
    """How a head is trained; the defaults are those of UnsafeBench's linear probes (section A.5)."""

    epochs: int = field(default=30, metadata={"help": "Passes over the training images."})
    learning_rate: float = field(default=2e-4, metadata={"help": "Constant over the run."})
    train_batch_size: int = field(default=128, metadata={"help": "Images in a step, over all processes."})
    optimizer: str = field(default="adam", metadata={"help": "adam or sgd."})
    momentum: float = field(default=0.0, metadata={"help": "Of sgd."})
    weight_decay: float = field(default=0.0, metadata={"help": "L2 penalty of the optimiser."})
    seed: int = field(default=42, metadata={"help": "Of weights, order and evaluation."})

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ConfigError(f"optimizer is {self.optimizer!r}; use one of {', '.join(OPTIMIZERS)}.")
        if self.epochs < 1 or self.train_batch_size < 1 or not self.learning_rate > 0:
            raise ConfigError(
                f"epochs {self.epochs}, train_batch_size {self.train_batch_size} and learning_rate "
                f"{self.learning_rate} must all be positive."
            )

    def make_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Create the optimiser."""
        if self.optimizer == "sgd":
            return torch.optim.SGD(
                parameters, lr=self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay
            )
        return torch.optim.Adam(parameters, lr=self.learning_rate, weight_decay=self.weight_decay)


def masked_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of K two-way softmaxes: for each category the mean over its known rows, then their sum.

    The sum leaves every category's gradient as if it were trained alone.

    Args:
        logits: (B, K, 2), safe and unsafe.
        targets: (B, K), probability of unsafe in [0, 1]; NaN is left out.
    """
    known = ~targets.isnan()
    wanted = targets.nan_to_num(0.0)
    # Zero times the loss of unknown targets: `nan_to_num` keeps NaN out of the gradient too.
    log_p = logits.float().log_softmax(-1)
    losses = -(wanted * log_p[..., 1] + (1 - wanted) * log_p[..., 0]) * known
    return (losses.sum(0) / known.sum(0).clamp(min=1)).sum()


def fit(
    head: nn.Module,
    inputs: Sequence[Tensor],
    targets: Tensor,
    options: FitOptions,
    *,
    progress: Callable[[int], Any] | None = None,
) -> list[dict[str, float]]:
    """Train a head in place and set it to `eval`; under `accelerate launch`, processes share each batch.

    Args:
        head: maps batches of `inputs` to logits (B, K, 2).
        inputs: tensors of N rows each.
        targets: (N, K), see `masked_cross_entropy`.
        options: training options.
        progress: called with the number of epochs done, for a progress bar.

    Returns:
        For each epoch `epoch` and `loss`, the mean over steps and categories.

    Raises:
        ConfigError: a category without any known target, or a batch that the processes cannot share.
    """
    from accelerate import Accelerator
    from accelerate.utils import broadcast

    unknown = [place for place in range(targets.shape[1]) if bool(targets[:, place].isnan().all())]
    if unknown:
        raise ConfigError(
            f"Outputs {unknown} have no known target among {len(targets)} rows; nothing to learn."
        )
    accelerator = Accelerator()
    place, count, size = accelerator.process_index, accelerator.num_processes, options.train_batch_size
    if size % count:
        raise ConfigError(
            f"train_batch_size {size} cannot be shared by {count} processes; give a multiple of that."
        )
    # Everything on the device at once: embeddings are small.
    columns = [column.to(accelerator.device) for column in (*inputs, targets)]
    optimizer = options.make_optimizer(head.parameters())
    wrapped, optimizer = accelerator.prepare(head, optimizer)
    wrapped.train()
    generator = torch.Generator().manual_seed(options.seed)
    history = []
    for epoch in range(options.epochs):
        order = torch.randperm(len(targets), generator=generator).to(accelerator.device)
        losses = []
        # An incomplete last batch is dropped: a single row would break batch norm.
        for start in range(0, max(len(order) - size, 0) + 1, size):
            # Every process takes its rows of the same batch.
            mine = order[start : start + size][place::count]
            *batch, wanted = (column[mine] for column in columns)
            loss = masked_cross_entropy(wrapped(*batch), wanted)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            losses.append(loss.detach())
        mean = accelerator.reduce(torch.stack(losses).mean(), reduction="mean").item()
        history.append({"epoch": epoch + 1, "loss": mean / targets.shape[1]})
        if progress is not None:
            progress(epoch + 1)
    for buffer in head.buffers() if count > 1 else ():  # batch norm statistics differ between processes
        buffer.copy_(broadcast(buffer))
    head.eval()
    return history
