"""Margins: every classifier's verdict as a differentiable function of the pixels, whole and by category."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from judge.baselines.linear_probe import LinearProbe, ParallelMLP
from judge.baselines.pooled_attention import PooledAttention, PooledAttentionHead
from judge.baselines.prompt_learning import PromptLearning, SoftPrompts
from judge.cascade.cascade import Cascade
from judge.cascade.filters_alone import FilterClassifier
from judge.cascade.settings import CascadeSettings
from judge.cascade.similarity import Platt, Similarities
from judge.cascade.stages import Cutoffs
from judge.encoders.dual import DualEncoder
from judge.errors import ConfigError
from judge.student.head import CrossAttentionHead, HeadConfig
from judge.student.student import Student
from judge.vlm.score import VisionLanguageJudge
from prompts import Category, Taxonomy
from prompts.errors import TaxonomyError

POLICY = Taxonomy(
    "short", "1", (Category("one", "a 1"), Category("two", "a 2"), Category("six", "a 6; or 9"))
)
PROMPTS = ["a two", None, "", "a photo of six and more words than one window holds", "one"]
CUTOFFS = Cutoffs(0.8, 0.1, 0.9, 0.3, 0.6, 0.5)


def as_pixels(images):
    return torch.stack([torch.from_numpy(np.array(i)).permute(2, 0, 1) for i in images]).float() / 255.0


@pytest.fixture(scope="module")
def images(noise_image):
    return [noise_image(seed, (16, 16)) for seed in range(5)]


@pytest.fixture(scope="module")
def encoder(tiny_clip_folder):
    return DualEncoder.load(tiny_clip_folder, device="cpu")


def make_student(encoder, seed=0):
    torch.manual_seed(seed)
    head = CrossAttentionHead(HeadConfig(encoder.width, inner=32, heads=4, rank=4))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return Student(encoder, head)


def make_filters(encoder, text=None, image=None):
    """Filters that flag about half of noise and half of prompts."""
    similarities = Similarities(encoder)
    return FilterClassifier(similarities, text or Platt(8.0, -2.0), image or Platt(20.0, 0.0))


def centred(filters, images):
    """The same with the image filter's cutoff amid these images."""
    seen = filters.similarities.image_similarities(filters.encoder.encode_images(images), POLICY).max(axis=1)
    slope = 4.0 / max(float(np.std(seen)), 1e-3)
    image = Platt(slope, -slope * float(np.median(seen)))
    return FilterClassifier(filters.similarities, filters.text, image)


def make(kind, encoder, images):
    torch.manual_seed(1)
    if kind == "student":
        return make_student(encoder)
    if kind == "filters":
        return centred(make_filters(encoder), images)
    if kind == "probe":
        return LinearProbe(encoder, ParallelMLP(encoder.width, len(POLICY)), POLICY)
    if kind == "prompt_learning":
        return PromptLearning(encoder, SoftPrompts(encoder, POLICY.names), POLICY)
    return PooledAttention(encoder, PooledAttentionHead(encoder.width), POLICY)


KINDS = ["student", "filters", "probe", "prompt_learning", "pooled_attention"]


@pytest.mark.parametrize("kind", KINDS)
def test_margins_are_the_logits_of_the_scores(encoder, images, kind):
    classifier = make(kind, encoder, images)
    scores = classifier.score(images, PROMPTS, POLICY)
    margins = classifier.pixel_margins(as_pixels(images), PROMPTS, POLICY)
    assert margins.shape == (5,)
    assert margins.dtype == torch.float32
    assert margins.sigmoid().numpy(force=True) == pytest.approx(scores.unsafe, abs=1e-4)
    assert np.array_equal(margins.numpy(force=True) > 0, scores.unsafe >= 0.5)
    if kind == "pooled_attention":
        return
    for place, name in enumerate(POLICY.names):
        of_category = classifier.pixel_margins(as_pixels(images), PROMPTS, POLICY, category=name)
        expected = scores.categories[:, place]
        assert of_category.sigmoid().numpy(force=True) == pytest.approx(expected, abs=1e-4)
    with pytest.raises(TaxonomyError, match=r"'onee'.*one, two, six"):
        classifier.pixel_margins(as_pixels(images), PROMPTS, POLICY, category="onee")


