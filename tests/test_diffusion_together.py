"""Two detectors as one: the mean of their logits; what one of them could not judge is not judged."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from judge.diffusion.look import Look
from judge.diffusion.together import TORN, Together
from judge.errors import ConfigError
from judge.protocol import Scores
from prompts.taxonomy import Category, Taxonomy

TAXONOMY = Taxonomy("two", "1", (Category("a", "an a"), Category("b", "a b")))


@dataclass
class Fixed:
    categories: np.ndarray
    reasons: tuple[str | None, ...]
    name: str = "fixed"
    layers: tuple[str, ...] = ()
    log_snrs: tuple[float, float] = (-2.0, 3.0)

    def score(self, look: Look, taxonomy: Taxonomy) -> Scores:
        whole = np.where([reason is None for reason in self.reasons], self.categories.max(axis=1), np.nan)
        return Scores(whole, self.categories, self.reasons)


def look(rows: int) -> Look:
    latents = torch.zeros(rows, 1, 2, 2)
    return Look(3, 20, 0.0, latents, latents, latents, {}, torch.zeros(rows, 1, 1), (None,) * rows)


def test_logits_are_averaged_and_the_largest_is_the_whole() -> None:
    first = Fixed(np.array([[0.9, 0.2], [0.5, 1.0]]), (None, None), layers=("x", "y"))
    second = Fixed(np.array([[0.1, 0.2], [0.8, 1.0]]), (None, None), layers=("y", "z"), log_snrs=(-1.0, 5.0))
    both = Together(first, second)
    scores = both.score(look(2), TAXONOMY)
    np.testing.assert_allclose(scores.categories, [[0.5, 0.2], [2 / 3, 1.0]], rtol=1e-5)
    np.testing.assert_allclose(scores.unsafe, scores.categories.max(axis=1))
    assert both.layers == ("x", "y", "z")
    assert both.log_snrs == (-1.0, 3.0)


def test_what_one_did_not_judge_is_not_judged() -> None:
    first = Fixed(np.array([[0.1, 0.2], [np.nan, np.nan], [0.1, 0.1]]), (None, "no look", None))
    second = Fixed(np.array([[0.1, np.nan], [0.1, 0.1], [0.2, 0.2]]), (None, None, "not finite"))
    scores = Together(first, second).score(look(3), TAXONOMY)
    assert np.isnan(scores.categories[0, 1])
    assert scores.reasons == (TORN, "no look", "not finite")
    assert np.isnan(scores.unsafe).all()


def test_a_category_that_none_of_them_covers_leaves_the_others_judged() -> None:
    one = Fixed(np.array([[0.1, np.nan]]), (None,))
    scores = Together(one, one).score(look(1), TAXONOMY)
    assert scores.reasons == (None,)
    np.testing.assert_allclose(scores.unsafe, 0.1)


def test_detectors_that_never_answer_together_are_refused() -> None:
    early, late = (Fixed(np.zeros((1, 2)), (None,), log_snrs=bounds) for bounds in ((-4.0, -2.0), (1.0, 2.0)))
    with pytest.raises(ConfigError, match="no common log-SNR"):
        Together(early, late)
    with pytest.raises(ConfigError, match="two detectors or more; got 1"):
        Together(early)
