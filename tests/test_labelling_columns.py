"""Verdicts of a whole block by arithmetic on columns are those of `arbiter judge`, row by row."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from judge.errors import ImageError
from judge.labelling.columns import label_block
from judge.labelling.rows import Opened
from judge.labelling.writer import verdict_type
from judge.protocol import Scores, on_one_scale, rows_of
from judge.verdicts.from_scores import verdicts_from_scores
from judge.verdicts.rows import Judging
from prompts.taxonomy import Taxonomy

TAXONOMY = Taxonomy.from_dict(
    {
        "name": "some",
        "version": "1",
        "categories": [{"name": name, "definition": f"about {name}"} for name in "ABC"],
    },
    "test",
)
probabilities = st.one_of(st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]), st.floats(0, 1), st.just(float("nan")))
thresholds = st.one_of(
    st.sampled_from([0.5, 0.3, 0.9]),
    st.dictionaries(st.sampled_from("ABC"), st.sampled_from([0.3, 0.5, 0.7])),
)
texts = st.one_of(st.none(), st.sampled_from(["why", "because"]))


@st.composite
def blocks(draw):
    """Rows of one view, or none with a problem, and the scores of the views."""
    rows = [
        Opened(f"{number}", "a.tar", views=1)
        if draw(st.booleans())
        else Opened(f"{number}", "a.tar", problem=ImageError("truncated", "half of it"))
        for number in range(draw(st.integers(0, 6)))
    ]
    views = sum(row.views for row in rows)
    scores = Scores(
        np.array([draw(probabilities) for _ in range(views)]),
        np.array([[draw(probabilities) for _ in "ABC"] for _ in range(views)]).reshape(views, 3),
        tuple(draw(texts) for _ in range(views)),
        decided_by=draw(st.sampled_from([None, ("student",) * views])),
        because=draw(st.sampled_from([None, ("so",) * views])),
        notes=draw(st.sampled_from([None, (None,) * views, ("mind",) * views])),
    )
    return rows, scores


@given(blocks(), thresholds)
def test_columns_say_what_single_verdicts_say(block, threshold):
    rows, scores = block
    judging = Judging(TAXONOMY, threshold, "model")
    labels = label_block(rows, scores if len(scores.unsafe) else None, judging)
    assert labels.verdicts.type == verdict_type(TAXONOMY)
    labels.verdicts.validate(full=True)
    view = 0
    for number, (row, found) in enumerate(zip(rows, labels.verdicts.to_pylist(), strict=True)):
        if row.problem is not None:
            assert found["status"] == "unjudged"
            assert found["reason"] == str(row.problem)
            assert set(found["scores"].values()) == {None}
            assert number not in labels.problems
            continue
        [expected] = verdicts_from_scores(
            on_one_scale(rows_of(scores, view, view + 1)), TAXONOMY, threshold=threshold, model="model"
        )
        view += 1
        given_scores = {name: score for name, score in found["scores"].items() if score is not None}
        assert found["status"] == expected.status
        assert found["flagged"] == expected.flagged
        for name in ("category", "decided_by", "because", "reason", "note"):
            assert found[name] == getattr(expected, name), name
        assert (number in labels.problems) == (expected.status == "unjudged")
        if expected.status == "unjudged":
            assert not given_scores
            assert found["unsafe"] is None
            assert labels.problems[number] == ("model_error", expected.reason)
        else:
            assert given_scores == expected.scores
            assert found["unsafe"] == expected.unsafe


def frames(**changes):
    return {"numbers": [0, 5], "total": 9, "unrepresented": 0, "grounds": ["", ""]} | changes


def both(first, second):
    return Scores(np.array([first, second]), np.array([[first, 0, 0], [0, second, 0]]), (None, None))


def test_the_worst_view_decides():
    rows = [Opened("a", "a", views=2, frames=frames())]
    [row] = label_block(rows, both(0.2, 0.9), Judging(TAXONOMY)).verdicts.to_pylist()
    assert (row["status"], row["category"], row["frame"]) == (
        "unsafe",
        "B",
        "frame 6 of 9, the worst of 2 judged",
    )


def test_frames_like_no_judged_one_are_not_safe():
    rows = [Opened("a", "a", views=2, frames=frames(unrepresented=3))]
    labels = label_block(rows, both(0.2, 0.1), Judging(TAXONOMY))
    [row] = labels.verdicts.to_pylist()
    assert row["status"] == "unjudged"
    assert labels.problems[0] == ("unsupported", row["reason"])
    # A view that the model could not judge is the model's failure.
    assert label_block(rows, both(0.2, np.nan), Judging(TAXONOMY)).problems[0][0] == "model_error"


def test_a_block_without_any_image():
    rows = [Opened("a", "a", problem=ImageError("timeout", "slow"))] * 2
    found = label_block(rows, None, Judging(TAXONOMY)).verdicts
    assert isinstance(found, pa.StructArray)
    assert {row["status"] for row in found.to_pylist()} == {"unjudged"}
