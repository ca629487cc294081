"""The filters on a compass: embeddings are directions in the plane, so every cosine is known by heart."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import expit

from judge.cascade.filters_alone import FilterClassifier
from judge.cascade.similarity import Platt, Similarities
from judge.encoders.phrase_embeddings import PhraseEmbeddings
from judge.encoders.phrases import MAX_CACHED_TAXONOMIES
from judge.errors import ConfigError
from judge.readings import TOO_MANY_TOKENS
from prompts import Category, Taxonomy
from prompts.errors import TaxonomyError

WINDS = Taxonomy("winds", "1", (Category("east", "east"), Category("north", "north")))
ANGLES = {"east": 0.0, "north": 90.0, "north-east": 45.0, "west": 180.0}
IMAGE, TEXT = Platt(4.0, -2.0), Platt(2.0, -1.0)


class Compass:
    """A text points where its words say; an image as many degrees from east as its red value."""

    width, context, device = 2, 77, torch.device("cpu")

    def __init__(self):
        self.batches, self.texts = [], []

    def too_long(self, text):
        return len(text) > 20

    def token_count(self, text):
        return 1

    def encode_texts(self, texts):
        assert not any(map(self.too_long, texts))
        self.texts += texts
        return self.tokens(torch.tensor([ANGLES.get(text, 0.0) for text in texts])), None

    def encode_images(self, images):
        self.batches.append(len(images))
        return self.tokens(torch.tensor([float(image.getpixel((0, 0))[0]) for image in images]))

    def encode_pixels(self, pixels):
        return self.tokens(pixels[:, 0, 0, 0] * 255)

    @staticmethod
    def tokens(degrees):
        """Pooled ones of length 3; behind each a patch that says west, which no filter looks at."""
        angle = degrees * math.pi / 180
        pooled = 3 * torch.stack([angle.cos(), angle.sin()], dim=1)
        pooled[degrees == 255] = torch.nan
        return torch.stack([pooled, torch.tensor([-1.0, 0.0]).expand_as(pooled)], dim=1)


def at(*degrees):
    return [Image.new("RGB", (2, 2), (value, 0, 0)) for value in degrees]


def stage(text=TEXT, image=IMAGE, **options):
    return FilterClassifier(Similarities(Compass()), text, image, **options)


def test_cosines_of_images_and_prompts():
    similarities = Similarities(Compass())
    tokens = similarities.encoder.encode_images(at(0, 60, 90, 180))
    found = similarities.image_similarities(tokens, WINDS)
    assert found == pytest.approx(np.array([[1, 0], [0.5, math.sqrt(0.75)], [0, 1], [-1, 0]]), abs=1e-6)
    assert found.dtype == np.float64
    assert np.abs(found).max() <= 1
    read = similarities.prompt_similarities(["west", None, "north-east", " ", "west", ""], WINDS)
    half = math.sqrt(0.5)
    expected = [[-1, 0], [np.nan] * 2, [half, half], [np.nan] * 2, [-1, 0], [np.nan] * 2]
    assert read == pytest.approx(np.array(expected), abs=1e-6, nan_ok=True)
    assert similarities.encoder.texts.count("west") == 1
    assert similarities.prompt_similarities([None], WINDS).shape == (1, 2)


def test_of_several_phrases_the_nearest_counts():
    """Categories with fewer phrases than others are not asked about nothing."""
    several = Taxonomy("x", "1", (Category("east", "north; or west"), Category("north", "north")))
    similarities = Similarities(Compass())
    found = similarities.image_similarities(similarities.encoder.encode_images(at(180, 90, 135)), several)
    assert found == pytest.approx(np.array([[1, 0], [1, 1], [math.sqrt(0.5)] * 2]), abs=1e-6)


def test_the_taxonomies_asked_about_last_are_kept(monkeypatch):
    embedded = []
    plain = PhraseEmbeddings.embed
    monkeypatch.setattr(
        PhraseEmbeddings,
        "embed",
        lambda self, asked: embedded.append(asked[0].names[0]) or plain(self, asked),
    )
    many = [Taxonomy("x", "1", (Category(f"wind {n}", "east"),)) for n in range(MAX_CACHED_TAXONOMIES + 1)]
    similarities = Similarities(Compass())
    tokens = similarities.encoder.encode_images(at(0))
    for taxonomy in (*many[:-1], many[0], many[-1], many[0], many[2]):
        assert similarities.image_similarities(tokens, taxonomy).tolist() == [[1.0]]
    assert embedded == [taxonomy.names[0] for taxonomy in many]  # each once: the second was the one to go
    similarities.image_similarities(tokens, many[1])
    assert embedded[-1] == "wind 1"
    assert len(embedded) == MAX_CACHED_TAXONOMIES + 2


def test_filters_are_called_filters():
    assert (stage().name, stage().default_taxonomy, stage().batch_size) == ("filters", None, 32)


def test_a_category_is_as_likely_as_the_surer_filter_says():
    found = stage().score(at(0, 0, 90, 60), [None, "north", "east", "west"], WINDS)
    logits = np.array([[2, -2], [2, 1], [1, 2], [0, 4 * math.sqrt(0.75) - 2]])
    assert found.categories == pytest.approx(expit(logits), abs=1e-6)
    assert found.unsafe == pytest.approx(found.categories.max(axis=1))
    assert found.reasons == (None,) * 4
    assert found.decided_by == ("filter",) * 4


@pytest.mark.parametrize("batch_size", [1, 2, 5, 32])
def test_images_are_seen_in_batches_with_their_own_prompts(batch_size):
    filters = stage(batch_size=batch_size)
    images, prompts = at(0, 90, 180, 45, 10), ["north", None, "east", "west", "north"]
    found = filters.score(images, prompts, WINDS)
    alone = [stage().score([image], [prompt], WINDS) for image, prompt in zip(images, prompts, strict=True)]
    assert found.categories == pytest.approx(np.concatenate([one.categories for one in alone]), abs=1e-6)
    assert max(filters.encoder.batches) <= batch_size
    assert sum(filters.encoder.batches) == 5


def test_what_nobody_read_or_saw_is_unjudged_and_says_why():
    found = stage(name="sieve").score(at(0, 255, 255, 0), ["north " * 9, None, "north " * 9, None], WINDS)
    assert found.reasons == (None, "sieve gave no finite score", "sieve gave no finite score", None)
    assert np.isnan(found.unsafe).tolist() == [False, True, True, False]
    assert np.isnan(found.categories).all(axis=1).tolist() == [False, True, True, False]
    assert found.unsafe[0] == found.unsafe[3]
    why = f"the prompt was not read: {TOO_MANY_TOKENS}"
    assert found.notes == (why, None, why, None)


def test_of_a_long_prompt_every_window_counts():
    class Wordy(Compass):
        def too_long(self, text):
            return False

        def encode_texts(self, texts):
            return self.tokens(torch.tensor([90.0 if "north" in text else 180.0 for text in texts])), None

    similarities = Similarities(Wordy())
    long = "west " * 200 + "north " + "west " * 200
    assert similarities.prompt_similarities([long, "west"], WINDS)[:, 1] == pytest.approx([1, 0], abs=1e-6)
    hidden = similarities.read_prompts(["no\u200brth", "north"])
    assert hidden.hidden == (1, 0)
    assert similarities.prompt_similarities(hidden, WINDS)[:, 1] == pytest.approx([1, 1], abs=1e-6)


def test_a_text_filter_that_learnt_nothing_has_no_say():
    images, prompts = at(0, 0, 0), ["north", None, " "]
    blind = stage(image=Platt(0.0, 0.5)).score(images, prompts, WINDS)
    assert blind.categories == pytest.approx(expit(np.array([[0.5, 1], [0.5, 0.5], [0.5, 0.5]])), abs=1e-6)
    deaf = stage(text=Platt(0.0, 3.0)).score(images, prompts, WINDS)
    assert deaf.categories == pytest.approx(expit(np.array([[2, -2]] * 3)), abs=1e-6)
    small = stage(image=Platt(0.5, 3.0)).score(images[:1], prompts[:1], WINDS)
    assert small.categories == pytest.approx(expit(np.array([[3.5, 3.0]])), abs=1e-6)


def test_margins_are_logits_and_lead_through_the_image_only():
    filters = stage()
    pixels = torch.zeros(3, 3, 2, 2)
    pixels[:, 0, 0, 0] = torch.tensor([0.0, 60.0, 90.0]) / 255
    pixels.requires_grad_()
    margins = filters.pixel_margins(pixels, ["north", None, "east"], WINDS)
    assert margins.tolist() == pytest.approx([2, 4 * math.sqrt(0.75) - 2, 2], abs=1e-5)
    east = filters.pixel_margins(pixels, ["north", None, "east"], WINDS, category="East")
    assert east.tolist() == pytest.approx([2, 0, 1], abs=1e-5)
    (gradient,) = torch.autograd.grad(east.sum(), pixels)
    slope = [float(value) for value in gradient[:, 0, 0, 0] * 180 / math.pi / 255]
    assert slope == pytest.approx([0, -4 * math.sqrt(0.75), 0], abs=1e-4)  # the third is what the prompt says
    with pytest.raises(TaxonomyError, match="no category 'south'"):
        filters.pixel_margins(pixels, None, WINDS, category="south")
    unread = filters.pixel_margins(pixels, [None, "north " * 9, None], WINDS)
    assert torch.equal(unread, filters.pixel_margins(pixels, None, WINDS))
    with pytest.raises(ValueError, match="3 images but 2 prompts"):
        filters.pixel_margins(pixels, [None, None], WINDS)
    with pytest.raises(ValueError, match="1 images but 2 prompts"):
        filters.score(at(0), [None, None], WINDS)


def test_platt_on_four_rows_that_overlap():
    """Logistic regression, hardly penalised: the two conditions of its maximum hold at what was found."""
    truth = np.array([0, 0, 1, 0, 1, 1, np.nan, 1])
    cosines = np.array([-0.5, -0.2, 0.0, 0.1, 0.3, 0.4, 0.9, np.nan])
    found = Platt.fit(truth, cosines)
    left = truth[:6] - found(cosines[:6])
    assert left.sum() == pytest.approx(0, abs=1e-3)
    assert (left * cosines[:6]).sum() == pytest.approx(0, abs=2e-3)
    assert found.slope > 0
    assert found.logits(torch.tensor([0.5])).tolist() == pytest.approx([found.slope / 2 + found.intercept])
    turned = Platt.fit(1 - truth, cosines)  # knows less than nothing
    assert (turned.slope, turned.intercept) == (0.0, pytest.approx(0.0, abs=1e-9))
    rare = Platt.fit([1, 0, 0, 0], [0.3, 0.3, 0.3, 0.3])
    assert (rare.slope, rare.intercept) == (0.0, pytest.approx(math.log(1 / 3)))
    assert Platt.fit([1, 0], [1.0, -1.0]).slope > 0
    # A cosine that rounding carried over the edge is the edge.
    assert Platt.fit([1, 0], [1.0000002, -1.0000002]) == Platt.fit([1, 0], [1.0, -1.0])


def test_platt_finds_the_logistic_curve_on_cosines_that_hardly_differ():
    rng = np.random.default_rng(0)
    cosines = rng.normal(0.24, 0.02, 20000)
    truth = rng.random(20000) < expit(150 * cosines - 36)
    found = Platt.fit(truth, np.append(cosines, [])[:20000])
    assert found.slope == pytest.approx(150, rel=0.05)
    assert found(np.array([0.24, np.nan]))[0] == pytest.approx(0.5, abs=0.02)
    assert np.isnan(found(np.array([np.nan])))


@pytest.mark.parametrize("similarity", [[0.5, 0.5, 0.5, 0.5], [0.1, 0.1, 0.9, 0.9]])
def test_a_filter_that_knows_nothing_is_never_sure(similarity):
    found = Platt.fit([1, 1, 0, 0], similarity)
    assert found.slope == 0
    assert found(np.array([-1.0, 1.0])).tolist() == [0.5, 0.5]


def test_platt_needs_both_kinds():
    with pytest.raises(ConfigError, match="2 unsafe and 0 safe"):
        Platt.fit([1, 1, 0], [0.1, 0.2, np.nan])


def test_of_a_category_with_a_condition_images_meet_the_subject_and_prompts_nothing():
    both = Category("mixed", "east, if the prompt mentions north")
    policy = Taxonomy("x", "1", (both, Category("north", "north")))
    similarities = Similarities(Compass())
    assert similarities.conditional(policy).tolist() == [True, False]
    found = similarities.image_similarities(similarities.encoder.encode_images(at(0, 90)), policy)
    assert found == pytest.approx(np.array([[1, 0], [0, 1]]), abs=1e-6)
    read = similarities.prompt_similarities(["north", None, "east"], policy)
    assert read == pytest.approx(np.array([[-1, 1], [np.nan] * 2, [-1, 0]]), abs=1e-6, nan_ok=True)
