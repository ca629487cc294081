"""Robustness to edits, corruptions and writing on the picture; without an epsilon, so in a table of its own."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adversarial.edits.attack import EditAttack
from adversarial.edits.base import Edit
from adversarial.edits.corruptions import CORRUPTIONS
from adversarial.edits.platform import EDITS
from adversarial.edits.writing import typographic, words_for
from adversarial.problem import Problem
from adversarial.threat import ThreatModel
from eval.questions import Question

from .problems import build_problems
from .victims import ClassifierVictim

Booleans = NDArray[np.bool_]
MOST_NAMES = 3
"""Category names that are written on a safe picture, one edit each."""


NO_BUDGET = ThreatModel(0.0)
"""Edits are not bounded by an epsilon."""


def edit_pictures(
    victim: ClassifierVictim,
    questions: Sequence[Question],
    threat: ThreatModel = NO_BUDGET,
    *,
    severities: tuple[int, ...] = (1, 3, 5),
    batch_size: int = 32,
) -> dict[str, Any]:
    """Score all platform edits, natural corruptions and lines of writing at some severities, by the real path.

    Returns:
        `edits`, `corruptions` and `writing`: name -> share of the rows judged right when clean that stay right, mean
        over the severities; `worst`, the share that stays right under all of them; and `rows`, how many of them there
        are. Beside them `severities`.
    """
    names = ("edits", "corruptions", "writing")
    robust: dict[str, dict[str, list[Booleans]]] = {name: defaultdict(list) for name in names}
    worst: dict[str, list[Booleans]] = {name: [] for name in names}
    threat = replace(threat, epsilon=0.0, space="file", after=())
    for part in build_problems(victim, questions, threat, batch_size=batch_size):
        # Every edit of a family must be the same for all rows, and written words are not.
        for problem in _by_policy_and_sign(part.problem):
            families = {"edits": EDITS, "corruptions": CORRUPTIONS, "writing": _writing_edits(problem)}
            for name, edits in families.items():
                result = EditAttack(edits, severities).run(problem)
                worst[name].append(result.robust_to_all())
                for edit in edits:
                    label = "writing" if name == "writing" else edit
                    robust[name][label].append(result.robust(edit).ravel())
    found: dict[str, Any] = {
        name: {
            "rows": len(np.concatenate(worst[name])),
            "held": {edit: float(np.concatenate(parts).mean()) for edit, parts in robust[name].items()},
            "worst": float(np.concatenate(worst[name]).mean()),
        }
        for name in names
        if worst[name]
    }
    return found | {"severities": list(severities)}


def _by_policy_and_sign(problem: Problem) -> list[Problem]:
    """Split the problem by policy and sign, as the words written on a picture depend on both."""
    parts: dict[tuple[Any, float], list[int]] = defaultdict(list)
    for row, (context, sign) in enumerate(zip(problem.contexts, problem.signs.tolist(), strict=True)):
        parts[context.policy, sign].append(row)
    return [problem.subset(torch.tensor(rows)) for rows in parts.values()]


def _writing_edits(problem: Problem) -> Mapping[str, Edit]:
    """Edits that write words for the other verdict: that it is harmless, or the name of a category of its policy."""
    policy: Any = problem.contexts[0].policy
    words = words_for(int(problem.signs[0]), policy.names[:MOST_NAMES])
    return typographic(words, places=("bottom",), contrasts=(1.0,))
