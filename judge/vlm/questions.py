"""What every vision-language judge does around its model: which questions it asks, and scores from their answers.

`judge.vlm.score` answers them fast, with cached policies and packed answers; `judge.vlm.plain` by ordinary calls of the
base's own processor and model. Questions, readings, envelopes and what cannot be judged are the same.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor, nn

from judge.calibration.thresholds import Thresholds
from judge.inputs import check_prompts, validate_inputs_for_taxonomies
from judge.lessons.envelope import LessonsEnvelope
from judge.lessons.evidence import Evidence
from judge.lessons.outside import unjudged_scores
from judge.protocol import Scores, on_one_scale
from judge.readings import combine_readings, read_prompts
from prompts.errors import ArbiterError
from prompts.reading import PromptMode
from prompts.taxonomy import Taxonomy

from .encode import ChatEncoder, Variant

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass
class QuestionJudge(ABC):
    """A vision-language model as a classifier of any taxonomy; a subclass answers its questions.

    Attributes:
        model: an `AutoModelForImageTextToText` in evaluation mode.
        processor: its processor, with a chat template.
        template: one of `prompts.TEMPLATES`; a tuned judge keeps the one it was trained with.
        name: what verdicts and reports call it.
        default_taxonomy: used if the caller has none.
        batch_size: images in one forward pass.
        prompt_mode: `max` scores each image alone and with its prompt and takes the higher: a prompt can only add
            suspicion. `use` and `ignore` ask once.
        envelope: how far its lessons reached. Outside, a policy leaves every image unjudged and a prompt is not read.
            None answers everything, as a base that had no lessons does.
        evidence: which categories it was trained and measured on.
        thresholds: its own, one a category, used where the caller gives none.
    """

    model: Any
    processor: Any
    template: str = "policy_first"
    name: str = "judge"
    default_taxonomy: Taxonomy | None = None
    batch_size: int = 8
    prompt_mode: PromptMode = "max"
    envelope: LessonsEnvelope | None = None
    evidence: Evidence | None = None
    thresholds: Thresholds | None = None

    supports_multilabel: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.encoder = ChatEncoder(self.processor, self.template)

    @property
    def image_processor(self) -> Any:
        """What resizes, crops and normalises the images; a part of `processor`."""
        return self.processor.image_processor

    def modules(self) -> tuple[nn.Module, ...]:
        """The model, with its adapter."""
        return (self.model,)

    def score(
        self,
        images: "Sequence[Image]",
        prompts: Sequence[str | None] | None,
        taxonomy: Taxonomy,
        *,
        multilabel: bool = False,
    ) -> Scores:
        """Score B images under one taxonomy of K categories.

        `unsafe` is the answer to the question about the whole policy in both cases. Without `multilabel`, a category's
        probability is that the answer names it: they sum to `unsafe`, so an image that violates two splits it between
        them. With `multilabel`, each category gets a question of its own, on the same image prefix. `categories` are
        these probabilities on one scale with the whole (`judge.protocol`), `separate` as such.

        Both are the largest over the image alone and with each window of its prompt (`judge.readings`). A prompt that
        does not fit the context, or lies outside the envelope, is not read, and `notes` says so. An image whose policy
        lies outside, or whose scores are not finite, is NaN with a reason.
        """
        return self.score_taxonomies(images, prompts, [taxonomy], multilabel=multilabel)[0]

    @validate_inputs_for_taxonomies
    def score_taxonomies(
        self,
        images: "Sequence[Image]",
        prompts: Sequence[str | None] | None,
        taxonomies: Sequence[Taxonomy],
        *,
        multilabel: bool = False,
    ) -> list[Scores]:
        """Score B images under several taxonomies; under `perspective` each image runs once for all of them."""
        readings = read_prompts(check_prompts(len(images), prompts), self.prompt_mode, self.envelope)
        outside = [self.outside_lessons(taxonomy) for taxonomy in taxonomies]
        inside = [index for index, reason in enumerate(outside) if reason is None]
        tables = [_Table(len(readings), taxonomy) for taxonomy in taxonomies]
        # With the image before the policy, all taxonomies are branches after it; else each has a prefix of its own.
        together = [inside] if inside and self.template == "perspective" else None
        for chosen in together or [[index] for index in inside]:
            for start in range(0, len(images), self.batch_size):
                rows = range(start, min(start + self.batch_size, len(images)))
                variants = [
                    [
                        variant
                        for reading in readings.of_row(row)
                        for index in chosen
                        for variant in self.encoder.variants(
                            taxonomies[index],
                            readings.texts[reading],
                            multilabel=multilabel,
                            index=index,
                            reading=reading,
                        )
                    ]
                    for row in rows
                ]
                answered = self._run([images[row] for row in rows], variants)
                for variant, log_probabilities, reason in answered:
                    if log_probabilities is None and readings.texts[variant.reading] is None:
                        self._check_policies([taxonomies[variant.taxonomy]])
                    _fill(tables[variant.taxonomy], variant, log_probabilities, reason)
        return [
            combine_readings(table.scores(), readings)
            if reason is None
            else unjudged_scores(len(images), taxonomy, reason)
            for table, taxonomy, reason in zip(tables, taxonomies, outside, strict=True)
        ]

    def outside_lessons(self, taxonomy: Taxonomy) -> str | None:
        """What of a policy lies outside the envelope, and what to do about it; None where nothing does."""
        if self.envelope is None:
            return None
        return self.envelope.why_policy_outside(taxonomy, self.policy_tokens)

    def policy_tokens(self, taxonomy: Taxonomy) -> int:
        """Tokens of a question under a policy, without image and prompt."""
        return self.encoder.policy_tokens(taxonomy)

    @abstractmethod
    def _run(
        self, images: "Sequence[Image]", variants: Sequence[Sequence[Variant]]
    ) -> Iterator[tuple[Variant, Tensor | None, str | None]]:
        """Yield (variant, log-probabilities (C,) of its answers or None, reason) for the questions about B images."""
        ...

    def _check_policies(self, taxonomies: Sequence[Taxonomy]) -> None:
        """Raise if a policy by itself does not fit, so that no image could be scored under it."""
        for taxonomy in taxonomies:
            tokens = self.encoder.policy_tokens(taxonomy)
            if tokens > self._context():
                raise ArbiterError(
                    f"The policy {taxonomy.name!r} takes {tokens} tokens and the model reads {self._context()}; "
                    "select fewer categories or shorten their definitions."
                )

    def _context(self) -> int:
        """Tokens that the language model reads at most."""
        config = self.model.config.get_text_config()
        return int(getattr(config, "max_position_embeddings", None) or 10**9)


class _Table:
    """Arrays for the scores of one taxonomy, filled row by row."""

    def __init__(self, rows: int, taxonomy: Taxonomy) -> None:
        self.unsafe = np.full(rows, np.nan)
        self.categories = np.full((rows, len(taxonomy)), np.nan)
        self.reasons: list[str | None] = [None] * rows

    def scores(self) -> Scores:
        return on_one_scale(Scores(self.unsafe, self.categories, tuple(self.reasons)))


def _fill(table: _Table, variant: Variant, log_probabilities: Tensor | None, reason: str | None) -> None:
    """Write the scores of one question into its reading's row, from the log-probabilities (C,) of its answers."""
    row, answers = variant.reading, variant.chat.answers
    if log_probabilities is None:
        table.reasons[row] = reason
        return
    # In float64, so that a sum of probabilities near 1 keeps its distance to 1.
    probabilities = log_probabilities.double().exp().numpy()
    if variant.focus is None:
        table.unsafe[row] = float(probabilities[1:].sum())  # all answers but the safe one
    for answer, probability in zip(answers, probabilities, strict=True):
        if answer.category is not None:
            table.categories[row, answer.category] = float(probability)
