"""What a moderator may say of a verdict, and what other thresholds would make of it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judge.records.entries import Item, StoredVerdict
from judge.records.errors import DecisionError
from judge.records.ruling import check_ruling
from judge.records.what_if import status_under, what_if
from prompts.errors import TaxonomyError

NAN = math.nan
CANNABIS = "Cannabis; leaves"


@pytest.mark.parametrize(
    ("scores", "words", "expected"),
    [
        ([0.9, 0.1, 0.7], {"action": "agree"}, ("unsafe", ("Knives", "Gore"))),
        ([0.1, 0.1, 0.2], {"action": "agree"}, ("safe", ())),
        ([0.9, 0.1, 0.7], {"action": "agree", "status": "unsafe"}, ("unsafe", ("Knives", "Gore"))),
        ([0.9, 0.1, 0.7], {"action": "agree", "categories": ["gore", "KNIVES"]}, ("unsafe", ("Knives", "Gore"))),
        ([0.9, 0.1, 0.7], {"action": "overrule", "status": "safe"}, ("safe", ())),
        ([0.9, 0.1, 0.7], {"action": "overrule", "status": "safe", "categories": []}, ("safe", ())),
        ([0.9, 0.1, 0.7], {"action": "overrule", "status": "unsafe", "categories": ["gore"]}, ("unsafe", ("Gore",))),
        ([0.9, 0.1, 0.7], {"action": "overrule", "status": "unsafe", "categories": []}, ("unsafe", ())),
        ([0.1, 0.1, 0.2], {"action": "overrule", "status": "unsafe", "categories": [CANNABIS]}, ("unsafe", (CANNABIS,))),
        ([NAN, NAN, NAN], {"action": "overrule", "status": "safe"}, ("safe", ())),
        ([NAN, NAN, NAN], {"action": "overrule", "status": "unsafe", "categories": []}, ("unsafe", ())),
        ([NAN, NAN, NAN], {"action": "skip"}, (None, ())),
        ([0.9, 0.1, 0.7], {"action": "skip"}, (None, ())),
    ],
)  # fmt: skip
def test_rulings(make_row, own_taxonomy, scores, words, expected):
    ruling = check_ruling(make_row(scores), own_taxonomy, **words)
    assert ruling.action == words["action"]
    assert (ruling.status, ruling.categories) == expected


@pytest.mark.parametrize(
    ("scores", "words", "reason"),
    [
        ([NAN, NAN, NAN], {"action": "agree"}, "was not judged"),
        ([0.1, NAN, 0.1], {"action": "agree", "status": "safe"}, "was not judged"),
        ([0.9, 0.1, 0.7], {"action": "agree", "status": "safe"}, "not what the verdict says"),
        ([0.9, 0.1, 0.7], {"action": "agree", "categories": ["Gore"]}, "not what the verdict says"),
        ([0.9, 0.1, 0.7], {"action": "agree", "categories": []}, "not what the verdict says"),
        ([0.9, 0.1, 0.7], {"action": "overrule"}, "say status"),
        ([0.9, 0.1, 0.7], {"action": "overrule", "categories": ["Gore"]}, "say status"),
        ([0.1, 0.1, 0.1], {"action": "overrule", "status": "unsafe"}, "which categories"),
        ([0.9, 0.1, 0.7], {"action": "overrule", "status": "safe", "categories": ["Gore"]}, "violates nothing"),
        ([0.9, 0.1, 0.7], {"action": "overrule", "status": "unjudged"}, "not 'unjudged'"),
        ([0.1, 0.1, 0.1], {"action": "overrule", "status": "safe"}, "agree with it"),
        ([0.9, 0.1, 0.7], {"action": "overrule", "status": "unsafe", "categories": ["Gore", "knives"]}, "agree with it"),
        ([0.9, 0.1, 0.7], {"action": "skip", "status": "safe"}, "says nothing"),
        ([0.9, 0.1, 0.7], {"action": "skip", "categories": ["Gore"]}, "says nothing"),
        ([0.9, 0.1, 0.7], {"action": "Agree"}, "allowed: agree, overrule, skip"),
    ],
)  # fmt: skip
def test_what_is_no_ruling(make_row, own_taxonomy, scores, words, reason):
    with pytest.raises(DecisionError, match=reason):
        check_ruling(make_row(scores), own_taxonomy, **words)


def test_a_ruling_names_categories_of_the_taxonomy(make_row, own_taxonomy):
    with pytest.raises(TaxonomyError, match="did you mean 'Gore'"):
        check_ruling(make_row([0.1, 0.1, 0.1]), own_taxonomy, "overrule", "unsafe", ["Gorre"])


def stored(row, number=1):
    item = Item(number, f"{number}.png", "0" * 64, None, "open", "")
    return StoredVerdict(number + 100, item, row, row["taxonomy"]["hash"], "")


def test_what_if_says_what_changes(make_row, own_taxonomy):
    rows = [make_row(s) for s in ([0.9, 0.1, 0.6], [0.55, 0.1, 0.2], [0.1, 0.2, 0.3], [NAN, NAN, NAN])]
    verdicts = [stored(row, number) for number, row in enumerate(rows, 1)]
    assert what_if(verdicts, own_taxonomy, 0.7).to_dict() == {
        "verdicts": 4,
        "flagged_before": 2,
        "flagged_after": 1,
        "changed": [{"verdict_id": 102, "item_id": 2, "name": "2.png", "from": "unsafe", "to": "safe"}],
    }
    lower = what_if(verdicts, own_taxonomy, {"gore": 0.25})
    assert (lower.flagged_before, lower.flagged_after) == (2, 3)
    assert [(c.verdict.item.id, c.before, c.after) for c in lower.changed] == [(3, "safe", "unsafe")]
    assert what_if(verdicts, own_taxonomy, 0.5).changed == ()
    with pytest.raises(ValueError, match="from 0 to 1"):
        what_if([], own_taxonomy, 1.5)
    with pytest.raises(TaxonomyError, match="no category 'blood'"):
        what_if([], own_taxonomy, {"blood": 0.5})


PROBABILITY = st.floats(0, 1) | st.just(NAN)
THRESHOLDS = st.tuples(*[st.floats(0, 1)] * 3)


@given(scores=st.lists(PROBABILITY, min_size=3, max_size=3), before=THRESHOLDS, after=THRESHOLDS)
def test_what_if_is_what_judging_again_would_say(make_row, own_taxonomy, scores, before, after):
    """Of an image of one frame whose categories were scored, whatever the thresholds were."""
    old, new = (dict(zip(own_taxonomy.names, limits, strict=True)) for limits in (before, after))
    row = make_row(scores, threshold=old)
    assert status_under(row, own_taxonomy, new) in (make_row(scores, threshold=new)["status"], "unjudged")
    if not any(map(math.isnan, scores)):
        assert status_under(row, own_taxonomy, new) == make_row(scores, threshold=new)["status"]


@given(
    frames=st.lists(st.tuples(*[st.floats(0, 1)] * 3), min_size=2, max_size=4),
    before=THRESHOLDS,
    after=THRESHOLDS,
)
def test_an_animation_is_never_called_safe_on_the_strength_of_one_frame(
    make_row, own_taxonomy, frames, before, after
):
    from judge.verdicts.from_scores import worst_frame
    from prompts.verdict import verdict_from_scores

    old, new = (dict(zip(own_taxonomy.names, limits, strict=True)) for limits in (before, after))

    def judged(limits):
        return [verdict_from_scores(max(f), f, own_taxonomy, threshold=limits) for f in frames]

    worst = worst_frame(judged(old))
    row = make_row(frames[worst], threshold=old, frame=f"frame {worst + 1} of {len(frames)}")
    told = status_under(row, own_taxonomy, new)
    again = judged(new)[worst_frame(judged(new))].status
    assert told in (again, "unjudged"), "what is told of an animation is true, or that it is not known"


def test_an_animation_under_one_threshold_is_known(make_row, own_taxonomy):
    row = make_row([0.9, 0.1, 0.7], frame="frame 2 of 3")
    assert status_under(row, own_taxonomy, dict.fromkeys(own_taxonomy.names, 0.95)) == "safe"
    assert (
        status_under(row, own_taxonomy, {**dict.fromkeys(own_taxonomy.names, 0.95), "Gore": 0.8})
        == "unjudged"
    )


def test_a_verdict_without_scores_of_categories(make_row, own_taxonomy):
    row = make_row([NAN, NAN, NAN], unsafe=0.7)
    assert row["status"] == "unsafe"
    for limits, status in (
        ((0.8, 0.8, 0.8), "safe"),
        ((0.6, 0.6, 0.6), "unsafe"),
        ((0.6, 0.8, 0.6), "unjudged"),
    ):
        assert status_under(row, own_taxonomy, dict(zip(own_taxonomy.names, limits, strict=True))) == status
