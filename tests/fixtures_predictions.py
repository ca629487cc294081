"""Predictions over three categories, written out row by row, for tests that count by hand."""

import math

from eval.benchmark.predictions import About, Prediction, Predictions
from prompts import Taxonomy

TAXONOMY = Taxonomy.from_dict(
    {
        "name": "three",
        "version": "1",
        "categories": [{"name": name, "definition": f"Shows {name}."} for name in "abc"],
    }
)
KEYS = TAXONOMY.keys


def prediction(image, violates="", scores=(0.0, 0.0, 0.0), asked=KEYS, *, unknown="", **fields):
    """A row whose whole is the largest score that there is."""
    known = [score for score in scores if not math.isnan(score)]
    fields = {"unsafe": max(known, default=math.nan)} | fields
    return Prediction(
        image,
        frozenset(violates),
        frozenset(unknown),
        categories=tuple(scores),
        asked=frozenset(asked),
        **fields,
    )


def predictions(rows, label="one", covers=KEYS, **about):
    """The predictions of a classifier."""
    about = {"group": "conventional", "dataset": "made up", "splits": ("test",)} | about
    return Predictions(About(label, label, taxonomy=TAXONOMY, covers=tuple(covers), **about), tuple(rows))
