"""Promises over several looks: kept on average, in both directions, and withdrawn elsewhere."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from judge.calibration.conformal import conformal_threshold
from judge.diffusion.look_times import limits_of_looks, strictest, times_of_looks
from judge.diffusion.looks_promise import LooksPromise, Sampling, calibrate_looks, cutoff_levels, passes
from judge.errors import CheckpointError, ConfigError
from prompts.taxonomy import Category, Taxonomy

TAXONOMY = Taxonomy("fruit", "1", (Category("apple", "Apples."), Category("pear", "Pears.")))
DDIM = Sampling(("DDIMScheduler",), (20, 20), (5.0, 5.0))
AT = (4, 6, 9)


def draw(random, count, share=0.5):
    """Pictures with a hidden danger that later looks see better: (N,) truth, (N, 3) scores."""
    truth = (random.random(count) < share).astype(float)
    noise = random.normal(size=(count, 3)) * np.array([1.5, 1.0, 0.6])
    return truth, 1 / (1 + np.exp(-(3 * truth[:, None] - 1.5 + noise)))


def calibrate(truth, scores, promise=0.1, **arguments):
    arguments = {"at": AT, "detector": "fake", "policies": [TAXONOMY], "sampling": DDIM, **arguments}
    return calibrate_looks(truth, scores, promise=promise, **arguments)


def stopped(promise, scores):
    """A plain loop over pictures and looks: stopped at the first look that reaches its cutoff."""
    return np.array([any(s >= c for s, c in zip(row, promise.cutoffs, strict=True)) for row in scores])


@pytest.mark.parametrize("shaped", [False, True])
@pytest.mark.parametrize("promised", ["missed", "false alarms"])
def test_the_promise_holds_on_average(promised, shaped):
    random = np.random.default_rng(5)
    side = 1 if promised == "missed" else 0
    shape = draw(random, 60, share=0.0)[1] if shaped else None
    rates = []
    for _ in range(150):
        promise = calibrate(*draw(random, 80), 0.15, promised=promised, shape=shape)
        truth, scores = draw(random, 80)
        caught = stopped(promise, scores[truth == side])
        rates.append((~caught if side else caught).mean())
    error = np.std(rates) / math.sqrt(len(rates))
    # Not above it but by chance, and not idly far below it either: the strictest cutoffs would keep any promise.
    assert 0.15 - 0.05 < np.mean(rates) < 0.15 + 3 * error


def test_pictures_of_one_prompt_are_not_counted_as_many():
    """12 prompts of 8 equal pictures each are 12 pictures: counted as 96 they would promise too much."""
    random = np.random.default_rng(2)
    missed = {True: [], False: []}
    for _ in range(300):
        truth, scores = (np.repeat(values, 8, axis=0) for values in draw(random, 12, share=1.0))
        new = draw(random, 100, share=1.0)[1]
        for grouped in missed:
            groups = np.repeat(np.arange(12), 8).tolist() if grouped else None
            promise = calibrate(truth, scores, 0.1, groups=groups)
            assert promise.pictures == (12 if grouped else 96)
            missed[grouped].append(1 - stopped(promise, new).mean())
    assert np.mean(missed[True]) <= 0.1 < np.mean(missed[False])
    with pytest.raises(ConfigError, match="at least"):
        calibrate(truth, scores, 0.05, groups=groups or np.repeat(np.arange(12), 8).tolist())
    with pytest.raises(ConfigError, match="3 groups for 96 pictures"):
        calibrate(truth, scores, 0.1, groups=[1, 2, 3])


def test_it_is_withdrawn_for_the_scores_of_another_detector():
    assert "withdrawn" not in promise().text(TAXONOMY, DDIM, promise().detector)
    assert (
        promise()
        .text(TAXONOMY, DDIM, "other")
        .endswith(f"does not hold: calibrated on scores of {promise().detector}, not of other")
    )


def test_single_looks_calibrated_on_their_own_would_break_it():
    """Why the sequence is calibrated: three looks that stop 10 % of the safe pictures each stop more together."""
    random = np.random.default_rng(1)
    truth, scores = draw(random, 4000)
    each = [
        calibrate(truth, scores[:, [look]], 0.1, promised="false alarms", at=(AT[look],)).cutoffs[0]
        for look in range(3)
    ]
    safe = scores[truth == 0]
    alone = np.any(safe >= np.array(each), axis=1).mean()
    together = stopped(calibrate(truth, scores, 0.1, promised="false alarms"), safe).mean()
    assert alone > 0.15
    assert together <= 0.1


@given(st.integers(0, 10_000), st.integers(20, 60), st.integers(0, 4))
def test_one_cutoff_is_the_conformal_threshold_of_the_highest_look(seed, count, digits):
    truth, scores = draw(np.random.default_rng(seed), count)
    truth[:12], truth[12:16] = 1, 0
    scores = scores.round(digits + 1)
    found = calibrate(truth, scores, 0.1)
    assert found.cutoffs == (conformal_threshold(truth, scores.max(axis=1), miss_rate=0.1),) * 3
    assert found.pictures == (truth == 1).sum()
    assert found.other_rate == stopped(found, scores[truth == 0]).mean()


@given(st.integers(0, 10_000))
def test_false_alarms_are_counted_as_a_plain_loop_does(seed):
    truth, scores = draw(np.random.default_rng(seed), 60)
    truth[:12] = 0
    found = calibrate(truth, scores, 0.2, promised="false alarms")
    safe = scores[truth == 0]
    assert (stopped(found, safe).sum() + 1) / (len(safe) + 1) <= 0.2
    # The next lower cutoff that stops one more safe picture would break it.
    passed = safe.max(axis=1)[~stopped(found, safe)]
    stricter = replace(found, cutoffs=(float(passed.max()),) * 3)
    assert (stopped(stricter, safe).sum() + 1) / (len(safe) + 1) > 0.2


def test_a_shape_gives_each_look_a_cutoff_of_its_own():
    random = np.random.default_rng(0)
    truth, scores = draw(random, 400)
    shape = draw(random, 300, share=0.0)[1]
    found = calibrate(truth, scores, 0.1, shape=shape)
    assert len(set(found.cutoffs)) == 3
    # Every look stops the same share of the pictures that made the shape.
    shares = [(shape[:, look] >= found.cutoffs[look]).mean() for look in range(3)]
    assert max(shares) - min(shares) <= 0.01


def test_levels_rise_from_everything_to_nothing():
    random = np.random.default_rng(0)
    scores = draw(random, 3000)[1]
    for levels in (cutoff_levels(scores), cutoff_levels(scores, draw(random, 50)[1])):
        assert len(levels) <= 2000
        assert levels[0].tolist() == [0] * 3
        assert levels[-1].tolist() == [1] * 3
        assert np.all(np.diff(levels, axis=0) >= 0)
        assert np.all(np.diff(passes(scores, levels), axis=1) >= 0)


def test_pictures_that_were_not_judged_or_labelled_are_left_out():
    truth, scores = draw(np.random.default_rng(2), 60)
    whole = calibrate(truth, scores)
    more = np.concatenate([scores, [[np.nan, 0.1, 0.1], [0.2, 0.2, 0.2]]])
    assert calibrate(np.concatenate([truth, [1, np.nan]]), more) == whole


@pytest.mark.parametrize(
    ("truth", "scores", "arguments", "message"),
    [
        ([1, 0], np.zeros((2, 2)), {}, r"\(N, 3\), with a score"),
        ([1, 2], np.zeros((2, 3)), {}, "0, 1 or NaN"),
        ([1, 0], np.full((2, 3), 1.5), {}, "0, 1 or NaN"),
        ([1] * 5, np.zeros((5, 3)), {}, "needs at least 9 unsafe"),
        ([0] * 5, np.zeros((5, 3)), {"promised": "false alarms"}, "needs at least 9 safe"),
        (
            [0] * 20,
            np.ones((20, 3)),
            {"promised": "false alarms"},
            "100.0% of the safe pictures have a score of 1",
        ),
        ([1] * 20, np.zeros((20, 3)), {"shape": np.zeros((4, 2))[:0]}, "A shape is"),
        ([1] * 20, np.zeros((20, 3)), {"promise": 0.0}, "between 0 and 1"),
    ],
)
def test_what_cannot_be_calibrated(truth, scores, arguments, message):
    with pytest.raises(ConfigError, match=message):
        calibrate(truth, scores, **arguments)


# What is said of it


def promise(**changes):
    found = calibrate(*draw(np.random.default_rng(3), 200))
    return replace(found, **changes)


def test_it_is_said_as_a_cascade_says_it():
    found = promise(pictures=120)
    assert found.text(TAXONOMY, DDIM) == (
        "at most 10.0% missed over 3 looks, calibrated on 120 unsafe pictures made so, under such policies"
    )
    alarms = promise(promised="false alarms", pictures=80, at=(4,), cutoffs=(0.5,))
    assert alarms.text(TAXONOMY, DDIM) == (
        "at most 10.0% of the safe ones stopped in one look, calibrated on 80 safe pictures made so, under such policies"
    )


@pytest.mark.parametrize(
    ("taxonomy", "sampling", "why"),
    [
        (Taxonomy("t", "1", (Category("plum", "Plums."),)), DDIM, "not calibrated for 'plum', worded so"),
        (
            Taxonomy("t", "1", (Category("apple", "Red ones."),)),
            DDIM,
            "not calibrated for 'apple', worded so",
        ),
        (
            TAXONOMY,
            replace(DDIM, schedulers=("LCMScheduler",)),
            "calibrated with DDIMScheduler, not LCMScheduler",
        ),
        (TAXONOMY, replace(DDIM, steps=(4, 4)), "calibrated with steps 20, not 4"),
        (TAXONOMY, replace(DDIM, guidance=(7.5, 7.5)), "calibrated with guidance 5, not 7.5"),
        (TAXONOMY, replace(DDIM, guidance=(math.nan,) * 2), "this pipeline does not show its guidance"),
    ],
)
def test_it_is_withdrawn_elsewhere(taxonomy, sampling, why):
    text = promise().text(taxonomy, sampling)
    assert text == f"withdrawn: the promised miss rate of 10.0% does not hold: {why}"


def test_calls_span_a_range():
    span = Sampling.of_calls([DDIM, Sampling(("LCMScheduler",), (4, 4), (0.0, 0.0))])
    assert span == Sampling(("DDIMScheduler", "LCMScheduler"), (4, 20), (0.0, 5.0))
    assert span.why_outside(replace(DDIM, steps=(12, 12))) is None
    assert span.why_outside(replace(DDIM, steps=(30, 30))) == "calibrated with steps 4 to 20, not 30"
    with pytest.raises(ConfigError, match="No call was given"):
        Sampling.of_calls([])


def test_a_scale_that_a_call_keeps_to_itself_is_not_known():
    class Pipeline(SimpleNamespace):
        def __call__(self, prompt, true_cfg_scale=4.0):
            """As Qwen-Image is called; `guidance_scale` is of another kind there."""

    call = Sampling.of(Pipeline(scheduler=object(), num_timesteps=20, guidance_scale=5.0))
    assert call.steps == (20, 20)
    assert DDIM.why_outside(replace(call, schedulers=DDIM.schedulers)) is not None
    with pytest.raises(ConfigError, match="does not show its guidance scale"):
        Sampling.of_calls([call])


@pytest.mark.parametrize("other", [0.25, math.nan])
def test_a_file_holds_it(other):
    found = promise(other_rate=other, at=(-2.0, 0.5, 1.0))
    again = LooksPromise.from_json(found.to_json())
    assert replace(again, other_rate=0.0) == replace(found, other_rate=0.0)
    assert again.other_rate == other or math.isnan(other)
    assert isinstance(again.at[0], float)


@pytest.mark.parametrize(
    "change",
    [
        ("0.1", "NaN"),
        ('"missed"', '"all"'),
        ('"sampling"', '"sample"'),
        ('"pictures": ', '"pictures": -'),
        ("{", "["),
    ],
)
def test_another_file_is_refused(change):
    text = promise().to_json().replace(*change)
    with pytest.raises(CheckpointError, match=r"here\.json holds no promise"):
        LooksPromise.from_json(text, "here.json")


def test_a_guard_takes_looks_and_cutoffs_from_it():
    found = promise(cutoffs=(0.5, 0.3, 0.9))
    assert times_of_looks(None, found, None) == AT
    with pytest.raises(ConfigError, match="calibrated for looks at"):
        times_of_looks((1, 2), found, None)
    limits = limits_of_looks(found, TAXONOMY, 3)
    assert strictest(limits, [0, 2]) == 0.5
    assert strictest(limits, [0, 1, 2]) == 0.3
    same = {"apple": 0.2}
    assert strictest(limits_of_looks(same, TAXONOMY, 2), [0, 1]) == same
