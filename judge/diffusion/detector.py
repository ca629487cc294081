"""The interface of every detector inside the diffusion loop: which of *these* categories will this picture violate?"""

from typing import Protocol

from judge.protocol import Scores
from prompts.taxonomy import Taxonomy

from .look import Look


class Detector(Protocol):
    """Anything that scores half-made pictures under a taxonomy chosen for this call.

    It belongs to one pipeline: to its denoiser, text encoder and autoencoder.
    """

    name: str
    layers: tuple[str, ...]
    """Names of the attention layers whose tokens it reads (`Look.tokens`); none for most."""
    log_snrs: tuple[float, float]
    """Lowest and highest log-SNR that it was trained or measured at; a look outside of these is not judged."""

    def score(self, look: Look, taxonomy: Taxonomy) -> Scores:
        """Score B pictures under K categories; NaN with a reason where it cannot judge, which is never safe."""
        ...
