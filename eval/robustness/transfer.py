"""How attacks transfer: from one classifier to another, and from some images to all (a universal perturbation)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from adversarial.pixels.universal import Universal
from adversarial.search import Attack, run_verified
from adversarial.storing import is_misjudged, to_images
from adversarial.threat import ThreatModel, format_epsilon
from eval.metrics.arrays import ratio
from eval.metrics.intervals import image_interval
from eval.questions import Question

from .problems import build_problems
from .victims import ClassifierVictim


def transfer_matrix(
    victims: Mapping[str, ClassifierVictim],
    questions: Sequence[Question],
    threat: ThreatModel,
    attack: Attack,
    *,
    batch_size: int = 32,
    seed: int = 0,
) -> dict[str, Any]:
    """Craft pictures against each victim that has gradients, and score them by all.

    Args:
        victims: by name; rows and columns of the matrix.
        questions: the same for all.
        threat: the budget, in the space `file`, so that all victims can score the same pictures.
        attack: should not stop early: a picture that barely fools one victim rarely fools another.
        batch_size: images in one forward pass.
        seed: of random starts.

    Returns:
        `epsilon`, `attack`, and `matrix`: crafted against -> scored by -> `success` on the `rows` that the latter
        judges right when clean, by the real path on stored pictures.
    """
    matrix: dict[str, dict[str, Any]] = {}
    for maker, victim in victims.items():
        if victim.no_gradients is not None:
            continue
        hits: dict[str, list[tuple[bool, str]]] = {name: [] for name in victims}
        for part in build_problems(victim, questions, threat, batch_size=batch_size, seed=seed):
            problem = part.problem
            if not len(problem):
                continue
            stored = threat.quantize(run_verified(attack, problem).pixels, problem.images)
            clean, attacked = to_images(problem.images), to_images(stored)
            unsafe_wanted = problem.signs.numpy() < 0
            images = np.array([questions[place].row.example.id for place in part.places])
            for name, other in victims.items():
                before, after = (other.score(shown, problem.contexts) for shown in (clean, attacked))
                # Eligible rows differ by victim: those that it judges right when clean.
                right = ~np.isnan(before) & ((before >= 0.5) != unsafe_wanted)
                success = right & ~np.isnan(after) & ((after >= 0.5) == unsafe_wanted)
                hits[name] += zip(success[right].tolist(), images[right].tolist(), strict=True)
        matrix[maker] = {name: _success_rate(rows) for name, rows in hits.items()}
    return {"epsilon": format_epsilon(threat.epsilon), "attack": attack.name, "matrix": matrix}


def attack_universally(
    victim: ClassifierVictim,
    questions: Sequence[Question],
    threat: ThreatModel,
    attack: Universal,
    *,
    batch_size: int = 32,
    seed: int = 0,
) -> dict[str, Any]:
    """Learn one perturbation on half of the unsafe images that makes them safe, and measure it on the other half.

    With a goal of `force` or `hide` the images are those that match it.
    """
    goal = threat if threat.category else replace(threat, goal="safe")
    found: dict[str, Any] = {"epsilon": format_epsilon(threat.epsilon)}
    for part in build_problems(victim, questions, goal, batch_size=batch_size, seed=seed):
        problem = part.problem
        # Too few images to learn from and to measure on.
        if len(problem) < 8:
            continue
        places = torch.arange(len(problem))
        # Learned on even rows, measured on odd ones.
        shown = problem.subset(places[1::2])
        found_pixels = run_verified(attack.fit(problem.subset(places[::2])), shown).pixels
        stored = threat.quantize(found_pixels, shown.images)
        scores = victim.score(to_images(stored), shown.contexts)
        images = [questions[place].row.example.id for place in part.places[1::2]]
        found |= _success_rate(
            list(zip(is_misjudged(scores, shown.signs.numpy()).tolist(), images, strict=True))
        )
    return found


def _success_rate(rows: Sequence[tuple[bool, str]]) -> dict[str, Any]:
    """(success, image id) of each row -> the success rate, with its interval by image."""
    hits = [hit for hit, _ in rows]
    return {
        "success": ratio(sum(hits), len(hits)),
        "rows": len(rows),
        "interval": image_interval(hits, [image for _, image in rows]),
    }
