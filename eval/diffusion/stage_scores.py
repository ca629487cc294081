"""What every stage around a generator says about pictures that were all finished, once; costs follow from these scores.

Questions are pairs of a picture and a policy, as in `judge.cascade`: the same picture is unsafe under one policy and
safe under another, so a store of a few thousand pictures answers for many policies.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from judge.cascade.generation_stages import GenerationScores
from judge.cascade.similarity import Platt, Similarities
from judge.diffusion.detector import Detector
from judge.diffusion.look import Look
from judge.encoders.dual import DualEncoder
from judge.errors import ConfigError
from prompts.taxonomy import Taxonomy

Array = NDArray[np.float64]
BATCH = 256
"""Rows of a store that are scored at a time."""


class Asked(Protocol):
    """A prompt whose picture was made."""

    @property
    def prompt(self) -> str:
        """The text."""
        ...


class Looked(Protocol):
    """Pictures that were looked at while they were made, and finished, such as a `judge.diffusion.pairs.PairStore`."""

    @property
    def taxonomy(self) -> Taxonomy:
        """The K categories of the labels."""
        ...

    @property
    def at(self) -> tuple[int, ...]:
        """The steps after which there is a look."""
        ...

    @property
    def pairs(self) -> Sequence[Asked]:
        """What was asked for."""
        ...

    @property
    def labels(self) -> NDArray[np.float32]:
        """(N, K) scores of the finished pictures; NaN where unknown."""
        ...

    def look(self, rows: NDArray[np.int64], step: int) -> Look:
        """What some pictures showed after a step."""
        ...


@dataclass(frozen=True)
class StageScores:
    """Scores of N finished pictures under K categories, in the order of `taxonomy`; NaN where a stage did not judge."""

    taxonomy: Taxonomy
    prompts: tuple[str, ...]
    """N of them."""
    cosines: Array
    """(N, K) of the prompts to the categories, in [-1, 1]."""
    looks: Array
    """(N, S, K) of S looks, in order."""
    student: Array
    """(N, K) of the finished pictures."""
    labels: Array
    """(N, K) truth about the finished pictures, in [0, 1]; violated from 0.5."""


@dataclass(frozen=True)
class Questions:
    """Q pairs of a picture and a policy, with the score of every stage on the whole policy."""

    similarity: Array
    """(Q,) largest cosine of the prompt to a category of the policy."""
    looks: Array
    """(Q, S) p(unsafe)."""
    student: Array
    """(Q,) p(unsafe)."""
    unsafe: NDArray[np.bool_]
    """(Q,) the truth."""
    prompts: NDArray[np.str_]
    """(Q,) the prompts; questions that share one are not independent."""

    def __len__(self) -> int:
        return len(self.unsafe)

    def rows(self, chosen: Any) -> "Questions":
        """The questions that an index or mask chooses."""
        return replace(
            self,
            similarity=self.similarity[chosen],
            looks=self.looks[chosen],
            student=self.student[chosen],
            unsafe=self.unsafe[chosen],
            prompts=self.prompts[chosen],
        )

    def scores(self, curve: Platt | None, *, looks: bool, student: bool) -> GenerationScores:
        """The scores of the stages that there are; the prompt filter is there with a curve."""
        return GenerationScores(
            np.full(len(self), np.nan) if curve is None else curve(self.similarity),
            self.looks if looks else np.zeros((len(self), 0)),
            self.student if student else None,
        )


def score_store(
    store: Looked, rows: Sequence[int] | NDArray[np.int64], detector: Detector, encoder: DualEncoder
) -> StageScores:
    """Scores of some pictures of a store under its own taxonomy.

    The store's labels are the student's scores of the finished pictures and the truth both: a student that finishes the
    cascade is then right by construction, and what is measured is what stopping early costs in misses and false alarms.

    Args:
        store: pictures that were looked at and finished.
        rows: N of them.
        detector: looks at what the store kept.
        encoder: of the prompt filter, such as the student's.
    """
    rows, taxonomy = np.asarray(rows, np.int64), store.taxonomy
    looks = np.full((len(rows), len(store.at), len(taxonomy)), np.nan)
    for place, step in enumerate(store.at):
        for start in range(0, len(rows), BATCH):
            some = slice(start, start + BATCH)
            looks[some, place] = detector.score(store.look(rows[some], step), taxonomy).categories
    prompts = tuple(store.pairs[row].prompt for row in rows.tolist())
    labels = store.labels[rows].astype(np.float64)
    cosines = prompt_cosines(prompts, encoder, taxonomy)
    return StageScores(taxonomy, prompts, cosines, looks, labels, labels)


def prompt_cosines(prompts: Sequence[str], encoder: DualEncoder, taxonomy: Taxonomy) -> Array:
    """(N, K) cosines of N prompts to K categories, each different prompt encoded once."""
    different = list(dict.fromkeys(prompts))
    found = Similarities(encoder).prompt_similarities(different, taxonomy)
    places = {prompt: place for place, prompt in enumerate(different)}
    cosines: Array = found[[places[prompt] for prompt in prompts]]
    return cosines


def drawn_policies(categories: int, size: int, seed: int = 0) -> list[NDArray[np.int64]]:
    """Policies of about `size` of K categories, so that each category stands in exactly one.

    Raises:
        ConfigError: no categories, or a size that is none.
    """
    if not 1 <= size <= categories:
        raise ConfigError(f"A policy of {size} of {categories} categories; give at least 1 and at most all.")
    order = np.random.default_rng(seed).permutation(categories)
    return [np.sort(part) for part in np.array_split(order, max(1, categories // size))]


def ask(scores: StageScores, policies: Sequence[NDArray[np.int64]]) -> Questions:
    """Every picture under every policy; left out are those of which the truth is not known.

    Args:
        scores: of N pictures.
        policies: columns of `scores.taxonomy`, of each policy.
    """
    parts = []
    for columns in policies:
        truth = scores.labels[:, columns]
        # Violated by one that is known, or by none and all are known.
        unsafe = np.count_nonzero(truth >= 0.5, axis=1) > 0
        known = np.count_nonzero(np.isnan(truth), axis=1) == 0
        part = Questions(
            similarity=scores.cosines[:, columns].max(axis=1),
            looks=scores.looks[:, :, columns].max(axis=2),
            student=scores.student[:, columns].max(axis=1),
            unsafe=unsafe,
            prompts=np.array(scores.prompts),
        )
        parts.append(part.rows(unsafe | known))
    return Questions(
        *(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Questions))
    )


def split_prompts(questions: Questions, shares: Sequence[float], seed: int = 0) -> list[Questions]:
    """Questions in parts of these shares of the prompts; all of a prompt go into one part."""
    names, member = np.unique(questions.prompts, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    edges = np.round(np.cumsum([0.0, *shares]) / sum(shares) * len(names)).astype(int)
    parts = []
    for start, stop in pairwise(edges.tolist()):
        parts.append(questions.rows(np.isin(member, order[start:stop])))
    return parts
