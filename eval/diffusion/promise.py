"""Whether cutoffs over several looks keep what they promise: calibrated on some prompts, measured on others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from judge.calibration.conformal import average_by
from judge.diffusion.looks_promise import LooksPromise, Sampling, calibrate_looks
from judge.encoders.dual import DualEncoder
from judge.errors import ConfigError
from prompts.taxonomy import Taxonomy

from .comparison import Finished
from .stage_scores import Questions, StageScores, ask, drawn_policies, prompt_cosines

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Guarding:
    """What is promised: by which detector, at which looks, under which policies, of pictures made how."""

    detector: str
    at: tuple[int, ...]
    policies: tuple[Taxonomy, ...]
    sampling: Sampling

    def calibrate(self, questions: Questions, promise: float) -> LooksPromise:
        """Cutoffs of the looks for a promised miss rate.

        Raises:
            ConfigError: too few unsafe pictures for it.
        """
        return calibrate_looks(
            questions.unsafe.astype(np.float64),
            questions.looks,
            at=self.at,
            promise=promise,
            detector=self.detector,
            policies=self.policies,
            sampling=self.sampling,
            groups=questions.prompts.tolist(),
        )


def split_taxonomy(taxonomy: Taxonomy, size: int, seed: int = 0) -> tuple[Taxonomy, ...]:
    """Policies of about `size` categories, each category in one of them; of all in one where size is 0."""
    columns = drawn_policies(len(taxonomy), size or len(taxonomy), seed)
    return tuple(taxonomy.select([taxonomy.names[column] for column in one]) for one in columns)


def ask_policies(
    finished: Finished,
    looks: Sequence[Floats],
    taxonomy: Taxonomy,
    policies: Sequence[Taxonomy],
    encoder: DualEncoder | None,
) -> Questions:
    """Every finished picture under every policy.

    Args:
        finished: N pictures.
        looks: (N, K) scores of each look.
        taxonomy: of K categories.
        policies: of some of its categories each.
        encoder: of the prompt filter; None where there is none.
    """
    cosines = np.full(finished.labels.shape, np.nan)
    if encoder is not None:
        cosines = prompt_cosines(finished.prompts, encoder, taxonomy)
    labels = finished.labels
    scores = StageScores(taxonomy, tuple(finished.prompts), cosines, np.stack(looks, axis=1), labels, labels)
    return ask(scores, [np.array([taxonomy.index(name) for name in policy.names]) for policy in policies])


def strictest(
    guarding: Guarding, questions: Questions, promises: Sequence[float]
) -> tuple[LooksPromise | None, list[str]]:
    """Cutoffs for the lowest promised miss rate that these pictures can support, and why lower ones cannot be."""
    reasons: list[str] = []
    for promise in sorted(promises):
        try:
            return guarding.calibrate(questions, promise), reasons
        except ConfigError as error:
            reasons.append(f"No cutoffs for a promise of {promise:.0%} missed: {error}")
    return None, reasons


def check_promises(
    guarding: Guarding,
    questions: Questions,
    promises: Sequence[float],
    *,
    splits: int = 4,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Calibrate on half of the prompts and measure on the other half, many times, for several promised miss rates.

    Args:
        guarding: what is promised.
        questions: of pictures that were looked at and finished; all of a prompt fall into the same half.
        promises: miss rates.
        splits: random halves; each is used both ways.
        seed: of the halves.

    Returns:
        A record for each promise: `promise`; `miss_rate`, the mean over prompts and splits; `worst`, its 95th
        percentile over splits;
        `false_alarms`, share of safe pictures that were stopped; `stopped_by`, step -> share of the unsafe pictures
        that were stopped after it or earlier; `splits` that could be calibrated; `reason` where none could.
    """
    names, number = np.unique(questions.prompts, return_inverse=True)
    records = []
    for promise in promises:
        rng, measured, reason = np.random.default_rng(seed), [], None
        for _ in range(splits):
            half = rng.permutation(len(names)) < len(names) // 2
            for side in (True, False):
                learn = half[number] == side
                try:
                    cutoffs = guarding.calibrate(questions.rows(learn), promise)
                except ConfigError as error:
                    reason = str(error)
                    continue
                measured.append(_measure(questions.rows(~learn), cutoffs))
        records.append(_record(promise, measured, guarding.at, reason))
    return records


def stopped_at(scores: Floats, cutoffs: LooksPromise) -> NDArray[np.int64]:
    """(N,) place of the look that stops each picture, of (N, L) scores; L where none does. Not judged is stopped."""
    over = np.isnan(scores) | (scores >= np.asarray(cutoffs.cutoffs))
    places: NDArray[np.int64] = np.where(over.any(axis=1), over.argmax(axis=1), scores.shape[1])
    return places


def _measure(questions: Questions, cutoffs: LooksPromise) -> Floats:
    """(L + 1,) shares of the unsafe pictures stopped by each look, means over prompts; then false alarms."""
    place, looks = stopped_at(questions.looks, cutoffs), len(cutoffs.at)
    unsafe, safe = place[questions.unsafe], place[~questions.unsafe]
    shares = np.full(looks, np.nan)
    if len(unsafe):
        stopped = unsafe[:, None] <= np.arange(looks)
        shares = average_by(stopped, questions.prompts[questions.unsafe]).mean(axis=0)
    return np.array([*shares, float((safe < looks).mean()) if len(safe) else np.nan])


def _record(
    promise: float, measured: Sequence[Floats], at: Sequence[int], reason: str | None
) -> dict[str, Any]:
    if not measured:
        return {"promise": promise, "splits": 0, "reason": reason}
    table = np.stack(measured)
    missed = 1 - table[:, -2]
    means: Mapping[str, float] = {str(step): float(table[:, look].mean()) for look, step in enumerate(at)}
    return {
        "promise": promise,
        "splits": len(table),
        "miss_rate": float(np.nanmean(missed)),
        "worst": float(np.nanquantile(missed, 0.95)),
        "false_alarms": float(np.nanmean(table[:, -1])),
        "stopped_by": dict(means),
    }
