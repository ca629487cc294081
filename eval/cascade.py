"""A cascade on labelled questions: every stage's answers once, then what they settle, cost and get wrong together.

Asking is what takes time, so it is done once; tuning, calibrating and resampling (`judge.cascade.stages`) work on the
answers. What asking costs is measured apart (`eval.timing`).
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

from .metrics.arrays import Confusion, confusion, ratio
from .metrics.intervals import f1_interval, image_interval
from .questions import Question
from .timing import Costs

Array = NDArray[np.float64]
FILTERS = {"text_filter": "text", "image_filter": "image"}


@dataclass(frozen=True)
class StagePredictions:
    """Every stage's answers to N questions."""

    questions: list[Question]
    similarities: dict[str, Array]
    """`text` and `image`: (N,) largest cosine to the policy's categories; NaN without a prompt."""
    student: Array
    """(N,) p(unsafe)."""
    judge: Array | None
    """(N,) p(unsafe), where there is a judge."""
    labelled: dict[str, list[LabelledScores]]
    """`student` and `judge`: their scores with the truth, by policy, for temperatures."""

    @property
    def unsafe(self) -> NDArray[np.bool_]:
        """(N,) the truth."""
        return np.array([question.row.unsafe for question in self.questions])

    @property
    def unsafe_images(self) -> list[str]:
        """Ids of the unsafe rows' images."""
        return [question.row.example.id for question in self.questions if question.row.unsafe]

    @property
    def images(self) -> NDArray[np.str_]:
        """(N,) ids of the rows' images; several rows may share one."""
        return np.array([question.row.example.id for question in self.questions])

    def scores(self, text: Platt, image: Platt) -> StageScores:
        """The stages' probabilities."""
        filters = {"text": text(self.similarities["text"]), "image": image(self.similarities["image"])}
        return StageScores(**filters, student=self.student, judge=self.judge)


def predict_stages(
    student: TokenClassifier,
    judge: Classifier | None,
    questions: Sequence[Question],
    *,
    progress: Callable[[int], Any] | None = None,
) -> StagePredictions:
    """Ask every stage about every question; rows under one policy go together, and stand together in the answer.

    `progress` hears how many are done, for a progress bar.
    """
    similarities = Similarities(student.encoder)
    found: dict[str, list[Array]] = {"text": [], "image": [], "student": [], "judge": []}
    labelled: dict[str, list[LabelledScores]] = {"student": [], "judge": []}
    ordered: list[Question] = []
    for group in _by_policy(questions):
        policy, prompts = group[0].row.taxonomy, [question.row.prompt for question in group]
        images = [open_image(question.row.example.image) for question in group]
        tokens = student.encoder.encode_images(images)
        found["text"].append(similarities.prompt_similarities(prompts, policy).max(axis=1))
        found["image"].append(similarities.image_similarities(tokens, policy).max(axis=1))
        answers = {"student": student.score_tokens(tokens, prompts, policy)}
        if judge is not None:
            answers["judge"] = judge.score(images, prompts, policy)
        for stage, scores in answers.items():
            found[stage].append(scores.unsafe)
            labelled[stage].append(_with_truth(policy, scores, group))
        ordered += group
        if progress is not None:
            progress(len(ordered))
    columns = {name: np.concatenate(parts) for name, parts in found.items() if parts}
    return StagePredictions(
        ordered,
        {name: columns[name] for name in ("text", "image")},
        columns["student"],
        columns.get("judge"),
        labelled,
    )


