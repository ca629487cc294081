"""The judge as a classifier: probabilities over a closed set of answers, never generated text.

The model scores, token by token, the allowed answers only (constrained decoding of all branches at once). So P(unsafe)
and P(category) are parts of one distribution, and an invalid answer cannot occur. The tokens before the image (the
whole policy under `policy_first`) run once per taxonomy and their key-value cache is reused; the answers are packed
after each image as a token tree, so an image costs one forward pass. The question without the prompt and with it are
two branches of that tree, and the higher score counts: a prompt can only add suspicion. With several taxonomies, long
prompts or many categories, the image runs first and the branches of its large tree run as rows of a batch; questions
that taxonomies share are one branch.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from typing import TYPE_CHECKING, Any

import torch
from cachetools import LRUCache
from torch import Tensor

from judge.category_margin import category_margin
from judge.encoders.pixels import preprocess
from judge.errors import ConfigError
from judge.inputs import check_prompts
from judge.readings import read_prompts
from prompts.errors import ArbiterError
from prompts.taxonomy import Taxonomy
from prompts.template import render

from .answers import AnswerScorer, by_question
from .encode import Encoded, Variant
from .pack import Visual, stack_visual
from .questions import QuestionJudge
from .tree import one_vs_rest

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_CACHED_QUESTIONS = 1024
"""Size of the cache of tokenised questions, for attacks; the least recently used is evicted."""


@dataclass
class VisionLanguageJudge(QuestionJudge):
    """A vision-language model as a classifier of any taxonomy, by cached policies and packed answers."""

    _questions: "LRUCache[Any, Encoded]" = field(
        default_factory=lambda: LRUCache(MAX_CACHED_QUESTIONS), repr=False
    )
    _image_tokens: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.answers = AnswerScorer(self.model)

    def margins(self, visual: Visual, encoded: Sequence[Encoded], *, answer: int | None = None) -> Tensor:
        """Log P(unsafe) - log P(safe) of B rows, differentiable in `visual["pixel_values"]`; (B,) float32.

        Positive means unsafe; of a row with several questions (readings of the image), the largest. With `answer`, the
        logit of that answer against all others.

        Args:
            visual: pixel tensors of the B images.
            encoded: B rows that share the prefix (one taxonomy).
            answer: index among a question's continuations.
        """
        rows = [
            replace(row, questions=tuple(one_vs_rest(question, answer or 0) for question in row.questions))
            for row in encoded
        ]
        sign = 1 if answer is not None else -1  # answer 0 is the safe one

        def margin(scores: Tensor) -> Tensor:
            return sign * (scores[0] - scores[1:].logsumexp(dim=0))

        return self._highest_margins(visual, rows, margin)

    def _highest_margins(
        self, visual: Visual, encoded: Sequence[Encoded], margin: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """(B,) the largest over each row's questions of what `margin` makes of their log-probabilities (C,)."""
        found = self.answers.log_probabilities(visual, encoded, keep_gradient=True)
        return torch.stack(
            [
                torch.stack([margin(scores) for scores in by_question(row, all_scores)]).amax(dim=0)
                for row, all_scores in zip(encoded, found, strict=True)
            ]
        )

    def pixel_margins(
        self,
        pixels: Tensor,
        prompts: Sequence[str | None] | None,
        taxonomy: Taxonomy,
        *,
        category: str | None = None,
        focus: str | None = None,
    ) -> Tensor:
        """Log P(unsafe) - log P(safe), differentiable in the pixels of the images as they were posted.

        Args:
            pixels: (B, 3, H, W) floats in [0, 1]; resizing, cropping and normalising happen inside.
            prompts: B prompts, or None.
            taxonomy: the policy.
            category: the margin of this category's score, as without `multilabel`.
            focus: ask about this category only; then it is the logit of `Scores.separate` of `multilabel`, and
                `category` may only name the same one.

        Returns:
            (B,) float32, the logit of `Scores.unsafe` or of the category's score; positive means unsafe.

        Raises:
            TaxonomyError: no such category.
            ConfigError: a template whose answers do not name it.
            CheckpointError: a family whose image processor `pixels.preprocess` does not support.
            ArbiterError: a row does not fit the context.
        """
        prompts = check_prompts(len(pixels), prompts)
        place = None if category is None else self._answer_index(taxonomy, category, focus)
        # Gradients pass the resizing and normalisation; the image tokens depend on the size only.
        visual = {"pixel_values": preprocess(self.image_processor, pixels)}
        size = (int(pixels.shape[3]), int(pixels.shape[2]))
        encoded = [self._question(taxonomy, prompt, focus, size) for prompt in prompts]
        longest = max(map(len, encoded))
        if longest > self._context():
            raise ArbiterError(
                f"A row takes {longest} tokens and the model reads {self._context()}; shorten it."
            )
        if place is None or focus is not None:
            return self.margins(visual, encoded, answer=place)
        position = place - 1  # among the unsafe answers

        def margin(scores: Tensor) -> Tensor:
            unsafe = scores[1:].logsumexp(dim=0) - scores[0]
            return category_margin(unsafe[None], scores[None, 1:], position)[0]

        return self._highest_margins(visual, encoded, margin)

    def _question(
        self, taxonomy: Taxonomy, prompt: str | None, focus: str | None, size: tuple[int, int]
    ) -> Encoded:
        """The tokens of a question about an image of `size` (width, height), cached: attacks ask it at every step."""
        from PIL import Image

        if size not in self._image_tokens:
            self._image_tokens[size] = self.encoder.encode_image(Image.new("RGB", size))[0]
        key = (taxonomy, prompt, focus, size, self.prompt_mode, self.envelope)
        encoded = self._questions.get(key)
        if encoded is None:
            variants = [
                Variant(render(taxonomy, text, template=self.template, focus=focus))
                for text in read_prompts([prompt], self.prompt_mode, self.envelope).texts
            ]
            encoded = self._questions[key] = self.encoder.encode_row(variants, self._image_tokens[size])
        return encoded

    def _answer_index(self, taxonomy: Taxonomy, category: str, focus: str | None) -> int:
        """Index of the answer that names a category."""
        place = taxonomy.index(category)
        answers = render(taxonomy, template=self.template, focus=focus).answers
        for number, answer in enumerate(answers):
            if answer.category == place:
                return number
        question = (
            f"asked about {focus!r} alone" if focus is not None else f"under the template {self.template!r}"
        )
        raise ConfigError(
            f"No answer names {category!r} {question}; use policy_first or perspective, and focus on it or on nothing."
        )

    def _run(
        self, images: "Sequence[Image]", variants: Sequence[Sequence[Variant]]
    ) -> Iterator[tuple[Variant, Tensor | None, str | None]]:
        """Yield (variant, log-probabilities (C,) of its answers or None, reason)."""
        encoded, visual = self.encoder.encode(variants, images)
        limit = self._context()
        # One forward pass per policy.
        batches: dict[tuple[int, ...], list[int]] = {}
        asked: list[list[Variant]] = []
        for row, encoding in enumerate(encoded):
            fitting = [length <= limit for length in encoding.lengths]
            for variant, length, fits in zip(variants[row], encoding.lengths, fitting, strict=True):
                if not fits:
                    yield variant, None, f"the text takes {length} tokens, the model reads {limit}"
            encoded[row] = replace(encoding, questions=tuple(compress(encoding.questions, fitting)))
            asked.append(list(compress(variants[row], fitting)))
            if asked[row]:
                batches.setdefault(encoding.prefix, []).append(row)
        for rows in batches.values():
            batch = stack_visual([visual[row] for row in rows])
            scores = self.answers.log_probabilities(batch, [encoded[row] for row in rows])
            for row, row_scores in zip(rows, scores, strict=True):
                for variant, found in zip(
                    asked[row], by_question(encoded[row], row_scores.cpu()), strict=True
                ):
                    finite = bool(torch.isfinite(found).all())
                    yield (
                        variant,
                        found if finite else None,
                        None if finite else "the model gave no finite score",
                    )

    def clear_cache(self) -> None:
        """Drop cached policies; call it after the weights have changed."""
        self.answers.clear_cache()
