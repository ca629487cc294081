"""The plainest classifiers on an encoder: the largest cosine with any phrase, and one fitted threshold.

Of any patch, or of the pooled embedding alone, as CLIPs are used zero-shot (Radford et al. 2021).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import expit

from eval.predict import predict_questions
from eval.questions import Question
from judge.encoders.dual import DualEncoder
from judge.encoders.phrase_embeddings import PhraseEmbeddings
from judge.encoders.phrases import CONDITION
from judge.inputs import validate_inputs
from judge.protocol import Scores, on_one_scale
from prompts import Taxonomy

from .encoder import best_threshold

if TYPE_CHECKING:
    from PIL.Image import Image

STEEPNESS = 20.0
"""Logits for a cosine more."""


@dataclass
class Cosine:
    """Scores a category by its phrases' largest cosine with a token of the image; prompts are ignored.

    Of a category with a condition on the prompt it takes the phrases about the image, the kindest reading.
    """

    encoder: DualEncoder
    pooled: bool = False
    """Look at the pooled embedding alone."""
    threshold: float = 0.0
    """The cosine at which a score is 0.5."""
    name: str = "cosine"
    batch_size: int = 64

    def __post_init__(self) -> None:
        self._embeddings = PhraseEmbeddings(self.encoder)

    @validate_inputs
    def score(
        self, images: "Sequence[Image]", prompts: Sequence[str | None] | None, taxonomy: Taxonomy
    ) -> Scores:
        """Score B images under a taxonomy of K categories."""
        embeddings, kinds = self._embeddings.embed([taxonomy])
        phrases = F.normalize(embeddings[0], dim=-1).to(self.encoder.device)
        left_out = ((kinds[0] < 0) | (kinds[0] == CONDITION)).to(self.encoder.device)
        found = [np.zeros((0, len(taxonomy)))]
        for start in range(0, len(images), self.batch_size):
            tokens = self.encoder.encode_images(images[start : start + self.batch_size])
            tokens = tokens[:, :1] if self.pooled else tokens
            cosines = torch.einsum("btd,kmd->bkmt", F.normalize(tokens, dim=-1), phrases).amax(-1)
            best = cosines.masked_fill(left_out, -1.0).amax(-1)
            found.append(expit(STEEPNESS * (best.double().cpu().numpy() - self.threshold)))
        categories = np.concatenate(found)
        return on_one_scale(Scores(categories.max(axis=1), categories, (None,) * len(images)))

    def fit(self, questions: Sequence[Question]) -> None:
        """Set the threshold to that of the largest F1 on these questions."""
        rows = predict_questions(self, questions)
        scores = np.array([row.unsafe for row in rows])
        best = best_threshold(np.array([row.truth for row in rows]), scores)
        self.threshold += float(np.log(best / (1 - best))) / STEEPNESS
