"""Scores and frames -> verdicts: what `arbiter judge` prints, without files and without a classifier."""

import numpy as np
import pytest

from judge.data.frames import Frames
from judge.protocol import Scores
from judge.verdicts.from_scores import unjudged, verdict_of_frames, verdicts_from_scores
from prompts import Category, Taxonomy, TaxonomyError, Verdict

COLOURS = Taxonomy("colours", "1", (Category("red", "anything red"), Category("green", "anything green")))
NAN = float("nan")


def scores(unsafe, categories, reasons=None, **more):
    return Scores(np.array(unsafe), np.array(categories), reasons or (None,) * len(unsafe), **more)


def frames(count, total, unrepresented=0):
    return Frames([], list(range(0, 2 * count, 2)), total, unrepresented)


def test_each_image_gets_the_verdict_of_its_own_row():
    found = scores(
        [0.9, 0.2, NAN],
        [[0.9, 0.1], [0.0, 0.2], [NAN, NAN]],
        (None, None, "too blue"),
        decided_by=("filter", "judge", "door"),
        because=("sure", "asked", "unreadable"),
    )
    verdicts = verdicts_from_scores(found, COLOURS, threshold=0.5, model="m")
    assert [verdict.status for verdict in verdicts] == ["unsafe", "safe", "unjudged"]
    assert [verdict.category for verdict in verdicts] == ["red", None, None]
    assert [verdict.reason for verdict in verdicts] == [None, None, "too blue"]
    assert [verdict.decided_by for verdict in verdicts] == ["filter", "judge", "door"]
    assert [verdict.because for verdict in verdicts] == ["sure", "asked", "unreadable"]
    assert {(verdict.model, verdict.taxonomy) for verdict in verdicts} == {("m", COLOURS.hash)}
    assert verdicts_from_scores(scores([], np.zeros((0, 2))), COLOURS, threshold=0.5, model="m") == []


def test_scores_that_are_not_on_one_scale_are_brought_there():
    """Else the whole, which no category reaches, would be lost or refused."""
    [verdict] = verdicts_from_scores(scores([0.8], [[0.2, 0.1]]), COLOURS, threshold=0.5, model="m")
    assert (verdict.status, verdict.category, verdict.unsafe) == ("unsafe", "red", 0.8)
    assert verdict.scores == pytest.approx({"red": 0.8, "green": 0.4})


def test_thresholds_are_per_category():
    found = scores([0.6, 0.6], [[0.6, 0.1], [0.1, 0.6]])
    verdicts = verdicts_from_scores(found, COLOURS, threshold={"green": 0.7}, model="m")
    assert [verdict.status for verdict in verdicts] == ["unsafe", "safe"]
    with pytest.raises(TaxonomyError, match="blue"):
        verdicts_from_scores(found, COLOURS, threshold={"blue": 0.7}, model="m")


def test_a_flagged_image_keeps_the_reason_why_a_part_was_not_judged():
    found = scores([0.9], [[0.9, NAN]], ("green is not covered",))
    [verdict] = verdicts_from_scores(found, COLOURS, threshold=0.5, model="m")
    assert (verdict.status, verdict.reason) == ("unsafe", "green is not covered")


def test_what_was_never_scored_is_unjudged():
    verdict = unjudged("missing: no such file", COLOURS, "m")
    assert (verdict.flagged, verdict.reason) == (None, "missing: no such file")
    assert (verdict.model, verdict.taxonomy) == ("m", COLOURS.hash)


def test_one_frame_has_its_own_verdict():
    verdict = Verdict("safe", 0.1)
    assert verdict_of_frames(frames(1, 1), [verdict]) == (verdict, "")


@pytest.mark.parametrize(
    ("verdicts", "status", "because", "place"),
    [
        (
            [Verdict("safe", 0.1), Verdict("unsafe", 0.8), Verdict("unsafe", 0.9), Verdict("safe", 0.2)],
            "unsafe",
            "frame 5 of 8, the worst of 4 judged",
            "frame 5 of 8, the worst of 4 judged",
        ),
        (
            [Verdict("safe", 0.3, because="sure"), Verdict("safe", 0.1)],
            "safe",
            "frame 1 of 8, the worst of 2 judged: sure",
            "frame 1 of 8, the worst of 2 judged",
        ),
        (  # a flagged frame outweighs one that could not be judged
            [Verdict("unjudged", reason="too blue"), Verdict("unsafe", 0.5)],
            "unsafe",
            "frame 3 of 8, the worst of 2 judged",
            "frame 3 of 8, the worst of 2 judged",
        ),
        ([Verdict("safe", 0.4), Verdict("unjudged", reason="too blue")], "unjudged", None, ""),
    ],
)
def test_the_worst_frame_decides(verdicts, status, because, place):
    verdict, frame = verdict_of_frames(frames(len(verdicts), 8), verdicts)
    assert (verdict.status, verdict.because, frame) == (status, because, place)
    assert verdict.reason == ("frame 3 of 8: too blue" if status == "unjudged" else None)


def test_safe_frames_say_nothing_of_frames_that_resemble_none_of_them():
    verdicts = [Verdict("safe", 0.1), Verdict("safe", 0.2)]
    verdict, frame = verdict_of_frames(frames(2, 8, unrepresented=3), verdicts)
    assert (verdict.status, verdict.unsafe, frame) == ("unjudged", None, "")
    assert verdict.reason == "3 of 8 frames resemble none of the 2 that were judged safe"
    flagged = [Verdict("safe", 0.1), Verdict("unsafe", 0.9)]
    assert verdict_of_frames(frames(2, 8, unrepresented=3), flagged)[0].status == "unsafe"
