"""A prompt can only add suspicion: whatever it says, no score falls below the image's own, and no flag is lost."""

from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adversarial.texts.families import FAMILIES
from adversarial.texts.tokens import TokenSearch
from judge.baselines.pooled_attention import PooledAttention, PooledAttentionHead
from judge.cascade.cascade import Cascade
from judge.cascade.filters_alone import FilterClassifier
from judge.cascade.settings import CascadeSettings
from judge.cascade.similarity import Platt, Similarities
from judge.cascade.stages import STAGES, Cutoffs
from judge.encoders.dual import DualEncoder
from judge.encoders.soft_text import SoftText
from judge.student.head import CrossAttentionHead, HeadConfig
from judge.student.student import Student, student_margin
from judge.vlm.score import VisionLanguageJudge
from prompts import Category, Taxonomy

POLICY = Taxonomy("short", "1", (Category("one", "a 1"), Category("two", "a 2; or 3")))
SCRIPTS = [(0x20, 0x7F), (0xC0, 0x250), (0x370, 0x600), (0x600, 0x700), (0x900, 0x980), (0x4E00, 0x4F00)]
ODD = "\u200b\u200c\u200d\u202e\u2066\ufeff\u00ad\x00\x07\ud800\ufe0f\U0001f642\U0001f469\U000e0041\u0301"


