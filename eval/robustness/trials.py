"""Records of attacks on one classifier: a row for each question, a trial for each attack on it at each budget.

The rows are the same questions for every victim, drawn once. A row is `robust` at a budget if it was judged right when
clean and no attack of the suite succeeded at this or any smaller budget: the worst case of each image, as in AutoAttack
and RobustBench. A row misjudged when clean is neither robust nor a success; the same holds for one that was unjudged.

A row that becomes unjudged under attack is not robust, in any column, and no success either, as it was not let through.
So robust accuracy and success rate need not add up to one.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adversarial.threat import format_epsilon
from eval.metrics.intervals import image_interval

STORED = "8bit"
"""The storage on which success counts: bytes, scored by the victim's real path."""


@dataclass(frozen=True)
class Row:
    """One question, and the victim's score before any attack."""

    id: str
    truth: bool
    """Whether the image is unsafe under its policy, or has the category that the goal is about."""
    source: str
    categories: tuple[str, ...]
    """Keys of the policy's categories that the image violates."""
    clean: float
    """p(unsafe) of the clean image by the real path; NaN where unjudged."""
    image: str = ""
    """Id of the image; rows of one image are not independent. Empty: an image of its own."""

    @property
    def correct(self) -> bool:
        """Whether it was judged right when clean, and so attacked."""
        return bool(self.clean == self.clean) and (self.clean >= 0.5) == self.truth


@dataclass(frozen=True)
class Trial:
    """One attack on one image at one budget."""

    id: str
    attack: str
    epsilon: float
    """In pixels of [0, 1]."""
    gap_clean: float
    """Signed margin of the clean image: a logit where the classifier has one, positive where it is right."""
    gap: float
    """Signed margin after the attack; below 0 it succeeded on its own floats."""
    steps: int
    """Steps after which its best point was found."""
    raw: bool
    """Success on the attack's own floats."""
    stored: Mapping[str, bool]
    """Success after each kind of storage, by the victim's real path; empty where nothing is stored."""
    levels: float
    """Largest change of a stored picture, in grey levels, JPEG's own loss included."""
    unjudged: bool = False
    """Whether a stored picture was unjudged by the real path, which is neither success nor robust."""

    @property
    def success(self) -> bool:
        """Success on bytes, where the threat model stores bytes; else on floats."""
        return self.stored.get(STORED, self.raw)


@dataclass
class VictimResults:
    """All trials of one victim under one suite."""

    name: str
    rows: list[Row]
    trials: list[Trial] = field(default_factory=list)
    spent: dict[str, dict[str, float]] = field(default_factory=dict)
    """Cost by attack: forwards, backwards, zero_gradients, seconds."""

    @property
    def truth(self) -> NDArray[np.bool_]:
        """(N,) bool, the rows' truth."""
        return np.array([row.truth for row in self.rows])

    @property
    def correct(self) -> NDArray[np.bool_]:
        """(N,) bool, judged right when clean."""
        return np.array([row.correct for row in self.rows])

    @property
    def images(self) -> NDArray[np.str_]:
        """(N,) the image of each row."""
        return np.array([row.image or f"row {row.id}" for row in self.rows])

    def interval(self, hits: NDArray[np.bool_]) -> tuple[float, float]:
        """(N,) bool hits -> their share's 95 % interval, clustered by image."""
        return image_interval(hits, self.images)

    def broken(
        self, epsilon: float, counts: Callable[[Trial], bool] = lambda trial: trial.success
    ) -> NDArray[np.bool_]:
        """(N,) bool, whether any trial at this budget or below `counts` as a success."""
        # A success at a smaller budget counts at every larger one, whose ball contains it.
        ids = {trial.id for trial in self.trials if trial.epsilon <= epsilon + 1e-9 and counts(trial)}
        return np.array([row.id in ids for row in self.rows])

    def robust(
        self, epsilon: float, counts: Callable[[Trial], bool] = lambda trial: trial.success
    ) -> NDArray[np.bool_]:
        """(N,) bool, judged right when clean, and neither broken nor unjudged in any trial up to this budget."""
        return self.correct & ~self.broken(epsilon, lambda trial: counts(trial) or trial.unjudged)


def trial_records(results: VictimResults) -> Iterable[dict[str, Any]]:
    """One record per trial, with the source and truth of its row, for trials.jsonl in the run folder."""
    rows = {row.id: row for row in results.rows}
    for trial in results.trials:
        row = rows[trial.id]
        about = {"image": row.image, "source": row.source, "truth": row.truth}
        yield {"victim": results.name, **asdict(trial), "epsilon": format_epsilon(trial.epsilon), **about}
