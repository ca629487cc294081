"""The whole way on a trained pipeline that ships: guard and cascade around it, under categories of this call."""

import numpy as np
import pytest
import torch

from judge import load_classifier
from judge.cascade.cascade import Cascade
from judge.cascade.generation_stages import GenerationCutoffs
from judge.cascade.settings import CascadeSettings
from judge.cascade.similarity import Platt
from judge.cascade.stages import NEVER, Cutoffs
from judge.diffusion.baselines import DecodedPicture
from judge.diffusion.generation import GenerationCascade
from judge.diffusion.generation_settings import GenerationSettings
from judge.diffusion.guard import DiffusionGuard
from judge.diffusion.guarded import guarded
from judge.diffusion.pipelines import load_pipeline
from judge.diffusion.saved import load_detector
from judge.standins.shipped import checkpoint_path
from prompts import load_taxonomy

PROMPTS = ["a picture of a three", "a picture of a one", "a digit", "handwritten three", "a zero", "seven"]
SEEDS = range(len(PROMPTS))
CALL = {"num_inference_steps": 20, "guidance_scale": 5.0}
POLICY = load_taxonomy("digits").select(["three", "seven"])


@pytest.fixture(scope="module")
def pipeline():
    return load_pipeline("tiny-diffusion")


@pytest.fixture(scope="module")
def student():
    return load_classifier("tiny-student")


@pytest.fixture(scope="module")
def plain(pipeline):
    return pipeline(PROMPTS, generator=noise(), **CALL).images


def noise():
    return [torch.Generator().manual_seed(seed) for seed in SEEDS]


def detectors(pipeline, student):
    """The one that ships with the pipeline, once it does, and the one that needs no training."""
    found = [DecodedPicture(pipeline, student)]
    if checkpoint_path("tiny-detector").exists():
        found.append(load_detector("tiny-detector", pipeline))
    return found


def test_the_guard_stops_pictures_that_will_be_forbidden_and_leaves_the_others_as_they_are(
    pipeline, student, plain
):
    truth = student.score(plain, None, POLICY).unsafe >= 0.5
    assert truth[0]
    assert not truth[1]
    for detector in detectors(pipeline, student):
        guard = DiffusionGuard(detector, POLICY, at=(4, 9), pipeline=pipeline, on_stop="none")
        images = guarded(pipeline, guard)(PROMPTS, generator=noise(), **CALL).images
        stopped = np.array([picture.stopped_at is not None for picture in guard.verdicts])
        assert [image is None for image in images] == stopped.tolist()
        assert stopped[0], detector.name
        assert not stopped[1], detector.name
        assert (stopped == truth).mean() > 0.6, detector.name
        for row in np.flatnonzero(~stopped):
            assert np.array_equal(images[row], plain[row])


def test_another_taxonomy_stops_other_pictures_without_training(pipeline, student):
    ones = load_taxonomy("digits").select(["one"])
    for detector in detectors(pipeline, student):
        guard = DiffusionGuard(detector, ones, at=(9,), pipeline=pipeline)
        guarded(pipeline, guard)(PROMPTS[:2], generator=noise()[:2], **CALL)
        assert [picture.stopped_at for picture in guard.verdicts] == [None, 9], detector.name


@pytest.fixture(scope="module")
def inner(student):
    """A cascade of which the student decides all."""
    curve = Platt(20.0, -19.0)  # 0.73 for a prompt that means a category and nothing else
    cuts = Cutoffs(NEVER, 0.0, NEVER, 0.5, 0.5, 0.5)
    return Cascade(student, CascadeSettings(curve, curve, cuts, False, 0.1, 0.1, 30))


@pytest.mark.parametrize("prompt_cutoff", [NEVER, 0.7])
def test_a_cascade_around_the_pipeline_hands_out_what_every_stage_lets_pass(
    pipeline, student, inner, plain, prompt_cutoff
):
    truth = student.score(plain, PROMPTS, POLICY).unsafe >= 0.5
    cutoffs = GenerationCutoffs(prompt_cutoff, looks=(0.5, 0.5), student=(0.5, 0.5))
    settings = GenerationSettings(cutoffs, (4, 9), inner.settings.text)
    for detector in detectors(pipeline, student):
        cascade = GenerationCascade.around(pipeline, inner, settings, detector=detector)
        drawn = cascade.draw(PROMPTS, POLICY, seeds=SEEDS, **CALL)
        released = np.array([one.picture is not None for one in drawn])
        assert not (released & truth).any()
        assert released[1]
        for one, image in zip(drawn, plain, strict=True):
            assert (one.picture is not None) == (one.verdict.status == "safe")
            if one.picture is not None:
                assert np.array_equal(one.picture, image)
                assert one.steps == 20
        first = drawn[0].verdict.decided_by, drawn[0].steps > 0
        assert first == (("detector", True) if prompt_cutoff == NEVER else ("filter", False)), detector.name
        assert drawn[1].verdict.decided_by == "student"


def test_without_settings_of_its_own_the_cascade_behind_the_pipeline_decides(pipeline, inner, plain):
    [one] = GenerationCascade.around(pipeline, inner).draw(PROMPTS[1:2], POLICY, seeds=[1], **CALL)
    assert one.verdict.decided_by == "student"
    assert np.array_equal(one.picture, plain[1])
