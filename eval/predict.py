"""Predictions of any classifier on evaluation questions, and their metrics."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from judge.data.images import open_image
from judge.protocol import Classifier

from .metrics.judged import JudgedRow, summarise
from .questions import Evaluation, Question, group_by_policy


def predict_questions(
    classifier: Classifier, questions: Sequence[Question], *, progress: Callable[[int], Any] | None = None
) -> list[JudgedRow]:
    """Score the questions, those of one policy together; one judged row per question, in their order.

    `progress` is called with the number of questions done.
    """
    # Index of a question -> its row, as policies may alternate in `questions`.
    judged: dict[int, JudgedRow] = {}
    for indices in group_by_policy(questions):
        rows = [questions[index].row for index in indices]
        scores = classifier.score(
            [open_image(row.example.image) for row in rows], [row.prompt for row in rows], rows[0].taxonomy
        )
        for index, row, unsafe, categories, reason in zip(
            indices, rows, scores.unsafe, scores.categories, scores.reasons, strict=True
        ):
            names = row.taxonomy.names
            # A category that the classifier does not cover is NaN, and then the largest of the others says nothing.
            covered = not np.isnan(categories).any()  # (K,)
            judged[index] = JudgedRow(
                id=questions[index].id,
                truth=row.unsafe,
                unsafe=float(unsafe),
                category=names[int(categories.argmax())] if covered else None,
                violated=frozenset(c.name for c in row.taxonomy if c.label(row.example)),
                policy=names,
                # Categories that combine several members are counted together, as each combination is rare.
                keys=tuple("custom" if len(c.members) > 1 else c.key for c in row.taxonomy),
                source=row.example.source,
                pair=questions[index].pair,
                direction=questions[index].direction,
                arm=row.arm,
                prompt=row.prompt,
                reason=reason,
                image=row.example.id,
            )
        if progress is not None:
            progress(len(judged))
    return [judged[index] for index in range(len(questions))]


def summarise_evaluation(
    evaluation: Evaluation, judged: Sequence[JudgedRow], threshold: float = 0.5
) -> dict[str, Any]:
    """`eval.metrics.judged.summarise` of the flips, with `lying_prompt_*` and `heldout_*` added.

    A lying prompt belongs to another image, of opposite label. `judged` are the rows of `evaluation.questions`, in
    their order.
    """
    flips, held_out = judged[: len(evaluation.flips)], judged[len(evaluation.flips) :]
    summary = summarise(flips, threshold)
    lying = [
        row
        for question, row in zip(evaluation.flips, flips, strict=True)
        if question.row.prompt_kind == "lie"
    ]
    summary["lying_prompt_rows"] = len(lying)
    summary["lying_prompt_f1"] = summarise(lying, threshold)["f1"] if lying else None
    summary["heldout_rows"] = len(held_out)
    held_out_summary = summarise(held_out, threshold) if held_out else {}
    for key in ("f1", "auc", "category_accuracy"):
        summary[f"heldout_{key}"] = held_out_summary.get(key)
    return summary
