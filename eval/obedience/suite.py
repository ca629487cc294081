"""The same questions under every family of rewritings, put to a classifier.

Two wordings are asked besides the families, for comparison: `plain`, the questions as they were drawn, and
`no_prompt`, the same without prompts. A question keeps its id and its image under every family, so that differences
are paired.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.metrics.judged import Direction, JudgedRow
from eval.predict import predict_questions
from eval.questions import Evaluation, Question
from judge.inputs import concatenate_scores
from judge.lessons.outside import beyond_lessons
from judge.protocol import Classifier, Scores
from prompts.errors import ArbiterError, TaxonomyError
from prompts.example import Example
from prompts.flip import FlipOptions
from prompts.taxonomy import Category, Taxonomy

from .family import Family, Policy, PolicyFamily, PromptFamily, RefusedRewritingError, Setting

if TYPE_CHECKING:
    from PIL.Image import Image

PLAIN, NO_PROMPT = "plain", "no_prompt"
REFERENCES = (PLAIN, NO_PROMPT)
_OPPOSITE: dict[Direction | None, Direction | None] = {
    "safe_to_unsafe": "unsafe_to_safe",
    "unsafe_to_safe": "safe_to_unsafe",
    None: None,
}


@dataclass(frozen=True)
class Rewritten:
    """One family's questions."""

    name: str
    questions: tuple[Question, ...]
    """Ids as in the evaluation."""
    held_out: tuple[Question, ...] = ()
    """About categories that no training policy held."""
    refused: dict[str, int] = field(default_factory=dict)
    """Reason -> questions that the family does not apply to."""


@dataclass(frozen=True)
class Answers:
    """A classifier's answers under one family, or under a reference."""

    rows: tuple[JudgedRow, ...]
    """Ids as in the evaluation."""
    held_out: tuple[JudgedRow, ...] = ()


def plain_wording(flips: FlipOptions) -> FlipOptions:
    """Policies of categories as the taxonomy words them; other wordings are the families' matter."""
    return replace(flips, rename=0.0, reword=0.0, custom=0.0, focus=0.0)


def rewrite_all(
    evaluation: Evaluation,
    families: Sequence[Family],
    taxonomy: Taxonomy,
    *,
    held_out: frozenset[str] = frozenset(),
    unrelated: Sequence[Category] = (),
    seed: int = 0,
) -> dict[str, Rewritten]:
    """The questions under both references and under every family; equal arguments give equal questions.

    Args:
        evaluation: questions whose policies hold the taxonomy's categories as they are.
        families: names must differ, and from the references.
        taxonomy: where categories come from.
        held_out: keys that may be mentioned in the held-out questions only.
        unrelated: categories that no image violates.
        seed: of the draws within families.
    """
    found = {
        PLAIN: Rewritten(PLAIN, evaluation.flips, evaluation.held_out),
        NO_PROMPT: Rewritten(
            NO_PROMPT, _without_prompts(evaluation.flips), _without_prompts(evaluation.held_out)
        ),
    }
    trained = [name for c, name in zip(taxonomy, taxonomy.names, strict=True) if c.key not in held_out]
    mentionable = taxonomy.select(trained)
    for family in families:
        if family.name in found:
            raise ArbiterError(f"Two families are called {family.name!r}; rename one.")
        application = _Application(family, tuple(unrelated), seed)
        questions, refused = application.rewrite(evaluation.flips, mentionable)
        about_held_out, _ = application.rewrite(evaluation.held_out, taxonomy)
        found[family.name] = Rewritten(family.name, tuple(questions), tuple(about_held_out), dict(refused))
    return found


def _without_prompts(questions: Sequence[Question]) -> tuple[Question, ...]:
    return tuple(replace(q, row=replace(q.row, prompt=None, prompt_of=None)) for q in questions)