@pytest.mark.parametrize("category", [None, "two"])
@pytest.mark.parametrize("kind", KINDS[:4])
def test_gradients_are_finite_differences(encoder, images, kind, category):
    classifier = make(kind, encoder, images)
    pixels = (as_pixels(images[:2]) * 0.4 + 0.3).requires_grad_()
    margins = classifier.pixel_margins(pixels, PROMPTS[:2], POLICY, category=category)
    (gradient,) = torch.autograd.grad(margins.sum(), pixels)
    for row in range(2):
        slope = float(gradient[row].norm())
        if kind == "filters" and slope == 0:  # the prompt decides, which pixels do not move
            continue
        assert slope > 0
        along = torch.zeros_like(pixels)
        along[row] = gradient[row] / slope
        with torch.no_grad():
            up, down = (
                classifier.pixel_margins(pixels + s * along, PROMPTS[:2], POLICY, category=category)
                for s in (1e-2, -1e-2)
            )
        assert float(up[row] - down[row]) / 2e-2 == pytest.approx(slope, rel=0.1)
        others = [other for other in range(2) if other != row]
        assert up[others] == pytest.approx(down[others], abs=1e-4)


def test_a_calibrated_student_keeps_its_signs(encoder, images):
    student = make_student(encoder)
    plain = student.pixel_margins(as_pixels(images), PROMPTS, POLICY).median()
    with torch.no_grad():
        student.head.calibration.copy_(torch.tensor([[0.7, 0.1], [1.5, float(0.1 - 1.5 * plain)]]))
    scores = student.score(images, PROMPTS, POLICY)
    margins = student.pixel_margins(as_pixels(images), PROMPTS, POLICY).numpy(force=True)
    assert 0 < (margins > 0).sum() < 5
    assert np.array_equal(margins > 0, scores.unsafe > 0.5)


@pytest.mark.parametrize("template", ["policy_first", "perspective"])
def test_the_judges_margin_of_a_category_is_the_logit_of_its_score(tiny_vlm, images, template):
    judge = VisionLanguageJudge(*tiny_vlm(), template)
    scores = judge.score(images, PROMPTS, POLICY).categories
    for place, name in enumerate(POLICY.names):
        margins = judge.pixel_margins(as_pixels(images), PROMPTS, POLICY, category=name)
        expected = np.log(scores[:, place]) - np.log1p(-scores[:, place])
        assert margins.numpy(force=True) == pytest.approx(expected, abs=1e-3)
    alone = judge.pixel_margins(as_pixels(images), PROMPTS, POLICY, category="two", focus="two")
    focused = judge.pixel_margins(as_pixels(images), PROMPTS, POLICY, focus="two")
    assert alone.numpy(force=True) == pytest.approx(focused.numpy(force=True), abs=1e-4)


def test_a_judge_says_which_categories_it_can_be_asked_about(tiny_vlm, images):
    pixels = as_pixels(images[:1])
    judge = VisionLanguageJudge(*tiny_vlm(), "zero_shot_1")
    with pytest.raises(ConfigError, match=r"'two' under the template 'zero_shot_1'.*policy_first"):
        judge.pixel_margins(pixels, None, POLICY, category="two")
    judge = VisionLanguageJudge(*tiny_vlm())
    with pytest.raises(ConfigError, match="'two' asked about 'one' alone"):
        judge.pixel_margins(pixels, None, POLICY, category="two", focus="one")
    with pytest.raises(TaxonomyError, match="'three'"):
        judge.pixel_margins(pixels, None, POLICY, category="three")


