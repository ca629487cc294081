"""A cascade around a generator: what is refused, stopped, read and handed out, and what is not."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from judge.calibration.envelope import Envelope
from judge.cascade.generation_stages import GenerationCutoffs, GenerationScores
from judge.cascade.generation_tuning import GenerationFamily, GenerationShape
from judge.cascade.prompt_filter import PromptFilter
from judge.cascade.similarity import Platt
from judge.cascade.stages import NEVER
from judge.diffusion.generation import BLACKENED, INTERRUPTED, GenerationCascade
from judge.diffusion.generation_settings import GenerationSettings, calibrate_generation
from judge.diffusion.looks_promise import Sampling
from judge.errors import CheckpointError, ConfigError, PipelineError, QuestionError
from judge.protocol import Scores
from judge.readings import read_prompts
from judge.standins.random_pipelines import random_pipeline
from prompts.taxonomy import Category, Taxonomy

TAXONOMY = Taxonomy("fruit", "1", (Category("apple", "Apples."), Category("pear", "Pears.")))
CALL = {"num_inference_steps": 4, "guidance_scale": 5.0, "height": 16, "width": 16}
NAN = math.nan


def scored(apples, **more):
    """`apple` as said, `pear` half of it."""
    apple = np.array(apples, dtype=float)
    reasons = tuple("no idea" if np.isnan(value) else None for value in apple)
    return Scores(apple, np.stack([apple, apple / 2], axis=1), reasons, **more)


class Detector:
    """Scores by the prompt, a number for each look at it."""

    name, layers, log_snrs = "looks", (), (-30.0, 30.0)

    def __init__(self, **prompts):
        self.prompts, self.seen = prompts, []

    def score(self, look, taxonomy):
        self.seen.append((look.step, look.prompts))
        return scored([self.prompts.get(prompt, {}).get(look.step, 0.1) for prompt in look.prompts])


class Reader:
    """Scores finished pictures by their prompt."""

    def __init__(self, name="reader", more=None, **prompts):
        self.name, self.prompts, self.more, self.seen = name, prompts, more or {}, []

    def score(self, images, prompts, taxonomy):
        assert all(image.size == (16, 16) for image in images)
        self.seen += prompts
        return scored([self.prompts.get(prompt, 0.1) for prompt in prompts], **self.more)


class Filter:
    """Scores prompts."""

    def __init__(self, **prompts):
        self.prompts, self.seen = prompts, []

    def score(self, prompts, taxonomy):
        self.seen += prompts
        return scored([self.prompts.get(prompt, 0.1) for prompt in prompts]).categories, read_prompts(prompts)


@pytest.fixture(scope="module")
def pipeline():
    pipe = random_pipeline("sd1")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def settings(prompt=0.7, looks=(0.8, 0.6), student=(0.5, 0.5), judge=None, **more):
    at = (2, 3)[: len(looks)]
    curve = Platt(5.0, 0.0)
    return GenerationSettings(GenerationCutoffs(prompt, looks, student, judge), at, curve, **more)


def around(pipeline, chosen=None, **stages):
    stages = {"prompt_filter": Filter(), "detector": Detector(), "student": Reader(), **stages}
    return GenerationCascade(
        pipeline, chosen or settings(), **{name: stage for name, stage in stages.items() if stage}
    )


def words(drawn):
    return [(one.verdict.decided_by, one.verdict.status, one.steps, one.picture is not None) for one in drawn]


def test_every_stage_decides_what_reaches_it(pipeline):
    detector = Detector(b={2: 0.85}, c={2: 0.7, 3: 0.65})
    reader, judge = Reader(d=0.9, e=0.5, f=0.5), Reader(e=0.4, f=0.8)
    cascade = around(
        pipeline,
        settings(student=(0.4, 0.6), judge=0.5),
        prompt_filter=Filter(a=0.75),
        detector=detector,
        student=reader,
        judge=judge,
    )
    drawn = cascade.draw(list("abcdefg"), TAXONOMY, seeds=range(7), **CALL)
    assert words(drawn) == [
        ("filter", "unsafe", 0, False),
        ("detector", "unsafe", 2, False),
        ("detector", "unsafe", 3, False),
        ("student", "unsafe", 4, False),
        ("judge", "safe", 4, True),
        ("judge", "unsafe", 4, False),
        ("student", "safe", 4, True),
    ]
    assert reader.seen == list("defg")
    assert judge.seen == list("ef")
    assert detector.seen == [(2, tuple("bcdefg")), (3, tuple("cdefg"))]
    assert {one.verdict.category for one in drawn if one.verdict.flagged} == {"apple"}
    assert "before any step" in drawn[0].verdict.because
    assert "after step 3 of 4" in drawn[2].verdict.because
    assert drawn[0].seconds.keys() == {"filter"}
    assert drawn[1].seconds.keys() == {"filter", "drawing", "detector"}
    assert drawn[4].seconds.keys() == {"filter", "drawing", "detector", "student", "judge"}
    assert [len(one.looks) for one in drawn] == [0, 1, 2, 2, 2, 2, 2]


def test_pictures_are_those_of_the_pipeline_alone(pipeline):
    drawn = around(pipeline, detector=Detector(b={2: 0.9})).draw(
        ["a", "b", "c"], TAXONOMY, seeds=(5, 6, 7), **CALL
    )
    plain = pipeline(
        ["a", "b", "c"], generator=[torch.Generator().manual_seed(seed) for seed in (5, 6, 7)], **CALL
    ).images
    assert np.array_equal(drawn[0].picture, plain[0])
    assert drawn[1].picture is None
    assert np.array_equal(drawn[2].picture, plain[2])


def test_scores_are_moved_so_that_half_is_the_cutoff_of_who_decided(pipeline):
    cascade = around(
        pipeline, settings(student=(0.3, 0.3)), detector=Detector(b={2: 0.8}), student=Reader(a=0.29, c=0.3)
    )
    a, b, c = cascade.draw(list("abc"), TAXONOMY, seeds=range(3), **CALL)
    assert a.verdict.unsafe == pytest.approx(0.5, abs=0.02)
    assert a.verdict.unsafe < 0.5
    assert b.verdict.unsafe == c.verdict.unsafe == 0.5
    assert b.verdict.scores["pear"] < 0.5


def test_without_a_last_filter_the_looks_decide_and_nobody_reads_the_picture(pipeline):
    cascade = around(
        pipeline, settings(student=None), detector=Detector(b={3: 0.9}, c={2: NAN}), student=None
    )
    drawn = cascade.draw(list("abc"), TAXONOMY, seeds=range(3), **CALL)
    assert words(drawn) == [
        ("detector", "safe", 4, True),
        ("detector", "unsafe", 3, False),
        # What cannot be released need not be finished.
        ("detector", "unjudged", 2, False),
    ]
    assert "no idea" in drawn[2].verdict.reason


def test_what_a_look_could_not_judge_later_stages_may_stop_and_not_release(pipeline):
    cascade = around(
        pipeline, detector=Detector(a={2: NAN}, b={3: NAN}, c={2: NAN, 3: 0.9}), student=Reader(a=0.9, b=0.1)
    )
    drawn = cascade.draw(list("abc"), TAXONOMY, seeds=range(3), **CALL)
    assert words(drawn) == [
        ("student", "unsafe", 4, False),
        ("student", "unjudged", 4, False),
        ("detector", "unsafe", 3, False),
    ]
    assert "may flag the image, not call it safe" in drawn[1].verdict.reason


def test_what_the_student_could_not_judge_is_not_handed_out(pipeline):
    judge = Reader(b=0.1)
    cascade = around(pipeline, settings(judge=0.5), student=Reader(a=NAN), judge=judge)
    drawn = cascade.draw(["a", "b"], TAXONOMY, seeds=(0, 1), **CALL)
    assert words(drawn) == [("judge", "unjudged", 4, False), ("student", "safe", 4, True)]


def test_a_detector_that_fails_hands_nothing_out(pipeline):
    class Broken(Detector):
        def score(self, look, taxonomy):
            raise RuntimeError("out of luck")

    [one] = around(pipeline, detector=Broken()).draw(["a"], TAXONOMY, seeds=[0], **CALL)
    assert (one.verdict.status, one.picture) == ("unjudged", None)
    assert "out of luck" in one.verdict.reason


def test_stages_are_optional_and_looks_that_are_off_are_not_made(pipeline):
    detector = Detector(a={2: 1.0})
    cascade = around(
        pipeline, settings(prompt=NEVER, looks=(NEVER, 0.9)), prompt_filter=None, detector=detector
    )
    [one] = cascade.draw(["a"], TAXONOMY, seeds=[0], **CALL)
    assert words([one]) == [("student", "safe", 4, True)]
    assert [step for step, _ in detector.seen] == [3]
    alone = around(pipeline, settings(NEVER, ()), prompt_filter=None, detector=None)
    assert words(alone.draw(["a"], TAXONOMY, seeds=[0], **CALL)) == [("student", "safe", 4, True)]


def test_the_stage_of_a_whole_cascade_is_named(pipeline):
    student = Reader(more={"decided_by": ("judge",), "because": ("judge says safe at 0.10",)})
    [one] = around(pipeline, student=student).draw(["a"], TAXONOMY, seeds=[0], **CALL)
    assert one.verdict.decided_by == "judge"
    assert "judge says safe at 0.10" in one.verdict.because


def test_all_refused_draws_nothing(pipeline):
    detector = Detector()
    cascade = around(pipeline, prompt_filter=Filter(a=0.9), detector=detector)
    assert (
        words(cascade.draw(["a", "a"], TAXONOMY, seeds=(0, 1), **CALL))
        == [("filter", "unsafe", 0, False)] * 2
    )
    assert not detector.seen
    assert cascade.draw([], TAXONOMY, seeds=[]) == []


def test_a_picture_that_the_pipeline_itself_blackened_is_unjudged(pipeline, monkeypatch):
    plain = type(pipeline).__call__

    def blackened(self, *args, **kwargs):
        output = plain(self, *args, **kwargs)
        output.nsfw_content_detected = [True] * len(output.images)
        return output

    monkeypatch.setattr(type(pipeline), "__call__", blackened)
    cascade = around(pipeline, settings(NEVER, ()), prompt_filter=None, detector=None)
    [one] = cascade.draw(["a"], TAXONOMY, seeds=[0], **CALL)
    assert (one.verdict.status, one.picture) == ("unjudged", None)
    assert BLACKENED in one.verdict.reason


def test_a_half_made_picture_is_not_handed_out_though_a_student_would(pipeline):
    def cancel(pipe, step, timestep, tensors):
        pipe._interrupt = True
        return tensors

    cascade = around(pipeline, settings(NEVER, ()), prompt_filter=None, detector=None)
    [one] = cascade.draw(["a"], TAXONOMY, seeds=[0], callback_on_step_end=cancel, **CALL)
    assert (one.verdict.status, one.picture) == ("unjudged", None)
    assert INTERRUPTED in one.verdict.reason


def test_a_promise_is_said_and_withdrawn(pipeline):
    made = Sampling.of_calls([Sampling((type(pipeline.scheduler).__name__,), (4, 4), (5.0, 5.0))])
    promised = settings(
        promise=0.1,
        unsafe_rows=20,
        calibrated_for=Envelope.from_policies([TAXONOMY]),
        sampling=made,
        stages=(Detector().name, Reader().name),
    )
    cascade = around(pipeline, promised)

    def promise(taxonomy=TAXONOMY, **call):
        [one] = cascade.draw(["a"], taxonomy, seeds=[0], **{**CALL, **call})
        return one.verdict.promise

    assert promise().startswith("at most 10.0% missed by all stages, calibrated on 20")
    assert "withdrawn" in promise(num_inference_steps=5)
    assert "guidance 5, not 6" in promise(guidance_scale=6.0)
    other = Taxonomy("fruit", "1", (Category("apple", "Apples."), Category("fig", "Figs.")))
    assert "not calibrated for 'fig'" in promise(other)
    cascade.student.name = "another student"
    assert "not of" in promise()
    assert "another student" in promise()


def test_settings_are_the_same_after_a_file_and_what_no_calibration_gives_is_refused():
    rng = np.random.default_rng(0)
    unsafe = rng.random(300) < 0.4
    looks = np.clip(unsafe[:, None] * 0.5 + rng.random((300, 2)) / 2, 0, 1)
    scores = GenerationScores(rng.random(300), looks, np.clip(unsafe * 0.4 + rng.random(300) / 2, 0, 1))
    family = GenerationFamily(scores.rows(slice(150)), unsafe[:150], GenerationShape(0.05, (0.05, 0.05)))
    found = calibrate_generation(
        family,
        scores.rows(slice(150, None)),
        unsafe[150:],
        0.1,
        at=(2, 3),
        prompt=Platt(5.0, 0.0),
        policies=[TAXONOMY],
        sampling=Sampling(("DDIMScheduler",), (4, 4), (5.0, 5.0)),
        stages=["detector", "student"],
        groups=[f"prompt {row // 2}" for row in range(150)],
    )
    assert GenerationSettings.from_json(found.to_json()) == found
    assert GenerationSettings.from_json(settings().to_json()) == settings()
    assert 0 <= found.false_alarms <= 0.5
    text = found.to_json()
    for old, new in (
        ('"promise": 0.1', '"promise": 0.0001'),
        ('"slope": 5.0', '"slope": -5.0'),
        ('"slope": 5.0', '"slope": NaN'),
        ('"at": [\n    2,\n    3\n  ]', '"at": [3, 2]'),
        ('"unsafe_rows"', '"rows"'),
        (text, "[]"),
    ):
        assert old in text
        with pytest.raises(CheckpointError, match="calibrate again"):
            GenerationSettings.from_json(text.replace(old, new))


def test_bad_arguments_are_refused(pipeline):
    with pytest.raises(ConfigError, match="cutoff for a detector, and none"):
        around(pipeline, detector=None)
    with pytest.raises(ConfigError, match="cutoff for a prompt filter, and none"):
        around(pipeline, prompt_filter=None)
    with pytest.raises(ConfigError, match="no cutoff for a judge"):
        around(pipeline, judge=Reader())
    with pytest.raises(ConfigError, match="none could be called safe"):
        around(pipeline, settings(looks=(), student=None), detector=None, student=None)
    with pytest.raises(ConfigError, match="rising steps from 1"):
        replace(settings(), at=(3, 2))
    with pytest.raises(ConfigError, match="without its curve"):
        replace(settings(), prompt=None)
    cascade = around(pipeline)
    with pytest.raises(QuestionError, match="2 prompts and 1 seeds"):
        cascade.draw(["a", "b"], TAXONOMY, seeds=[0])
    with pytest.raises(QuestionError, match="list of texts"):
        cascade.draw("a", TAXONOMY, seeds=[0])
    with pytest.raises(QuestionError, match="generator of the pipeline cannot"):
        cascade.draw(["a"], TAXONOMY, seeds=[0], generator=None)


def test_a_look_that_the_call_does_not_reach_releases_nothing(pipeline):
    cascade = around(pipeline, settings(student=None), student=None)
    with pytest.raises(PipelineError, match="step 3"):
        cascade.draw(["a"], TAXONOMY, seeds=[0], **{**CALL, "num_inference_steps": 2})
    cascade = around(pipeline)
    [one] = cascade.draw(["a"], TAXONOMY, seeds=[0], **{**CALL, "num_inference_steps": 2})
    assert (one.verdict.status, one.picture) == ("unjudged", None)


def test_the_text_filter_of_a_cascade_reads_prompts_first():
    from judge.cascade.similarity import Similarities
    from judge.encoders.dual import DualEncoder
    from prompts import load_taxonomy

    digits = load_taxonomy("digits").select(["three", "seven"])
    found, readings = PromptFilter(Similarities(DualEncoder.load("tiny-clip")), Platt(10.0, -5.0)).score(
        ["a picture of a three", "a picture of a one", "x" * 100_000], digits
    )
    assert found[0].argmax() == 0
    assert found[0, 0] > found[1].max()
    assert np.isnan(found[2]).all()
    assert readings.notes[2]
