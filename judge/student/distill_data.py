"""Distillation data: the teacher's groups, varied anew each epoch, as batches of cached features.

Each epoch drops, renames and rewords categories. The teacher scored every category on its own (`teacher_scores`), so
its scores stay valid.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from judge.encoders.features import TokenTable
from judge.encoders.phrase_embeddings import PhraseEmbeddings
from judge.errors import ConfigError
from prompts.flip.conditions import Conditional
from prompts.taxonomy import Category, Taxonomy

from .teacher_scores import ScoredGroup


@dataclass(frozen=True)
class DistillOptions:
    """How groups are varied, and the parts of the loss weighed; shares are from 0 to 1.

    Raises:
        ConfigError: a number out of range.
    """

    hard_weight: float = 0.5
    """Weight of known labels; the rest is the teacher's. 0 uses the teacher only."""
    temperature: float = 2.0
    """Softens teacher and student in the soft part of the loss."""
    alignment_weight: float = 0.1
    """Weight of the contrastive term."""
    scale_rate: float = 1.0
    """Learning rate of `CrossAttentionHead.scales`, in units of the others'. They start where a cosine of 0.4 is logit
    0; with an encoder of smaller ones they have far to go, and the rest of the head would bend instead."""
    drop: float = 0.2
    """Share of categories left out of a policy, drawn in each epoch."""
    rename: float = 0.25
    """Share of categories shown under another of their names."""
    reword: float = 0.25
    """Share of categories shown with another of their definitions."""
    no_prompt: float = 0.1
    """Share of rows whose prompt is removed."""

    def __post_init__(self) -> None:
        for name in ("hard_weight", "drop", "rename", "reword", "no_prompt"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"{name} is {getattr(self, name)}; a share lies between 0 and 1.")
        if min(self.temperature, self.scale_rate) <= 0 or self.alignment_weight < 0:
            raise ConfigError(
                f"temperature {self.temperature} and scale_rate {self.scale_rate} must be above 0, and "
                f"alignment_weight {self.alignment_weight} not below."
            )


@dataclass(frozen=True)
class VariedGroup:
    """A scored group of N rows as one epoch varies it, with K categories left."""

    taxonomy: Taxonomy
    images: tuple[str, ...]
    """Ids of the examples."""
    prompts: tuple[str | None, ...]
    soft: np.ndarray[Any, Any]
    """(N, 1 + K) the teacher's probabilities, first that anything is violated; NaN where it could not judge."""
    hard: np.ndarray[Any, Any]
    """(N, 1 + K) labels 0 or 1, first whether anything is violated; NaN where unknown."""


class VariedGroups(Dataset[VariedGroup]):
    """The groups of the current epoch; `set_epoch` varies them anew."""

    def __init__(
        self, groups: Sequence[ScoredGroup], taxonomy: Taxonomy, options: DistillOptions, *, seed: int
    ) -> None:
        if not groups:
            raise ConfigError("There are no scored groups to learn from; draw at least one policy.")
        self._groups, self._options, self._seed = groups, options, seed
        self._source = {category.key: category for category in taxonomy}
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, which seeds the variation."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, index: int) -> VariedGroup:
        # Seeded by place, so that rows do not depend on workers or on the order of access.
        rng = Random(f"lesson/{self._seed}/{self.epoch}/{index}")
        return vary_group(self._groups[index], self._source, self._options, rng)


