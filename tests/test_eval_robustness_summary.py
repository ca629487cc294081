"""eval/robustness/trials.py and summary.py: numbers from trials, counted by hand."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adversarial.errors import AttackError
from adversarial.pixels.pgd import PGD
from adversarial.threat import ThreatModel
from eval.robustness.suites import Suite
from eval.robustness.summary import compare, summarise_draws, summarise_trials
from eval.robustness.trials import Row, Trial, VictimResults


def trial(id_, epsilon, success=True, attack="pgd", steps=3, **more):
    return Trial(
        id_, attack, epsilon, 1.0, -1.0 if success else 1.0, steps, success, {"8bit": success}, 1.0, **more
    )


def row(id_, clean=0.9, truth=True):
    return Row(id_, truth, "real", (), clean)


def test_unjudged_after_an_attack_is_neither_broken_nor_robust():
    results = VictimResults("x", [row("a"), row("b")], [trial("a", 0.01, success=False, unjudged=True)])
    assert results.broken(0.01).tolist() == [False, False]
    assert results.robust(0.01).tolist() == [False, True]


def test_a_victim_is_compared_on_the_same_rows_only():
    one = VictimResults("one", [row(str(n)) for n in range(40)], [trial(str(n), 0.01) for n in range(30)])
    two = VictimResults("two", [row(str(n)) for n in range(40)], [trial("0", 0.01)])
    found = compare(one, two, 0.01)
    assert found["lead"] == pytest.approx(29 / 40)
    assert (found["only_first"], found["only_second"]) == (0, 29)
    assert found["interval"][0] > 0.5 > 0.05 > found["p_value"]
    with pytest.raises(AttackError, match="different rows"):
        compare(one, VictimResults("three", [row("z")]), 0.01)


def test_draws_give_mean_and_deviation():
    rows = [row("a"), row("b"), row("wrong", clean=0.1)]
    found = summarise_draws([VictimResults("x", rows), VictimResults("x", rows, [trial("a", 0.01)])], 0.01)
    assert found["draws"] == [1.0, 0.5]
    assert found["mean"] == 0.75
    assert found["deviation"] == pytest.approx(math.sqrt(0.125))


def test_one_rule_for_rows_that_nobody_can_judge_after_an_attack():
    suite = Suite("x", ThreatModel(0.01), (0.01,), (PGD(steps=5),), (PGD(steps=5),))
    rows = [row("a"), row("b"), row("c"), row("d")]
    trials = [
        trial("a", 0.01, success=False, unjudged=True),
        trial("b", 0.01, success=False),
        trial("c", 0.01),
        trial("d", 0.01, success=False),
    ]
    found = summarise_trials(VictimResults("x", rows, trials), suite)
    alone = found["by_attack"]["pgd"]
    assert found["robust_accuracy"] == alone["robust_accuracy"] == alone["of_correct"] == alone["raw"] == 0.5
    assert list(found["by_steps"]["pgd"].values())[-1] == 0.5
    assert found["by_epsilon"]["2.55/255"]["unjudged"] == 1


@settings(max_examples=25)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=8))
def test_one_attack_alone_and_the_worst_of_one_attack_are_the_same(outcomes):
    suite = Suite("x", ThreatModel(0.01), (0.01,), (PGD(steps=5),), (PGD(steps=5),))
    rows = [row(str(n), clean=0.9 if right else 0.1) for n, (right, _, _) in enumerate(outcomes)]
    trials = [
        trial(str(n), 0.01, success=success and not unjudged, unjudged=unjudged)
        for n, (right, success, unjudged) in enumerate(outcomes)
        if right
    ]
    found = summarise_trials(VictimResults("x", rows, trials), suite)
    assert found["by_attack"]["pgd"]["robust_accuracy"] == found["robust_accuracy"]


def test_intervals_of_attacks_take_rows_of_one_image_together():
    suite = Suite("x", ThreatModel(0.01), (0.01,), (PGD(steps=5),), (PGD(steps=5),))
    trials = [trial(str(n), 0.01) for n in range(8)]

    def width(images):
        rows = [Row(str(n), True, "real", (), 0.9, image) for n, image in zip(range(40), images, strict=True)]
        low, high = summarise_trials(VictimResults("x", rows, trials), suite)["interval"]
        return high - low

    alone, by_image = width([str(n) for n in range(40)]), width([str(n // 4) for n in range(40)])
    assert by_image > 1.5 * alone
