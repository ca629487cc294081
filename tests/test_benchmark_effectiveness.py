"""Numbers of a benchmark, compared with scikit-learn's and with plain loops."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from fixtures_benchmark import synthetic_predictions
from fixtures_predictions import KEYS, prediction, predictions
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn

from eval.benchmark.effectiveness import count_failures, measure
from eval.benchmark.predictions import Predictions
from eval.metrics.arrays import MetricError

SCORES = st.sampled_from([0.0, 0.2, 0.49, 0.5, 0.7, 1.0, math.nan])


@st.composite
def made_up(draw):
    """Predictions of one classifier, of up to 25 images with any labels; of some data sets it is known what for."""
    collected = draw(st.booleans())
    rows = []
    for number in range(draw(st.integers(1, 25))):
        violates = draw(st.sets(st.sampled_from(KEYS), max_size=2))
        unknown = draw(st.sets(st.sampled_from(KEYS), max_size=1)) - violates
        rows.append(
            prediction(
                f"image {number}",
                violates,
                draw(st.tuples(SCORES, SCORES, SCORES)),
                unknown=unknown,
                source=draw(st.sampled_from(["real", "generated", "drawn"])),
                collected_for=draw(st.sampled_from(KEYS)) if collected else None,
            )
        )
    return predictions(rows)


def with_errors(truth, score, threshold):
    """Verdicts in which what was not judged is an error."""
    return np.where(np.isnan(score), ~truth, score >= threshold)


def check_cell(cell, truth, score, threshold):
    truth, score = np.array(truth, dtype=bool), np.array(score, dtype=float)
    verdict = with_errors(truth, score, threshold)
    assert cell["rows"] == len(truth)
    assert cell["unsafe_rows"] == truth.sum()
    assert cell["unjudged"] == np.isnan(score).sum()
    for name, function in (
        ("f1", sklearn.f1_score),
        ("precision", sklearn.precision_score),
        ("recall", sklearn.recall_score),
    ):
        expected = function(truth, verdict, zero_division=np.nan) if len(truth) else math.nan
        assert cell[name] == (None if math.isnan(expected) else pytest.approx(expected))
        assert (cell[f"{name}_interval"] is None) == (cell[name] is None)
        if cell[name] is not None:
            low, high = cell[f"{name}_interval"]
            assert 0 <= low <= high <= 1
    for name, part, of in (
        ("false_positive_rate", verdict & ~truth, ~truth),
        ("false_negative_rate", ~verdict & truth, truth),
    ):
        assert cell[name] == (pytest.approx(part.sum() / of.sum()) if of.any() else None)


@given(made_up(), st.sampled_from([0.2, 0.5, 0.9]))
@settings(max_examples=20)  # scikit-learn checks its arguments at length, and each example has 16 cells
def test_every_cell_equals_scikit_learn_over_a_plain_loop(made, threshold):
    metrics = measure([made], threshold, draws=20)
    record = metrics["classifiers"]["one"]
    collected = any(row.collected_for for row in made.rows)
    for source in ("all", *metrics["sources"]):
        rows = [row for row in made.rows if source in ("all", row.source)]
        for place, key in enumerate(KEYS):
            members = [
                row
                for row in rows
                if (key in row.violates or not (row.violates or key in row.unknown))
                and (not collected or row.collected_for == key)
            ]
            cell = record["cells"][key][source]
            check_cell(
                cell,
                [key in row.violates for row in members],
                [row.categories[place] for row in members],
                threshold,
            )
        known = [row for row in rows if row.truth is not None]
        check_cell(
            record["overall"][source], [row.truth for row in known], [row.unsafe for row in known], threshold
        )


@given(made_up())
def test_numbers_without_a_threshold_equal_scikit_learn(made):
    record = measure([made], draws=2)["classifiers"]["one"]
    known = [row for row in made.rows if row.truth is not None]
    truth, score = np.array([row.truth for row in known], dtype=bool), np.array([row.unsafe for row in known])
    unjudged = np.isnan(score)
    # As wrong as a score can be: safe above all others, unsafe below.
    ranked = np.where(unjudged, np.where(truth, -1.0, 2.0), score)
    both = truth.any() and not truth.all()
    assert record["auc"] == (pytest.approx(sklearn.roc_auc_score(truth, ranked)) if both else None)
    if truth.any() and not (unjudged & truth).any():
        assert record["average_precision"] == pytest.approx(sklearn.average_precision_score(truth, ranked))
    bins = np.minimum((np.nan_to_num(score) * 15).astype(int), 14)
    gaps = [
        abs(np.sum(score[part]) - np.sum(truth[part]))
        for one in range(15)
        if (part := (bins == one) & ~unjudged).any()
    ]
    expected = (sum(gaps) + unjudged.sum()) / len(truth) if len(truth) else None
    assert record["calibration_error"] == (None if expected is None else pytest.approx(expected))


@given(made_up(), st.integers(0, 24))
def test_not_to_judge_an_image_never_helps(made, which):
    """Whatever the verdict was: left unjudged, the image is an error."""
    rows = list(made.rows)
    which %= len(rows)
    nothing = tuple(math.nan for _ in KEYS)
    rows[which] = replace(rows[which], unsafe=math.nan, categories=nothing)
    before, after = (measure([one], draws=2)["classifiers"]["one"] for one in (made, predictions(rows)))

    def worse(one, two):
        return two is None or (one is not None and two <= one + 1e-12)

    for cell, other in zip(
        [before["overall"]["all"], *(before["cells"][key]["all"] for key in KEYS)],
        [after["overall"]["all"], *(after["cells"][key]["all"] for key in KEYS)],
        strict=True,
    ):
        # Without unsafe images and alarms F1 is undefined; an error defines it, as 0.
        assert worse(cell["f1"], other["f1"]) or (cell["f1"] is None and other["f1"] == 0)
        assert worse(cell["recall"], other["recall"])
    if before["auc"] is not None:
        assert worse(before["auc"], after["auc"])
        assert worse(before["average_precision"], after["average_precision"])


def test_a_classifier_that_covers_a_part_has_cells_of_it_and_no_overall():
    made = synthetic_predictions(rows=300, covers=("three", "seven"))
    record = measure([made], draws=5)["classifiers"]["noisy"]
    assert list(record["cells"]) == record["covers"] == ["three", "seven"]
    assert record["overall"] is None
    rows = [row for row in made.rows if row.collected_for in ("three", "seven")]
    check_cell(record["covered"]["all"], [row.truth for row in rows], [row.unsafe for row in rows], 0.5)
    cells = [record["cells"][key]["real"]["f1"] for key in ("three", "seven")]
    assert record["mean_f1"]["real"]["f1"] == pytest.approx(np.mean(cells))
    assert record["mean_f1"]["real"]["categories"] == 2


def test_the_mean_of_categories_is_over_those_that_a_sample_has():
    """One unsafe image of one category: a sample without it has no F1, which is not an F1 of 0."""
    rows = [prediction("1", "a", (0.9, 0.0, 0.0)), *(prediction(f"safe {number}") for number in range(9))]
    mean = measure([predictions(rows)], draws=200)["classifiers"]["one"]["mean_f1"]["all"]
    assert mean == {"categories": 1, "f1": 1.0, "f1_interval": [1.0, 1.0]}


def test_figure_3_is_the_mean_over_the_classifiers_that_cover_a_category():
    made = [synthetic_predictions("a"), synthetic_predictions("b", covers=("three",), seed=1)]
    metrics = measure(made, draws=5)
    found = [metrics["classifiers"][label]["cells"]["three"]["all"]["f1"] for label in "ab"]
    assert metrics["by_category"]["three"]["classifiers"] == 2
    assert metrics["by_category"]["three"]["mean_f1"]["all"] == pytest.approx(np.mean(found))
    assert metrics["by_category"]["four"]["classifiers"] == 1


def test_images_whose_label_does_not_say_on_which_side_they_are_left_out_and_counted():
    rows = [
        prediction("1", "a", collected_for="a"),
        prediction("2", "b", collected_for="a"),  # collected for a, and unsafe for another reason
        prediction("3", "", collected_for="a"),
        prediction("4", "", unknown="a", collected_for="a"),
        prediction("5", "b", collected_for="b"),
    ]
    metrics = measure([predictions(rows)], draws=2)
    assert {one["key"]: one["left_out"] for one in metrics["categories"]} == {"a": 2, "b": 0, "c": 0}
    assert metrics["classifiers"]["one"]["cells"]["a"]["all"]["rows"] == 2
    without = [replace(row, collected_for=None) for row in rows]
    metrics = measure([predictions(without)], draws=2)
    assert {one["key"]: one["left_out"] for one in metrics["categories"]} == {"a": 1, "b": 0, "c": 0}
    assert metrics["classifiers"]["one"]["cells"]["a"]["all"]["rows"] == 2
    assert metrics["classifiers"]["one"]["cells"]["b"]["all"]["rows"] == 4


def test_images_of_which_nobody_says_what_they_were_collected_for_are_counted_as_left_out():
    """Where other images do say so, they are in no cell; whoever misses them must not look better unseen."""
    rows = [
        prediction("1", "a", collected_for="a"),
        prediction("2", "", collected_for="a"),
        prediction("3", "a"),
        prediction("4", ""),
        prediction("5", "", collected_for="elsewhere"),  # said, and none of this taxonomy
    ]
    metrics = measure([predictions(rows)], draws=2)
    assert {one["key"]: one["left_out"] for one in metrics["categories"]} == {"a": 2, "b": 1, "c": 1}
    assert metrics["classifiers"]["one"]["cells"]["a"]["all"]["rows"] == 2


def test_an_image_that_violates_something_outside_the_taxonomy_is_no_safe_one():
    rows = [prediction("1", "a", (1.0, 0.0, 0.0)), prediction("2", ["weapons"]), prediction("3")]
    record = measure([predictions(rows)], draws=2)["classifiers"]["one"]
    assert record["cells"]["a"]["all"]["rows"] == 2
    assert record["overall"]["all"]["rows"] == 3  # this policy does not forbid it


@pytest.mark.parametrize(("violates", "f1"), [("", None), ("a", 1.0)])
def test_one_class_only(violates, f1):
    score = (1.0, 0.0, 0.0) if violates else (0.0, 0.0, 0.0)
    rows = [prediction(f"{number}", violates, score) for number in range(5)]
    record = measure([predictions(rows)], draws=10)["classifiers"]["one"]
    assert record["overall"]["all"]["f1"] == f1
    assert record["auc"] is None
    assert record["cells"]["b"]["all"]["f1"] is None


def test_costs_are_means_of_what_is_known():
    rows = [prediction("1", seconds=0.2), prediction("2", seconds=0.6), prediction("3")]
    cost = measure([predictions(rows, price_per_1000=20.0)], draws=2)["classifiers"]["one"]["cost"]
    assert cost == {
        "seconds_per_image": pytest.approx(0.4),
        "images_per_second": pytest.approx(2.5),
        "price_per_1000": 20.0,
    }
    free = measure([predictions([prediction("1")])], draws=2)["classifiers"]["one"]["cost"]
    assert free == {"seconds_per_image": None, "images_per_second": None, "price_per_1000": None}


def test_failures_are_counted_by_reason_without_ids_and_numbers():
    reasons = [
        ("cat-7", "cat-7 is 12 x 40 pixels"),
        ("cat-8", "cat-8 is 7.5 x 9 pixels"),
        ("a", "a bad answer at 0x7fe1"),
        ("b", None),
    ]
    assert count_failures(reasons) == {
        "ID is N x N pixels": 2,
        "ID bad answer at N": 1,
        "no reason given": 1,
    }
    many = count_failures((str(number), "why " + "x" * number) for number in range(40))
    assert many["other reasons"] == 10
    assert sum(many.values()) == 40


def test_unjudged_rows_have_their_reasons_in_the_record():
    rows = [prediction("1"), prediction("2", scores=(math.nan,) * 3, reason="refused")]
    record = measure([predictions(rows)], draws=2)["classifiers"]["one"]
    assert (record["unjudged"], record["unjudged_share"], record["failures"]) == (1, 0.5, {"refused": 1})


def test_metrics_are_json():
    found = [synthetic_predictions("a"), synthetic_predictions("b", rows=60, covers=("one",), seed=1)]
    metrics = measure(found, draws=20)
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


# Several classifiers


def test_the_distance_to_the_best_is_paired():
    """One classifier misses what another misses and one image more: that difference is certain in its sign."""
    rows = [
        prediction(f"{number}", "a" if number < 40 else "", (float(number % 2), 0, 0)) for number in range(80)
    ]
    worse = [
        replace(row, unsafe=0.0, categories=(0.0, 0.0, 0.0)) if row.id in ("1", "3", "5", "7") else row
        for row in rows
    ]
    metrics = measure([predictions(worse, "worse"), predictions(rows, "better")], draws=400)
    better, worse = (metrics["classifiers"][label]["overall"]["all"] for label in ("better", "worse"))
    assert better["best"] is True
    assert better["behind_best"] is better["behind_best_interval"] is None
    assert worse["best"] is False
    assert worse["behind_best"] == pytest.approx(better["f1"] - worse["f1"])
    low, high = worse["behind_best_interval"]
    assert 0 <= low < worse["behind_best"] < high
    # Far narrower than the intervals of the two, which overlap.
    assert better["f1_interval"][0] < worse["f1_interval"][1]
    assert high - low < 0.6 * (worse["f1_interval"][1] - worse["f1_interval"][0])


def test_only_one_is_the_best_and_copies_are_not_behind():
    one = synthetic_predictions("first")
    metrics = measure([one, synthetic_predictions("second")], draws=50)
    cells = [metrics["classifiers"][label]["overall"]["all"] for label in ("first", "second")]
    assert [cell["best"] for cell in cells] == [True, False]
    assert (cells[1]["behind_best"], cells[1]["behind_best_interval"]) == (0.0, None)


def test_the_best_overall_is_one_that_covers_everything():
    rows = [prediction("1", "a", (0.9, 0.0, 0.0)), prediction("2", "b", (0.0, 0.1, 0.0)), prediction("3")]
    narrow = [replace(row, asked=frozenset("a"), unsafe=row.categories[0]) for row in rows]
    made = [predictions(narrow, "narrow", covers="a"), predictions(rows, "broad")]
    records = measure(made, draws=20)["classifiers"]
    assert records["narrow"]["cells"]["a"]["all"]["best"]
    assert records["broad"]["overall"]["all"]["f1"] == pytest.approx(2 / 3)
    assert records["broad"]["overall"]["all"]["best"]


def test_classifiers_of_other_splits_are_measured_apart():
    whole = synthetic_predictions("q16", rows=90, protocol="paper")
    whole = Predictions(replace(whole.about, splits=("train", "test")), whole.rows)
    tested = [
        synthetic_predictions(label, rows=40, seed=seed, protocol="paper")
        for label, seed in (("a", 1), ("b", 2))
    ]
    metrics = measure([*tested, whole], draws=20)
    assert list(metrics["classifiers"]) == ["a", "b", "q16"]
    assert metrics["images"] == 90
    records = metrics["classifiers"]
    assert [records[label]["rows"] for label in ("a", "b", "q16")] == [40, 40, 90]
    assert records["q16"]["splits"] == ["train", "test"]
    assert records["q16"]["overall"]["all"]["best"]
    assert sum(records[label]["overall"]["all"]["best"] for label in "ab") == 1
    alone = measure([whole], draws=20)["classifiers"]["q16"]
    assert alone == records["q16"]


def test_a_source_that_one_group_of_splits_lacks_has_empty_cells():
    rows = [prediction("1", "a", source="web"), prediction("2", source="real")]
    both = [predictions(rows, "whole", splits=("train", "test")), predictions(rows[1:], "part")]
    metrics = measure(both, draws=2)
    assert metrics["sources"] == ["real", "web"]
    assert metrics["classifiers"]["part"]["overall"]["web"]["rows"] == 0


def asked_one(image, key, **fields):
    return prediction(
        image,
        key,
        tuple(1.0 if one == key else math.nan for one in KEYS),
        asked=[key],
        collected_for=key,
        **fields,
    )


def test_under_the_papers_rules_an_image_of_a_category_that_is_not_covered_has_no_row():
    rows = [asked_one("1", "a"), asked_one("2", "b"), asked_one("3", "c")]
    some = predictions(rows[:2], "some", covers="ab", protocol="paper")
    metrics = measure([some, predictions(rows, "all", protocol="paper")], draws=2)
    assert metrics["classifiers"]["some"]["rows"] == 2
    assert metrics["classifiers"]["all"]["overall"]["all"]["f1"] == 1.0
    assert (
        metrics["classifiers"]["some"]["category_accuracy"] is None
    )  # only one category was in each question
    missing = predictions(rows[:1], "some", covers="ab", protocol="paper")
    with pytest.raises(MetricError, match=r"some was not asked about 1 images .*'2'"):
        measure([missing, predictions(rows, "all", protocol="paper")])


def test_images_that_a_classifier_was_not_asked_about_are_no_errors_of_it():
    rows = [asked_one("1", "a"), asked_one("2", "b"), asked_one("3", "c"), asked_one("4", "c")]
    safe = prediction("5", "", (0.2, math.nan, math.nan), asked="a", collected_for="a")
    some = predictions([rows[0], safe], "some", covers="a", protocol="paper")
    record = measure([some, predictions([*rows, safe], "all", protocol="paper")], draws=2)["classifiers"][
        "some"
    ]
    assert record["calibration_error"] == pytest.approx((0.0 + 0.2) / 2)
    assert (record["auc"], record["unjudged"], record["covered"]["all"]["rows"]) == (1.0, 0, 2)


def changed(made, number, **fields):
    rows = list(made.rows)
    rows[number] = replace(rows[number], **fields)
    return Predictions(made.about, tuple(rows))


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (synthetic_predictions("a", seed=1), "two classifiers have the label 'a'"),
        (synthetic_predictions("b", taxonomy="unsafebench"), "another taxonomy"),
        (synthetic_predictions("b", protocol="paper"), "another protocol"),
        (synthetic_predictions("b", rows=58), "not asked about 2 images .*'image-58', 'image-59'"),
        (changed(synthetic_predictions("b"), 5, source="web"), "other labels.*'image-5'"),
        (changed(synthetic_predictions("b"), 5, severity=3), "other labels.*'image-5'"),
        (changed(synthetic_predictions("b"), 5, id="image-6"), "two rows of 'image-6'"),
        (changed(synthetic_predictions("b"), 5, id="new"), "a was not asked about 1 images .*'new'"),
        (
            changed(synthetic_predictions("b"), 5, asked=frozenset(["ten"])),
            "outside of its taxonomy: 'image-5'",
        ),
        (synthetic_predictions("b", covers=("zero", "ten")), "covers 'ten', which is none of zero, one"),
    ],
)
def test_classifiers_that_do_not_compare_are_refused(second, words):
    with pytest.raises(MetricError, match=f"(?i){words}"):
        measure([synthetic_predictions("a"), second])


def test_other_data_sets_do_not_compare():
    other = synthetic_predictions("b")
    other = Predictions(replace(other.about, dataset="signs"), other.rows)
    with pytest.raises(MetricError, match="another data set than a: signs, not digits"):
        measure([synthetic_predictions("a"), other])


def test_many_missing_images_are_named_in_part():
    with pytest.raises(
        MetricError, match=r"55 images .*'image-5', 'image-6', 'image-7', 'image-8', 'image-9' \.\.\."
    ):
        measure([synthetic_predictions("a"), synthetic_predictions("b", rows=5)])


def test_nothing_to_measure_is_refused():
    with pytest.raises(MetricError, match="at least one classifier"):
        measure([])
    with pytest.raises(MetricError, match="hold no rows"):
        measure([synthetic_predictions(rows=0)])
    with pytest.raises(MetricError, match="'all', which tables use"):
        measure([predictions([prediction("1", source="all")])])


def test_a_classifier_without_rows_is_measured_beside_one_with_rows():
    none = predictions([], "none", covers="c", protocol="paper")
    metrics = measure(
        [none, predictions([asked_one("1", "a")], "one", covers="a", protocol="paper")], draws=2
    )
    assert metrics["classifiers"]["none"]["rows"] == 0
    assert metrics["classifiers"]["none"]["unjudged_share"] is None
    assert metrics["classifiers"]["none"]["cells"]["c"]["all"]["f1"] is None


def test_a_classifier_that_covers_nothing_has_no_cells():
    record = measure([predictions([prediction("1", "a", asked=())], covers=())], draws=2)["classifiers"][
        "one"
    ]
    assert (record["cells"], record["overall"]) == ({}, None)
    assert record["mean_f1"]["all"] == {"categories": 0, "f1": None, "f1_interval": None}
