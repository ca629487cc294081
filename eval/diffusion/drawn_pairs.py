"""Pairs of prompt and seed to make pictures of: split by prompt, with several seeds each."""

from collections.abc import Mapping, Sequence

import numpy as np

from judge.diffusion.pairs import Pair
from judge.errors import ConfigError

from .prompt_files import Prompt

TEST_SHARE = 1 / 6
"""Of the prompts of each kind, where no numbers of pairs are given."""


def draw_pairs(
    prompts: Sequence[Prompt],
    *,
    training: int | None = None,
    test: int | None = None,
    seeds_per_prompt: int = 4,
    shares: Mapping[str, float] | None = None,
    seed: int = 0,
) -> list[Pair]:
    """Pairs of all kinds of prompts, those for training first; equal arguments give equal pairs.

    No prompt is in both splits, nor do two pairs share a seed. Each prompt gets `seeds_per_prompt` seeds, or more
    where a kind has too few prompts for its pairs.

    Args:
        prompts: different ones.
        training: number of pairs to train on; None for all that the prompts give.
        test: the same for the test.
        seeds_per_prompt: 2 or more: pictures of one prompt that differ are what tells a detector from a text filter.
        shares: kind -> share of the pairs, adding up to 1; by default as the prompts have it.
        seed: of the split, the choice of prompts and the pictures' own seeds.

    Raises:
        ConfigError: a number out of its range, a kind of `shares` without prompts, or too few prompts for a split.
    """
    if seeds_per_prompt < 2:
        raise ConfigError(
            f"seeds_per_prompt is {seeds_per_prompt}; give 2 or more, to compare equal prompts."
        )
    by_kind: dict[str, list[str]] = {}
    for prompt in prompts:
        by_kind.setdefault(prompt.kind, []).append(prompt.text)
    wanted = dict(shares) if shares else {kind: len(of) / len(prompts) for kind, of in by_kind.items()}
    _check(wanted, by_kind)
    rng = np.random.default_rng([seed, 16])
    drawn: dict[str, list[Pair]] = {"train": [], "test": []}
    before = 0.0
    for kind, share in wanted.items():
        texts = by_kind[kind]
        order = [texts[place] for place in rng.permutation(len(texts))]
        tested = min(max(1, round(len(order) * _test_share(training, test))), len(order) - 1)
        parts = {"train": (order[tested:], training), "test": (order[:tested], test)}
        for split, (some, total) in parts.items():
            count = len(some) * seeds_per_prompt
            if total is not None:  # of the running sum, so that the parts add up
                count = round(total * (before + share)) - round(total * before)
            used = some[: max(1, min(len(some), -(-count // seeds_per_prompt)))]
            drawn[split] += [Pair(used[place % len(used)], 0, kind, split) for place in range(count)]
        before += share
    pairs = [pair for split in ("train", "test") for pair in _shuffled(drawn[split], rng)]
    first = seed * 10_000_019  # so that runs of other seeds share no noise
    return [Pair(pair.prompt, first + number, pair.kind, pair.split) for number, pair in enumerate(pairs)]


def _check(shares: Mapping[str, float], by_kind: Mapping[str, Sequence[str]]) -> None:
    known = ", ".join(kind or "none" for kind in by_kind)
    for kind, share in shares.items():
        if kind not in by_kind:
            raise ConfigError(f"shares name the kind {kind!r}, but the prompts have: {known}.")
        if not 0 < share <= 1:
            raise ConfigError(f"The share of {kind!r} is {share}; it lies between 0 and 1.")
        if len(by_kind[kind]) < 2:
            raise ConfigError(
                f"There is 1 prompt of kind {kind!r}; give 2 at least, so that none is both trained on and tested."
            )
    if abs(sum(shares.values()) - 1) > 1e-6:
        raise ConfigError(f"shares add up to {sum(shares.values()):g}; they have to add up to 1.")


def _test_share(training: int | None, test: int | None) -> float:
    if training is None or test is None:
        return TEST_SHARE
    return test / (training + test) if training + test else TEST_SHARE


def _shuffled(pairs: Sequence[Pair], rng: np.random.Generator) -> list[Pair]:
    """In random order, so that a part of a store is as good as all of it."""
    return [pairs[place] for place in rng.permutation(len(pairs))]
