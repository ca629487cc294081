import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from adversarial.errors import AttackError
from adversarial.pixels.pgd import PGD
from adversarial.pixels.universal import Universal, UniversalPerturbation
from adversarial.problem import Problem
from adversarial.search import run_verified
from adversarial.threat import ThreatModel, perturbation_norm
from adversarial.victim import Context


class Net:
    name, no_gradients = "net", None

    def __init__(self, module):
        self.module = module.requires_grad_(False)

    def margins(self, pixels, contexts):
        return self.module(pixels).flatten()


def pictures(count, seed):
    """Noise with a bright bar, upright (unsafe) or lying (safe), anywhere; -> images and labels."""
    random = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 3, 12, 12, generator=random) * 0.6
    labels = torch.rand(count, generator=random) < 0.5
    places = torch.randint(0, 10, (count,), generator=random)
    for image, unsafe, place in zip(images, labels.tolist(), places.tolist(), strict=True):
        bar = image[:, :, place : place + 2] if unsafe else image[:, place : place + 2]
        bar += 0.25
    return images, labels.float()


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 12, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3), nn.Flatten(), nn.Linear(12 * 16, 1)
    )
    images, labels = pictures(600, 0)
    optimiser = torch.optim.Adam(net.parameters(), 5e-3)
    for step in range(120):
        chosen = torch.arange(step * 50, step * 50 + 50) % 600
        loss = F.binary_cross_entropy_with_logits(net(images[chosen]).flatten(), labels[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    victim = Net(net)
    test, truth = pictures(300, 1)
    assert ((victim.margins(test, []) > 0) == (truth > 0)).float().mean() > 0.9
    return victim


def problem_of(victim, count, seed, epsilon, norm="linf", **options):
    """Unsafe pictures that shall be called safe."""
    images, labels = pictures(count, seed)
    images = images[labels > 0]
    contexts = [Context(None)] * len(images)
    return Problem(
        victim, images, contexts, torch.ones(len(images)), ThreatModel(epsilon, norm, after=()), **options
    )


def rate(found):
    return float(found.success.sum() / (~found.misjudged).sum())


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.06), ("l2", 0.9)])
def test_it_carries_over_to_unseen_images(trained, norm, epsilon):
    perturbation = Universal(epochs=12).fit(problem_of(trained, 200, 2, epsilon, norm))
    assert float(perturbation_norm(perturbation.change[None], norm)) <= epsilon + 1e-6
    held_out = problem_of(trained, 200, 3, epsilon, norm)
    universal = rate(run_verified(perturbation, held_out))
    noise = []
    for seed in range(20):
        random = torch.randn(3, 12, 12, generator=torch.Generator().manual_seed(seed))
        change = random.sign() * epsilon if norm == "linf" else random / random.norm() * epsilon
        noise.append(rate(run_verified(UniversalPerturbation(change), held_out)))
    own = rate(run_verified(PGD(steps=20), held_out))
    assert universal > max(noise) + 0.2
    assert universal <= own


def test_one_change_for_all_images(trained):
    problem = problem_of(trained, 40, 4, 0.05)
    perturbation = Universal(epochs=3).fit(problem)
    found = perturbation.run(problem)
    moved = found.pixels - problem.images
    inside = (problem.images + perturbation.change > 0) & (problem.images + perturbation.change < 1)
    asked = found.steps > 0
    expected = perturbation.change.expand_as(moved)[asked][inside[asked]]
    torch.testing.assert_close(moved[asked][inside[asked]], expected, rtol=0, atol=1e-6)


def test_the_same_every_time_and_one_gradient_an_image_and_epoch(trained):
    problem = problem_of(trained, 60, 5, 0.05, batch_size=8)
    one, again = (Universal(epochs=4).fit(problem) for _ in range(2))
    assert torch.equal(one.change, again.change)
    assert rate(run_verified(one, problem)) > 0
    assert problem.spent.backwards == 2 * 4 * int((problem.clean_margins() >= 0).sum())


@settings(max_examples=12)
@given(
    st.floats(0, 0.3),
    st.floats(0, 0.3),
    st.sampled_from(["linf", "l2"]),
    st.floats(0.05, 3),
    st.integers(0, 9),
)
def test_budgets_are_kept_also_another_than_it_was_found_for(trained, epsilon, other, norm, alpha, seed):
    problem = problem_of(trained, 12, seed, epsilon, norm)
    if bool((problem.clean_margins() < 0).all()):
        return
    perturbation = Universal(epochs=2, alpha=alpha).fit(problem)
    assert float(perturbation_norm(perturbation.change[None], norm)) <= epsilon * (1 + 1e-5) + 1e-7
    run_verified(perturbation, problem.with_epsilon(other))


def test_what_cannot_be_done_is_refused(trained):
    problem = problem_of(trained, 20, 0, 0.05)
    with pytest.raises(AttackError, match=r"\(3, 8, 8\).*\(3, 12, 12\)"):
        UniversalPerturbation(torch.zeros(3, 8, 8)).run(problem)
    problem.signs = -problem.signs
    wrong = problem.subset((problem.clean_margins() < 0).nonzero().flatten())
    with pytest.raises(AttackError, match="No image is judged right"):
        Universal().fit(wrong)
    for options in ({"epochs": 0}, {"alpha": 0.0}, {"bound": -1.0}):
        with pytest.raises(AttackError):
            Universal(**options)
