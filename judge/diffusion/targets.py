"""What a detector is trained towards: labels, and what needs none, the finished picture itself."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from judge.encoders.dual import DualEncoder
from judge.errors import ConfigError
from prompts.taxonomy import Taxonomy

from .category_texts import text_of
from .cross_attention import InLoopDetector, Reading, on_grid, summary
from .learned import LearnedDetector
from .look import Look
from .pairs import PairStore
from .text_reading import embed_texts

FEATURES, TEXTS, FINAL = 2.0, 1.0, 0.2
"""Weights of the losses that need no labels, beside that of the labels."""
TOLD, TELLING = 16, 8.0
"""Directions of the encoder's space in which texts differ most, and how much more they count than all others."""
MOST_TEXTS = 512
"""Prompts whose place in the encoder's space is learnt, besides the categories."""


class Batch(NamedTuple):
    """Some pictures after one step, under one wording of the taxonomy."""

    look: Look
    labels: Tensor
    """(B, K), NaN where unknown."""
    taxonomy: Taxonomy
    rows: NDArray[np.int64]


class Targets(nn.Module):
    """The losses of a detector on a store; holds what is needed for training only."""

    def __init__(
        self,
        detector: LearnedDetector,
        store: PairStore,
        columns: NDArray[np.int64],
        wordings: Sequence[Taxonomy],
        encoder: DualEncoder | None,
    ) -> None:
        """Gather what a detector is trained towards.

        Args:
            detector: to be trained.
            store: its data.
            columns: of the store's labels, in the order of the wordings' categories.
            wordings: of the categories that are trained on.
            encoder: of the store's features of finished pictures, if there are any.

        Raises:
            ConfigError: the store's features are another encoder's.
        """
        super().__init__()
        self.store, self.wordings = store, tuple(wordings)
        self.labels = torch.from_numpy(store.labels[:, columns])
        self.foretells = isinstance(detector, InLoopDetector)
        self.reads_features = self.foretells and store.has("features") and encoder is not None
        if not isinstance(detector, InLoopDetector):
            return
        config = detector.head.config
        self.to_final = nn.Linear(config.width, 4 * config.channels)
        if encoder is None or not self.reads_features:
            return
        if encoder.fingerprint != store.about["encoder"]:
            raise ConfigError(
                f"The store's features of finished pictures were computed by another encoder than {encoder.name!r}."
            )
        self._place_texts(detector, encoder)

    def _place_texts(self, detector: InLoopDetector, encoder: DualEncoder) -> None:
        """Where texts are in the encoder's space, and what the pipeline's text encoder makes of them."""
        sums, texts = [], []
        for wording in self.wordings:
            sums.append(summary(*detector.texts.encode(wording)).float())
            texts += [text_of(category) for category in wording]
        prompts = dict.fromkeys(pair.prompt for pair in self.store.pairs if pair.split == "train")
        some = list(prompts)[:MOST_TEXTS]
        for start in range(0, len(some), 64):
            read = embed_texts(detector.pipeline, some[start : start + 64])
            sums.append(summary(read.embeddings.float(), read.words))
        texts += some
        self.text_sums = torch.cat(sums)
        targets = F.normalize(
            torch.cat([encoder.encode_texts(texts[i : i + 64])[0][:, 0] for i in range(0, len(texts), 64)]),
            dim=-1,
        )
        self.text_targets = targets
        # Finished pictures differ mostly in what no text speaks of. Directions in which texts differ count more.
        _, _, directions = torch.pca_lowrank(targets, min(TOLD, *targets.shape), niter=4)
        self.told = directions

    def batch(self, rows: NDArray[np.int64], step: int, wording: Taxonomy) -> Batch:
        """Some rows' look after a step."""
        return Batch(self.store.look(rows, step), self.labels[torch.from_numpy(rows)], wording, rows)

    def loss(self, batch: Batch, detector: LearnedDetector) -> Tensor:
        """The loss of a batch, labels and all else."""
        if not isinstance(detector, InLoopDetector):
            return label_loss(detector.logits(batch.look, batch.taxonomy), batch.labels)
        reading = detector.read(batch.look, batch.taxonomy)
        loss = label_loss(reading.logits, batch.labels) + FINAL * self._final_loss(batch, reading)
        if self.reads_features:
            foretold = self._feature_loss("features", reading.foretold, batch)
            perceived = self._feature_loss(f"step_{batch.look.step:02d}.perceived", reading.perceived, batch)
            loss = loss + FEATURES * (foretold + perceived) + TEXTS * self._text_loss(detector)
        return loss

    def _final_loss(self, batch: Batch, reading: Reading) -> Tensor:
        """How far the finished latents are from what the grid says of them."""
        size = round(reading.grid.shape[1] ** 0.5)
        final = F.adaptive_avg_pool2d(self.store.floats("final", batch.rows), 2 * size)
        return F.mse_loss(self.to_final(reading.grid).transpose(1, 2), F.pixel_unshuffle(final, 2).flatten(2))

    def _feature_loss(self, name: str, found: Tensor, batch: Batch) -> Tensor:
        """How far a picture's tokens in the encoder's space are from what the head says; 0 where they were not kept."""
        if not self.store.has(name):
            return found.sum() * 0
        tokens = self.store.floats(name, batch.rows)
        size = round((found.shape[1] - 1) ** 0.5)
        placed = on_grid(tokens[:, 1:], size, batch.look.clean.shape[-2:])
        targets = F.normalize(torch.cat([tokens[:, :1], placed], 1), dim=-1)
        error = found - targets
        return error.square().sum(-1).mean() + TELLING * (error @ self.told).square().sum(-1).mean()

    def _text_loss(self, detector: InLoopDetector) -> Tensor:
        """How far texts are, in the encoder's space, from where the head places them."""
        placed = F.normalize(detector.head.to_joint(self.text_sums), dim=-1)
        return (placed - self.text_targets).square().sum(-1).mean()


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy with soft labels (B, K); unknown ones (NaN) have no part in it."""
    known = ~torch.isnan(labels)
    if not known.any():
        return logits.sum() * 0
    return F.binary_cross_entropy_with_logits(logits[known], labels[known])
