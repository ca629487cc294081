"""Held-out questions put to any classifier, and what its answers come to."""

from collections.abc import Callable, Sequence
from typing import Any

from judge.data.images import open_image
from judge.protocol import Classifier

from .metrics.judged import JudgedRow, summarise
from .questions import Evaluation, Question


def predict_questions(
    classifier: Classifier, questions: Sequence[Question], *, progress: Callable[[int], Any] | None = None
) -> list[JudgedRow]:
    """Ask a classifier; rows under one policy go together. `progress` hears how many are done, for a progress bar."""
    by_policy: dict[str, list[int]] = {}
    for place, question in enumerate(questions):
        by_policy.setdefault(question.row.taxonomy.hash, []).append(place)
    judged: dict[int, JudgedRow] = {}
    for places in by_policy.values():
        rows = [questions[place].row for place in places]
        scores = classifier.score(
            [open_image(row.example.image) for row in rows], [row.prompt for row in rows], rows[0].taxonomy
        )
        for place, row, unsafe, categories, reason in zip(
            places, rows, scores.unsafe, scores.categories, scores.reasons, strict=True
        ):
            names = row.taxonomy.names
            named = [score for score in categories if score == score]
            judged[place] = JudgedRow(
                id=questions[place].id,
                truth=row.unsafe,
                unsafe=float(unsafe),
                category=names[int(categories.argmax())] if len(named) == len(names) else None,
                violated=frozenset(c.name for c in row.taxonomy if c.label(row.example)),
                policy=names,
                keys=tuple("custom" if len(c.members) > 1 else c.key for c in row.taxonomy),
                source=row.example.source,
                pair=questions[place].pair,
                direction=questions[place].direction,
                arm=row.arm,
                prompt=row.prompt,
                reason=reason,
                image=row.example.id,
            )
        if progress is not None:
            progress(len(judged))
    return [judged[place] for place in range(len(questions))]


def summarise_evaluation(
    evaluation: Evaluation, judged: Sequence[JudgedRow], threshold: float = 0.5
) -> dict[str, Any]:
    """`eval.metrics.judged.summarise` of the flips, with `lying_prompt_f1` and `heldout_*` beside it.

    `judged` holds one row for each of `evaluation.questions`, in their order.
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
    about_held_out = summarise(held_out, threshold) if held_out else {}
    for key in ("f1", "auc", "category_accuracy"):
        summary[f"heldout_{key}"] = about_held_out.get(key)
    return summary
