"""How attacks travel: from one classifier to another, and from some images to all (one perturbation)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from adversarial.problem import Attack, find
from adversarial.storing import is_misjudged, to_images
from adversarial.threat import ThreatModel, in_grey_levels
from adversarial.universal import Universal

from .held_out import Question
from .scores import share, wilson
from .victims import ClassifierVictim, problem_of


def transfer_matrix(
    victims: Mapping[str, ClassifierVictim],
    questions: Sequence[Question],
    threat: ThreatModel,
    attack: Attack,
    *,
    batch_size: int = 32,
    seed: int = 0,
) -> dict[str, Any]:
    """Make pictures against each victim that has gradients, and show them to all.

    Args:
        victims: by name; rows and columns of the matrix.
        questions: the same for all.
        threat: the budget; pictures of one size, in the space `file`, so that all victims can be shown the same.
        attack: should not stop early: a picture that barely fools its maker's victim fools no other.
        batch_size: images in one forward pass.
        seed: of random starts.

    Returns:
        `epsilon`, and `matrix`: maker -> shown to -> `success` of the `rows` that the latter judges right when clean,
        by the real path on stored pictures.
    """
    matrix: dict[str, dict[str, Any]] = {}
    for maker, victim in victims.items():
        if victim.no_gradients is not None:
            continue
        hits: dict[str, list[int]] = {name: [0, 0] for name in victims}
        for part in problem_of(victim, questions, threat, batch_size=batch_size, seed=seed):
            problem = part.problem
            if not len(problem):
                continue
            stored = threat.stored(find(attack, problem).pixels, problem.images)
            clean, attacked = to_images(problem.images), to_images(stored)
            wanted = problem.signs.numpy() < 0
            for name, other in victims.items():
                before, after = (other.score(shown, problem.contexts) for shown in (clean, attacked))
                right = ~np.isnan(before) & ((before >= 0.5) != wanted)
                turned = right & ~np.isnan(after) & ((after >= 0.5) == wanted)
                hits[name][0] += int(turned.sum())
                hits[name][1] += int(right.sum())
        matrix[maker] = {
            name: {"success": share(*count), "rows": count[1], "interval": wilson(*count)}
            for name, count in hits.items()
        }
    return {"epsilon": in_grey_levels(threat.epsilon), "attack": attack.name, "matrix": matrix}


def attack_universally(
    victim: ClassifierVictim,
    questions: Sequence[Question],
    threat: ThreatModel,
    attack: Universal,
    *,
    batch_size: int = 32,
    seed: int = 0,
) -> dict[str, Any]:
    """Learn one perturbation on half of the unsafe images, and apply it to the other half, to be called safe.

    Where the goal is about a category, it is that category's images, to force or to hide it.
    """
    wanted = threat if threat.category else replace(threat, goal="safe")
    found: dict[str, Any] = {"epsilon": in_grey_levels(threat.epsilon)}
    for part in problem_of(victim, questions, wanted, batch_size=batch_size, seed=seed):
        problem = part.problem
        if len(problem) < 8:
            continue
        places = torch.arange(len(problem))
        shown = problem.subset(places[1::2])
        found_pixels = find(attack.fit(problem.subset(places[::2])), shown).pixels
        stored = threat.stored(found_pixels, shown.images)
        scores = victim.score(to_images(stored), shown.contexts)
        passed = int(is_misjudged(scores, shown.signs.numpy()).sum())
        found |= {"success": passed / len(shown), "rows": len(shown), "interval": wilson(passed, len(shown))}
    return found
