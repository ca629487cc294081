"""Classifiers that give an image one score, whatever the policy; base class of most of this folder."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from judge.baselines.coverage import check_match, covered_scores
from judge.inputs import validate_inputs
from judge.protocol import Match, Scores
from prompts.taxonomy import Taxonomy
from prompts.taxonomy_file import load_taxonomy

if TYPE_CHECKING:
    from PIL.Image import Image


def covered_categories(keys: Sequence[str]) -> Taxonomy:
    """The categories of UnsafeBench with these keys, which a classifier covers by Table 3 of the paper."""
    return load_taxonomy("unsafebench").select(keys)


@dataclass(kw_only=True)
class OneScoreClassifier(ABC):
    """One score for every category that it covers; prompts and definitions are ignored.

    Attributes:
        name: what verdicts and reports call it.
        match: how the caller's categories are mapped to the covered ones (`judge.baselines.coverage`).
        batch_size: images in one pass.
        default_taxonomy: the covered categories of UnsafeBench.
    """

    name: str = ""
    match: Match = "members"
    batch_size: int = 16
    default_taxonomy: Taxonomy = field(init=False)

    kind: ClassVar[str]
    """Its name in the table of classifiers."""
    covers: ClassVar[tuple[str, ...]]
    """Keys of the categories of UnsafeBench that it covers (Table 3)."""
    scores_categories: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_match(self.match)
        self.name = self.name or self.kind
        self.default_taxonomy = covered_categories(self.covers)

    @validate_inputs
    def score(
        self, images: "Sequence[Image]", prompts: Sequence[str | None] | None, taxonomy: Taxonomy
    ) -> Scores:
        """Score B images under a taxonomy of K categories; what is not covered is NaN (`covered_scores`)."""
        starts = range(0, len(images), self.batch_size)
        parts = [self.probabilities(images[start : start + self.batch_size]) for start in starts]
        # The empty first part keeps `concatenate` valid for B = 0.
        found = np.concatenate([np.zeros(0), *parts])
        each = np.repeat(found[:, None], len(self.covers), axis=1)
        return covered_scores(self.name, each, self.default_taxonomy, taxonomy, self.match)

    @abstractmethod
    def probabilities(self, images: "Sequence[Image]") -> NDArray[np.float64]:
        """(B,) scores in [0, 1] of B RGB images, over 0.5 where the classifier itself says unsafe."""
