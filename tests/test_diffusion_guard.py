"""A guard in a plain call of the pipeline: what it sees, what it stops, and what it refuses."""

import math
import threading

import pytest
import torch
from fixtures_detectors import (
    PROMPTS,
    TAXONOMY,
    FakeDetector,
    flags,
    flags_rows,
    own_noise,
    pipeline,
    untouched,
)

from judge.calibration.envelope import Envelope, category_hash
from judge.calibration.thresholds import FittedThreshold, Thresholds
from judge.diffusion.guard import DiffusionGuard
from judge.diffusion.guarded import guarded
from judge.diffusion.looks_promise import LooksPromise, Sampling
from judge.errors import ConfigError, PicturesStoppedError, PipelineError

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")


def call(guard, name="sd1", steps=4, callback=None, **arguments):
    """A plain call of four pictures."""
    pipe = pipeline(name)
    arguments = {"guidance_scale": 5.0, "output_type": "latent", "generator": own_noise(), **arguments}
    return pipe(
        PROMPTS,
        num_inference_steps=steps,
        height=32,
        width=32,
        callback_on_step_end=callback or guard,
        callback_on_step_end_tensor_inputs=guard.inputs,
        **arguments,
    ).images


def stops(guard):
    return [verdict.stopped_at for verdict in guard.verdicts]


def statuses(guard):
    return [verdict.status for verdict in guard.verdicts]


# What comes out


def test_pictures_that_were_stopped_do_not_come_out():
    guard = DiffusionGuard(flags_rows(1, step=3), TAXONOMY, at=(2, 3), pipeline=pipeline())
    images = call(guard)
    assert len(images) == 3
    assert guard.kept == (0, 2, 3)
    assert stops(guard) == [None, 3, None, None]
    assert statuses(guard) == ["safe", "unsafe", "safe", "safe"]
    assert [[look.step for look in verdict.looks] for verdict in guard.verdicts] == [[2, 3]] * 4
    look = guard.verdicts[1].looks[1]
    assert look.verdict.scores == {"apple": 0.9, "pear": 0.45}
    assert look.verdict.category == "apple"
    assert look.verdict.decided_by == "detector"
    assert look.milliseconds > 0
    assert guard.verdicts[1].milliseconds == sum(look.milliseconds for look in guard.verdicts[1].looks)
    assert untouched(pipeline())


@pytest.mark.parametrize("calibrated", ["fake", "another"])
def test_a_promise_is_that_of_the_detector_it_was_calibrated_with(calibrated):
    made = Sampling((type(pipeline().scheduler).__name__,), (1, 9), (5.0, 5.0))
    envelope = Envelope.from_policies([TAXONOMY])
    promise = LooksPromise(calibrated, (2,), (0.5,), "missed", 0.1, 20, 0.1, envelope, made)
    guard = DiffusionGuard(flags_rows(1), TAXONOMY, promise, pipeline=pipeline())
    call(guard)
    said = guard.verdicts[0].looks[0].verdict.promise
    assert said.startswith("withdrawn" if calibrated == "another" else "at most 10.0%")


def test_a_later_look_sees_only_who_is_left():
    detector = flags_rows(0, step=2)
    guard = DiffusionGuard(detector, TAXONOMY, at=(2, 3), pipeline=pipeline())
    call(guard)
    assert [len(look.clean) for look in detector.looks] == [4, 3]
    assert [len(look.text) for look in detector.looks] == [4, 3]
    assert stops(guard) == [2, None, None, None]


@pytest.mark.parametrize("name", ["sd1", "flux"])
def test_when_none_is_left_the_call_raises(name):
    guard = DiffusionGuard(flags_rows(0, 1, 2, 3), TAXONOMY, at=(2,), pipeline=pipeline(name))
    with pytest.raises(PicturesStoppedError, match=r"after step 2 of 4: picture 0 is unsafe \(apple\)"):
        call(guard, name)
    assert stops(guard) == [2] * 4
    assert untouched(pipeline(name))