def vary_group(
    group: ScoredGroup, source: Mapping[str, Category], options: DistillOptions, rng: Random
) -> VariedGroup:
    """Drop, rename and reword some categories of a group, and take its scores along.

    Where categories are dropped, P(unsafe) becomes that of the remaining ones: 1 - prod(1 - p).

    Args:
        group: rows with the teacher's scores.
        source: categories by key, with the names and definitions to choose from.
        options: how often.
        rng: all draws come from it.
    """
    count = len(group.taxonomy)
    kept = [k for k in range(count) if rng.random() >= options.drop] or [rng.randrange(count)]
    taken = {c.name.casefold() for k, c in enumerate(group.taxonomy) if k in kept}
    # Names must stay distinct: a new one may not be that of another category that is still to come.
    categories = []
    for k in kept:
        category = group.taxonomy.categories[k]
        taken.discard(category.name.casefold())
        category = _reword_category(category, source.get(category.key), taken, options, rng)
        taken.add(category.name.casefold())
        categories.append(category)
    taxonomy = Taxonomy(group.taxonomy.name, group.taxonomy.version, tuple(categories))
    scores = group.categories[:, kept]  # (N, K) -> (N, kept)
    whole = group.unsafe if len(kept) == count else 1.0 - np.prod(1.0 - scores, axis=1)
    prompts = [None if rng.random() < options.no_prompt else row.prompt for row in group.rows]
    # Of a category with a condition on the prompt, the prompt that is shown decides the label, and the teacher's score
    # was that of the prompt which it saw.
    shown = [replace(row.example, prompt=prompt) for row, prompt in zip(group.rows, prompts, strict=True)]
    labels = np.array([[_number(known) for known in taxonomy.label(example)] for example in shown])
    about_prompt = [isinstance(category, Conditional) and category.about_prompt for category in taxonomy]
    soft = np.column_stack([whole, scores])
    if any(about_prompt):
        removed = np.array([shown != row.prompt for row, shown in zip(group.rows, prompts, strict=True)])
        soft = np.where(removed[:, None] & np.array([True, *about_prompt]), np.nan, soft)
    return VariedGroup(
        taxonomy,
        tuple(row.example.id for row in group.rows),
        tuple(prompts),
        soft,
        np.column_stack([[_number(taxonomy.unsafe(example)) for example in shown], labels]),
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


class DistillCollator:
    """Groups -> tensors, from cached features."""

    def __init__(
        self,
        images: TokenTable,
        image_ids: Sequence[str],
        prompts: TokenTable,
        texts: Sequence[str],
        phrase_embeddings: PhraseEmbeddings,
    ) -> None:
        """`images` holds the tokens of `image_ids` and `prompts` those of `texts`, in the same order."""
        self.images, self.prompts, self.phrase_embeddings = images, prompts, phrase_embeddings
        self.image_rows = {name: row for row, name in enumerate(image_ids)}
        self.text_rows = {text: row for row, text in enumerate(texts)}

    def __call__(self, groups: Sequence[VariedGroup]) -> dict[str, Tensor]:
        """Batch G groups of N rows each.

        Returns:
            `image` (G, N, T, D), `prompt` (G, N, L, D) and `prompt_mask` (G, N, L); `phrases` (G, K, M, D) and `kinds`
            (G, K, M), -1 at padding; `soft` and `hard` (G, N, 1 + K), NaN at padding.
        """
        count, rows = len(groups), len(groups[0].images)
        phrases, kinds = self.phrase_embeddings.embed([group.taxonomy for group in groups])
        # All rows of all groups at once: (G * N, T, D).
        image, _ = self.images.rows([self.image_rows[name] for group in groups for name in group.images])
        prompt, mask = self._read([prompt for group in groups for prompt in group.prompts])
        columns = 1 + max(len(group.taxonomy) for group in groups)
        targets = {name: np.full((count, rows, columns), np.nan) for name in ("soft", "hard")}
        for number, group in enumerate(groups):
            targets["soft"][number, :, : group.soft.shape[1]] = group.soft
            targets["hard"][number, :, : group.hard.shape[1]] = group.hard
        return {
            "image": image.reshape(count, rows, *image.shape[1:]),
            "prompt": prompt.reshape(count, rows, *prompt.shape[1:]),
            "prompt_mask": mask.reshape(count, rows, -1),
            "phrases": phrases,
            "kinds": kinds,
            **{name: torch.from_numpy(values).float() for name, values in targets.items()},
        }

    def _read(self, prompts: Sequence[str | None]) -> tuple[Tensor, Tensor]:
        """Tokens (B, L, D) and mask (B, L) of B prompts; a row without prompt is all False."""
        present = torch.tensor([bool(prompt and prompt.strip()) for prompt in prompts])
        tokens, mask = self.prompts.rows([self.text_rows.get(prompt or "", 0) for prompt in prompts])
        return tokens, mask & present[:, None]
