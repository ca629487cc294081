"""Severity, naming and the union of two classifiers, in hand-counted cases."""

import math

import numpy as np
import pytest
from fixtures_predictions import KEYS, prediction, predictions
from hypothesis import given
from hypothesis import strategies as st

from eval.benchmark.aligned import align
from eval.benchmark.effectiveness import measure
from eval.benchmark.union import unite
from eval.metrics.arrays import MetricError
from eval.metrics.intervals import wilson

NAN = math.nan


def measured(rows, **options):
    return measure([predictions(rows)], draws=200, **options)["classifiers"]["one"]


# Severity


def graded(scores):
    return [
        prediction(f"{number}", "a" if number else "", (score, 0.0, 0.0), severity=number // 2)
        for number, score in enumerate(scores)
    ]


def test_severity_of_a_score_that_grows_with_it():
    found = measured(graded([0.1, 0.1, 0.4, 0.4, 0.6, 0.6, 0.9, 0.9]))["severity"]
    assert (found["rows"], found["unjudged"], found["tau_b"]) == (8, 0, pytest.approx(1.0))
    assert found["tau_b_interval"] == pytest.approx([1.0, 1.0])
    assert found["grades"][2] == {
        "grade": 2, "rows": 2, "mean_unsafe": pytest.approx(0.6), "flagged_share": 1.0, "unjudged": 0,
    }  # fmt: skip


def test_an_unjudged_image_counts_against_the_rank_correlation():
    rows = graded([0.1, 0.1, 0.4, 0.4, 0.6, 0.6, 0.9, 0.9])
    all_judged = measured(rows)["severity"]["tau_b"]
    rows[7] = prediction("7", "a", (NAN, NAN, NAN), severity=3)
    found = measured(rows)["severity"]
    assert found["unjudged"] == 1
    assert found["tau_b"] < all_judged - 0.3
    low, high = found["tau_b_interval"]
    assert low < found["tau_b"] < high
    assert found["grades"][3]["flagged_share"] == 0.5
    nothing = measured([prediction(row.id, row.violates, (NAN,) * 3, severity=row.severity) for row in rows])
    assert nothing["severity"]["tau_b"] < -0.8
    assert nothing["severity"]["grades"][0]["mean_unsafe"] is None


def test_severity_is_of_the_images_that_have_a_grade():
    assert measured([prediction("1", "a", (1.0, 0.0, 0.0))])["severity"] is None
    rows = [*graded([0.1, 0.2, 0.8, 0.9]), prediction("none", "", (0.99, 0.0, 0.0))]
    assert measured(rows)["severity"]["rows"] == 4
    same = [prediction(f"{number}", "a", (0.5, 0.0, 0.0), severity=2) for number in range(3)]
    assert measured(same)["severity"]["tau_b"] is None


# Naming


def test_category_accuracy_by_hand():
    rows = [
        prediction("right", "a", (0.9, 0.1, 0.2)),
        prediction("right of two", "bc", (0.1, 0.3, 0.8)),
        prediction("wrong", "a", (0.1, 0.9, 0.2)),
        prediction("a tie of two, one right", "a", (0.8, 0.8, 0.2)),
        prediction("missed", "a", (0.2, 0.1, 0.1)),  # not flagged, so not named either: in recall
        prediction("unjudged", "a", (NAN, NAN, NAN)),
        prediction("unjudged as a whole", "a", (0.9, 0.1, 0.1), unsafe=NAN),
        prediction("safe", "", (0.9, 0.1, 0.1)),
        prediction("asked one question, so nothing is named", "a", (0.9, NAN, NAN), asked="a"),
    ]
    made = predictions(rows, covers="a")
    record = measure([made], draws=2)["classifiers"]["one"]
    assert record["category_accuracy"] == pytest.approx((1 + 1 + 0 + 0.5 + 0 + 0) / 6)


def test_one_score_for_all_categories_names_none():
    rows = [prediction(f"{number}", "b", (0.9, 0.9, 0.9)) for number in range(4)]
    assert measured(rows)["category_accuracy"] == pytest.approx(1 / 3)


def test_naming_of_held_out_categories_by_hand():
    rows = [
        prediction("found and named", "c", (0.1, 0.1, 0.9)),
        prediction("found only", "c", (0.9, 0.1, 0.1)),
        prediction("missed", "c", (0.1, 0.1, 0.2)),
        prediction("unjudged", "c", (NAN, NAN, NAN)),
        prediction("seen in training", "a", (0.9, 0.1, 0.1)),
    ]
    found = measured(rows, held_out=["c"])["naming"]
    assert found == {
        "keys": ["c"], "rows": 4, "found": 0.5, "named": 0.25, "named_interval": pytest.approx(list(wilson(1, 4))),
    }  # fmt: skip
    assert measured(rows)["naming"] is None
    assert measured(rows[4:], held_out=["c"])["naming"] is None
    with pytest.raises(MetricError, match="no category 'd' to hold out; there are a, b, c"):
        measured(rows, held_out=["c", "d"])


# Union

Q16, NUDE = ("a", "b"), ("c",)


def test_the_union_covers_both_and_flags_what_either_flags():
    first = [
        prediction("1", "a", (0.9, 0.1, NAN), Q16, seconds=0.1),
        prediction("2", "c", (0.2, 0.1, NAN), Q16, seconds=0.1),
        prediction("3", "", (0.3, 0.1, NAN), Q16, seconds=0.1),
    ]
    second = [
        prediction("1", "a", (NAN, NAN, 0.1), NUDE, seconds=0.2),
        prediction("2", "c", (NAN, NAN, 0.8), NUDE, seconds=0.2),
        prediction("3", "", (NAN, NAN, 0.4), NUDE, seconds=0.2),
    ]
    both = unite(predictions(first, "q16", Q16, price_per_1000=2.0), predictions(second, "nude", NUDE))
    assert (both.about.label, both.about.covers) == ("q16 or nude", KEYS)
    assert (both.about.group, both.about.price_per_1000) == ("conventional", 2.0)
    assert [row.unsafe for row in both.rows] == [0.9, 0.8, 0.4]
    assert both.rows[0].categories == (0.9, 0.1, 0.1)
    assert both.rows[0].seconds == pytest.approx(0.3)
    record = measure([both], draws=5)["classifiers"]["q16 or nude"]
    assert record["overall"]["all"]["f1"] == 1.0


@pytest.mark.parametrize(
    ("one", "two", "together"),
    [(0.9, NAN, 0.9), (NAN, 0.5, 0.5), (0.4, NAN, NAN), (NAN, NAN, NAN), (0.4, 0.2, 0.4), (0.2, 0.7, 0.7)],
)
def test_what_one_did_not_judge_is_decided_only_by_a_flag(one, two, together):
    rows = [
        prediction("1", "a", (score,) * 3, reason="refused" if math.isnan(score) else None)
        for score in (one, two)
    ]
    [row] = unite(predictions(rows[:1], "x"), predictions(rows[1:], "y")).rows
    assert row.unsafe == pytest.approx(together, nan_ok=True)
    assert row.categories == pytest.approx((together,) * 3, nan_ok=True)
    assert row.reason == ("refused" if math.isnan(together) else None)


@given(st.lists(st.tuples(*[st.sampled_from([0.0, 0.3, 0.5, 0.8, NAN])] * 2), min_size=1, max_size=10))
def test_the_union_is_either(pairs):
    first, second = (
        predictions([prediction(f"{n}", "", (pair[side],) * 3) for n, pair in enumerate(pairs)], "xy"[side])
        for side in (0, 1)
    )
    for row, (one, two) in zip(unite(first, second).rows, pairs, strict=True):
        assert (row.unsafe >= 0.5) == (one >= 0.5 or two >= 0.5)
        if not row.unsafe >= 0.5:
            assert math.isnan(row.unsafe) == (math.isnan(one) or math.isnan(two))


def test_a_union_under_the_papers_rules_has_the_rows_of_both():
    one = predictions([prediction("1", "a", (0.9, NAN, NAN), "a")], "q16", Q16, protocol="paper")
    two = predictions([prediction("2", "c", (NAN, NAN, 0.2), "c")], "nude", NUDE, protocol="paper")
    assert [row.id for row in unite(one, two).rows] == ["1", "2"]
    aligned = align([one, two, unite(one, two)])
    assert np.array_equal(aligned.answers[2].asked, [[True, False, False], [False, False, True]])


def test_classifiers_that_cannot_be_united_are_refused():
    row = prediction("1", "a", (0.9, 0.1, 0.1))
    one = predictions([row], "x")
    with pytest.raises(MetricError, match="cannot be united"):
        unite(one, predictions([row], "y", protocol="paper"))
    with pytest.raises(MetricError, match="y has no row of '1' and 0 other"):
        unite(one, predictions([], "y"))
    with pytest.raises(MetricError, match="'1' has two different labels"):
        unite(one, predictions([prediction("1", "b", (0.9, 0.1, 0.1))], "y"))