def test_where_rows_cannot_be_dropped_zeros_come_out():
    detector = flags_rows(1, step=2)
    guard = DiffusionGuard(detector, TAXONOMY, at=(2, 3), pipeline=pipeline("flux"))
    images = call(guard, "flux")
    assert len(images) == 4
    assert [bool(image.any()) for image in images] == [True, False, True, True]
    assert [len(look.clean) for look in detector.looks] == [4, 3]


def test_a_call_can_be_ended_as_a_whole():
    guard = DiffusionGuard(flags_rows(1), TAXONOMY, at=(2,), stop="call", pipeline=pipeline())
    with pytest.raises(PicturesStoppedError, match="picture 1"):
        call(guard)
    assert stops(guard) == [2] * 4
    assert statuses(guard) == ["unjudged", "unsafe", "unjudged", "unjudged"]
    assert guard.verdicts[0].reason == "the call was ended because of another picture"


def test_without_its_inputs_a_guard_blanks_what_it_cannot_drop():
    guard = DiffusionGuard(flags_rows(1), TAXONOMY, at=(2,))
    assert guard.inputs == ["latents", "prompt_embeds"]
    images = call(guard, "sdxl")
    assert [bool(image.any()) for image in images] == [True, False, True, True]


# When it looks


def test_log_snrs_mean_the_same_under_every_number_of_steps():
    guard = DiffusionGuard(flags(), TAXONOMY, at=(-2.0, 1.0), pipeline=pipeline())
    seen = {}
    for steps in (6, 12):
        call(guard, steps=steps)
        seen[steps] = [look.log_snr for look in guard.verdicts[0].looks]
        numbers = [look.step for look in guard.verdicts[0].looks]
        assert len(numbers) == 2
        assert numbers[0] < numbers[1] <= steps
    for found in seen.values():
        assert -2 <= found[0] < 1 <= found[1]


def test_one_look_answers_all_that_are_due():
    guard = DiffusionGuard(flags(), TAXONOMY, at=(-30.0, -29.0, 1.0), pipeline=pipeline())
    images = guarded(pipeline(), guard)(PROMPTS, num_inference_steps=4, output_type="latent").images
    assert len(images) == 4
    steps = [look.step for look in guard.verdicts[0].looks]
    assert steps[0] == 1
    assert len(steps) == 2


def test_by_default_it_looks_three_times_in_the_range_of_the_detector():
    detector = flags()
    detector.log_snrs = (-6.0, 2.0)
    assert DiffusionGuard(detector, TAXONOMY).at == (-4.0, -2.0, 0.0)
    detector.log_snrs = (-math.inf, math.inf)
    assert DiffusionGuard(detector, TAXONOMY).at == (-2.0, 0.0, 2.0)


def test_the_first_step_is_seen_by_guarded_only():
    guard = DiffusionGuard(flags(), TAXONOMY, at=(1,), pipeline=pipeline())
    with pytest.raises(PicturesStoppedError, match="call the pipeline through `guarded`"):
        call(guard)
    assert statuses(guard) == ["unjudged"] * 4
    guarded(pipeline(), guard)(PROMPTS, num_inference_steps=2, output_type="latent")
    assert statuses(guard) == ["safe"] * 4


# What it cannot judge


@pytest.mark.parametrize(
    ("at", "reason"),
    [
        ((2, 9), "step 9 was asked for and the call makes 4 steps"),
    ],
)
def test_steps_beyond_the_call_are_refused(at, reason):
    guard = DiffusionGuard(flags(), TAXONOMY, at=at, pipeline=pipeline())
    with pytest.raises(PipelineError, match=reason):
        call(guard)
    assert untouched(pipeline())


