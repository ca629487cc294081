"""The stand-in data: deterministic, split by glyph, labelled exactly."""

import numpy as np
import pytest

from judge.standins.digits import CANVAS, DIGIT_NAMES, SPLITS, compose_with_boxes, digits_examples, glyphs
from prompts import ExampleError, load_taxonomy


def test_the_same_split_and_seed_give_the_same_images():
    first, again, more = (digits_examples("test", count=n) for n in (5, 5, 9))
    for one, other in zip(first, again, strict=True):
        assert (one.id, one.prompt, one.violates, one.source) == (
            other.id,
            other.prompt,
            other.violates,
            other.source,
        )
        assert one.image.tobytes() == other.image.tobytes()
    assert [e.id for e in more[:5]] == [e.id for e in first]
    assert digits_examples("test", count=1, seed=1)[0].image.tobytes() != first[0].image.tobytes()


def test_no_glyph_serves_two_splits():
    seen = {split: {g.tobytes() for pool in glyphs(split).values() for g in pool} for split in SPLITS}
    counts = [sum(len(pool) for pool in glyphs(split).values()) for split in SPLITS]
    assert sum(counts) == 1797
    assert all(len(glyphs(split)[value]) > 10 for split in SPLITS for value in range(10))
    # The bundled set itself holds no two equal glyphs, so equal bytes would mean a leak.
    assert not (seen["train"] & seen["test"])
    assert not (seen["train"] & seen["validation"])


def test_categories_are_those_of_the_taxonomy():
    assert load_taxonomy("digits").keys == DIGIT_NAMES
    examples = digits_examples("train", count=300)
    assert {len(e.violates) for e in examples} == {0, 1, 2}
    assert all(e.violates <= set(DIGIT_NAMES) and not e.unknown for e in examples)
    assert {e.source for e in examples} == {"real", "generated"}
    assert {e.image.size for e in examples} == {(CANVAS, CANVAS)}


def test_captions_tell_the_truth_and_lie():
    examples = [e for e in digits_examples("train", count=400) if e.violates and e.prompt]
    true = sum(all(_mentions(e.prompt, name) for name in e.violates) for e in examples)
    assert 0.4 < true / len(examples) < 0.8


def _mentions(prompt: str, name: str) -> bool:
    return name in prompt.split() or str(DIGIT_NAMES.index(name)) in prompt.split()


def test_boxes_hold_the_ink():
    rng = np.random.default_rng(3)
    for _ in range(20):
        image, boxes = compose_with_boxes([3, 7], "real", "train", rng)
        assert sorted(value for value, *_ in boxes) == [3, 7]
        pixels = np.asarray(image, dtype=float).mean(axis=2)
        for _, top, left, side in boxes:
            assert 0 <= top <= CANVAS - side
            assert 0 <= left <= CANVAS - side
            assert pixels[top : top + side, left : left + side].std() > 5


def test_a_split_that_does_not_exist_is_named():
    with pytest.raises(ExampleError, match="train, validation, test"):
        digits_examples("dev")
