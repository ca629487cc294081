"""What an obedience run says of a judge's envelope: which families widen it, and which stay unjudged when deployed."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.evidence import measured_categories
from eval.questions import Question
from eval.reports.table import Table
from judge.lessons.envelope import LessonsEnvelope
from judge.lessons.outside import CountsTokens, HasEnvelope, KnowsItsLessons
from judge.lessons.record import read_record, write_measured
from judge.protocol import Classifier
from judge.readings import read_prompts
from judge.runs.folder import MANIFEST, RunDir
from prompts.taxonomy import Taxonomy

from .suite import PLAIN, REFERENCES, Answers, Rewritten

_MEASURED = ("rows", "f1", "reference_f1", "f1_drop_interval")
"""Fields of a family's record that the judge's run keeps."""


def keep_measured(
    path: str | Path,
    classifier: Classifier,
    taxonomy: Taxonomy,
    rewritten: Mapping[str, Rewritten],
    answers: Mapping[str, Answers],
    records: Mapping[str, Mapping[str, Any]],
    threshold: float = 0.5,
) -> bool:
    """Write into a classifier's run what was measured of it, and widen its envelope by what it obeyed.

    Args:
        path: what it was loaded from; anything but a run that keeps its lessons is left alone.
        classifier: loaded from there; its envelope becomes the wider one.
        taxonomy: that was asked about.
        rewritten: the questions.
        answers: its answers.
        records: family -> numbers, as in `eval.obedience.measure.measure_all`.
        threshold: P(unsafe) from which a row is flagged.

    Returns:
        Whether anything was written.
    """
    if not (Path(path) / MANIFEST).is_file() or not read_record(RunDir.open(path)).known:
        return False
    run = RunDir.open(path)
    tokens = classifier.policy_tokens if isinstance(classifier, CountsTokens) else None
    families = {
        name: {field: record[field] for field in _MEASURED}
        | {"envelope": _asked(rewritten[name].questions, tokens).to_dict()}
        for name, record in records.items()
        if record["rows"]
    }
    plain = [*answers[PLAIN].rows, *answers[PLAIN].held_out]
    write_measured(run, measured_categories(plain, taxonomy, threshold), families)
    if isinstance(classifier, HasEnvelope):
        classifier.envelope = read_record(run).envelope
    return True


def left_unjudged(classifier: Classifier, rewritten: Mapping[str, Rewritten]) -> dict[str, dict[str, float]]:
    """Share of a family's questions that lie outside the envelope of a classifier as it is deployed.

    Returns:
        Family -> `policies`, which are unjudged, and `prompts`, which are not read so that the image alone is judged;
        families without either are left out.
    """
    found = {}
    for name, one in rewritten.items():
        if name in REFERENCES or not one.questions:
            continue
        policies = {q.row.taxonomy.hash: q.row.taxonomy for q in one.questions}.values()
        outside = {policy.hash for policy in policies if _is_outside(classifier, policy)}
        envelope = classifier.envelope if isinstance(classifier, HasEnvelope) else None
        unread = read_prompts([q.row.prompt for q in one.questions], envelope=envelope).notes
        shares = {
            "policies": sum(q.row.taxonomy.hash in outside for q in one.questions) / len(one.questions),
            "prompts": sum(note is not None for note in unread) / len(one.questions),
        }
        if any(shares.values()):
            found[name] = shares
    return found


def unjudged_table(shares: Mapping[str, Mapping[str, float]]) -> Table:
    """The families that `left_unjudged` found."""
    lines = [(name, [share["policies"], share["prompts"]]) for name, share in shares.items()]
    return Table(
        "Outside the lessons, and not measured well enough to be answered",
        ["unjudged", "prompt not read"],
        lines,
        "Shares of the questions. All were asked here; a deployed judge leaves them unjudged, or judges the image "
        "alone.",
    )


def _asked(questions: Sequence[Question], tokens: Callable[[Taxonomy], int] | None) -> LessonsEnvelope:
    policies = {question.row.taxonomy.hash: question.row.taxonomy for question in questions}.values()
    return LessonsEnvelope.of(policies, (question.row.prompt for question in questions), tokens)


def _is_outside(classifier: Classifier, policy: Taxonomy) -> bool:
    return isinstance(classifier, KnowsItsLessons) and classifier.outside_lessons(policy) is not None
