"""Evaluation of a cascade on labelled questions: shares, errors and costs of each stage and of all together.

Predictions take the time, so each stage predicts once; tuning, calibration and resampling (`judge.cascade`) use the
stored scores. Seconds per image are measured separately (`eval.costs`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from judge.calibration.conformal import check_levels, conformal_threshold
from judge.calibration.temperature import LabelledScores
from judge.cascade.cascade import Cascade
from judge.cascade.similarity import Platt, Similarities
from judge.cascade.stage_models import TokenClassifier
from judge.cascade.stages import STAGES, Cutoffs, Decisions, StageScores
from judge.cascade.tuning import CutoffFamily, decided_losses
from judge.data.images import open_image
from judge.protocol import Classifier, Scores
from prompts.taxonomy import Taxonomy

from .costs import Costs
from .metrics.arrays import Confusion, confusion, ratio
from .metrics.intervals import f1_interval, image_interval
from .questions import Question, group_by_policy

Array = NDArray[np.float64]


@dataclass(frozen=True)
class StagePredictions:
    """Scores of all stages on N questions."""

    questions: list[Question]
    similarities: dict[str, Array]
    """`text` and `image`: (N,) largest cosine to a category of the policy, in [-1, 1]; NaN without a prompt."""
    student: Array
    """(N,) p(unsafe); NaN if unjudged."""
    judge: Array | None
    """(N,) p(unsafe); None without a judge."""
    labelled: dict[str, list[LabelledScores]]
    """`student` and `judge`: their scores with labels, by policy, to fit temperatures."""
    hidden: NDArray[np.bool_]
    """(N,) whether there are hidden characters in the prompt."""
    conditional: NDArray[np.bool_]
    """(N,) whether the image comes nearest to a category with a condition on the prompt."""

    @property
    def unsafe(self) -> NDArray[np.bool_]:
        """(N,) labels."""
        return np.array([question.row.unsafe for question in self.questions])

    @property
    def unsafe_images(self) -> list[str]:
        """Image ids of the unsafe rows."""
        return [question.row.example.id for question in self.questions if question.row.unsafe]

    @property
    def images(self) -> NDArray[np.str_]:
        """(N,) image ids; several rows may share one."""
        return np.array([question.row.example.id for question in self.questions])

    def scores(self, text: Platt, image: Platt) -> StageScores:
        """Probabilities (N,) of each stage; Platt scaling maps the cosines of the filters to [0, 1]."""
        filters = {"text": text(self.similarities["text"]), "image": image(self.similarities["image"])}
        return StageScores(
            **filters,
            student=self.student,
            judge=self.judge,
            hidden=self.hidden,
            conditional=self.conditional,
        )


def predict_stages(
    student: TokenClassifier,
    judge: Classifier | None,
    questions: Sequence[Question],
    *,
    progress: Callable[[int], Any] | None = None,
) -> StagePredictions:
    """Score all questions with each stage; the result is ordered by policy, as one policy is scored at a time.

    `progress` is called with the number of questions done.
    """
    # The filters compare with the categories of the policy, whose text embeddings are cached here.
    similarities = Similarities(student.encoder)
    found: dict[str, list[Array]] = {"text": [], "image": [], "student": [], "judge": []}
    labelled: dict[str, list[LabelledScores]] = {"student": [], "judge": []}
    ordered: list[Question] = []
    hidden: list[int] = []
    conditional: list[bool] = []
    for indices in group_by_policy(questions):
        group = [questions[index] for index in indices]
        policy, prompts = group[0].row.taxonomy, [question.row.prompt for question in group]
        images = [open_image(question.row.example.image) for question in group]
        tokens = student.encoder.encode_images(images)  # one pass for image filter and student
        readings = similarities.read_prompts(prompts)
        hidden += readings.hidden
        found["text"].append(similarities.prompt_similarities(readings, policy).max(axis=1))
        by_image = similarities.image_similarities(tokens, policy)  # (B, K)
        found["image"].append(by_image.max(axis=1))
        conditional += similarities.conditional(policy)[by_image.argmax(axis=1)].tolist()
        answers = {"student": student.score_tokens(tokens, prompts, policy)}
        if judge is not None:
            answers["judge"] = judge.score(images, prompts, policy)
        for stage, scores in answers.items():
            found[stage].append(scores.unsafe)
            labelled[stage].append(_with_labels(policy, scores, group))
        # Everything found above is in this order, which may differ from that of `questions`.
        ordered += group
        if progress is not None:
            progress(len(ordered))
    scored = {name: np.concatenate(parts) for name, parts in found.items() if parts}  # (N,) each
    return StagePredictions(
        ordered,
        {name: scored[name] for name in ("text", "image")},
        scored["student"],
        scored.get("judge"),
        labelled,
        np.array(hidden) > 0,
        np.array(conditional, dtype=bool),
    )


def summarise_cascade(
    predictions: StagePredictions, decided: Decisions, cutoffs: Cutoffs, costs: Costs
) -> dict[str, Any]:
    """F1 of the cascade, the student and the judge on N test rows, the judge's share, and `stages`.

    The seconds of a stage are what it adds for an image that reaches it (the share `reached` of all); those of the
    filters include the image encoder, and the text encoder if the cutoffs let the text filter decide anything.
    `seconds_per_image_by_stages` is their sum, weighted by these shares. Intervals are 95 %, by image.
    """
    with_text = cutoffs.uses_text_filter
    # Per image that reaches the stage.
    seconds = {
        "filter": costs.filters(with_text),
        "student": costs.seconds["student"],
        "judge": costs.seconds.get("judge"),
    }
    truth = predictions.unsafe  # (N,)
    counts, flagged = confusion(truth, decided.unsafe), decided.unsafe >= 0.5
    stages: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(STAGES):
        decided_here = decided.stage == number  # (N,)
        stages[name] = {
            "share": float(decided_here.mean()),
            "reached": float((decided.stage >= number).mean()),
            "rows": int(decided_here.sum()),
            "misses": int((decided_here & decided.safe & truth).sum()),
            "false_alarms": int((decided_here & flagged & ~truth).sum()),
            "unjudged": int((decided_here & np.isnan(decided.unsafe)).sum()),
            "seconds_per_image": seconds[name],
        }
    return {
        "rows": len(truth),
        "unsafe_rows": int(truth.sum()),
        **_metrics(counts),
        "judge_f1": None if predictions.judge is None else confusion(truth, predictions.judge).f1,
        "student_f1": confusion(truth, predictions.student).f1,
        "judge_share": stages["judge"]["share"],
        "seconds_per_image_by_stages": costs.expected(
            {name: stage["reached"] for name, stage in stages.items()}, with_text
        ),
        "intervals": {
            "f1": f1_interval(truth, decided.unsafe, predictions.images),
            "miss_rate": image_interval(decided.safe[truth], predictions.images[truth]),
            "false_alarm_rate": image_interval(flagged[~truth], predictions.images[~truth]),
        },
        # A miss is a row called safe: unlike in recall, an unjudged row is none, as a person decides about it.
        "miss_rate": ratio(int(decided.safe[truth].sum()), int(truth.sum())),
        "false_alarm_rate": ratio(int(flagged[~truth].sum()), int((~truth).sum())),
        "unjudged": int(np.isnan(decided.unsafe).sum()),
        "stages": stages,
    }


def evaluate_each_stage(
    test: StagePredictions,
    calibration: StagePredictions,
    text: Platt,
    image: Platt,
    promise: float,
    costs: Costs,
) -> dict[str, Any]:
    """Metrics of each stage alone on the test rows: at threshold 0.5, and at one with the cascade's promised miss rate.

    Args:
        test: rows to evaluate.
        calibration: other rows, for the thresholds of the promise (conformal risk control).
        text: Platt scaling of the text filter.
        image: Platt scaling of the image filter.
        promise: largest expected miss rate, in (0, 1).
        costs: seconds per image of the stages.

    Raises:
        ConfigError: too few unsafe calibration rows for the promise.
    """
    tested, calibrated, cost = test.scores(text, image), calibration.scores(text, image), costs.seconds
    stages = {
        "text_filter": (tested.text, calibrated.text, cost["text"]),
        # Alone, a stage pays for the image encoder itself.
        "image_filter": (tested.image, calibrated.image, cost["encoder"] + cost["image"]),
        "student": (tested.student, calibrated.student, cost["encoder"] + cost["student"]),
        "judge": (tested.judge, calibrated.judge, cost.get("judge")),
    }
    results = {}
    for name, (scores, calibration_scores, seconds) in stages.items():
        if scores is None or calibration_scores is None:
            continue
        threshold = conformal_threshold(calibration.unsafe, calibration_scores, miss_rate=promise)
        # `threshold` comes from calibration rows, so the promise holds for the test rows only on average.
        counts, strict = (confusion(test.unsafe, scores, limit) for limit in (0.5, threshold))
        results[name] = {
            **_metrics(counts),
            "at_promise": {
                "threshold": threshold,
                **_metrics(strict),
                "miss_rate": 1 - strict.recall,
                "false_alarm_rate": ratio(
                    strict.false_positives, strict.false_positives + strict.true_negatives
                ),
            },
            "seconds_per_image": seconds,
        }
    return results


def resample_miss_rate(
    family: CutoffFamily, predictions: Sequence[StagePredictions], text: Platt, image: Platt, promise: float
) -> dict[str, Any]:
    """Choose the level on 200 random halves of all unsafe images, and measure the miss rate on the other half."""
    # Losses (I, L) of I images at L levels. Rows of one image stay in one half, as they are not independent.
    tables = [
        decided_losses(family, each.scores(text, image).rows(each.unsafe), images=each.unsafe_images)
        for each in predictions
    ]
    check = check_levels(np.concatenate(tables), promise)
    return {"mean_miss_rate": check.mean, "resampling": check.to_dict()}


def count_live_differences(
    cascade: Cascade, predictions: StagePredictions, decided: Decisions
) -> dict[str, Any]:
    """Count rows that the cascade, run on the images, decides differently from the stored scores.

    There can be some only where a score equals a cutoff up to rounding, as other batches round differently.
    """
    different = 0
    for indices in group_by_policy(predictions.questions):
        rows = [predictions.questions[index].row for index in indices]
        images = [open_image(row.example.image) for row in rows]
        scores = cascade.score(images, [row.prompt for row in rows], rows[0].taxonomy)
        stages = scores.decided_by or [""] * len(rows)
        for index, stage, unsafe in zip(indices, stages, scores.unsafe, strict=True):
            # Stage and verdict, not the score: that may differ by rounding.
            expected = STAGES[decided.stage[index]], decided.unsafe[index] >= 0.5
            different += expected != (stage, unsafe >= 0.5)
    return {"rows_decided_otherwise_live": different}


def summarise_costs(costs: Costs, cutoffs: Cutoffs) -> dict[str, Any]:
    """`seconds_per_image`, measured on the whole cascade, and `timing`: how it was, and the sum of the stages.

    The sum, `by_stages`, is over the timed images and their own shares, and should be close to what was measured.
    They differ where few images of a batch reach a stage, as small batches cost more per image.
    """
    timing = {
        "rows": costs.rows,
        "policies": costs.policies,
        "repeats": costs.repeats,
        "reached": costs.reached,
    }
    by_stages = None if costs.reached is None else costs.expected(costs.reached, cutoffs.uses_text_filter)
    return {
        "seconds_per_image": costs.cascade,
        "timing": {**timing, "by_stages": by_stages, "seconds": costs.seconds},
    }


def cascade_rows(
    predictions: StagePredictions, scores: StageScores, decided: Decisions
) -> Iterator[dict[str, Any]]:
    """One record per row, for the run folder."""
    for place, question in enumerate(predictions.questions):
        yield {
            "id": question.id,
            "image": question.row.example.id,
            "source": question.row.example.source,
            "prompt": question.row.prompt,
            "policy": question.row.taxonomy.names,
            "keys": ["custom" if len(c.members) > 1 else c.key for c in question.row.taxonomy],
            "violated": [c.name for c in question.row.taxonomy if c.label(question.row.example)],
            "pair": question.pair,
            "direction": question.direction,
            "truth": question.row.unsafe,
            "unsafe": decided.unsafe[place],
            "decided_by": STAGES[decided.stage[place]],
            "text_filter": scores.text[place],
            "image_filter": scores.image[place],
            "student": scores.student[place],
            "judge": None if scores.judge is None else scores.judge[place],
        }


def _with_labels(policy: Taxonomy, scores: Scores, group: Sequence[Question]) -> LabelledScores:
    labels = np.array([policy.label(question.row.example) for question in group], dtype=np.float64)  # (B, K)
    return LabelledScores(
        policy, scores, np.array([float(question.row.unsafe) for question in group]), labels
    )


def _metrics(counts: Confusion) -> dict[str, float]:
    return {"f1": counts.f1, "precision": counts.precision, "recall": counts.recall}