def test_looks_that_never_happened_leave_pictures_unjudged():
    for at, reason in (((2, 9), "no look at step 9"), ((0.0, 29.0), "no look at log-SNR 29")):
        guard = DiffusionGuard(flags(), TAXONOMY, at=at, on_failure="go on", pipeline=pipeline())
        assert len(call(guard)) == 4
        assert statuses(guard) == ["unjudged"] * 4
        assert reason in guard.verdicts[0].reason
        assert stops(guard) == [None] * 4
    guard = DiffusionGuard(flags(), TAXONOMY, at=(0.0, 29.0), pipeline=pipeline())
    with pytest.raises(PicturesStoppedError, match="no look at log-SNR 29"):
        call(guard)


def broken(look, row):
    raise RuntimeError("out of memory\nand more")


@pytest.mark.parametrize(
    ("score", "reason"),
    [
        (broken, "the look failed: RuntimeError: out of memory"),
        (lambda look, row: 7.0, "the look failed: ValueError"),
        (lambda look, row: math.nan, "no idea"),
    ],
)
def test_a_failure_stops_the_pictures_unless_told_otherwise(score, reason):
    guard = DiffusionGuard(FakeDetector(score), TAXONOMY, at=(2, 3), pipeline=pipeline())
    with pytest.raises(PicturesStoppedError, match=reason):
        call(guard)
    assert statuses(guard) == ["unjudged"] * 4
    assert stops(guard) == [2] * 4
    guard = DiffusionGuard(FakeDetector(score), TAXONOMY, at=(2, 3), on_failure="go on", pipeline=pipeline())
    assert len(call(guard)) == 4
    assert statuses(guard) == ["unjudged"] * 4
    assert reason in guard.verdicts[2].reason


def test_scores_for_other_pictures_or_categories_are_a_failure():
    class Wrong(FakeDetector):
        def score(self, look, taxonomy):
            scores = super().score(look, taxonomy)
            return type(scores)(scores.unsafe[:2], scores.categories[:2], scores.reasons[:2])

    guard = DiffusionGuard(Wrong(lambda look, row: 0.1), TAXONOMY, at=(2,), pipeline=pipeline())
    with pytest.raises(
        PicturesStoppedError, match=r"scores of shape \(2, 2\) for 4 pictures and 2 categories"
    ):
        call(guard)


def test_an_unjudged_picture_goes_and_the_others_stay():
    guard = DiffusionGuard(
        FakeDetector(lambda look, row: math.nan if row == 2 else 0.1), TAXONOMY, at=(2,), pipeline=pipeline()
    )
    assert len(call(guard)) == 3
    assert guard.kept == (0, 1, 3)
    assert statuses(guard) == ["safe", "safe", "unjudged", "safe"]


def test_a_look_outside_the_detectors_range_is_not_judged():
    detector = flags()
    detector.log_snrs = (20.0, 30.0)
    guard = DiffusionGuard(detector, TAXONOMY, at=(2,), pipeline=pipeline())
    with pytest.raises(PicturesStoppedError, match=r"a look at log-SNR .* was trained for 20.0 to 30.0"):
        call(guard)
    assert detector.looks == []


@pytest.mark.parametrize("at", [(2,), (3,)])
def test_latents_that_are_not_finite_are_never_safe(at):
    """Whatever the detector makes of them, and also where nobody looks after they came up."""

    def poison(pipe, index, timestep, tensors):
        if index == 1:
            tensors["latents"][1, 0, 0, 0] = torch.nan
        return tensors

    guard = DiffusionGuard(flags(), TAXONOMY, at=at, pipeline=pipeline(), callback=poison)
    assert len(call(guard)) == 3
    assert guard.kept == (0, 2, 3)
    assert guard.verdicts[1].status == "unjudged"
    assert guard.verdicts[1].reason == "the latents hold numbers that are not finite"
    assert guard.verdicts[1].stopped_at == (4 if at == (2,) else 3)


# Other callbacks, other guards, other calls


