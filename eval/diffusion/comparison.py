"""A detector and the baselines that it has to beat: areas of all on the same pictures, and its lead over each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from judge.diffusion.pairs import PairStore
from judge.diffusion.together import mean_of_logits
from judge.errors import ConfigError

from .areas import ALL, EQUAL_PROMPT, Area, areas, by_category, leads
from .scored import joined

Floats = NDArray[np.float64]
DETECTOR, TEXT, DECODED, BOTH = "detector", "text", "decoded", "text_and_decoded"
BASELINES = (TEXT, DECODED, BOTH)
TOGETHER = "detector_and_decoded"
NAMES = {
    DETECTOR: "detector",
    TEXT: "text alone",
    DECODED: "labeller on the decoded picture",
    BOTH: "text and decoded picture together",
    TOGETHER: "detector and decoded picture together",
    "flowguard": "FlowGuard's family",
    "ndm": "NDM's family",
}
"""Of who is compared, in tables and figures."""


@dataclass(frozen=True)
class Finished:
    """N finished pictures of test prompts."""

    labels: Floats
    """(N, K) scores in [0, 1] of the finished pictures; NaN where unknown."""
    kinds: Sequence[str]
    """N."""
    prompts: Sequence[str]
    """N."""
    threshold: float = 0.5
    """Label from which a category counts as violated."""
    seed: int = 0
    """Of the intervals."""


def what_came_out(store: PairStore, rows: NDArray[np.int64], seed: int = 0) -> Finished:
    """The finished pictures of some rows of a store.

    Raises:
        ConfigError: there is none.
    """
    pairs = [store.pairs[row] for row in rows]
    if not pairs:
        raise ConfigError("No test picture was made; give more prompts, or a larger test_pairs.")
    labels = store.labels[rows].astype(np.float64)
    return Finished(labels, [pair.kind for pair in pairs], [pair.prompt for pair in pairs], seed=seed)


def count_pairs(store: PairStore) -> dict[str, int]:
    """How many pairs a store has of each split, how many test prompts, and pictures that nobody could label."""
    unknown = np.isnan(store.labels).all(axis=1)
    return {
        "train": len(store.rows("train")),
        "test": len(store.rows("test")),
        "test_prompts": len({pair.prompt for pair in store.pairs if pair.split == "test"}),
        "unlabelled": int(unknown.sum()),
    }


def combined(
    scores: Mapping[str, Mapping[int, Floats | None]], finished: Finished
) -> dict[str, dict[int, Floats | None]]:
    """What text and decoded picture say together, and detector and decoded picture: who -> step -> (N, K) scores."""
    found: dict[str, dict[int, Floats | None]] = {BOTH: {}, TOGETHER: {}}
    for step, decoded in scores[DECODED].items():
        text, own = scores[TEXT][step], scores[DETECTOR][step]
        if decoded is not None and text is not None:
            found[BOTH][step] = joined([text, decoded], finished.labels, finished.prompts)
        if decoded is not None and own is not None:
            found[TOGETHER][step] = mean_of_logits([own, decoded])
    return found


def compare(finished: Finished, scores: Mapping[str, Mapping[int, Floats | None]]) -> dict[str, Any]:
    """All areas, as they stand in metrics.json.

    Args:
        finished: the pictures.
        scores: who -> step -> (N, K) scores, or None where who is not offered for that step.

    Returns:
        `areas`: who -> step -> part -> record of an `Area`; `gains`: baseline -> step -> part -> how much larger the
        detector's area is, with its interval; `categories`: who -> step -> area of each category alone. And the plain
        numbers: `auc` (step -> detector, all prompts), `auc_KIND` and `auc_equal_prompt`, `baselines` and `families`
        (who -> step -> all prompts; `text`, which sees no step, is one number).
    """
    found: dict[str, Any] = {"areas": {}, "gains": {}, "categories": {}}
    own: dict[str, dict[str, Area]] = {}
    for who in sorted(scores, key=lambda name: name != DETECTOR):  # the detector first
        offered = {str(step): values for step, values in scores[who].items() if values is not None}
        measured = {step: areas_of(finished, values) for step, values in offered.items()}
        found["areas"][who] = {
            step: {part: area.to_dict() for part, area in parts.items()} for step, parts in measured.items()
        }
        found["categories"][who] = {
            step: by_category(finished.labels, values, threshold=finished.threshold)
            for step, values in offered.items()
        }
        if who == DETECTOR:
            own = measured
        else:
            found["gains"][who] = {
                step: leads(own[step], parts) for step, parts in measured.items() if step in own
            }
    return found | _plain(found["areas"])


def areas_of(finished: Finished, scores: Floats) -> dict[str, Area]:
    """The areas of (N, K) scores of finished pictures."""
    return areas(
        finished.labels,
        scores,
        finished.kinds,
        finished.prompts,
        threshold=finished.threshold,
        seed=finished.seed,
    )


def _plain(found: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers that stand by themselves in metrics.json."""
    numbers: dict[str, Any] = {}
    for step, parts in found[DETECTOR].items():
        for part, area in parts.items():
            numbers.setdefault("auc" if part == ALL else f"auc_{part}", {})[step] = area["auc"]
    others = {
        who: {step: parts[ALL]["auc"] for step, parts in by_step.items()}
        for who, by_step in found.items()
        if who != DETECTOR
    }
    numbers["baselines"] = {who: others[who] for who in BASELINES if who in others}
    if TEXT in numbers["baselines"]:
        numbers["baselines"][TEXT] = next(iter(numbers["baselines"][TEXT].values()), None)
    numbers["families"] = {who: values for who, values in others.items() if who not in (*BASELINES, TOGETHER)}
    return numbers


def behind(metrics: Mapping[str, Any]) -> list[str]:
    """Where the detector does not beat text alone and the decoded picture for sure: one line a step and part.

    It has to beat each of the two at every step it is offered for, on all prompts, on every kind of them and on pairs
    of equal prompt; the interval of its lead lies above 0 then.
    """
    found = []
    for who in (TEXT, DECODED):
        for step, parts in metrics["gains"].get(who, {}).items():
            for part, gain in parts.items():
                name = {ALL: "all prompts", EQUAL_PROMPT: "pairs of equal prompt"}.get(
                    part, f"{part} prompts"
                )
                if gain is None:
                    found.append(f"step {step}, {name}: too few pictures to compare with {NAMES[who]}")
                elif not gain[1] > 0:
                    found.append(
                        f"step {step}, {name}: {gain[0]:+.3f} ({gain[1]:+.3f} – {gain[2]:+.3f}) against {NAMES[who]}"
                    )
    return found
