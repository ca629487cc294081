"""eval/robustness/suites.py: presets, what they refuse, and how they describe themselves."""

import pytest

from adversarial.errors import AttackError
from adversarial.pixels.apgd import APGD
from adversarial.pixels.pgd import FGSM, PGD
from adversarial.threat import ThreatModel
from eval.robustness.suites import GRID, Suite, queries_only, strong, unsafebench


def test_presets():
    full = strong()
    assert full.epsilons == GRID
    assert {type(attack).__name__ for attack in full.attacks} == {"FGSM", "PGD", "APGD", "FAB", "Square"}
    assert full.attacks_at(2 / 255) == full.attacks
    assert set(full.attacks_at(8 / 255)) == set(full.attacks)
    assert len(full.attacks_at(0.5 / 255)) == 1  # nothing of it can be stored
    assert len({attack.name for attack in full.attacks}) == len(full.attacks)
    assert strong(everywhere=False).attacks_at(8 / 255) == (APGD(steps=100, restarts=5),)
    assert full.weak is None
    assert all(not attack.needs_gradients for attack in queries_only(full).attacks)
    assert queries_only(full).weak


def test_the_papers_protocol_is_labelled_weak_and_steps_over_its_budget():
    paper = unsafebench()
    assert "WEAK" in paper.describe()["about"]
    assert paper.epsilons[0] * 255 < 1
    (pgd,) = [attack for attack in paper.attacks if isinstance(attack, PGD)]
    assert pgd.step == pytest.approx(10 / 3)
    assert pgd.last_iterate


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"epsilons": ()}, "at least"),
        ({"attacks": ()}, "at least"),
        ({"epsilons": (0.5, 0.1)}, "ascending"),
        ({"epsilons": (0.5,)}, "not among the budgets"),
    ],
)
def test_a_suite_that_cannot_be_is_refused(change, says):
    given = {"epsilons": (0.1,), "attacks": (FGSM(),), **change}
    with pytest.raises(AttackError, match=says):
        Suite("x", ThreatModel(0.1), grid=(FGSM(),), **given)
    with pytest.raises(AttackError, match="needs gradients"):
        queries_only(Suite("x", ThreatModel(0.1), (0.1,), (FGSM(),), (FGSM(),)))


def test_an_attacker_who_only_asks_is_recorded_as_one():
    asking = queries_only(strong())
    assert asking.threat.knowledge == asking.describe()["threat"]["knowledge"] == "queries"
    with pytest.raises(AttackError, match="no gradients, but fgsm, pgd, apgd"):
        strong(ThreatModel(2 / 255, knowledge="queries"))


def test_a_suite_says_what_ran_where():
    said = strong(epsilons=(0.5 / 255, 4 / 255), steps=30, restarts=2, queries=150).describe_attacks()
    headline, small, other = said.split("At ")[1:]
    assert headline.startswith("2/255 every attack runs on every row: fgsm, pgd (30 steps, 2 restarts), ")
    assert "square (150 queries)" in headline
    assert small == "0.5/255, on rows not broken so far, in turn: apgd (30 steps, 2 restarts). "
    assert other.startswith(
        "4/255, on rows not broken so far, in turn: apgd (30 steps, 2 restarts), fab (30 steps,"
    )
    quick = strong(epsilons=(4 / 255,), steps=7, everywhere=False).describe_attacks()
    assert quick.endswith("At 4/255, on rows not broken so far, in turn: apgd (7 steps, 5 restarts).")
    assert "None" not in unsafebench().describe_attacks()
