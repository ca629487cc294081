"""The baseline that needs no training: a classifier of finished pictures on the picture predicted so far."""

from typing import Any

import numpy as np
import torch

from judge.lessons.outside import unjudged_scores
from judge.protocol import Classifier, Scores, score_each_category
from prompts.taxonomy import Taxonomy

from .latent_colours import decoded
from .learned import finite_rows
from .look import Look


class DecodedPicture:
    """Decodes the predicted picture, and asks a classifier about it: any taxonomy that the classifier takes.

    It costs a pass of the decoder and one of the classifier at every look. The prompt is not shown to the classifier.
    """

    layers: tuple[str, ...] = ()
    log_snrs: tuple[float, float] = (-np.inf, np.inf)

    def __init__(self, pipeline: Any, classifier: Classifier, *, name: str = "decoded_picture") -> None:
        """Ask a classifier about pictures of a pipeline.

        Args:
            pipeline: whose autoencoder decodes.
            classifier: of pictures.
            name: of the detector.
        """
        self.pipeline, self.classifier, self.name = pipeline, classifier, name

    @torch.inference_mode()
    def score(self, look: Look, taxonomy: Taxonomy) -> Scores:
        """Score B pictures under K categories."""
        seen = finite_rows(look)
        if not seen.any():
            return unjudged_scores(
                len(seen), taxonomy, "what the denoiser predicted is not finite", self.name
            )
        pictures = decoded(self.pipeline, torch.where(seen[:, None, None, None], look.clean.float(), 0.0))
        images = self.pipeline.image_processor.postprocess(pictures, output_type="pil")
        scores = score_each_category(self.classifier, images, [None] * len(images), taxonomy)
        categories, whole = scores.categories.copy(), scores.unsafe.copy()
        broken = ~seen.cpu().numpy()
        categories[broken], whole[broken] = np.nan, np.nan
        reasons = tuple(
            "what the denoiser predicted is not finite" if bad else reason
            for bad, reason in zip(broken, scores.reasons, strict=True)
        )
        return Scores(whole, categories, reasons, decided_by=(self.name,) * len(images))
