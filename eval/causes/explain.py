"""Why the classifiers of a benchmark fail, as one record (UnsafeBench, sections 3.1, 4.1 and 4.2)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.benchmark.predictions import Predictions
from prompts.example import Example

from .confidence import describe_confidence
from .shift import distribution_shift, measure_images

if TYPE_CHECKING:
    from judge.encoders.dual import DualEncoder
    from judge.protocol import Classifier

MOST_NAMED = 20
"""Unreadable images that a record names; all are counted."""


@dataclass(frozen=True)
class CauseOptions:
    """How failures are explained."""

    threshold: float = 0.5
    """Probability from which a verdict is unsafe."""
    seed: int = 0


def explain_failures(
    examples: Sequence[Example],
    all_predictions: Sequence[Predictions],
    *,
    encoder: "DualEncoder | None" = None,
    cache: Path | None = None,
    load: "Callable[[str], Classifier] | None" = None,
    options: CauseOptions = CauseOptions(),
    attack_run: Path | None = None,
    progress: Callable[[str], Any] = lambda text: None,
) -> dict[str, Any]:
    """Everything of this room, as JSON types of bounded size; `eval.reports.causes_figures` draws it.

    A part that cannot be made (no encoder, one source only) is None, and `not_made` says why.

    Args:
        examples: the images of the benchmark.
        all_predictions: of each classifier on them, matched by id.
        encoder: of images, for the map and the clusters; None leaves these two out.
        cache: folder of features (`judge.encoders.features`); None keeps them in memory.
        load: label of a classifier (`About.label`) -> the classifier, for the case study, which asks about new
            images; classifiers are loaded one after the other. None leaves the case study out.
        options: thresholds, counts and seeds.
        attack_run: folder of a run of `recipes/attack.py`, for losses under attack; None leaves them out.
        progress: called with a line about what is done next.

    Returns:
        `shift` (`shift.distribution_shift`), `map` (`embedding.embedding_map`), `separation`
        (`embedding.separation`), `clusters` (`clusters.cluster_failures`), `case_study` (`case_study.study_cases`),
        `confidence` (`confidence.describe_confidence`), `attack_loss` (`attack_loss.loss_under_attack`);
        `unreadable`, how many images could not be opened and the reasons of the first; `not_made`: part -> reason.
    """
    record: dict[str, Any] = dict.fromkeys(PARTS)
    not_made: dict[str, str] = {}
    progress(f"measuring {len(examples)} images")
    measured = measure_images(examples)
    record["shift"] = distribution_shift(measured, seed=options.seed)
    record["confidence"] = describe_confidence(
        all_predictions, threshold=options.threshold, seed=options.seed
    )
    record["unreadable"] = {
        "images": len(measured.unreadable),
        "reasons": dict(list(measured.unreadable.items())[:MOST_NAMED]),
    }
    for part in ("map", "separation", "clusters"):
        if encoder is None:
            not_made[part] = "no encoder of images was given"
    if load is None:
        not_made["case_study"] = "no classifiers were given, only their predictions"
    if attack_run is None:
        not_made["attack_loss"] = "no run of recipes/attack.py was given"
    record["not_made"] = not_made
    return record


PARTS = ("shift", "map", "separation", "clusters", "case_study", "confidence", "attack_loss")
"""Keys of the record that are None where a part was not made."""
