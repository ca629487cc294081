"""Images encoded once and scored under several taxonomies: the scores of one call each."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPImageProcessorPil

from judge.baselines.linear_probe import LinearProbe, ParallelMLP
from judge.baselines.pooled_attention import PooledAttention, PooledAttentionHead
from judge.encoders.dual import DualEncoder
from judge.encoders.processor_settings import exact_preprocessing
from judge.errors import ConfigError, QuestionError
from judge.lessons.envelope import LessonsEnvelope
from judge.protocol import ScoresFeatures
from judge.student.head import CrossAttentionHead, HeadConfig
from judge.student.student import Student
from prompts import Category, Taxonomy, load_taxonomy

DIGITS = load_taxonomy("digits")
POOL = (
    Category("one", "a 1"),
    Category("two", "a 2; or two", ("2 and 2",)),
    Category("six", "a 6; or 9; or a six", ("a photo of six", "six")),
    Category("six again", "a 6; or 9", ("six",)),
    Category("if asked", "a 1, if the prompt mentions two"),
    Category("nine", "a 9", name_only=True),
)
PROMPTS = [None, "a two", "", "a photo of six, " * 40 + "one", "one"]
CLASSIFIERS = ("student", "deep", "probe", "attention")
LESSONS = LessonsEnvelope.of([Taxonomy("lessons", "1", POOL[:4])], ["a photo of six " * 9])
"""Without conditions on the prompt, and reading the windows of some prompts only."""


@pytest.fixture(scope="module")
def loaded(tiny_clip_folder):
    encoder = DualEncoder.load(tiny_clip_folder)
    return {
        "student": make_student(encoder, 1),
        "deep": make_student(encoder, 2),
        "probe": LinearProbe(encoder, ParallelMLP(encoder.width, len(DIGITS), 8), DIGITS, batch_size=2),
        "attention": PooledAttention(encoder, PooledAttentionHead(encoder.width), DIGITS, batch_size=2),
    }


def make_student(encoder, depth):
    torch.manual_seed(depth)
    head = CrossAttentionHead(HeadConfig(encoder.width, inner=32, heads=4, depth=depth, rank=4))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        head.calibration.copy_(torch.tensor([[1.3, -0.2], [0.8, 0.4]]))
    return Student(encoder, head, batch_size=2)


@pytest.fixture
def classifiers(loaded):
    for classifier in loaded.values():
        classifier.prompt_mode = "max"
        if hasattr(classifier, "envelope"):
            classifier.envelope = None
    return loaded


@pytest.fixture
def images(noise_image):
    return [noise_image(seed, (24 + 7 * seed, 40)) for seed in range(5)]


def assert_same(found, expected):
    """Equal but for the rounding of sums in another order."""
    for field in fields(expected):
        # `separate` is None where it is the same as `categories`.
        name = field.name.replace("separate", "category_probabilities")
        one, other = getattr(found, name), getattr(expected, name)
        if isinstance(other, np.ndarray):
            np.testing.assert_allclose(one, other, atol=1e-5)
        else:
            assert one == other, field.name


taxonomies = st.lists(st.sampled_from(POOL), min_size=1, max_size=4, unique_by=lambda c: c.name).map(
    lambda categories: Taxonomy("drawn", "1", tuple(categories))
)


@given(
    st.sampled_from(CLASSIFIERS),
    st.lists(taxonomies, max_size=4),
    st.none() | st.lists(st.sampled_from(PROMPTS), min_size=5, max_size=5),
    st.sampled_from(["max", "use", "ignore"]),
    st.booleans(),
)
def test_several_taxonomies_are_scored_as_each_alone(
    classifiers, images, name, asked, prompts, mode, anything
):
    classifier = classifiers[name]
    classifier.prompt_mode = mode
    if hasattr(classifier, "envelope"):
        classifier.envelope = None if anything else LESSONS
    found = classifier.score_features(classifier.encode_images(images), prompts, asked)
    assert len(found) == len(asked)
    for scores, taxonomy in zip(found, asked, strict=True):
        assert_same(scores, classifier.score(images, prompts, taxonomy))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_resized_pixels_have_the_features_of_their_images(classifiers, images, name):
    classifier = classifiers[name]
    assert isinstance(classifier, ScoresFeatures)
    steps = classifier.image_preprocessing
    features = classifier.encode_resized(np.stack([steps.resized(image) for image in images]))
    assert np.array_equal(features, classifier.encode_images(images))
    assert len(classifier.encode_images([])) == 0


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_no_taxonomies_no_images_and_wrong_arguments(classifiers, images, name):
    classifier = classifiers[name]
    features = classifier.encode_images(images)
    assert classifier.score_features(features, None, []) == []
    [scores] = classifier.score_features(features[:0], None, [DIGITS])
    assert scores.categories.shape == (0, len(DIGITS))
    with pytest.raises(QuestionError, match="5 images but 1 prompts"):
        classifier.score_features(features, ["one"], [DIGITS])
    with pytest.raises(QuestionError, match="taxonomy is a str"):
        classifier.score_features(features, None, ["digits"])


def test_features_that_are_not_finite_leave_their_rows_unjudged(classifiers, images):
    for name in ("student", "deep"):
        classifier = classifiers[name]
        features = classifier.encode_images(images)
        features[1] = float("nan")
        for scores in classifier.score_features(features, PROMPTS, [DIGITS, DIGITS.select(["two", "one"])]):
            assert np.isnan(scores.unsafe).tolist() == [False, True, False, False, False]
            assert np.isnan(scores.categories).all(axis=1).tolist() == [False, True, False, False, False]
            assert "finite" in scores.reasons[1]


class Inexact(CLIPImageProcessorPil):
    """Rounds otherwise, as a processor that resizes by torchvision does."""

    def __call__(self, images, **options):
        found = super().__call__(images, **options)
        found["pixel_values"] = found["pixel_values"] * (1 + 1e-6)
        return found


Inexact.__name__ = "CLIPImageProcessor"


def test_a_processor_that_rounds_otherwise_is_left_to_itself(tiny_clip_folder, images):
    assert exact_preprocessing(CLIPImageProcessorPil()) is not None
    assert exact_preprocessing(Inexact()) is None
    assert exact_preprocessing(CLIPImageProcessorPil(do_center_crop=False)) is None
    assert exact_preprocessing(object()) is None
    encoder = DualEncoder.load(tiny_clip_folder)
    encoder.image_processor = Inexact(**encoder.image_processor.to_dict())
    student = make_student(encoder, 1)
    assert student.image_preprocessing is None
    assert len(student.encode_images(images)) == len(images)
    with pytest.raises(ConfigError, match="give the images to encode_images"):
        student.encode_resized(np.zeros((1, 8, 8, 3), np.uint8))
