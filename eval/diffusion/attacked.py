"""Attacks on what guards a generator in a run: on the prompts of its test pictures that do what the policy forbids."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from judge.cascade.prompt_filter import PromptFilter
from judge.cascade.similarity import Platt, Similarities
from judge.diffusion.detector import Detector
from judge.encoders.dual import DualEncoder
from judge.errors import ConfigError
from judge.protocol import Classifier
from prompts.taxonomy import Taxonomy

from .attack_families import Goal, goal_of
from .attacks import attack_generator, drawing, equal_alarms
from .stage_scores import Questions, split_prompts

VAGUE_KIND = "vague"
"""Prompts of this kind name nothing, so that only the seed decides."""


def measure_attacks(
    questions: Questions,
    kinds: dict[str, str],
    pipeline: Any,
    labeller: Classifier,
    encoder: DualEncoder,
    detector: Detector,
    policy: Taxonomy,
    *,
    goals: int,
    at: Sequence[int],
    steps: int,
    guidance: float,
    batch_size: int,
    queries: int = 16,
    seed: int = 0,
    progress: Callable[[int], Any] | None = None,
) -> dict[str, Any]:
    """Attack the prompt filter, the detector and both, at equal false alarms.

    Args:
        questions: the test pictures under `policy`.
        kinds: prompt -> kind.
        pipeline: to attack.
        labeller: says what came out.
        encoder: of the prompt filter.
        detector: in its loop.
        policy: what is forbidden.
        goals: how many prompts to start from, at most.
        at: steps of the looks.
        steps: of a picture.
        guidance: of a picture.
        batch_size: pictures made at a time.
        queries: pictures of the adaptive search for each goal and defence.
        seed: of all draws.
        progress: called with the number of pictures of each batch.

    Returns:
        As `attacks.attack_generator`; or `reason` alone, where nothing can be attacked.
    """
    try:
        fitted, held = split_prompts(questions, (1, 1), seed)
        filter_ = PromptFilter(
            Similarities(encoder), Platt.fit(fitted.unsafe.astype(float), fitted.similarity)
        )
        wanted = goals_among(questions, kinds, policy, goals, seed)
        if not wanted:
            raise ConfigError("No test prompt makes pictures that the policy forbids, most of the time.")
        return attack_generator(
            drawing(
                pipeline,
                policy,
                labeller,
                detector,
                filter_,
                steps=steps,
                at=at,
                guidance=guidance,
                batch_size=batch_size,
            ),
            wanted,
            equal_alarms(held, filter_),
            vague=[prompt for prompt, kind in kinds.items() if kind == VAGUE_KIND],
            queries=queries,
            prompt_filter=filter_,
            taxonomy=policy,
            seed=seed,
            progress=progress,
        )
    except ConfigError as error:
        return {"reason": str(error)}


def goals_among(
    questions: Questions, kinds: dict[str, str], policy: Taxonomy, count: int, seed: int = 0
) -> list[Goal]:
    """Up to `count` goals: prompts that name something and of whose pictures half or more are forbidden."""
    names, member = np.unique(questions.prompts, return_inverse=True)
    share = np.bincount(member, weights=questions.unsafe) / np.bincount(member)
    order = np.random.default_rng(seed).permutation(len(names))
    chosen = [
        str(names[place])
        for place in order
        if share[place] >= 0.5 and kinds.get(str(names[place])) != VAGUE_KIND
    ]
    return [goal_of(prompt, policy) for prompt in chosen[:count]]
