"""Edge cases of verdicts: scores equal to their threshold, scores from text, defaults and error messages."""

import pytest

from prompts import Verdict, load_taxonomy, parse_answer, verdict_from_scores

DIGITS = load_taxonomy("digits").select(["three", "seven"])


def test_a_score_on_its_own_threshold_flags_and_one_below_does_not() -> None:
    for score, status in ((0.7, "unsafe"), (0.69, "safe")):
        verdict = verdict_from_scores(score, [score, 0.1], DIGITS, threshold={"three": 0.7})
        assert (verdict.status, verdict.unsafe) == (status, score)


def test_scores_from_text_are_0_or_1() -> None:
    safe = parse_answer("safe", DIGITS)
    assert (safe.unsafe, safe.scores, safe.category) == (0.0, {"three": 0.0, "seven": 0.0}, None)
    named = parse_answer("unsafe: seven", DIGITS)
    assert (named.unsafe, named.scores, named.category) == (1.0, {"seven": 1.0}, "seven")
    bare = parse_answer("unsafe", DIGITS)
    assert (bare.unsafe, bare.scores, bare.category) == (1.0, {}, None)


def test_defaults_of_a_verdict() -> None:
    verdict = Verdict("safe")
    assert (verdict.unsafe, verdict.scores, verdict.category) == (None, {}, None)
    assert (verdict.decided_by, verdict.model, verdict.taxonomy) == ("judge", "", "")
    assert (verdict.reason, verdict.because) == (None, None)


@pytest.mark.parametrize(
    ("unsafe", "scores", "message"),
    [
        (1.5, [0.5, 0.5], r"Expected a number from 0 to 1, or NaN, for the unsafe score, got 1\.5"),
        (0.5, [0.5, -1.0], r"Expected a number from 0 to 1, or NaN, for the score of 'seven', got -1\.0"),
        (0.5, [0.5], "Got 1 category scores for 2 categories"),
    ],
)
def test_errors_name_the_score(unsafe: float, scores: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        verdict_from_scores(unsafe, scores, DIGITS)
