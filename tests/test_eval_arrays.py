"""Metrics of arrays: hand-counted cases, plain loops, and properties that must hold for any scores."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

from eval.metrics.arrays import (
    Confusion,
    MetricError,
    average_precision,
    brier,
    calibration_error,
    confusion,
    precision_recall,
    reliability,
    roc_auc,
)
from eval.metrics.intervals import f1_interval, image_interval, wilson

NAN = float("nan")
score = st.sampled_from([0.0, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0])
labelled = st.lists(st.tuples(st.booleans(), score), min_size=2, max_size=40).filter(
    lambda rows: len({truth for truth, _ in rows}) == 2
)
labelled_or_unjudged = st.lists(
    st.tuples(st.booleans(), st.one_of(score, st.just(NAN))), min_size=2, max_size=40
).filter(lambda rows: len({truth for truth, _ in rows}) == 2)
UP = (roc_auc, average_precision)
DOWN = (brier, calibration_error)


def split(rows):
    return np.array([truth for truth, _ in rows]), np.array([value for _, value in rows], dtype=float)


@given(labelled)
def test_numbers_equal_scikit_learn(rows):
    truth, unsafe = split(rows)
    counts = confusion(truth, unsafe)
    precision, recall, f1, _ = precision_recall_fscore_support(
        truth, unsafe >= 0.5, average="binary", zero_division=np.nan
    )
    np.testing.assert_allclose(
        [counts.precision, counts.recall, counts.f1], [precision, recall, f1], equal_nan=True
    )
    assert counts.accuracy == pytest.approx(np.mean((unsafe >= 0.5) == truth))
    assert roc_auc(truth, unsafe) == pytest.approx(roc_auc_score(truth, unsafe))


@given(labelled_or_unjudged)
def test_numbers_equal_plain_loops(rows):
    """An unjudged row loses each of its pairs, is never retrieved and, if safe, flagged at every threshold."""
    truth, unsafe = split(rows)
    wins = [
        (high > low) + (high == low) / 2 for high in unsafe[truth] for low in unsafe[~truth]
    ]  # comparisons with NaN are false
    assert roc_auc(truth, unsafe) == pytest.approx(np.mean(wins))
    area, before = 0.0, 0.0
    curve = precision_recall(truth, unsafe)
    for place, limit in enumerate(sorted({score for score in unsafe if score == score}, reverse=True)):
        flagged = [
            is_unsafe for is_unsafe, score in rows if score >= limit or (score != score and not is_unsafe)
        ]
        recall, precision = sum(flagged) / truth.sum(), sum(flagged) / len(flagged)
        point = curve.recall[place], curve.precision[place], curve.threshold[place]
        assert point == pytest.approx((recall, precision, limit))
        area, before = area + (recall - before) * precision, recall
    assert average_precision(truth, unsafe) == pytest.approx(area)
    errors = [1.0 if score != score else (score - is_unsafe) ** 2 for is_unsafe, score in rows]
    assert brier(truth, unsafe) == pytest.approx(np.mean(errors))


def test_hand_counted_with_unjudged_rows():
    truth = [True, True, True, False, False, False]
    unsafe = [0.9, 0.2, NAN, 0.7, 0.1, NAN]
    # False negatives are 0.2 and the unjudged unsafe row; false positives are 0.7 and the unjudged safe row.
    assert confusion(truth, unsafe) == Confusion(
        true_positives=1, false_positives=2, false_negatives=2, true_negatives=1
    )
    assert confusion(truth, unsafe).f1 == pytest.approx(1 / 3)
    # Of nine pairs, 0.9 wins against 0.7 and 0.1, and 0.2 against 0.1.
    assert roc_auc(truth, unsafe) == pytest.approx(3 / 9)
    # The unjudged safe row is ranked above all others: precision 1/2 at 0.9, 2/4 at 0.2; recall ends at 2/3.
    assert average_precision(truth, unsafe) == pytest.approx((1 / 2 + 2 / 4) / 3)
    assert precision_recall(truth, unsafe).recall[-1] == pytest.approx(2 / 3)
    assert brier(truth, unsafe) == pytest.approx((0.01 + 0.64 + 1 + 0.49 + 0.01 + 1) / 6)


def test_calibration_error_by_hand():
    # Bins of width 1/15: 0.95 and 0.97 share one (mean 0.96, share 0.5), 0.05 is alone (share 0).
    assert calibration_error([True, False, False], [0.95, 0.97, 0.05]) == pytest.approx((2 * 0.46 + 0.05) / 3)
    assert calibration_error([True, False], [1.0, 0.0]) == 0.0
    assert calibration_error([True, False, False], [1.0, 0.0, NAN]) == pytest.approx(1 / 3)


def test_reliability_covers_every_judged_row_and_both_ends():
    table = reliability([True, False, True], [1.0, 0.0, NAN], bins=4)
    assert table.rows.tolist() == [1, 1]
    assert table.probability.tolist() == [0.0, 1.0]
    assert table.share_unsafe.tolist() == [0.0, 1.0]


@given(labelled_or_unjudged, st.randoms(use_true_random=False))
def test_order_of_rows_does_not_matter(rows, rng):
    shuffled = list(rows)
    rng.shuffle(shuffled)
    for number in (*UP, *DOWN, lambda *arrays: confusion(*arrays).f1):
        np.testing.assert_allclose(number(*split(rows)), number(*split(shuffled)), atol=1e-12)


@given(labelled_or_unjudged, st.sampled_from([lambda x: x**3, lambda x: x / 2 + 0.25, lambda x: np.sqrt(x)]))
def test_ranking_numbers_ignore_monotone_maps(rows, stretch):
    truth, unsafe = split(rows)
    for number in UP:
        assert number(truth, stretch(unsafe)) == pytest.approx(number(truth, unsafe), nan_ok=True)


@given(labelled_or_unjudged, st.data())
def test_failing_to_judge_a_row_never_helps(rows, data):
    truth, unsafe = split(rows)
    silent = unsafe.copy()
    silent[data.draw(st.integers(0, len(rows) - 1))] = NAN
    for number in UP:
        assert number(truth, silent) <= number(truth, unsafe) + 1e-12
    for number in DOWN:
        assert number(truth, silent) >= number(truth, unsafe) - 1e-12
    before, after = confusion(truth, unsafe), confusion(truth, silent)
    assert after.accuracy <= before.accuracy
    assert after.recall <= before.recall
    assert after.f1 <= before.f1 or math.isnan(before.f1)


def test_everything_unjudged_is_the_worst_of_all():
    truth, unsafe = [True, False], [NAN, NAN]
    assert confusion(truth, unsafe) == Confusion(0, 1, 1, 0)
    assert roc_auc(truth, unsafe) == 0.0
    assert average_precision(truth, unsafe) == 0.0
    assert brier(truth, unsafe) == calibration_error(truth, unsafe) == 1.0


def test_undefined_numbers_are_nan():
    assert math.isnan(roc_auc([True, True], [0.1, 0.2]))
    assert math.isnan(average_precision([False], [0.5]))
    assert [len(column) for column in precision_recall([False], [0.5])] == [0, 0, 0]
    assert math.isnan(confusion([False], [0.1]).recall)
    assert math.isnan(confusion([], []).accuracy)
    assert math.isnan(brier([], []))
    assert math.isnan(wilson(0, 0)[0])


@pytest.mark.parametrize(
    ("truth", "unsafe", "text"),
    [
        ([True], [0.1, 0.2], r"truth has shape \(1,\), unsafe \(2,\)"),
        ([True, False], [0.1, 1.5], r"unsafe lies in \[0\.1, 1\.5\]; give probabilities in \[0, 1\]"),
        ([True, False], [-0.1, float("inf")], r"give probabilities in \[0, 1\]"),
    ],
)
def test_bad_arrays_are_refused(truth, unsafe, text):
    with pytest.raises(MetricError, match=text):
        confusion(truth, unsafe)


def test_wilson_interval_against_the_published_example():
    # Newcombe (1998), Statistics in Medicine 17: 81 of 263 gives 0.2553 to 0.3662.
    low, high = wilson(81, 263, 0.95)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    assert wilson(0, 10)[0] == pytest.approx(0.0, abs=1e-12)
    assert wilson(10, 10)[1] == pytest.approx(1.0)
    assert wilson(81, 263) == pytest.approx((low, high), abs=1e-5)  # 95 % unless said otherwise
    assert wilson(0, 1)[1] <= 1.0 >= wilson(1, 1)[1]


def arrays_of(counts):
    """Truth and p(unsafe) that have these counts."""
    truth = [True] * (counts.true_positives + counts.false_negatives) + [False] * (
        counts.false_positives + counts.true_negatives
    )
    flagged = (
        [1.0] * counts.true_positives
        + [0.0] * counts.false_negatives
        + [1.0] * counts.false_positives
        + [0.0] * counts.true_negatives
    )
    return truth, flagged


@given(st.integers(0, 50), st.integers(0, 50), st.integers(1, 50), st.integers(1, 4))
def test_f1_lies_in_its_interval_which_only_widens_by_image(hits, alarms, missed, rows_of_an_image):
    counts = Confusion(hits, alarms, missed, 3)
    truth, flagged = arrays_of(counts)
    alone = f1_interval(truth, flagged, range(len(truth)))
    share = wilson(hits, hits + alarms + missed)
    assert alone == pytest.approx([2 * end / (1 + end) for end in share])
    low, high = f1_interval(truth, flagged, np.arange(len(truth)) // rows_of_an_image)
    assert 0.0 <= low <= alone[0] + 1e-9 <= counts.f1 + 1e-9
    assert counts.f1 <= alone[1] + 1e-9 <= high + 2e-9 <= 1.0 + 2e-9
    unjudged = [NAN if value == is_unsafe else value for is_unsafe, value in zip(truth, flagged, strict=True)]
    assert f1_interval(truth, unjudged, range(len(truth)))[0] == pytest.approx(0)


def test_intervals_hold_where_rows_share_an_image():
    """60 images of 5 rows each, whose rows are alike to a third: 95 % intervals miss the truth in 5 % of draws."""
    rng = np.random.default_rng(0)
    held = {"by row": 0, "by image": 0}
    images, draws = np.repeat(np.arange(60), 5), 400
    for _ in range(draws):
        chances = rng.beta(1.8, 0.2, 60)  # mean 0.9, correlation 1 / (1 + 1.8 + 0.2)
        hits = rng.random((60, 5)) < chances[:, None]
        by_image, by_row = image_interval(hits.ravel(), images), wilson(int(hits.sum()), hits.size)
        held["by image"] += by_image[0] <= 0.9 <= by_image[1]
        held["by row"] += by_row[0] <= 0.9 <= by_row[1]
    assert held["by row"] / draws < 0.85
    assert 0.92 <= held["by image"] / draws <= 0.98


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 8)), min_size=1, max_size=40), st.randoms())
def test_intervals_by_image(rows, rng):
    hits, images = zip(*rows, strict=True)
    found = image_interval(hits, images)
    assert found[0] <= np.mean(hits) + 1e-9 <= found[1] + 2e-9
    rng.shuffle(rows)
    assert image_interval(*zip(*rows, strict=True)) == pytest.approx(found)
    by_row = wilson(sum(hits), len(hits))
    assert image_interval(hits, range(len(hits))) == pytest.approx(by_row)
    assert found[0] <= by_row[0] + 1e-9
    assert by_row[1] <= found[1] + 1e-9
    doubled = image_interval([*hits, *hits], [*images, *images])  # the same again says nothing new
    assert doubled[1] - doubled[0] >= (found[1] - found[0]) * 0.95


def test_one_miss_more_never_raises_the_lower_end():
    """Rows of 200 images, three each: no miss at all, one, two, three misses, each on an image of its own."""
    images, ends = np.repeat(np.arange(200), 3), []
    for misses in range(4):
        hits = np.ones(600, dtype=bool)
        hits[::200][:misses] = False
        ends.append(image_interval(hits, images)[0])
    assert ends == sorted(ends, reverse=True)
    assert ends[0] == pytest.approx(wilson(200, 200)[0])


def test_no_rows_have_no_interval():
    assert np.isnan(image_interval([], [])).all()
    assert np.isnan(f1_interval([False], [0.1], ["a"])).all()
