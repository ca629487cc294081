"""Edits as attacks: apply every edit at every severity, and score the results by the victim's real path.

Edits have no epsilon, so they are reported in a table of their own, never on a curve against epsilon.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from adversarial.errors import AttackError
from adversarial.problem import Problem
from adversarial.storing import to_images

from .base import SEVERITIES, Edit

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]


@dataclass(frozen=True)
class EditResult:
    """p(unsafe) of N pictures under E edits at S severities, by the real path.

    An unjudged picture (NaN) counts as an error: it is not right.
    """

    signs: Floats
    """(N,) 1 for unsafe pictures, -1 for safe ones."""
    severities: tuple[int, ...]
    clean: Floats
    """(N,) p(unsafe) before any edit."""
    unsafe: dict[str, Floats]
    """Edit -> (S, N) p(unsafe)."""

    @property
    def eligible(self) -> Booleans:
        """(N,) rows that are judged right before any edit."""
        return self._right(self.clean)

    def robust(self, edit: str) -> Booleans:
        """(S, N) rows that are right before and under the edit."""
        return self._right(self.unsafe[edit]) & self.eligible

    def robust_to_all(self) -> Booleans:
        """(N,) rows that are right under every edit at every severity."""
        robust = [self.robust(edit).all(axis=0) for edit in self.unsafe]
        worst: Booleans = np.all([self.eligible, *robust], axis=0)
        return worst

    def _right(self, unsafe: Floats) -> Booleans:
        right: Booleans = ~np.isnan(unsafe) & (self.signs * (unsafe - 0.5) >= 0)
        return right


@dataclass(frozen=True)
class EditAttack:
    """Try every edit at every severity on every picture; it needs no gradients, so any victim will do.

    Raises:
        AttackError: no edits, no severities, or severities that do not exist.
    """

    edits: Mapping[str, Edit]
    severities: tuple[int, ...] = SEVERITIES
    name: str = "edits"
    needs_gradients: bool = False

    def __post_init__(self) -> None:
        if not self.edits or not self.severities:
            raise AttackError("There is nothing to try; give at least one edit and one severity.")
        unknown = [severity for severity in self.severities if severity not in SEVERITIES]
        if unknown:
            raise AttackError(f"Severities {unknown} do not exist; they are 1, 2, 3, 4 and 5.")

    def run(self, problem: Problem) -> EditResult:
        """Edit the problem's images, rounded to bytes, and score them by `victim.score`, one policy per batch.

        The threat model's `epsilon` and `after` are ignored.
        """
        count = len(problem)
        clean = np.full(count, np.nan)
        unsafe = {edit: np.full((len(self.severities), count), np.nan) for edit in self.edits}
        for rows in problem.batches(torch.arange(count)):
            places = rows.numpy()
            contexts = [problem.contexts[row] for row in rows.tolist()]
            images = to_images(problem.images[rows])
            clean[places] = problem.victim.score(images, contexts)
            # Edits may change the size, so they stay pictures: the real path resizes them, tensors would not stack.
            for name, edit in self.edits.items():
                for level, severity in enumerate(self.severities):
                    edited = [edit(image, severity) for image in images]
                    unsafe[name][level, places] = problem.victim.score(edited, contexts)
        return EditResult(problem.signs.cpu().numpy().astype(np.float64), self.severities, clean, unsafe)