def test_another_callback_sees_only_who_is_left():
    seen = []

    def other(pipe, index, timestep, tensors):
        seen.append((index, int(timestep), len(tensors["latents"]), sorted(tensors)))
        return {"latents": tensors["latents"]}

    guard = DiffusionGuard(
        flags_rows(1),
        TAXONOMY,
        at=(2,),
        pipeline=pipeline(),
        callback=other,
        callback_inputs=("negative_prompt_embeds",),
    )
    call(guard)
    assert [rows for _, _, rows, _ in seen] == [4, 3, 3, 3]
    assert [index for index, *_ in seen] == [0, 1, 2, 3]
    assert seen[0][3] == ["latents", "negative_prompt_embeds", "prompt_embeds"]
    assert seen[0][1] == int(pipeline().scheduler.timesteps[0])


@pytest.mark.parametrize("inside", [True, False])
def test_a_batch_that_another_callback_changes_is_refused(inside):
    def smaller(pipe, index, timestep, tensors):
        if index == 1:
            tensors["latents"] = tensors["latents"][:2]
            tensors["prompt_embeds"] = tensors["prompt_embeds"][[0, 1, 4, 5]]
        return tensors

    if inside:
        guard = DiffusionGuard(flags(), TAXONOMY, at=(3,), pipeline=pipeline(), callback=smaller)
        chained = guard
    else:
        guard = DiffusionGuard(flags(), TAXONOMY, at=(3,), pipeline=pipeline())

        def chained(*arguments):
            return smaller(*arguments[:3], guard(*arguments))

    with pytest.raises(PipelineError, match="2 pictures"):
        call(guard, callback=chained)
    assert untouched(pipeline())


def test_a_callback_that_returns_nothing_is_refused():
    guard = DiffusionGuard(flags(), TAXONOMY, at=(3,), pipeline=pipeline(), callback=lambda *arguments: None)
    with pytest.raises(PipelineError, match="returned NoneType"):
        call(guard)


def test_an_interrupted_call_hands_nothing_out():
    def interrupt(pipe, index, timestep, tensors):
        pipe._interrupt = index == 2
        return tensors

    guard = DiffusionGuard(flags(), TAXONOMY, at=(2,), pipeline=pipeline(), callback=interrupt)
    with pytest.raises(PicturesStoppedError, match="interrupted after step 3 of 4"):
        call(guard)
    assert statuses(guard) == ["unjudged"] * 4
    assert stops(guard) == [3] * 4


def test_two_guards_in_one_call_are_refused():
    first = DiffusionGuard(flags(), TAXONOMY, at=(2,), pipeline=pipeline())
    second = DiffusionGuard(flags(), TAXONOMY, at=(3,), pipeline=pipeline())
    with pytest.raises(PipelineError, match="Another guard watches this call"):
        call(first, callback=lambda *arguments: second(*arguments[:3], first(*arguments)))
    first.close()
    assert untouched(pipeline())


def test_a_guard_serves_one_call_after_the_other():
    guard = DiffusionGuard(flags_rows(1), TAXONOMY, at=(2,), pipeline=pipeline())
    assert len(call(guard)) == 3
    assert len(call(guard, "sd1", steps=3)) == 3
    assert len(guard.verdicts) == 4
    assert [len(verdict.looks) for verdict in guard.verdicts] == [1] * 4


def test_a_call_that_failed_leaves_the_next_one_alone():
    def fail(pipe, index, timestep, tensors):
        raise KeyboardInterrupt

    guard = DiffusionGuard(flags(), TAXONOMY, at=(2,), pipeline=pipeline())
    with pytest.raises(KeyboardInterrupt):
        call(guard, callback=lambda *arguments: fail(*arguments[:3], guard(*arguments)))
    assert not untouched(pipeline())
    other = DiffusionGuard(flags_rows(1), TAXONOMY, at=(2,), pipeline=pipeline())
    assert len(call(other)) == 3
    assert len(call(guard)) == 4
    assert untouched(pipeline())