@dataclass(frozen=True)
class _Application:
    """One family, applied to questions."""

    family: Family
    unrelated: tuple[Category, ...]
    seed: int

    def rewrite(
        self, questions: Sequence[Question], taxonomy: Taxonomy
    ) -> tuple[list[Question], Counter[str]]:
        """The questions that the family applies to, in their order, and why it does not apply to the others."""
        by_policy: dict[str, list[Question]] = {}
        for question in questions:
            by_policy.setdefault(question.row.taxonomy.hash, []).append(question)
        found: dict[str, Question] = {}
        refused: Counter[str] = Counter()
        for group in by_policy.values():
            found |= self._group(group, taxonomy, refused)
        before = {question.id: question.row.unsafe for question in questions}
        kept = [found[question.id] for question in questions if question.id in found]
        # Where no truth changed, the questions stay as they are, or they could not be compared family by family.
        if any(question.row.unsafe is not before[question.id] for question in kept):
            kept = _balanced(kept, before, Random(f"obedience/{self.seed}/{self.family.name}"))
        return _paired(kept, before), refused

    def _group(
        self, group: Sequence[Question], taxonomy: Taxonomy, refused: Counter[str]
    ) -> dict[str, Question]:
        """Questions under one policy; rewritten ones share one policy too, so that a judge reads it once."""
        if isinstance(self.family, PromptFamily):
            return self._prompts(self.family, group, taxonomy, refused)
        policy = group[0].row.taxonomy
        examples = tuple({q.row.example.id: q.row.example for q in group}.values())
        setting = self._setting(taxonomy, examples, policy.hash)
        try:
            rewritten = self.family.rewrite(policy, setting)
            if rewritten.taxonomy.hash == policy.hash:
                raise RefusedRewritingError("it changes nothing here")
            _check_truth(self.family, policy, rewritten, taxonomy, examples)
        except (RefusedRewritingError, TaxonomyError) as error:
            refused[str(error)] += len(group)
            return {}
        return _answerable(group, rewritten, refused)

    def _prompts(
        self, family: PromptFamily, group: Sequence[Question], taxonomy: Taxonomy, refused: Counter[str]
    ) -> dict[str, Question]:
        found = {}
        for question in group:
            row = question.row
            # Drawn by image, so that both rows of a pair show the same prompt.
            setting = self._setting(taxonomy, (row.example,), row.example.id)
            try:
                prompt = family.rewrite(row, setting)
            except RefusedRewritingError as error:
                refused[str(error)] += 1
                continue
            found[question.id] = replace(question, row=replace(row, prompt=prompt, prompt_of=None))
        return found

    def _setting(self, taxonomy: Taxonomy, examples: tuple[Example, ...], key: str) -> Setting:
        rng = Random(f"obedience/{self.seed}/{self.family.name}/{key}")
        return Setting(taxonomy, examples, self.unrelated, rng)


def _check_truth(
    family: PolicyFamily, policy: Taxonomy, rewritten: Policy, taxonomy: Taxonomy, examples: Sequence[Example]
) -> None:
    """See that the truth under the rewritten policy is known, and changes only where the family says that it may.

    Raises:
        RefusedRewritingError: it does not, or is not; the message says for which category or image.
    """
    known = {member for source in (taxonomy, policy) for category in source for member in category.members}
    for category in rewritten.taxonomy:
        if category.key in rewritten.conditions:  # made of categories of the taxonomy
            continue
        for member in category.members:
            if member not in known | rewritten.absent:
                raise RefusedRewritingError(
                    f"nobody labelled {member!r}, so the truth under {category.name!r} is unknown"
                )
    for example in examples:
        mentioned = rewritten.absent & (example.violates | example.unknown)
        if mentioned:
            raise RefusedRewritingError(f"{min(mentioned)!r} is taken for absent and is among the labels")
        before = Policy(policy).truth(example)
        if not family.changes_truth and rewritten.truth(example) != before:
            raise RefusedRewritingError(
                f"it would change the truth of image {example.id!r} without saying so"
            )


def _answerable(group: Sequence[Question], policy: Policy, refused: Counter[str]) -> dict[str, Question]:
    """The group's questions under the policy, each with its truth; those whose truth is unknown are refused."""
    found = {}
    for question in group:
        example = policy.labelled(question.row.example)
        truth = policy.truth(question.row.example)
        if truth is None:
            refused["the image's labels do not tell the truth under it"] += 1
            continue
        named = next((c.name for c in policy.taxonomy if c.label(example)), None)
        row = replace(question.row, example=example, taxonomy=policy.taxonomy, unsafe=truth, category=named)
        found[question.id] = replace(question, row=row)
    return found


