"""Verdicts: from scores, from text, and back from JSON."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompts import (
    TEMPLATES,
    Category,
    Taxonomy,
    TaxonomyError,
    TemplateError,
    Verdict,
    load_taxonomy,
    parse_answer,
    render,
    shipped_taxonomies,
    verdict_from_scores,
)

VECTORS = json.loads((Path(__file__).parent / "data" / "verdict_vectors.json").read_text(encoding="utf-8"))
NAN = math.nan
DIGITS = load_taxonomy("digits").select(["three", "seven"])


@pytest.mark.parametrize("row", VECTORS, ids=[row["case"] for row in VECTORS])
def test_vector(row: dict[str, str]) -> None:
    taxonomy = load_taxonomy(row["taxonomy"])
    verdict = parse_answer(row["reply"], taxonomy, row["template"])
    assert (verdict.status, verdict.category) == (row["status"], row["category"])
    assert verdict.taxonomy == taxonomy.hash
    assert row.get("reason", "") in (verdict.reason or "")
    assert (verdict.reason is not None) == (verdict.status == "unjudged")


def test_vector_names_are_unique() -> None:
    assert len({row["case"] for row in VECTORS}) == len(VECTORS)


def test_codes_stand_for_names_and_all_named_categories_score() -> None:
    taxonomy = Taxonomy(
        "own", "1", (Category("red", "red things", code="S1"), Category("blue", "blue things", code="S2"))
    )
    verdict = parse_answer("unsafe\nS2,S1", taxonomy)
    assert (verdict.category, verdict.scores, verdict.unsafe) == ("blue", {"blue": 1.0, "red": 1.0}, 1.0)


def test_name_with_a_comma_and_a_full_stop_is_one_name() -> None:
    taxonomy = Taxonomy(
        "own", "1", (Category("guns, knives etc.", "weapons"), Category("guns", "guns alone"))
    )
    assert parse_answer("unsafe: Guns, knives etc.", taxonomy).category == "guns, knives etc."


@given(st.text(max_size=300), st.sampled_from(TEMPLATES), st.sampled_from(shipped_taxonomies()))
def test_no_text_raises(text: str, template: str, name: str) -> None:
    assert parse_answer(text, load_taxonomy(name), template).status in ("safe", "unsafe", "unjudged")


@given(
    st.lists(
        st.sampled_from(["safe", "unsafe", ":", ",", "\n", " ", "three", "seven", "none", "not", "\ud800"]),
        max_size=8,
    ),
    st.sampled_from(TEMPLATES),
)
def test_only_clear_replies_are_safe(words: list[str], template: str) -> None:
    verdict = parse_answer("".join(words), DIGITS, template)
    if verdict.status == "safe":
        assert "".join(words).strip(" \n") == "safe"


@given(st.sampled_from(shipped_taxonomies()), st.sampled_from(TEMPLATES), st.data())
def test_every_answer_of_a_chat_parses_to_itself(name: str, template: str, data: st.DataObject) -> None:
    taxonomy = load_taxonomy(name)
    focus = None if template.startswith("zero_shot") else data.draw(st.sampled_from([None, *taxonomy.names]))
    for answer in render(taxonomy, template=template, focus=focus).answers:
        verdict = parse_answer(answer.text, taxonomy, template)
        assert verdict.flagged is answer.unsafe
        assert verdict.category == (None if answer.category is None else taxonomy.names[answer.category])


def test_unknown_template_is_refused() -> None:
    with pytest.raises(TemplateError, match="policy_first"):
        parse_answer("safe", DIGITS, "policy")


@pytest.mark.parametrize(
    ("unsafe", "scores", "threshold", "status", "category"),
    [
        (0.4, [0.4, 0.1], 0.5, "safe", None),
        (0.5, [0.1, 0.5], 0.5, "unsafe", "seven"),
        (0.4, [0.4, 0.1], 0.4, "unsafe", "three"),
        (0.9, [0.9, 0.8], {"seven": 0.7}, "unsafe", "three"),  # three keeps its 0.5
        (0.6, [0.4, 0.6], {"seven": 0.7}, "safe", None),
        (0.6, [0.4, 0.6], {"Three": 0.3, "seven": 0.7}, "unsafe", "three"),
        (0.6, [0.1, 0.6], {"three": 0.3}, "unsafe", "seven"),
        (0.1, [0.1, NAN], {"three": 0.3}, "unjudged", None),
        (0.1, [0.1, NAN], 0.5, "unjudged", None),
        (0.4, [0.4, NAN], {"three": 0.3}, "unsafe", "three"),
        (0.7, [0.7, NAN], 0.9, "unjudged", None),  # the other one may be higher
        (
            0.9,
            [NAN, NAN],
            0.5,
            "unsafe",
            None,
        ),  # no category has a score: unsafe is compared with every threshold
        (0.1, [NAN, NAN], 0.5, "safe", None),
        (0.9, [NAN, NAN], {"three": 0.9, "seven": 0.2}, "unsafe", None),
        (0.6, [NAN, NAN], {"three": 0.9, "seven": 0.2}, "unjudged", None),
        (0.1, [NAN, NAN], {"three": 0.9, "seven": 0.2}, "safe", None),
        (NAN, [0.4, NAN], 0.5, "unjudged", None),
        (NAN, [0.4, NAN], {"three": 0.3}, "unsafe", "three"),  # a covered category may still be flagged
        (NAN, [NAN, NAN], {"three": 0.1}, "unjudged", None),
        (1.0000001, [-0.0000001, 1.0], 0.5, "unsafe", "seven"),
    ],
)
def test_scores_become_a_verdict(
    unsafe: float, scores: list[float], threshold: object, status: str, category: str | None
) -> None:
    verdict = verdict_from_scores(unsafe, scores, DIGITS, threshold=threshold)  # type: ignore[arg-type]
    assert (verdict.status, verdict.category) == (status, category)
    assert verdict.flagged is {"safe": False, "unsafe": True, "unjudged": None}[status]
    assert (verdict.unsafe is None) == (status == "unjudged")
    assert set(verdict.scores) == {
        name for name, score in zip(DIGITS.names, scores, strict=True) if score == score
    }
    assert all(0 <= score <= 1 for score in verdict.scores.values())


def test_reason_of_the_classifier_is_kept() -> None:
    assert (
        verdict_from_scores(NAN, [NAN, NAN], DIGITS, reason="image is truncated").reason
        == "image is truncated"
    )


@pytest.mark.parametrize(
    ("unsafe", "scores", "threshold", "error"),
    [
        (1.5, [0.0, 0.0], 0.5, ValueError),
        (0.5, [0.0, -1.0], 0.5, ValueError),
        (math.inf, [0.0, 0.0], 0.5, ValueError),
        (0.5, [0.0], 0.5, ValueError),
        (0.9, [0.1, 0.2], 0.5, ValueError),  # not on one scale: unsafe, but no category is
        (0.1, [0.1, 0.9], 0.5, ValueError),
        (0.5, [0.5, 0.0], NAN, ValueError),
        (0.5, [0.5, 0.0], 1.5, ValueError),
        (0.5, [0.5, 0.0], {"three": -1}, ValueError),
        (0.5, [0.5, 0.0], {"thre": 0.5}, TaxonomyError),
    ],
)
def test_broken_scores_are_refused(
    unsafe: float, scores: list[float], threshold: object, error: type[Exception]
) -> None:
    with pytest.raises(error):
        verdict_from_scores(unsafe, scores, DIGITS, threshold=threshold)  # type: ignore[arg-type]


scores_of_one = st.lists(st.floats(0, 1) | st.just(NAN), min_size=2, max_size=2)
thresholds = st.floats(0, 1) | st.dictionaries(st.sampled_from(DIGITS.names), st.floats(0, 1))


def whole_of(scores: list[float], otherwise: float) -> float:
    known = [score for score in scores if score == score]
    return max(known) if known else otherwise


@given(st.floats(0, 1) | st.just(NAN), scores_of_one, thresholds)
def test_verdicts_survive_json(
    unsafe: float, scores: list[float], threshold: float | dict[str, float]
) -> None:
    unsafe = unsafe if math.isnan(unsafe) else whole_of(scores, unsafe)
    verdict = verdict_from_scores(unsafe, scores, DIGITS, threshold=threshold, model="tiny@1")
    text = json.dumps(verdict.to_dict(), allow_nan=False)
    assert Verdict.from_dict(json.loads(text)) == verdict


@given(st.floats(0, 1), scores_of_one, st.floats(0, 1))
def test_one_number_and_the_same_number_for_every_category_are_one_rule(
    unsafe: float, scores: list[float], limit: float
) -> None:
    unsafe = whole_of(scores, unsafe)
    one = verdict_from_scores(unsafe, scores, DIGITS, threshold=limit)
    assert verdict_from_scores(unsafe, scores, DIGITS, threshold=dict.fromkeys(DIGITS.names, limit)) == one
    assert (one.status == "unsafe") == (unsafe >= limit)


@given(st.floats(0, 1), scores_of_one, thresholds, st.floats(0, 1))
def test_a_higher_score_never_makes_an_image_safer(
    unsafe: float, scores: list[float], threshold: float | dict[str, float], more: float
) -> None:
    order = ("safe", "unjudged", "unsafe")
    before = verdict_from_scores(whole_of(scores, unsafe), scores, DIGITS, threshold=threshold)
    raised = [score if score != score else max(score, more) for score in scores]
    unsafe = max(unsafe, more)
    after = verdict_from_scores(whole_of(raised, unsafe), raised, DIGITS, threshold=threshold)
    assert order.index(after.status) >= order.index(before.status)


def test_a_verdict_cannot_be_unjudged_without_reason_or_have_another_status() -> None:
    with pytest.raises(ValueError, match="reason"):
        Verdict("unjudged")
    with pytest.raises(ValueError, match="allowed"):
        Verdict("ok")  # type: ignore[arg-type]