def test_a_guard_in_use_by_another_thread_is_refused():
    guard = DiffusionGuard(flags(), TAXONOMY, at=(3,), pipeline=pipeline())
    found = []

    def meanwhile(*arguments):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        return arguments[3]

    def elsewhere():
        other = DiffusionGuard(flags(), TAXONOMY, at=(3,), pipeline=pipeline())
        for used in (guard, other):
            try:
                used.begin(pipeline())
            except PipelineError as error:
                found.append(str(error))

    call(
        guard,
        callback=lambda *arguments: (
            meanwhile(*arguments[:3], guard(*arguments)) if arguments[1] == 1 else guard(*arguments)
        ),
    )
    assert "uses this guard" in found[0]
    assert "uses this pipeline under a guard" in found[1]
    assert statuses(guard) == ["safe"] * 4


@pytest.mark.parametrize(("skipped", "message"), [(0, "from the first on"), (1, "Step 3 came after step 1")])
def test_a_guard_has_to_see_every_step(skipped, message):
    guard = DiffusionGuard(flags(), TAXONOMY, at=(3,), pipeline=pipeline())
    with pytest.raises(PipelineError, match=message):
        call(
            guard, callback=lambda *arguments: arguments[3] if arguments[1] == skipped else guard(*arguments)
        )
    assert untouched(pipeline())


def test_a_detector_of_another_pipeline_is_refused():
    guard = DiffusionGuard(flags(), TAXONOMY, at=(2,), pipeline=pipeline("sd2"))
    with pytest.raises(PipelineError, match="belongs to another pipeline"):
        call(guard)
    detector = flags()
    detector.layers = ("down_blocks.7.attn2",)
    with pytest.raises(PipelineError, match="has no attention layer"):
        call(DiffusionGuard(detector, TAXONOMY, at=(2,), pipeline=pipeline()))
    assert untouched(pipeline())


def test_pipelines_that_cannot_be_watched_are_refused():
    class Deaf:
        def __call__(self, prompt):
            return prompt

    with pytest.raises(PipelineError, match="takes no `callback_on_step_end`"):
        guarded(Deaf(), DiffusionGuard(flags(), TAXONOMY, at=(2,)))("a")


def test_the_callback_needs_latents():
    guard = DiffusionGuard(flags(), TAXONOMY, at=(2,), pipeline=pipeline())
    with pytest.raises(PipelineError, match="=guard"):
        guard(pipeline(), 0, 999, {})


# Thresholds and other arguments


def test_thresholds_of_one_category_of_all_and_fitted_ones():
    def fitted(threshold):
        apple = TAXONOMY.categories[0]
        return Thresholds(
            "fake", "best F1", {"apple": FittedThreshold(threshold, category_hash(apple), 9, 9, 1.0, 0.0)}
        )

    for thresholds, left in (
        (0.95, 4),
        (0.9, 3),
        ({"apple": 0.95}, 4),
        ({"apple": 0.95, "pear": 0.4}, 3),
        (fitted(0.95), 4),
        (fitted(0.2), 3),
    ):
        guard = DiffusionGuard(flags_rows(1), TAXONOMY, thresholds, at=(2,), pipeline=pipeline())
        assert len(call(guard)) == left


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"at": ()}, "Looks are numbers of steps"),
        ({"at": (2, 0.5)}, "Looks are numbers of steps"),
        ({"at": (2, 2)}, "each once"),
        ({"at": (0,)}, "numbered from 1"),
        ({"at": (-2, 1)}, "A log-SNR is a float: -2.0"),
        ({"at": (math.nan,)}, "Looks are numbers of steps"),
        ({"thresholds": 1.5}, "from 0 to 1"),
        ({"thresholds": {"plum": 0.5}}, "plum"),
        ({"stop": "all"}, "image or call"),
        ({"on_failure": "ignore"}, "stop or go on"),
        ({"on_stop": "smile"}, "blank, none, raise"),
        ({"on_stop": 3}, "blank, none, raise"),
    ],
)
def test_arguments_that_cannot_be_used(arguments, message):
    with pytest.raises(ConfigError, match=message):
        DiffusionGuard(flags(), TAXONOMY, **arguments)


def test_nothing_was_seen_yet():
    guard = DiffusionGuard(flags(), TAXONOMY, at=(2,))
    assert guard.verdicts == ()
    assert guard.kept == ()
