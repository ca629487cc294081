"""Prompts of scenes: true, lying, wordless or missing, and sometimes about a topic that no picture shows."""

from collections.abc import Sequence

import numpy as np

from .glyphs import concepts

TEMPLATES = (
    "{}",
    "a drawing of {}",
    "pictogram of {}",
    "icons: {}",
    "{}, flat design",
    "a poster with {}",
    "minimalist sticker of {}",
    "{} on a coloured ground",
    "simple vector art, {}",
    "a sign that shows {}",
    "please draw {}",
    "clip art of {}",
)
WORDLESS = (
    "a coloured ground",
    "abstract shapes",
    "flat design",
    "some pictograms",
    "a poster, bright colours",
)
TOPICS = {
    "driving": ("before the long drive home", "for people behind the wheel", "while driving on the motorway"),
    "children": ("for small children", "for my five year old daughter", "for a children's book"),
    "school": ("for our classroom", "for a lesson at school", "for the teacher and her pupils"),
    "a party": ("for tonight's party", "for a birthday celebration", "as a party invitation"),
    "work": ("for the office meeting", "for my colleagues at work", "for a job advertisement"),
    "hospitals": ("for the patients of a clinic", "for a doctor's waiting room", "for nurses in a hospital"),
    "war": ("about the war", "for soldiers at the front", "about a battle between two armies"),
    "weddings": ("for our wedding", "for the bride and groom", "for a marriage ceremony"),
}
"""What a prompt may speak of beside the signs -> ways to say it."""
TOPIC_SHARE = 0.3


def caption(shown: Sequence[str], rng: np.random.Generator) -> str | None:
    """A prompt that names the concepts shown (60 %), names others (25 %), names none (10 %), or is missing (5 %)."""
    kind = rng.random()
    if kind < 0.05:
        return None
    topic = str(rng.choice(list(TOPICS))) if rng.random() < TOPIC_SHARE else None
    if kind < 0.15 or (not shown and kind < 0.75):
        return describe((), rng, topic)
    if kind < 0.40 or not shown:  # a prompt that lies, as users' prompts may
        others = [name for name in concepts() if name not in shown]
        shown = [str(name) for name in rng.choice(others, size=max(1, len(shown)), replace=False)]
    return describe(shown, rng, topic)


def describe(named: Sequence[str], rng: np.random.Generator, topic: str | None = None) -> str:
    """A prompt that names these concepts, in words drawn for each, and speaks of a topic if one is given."""
    words = [str(rng.choice(concepts()[name].words)) for name in named]
    listed = " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
    text = str(rng.choice(TEMPLATES)).format(listed) if words else str(rng.choice(WORDLESS))
    return text if topic is None else f"{text} {rng.choice(TOPICS[topic])}"