def test_a_fixed_head_has_no_margin_for_what_it_was_not_trained_on(encoder, images):
    probe = make("probe", encoder, images)
    wider = POLICY.extend({"balloons": "toy balloons"})
    with pytest.raises(ConfigError, match="does not cover balloons"):
        probe.pixel_margins(as_pixels(images), None, wider)
    covered = probe.pixel_margins(as_pixels(images), None, wider, category="two")
    assert torch.equal(covered, probe.pixel_margins(as_pixels(images), None, POLICY, category="two"))
    with pytest.raises(ConfigError, match="scores no categories"):
        make("pooled_attention", encoder, images).pixel_margins(
            as_pixels(images), None, POLICY, category="two"
        )


def test_filters_flag_what_either_of_them_flags(encoder, images):
    filters = make_filters(encoder)
    tokens = encoder.encode_images(images)
    text = filters.text(filters.similarities.prompt_similarities(PROMPTS, POLICY))
    image = filters.image(filters.similarities.image_similarities(tokens, POLICY))
    scores = filters.score(images, PROMPTS, POLICY)
    assert scores.categories == pytest.approx(np.fmax(text, image), abs=1e-5)
    assert scores.unsafe == pytest.approx(np.fmax(text, image).max(axis=1), abs=1e-5)
    assert scores.decided_by == ("filter",) * 5
    assert scores.reasons == (None,) * 5


def test_a_text_filter_that_knows_nothing_has_no_say(encoder, images):
    ignorant, sure = Platt(0.0, 3.0), Platt(5.0, -1.0)
    tokens = encoder.encode_images(images)
    similarities = Similarities(encoder)
    deaf = make_filters(encoder, text=ignorant, image=sure).score(images, PROMPTS, POLICY).unsafe
    assert deaf == pytest.approx(sure(similarities.image_similarities(tokens, POLICY)).max(axis=1), abs=1e-5)


def test_a_prompt_that_is_not_read_leaves_the_image_to_the_filters(encoder, images):
    filters = make_filters(encoder)
    prompts = ["word " * 2000, "two"]
    scores = filters.score(images[:2], prompts, POLICY)
    assert scores.reasons == (None, None)
    assert scores.unsafe[0] == filters.score(images[:2], None, POLICY).unsafe[0]
    assert scores.notes[0].startswith("the prompt was not read: it has 10,000 characters")
    assert scores.notes[1] is None
    margins = filters.pixel_margins(as_pixels(images[:2]), prompts, POLICY)
    assert margins.sigmoid().numpy() == pytest.approx(scores.unsafe, abs=1e-4)


def test_filters_of_a_cascade_are_its_own(encoder, images):
    settings = CascadeSettings(Platt(8.0, -2.0), Platt(20.0, 0.0), CUTOFFS, False, 0.05, 0.02, 100)
    cascade = Cascade(make_student(encoder), settings, default_taxonomy=POLICY)
    filters = FilterClassifier.from_cascade(cascade)
    assert filters.similarities is cascade.similarities
    assert (filters.text, filters.image, filters.name) == (settings.text, settings.image, "filters")
    assert filters.default_taxonomy is POLICY
    expected = make_filters(encoder).score(images, PROMPTS, POLICY).unsafe
    assert filters.score(images, PROMPTS, POLICY).unsafe == pytest.approx(expected)


def test_a_text_filter_without_a_say_in_the_cascade_has_none_alone(encoder, images):
    silent = replace(CUTOFFS, text_unsafe=2.0)
    settings = CascadeSettings(Platt(8.0, -2.0), Platt(20.0, 0.0), silent, False, 0.05, 0.02, 100)
    filters = FilterClassifier.from_cascade(Cascade(make_student(encoder), settings))
    assert filters.text.slope == 0
    with_prompts, without = (filters.score(images, texts, POLICY).unsafe for texts in (PROMPTS, None))
    assert with_prompts == pytest.approx(without)


def test_no_images_and_too_few_prompts(encoder):
    filters = make_filters(encoder)
    scores = filters.score([], None, POLICY)
    assert scores.unsafe.shape == (0,)
    assert scores.categories.shape == (0, 3)
    with pytest.raises(ValueError, match="2 images but 1 prompts"):
        filters.pixel_margins(torch.rand(2, 3, 16, 16), ["one"], POLICY)
