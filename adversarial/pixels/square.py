"""Square: a random search that needs no gradients.

A victim may mask its gradients (rounding, saturation, a step without derivative) without being more robust. Square does
not depend on them, so where it beats the gradient attacks, gradients are masked.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from adversarial.errors import AttackError
from adversarial.problem import AttackResult, Problem
from adversarial.search import Search

from .steps import check_counts

_HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries out of 10,000 after which the share of changed pixels is halved (paper, section 5)."""


@dataclass(frozen=True)
class Square:
    """Recolour random squares at the edge of the budget, and keep changes that lower the margin.

    Andriushchenko et al. 2020, "Square attack: a query-efficient black-box adversarial attack via random search",
    algorithms 1 and 2 (L-inf). It starts from stripes one pixel wide. Each query sets one square to plus or minus
    epsilon, one sign a channel; squares shrink on the paper's schedule, stretched to the number of queries. A draw
    that would change nothing is replaced by another of the seven sign patterns, so that no query is wasted.

    Raises:
        AttackError: no queries, or a share that is not in (0, 1].
    """

    queries: int = 5000
    """Queries for each image, the clean one not counted."""
    share: float = 0.8
    """Share of the pixels in the first square, p in the paper."""

    name = "square"
    needs_gradients = False

    def __post_init__(self) -> None:
        check_counts(queries=self.queries)
        if not 0 < self.share <= 1:
            raise AttackError(f"share is {self.share}; it is part of the image, above 0 and at most 1.")

    def run(self, problem: Problem) -> AttackResult:
        """Query until an image is misjudged or its queries are used up.

        Raises:
            AttackError: an L2 budget.
        """
        if problem.threat.norm != "linf":
            raise AttackError(
                f"Square has an L-inf budget and got {problem.threat.norm}; for L2 use APGD, FAB or a transfer."
            )
        search, draws = Search(problem, self.queries), _Draws(problem, self.queries)
        points, lowest = problem.images.clone(), torch.full((len(problem),), torch.inf)
        step = 0
        while batches := search.batches():
            for rows in batches:
                # Query 0 is the initial stripes, later ones change one square of the best point.
                pixels = self._recolour(rows, points[rows], draws, step) if step else draws.stripes(rows)
                margin = problem.signed_margins(pixels, rows)
                search.update(rows, pixels, margin)
                better = margin < lowest[rows]
                points[rows[better]], lowest[rows[better]] = pixels[better], margin[better]
            step += 1
        return search.result

    def side(self, step: int, pixels: int) -> int:
        """Side of the square at a query, for images of `pixels` = height times width."""
        place = step * 10_000 / self.queries
        halvings = sum(place > border for border in _HALVED_AT)
        return max(1, round(math.sqrt(self.share / 2**halvings * pixels)))

    def _recolour(self, rows: Tensor, here: Tensor, draws: "_Draws", step: int) -> Tensor:
        height, width = here.shape[2:]
        side = min(self.side(step, height * width), height, width)
        places = draws.places[rows, step]
        # Positions were drawn in [0, 1) before the square's side was known.
        top = (places[:, 0] * (height - side + 1)).long()
        left = (places[:, 1] * (width - side + 1)).long()
        # Index arrays that broadcast to (B, 3, side, side).
        down = (top[:, None] + torch.arange(side))[:, None, :, None]
        across = (left[:, None] + torch.arange(side))[:, None, None, :]
        channels = torch.arange(3)[:, None, None]
        batch = torch.arange(len(rows))[:, None, None, None]
        square, there = (batch, channels, down, across), (rows[:, None, None, None], channels, down, across)
        low, high, old = draws.low[there], draws.high[there], here[square]
        up = draws.signs(rows, step)
        new = torch.where(up[:, :, None, None], high, low)
        # The square may have these colours already; then flip the sign of some channels instead.
        same = (new == old).flatten(1).all(1)
        if bool(same.any()):
            up = up ^ (draws.flips(rows, step) & same[:, None])
            new = torch.where(up[:, :, None, None], high, low)
        pixels = here.clone()
        pixels[square] = new
        return pixels


class _Draws:
    """All random choices of a run, seeded by each image's name so that they do not depend on the batch."""

    def __init__(self, problem: Problem, queries: int) -> None:
        images, threat = problem.images, problem.threat
        # The two values of each pixel at the edge of the budget, clipped to [0, 1].
        self.low = threat.project(images - threat.epsilon, images)
        self.high = threat.project(images + threat.epsilon, images)
        self.places = torch.empty(len(problem), queries, 2)
        self._codes = torch.empty(len(problem), queries, 2, dtype=torch.uint8)
        self._stripes = torch.empty(len(problem), 3, 1, images.shape[3], dtype=torch.bool)
        for row in range(len(problem)):
            # (queries, 2) positions, (queries, 2) sign codes and (3, 1, W) stripes for each image.
            random = np.random.default_rng(problem.seed_of(row, "square"))
            self.places[row] = torch.from_numpy(random.random((queries, 2), dtype=np.float32))
            self._codes[row] = torch.from_numpy(random.integers((0, 1), 8, (queries, 2), dtype=np.uint8))
            self._stripes[row] = torch.from_numpy(random.random((3, 1, images.shape[3])) < 0.5)

    def stripes(self, rows: Tensor) -> Tensor:
        """(B,) rows -> (B, 3, H, W) vertical stripes at the edge of the budget."""
        return torch.where(self._stripes[rows], self.high[rows], self.low[rows])

    def signs(self, rows: Tensor, step: int) -> Tensor:
        """(B,) rows -> (B, 3) bool, whether a channel of the square goes up."""
        return _bits(self._codes[rows, step, 0])

    def flips(self, rows: Tensor, step: int) -> Tensor:
        """(B,) rows -> (B, 3) bool, channels to flip if the first choice changed nothing; at least one."""
        return _bits(self._codes[rows, step, 1])


def _bits(codes: Tensor) -> Tensor:
    """(B,) uint8 codes below 8 -> (B, 3) bool."""
    return (codes[:, None] & torch.tensor([1, 2, 4], dtype=torch.uint8)) > 0
