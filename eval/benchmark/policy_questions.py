"""The questions of the policy tests, drawn once for all classifiers of the same coverage, and how they are asked.

Three kinds:

- `pairs`: one image under two policies of opposite label (`eval.questions.draw_evaluation`);
- families of the obedience suite, each beside its reference (`plain` or `no_prompt`) on the same images;
- `unseen`: categories that are held out from all these policies.

A classifier with fixed categories is asked under the part of the taxonomy that it covers, and of the families only
those questions whose policy it covers. The others are counted with the reason and not scored: it does not claim them.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.obedience.family import Family
from eval.obedience.shipped import choose_families
from eval.obedience.suite import Rewritten, plain_wording, rewrite_all
from eval.own_classifier import check_scores
from eval.predict import predict_questions
from eval.questions import Evaluation, draw_evaluation, draw_grouped_questions
from judge.errors import ConfigError, MissingExtraError, first_line
from judge.inputs import concatenate_scores
from judge.lessons.outside import beyond_lessons
from judge.protocol import Classifier, HasFixedCategories, Scores
from prompts.errors import ArbiterError, ExampleError
from prompts.example import Example
from prompts.flip import FlipOptions, no_pairs
from prompts.taxonomy import Category, Taxonomy

from .coverage import covered_keys
from .policy_rows import FamilyRows, PolicyRows, questions_hash
from .predict import ClassifierFailedError

if TYPE_CHECKING:
    from PIL.Image import Image

PAIRS, UNSEEN, CATEGORIES = "pairs", "unseen", "categories"
BENCHMARK_FAMILIES = (
    "nonsense_names", "misleading_names",  # names: the definition alone decides
    "typos", "legal_prose",  # wording
    "merged", "duplicates",  # structure
    "exception", "all_but_one",  # logic: what is forbidden changes
    "definition_orders_safe", "talking_category_unsafe",  # text in the policy that orders a verdict
    "unrelated_prompt", "lying_prompt", "forged_safe",  # prompts
)  # fmt: skip
"""Two of each kind of rewriting that `eval.obedience.shipped` has, and three of prompts; of each kind at least one that
no lesson may show, so that a classifier of ours is not measured on what it was taught alone. Left out is what costs
most to ask (20 to 100 categories, prompts of thousands of characters), and what hardly differs from a neighbour here
(three kinds of letter case)."""


@dataclass(frozen=True)
class PolicyOptions:
    """How many questions, and which.

    Raises:
        ConfigError: too few questions, or a family that does not exist.
    """

    pairs: int = 48
    """Images under two policies each."""
    rows: int = 48
    """Questions of each family; half as many about held-out categories."""
    families: tuple[str, ...] = BENCHMARK_FAMILIES
    """None of them asks pairs, and held-out categories, alone."""
    flips: FlipOptions = field(default_factory=lambda: FlipOptions(group_size=4))
    """How policies are drawn, and which keys are held out; small groups, so that there are several policies."""
    seed: int = 7

    def __post_init__(self) -> None:
        if self.pairs < 1 or self.rows < 4:
            raise ConfigError(
                f"Policy tests of {self.pairs} pairs and {self.rows} rows; ask 1 pair and 4 rows at least."
            )
        choose_families(self.families)


@dataclass(frozen=True)
class PolicyQuestions:
    """What classifiers of one coverage are asked."""

    taxonomy: Taxonomy
    """The categories asked about."""
    parts: Mapping[str, Rewritten]
    """`pairs`, `unseen`, the references and the families, as far as they could be drawn."""
    families: tuple[Family, ...]
    """Those of the obedience suite among them."""
    not_drawn: Mapping[str, str]
    """Part -> why it could not be drawn; of `categories`, which were left out."""

    @property
    def count(self) -> int:
        """All questions."""
        return sum(len(part.questions) for part in self.parts.values())


def draw_policy_questions(
    examples: Sequence[Example],
    taxonomy: Taxonomy,
    options: PolicyOptions,
    *,
    unrelated: Sequence[Category] = (),
) -> PolicyQuestions:
    """Draw all questions; equal arguments give equal questions.

    Categories that no image violates are left out, since there can be no unsafe row for them.

    Args:
        examples: images that nothing was trained on.
        taxonomy: the categories to ask about.
        options: how many questions, and which.
        unrelated: categories that no image violates, for families that lengthen policies.
    """
    shown = frozenset[str]().union(*(example.violates for example in examples))
    names = [category.name for category in taxonomy if shown.intersection(category.members)]
    parts: dict[str, Rewritten] = {}
    not_drawn: dict[str, str] = {}
    if len(names) < len(taxonomy):
        left_out = ", ".join(name for name in taxonomy.names if name not in names)
        not_drawn[CATEGORIES] = f"no image violates {left_out}"
    if not names:
        return PolicyQuestions(taxonomy, parts, (), not_drawn | {PAIRS: "no image violates any category"})
    asked = taxonomy.select(names)
    draw = _Draw(tuple(examples), asked, options, tuple(unrelated))
    if options.flips.held_out and not draw.held_out:
        not_drawn[UNSEEN] = "no held-out category is covered and has images"
    families = choose_families(options.families) if options.families else ()
    for name, drawn, wanted in (
        (PAIRS, draw.pairs, True),
        ("families", lambda: draw.families(families), bool(families)),
        (UNSEEN, draw.unseen, bool(draw.held_out)),
    ):
        try:
            parts |= drawn() if wanted else {}
        except ArbiterError as error:
            not_drawn[name] = first_line(error)
    return PolicyQuestions(asked, parts, families, not_drawn)


@dataclass(frozen=True)
class _Draw:
    """Draws the parts from images and the categories that they violate."""

    examples: tuple[Example, ...]
    taxonomy: Taxonomy
    options: PolicyOptions
    unrelated: tuple[Category, ...]

    @property
    def held_out(self) -> frozenset[str]:
        return self.options.flips.held_out & set(self.taxonomy.keys)

    def pairs(self) -> dict[str, Rewritten]:
        examples, taxonomy, flips = self._trained()
        if reason := no_pairs(examples, flips.training_keys(taxonomy)):
            raise ExampleError(reason)
        rows = 4 * self.options.pairs  # of which half come in pairs
        drawn = draw_evaluation(examples, taxonomy, flips, seed=self.options.seed, rows=rows)
        return {PAIRS: Rewritten(PAIRS, tuple(q for q in drawn.flips if q.pair is not None))}

    def families(self, families: Sequence[Family]) -> dict[str, Rewritten]:
        examples, taxonomy, flips = self._trained()
        seed, rows = self.options.seed, self.options.rows
        drawn = draw_grouped_questions(examples, taxonomy, flips, seed=seed, rows=rows)
        return rewrite_all(Evaluation(tuple(drawn)), families, taxonomy, unrelated=self.unrelated, seed=seed)

    def unseen(self) -> dict[str, Rewritten]:
        flips = plain_wording(replace(self.options.flips, held_out=self.held_out))
        drawn = draw_evaluation(
            self.examples, self.taxonomy, flips, seed=self.options.seed, rows=self.options.rows
        )
        return {UNSEEN: Rewritten(UNSEEN, drawn.held_out)}

    def _trained(self) -> tuple[list[Example], Taxonomy, FlipOptions]:
        """Images, categories and options without what is held out."""
        names = [category.name for category in self.taxonomy if category.key not in self.held_out]
        examples = [example for example in self.examples if not example.violates & self.held_out]
        flips = plain_wording(replace(self.options.flips, held_out=frozenset()))
        return examples, self.taxonomy.select(names), flips


def ask_part(
    classifier: Classifier,
    part: Rewritten,
    kept: PolicyRows | None = None,
    progress: Callable[[int], Any] | None = None,
) -> FamilyRows:
    """A classifier's answers to one part; what it has answered already is taken from `kept`.

    An image on which it crashes is a row without a score, with the reason. A part that a service left unanswered
    somewhere, or that crashed it throughout, is not kept, so that it is asked again when the run goes on.

    Args:
        classifier: whoever is asked; also outside of its lessons (`judge.lessons.outside`).
        part: the questions.
        kept: where finished parts are stored.
        progress: called with the number of questions answered.

    Raises:
        ClassifierFailedError: a service gave no answer to any question.
        MissingExtraError: the classifier needs a package that is not installed.
    """
    stored = None if kept is None else kept.finished(part.name, part.questions)
    if stored is not None:
        return stored
    asked, not_asked = [], Counter[str]()
    for question in part.questions:
        policy = question.row.taxonomy
        missed = set(policy.keys) - set(covered_keys(classifier, policy))
        if missed:
            not_asked["its categories are fixed and do not cover the policy"] += 1
        else:
            asked.append(question)
    careful = _Careful(classifier)
    with beyond_lessons(classifier):
        rows = predict_questions(careful, asked, progress=progress)
    if rows and careful.unanswered == len(rows):
        raise ClassifierFailedError(
            f"{classifier.name} got no answer to any question of {part.name}, the last time so: {rows[-1].reason}. "
            "What it answered before is kept; run again with --resume true."
        )
    policies = tuple(question.row.taxonomy.hash for question in asked)
    fixed = isinstance(classifier, HasFixedCategories) and classifier.scores_categories
    found = FamilyRows(questions_hash(part.questions), tuple(rows), policies, dict(not_asked), fixed)
    if kept is not None and not careful.unanswered and not (rows and careful.crashed == len(rows)):
        kept.keep(part.name, found)
    return found


class _Careful:
    """A classifier whose crashes are rows without a score; counts them, and what a service left unanswered."""

    def __init__(self, inside: Classifier) -> None:
        self.inside, self.name = inside, inside.name
        self.crashed = self.unanswered = 0

    def score(
        self, images: "Sequence[Image]", prompts: Sequence[str | None] | None, taxonomy: Taxonomy
    ) -> Scores:
        shown = [None] * len(images) if prompts is None else list(prompts)
        try:
            scores = self.inside.score(images, shown, taxonomy)
            check_scores(scores, len(images), len(taxonomy))
        except MissingExtraError:
            raise
        except Exception as error:
            if len(images) > 1:  # one image may be to blame
                rows = zip(images, shown, strict=True)
                return concatenate_scores([self.score([image], [prompt], taxonomy) for image, prompt in rows])
            self.crashed += 1
            nothing = np.full((1, len(taxonomy)), np.nan)
            reason = f"the classifier crashed: {type(error).__name__}: {first_line(error)}"
            return Scores(nothing[:, 0], nothing, (reason,))
        self.unanswered += sum(scores.unanswered or ())
        return scores
