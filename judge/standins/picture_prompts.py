"""Prompts that ask for digits, as a text-to-image model of digits is trained and asked with them.

A **named** prompt says which digits; a **vague** one says how many at most, so that only the picture tells which.
"""

from collections.abc import Sequence

import numpy as np

from .digits import DIGIT_NAMES

FORMS = (
    "a picture of {}",
    "a photo of {}",
    "handwritten {}",
    "{} on a wall",
    "a poster with {}",
    "a note that says {}",
    "an old page with {}",
    "{}",
)
VAGUE = (
    ("a piece of paper", "something on a wall", "an old page"),
    ("a digit", "one digit", "a photo of a digit", "a number on a wall"),
    ("two digits", "a pair of digits", "a photo of two digits", "two numbers on a wall"),
)
"""By the number of digits in the picture."""


def named_prompt(digits: Sequence[int], rng: np.random.Generator) -> str:
    """A prompt that names these digits (one or two), in any order."""
    words = [DIGIT_NAMES[digit] if rng.random() < 0.8 else str(digit) for digit in rng.permutation(digits)]
    if rng.random() < 0.5:
        words = [("an " if word.startswith("e") else "a ") + word for word in words]
    return str(rng.choice(FORMS)).format(" and ".join(words))


def vague_prompt(digits: Sequence[int], rng: np.random.Generator) -> str:
    """A prompt that fits these digits (none, one or two) and names none."""
    return str(rng.choice(VAGUE[len(digits)]))
