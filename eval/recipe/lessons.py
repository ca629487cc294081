"""What a training recipe keeps in its run: the lessons' reach, and how well each category is judged at the end."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from accelerate import PartialState

from eval.evidence import measured_categories
from eval.metrics.judged import JudgedRow
from judge.lessons.envelope import LessonsEnvelope
from judge.lessons.evidence import own_texts, trained_texts
from judge.lessons.record import inherit_lessons, write_lessons, write_measured
from judge.publish.card import write_card
from judge.publish.contents import CARD
from judge.runs.folder import RunDir
from prompts import Example, Row, Taxonomy


def record_lessons(
    run: RunDir, rows: Sequence[Row], taxonomy: Taxonomy, tokens: Callable[[Taxonomy], int] | None = None
) -> None:
    """Keep what the rows of a training were, in the first process.

    Args:
        run: of the training.
        rows: all that are drawn, or enough of them that none differs much from all others.
        taxonomy: where they were drawn from.
        tokens: of a policy, by the model's tokenizer (`LessonsEnvelope.of`).
    """
    if PartialState().is_main_process:
        envelope = LessonsEnvelope.of_lessons(rows, taxonomy, tokens)
        write_lessons(run, envelope, trained_texts(rows, taxonomy))


def record_labels(run: RunDir, examples: Iterable[Example], taxonomy: Taxonomy) -> None:
    """Keep which categories a head with fixed ones was trained on: those that an example violates."""
    if PartialState().is_main_process:
        shown = frozenset().union(*(example.violates for example in examples))
        write_lessons(run, None, own_texts(c for c in taxonomy if shown.intersection(c.members)))


def continue_lessons(run: RunDir, first: RunDir) -> None:
    """Take over the lessons of the run that this one goes on from, in the first process."""
    if PartialState().is_main_process:
        inherit_lessons(run, first)


def record_measured(
    run: RunDir, judged: Sequence[JudgedRow], taxonomy: Taxonomy, threshold: float = 0.5
) -> None:
    """Keep F1 of each of the taxonomy's categories, held-out ones too, from the run's own test questions.

    Args:
        run: of the classifier that answered.
        judged: its answers.
        taxonomy: where the questions' policies come from; categories are told apart by key.
        threshold: P(unsafe) from which a row is flagged.
    """
    write_measured(run, measured_categories(judged, taxonomy, threshold))
    if (run.path / CARD).is_file():
        write_card(run)


def keep_answers(
    run: RunDir, answers: Mapping[str, Sequence[JudgedRow]], *, measured: str, threshold: float = 0.5
) -> None:
    """Write every judged row, and `record_measured` of those called `measured`, if they are among these.

    Args:
        run: of the classifier that gave these.
        answers: name of a file of rows -> answers to the run's test questions.
        measured: the name of the finished classifier's answers.
        threshold: P(unsafe) from which a row is flagged.
    """
    for name, rows in answers.items():
        run.write_rows(name, (row.to_dict() for row in rows))
        if name == measured:
            record_measured(run, rows, run.taxonomy, threshold)
