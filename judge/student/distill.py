"""Distillation: a cross-attention head learns what the judge says of flipped rows, and what is known for certain.

The loss of a step has three parts. *Soft*: the teacher's probabilities, both sides softened by a temperature (Hinton et
al. 2015, section 2). *Hard*: labels, where they are known. *Alignment*: among the categories of a policy, what is
found in an image should be most similar to the categories it violates (the contrastive term of arXiv 2504.11707, over
tokens as in FILIP), which keeps the joint space in order where no category was trained.

Each epoch states the policies anew: categories dropped, renamed, reworded. The teacher scored every category on its
own, so what it said still holds.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback

from judge.encoders.features import TokenTable
from judge.encoders.phrase_embeddings import PhraseEmbeddings
from judge.errors import ConfigError
from prompts.taxonomy import Category, Taxonomy

from .head import CrossAttentionHead, Queries
from .teacher_scores import ScoredGroup


@dataclass(frozen=True)
class DistillOptions:
    """How lessons are varied and weighed; shares are from 0 to 1.

    Raises:
        ConfigError: a number out of range.
    """

    hard_weight: float = 0.5
    """Weight of known labels; the rest is the teacher's. 0: the teacher alone."""
    temperature: float = 2.0
    """Softens teacher and student in the soft part of the loss."""
    alignment_weight: float = 0.1
    """Weight of the contrastive term."""
    drop: float = 0.2
    """Share of categories left out of a policy, anew in each epoch."""
    rename: float = 0.25
    """Share of categories shown under another of their names."""
    reword: float = 0.25
    """Share of categories shown with another of their definitions."""
    no_prompt: float = 0.1
    """Share of rows whose prompt is taken away."""

    def __post_init__(self) -> None:
        for name in ("hard_weight", "drop", "rename", "reword", "no_prompt"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"{name} is {getattr(self, name)}; a share lies between 0 and 1.")
        if self.temperature <= 0 or self.alignment_weight < 0:
            raise ConfigError(
                f"temperature {self.temperature} must be above 0, and alignment_weight {self.alignment_weight} "
                "not below."
            )


@dataclass(frozen=True)
class VariedGroup:
    """A lesson as one epoch states it."""

    taxonomy: Taxonomy
    images: tuple[str, ...]
    """Ids of the examples."""
    prompts: tuple[str | None, ...]
    soft: np.ndarray[Any, Any]
    """(N, 1 + K) the teacher's probabilities, of the whole first; NaN where it could not judge."""
    hard: np.ndarray[Any, Any]
    """(N, 1 + K) labels 0 or 1, of the whole first; NaN where nobody knows."""


class VariedGroups(Dataset[VariedGroup]):
    """The lessons of the current epoch; `set_epoch` states them anew."""

    def __init__(
        self, lessons: Sequence[ScoredGroup], taxonomy: Taxonomy, options: DistillOptions, *, seed: int
    ) -> None:
        if not lessons:
            raise ConfigError("There are no lessons to learn from; draw at least one policy.")
        self._lessons, self._options, self._seed = lessons, options, seed
        self._source = {category.key: category for category in taxonomy}
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose how the lessons are stated."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._lessons)

    def __getitem__(self, index: int) -> VariedGroup:
        rng = Random(f"lesson/{self._seed}/{self.epoch}/{index}")
        return vary_group(self._lessons[index], self._source, self._options, rng)


def vary_group(
    lesson: ScoredGroup, source: Mapping[str, Category], options: DistillOptions, rng: Random
) -> VariedGroup:
    """Drop, rename and reword some categories of a lesson, and keep its scores in step.

    Where categories are dropped, the teacher's whole becomes that of the rest: 1 - prod(1 - p).
    """
    count = len(lesson.taxonomy)
    kept = [k for k in range(count) if rng.random() >= options.drop] or [rng.randrange(count)]
    taken = {c.name.casefold() for k, c in enumerate(lesson.taxonomy) if k in kept}
    categories = []
    for k in kept:
        category = lesson.taxonomy.categories[k]
        taken.discard(category.name.casefold())
        category = _reword_category(category, source.get(category.key), taken, options, rng)
        taken.add(category.name.casefold())
        categories.append(category)
    taxonomy = Taxonomy(lesson.taxonomy.name, lesson.taxonomy.version, tuple(categories))
    scores = lesson.categories[:, kept]
    whole = lesson.unsafe if len(kept) == count else 1.0 - np.prod(1.0 - scores, axis=1)
    labels = np.array([[_number(known) for known in taxonomy.label(row.example)] for row in lesson.rows])
    return VariedGroup(
        taxonomy,
        tuple(row.example.id for row in lesson.rows),
        tuple(None if rng.random() < options.no_prompt else row.prompt for row in lesson.rows),
        np.column_stack([whole, scores]),
        np.column_stack([_any(labels), labels]),
    )


