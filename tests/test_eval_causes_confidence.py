"""eval/causes: what became of an image, confidence and loss."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from fixtures_benchmark import synthetic_predictions
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss

from eval.benchmark.predictions import Prediction, Predictions
from eval.causes.confidence import confidence, cross_entropy, describe_confidence
from eval.causes.outcomes import outcome

ASKED = frozenset({"three", "four"})


def row(unsafe, violates=(), unknown=(), **values):
    return Prediction("1", frozenset(violates), frozenset(unknown), unsafe, (), ASKED, **values)


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (row(0.5, ["three"]), "right"),
        (row(0.49, ["three"]), "false_negatives"),
        (row(0.5, []), "false_positives"),
        (row(0.1, ["seven"]), "right"),  # not asked about
        (row(math.nan, ["three"]), "unjudged"),
        (row(math.nan, []), "unjudged"),
        (row(0.9, [], ["four"]), "unknown"),
        (row(math.nan, [], ["four"]), "unknown"),
    ],
)
def test_outcomes(one, expected):
    assert outcome(one) == expected


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=1, max_size=30))
def test_losses_equal_scikit_learns(rows):
    truth, unsafe = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    clipped = np.clip(unsafe, 1e-7, 1 - 1e-7)
    assert cross_entropy(unsafe, truth).mean() == pytest.approx(
        log_loss(truth, clipped, labels=[False, True]), rel=1e-6, abs=1e-6
    )
    sure = confidence(unsafe)
    assert ((sure >= 0.5) & (sure <= 1)).all()


def test_every_row_is_counted_once():
    predictions = synthetic_predictions(rows=200)
    strange = replace(predictions.rows[0], id="x", violates=frozenset(), unknown=frozenset({"three"}))
    predictions = Predictions(predictions.about, (*predictions.rows, strange))
    found = describe_confidence([predictions])["classifiers"]["noisy"]
    assert found["reference"] == "real"
    for source in ("real", "generated"):
        parts = found["sources"][source]
        judged = sum(r.source == source for r in predictions.rows)
        judged -= found["unjudged"][source] + found["unknown"][source]
        assert parts["all"]["loss"]["rows"] == judged
        assert parts["right"]["loss"]["rows"] + parts["wrong"]["loss"]["rows"] == judged
        assert sum(parts["all"]["confidence"]["counts"]) == judged
        # Errors lose more than right verdicts.
        assert parts["wrong"]["loss"]["quantiles"][0] > parts["right"]["loss"]["quantiles"][-1]
    assert sum(found["unjudged"].values()) == sum(math.isnan(r.unsafe) for r in predictions.rows)
    assert found["unknown"] in ({"real": 1, "generated": 0}, {"real": 0, "generated": 1})


def test_a_source_that_is_judged_with_less_confidence_is_found():
    rows = [
        row(p, ["three"] if p > 0.5 else [], source=source)
        for source, low in (("real", 0.02), ("generated", 0.3))
        for p in np.concatenate([np.linspace(low, low + 0.1, 20), np.linspace(0.9 - low, 1 - low, 20)])
    ]
    rows = tuple(replace(one, id=str(number)) for number, one in enumerate(rows))
    predictions = Predictions(synthetic_predictions().about, rows)
    found = describe_confidence([predictions])["classifiers"]["noisy"]["against_reference"]["generated"]
    assert found["confidence"]["cliffs_delta"] < -0.9
    assert found["loss"]["cliffs_delta"] > 0.9


def test_no_rows_and_only_unjudged_rows():
    about = synthetic_predictions().about
    empty = describe_confidence([Predictions(about, ())])["classifiers"]["noisy"]
    assert empty["reference"] is None
    assert empty["sources"] == {}
    found = describe_confidence([Predictions(about, (row(math.nan, ["three"]),))])
    parts = found["classifiers"]["noisy"]["sources"]["real"]
    assert parts["all"]["confidence"]["quantiles"] is None
    assert json.loads(json.dumps(found, allow_nan=False)) == found
