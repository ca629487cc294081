"""The data `signs`: labelled scenes of pictograms, drawn when they are asked for."""

from functools import lru_cache

import numpy as np

from prompts.errors import ExampleError
from prompts.example import Example

from .captions import caption
from .glyphs import NEW_STYLES, TRAINED_STYLES, concepts, drawings
from .scenes import Scene, compose

SPLITS = ("train", "validation", "test", "new_styles")
"""All but the last are drawn in the same styles; no split shares a scene with another."""
DEFAULT_COUNTS = {"train": 4000, "validation": 1200, "test": 1600, "new_styles": 800}
HOW_MANY = (0.08, 0.34, 0.34, 0.24)
"""Share of scenes with 0, 1, 2 and 3 signs."""


def signs_examples(split: str, *, seed: int = 0, count: int | None = None) -> list[Example]:
    """Draw `count` labelled scenes of one split; `violates` holds the groups of what they show.

    The same split and seed give the same scenes; a larger count only adds more.

    Raises:
        ExampleError: a split that does not exist.
        CheckpointError: the wheel with the fonts is missing or another one.
    """
    total = DEFAULT_COUNTS[_checked(split)] if count is None else count
    return [_example(split, seed, index) for index in range(total)]


def signs_scene(split: str, index: int, *, seed: int = 0) -> Scene:
    """The scene of one example, with where its signs are."""
    return _scene(_checked(split), seed, index)[0]


@lru_cache(maxsize=20_000)  # a scene is thrown anew for it, and every measurement asks for all pictures
def shown_concepts(example_id: str) -> frozenset[str]:
    """The concepts that an example of `signs_examples` shows, by its id."""
    _, split, seed, index = example_id.split("-")
    return frozenset(sign.concept for sign in signs_scene(split, int(index), seed=int(seed)).signs)


def _checked(split: str) -> str:
    if split not in SPLITS:
        raise ExampleError(f"signs have no split {split!r}; use one of {', '.join(SPLITS)}.")
    return split


def _example(split: str, seed: int, index: int) -> Example:
    scene, rng = _scene(split, seed, index)
    shown = [sign.concept for sign in scene.signs]
    return Example(
        id=f"signs-{split}-{seed}-{index:06d}",
        image=scene.image,
        prompt=caption(shown, rng),
        violates=frozenset(concepts()[name].group for name in shown),
        source="generated" if split == "new_styles" else "real",
        split=split,
    )


def _scene(split: str, seed: int, index: int) -> tuple[Scene, np.random.Generator]:
    # One generator a scene, so that scene i is the same whatever count is asked for.
    rng = np.random.default_rng([seed, 12, SPLITS.index(split), index])
    styles = NEW_STYLES if split == "new_styles" else TRAINED_STYLES
    drawn = [name for name in concepts() if drawings(name, styles)]
    how_many = int(rng.choice(len(HOW_MANY), p=HOW_MANY))
    shown = [str(name) for name in rng.choice(drawn, size=how_many, replace=False)]
    return compose(shown, rng, styles), rng