def _reword_category(
    category: Category, source: Category | None, taken: set[str], options: DistillOptions, rng: Random
) -> Category:
    if source is None:
        return category
    names = [name for name in (source.name, *source.aliases) if name.casefold() not in taken]
    if names and rng.random() < options.rename:
        category = replace(category, name=rng.choice(names))
    if source.rewordings and rng.random() < options.reword:
        category = replace(category, definition=rng.choice(source.rewordings), examples=())
    return category


def _number(known: bool | None) -> float:
    return math.nan if known is None else float(known)


def _any(labels: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """(N,) 1 where any label is 1, 0 where all are 0, NaN where an unknown one decides."""
    return np.where((labels == 1).any(axis=1), 1.0, np.where(np.isnan(labels).any(axis=1), np.nan, 0.0))


class DistillCollator:
    """Tasks -> tensors, from cached features."""

    def __init__(
        self,
        images: TokenTable,
        image_ids: Sequence[str],
        prompts: TokenTable,
        texts: Sequence[str],
        phrase_embeddings: PhraseEmbeddings,
    ) -> None:
        """`images` holds the tokens of `image_ids`, `prompts` those of `texts`, row by row."""
        self.images, self.prompts, self.phrase_embeddings = images, prompts, phrase_embeddings
        self.image_rows = {name: row for row, name in enumerate(image_ids)}
        self.text_rows = {text: row for row, text in enumerate(texts)}

    def __call__(self, tasks: Sequence[VariedGroup]) -> dict[str, Tensor]:
        """G tasks of N rows each -> tensors with leading dimensions (G, N); NaN pads targets."""
        groups, rows = len(tasks), len(tasks[0].images)
        phrases, kinds = self.phrase_embeddings.embed([task.taxonomy for task in tasks])
        image, _ = self.images.rows([self.image_rows[name] for task in tasks for name in task.images])
        prompt, mask = self._read([prompt for task in tasks for prompt in task.prompts])
        columns = 1 + max(len(task.taxonomy) for task in tasks)
        targets = {name: np.full((groups, rows, columns), np.nan) for name in ("soft", "hard")}
        for number, task in enumerate(tasks):
            targets["soft"][number, :, : task.soft.shape[1]] = task.soft
            targets["hard"][number, :, : task.hard.shape[1]] = task.hard
        return {
            "image": image.reshape(groups, rows, *image.shape[1:]),
            "prompt": prompt.reshape(groups, rows, *prompt.shape[1:]),
            "prompt_mask": mask.reshape(groups, rows, -1),
            "phrases": phrases,
            "kinds": kinds,
            **{name: torch.from_numpy(values).float() for name, values in targets.items()},
        }

    def _read(self, prompts: Sequence[str | None]) -> tuple[Tensor, Tensor]:
        """Tokens and mask of B prompts; all False where there is none."""
        there = torch.tensor([bool(prompt and prompt.strip()) for prompt in prompts])
        tokens, mask = self.prompts.rows([self.text_rows.get(prompt or "", 0) for prompt in prompts])
        return tokens, mask & there[:, None]


class Distillation(nn.Module):
    """A head and its loss, as transformers' Trainer takes it."""

    def __init__(self, head: CrossAttentionHead, options: DistillOptions) -> None:
        super().__init__()
        self.head, self.options = head, options

    def forward(
        self,
        image: Tensor,
        prompt: Tensor,
        prompt_mask: Tensor,
        phrases: Tensor,
        kinds: Tensor,
        soft: Tensor,
        hard: Tensor,
    ) -> dict[str, Tensor]:
        """The loss, and its parts under their names."""
        queries = self.head.queries(phrases, kinds)
        whole, category = self.head(image, prompt, prompt_mask, queries)
        logits = torch.cat([whole[..., None], category], dim=-1)
        options = self.options
        if not options.hard_weight:  # the teacher alone: no label may find another way in
            hard = torch.full_like(hard, math.nan)
        parts = {
            "soft": soft_loss(logits, soft, options.temperature),
            "hard": hard_loss(logits, hard),
            "alignment": alignment_loss(self.head, image, queries, hard[..., 1:], soft[..., 1:]),
        }
        loss = (1 - options.hard_weight) * parts["soft"] + options.hard_weight * parts["hard"]
        return {"loss": loss + options.alignment_weight * parts["alignment"], **parts}


def soft_loss(logits: Tensor, probability: Tensor, temperature: float) -> Tensor:
    """Binary cross-entropy with the teacher's probabilities, both at `temperature`, times its square.

    (..., 1 + K) with the whole first; NaN is left out. Less the teacher's own entropy, so that 0 is perfect.
    """
    known = ~probability.isnan()
    teacher = torch.logit(probability[known], eps=1e-4).div(temperature).sigmoid()
    pointwise = F.binary_cross_entropy_with_logits(logits[known] / temperature, teacher, reduction="none")
    entropy = F.binary_cross_entropy(teacher, teacher, reduction="none")
    return _balanced((pointwise - entropy) * temperature**2, known)


def hard_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Binary cross-entropy with known labels (..., 1 + K), the whole first; NaN is left out."""
    known = ~label.isnan()
    return _balanced(F.binary_cross_entropy_with_logits(logits[known], label[known], reduction="none"), known)


def _balanced(pointwise: Tensor, known: Tensor) -> Tensor:
    """Mean over the wholes plus mean over the categories: K categories weigh as much as one whole."""
    first = torch.zeros_like(known)
    first[..., 0] = True
    of_whole = first[known]
    return sum(
        (pointwise[chosen].sum() / chosen.sum().clamp(min=1) for chosen in (of_whole, ~of_whole)),
        start=pointwise.new_zeros(()),
    )


def alignment_loss(
    head: CrossAttentionHead, image: Tensor, queries: Queries, hard: Tensor, soft: Tensor, scale: float = 10.0
) -> Tensor:
    """Contrast, within each policy, of the categories an image violates with the others; 0 where there are none.

    Labels (G, N, K) where known, else the teacher's verdicts at 0.5. Cross-entropy with several positives: they
    share the target evenly.
    """
    similar = head.similarity(image, queries) * scale
    positive = torch.where(hard.isnan(), (soft > 0.5).to(hard.dtype), hard)
    there = (queries.kinds >= 0).any(-1)[:, None]
    positive = positive.nan_to_num(0.0) * there
    contrast = (positive.sum(-1) > 0) & ((1 - positive) * there).sum(-1).gt(0)
    if not contrast.any():
        return similar.sum() * 0.0
    log_share = similar.masked_fill(~there, -1e4).log_softmax(-1)
    target = positive / positive.sum(-1, keepdim=True).clamp(min=1)
    return -(target * log_share).sum(-1)[contrast].mean()


class _NewEpoch(TrainerCallback):  # type: ignore[misc]
    """States the lessons anew at the start of each epoch, also of one that a resumed run begins within."""

    def __init__(self, lessons: VariedGroups) -> None:
        self.lessons = lessons

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.lessons.set_epoch(math.floor((state.epoch or 0.0) + 1e-6))


class DistillTrainer(Trainer):  # type: ignore[misc]
    """transformers' Trainer: accelerate, checkpoints, resuming and loggers as people know them.

    Args:
        evaluator: scores held-out rows with the current head and returns numbers.
        options: Trainer's own.
    """

    def __init__(
        self, *, evaluator: Callable[[CrossAttentionHead], Mapping[str, float]], **options: Any
    ) -> None:
        super().__init__(**options)
        self.evaluator = evaluator
        self.add_callback(_NewEpoch(self.train_dataset))

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> Any:
        """Score the held-out rows."""
        model = self.accelerator.unwrap_model(self.model)
        training = model.training
        model.eval()
        metrics = {f"{metric_key_prefix}_{key}": value for key, value in self.evaluator(model.head).items()}
        model.train(training)
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def calibrate_head(head: CrossAttentionHead, logits: Tensor, labels: Tensor) -> None:
    """Fit the scale and shift of the head's probabilities (Platt 1999), in place.

    One pair for all categories and one for the whole: categories never trained on must profit too. A prior that
    counts like one row holds them near (1, 0), so that few rows, which anything separates, change little.

    Args:
        head: its `calibration` is replaced.
        logits: (B, 1 + K) of held-out rows, the whole first, NaN for padding.
        labels: (B, 1 + K) 0, 1, or NaN where not known.

    Raises:
        ConfigError: no unsafe or no safe row among them.
    """
    from scipy.optimize import minimize

    fitted = []
    for columns in (slice(1, None), slice(0, 1)):
        z, y = (values[:, columns].flatten().double().cpu().numpy() for values in (logits, labels))
        known = ~(np.isnan(z) | np.isnan(y))
        z, y = z[known], y[known]
        if not 0 < y.mean() < 1:
            raise ConfigError("Calibration needs unsafe and safe rows; the held-out set has only one kind.")

        def cost(pair: Any, z: Any = z, y: Any = y) -> float:
            logit = pair[0] * z + pair[1]
            prior = (pair[0] - 1) ** 2 + pair[1] ** 2
            return float(np.sum(np.logaddexp(0, logit) - y * logit) + prior / 2)

        fitted.append(minimize(cost, (1.0, 0.0), method="Nelder-Mead").x.tolist())
    head.calibration.copy_(torch.tensor(fitted))
