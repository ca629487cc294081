"""Outside its lessons a classifier judges nothing by the policy, and reads no prompt."""

from dataclasses import replace

import numpy as np
import pytest

from judge.calibration.envelope import Envelope
from judge.cascade.cascade import Cascade
from judge.cascade.settings import CascadeSettings
from judge.cascade.similarity import Platt
from judge.cascade.stages import Cutoffs
from judge.lessons.envelope import LessonsEnvelope
from judge.lessons.evidence import Evidence, read_text
from judge.lessons.outside import beyond_lessons
from judge.vlm.score import VisionLanguageJudge
from prompts import Category, Taxonomy

INSIDE = Taxonomy("inside", "1", (Category("red", "red things"), Category("blue", "blue things")))
LONG = Taxonomy("long", "1", tuple(Category(f"c{n}", "some thing") for n in range(3)))
CYRILLIC = Taxonomy("ru", "1", (Category("red", "красные вещи"),))
PROMPTS = ["a red box", "красная коробка", None]


@pytest.fixture(scope="module")
def judge(tiny_vlm):
    model, processor = tiny_vlm()
    judge = VisionLanguageJudge(model, processor)
    judge.envelope = LessonsEnvelope.of([INSIDE], ["a red box on a table"], judge.policy_tokens)
    return judge


@pytest.fixture(scope="module")
def images(noise_image):
    return [noise_image(seed, (16, 16)) for seed in range(3)]


@pytest.mark.parametrize("policy", [LONG, CYRILLIC], ids=lambda policy: policy.name)
def test_every_image_is_unjudged_with_the_reason(judge, images, policy):
    scores = judge.score(images, None, policy)
    assert np.isnan(scores.unsafe).all()
    assert scores.categories.shape == (3, len(policy))
    assert np.isnan(scores.categories).all()
    assert set(scores.reasons) == {judge.outside_lessons(policy)}
    with beyond_lessons(judge):
        assert np.isfinite(judge.score(images, None, policy).unsafe).all()


@pytest.mark.parametrize("template", ["policy_first", "perspective"])
def test_other_taxonomies_of_the_call_are_judged(judge, images, template):
    asked = VisionLanguageJudge(judge.model, judge.processor, template, envelope=judge.envelope)
    one, two, three = asked.score_taxonomies(images, None, [LONG, INSIDE, CYRILLIC])
    assert np.isnan(one.unsafe).all()
    assert np.isnan(three.unsafe).all()
    np.testing.assert_allclose(two.unsafe, asked.score(images, None, INSIDE).unsafe, rtol=1e-4)


def test_more_tokens_than_lessons_had_lie_outside(judge, images):
    few = LessonsEnvelope.of([INSIDE], (), lambda policy: judge.policy_tokens(policy) // 2)
    asked = VisionLanguageJudge(judge.model, judge.processor, envelope=few)
    assert "tokens" in asked.score(images, None, INSIDE).reasons[0]


def test_a_prompt_outside_is_not_read_and_the_image_is_judged(judge, images):
    scores, alone = judge.score(images, PROMPTS, INSIDE), judge.score(images, None, INSIDE)
    assert np.isfinite(scores.unsafe).all()
    assert scores.unsafe[1] == pytest.approx(alone.unsafe[1], rel=1e-4)
    assert [note is None for note in scores.notes] == [True, False, True]
    assert "Cyrillic" in scores.notes[1]
    with beyond_lessons(judge):
        assert not any(judge.score(images, PROMPTS, INSIDE).notes)


def test_margins_are_those_of_the_readings_that_count(judge, images):
    import torch

    pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images]).float()
    read, alone = (judge.pixel_margins(pixels / 255, given, INSIDE) for given in (PROMPTS, None))
    np.testing.assert_allclose(read[1].detach(), alone[1].detach(), rtol=1e-4)
    with beyond_lessons(judge):
        beyond = judge.pixel_margins(pixels / 255, PROMPTS, INSIDE)
    assert beyond[1] >= read[1] - 1e-5


class Stage:
    """A stage of a cascade that knows its lessons."""

    name = "stage"

    def __init__(self, envelope, evidence):
        self.envelope, self.evidence = envelope, evidence

    def outside_lessons(self, taxonomy):
        return None if self.envelope is None else self.envelope.why_policy_outside(taxonomy)


def test_a_cascade_reaches_as_far_as_both_stages(images):
    wide, narrow = LessonsEnvelope.of([LONG]), LessonsEnvelope.of([INSIDE])
    red, blue = map(read_text, INSIDE)
    settings = CascadeSettings(Platt(1, 0), Platt(1, 0), Cutoffs(2, 0, 2, 0.2, 0.8, 0.5), True, 0.02, 1, 99)
    student = Stage(wide, Evidence(frozenset({red, blue})))
    judge = Stage(narrow, Evidence(frozenset({red}), {blue: 0.7}))
    student.encoder = None  # an image that is judged would need it
    cascade = Cascade(student, settings, judge)
    assert cascade.outside_lessons(INSIDE) is None
    assert "3 categories" in cascade.outside_lessons(LONG)
    scores = cascade.score(images, None, LONG)
    assert np.isnan(scores.unsafe).all()
    assert scores.decided_by == ("judge",) * 3
    assert cascade.evidence.of_policy(INSIDE) == "measured 0.70"
    assert cascade.evidence.of_policy(INSIDE.select(["red"])) == "trained"
    with beyond_lessons(cascade):
        assert cascade.outside_lessons(LONG) is None
    alone = Cascade(student, settings)
    assert alone.outside_lessons(LONG) is None
    assert alone.evidence.of_policy(INSIDE) == "trained"


def test_a_cascade_states_its_promise_or_that_it_is_withdrawn():
    settings = CascadeSettings(Platt(1, 0), Platt(1, 0), Cutoffs(2, 0, 2, 0.2, 0.8, 0.5), True, 0.02, 1, 99)
    settings = replace(settings, calibrated_for=Envelope.from_policies([INSIDE]))
    student = Stage(None, None)
    student.encoder = None
    cascade = Cascade(student, settings)
    assert (
        cascade.promise(INSIDE) == "at most 2.0% missed, calibrated on 99 unsafe images under such policies"
    )
    assert cascade.promise(LONG) == f"withdrawn: {cascade.outside_promise(LONG)}"
