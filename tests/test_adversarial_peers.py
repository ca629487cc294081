"""Our gradient attacks against two libraries', on one victim, at one budget, in one run."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from adversarial.pixels.apgd import APGD
from adversarial.pixels.pgd import FGSM, PGD
from adversarial.problem import Problem
from adversarial.search import run_verified
from adversarial.threat import ThreatModel
from adversarial.victim import Context

STEPS, RESTARTS, IMAGES = 12, 2, 100
EPSILON = {"linf": 0.1, "l2": 0.8}


@pytest.fixture(scope="session")
def convolution():
    """A small net with two logits, safe and unsafe (digits from five on), trained for seconds; and held-out images."""
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None].expand(-1, 3, -1, -1).contiguous()
    labels = torch.tensor(digits.target >= 5).long()
    order = torch.randperm(len(images))
    images, labels = images[order], labels[order]
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 2),
    )  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for step in range(150):
        rows = torch.arange(step * 64, step * 64 + 64) % 1400
        noisy = images[rows] + 0.1 * torch.randn(64, 3, 8, 8)
        loss = nn.functional.cross_entropy(net(noisy), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.eval().requires_grad_(False)
    images, labels = images[1400:], labels[1400:]
    right = net(images).argmax(1) == labels
    assert right.float().mean() > 0.9
    return net, images[right][:IMAGES], labels[right][:IMAGES]


class Judge:
    name = "convolution"
    no_gradients = None

    def __init__(self, net):
        self.net = net

    def margins(self, pixels, contexts):
        logits = self.net(pixels)
        return logits[:, 1] - logits[:, 0]


def ours(attack, convolution, norm):
    net, images, labels = convolution
    problem = Problem(
        Judge(net), images, [Context(None)] * len(images), labels * 2.0 - 1,
        ThreatModel(EPSILON[norm], norm=norm, after=()), batch_size=len(images),
    )  # fmt: skip
    return float((run_verified(attack, problem).margin >= 0).float().mean())


def robust(convolution, attacked, norm):
    """Robust accuracy on what a library returned, which must keep the budget as ours does."""
    net, images, labels = convolution
    assert ThreatModel(EPSILON[norm], norm=norm).within_budget(attacked, images).all()
    return net(attacked).argmax(1) == labels


@pytest.fixture(scope="session")
def mine(convolution):
    """Robust accuracy of our attacks: (name, norm) -> share."""
    attacks = (FGSM(), PGD(steps=STEPS, restarts=RESTARTS), APGD(steps=STEPS, restarts=RESTARTS))
    return {
        (attack.name, norm): ours(attack, convolution, norm) for norm in ("linf", "l2") for attack in attacks
    }


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_comparison_can_fail(mine, norm):
    # Neither all nor none fall, and iterating shows: else no attack could be told from a worse one.
    assert 0.1 < mine["pgd", norm] < 0.9
    assert mine["pgd", norm] < mine["fgsm", norm]
    assert mine["apgd", norm] <= mine["pgd", norm] + 0.01


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_no_weaker_than_foolbox(convolution, mine, norm):
    foolbox = pytest.importorskip("foolbox")
    net, images, labels = convolution
    model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    attacks = foolbox.attacks
    make = attacks.LinfPGD if norm == "linf" else attacks.L2PGD
    # Its usual step, and a better one; the worst case of each image over as many runs as ours has.
    for options in ({}, {"rel_stepsize": 2.5 / STEPS}):
        held = torch.ones(len(images), dtype=torch.bool)
        for run in range(RESTARTS):
            torch.manual_seed(run)
            attack = make(steps=STEPS, random_start=run > 0, **options)
            _, attacked, _ = attack(model, images, labels, epsilons=EPSILON[norm])
            held &= robust(convolution, attacked, norm)
        theirs = float(held.float().mean())
        print(
            f"{norm} foolbox PGD {options}: {theirs:.3f}; ours {mine['pgd', norm]:.3f}, {mine['apgd', norm]:.3f}"
        )
        assert mine["pgd", norm] <= theirs
        assert mine["apgd", norm] <= theirs
    fast = attacks.LinfFastGradientAttack if norm == "linf" else attacks.L2FastGradientAttack
    _, attacked, _ = fast()(model, images, labels, epsilons=EPSILON[norm])
    assert mine["fgsm", norm] == pytest.approx(
        float(robust(convolution, attacked, norm).float().mean()), abs=0.005
    )


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_no_weaker_than_torchattacks(convolution, mine, norm):
    torchattacks = pytest.importorskip("torchattacks")
    net, images, labels = convolution
    epsilon = EPSILON[norm]

    def worst(make):
        held = torch.ones(len(images), dtype=torch.bool)
        for run in range(RESTARTS):
            torch.manual_seed(run)
            held &= robust(convolution, make(run)(images, labels), norm)
        return float(held.float().mean())

    alpha = 2.5 / STEPS * epsilon
    if norm == "linf":
        theirs = worst(lambda run: torchattacks.PGD(net, epsilon, alpha, STEPS, random_start=run > 0))
    else:
        theirs = worst(lambda run: torchattacks.PGDL2(net, epsilon, alpha, STEPS, random_start=run > 0))
    auto = worst(
        lambda run: torchattacks.APGD(
            net, norm={"linf": "Linf", "l2": "L2"}[norm], eps=epsilon, steps=STEPS, seed=run
        )
    )
    print(
        f"{norm} torchattacks PGD {theirs:.3f}, APGD {auto:.3f}; ours {mine['pgd', norm]:.3f}, {mine['apgd', norm]:.3f}"
    )
    assert mine["pgd", norm] <= theirs
    assert mine["apgd", norm] <= auto
