"""The filters alone, as a deployment without anything behind them; and so as something that can be measured.

In a cascade the filters settle only what they are sure of. Alone they have to settle everything: an image is flagged
where its own embedding or its prompt's comes near a category, so an attacker has to get past both.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from judge.errors import ConfigError
from judge.protocol import Scores, on_one_scale
from judge.questions import check_prompts, validate_inputs
from prompts.taxonomy import Taxonomy

from .similarity import Platt, Similarities

if TYPE_CHECKING:
    from PIL.Image import Image

    from judge.encoders.dual import DualEncoder

    from .cascade import Cascade

Array = NDArray[np.float64]
PROMPT_TOO_LONG = "the prompt is longer than the filters read"


@dataclass
class FilterClassifier:
    """p(a category is violated) is the larger of the image filter's and the text filter's; p(unsafe) the largest.

    A filter that learnt nothing (slope 0, `judge.cascade.similarity.Platt.fit`) has no say beside one that did.

    Attributes:
        similarities: cosines of one encoder.
        text: from a prompt's cosine to a probability.
        image: from an image's cosine to a probability.
        name: what verdicts and reports call it.
        default_taxonomy: used where the caller has none of his own.
        batch_size: images in one pass of the encoder.
    """

    similarities: Similarities
    text: Platt
    image: Platt
    name: str = "filters"
    default_taxonomy: Taxonomy | None = None
    batch_size: int = 32

    @classmethod
    def from_cascade(cls, cascade: "Cascade", *, name: str = "filters") -> Self:
        """The first stage of a cascade; encoder and kept phrases are shared.

        A text filter that calibration gave no say in the cascade, as it is never sure, has none here either.
        """
        text = cascade.settings.text
        if not cascade.cutoffs.uses_text_filter:
            text = replace(text, slope=0.0)
        return cls(cascade.similarities, text, cascade.settings.image, name, cascade.default_taxonomy)

    @property
    def encoder(self) -> "DualEncoder":
        """What makes the embeddings."""
        return self.similarities.encoder

    @property
    def image_processor(self) -> Any:
        """What resizes, crops and normalises the images."""
        return self.encoder.image_processor

    def modules(self) -> tuple[nn.Module, ...]:
        """The encoder's model; the filters themselves are four numbers."""
        return (self.encoder.model,)

    @validate_inputs
    def score(
        self, images: "Sequence[Image]", prompts: Sequence[str | None] | None, taxonomy: Taxonomy
    ) -> Scores:
        """Score B images with B prompts (or none at all) under a taxonomy of K categories.

        A prompt that is longer than the filters read leaves its row unjudged: what nobody read is not safe.
        """
        prompts = check_prompts(len(images), prompts)
        parts = [np.zeros((0, len(taxonomy)))]
        for start in range(0, len(images), self.batch_size):
            some = slice(start, start + self.batch_size)
            with torch.no_grad():
                seen = self.encoder.encode_images(images[some])
                logits = self.logits(seen, self.prompt_logits(prompts[some], taxonomy), taxonomy)
            parts.append(logits.double().sigmoid().cpu().numpy())
        categories: Array = np.concatenate(parts)
        long = [self._too_long(prompt) for prompt in prompts]
        categories[long] = np.nan
        finite = np.isfinite(categories.max(axis=1))
        reasons = tuple(
            PROMPT_TOO_LONG if unread else None if fine else f"{self.name} gave no finite score"
            for unread, fine in zip(long, finite, strict=True)
        )
        categories[~finite] = np.nan
        decided_by = ("filter",) * len(images)
        return on_one_scale(Scores(categories.max(axis=1), categories, reasons, decided_by=decided_by))

    def pixel_margins(
        self,
        pixels: Tensor,
        prompts: Sequence[str | None] | None,
        taxonomy: Taxonomy,
        *,
        category: str | None = None,
    ) -> Tensor:
        """Logit of unsafe, differentiable in the images' pixels; the prompt's part has no gradient.

        Args:
            pixels: (B, 3, H, W) floats in [0, 1]; resizing, cropping and normalising happen in here.
            prompts: B prompts, or None.
            taxonomy: what is asked.
            category: name of a category, to give its logit instead.

        Returns:
            (B,) float32, the logit of `Scores.unsafe` or of the category's score; positive means unsafe.

        Raises:
            TaxonomyError: no such category.
            ConfigError: a prompt that is longer than the filters read.
        """
        place = None if category is None else taxonomy.index(category)
        prompts = check_prompts(len(pixels), prompts)
        if any(map(self._too_long, prompts)):
            raise ConfigError(f"A row has no margin: {PROMPT_TOO_LONG}. Leave it out, it is unjudged.")
        logits = self.logits(
            self.encoder.encode_pixels(pixels), self.prompt_logits(prompts, taxonomy), taxonomy
        )
        return logits.amax(dim=1) if place is None else logits[:, place]

    def prompt_logits(self, prompts: Sequence[str | None], taxonomy: Taxonomy) -> Tensor:
        """(B, K) logits by B prompts; minus infinity where there is no prompt, or a longer one than is read."""
        known = [None if self._too_long(prompt) else prompt for prompt in prompts]
        cosines = torch.from_numpy(self.similarities.prompt_similarities(known, taxonomy)).to(
            self.encoder.device
        )
        return self.text.logits(cosines).float().nan_to_num(nan=-torch.inf)

    def logits(self, image_tokens: Tensor, by_text: Tensor, taxonomy: Taxonomy) -> Tensor:
        """(B, K) logits of (B, 1 + P, D) image tokens with encoded prompts, differentiable in both."""
        by_image = self.image.logits(self.similarities.cosines(image_tokens[:, 0], taxonomy))
        if self.text.slope == 0:
            return by_image
        # Without a prompt there is nothing but the image, whatever its filter is worth.
        alone = torch.isneginf(by_text)
        return torch.where(alone | (self.image.slope > 0), torch.maximum(by_image, by_text), by_text)

    def _too_long(self, prompt: str | None) -> bool:
        return prompt is not None and self.encoder.too_long(prompt)