def _balanced(questions: Sequence[Question], before: dict[str, bool], rng: Random) -> list[Question]:
    """As many unsafe questions as safe ones, or a classifier that calls everything unsafe would do well at negations.

    Of the larger side those stay first whose truth was changed: a classifier that ignores the rewriting errs there.
    """
    sides: dict[bool, list[str]] = {True: [], False: []}
    # False sorts before True: changed rows first, in random order, then the others.
    for question in sorted(questions, key=lambda q: (q.row.unsafe is before[q.id], rng.random())):
        sides[question.row.unsafe].append(question.id)
    count = min(map(len, sides.values()))
    kept = {name for side in sides.values() for name in side[:count]}
    return [question for question in questions if question.id in kept]


def _paired(questions: Sequence[Question], before: dict[str, bool]) -> list[Question]:
    """The questions, in pairs only where both are left and of opposite truth.

    Where a rewriting exchanged the two labels, the pair's direction is the other one.
    """
    pairs: dict[str, list[Question]] = {}
    for question in questions:
        if question.pair is not None:
            pairs.setdefault(question.pair, []).append(question)
    found = []
    for question in questions:
        both = pairs[question.pair] if question.pair is not None else []
        if sorted(one.row.unsafe for one in both) != [False, True]:
            question = replace(question, pair=None, direction=None)
        elif question.row.unsafe is not before[question.id]:
            question = replace(question, direction=_OPPOSITE[question.direction])
        found.append(question)
    return found


def ask_all(
    classifier: Classifier,
    rewritten: dict[str, Rewritten],
    *,
    progress: Callable[[int, int], Any] | None = None,
) -> dict[str, Answers]:
    """Put all questions to a classifier: those under one policy together, whatever the family.

    Questions outside its lessons are asked too, where it would leave them unjudged (`judge.lessons.outside`).

    Args:
        classifier: any. Errors under the plain wording are raised; under a family they are rows that were not judged.
        rewritten: what `rewrite_all` gave.
        progress: called with the number of rows judged so far and of all.
    """
    total = sum(len(one.questions) + len(one.held_out) for one in rewritten.values())
    done = 0

    def ask(names: Sequence[str], asked: Classifier) -> dict[str, JudgedRow]:
        nonlocal done
        start = done
        questions = [
            replace(question, id=f"{name}/{question.id}", pair=question.pair and f"{name}/{question.pair}")
            for name in names
            for question in (*rewritten[name].questions, *rewritten[name].held_out)
        ]
        report = None if progress is None else (lambda count: progress(start + count, total))
        rows = predict_questions(asked, questions, progress=report)
        done += len(rows)
        return {row.id: row for row in rows}

    references = [name for name in rewritten if name in REFERENCES]
    with beyond_lessons(classifier):
        judged = ask(references, classifier)
        judged |= ask([name for name in rewritten if name not in REFERENCES], _Unjudged(classifier))
    return {
        name: Answers(_rows(judged, name, one.questions), _rows(judged, name, one.held_out))
        for name, one in rewritten.items()
    }


def _rows(judged: dict[str, JudgedRow], name: str, questions: Sequence[Question]) -> tuple[JudgedRow, ...]:
    """The judged rows of one family under the ids of the evaluation."""
    return tuple(replace(judged[f"{name}/{q.id}"], id=q.id, pair=q.pair) for q in questions)


class _Unjudged:
    """A classifier that gives rows without a verdict where the one inside raises one of our errors."""

    def __init__(self, inside: Classifier) -> None:
        self.inside, self.name = inside, inside.name

    def score(
        self, images: "Sequence[Image]", prompts: Sequence[str | None] | None, taxonomy: Taxonomy
    ) -> Scores:
        shown = [None] * len(images) if prompts is None else prompts
        try:
            return self.inside.score(images, shown, taxonomy)
        except ArbiterError as error:
            if len(images) > 1:  # one family's prompts may be to blame, and other families are asked with it
                rows = zip(images, shown, strict=True)
                return concatenate_scores([self.score([image], [prompt], taxonomy) for image, prompt in rows])
            nothing = np.full((1, len(taxonomy)), np.nan)
            return Scores(nothing[:, 0], nothing, (str(error),))
