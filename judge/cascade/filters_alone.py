"""The cascade's two filters as a classifier of their own: a deployment without anything behind them, to be measured.

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

from judge.inputs import check_prompts, validate_inputs
from judge.protocol import Scores, on_one_scale
from judge.readings import Readings, with_notes
from prompts.taxonomy import Taxonomy

from .similarity import Platt, Similarities

if TYPE_CHECKING:
    from PIL.Image import Image

    from judge.encoders.dual import DualEncoder

    from .cascade import Cascade

Array = NDArray[np.float64]


@dataclass
class FilterClassifier:
    """p(a category is violated) is the larger of the image filter's and the text filter's; p(unsafe) the largest.

    Every window of a prompt is read; one that is not read leaves the image alone, and `Scores.notes` says so.
    So a prompt can only add suspicion. A text filter that learnt nothing is ignored: slope 0, as
    `judge.cascade.similarity.Platt.fit` gives it.

    Attributes:
        similarities: cosines of one encoder.
        text: from a prompt's cosine to a probability.
        image: from an image's cosine to a probability.
        name: shown in verdicts and reports.
        default_taxonomy: used where the caller gives none.
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
        """The first stage of a cascade; encoder and cached phrases are shared.

        A text filter that calibration switched off in the cascade, as it is never sure, is ignored here too.
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
        """Score B images with B prompts (or none at all) under a taxonomy of K categories."""
        readings = self.similarities.read_prompts(check_prompts(len(images), prompts))
        by_text = self.prompt_logits(readings, taxonomy)
        parts = [np.zeros((0, len(taxonomy)))]
        for start in range(0, len(images), self.batch_size):
            some = slice(start, start + self.batch_size)
            with torch.no_grad():
                tokens = self.encoder.encode_images(images[some])  # (b, 1 + P, D)
                logits = self.logits(tokens, by_text[some], taxonomy)
            parts.append(logits.double().sigmoid().cpu().numpy())
        categories: Array = np.concatenate(parts)  # (B, K)
        # max propagates NaN, so one category without a finite score makes the row unjudged.
        finite = np.isfinite(categories.max(axis=1))
        reasons = tuple(None if fine else f"{self.name} gave no finite score" for fine in finite)
        categories[~finite] = np.nan
        decided_by = ("filter",) * len(images)
        scores = Scores(categories.max(axis=1), categories, reasons, decided_by=decided_by)
        return with_notes(on_one_scale(scores), readings.notes)

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
        """
        place = None if category is None else taxonomy.index(category)
        readings = self.similarities.read_prompts(check_prompts(len(pixels), prompts))
        logits = self.logits(
            self.encoder.encode_pixels(pixels), self.prompt_logits(readings, taxonomy), taxonomy
        )
        return logits.amax(dim=1) if place is None else logits[:, place]

    def prompt_logits(self, readings: Readings, taxonomy: Taxonomy) -> Tensor:
        """(B, K) logits of the text filter; minus infinity where there is no prompt, or one that is not read."""
        cosines = torch.from_numpy(self.similarities.prompt_similarities(readings, taxonomy))
        return self.text.logits(cosines.to(self.encoder.device)).float().nan_to_num(nan=-torch.inf)

    def logits(self, image_tokens: Tensor, by_text: Tensor, taxonomy: Taxonomy) -> Tensor:
        """(B, K) logits of both filters, from (B, 1 + P, D) image tokens and (B, K) `prompt_logits`.

        Differentiable in both.
        """
        by_image = self.image.logits(self.similarities.cosines(image_tokens[:, 0], taxonomy))
        if self.text.slope == 0:
            return by_image
        return torch.maximum(by_image, by_text)
