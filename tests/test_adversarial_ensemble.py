"""An ensemble: the worst case of each image, and nothing spent on what is broken already."""

import pytest
import torch

from adversarial.errors import AttackError
from adversarial.pixels.apgd import APGD
from adversarial.pixels.ensemble import Ensemble
from adversarial.pixels.pgd import FGSM, PGD
from adversarial.pixels.square import Square
from adversarial.problem import Problem
from adversarial.search import run_verified
from adversarial.threat import ThreatModel
from adversarial.victim import Context


class Wavy:
    """A margin with a hill in the way: one step from the clean image goes wrong on some images."""

    name, no_gradients = "wavy", None

    def margins(self, pixels, contexts):
        bright = pixels.flatten(1).mean(1)
        return torch.sin(40 * bright) + 6 * (bright - 0.5) + 0.7

    def score(self, images, contexts):
        raise NotImplementedError


@pytest.fixture
def problem():
    images = torch.linspace(0.35, 0.75, 24)[:, None, None, None].expand(-1, 3, 4, 4).clone()
    threat = ThreatModel(0.06, after=())
    return Problem(Wavy(), images, [Context(None)] * len(images), torch.ones(len(images)), threat)


MEMBERS = (FGSM(), PGD(steps=6), APGD(steps=6))  # no random draws, which would depend on the row


def test_it_is_the_worst_case_of_its_members(problem):
    together = run_verified(Ensemble(MEMBERS), problem)
    alone = [run_verified(member, problem) for member in MEMBERS]
    assert torch.equal(together.success, torch.stack([found.success for found in alone]).any(0))
    held = ~together.success & ~together.misjudged
    lowest = torch.stack([found.margin for found in alone]).amin(0)
    assert torch.allclose(together.margin[held], lowest[held])
    assert torch.equal(together.misjudged, alone[0].misjudged)


def test_what_is_broken_is_left_to_itself(problem):
    first = run_verified(PGD(steps=6), problem)
    left = int((~first.success & ~first.misjudged).sum())
    assert 0 < left < len(problem)
    before = problem.spent.forwards
    run_verified(PGD(steps=6), problem)
    one = problem.spent.forwards - before
    before = problem.spent.forwards
    run_verified(Ensemble((PGD(steps=6), FGSM())), problem)
    # FGSM asks about the clean survivors, takes their gradients and asks about where it went.
    assert problem.spent.forwards - before <= one + 3 * left


def test_gradients_are_needed_if_one_member_needs_them():
    assert Ensemble(MEMBERS).needs_gradients
    assert not Ensemble((Square(queries=3),)).needs_gradients
    with pytest.raises(AttackError, match="one attack"):
        Ensemble(())
