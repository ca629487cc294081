"""Predictions of made-up classifiers, for tests of tables and reports."""

import math

import numpy as np

from eval.benchmark.predictions import About, Prediction, Predictions
from prompts import load_taxonomy


def synthetic_predictions(
    label="noisy", *, rows=60, taxonomy="digits", covers=None, group="other", skill=0.4, seed=0, **about
):
    """Predictions of a classifier that is right more often than not; of ten rows one is unjudged."""
    taxonomy = load_taxonomy(taxonomy)
    keys = [category.key for category in taxonomy]
    covers = tuple(keys if covers is None else covers)
    images, noise = np.random.default_rng(7), np.random.default_rng(seed)  # the same images for everyone
    found = []
    for number in range(rows):
        about_key = keys[images.integers(len(keys))]
        violates = frozenset([about_key]) if images.random() < 0.5 else frozenset()
        source = ("real", "generated")[images.integers(2)]
        scores = np.array(
            [
                np.clip(0.5 + skill * (1 if key in violates else -1) + 0.3 * noise.normal(), 0, 1)
                if key in covers
                else math.nan
                for key in keys
            ]
        )
        judged = noise.random() >= 0.1
        found.append(
            Prediction(
                f"image-{number}",
                violates,
                frozenset(),
                float(np.nanmax(scores)) if judged else math.nan,
                tuple(map(float, scores if judged else scores * math.nan)),
                frozenset(covers),
                source=source,
                collected_for=about_key,
                reason=None if judged else "the model gave no answer",
                seconds=0.01,
            )
        )
    return Predictions(
        About(label, label, group, taxonomy, covers, "digits", ("test",), **about), tuple(found)
    )
