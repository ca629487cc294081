"""Sixty words that no lesson, taxonomy or training text of signs holds, as categories for any classifier.

The words and what they cover (`new_words.yaml`) were written down before anything was trained. Policies show them by
name only: a user who types "booze" gives no definition either.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files

import yaml

from eval.questions import Question, draw_evaluation
from judge.standins.signs.examples import shown_concepts
from prompts import Category, Example, FlipOptions, Taxonomy

OPTIONS = FlipOptions(max_categories=6, custom=0.0, rename=0.0, reword=0.0)
"""Policies of up to six words each."""


@cache
def new_words() -> dict[str, tuple[str, ...]]:
    """Word -> names of the concepts that it covers."""
    found = yaml.safe_load((files(__package__) / "new_words.yaml").read_text(encoding="utf-8"))
    return {word: tuple(covered) for word, covered in found.items()}


def label_by_words(examples: Sequence[Example]) -> list[Example]:
    """Examples of the data `signs`, labelled with the new words that cover what they show."""
    return [
        replace(
            example,
            violates=frozenset(
                word for word, covered in new_words().items() if not shown.isdisjoint(covered)
            ),
        )
        for example in examples
        for shown in (shown_concepts(example.id),)
    ]


def draw_new_words(examples: Sequence[Example], *, seed: int, rows: int) -> list[Question]:
    """About `rows` questions about new words, half of them unsafe, drawn as any evaluation.

    Words of which the examples have no picture are left out.

    Raises:
        ExampleError: too few examples.
    """
    labelled = label_by_words(examples)
    shown = frozenset().union(*(example.violates for example in labelled))
    words = tuple(Category(word, word, name_only=True) for word in new_words() if word in shown)
    taxonomy = Taxonomy("new words", "1", words)
    return list(draw_evaluation(labelled, taxonomy, OPTIONS, seed=seed, rows=rows).questions)