def summarise_cascade(
    asked: StagePredictions, decided: Decisions, cutoffs: Cutoffs, costs: Costs
) -> dict[str, Any]:
    """F1 of the cascade, the student and the judge on N test rows, the judge's share, and `stages`.

    A stage's seconds are what it adds to an image that reaches it (a share `reached` of all); the filters' include the
    encoder's pass, and the prompt's reading where the text filter has a say. `seconds_per_image_by_stages` is their
    sum, each times that share. Intervals are 95 %, by image.
    """
    say = cutoffs.uses_text_filter
    seconds = {
        "filter": costs.filters(say),
        "student": costs.seconds["student"],
        "judge": costs.seconds.get("judge"),
    }
    truth = asked.unsafe
    counts, flagged = confusion(truth, decided.unsafe), decided.unsafe >= 0.5
    stages: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(STAGES):
        mine = decided.stage == number
        stages[name] = {
            "share": float(mine.mean()),
            "reached": float((decided.stage >= number).mean()),
            "rows": int(mine.sum()),
            "misses": int((mine & decided.safe & truth).sum()),
            "false_alarms": int((mine & flagged & ~truth).sum()),
            "unjudged": int((mine & np.isnan(decided.unsafe)).sum()),
            "seconds_per_image": seconds[name],
        }
    return {
        "rows": len(truth),
        "unsafe_rows": int(truth.sum()),
        **_measures(counts),
        "judge_f1": None if asked.judge is None else confusion(truth, asked.judge).f1,
        "student_f1": confusion(truth, asked.student).f1,
        "judge_share": stages["judge"]["share"],
        "seconds_per_image_by_stages": costs.expected(
            {name: stage["reached"] for name, stage in stages.items()}, say
        ),
        "intervals": {
            "f1": f1_interval(truth, decided.unsafe, asked.images),
            "miss_rate": image_interval(decided.safe[truth], asked.images[truth]),
            "false_alarm_rate": image_interval(flagged[~truth], asked.images[~truth]),
        },
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
    """Each stage by itself on the test rows: at 0.5, and at the threshold that makes the same promise.

    Raises:
        ConfigError: too few unsafe calibration rows for the promise.
    """
    scores, held, cost = test.scores(text, image), calibration.scores(text, image), costs.seconds
    seconds = {
        "text_filter": cost["text"],
        "image_filter": cost["encoder"] + cost["image"],
        "student": cost["encoder"] + cost["student"],
        "judge": cost.get("judge"),
    }
    found = {}
    for name, spent in seconds.items():
        column = FILTERS.get(name, name)
        values = getattr(scores, column)
        if values is None:
            continue
        threshold = conformal_threshold(calibration.unsafe, getattr(held, column), miss_rate=promise)
        counts, strict = (confusion(test.unsafe, values, limit) for limit in (0.5, threshold))
        found[name] = {
            **_measures(counts),
            "at_promise": {
                "threshold": threshold,
                **_measures(strict),
                "miss_rate": 1 - strict.recall,
                "false_alarm_rate": ratio(
                    strict.false_positives, strict.false_positives + strict.true_negatives
                ),
            },
            "seconds_per_image": spent,
        }
    return found


def resample_miss_rate(
    family: CutoffFamily, asked: Sequence[StagePredictions], text: Platt, image: Platt, promise: float
) -> dict[str, Any]:
    """Choose the level anew on 200 random halves of all unsafe images, and measure the misses on the other half."""
    tables = [
        decided_losses(family, a.scores(text, image).rows(a.unsafe), images=a.unsafe_images) for a in asked
    ]
    check = check_levels(np.concatenate(tables), promise)
    return {"mean_miss_rate": check.mean, "resampling": check.to_dict()}


def count_live_differences(cascade: Cascade, asked: StagePredictions, decided: Decisions) -> dict[str, Any]:
    """Run the cascade itself: how many rows it decides otherwise than was calibrated.

    Those can only be rows whose score lies on a cutoff up to rounding, as batches are other ones.
    """
    start, differ = 0, 0
    for group in _by_policy(asked.questions):
        images = [open_image(question.row.example.image) for question in group]
        prompts, policy = [question.row.prompt for question in group], group[0].row.taxonomy
        scores = cascade.score(images, prompts, policy)
        for place in range(len(group)):
            wanted = STAGES[decided.stage[start + place]], decided.unsafe[start + place] >= 0.5
            got = scores.decided_by[place] if scores.decided_by else "", scores.unsafe[place] >= 0.5
            differ += wanted != got
        start += len(group)
    return {"rows_decided_otherwise_live": differ}


def summarise_costs(costs: Costs, cutoffs: Cutoffs) -> dict[str, Any]:
    """`seconds_per_image` of the cascade as a whole, measured; and `timing`: on what, and what its stages add up to.

    `by_stages` there is over the timed images, with their own shares, and should be near what was measured; both grow
    apart where few images of a batch reach a stage, as small batches cost more an image.
    """
    found: dict[str, Any] = {"seconds_per_image": costs.cascade}
    timing = {
        "rows": costs.rows,
        "policies": costs.policies,
        "repeats": costs.repeats,
        "reached": costs.reached,
    }
    by_stages = None if costs.reached is None else costs.expected(costs.reached, cutoffs.uses_text_filter)
    return found | {"timing": {**timing, "by_stages": by_stages, "seconds": costs.seconds}}


def cascade_rows(
    asked: StagePredictions, scores: StageScores, decided: Decisions
) -> Iterator[dict[str, Any]]:
    """One record a row, for the run folder."""
    for place, question in enumerate(asked.questions):
        yield {
            "id": question.id,
            "image": question.row.example.id,
            "truth": question.row.unsafe,
            "unsafe": decided.unsafe[place],
            "decided_by": STAGES[decided.stage[place]],
            "text_filter": scores.text[place],
            "image_filter": scores.image[place],
            "student": scores.student[place],
            "judge": None if scores.judge is None else scores.judge[place],
        }


def _by_policy(questions: Sequence[Question]) -> list[list[Question]]:
    policies: dict[str, list[Question]] = {}
    for question in questions:
        policies.setdefault(question.row.taxonomy.hash, []).append(question)
    return list(policies.values())


def _with_truth(policy: Taxonomy, scores: Scores, group: Sequence[Question]) -> LabelledScores:
    labels = np.array([policy.label(question.row.example) for question in group], dtype=np.float64)
    return LabelledScores(
        policy, scores, np.array([float(question.row.unsafe) for question in group]), labels
    )


def _measures(counts: Confusion) -> dict[str, float]:
    return {"f1": counts.f1, "precision": counts.precision, "recall": counts.recall}
