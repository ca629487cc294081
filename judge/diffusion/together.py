"""Two detectors as one, where accuracy is worth more than time."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from judge.errors import ConfigError
from judge.protocol import Scores
from prompts.taxonomy import Taxonomy

from .detector import Detector
from .look import Look

_LEAST = 1e-6
"""Scores this near to 0 or 1 have a logit of their own no more."""
TORN = "one of the detectors did not judge a category that another one did"


def mean_of_logits(scores: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Probabilities of one shape, in [0, 1], as one; NaN where any of them is."""
    bounded = np.clip(np.stack(scores), _LEAST, 1 - _LEAST)
    found: NDArray[np.float64] = 1 / (1 + np.exp(-np.mean(np.log(bounded) - np.log1p(-bounded), axis=0)))
    return found


class Together:
    """The mean of detectors' logits: what the denoiser knows, and what the decoded prediction shows already.

        detector = Together(load_detector("tiny-detector", pipeline), DecodedPicture(pipeline, classifier))

    A trained detector costs little and knows early; a classifier on the decoded prediction costs a pass of the decoder
    and knows late. A category that one of them did not judge, the mean does not judge.
    """

    def __init__(self, *detectors: Detector, name: str = "together") -> None:
        """Ask several detectors of one pipeline.

        Raises:
            ConfigError: fewer than two, or their ranges of log-SNR have nothing in common.
        """
        if len(detectors) < 2:
            raise ConfigError(f"Together takes two detectors or more; got {len(detectors)}.")
        lowest = max(detector.log_snrs[0] for detector in detectors)
        highest = min(detector.log_snrs[1] for detector in detectors)
        if lowest > highest:
            ranges = ", ".join(f"{detector.name} {detector.log_snrs}" for detector in detectors)
            raise ConfigError(f"These detectors answer at no common log-SNR: {ranges}.")
        self.detectors, self.name = detectors, name
        self.log_snrs = (lowest, highest)
        self.layers = tuple(dict.fromkeys(layer for detector in detectors for layer in detector.layers))
        self.pipeline: Any = next((d.pipeline for d in detectors if hasattr(d, "pipeline")), None)

    def score(self, look: Look, taxonomy: Taxonomy) -> Scores:
        """Score B pictures under K categories."""
        found = [detector.score(look, taxonomy) for detector in self.detectors]
        single = [scores.category_probabilities for scores in found]
        categories = mean_of_logits(single)
        # Judged by one and not by another: the row could pass for safe without it.
        missing = np.isnan(single).all(axis=0)
        torn: list[bool] = np.any(np.isnan(categories) & ~missing, axis=1).tolist()
        reasons = tuple(
            next((why for why in row if why), TORN if partly else None)
            for partly, *row in zip(torn, *(scores.reasons for scores in found), strict=True)
        )
        whole = np.fmax.reduce(categories, axis=1, initial=np.nan)
        whole[[reason is not None for reason in reasons]] = np.nan
        return Scores(whole, categories, reasons, decided_by=(self.name,) * len(whole))
