"""Numbers of a benchmark, compared with scikit-learn's and with hand-counted cases."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from fixtures_benchmark import synthetic_predictions
from sklearn import metrics as sklearn

from eval.benchmark.effectiveness import measure
from eval.benchmark.predictions import Predictions
from eval.benchmark.tables import tables
from eval.metrics.arrays import MetricError


def with_errors(truth, score, threshold=0.5):
    """Verdicts in which what was not judged is an error."""
    return np.where(np.isnan(score), ~truth, score >= threshold)


def test_overall_equals_scikit_learn():
    predictions = synthetic_predictions(rows=300)
    cell = measure([predictions], draws=50)["classifiers"]["noisy"]["overall"]["all"]
    truth = np.array([row.truth for row in predictions.rows])
    verdict = with_errors(truth, np.array([row.unsafe for row in predictions.rows]))
    assert (cell["rows"], cell["unsafe_rows"]) == (300, truth.sum())
    assert cell["unjudged"] == sum(math.isnan(row.unsafe) for row in predictions.rows) > 0
    assert cell["f1"] == pytest.approx(sklearn.f1_score(truth, verdict))
    assert cell["precision"] == pytest.approx(sklearn.precision_score(truth, verdict))
    assert cell["recall"] == pytest.approx(sklearn.recall_score(truth, verdict))
    assert cell["f1_interval"][0] < cell["f1"] < cell["f1_interval"][1]


def test_every_cell_equals_a_plain_loop():
    predictions = synthetic_predictions(rows=300, covers=("three", "seven"))
    record = measure([predictions], draws=5)["classifiers"]["noisy"]
    assert list(record["cells"]) == record["covers"] == ["three", "seven"]
    assert record["overall"] is None
    for place, key in ((3, "three"), (7, "seven")):
        for source in ("all", "real", "generated"):
            rows = [
                row for row in predictions.rows if row.collected_for == key and source in ("all", row.source)
            ]
            truth = np.array([key in row.violates for row in rows])
            verdict = with_errors(truth, np.array([row.categories[place] for row in rows]))
            cell = record["cells"][key][source]
            assert (cell["rows"], cell["unsafe_rows"]) == (len(rows), truth.sum())
            assert cell["f1"] == pytest.approx(sklearn.f1_score(truth, verdict))


def test_metrics_are_json_and_have_tables():
    metrics = measure(
        [synthetic_predictions("a", group="zero_shot"), synthetic_predictions("b", seed=1)], draws=20
    )
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    texts = "\n".join(table.to_text() for table in tables(metrics))
    assert "a*" in texts
    assert "b*" not in texts


def changed(predictions, number, **fields):
    rows = list(predictions.rows)
    rows[number] = replace(rows[number], **fields)
    return Predictions(predictions.about, tuple(rows))


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (synthetic_predictions("a", seed=1), "two classifiers have the label 'a'"),
        (synthetic_predictions("b", taxonomy="unsafebench"), "another taxonomy"),
        (synthetic_predictions("b", protocol="paper"), "another protocol"),
        (synthetic_predictions("b", rows=58), "not asked about 2 images .*'image-58', 'image-59'"),
        (changed(synthetic_predictions("b"), 5, source="web"), "other labels.*'image-5'"),
        (changed(synthetic_predictions("b"), 5, id="image-6"), "two rows of 'image-6'"),
    ],
)
def test_classifiers_that_do_not_compare_are_refused(second, words):
    with pytest.raises(MetricError, match=f"(?i){words}"):
        measure([synthetic_predictions("a"), second])


def test_nothing_to_measure_is_refused():
    with pytest.raises(MetricError, match="at least one classifier"):
        measure([])
    with pytest.raises(MetricError, match="hold no rows"):
        measure([synthetic_predictions(rows=0)])
