"""eval/recipe/learned.py: what is said of training against attacks."""

import pytest

from eval.recipe.learned import judge_hardening


def summary(accuracy=0.95, f1=0.95):
    intervals = {"accuracy": [0.9, 0.98], "f1": [0.9, 0.98]}
    about = {"rows": 400, "images": 300, "pair_score": 0.9}
    return {"accuracy": accuracy, "f1": f1, "intervals": intervals, **about}


@pytest.mark.parametrize(
    ("robust", "attacked", "clean", "learned", "begins"),
    [
        ({"2/255": (0.5, 0.5), "8/255": (0.44, 0.79)}, 160, 0.94, True, "Hardened: robust accuracy at 8/255 0.79"),
        ({"8/255": (0.44, 0.45)}, 160, 0.94, False, "Not hardened"),
        ({"8/255": (0.4, 0.6)}, 8, 0.94, None, "Cannot tell from so few attacked questions"),
        ({"8/255": (0.1, 0.8)}, 160, 0.8, False, "Worse on clean images"),
        ({}, 0, 0.94, None, "Cannot tell: nothing was attacked"),
    ],
)  # fmt: skip
def test_the_verdict_of_a_hardening(robust, attacked, clean, learned, begins):
    found = judge_hardening(summary(), summary(clean, 0.9), robust=robust, attacked=attacked)
    assert found.learned is learned
    assert found.sentence.startswith(begins)
    assert "0.90, 0.95 before" in found.sentence
    assert bool(found.causes) == (learned is False)
    assert "arbiter attack" in found.limits[0]
