"""Pictures made of words: what a tower aligned to MiniLM would see, as mixtures of a language model's own embeddings.

A patch of `small-clip` is a direction in MiniLM's space. Its likeness to a few hundred words says how much of each
word's embedding in the language model it becomes; a patch that is like none becomes a word for nothing. So a language
model learns to read pictures before there are any, and a projector can be fitted to the same mixtures.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from numpy.random import Generator

SCALE = 40.0
"""Sharpness of a mixture: factor on cosines before the softmax; about what the tower of small-clip learned."""
NOTHING = 0.18
"""Cosine from which a patch is more like a word than like nothing."""
NOTHING_WORD = "blank"
SIDE = 7
"""Patches in a row."""
Embed = Callable[[Sequence[str]], Tensor]
"""N texts -> (N, D) of unit length, minus the centre, in the tower's space."""


@dataclass(frozen=True)
class Mixer:
    """Turns directions of the tower's space into embeddings of a language model."""

    directions: Tensor
    """(W, D), of unit length."""
    embeddings: Tensor
    """(W + 1, H): of the words, and last of `NOTHING_WORD`."""

    @classmethod
    def of(cls, words: Sequence[str], embed: Embed, tokenizer: Any, weight: Tensor) -> "Mixer":
        """Mixtures of `words`, with the language model's embeddings `weight` (V, H); a word's tokens are averaged."""
        rows = []
        for word in (*words, NOTHING_WORD):
            ids = tokenizer(f" {word}", add_special_tokens=False).input_ids
            rows.append(weight[ids].float().mean(0))
        return cls(F.normalize(embed(words), dim=-1), torch.stack(rows))

    def likeness(self, patches: Tensor) -> Tensor:
        """(..., D) directions -> (..., W) cosines to the words."""
        return F.normalize(patches, dim=-1) @ self.directions.T

    def mixture(self, likeness: Tensor) -> Tensor:
        """(..., W) cosines -> (..., H) embeddings."""
        nothing = torch.full_like(likeness[..., :1], NOTHING)
        return (SCALE * torch.cat([likeness, nothing], dim=-1)).softmax(-1) @ self.embeddings


def places(count: int, rng: "Generator") -> Tensor:
    """Which of `count` signs covers each patch, -1 for none: (SIDE * SIDE,) long; squares as scenes have them."""
    low, high = {0: (3, 3), 1: (3, 5), 2: (3, 4), 3: (2, 3), 4: (2, 3)}[count]
    grid = torch.full((SIDE, SIDE), -1)
    corners = [(0, 0), (0, 4), (4, 0), (4, 4)]
    rng.shuffle(corners)
    for number in range(count):
        side = int(rng.integers(low, high + 1))
        # Beyond one sign, each has a quarter of its own, and may reach a little over its edge.
        reach = SIDE - side if count == 1 else max(0, 4 - side)
        row, column = (int(edge) for edge in rng.integers(0, reach + 1, 2))
        if count > 1:
            row, column = row + corners[number][0], column + corners[number][1]
        grid[row : row + side, column : column + side] = number
    return grid.flatten()


def word_picture(likeness: Tensor, rng: "Generator") -> Tensor:
    """What the patches of a picture are like: (SIDE * SIDE, W), as noisy as those of small-clip's tower.

    Args:
        likeness: (N, W), cosines of up to four things to the words.
        rng: of places and noise.
    """
    count, width = likeness.shape
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    # A sign is seen well or badly as a whole, and less well at its edges; the ground is like nothing.
    strength = 0.15 + 0.17 * torch.rand(count, 1, generator=generator)
    signs = strength * likeness + 0.02 * torch.randn(count, width, generator=generator)
    covered = torch.cat([signs, torch.full((1, width), -0.02)])[
        places(count, rng)
    ]  # -1, the last, is the ground
    faded = 0.6 + 0.4 * torch.rand(SIDE * SIDE, 1, generator=generator)
    return covered * faded + 0.03 * torch.randn(SIDE * SIDE, width, generator=generator)