def random_prompt(rng):
    """A few letters of one script to thousands of several, in clean text or among odd characters."""
    letters = [
        chr(code) for low, high in rng.sample(SCRIPTS, rng.choice([1, 1, 2])) for code in range(low, high)
    ]
    letters += ODD * rng.choice([0, 0, 4])
    length = rng.choice([1, 3, 10, 10, 30, 30, 60, 60, 60, 120] * 40 + [400, 1500, 7000])
    return "".join(rng.choices(letters + [" "] * (len(letters) // 6), k=length))


def adversarial_prompts():
    """What the families of attacks make of a few prompts, for either verdict."""
    own = (None, "a two", "a photo of one and two on a table")
    return [
        text
        for prompt in own
        for make in FAMILIES.values()
        for to in ("safe", "unsafe")
        for text in make(prompt, to, 0)
    ]


@pytest.fixture(scope="module")
def prompts():
    rng = Random(0)
    long = [
        " ".join(["word"] * 1400),
        "\u200b" * 7000,
        "one " + "\u202e" * 500,
        "two " * 1500,
        "\0" * 300 + "a 1",
    ]
    return adversarial_prompts() + long + [random_prompt(rng) for _ in range(400)]


@pytest.fixture(scope="module")
def images(noise_image):
    return [noise_image(seed, (16, 16)) for seed in range(6)]


@pytest.fixture(scope="module")
def encoder(tiny_clip_folder):
    return DualEncoder.load(tiny_clip_folder, device="cpu")


@pytest.fixture(scope="module")
def student(encoder):
    """A student whom prompts talk round easily: its two heads read them strongly, one for a category, one against."""
    torch.manual_seed(0)
    head = CrossAttentionHead(HeadConfig(encoder.width, inner=16, heads=2, rank=4))
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            if name == "condition":  # there is none in these policies
                continue
            parameter.add_(torch.randn_like(parameter) * 0.3)
        head.plain.weight[0, -2:] = torch.tensor([-30.0, 25.0])  # of the prompt's cosines, of two heads
    return Student(encoder, head, batch_size=128)


@pytest.fixture(scope="module")
def filters(encoder, images):
    """Filters about whose middle these images and most prompts lie."""
    similarities = Similarities(encoder)
    seen = similarities.image_similarities(encoder.encode_images(images), POLICY)
    slope = 2 / float(seen.std())
    return FilterClassifier(
        similarities, Platt(slope, -slope / 2), Platt(slope, -slope * float(np.median(seen)))
    )


@pytest.fixture(scope="module")
def make(encoder, student, filters):
    """`make(kind)` -> a classifier that reads prompts."""

    def build(kind):
        torch.manual_seed(1)
        if kind == "pooled attention":
            return PooledAttention(encoder, PooledAttentionHead(encoder.width), POLICY, batch_size=128)
        return {"student": student, "filters": filters}[kind]

    return build


def ask(classifier, images, prompts):
    """Scores of every prompt with one image or another, and of the images alone in the same places."""
    rows = [images[place % len(images)] for place in range(len(prompts))]
    return classifier.score(rows, prompts, POLICY), classifier.score(rows, None, POLICY)


@pytest.mark.parametrize("kind", ["student", "pooled attention", "filters"])
def test_no_prompt_lowers_a_score(make, images, prompts, kind):
    rng = Random(1)
    short = ["".join(rng.choices("aeinost 0123,." + ODD, k=rng.randint(1, 12))) for _ in range(1500)]
    some = prompts + short if kind == "student" else prompts[::3]
    found, alone = ask(make(kind), images, some)
    assert not np.isnan(found.unsafe).any()
    # Which text is read has no effect on a pooled head but by rounding; the others are equal to the last bit.
    slack = 1e-6 if kind == "pooled attention" else 0.0
    assert (found.unsafe >= alone.unsafe - slack).all()
    if kind != "pooled attention":  # which scores no categories
        assert (found.categories >= alone.categories).all()
        assert (found.unsafe > alone.unsafe).any()  # prompts are read


@settings(max_examples=8)
@given(st.lists(st.text(max_size=200), min_size=1, max_size=12))
def test_no_text_at_all_lowers_a_score(make, images, prompts):
    for kind in ("student", "filters"):
        found, alone = ask(make(kind), images, prompts)
        assert (found.unsafe >= alone.unsafe).all()
        assert (found.categories >= alone.categories).all()


@pytest.fixture(scope="module")
def searched(student, images):
    """Prompts whose tokens were searched to make the student call an image safe, reading it with the prompt only."""
    soft, found = SoftText(student.encoder), []
    search = TokenSearch(length=6, top_k=32, candidates=24, steps=8)
    student.prompt_mode = "use"
    for seed, image in enumerate(images):
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
        found.append(search.run(soft, student_margin(student, soft, pixels, POLICY), seed=seed).text)
    student.prompt_mode = "max"
    return found


def test_a_token_search_lowers_only_the_plain_reading(student, images, searched):
    alone = student.score(images, None, POLICY).unsafe
    student.prompt_mode = "use"
    plain = student.score(images, searched, POLICY).unsafe
    student.prompt_mode = "max"
    assert (plain < alone - 0.01).mean() > 0.5  # what the guarantee saves
    every = [text for text in searched for _ in images]
    found, alone = ask(student, images, every)
    assert (found.unsafe >= alone.unsafe).all()
    assert (found.categories >= alone.categories).all()


@pytest.fixture(scope="module")
def make_cascade(student, filters, tiny_vlm, images):
    """A cascade whose cutoffs lie amid the stages' own scores of the images, between any two of them."""
    judge = VisionLanguageJudge(*tiny_vlm(), batch_size=64)

    def between(scores, share):
        ranked = np.sort(np.asarray(scores))
        place = min(len(ranked) - 2, int(share * len(ranked)))
        return float(ranked[place : place + 2].mean())

    seen = filters.score(images, None, POLICY).unsafe
    read, asked = (one.score(images, None, POLICY).unsafe for one in (student, judge))
    cutoffs = Cutoffs(
        0.95,
        between(seen, 0.2),
        between(seen, 0.8),
        between(read, 0.3),
        between(read, 0.8),
        between(asked, 0.5),
    )

    def build(with_judge):
        chosen = CascadeSettings(filters.text, filters.image, cutoffs, True, 0.05, 0.02, 100)
        return Cascade(student, chosen, judge if with_judge else None, batch_size=128)

    return build


@pytest.mark.parametrize("with_judge", [False, True])
def test_no_prompt_makes_a_cascade_call_safe_what_it_does_not_without(
    make_cascade, images, prompts, searched, with_judge
):
    some = searched * len(images) + (prompts[::12] if with_judge else prompts)
    found, alone = ask(make_cascade(with_judge), images, some)
    lost = (found.unsafe < 0.5) & ~(alone.unsafe < 0.5)
    assert not lost.any()
    assert (found.unsafe[alone.unsafe >= 0.5] >= 0.5).all()
    assert set(alone.decided_by) == set(STAGES if with_judge else STAGES[:2])
    assert 0.1 < (alone.unsafe < 0.5).mean() < 0.9
    assert ((found.unsafe >= 0.5) & (alone.unsafe < 0.5)).any()  # prompts are read
