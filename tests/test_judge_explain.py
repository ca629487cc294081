"""Explanations: maps that point at what decided, on classifiers whose reasons are known."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from judge import load_classifier
from judge.errors import ConfigError
from judge.explain import explain
from judge.explain.explain import CELLS_OF_SERVED
from judge.protocol import Scores
from judge.standins.digits import DIGIT_NAMES, compose_with_boxes
from prompts import load_taxonomy
from prompts.errors import TaxonomyError
from prompts.taxonomy import Taxonomy

DIGITS = load_taxonomy("digits").select(["three", "seven"])


class RedArea:
    """Scores the share of red pixels for the first category, and the word `seven` in the prompt for the second."""

    name = "red-area"

    def score(
        self, images: Sequence[Image.Image], prompts: Sequence[str | None] | None, taxonomy: Taxonomy
    ) -> Scores:
        red = np.array([(np.asarray(image)[..., 0] > 200).mean() * 3 for image in images]).clip(0, 1)
        said = np.array(["seven" in (prompt or "") for prompt in prompts or [None] * len(images)]) * 0.9
        categories = np.stack([red, said], axis=1)[:, : len(taxonomy)]
        return Scores(categories.max(1), categories, (None,) * len(images))


class ServedRedArea(RedArea):
    why_no_gradients = "it answers over HTTP"


class StagedRedArea(RedArea):
    def stages(self) -> Iterator[object]:
        yield ServedRedArea()


def red_square(left: int, top: int, side: int = 16, size: tuple[int, int] = (64, 96)) -> Image.Image:
    image = Image.new("RGB", size, (10, 60, 90))
    image.paste((255, 0, 0), (left, top, left + side, top + side))
    return image


@settings(max_examples=15)
@given(st.integers(0, 48), st.integers(0, 80))
def test_occlusion_points_at_what_was_scored(left: int, top: int) -> None:
    found = explain(RedArea(), red_square(left, top), None, DIGITS, "three")
    assert found.method == "occlusion"
    assert found.box is not None
    # The box and the square overlap, in an image that is not square.
    assert found.box[0] * 64 < left + 16
    assert found.box[2] * 64 > left
    assert found.box[1] * 96 < top + 16
    assert found.box[3] * 96 > top
    grid = np.array(found.grid)
    assert grid.shape == (8, 8)
    assert grid.max() == 1.0
    assert grid.min() >= 0.0


def test_what_the_prompt_said_is_not_in_the_image() -> None:
    found = explain(RedArea(), red_square(0, 0), "seven of them", DIGITS, "seven")
    assert found.box is None
    assert np.array(found.grid).max() == 0.0
    assert found.score == pytest.approx(0.9)
    assert found.alone == 0.0
    assert "hint" in found.to_dict()["note"]


def test_a_served_classifier_is_asked_less_and_a_cascade_by_its_first_stage() -> None:
    assert len(explain(ServedRedArea(), red_square(0, 0), None, DIGITS, "three").grid) == CELLS_OF_SERVED
    assert len(explain(StagedRedArea(), red_square(0, 0), None, DIGITS, "three").grid) == CELLS_OF_SERVED


def test_what_cannot_be_explained_says_so() -> None:
    with pytest.raises(TaxonomyError, match="four"):
        explain(RedArea(), red_square(0, 0), None, DIGITS, "four")
    with pytest.raises(ConfigError, match="attention, occlusion"):
        explain(RedArea(), red_square(0, 0), None, DIGITS, "three", method="guess")
    with pytest.raises(ConfigError, match="no student"):
        explain(RedArea(), red_square(0, 0), None, DIGITS, "three", method="attention")


def test_the_shipped_student_points_at_digits() -> None:
    """Above chance by far, on two digits beside each other, by both methods; the pointing game in small."""
    student = load_classifier("tiny-student")
    taxonomy = load_taxonomy("digits")
    hits: dict[str, list[bool]] = {"attention": [], "occlusion": []}
    shares = []
    for seed in range(16):
        rng = np.random.default_rng(seed)
        values = [int(value) for value in rng.choice([0, 1, 2, 3, 5, 6, 7, 9], size=2, replace=False)]
        image, boxes = compose_with_boxes(values, "real", "test", rng)
        value, top, left, side = boxes[0]
        policy = taxonomy.select([DIGIT_NAMES[value]])
        shares.append(side**2 / image.width**2)
        for method, found in hits.items():
            grid = np.array(explain(student, image, None, policy, policy.names[0], method=method).grid)
            row, column = np.unravel_index(grid.argmax(), grid.shape)
            y, x = (np.array([row, column]) + 0.5) / len(grid) * image.width
            found.append(bool(left <= x <= left + side and top <= y <= top + side))
    for found in hits.values():
        assert np.mean(found) > np.mean(shares) + 0.3, hits


def test_a_cropping_encoder_leaves_the_rest_of_the_image_at_zero() -> None:
    student = load_classifier("tiny-student")
    rng = np.random.default_rng(1)
    image, _ = compose_with_boxes([3], "real", "test", rng)
    wide = Image.new("RGB", (image.width * 3, image.height), (128, 128, 128))
    wide.paste(image, (image.width, 0))
    found = explain(student, wide, None, DIGITS, "three", method="attention")
    assert found.box is not None
    if student.image_processor.do_center_crop:
        assert found.box[0] >= 0.25
        assert found.box[2] <= 0.75
