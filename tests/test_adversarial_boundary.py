import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize
from torch import nn

from adversarial.errors import AttackError
from adversarial.pixels.boundary import FAB, DeepFool
from adversarial.pixels.pgd import PGD
from adversarial.pixels.plane import project_onto_plane
from adversarial.problem import Problem
from adversarial.search import run_verified
from adversarial.threat import ThreatModel, perturbation_norm
from adversarial.victim import Context


class Net:
    """A module from (B, 3, H, W) to (B,) as a victim."""

    name, no_gradients = "net", None

    def __init__(self, module):
        self.module = module.requires_grad_(False)

    def margins(self, pixels, contexts):
        return self.module(pixels).flatten()


class Plane(nn.Module):
    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, pixels):
        return (pixels * self.weight).flatten(1).sum(1) + self.bias


def conv(seed=0):
    torch.manual_seed(seed)
    layers = [
        nn.Conv2d(3, 8, 3, 2),
        nn.Tanh(),
        nn.Conv2d(8, 8, 3, 2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(8, 1),
    ]
    net = nn.Sequential(*layers)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2)
    return Net(net)


def problem_of(victim, images, epsilon=0.02, norm="linf", after=(), **options):
    with torch.no_grad():
        margins = victim.margins(images, [])
    signs = torch.where(margins >= 0, 1.0, -1.0)
    contexts = [Context(None, row % 2) for row in range(len(images))]
    return Problem(victim, images, contexts, signs, ThreatModel(epsilon, norm, after=after), **options)


def images_of(count, size=8, seed=0, low=0.0, high=1.0):
    return (
        torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * (high - low) + low
    )


def plane(images, seed=0, height=1.0):
    """A plane that is `height` times the margin away from the mean of the images."""
    weight = torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(seed))
    return weight, Net(Plane(weight, height - float((images * weight).flatten(1).sum(1).mean())))


def distances(attack, problem):
    """(N,) smallest perturbation found; without a budget no row stops early."""
    return attack.search(problem.with_epsilon(0.0)).distance


def needed(victim, images, weight, norm):
    margin = victim.margins(images, []).abs()
    return margin / (weight.abs().sum() if norm == "linf" else weight.norm())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_distances_to_a_plane_inside_the_box_are_exact(norm):
    images = images_of(6, low=0.4, high=0.6)
    weight, victim = plane(images)
    exact = needed(victim, images, weight, norm)
    problem = problem_of(victim, images, norm=norm)
    found = FAB(steps=10).search(problem.with_epsilon(0.0))
    distance, pixels = found.distance, found.nearest
    torch.testing.assert_close(distance, exact, rtol=5e-3, atol=1e-6)
    torch.testing.assert_close(perturbation_norm(pixels - images, norm), distance)
    assert (problem.signed_margins(pixels, torch.arange(6)) < 0).all()
    torch.testing.assert_close(distances(DeepFool(), problem), exact * 1.02, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_deepfool_needs_one_step_on_a_plane(norm):
    images = images_of(5, low=0.4, high=0.6)
    weight, victim = plane(images)
    exact = needed(victim, images, weight, norm)
    found = run_verified(DeepFool(steps=1), problem_of(victim, images, float(exact.max() * 1.03), norm))
    assert found.success.all()
    assert (found.steps == 1).all()
    held = run_verified(DeepFool(steps=30), problem_of(victim, images, float(exact.min() * 0.99), norm))
    assert not held.success.any()
    assert (held.margin >= 0).all()


def test_overshoot_does_not_grow_over_steps():
    """With 1.02 on the whole change, fifty steps would go 2.7 times too far."""
    victim, images = conv(), images_of(8)
    problem = problem_of(victim, images)
    deepfool, fab = distances(DeepFool(steps=50), problem), distances(FAB(steps=60), problem)
    # DeepFool may walk to and fro before the boundary of an image; which one depends on the processor's rounding.
    found = deepfool.isfinite()
    assert found.sum() >= 6
    assert float((deepfool / fab)[found].mean()) < 1.5


def nearest_linf(start, slope, margin):
    """Least t, with z in the box, |z - start| <= t, slope (z - start) = -margin."""
    n = len(start)
    ones = np.ones((n, 1))
    bounds = [(0, 1)] * n + [(0, None)]
    done = linprog(
        np.append(np.zeros(n), 1.0),
        A_ub=np.block([[np.eye(n), -ones], [-np.eye(n), -ones]]),
        b_ub=np.concatenate([start, -start]),
        A_eq=np.append(slope, 0.0)[None],
        b_eq=[slope @ start - margin],
        bounds=bounds,
    )
    return done.fun if done.status == 0 else None


def nearest_l2(start, slope, margin):
    """By bisection on the multiplier of the plane."""
    sign = 1 if margin >= 0 else -1

    def fallen(t):
        return sign * slope @ (start - np.clip(start - sign * t * slope, 0, 1))

    low, high = 0.0, 1e4
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if fallen(middle) < abs(margin) else (low, middle)
    return np.linalg.norm(start - np.clip(start - sign * high * slope, 0, 1))


numbers = st.sampled_from([0.0, 1.0]) | st.floats(0, 1, width=32)
slopes = st.sampled_from([0.0, 1.0, -1.0]) | st.floats(-3, 3, width=32)


@settings(max_examples=40)
@given(st.lists(st.tuples(numbers, slopes), min_size=12, max_size=12), st.floats(-4, 4, width=32))
def test_the_projection_is_the_nearest_point(values, margin):
    start, slope = np.array(values, dtype=np.float64).T
    slope = np.where(np.abs(slope) < 1e-3, 0, slope)
    x, w = (torch.tensor(part, dtype=torch.float64).reshape(1, 3, 2, 2) for part in (start, slope))
    reach = np.where((slope > 0) == (margin > 0), start, 1 - start) @ np.abs(slope)
    for norm in ("linf", "l2"):
        moved = project_onto_plane(x, w, torch.tensor([margin], dtype=torch.float64), norm).flatten().numpy()
        assert (moved >= 0).all()
        assert (moved <= 1).all()
        fallen = slope @ (start - moved)
        if reach < abs(margin):
            assert abs(fallen) == pytest.approx(reach, abs=1e-9)
            continue
        assert fallen == pytest.approx(margin, abs=1e-8)
        if norm == "linf" and (best := nearest_linf(start, slope, margin)) is not None:
            assert np.abs(moved - start).max() == pytest.approx(best, abs=1e-6)
        if norm == "l2" and reach > abs(margin) + 1e-3:
            assert np.linalg.norm(moved - start) == pytest.approx(nearest_l2(start, slope, margin), abs=1e-6)


def test_a_general_solver_finds_nothing_nearer_in_l2():
    random = np.random.default_rng(0)
    start, slope, margin = random.random(12), random.normal(size=12), 1.5
    moved = project_onto_plane(
        torch.tensor(start).reshape(1, 3, 2, 2),
        torch.tensor(slope).reshape(1, 3, 2, 2),
        torch.tensor([margin]),
        "l2",
    )
    plane = {"type": "eq", "fun": lambda z: slope @ (z - start) + margin}
    done = minimize(lambda z: ((z - start) ** 2).sum(), start, bounds=[(0, 1)] * 12, constraints=[plane])
    assert np.linalg.norm(moved.flatten().numpy() - start) <= done.fun**0.5 + 1e-6


def test_fab_on_a_plane_through_the_box_is_the_linear_programme():
    images = images_of(4, size=4)
    images[:, :, ::2] = images[:, :, ::2].round()
    weight, victim = plane(images, height=6.0)
    problem = problem_of(victim, images)
    distance = distances(FAB(steps=30), problem)
    margins = victim.margins(images, [])
    exact = [
        nearest_linf(image.flatten().double().numpy(), weight.flatten().double().numpy(), float(margin))
        for image, margin in zip(images, margins, strict=True)
    ]
    unboxed = margins.abs() / weight.abs().sum()
    assert max(best / float(other) for best, other in zip(exact, unboxed, strict=True)) > 1.1
    np.testing.assert_allclose(distance.numpy(), exact, rtol=5e-3)


def bisected_pgd(problem, rounds=8):
    low, high = torch.zeros(len(problem)), torch.full((len(problem),), 0.5)
    for _ in range(rounds):
        for row in range(len(problem)):
            one = problem.subset(torch.tensor([row])).with_epsilon(float((low[row] + high[row]) / 2))
            broken = bool(PGD(steps=20).run(one).success)
            (high if broken else low)[row] = one.threat.epsilon
    return high


def test_fab_finds_distances_as_small_as_bisected_pgd():
    problem = problem_of(conv(1), images_of(3, seed=1))
    distance = distances(FAB(steps=60, restarts=2), problem)
    pgd = bisected_pgd(problem)
    assert (distance <= pgd * 1.05 + 1e-3).all()
    assert float((distance / pgd).mean()) < 1.01


def test_one_run_serves_a_grid_of_budgets():
    problem = problem_of(conv(2), images_of(8, seed=2))
    distance = distances(FAB(steps=40), problem)
    for epsilon in (
        0.25 * distance.median(),
        0.9 * distance.median(),
        1.1 * distance.median(),
        distance.max() * 1.1,
    ):
        found = run_verified(FAB(steps=40), problem.with_epsilon(float(epsilon)))
        assert (found.success == (distance <= epsilon)).all()


class TwoWays(nn.Module):
    """Two boundaries: the clean gradient points to one at 0.5, while another lies at 0.1."""

    def forward(self, pixels):
        first, second = pixels[:, 0, 0, 0] - 0.4, pixels[:, 0, 0, 1] - 0.4
        return torch.minimum(10 * (0.1 - first), 0.5 - second)


def test_restarts_find_a_nearer_boundary():
    images = torch.full((4, 3, 4, 4), 0.4)
    problem = problem_of(Net(TwoWays()), images)
    once, again = (distances(FAB(steps=10, restarts=count), problem) for count in (1, 6))
    torch.testing.assert_close(once, torch.full((4,), 0.5), rtol=0.01, atol=0)
    torch.testing.assert_close(again, torch.full((4,), 0.1), rtol=0.06, atol=0)


class Bent(nn.Module):
    """exp(-20 s) - 0.1 along one direction: planes always fall short, so each point is seen on its way out."""

    def __init__(self):
        super().__init__()
        self.weight = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(3))
        self.weight /= self.weight.norm()
        self.seen = []

    def forward(self, pixels):
        shift = ((pixels - 0.5) * self.weight).flatten(1).sum(1)
        self.seen.append(float(shift.detach()[0]))
        return (-20 * shift).exp() - 0.1


@pytest.mark.parametrize("most", [0.0, 0.1, 0.3, 1.0])
def test_the_clean_image_weighs_at_most_alpha_max(most):
    """Algorithm 1 in one dimension: s is how far a point lies out, d how far the plane lies ahead of it."""
    bent, eta = Bent(), 1.05
    problem = problem_of(Net(bent), torch.full((1, 3, 4, 4), 0.5), norm="l2")
    expected, weights = [0.0], []
    for _ in range(2):
        s = expected[-1]
        d = (math.exp(-20 * s) - 0.1) / (20 * math.exp(-20 * s))
        weights.append(min(d / (d + (s + d)), most))
        expected.append((1 - weights[-1]) * (s + eta * d) + weights[-1] * eta * (s + d))
    assert weights[0] == min(0.5, most)
    assert 0.25 < weights[1] < 0.45 or weights[1] == most
    bent.seen.clear()
    FAB(steps=3, alpha_max=most, halvings=0).search(problem.with_epsilon(0.0))
    assert bent.seen[1:4] == pytest.approx(expected, abs=1e-5)  # after the clean margin


@pytest.mark.parametrize("attack", [FAB(steps=40), DeepFool(steps=40)])
def test_what_is_found_survives_storing(attack):
    images = (images_of(12, seed=4) * 255).round() / 255
    plain = problem_of(conv(4), images)
    distance = distances(FAB(steps=40), plain)
    epsilon = float(distance.median()) * 1.5
    problem = problem_of(plain.victim, images, epsilon, after=("8bit",))
    found = run_verified(attack, problem)
    stored = problem.signed_margins(problem.threat.quantize(found.pixels, images), torch.arange(12)) < 0
    sure = distance < 0.75 * epsilon
    assert int(sure.sum()) >= 6
    assert stored[sure].all()


@settings(max_examples=12)
@given(
    st.integers(0, 100),
    st.sampled_from(["linf", "l2"]),
    st.floats(0, 0.2),
    st.sampled_from([FAB(steps=4, restarts=2, halvings=2), DeepFool(steps=4)]),
)
def test_budgets_are_kept_and_nobody_ends_worse_than_clean(seed, norm, epsilon, attack):
    problem = problem_of(conv(seed), images_of(3, size=8, seed=seed), epsilon, norm, after=("8bit",))
    found = run_verified(attack, problem)
    assert (found.margin <= problem.clean_margins() + 1e-6).all()
    if epsilon == 0:
        assert not found.success.any()


def test_images_misjudged_already_and_victims_that_never_move():
    images = images_of(3)
    flat = problem_of(Net(Plane(torch.zeros(3, 8, 8), 1.0)), images)
    found = FAB(steps=3).search(flat)
    distance, pixels = found.distance, found.nearest
    assert distance.isinf().all()
    assert torch.equal(pixels, images)
    assert distances(DeepFool(steps=3), flat).isinf().all()
    assert flat.spent.zero_gradients > 0
    problem = problem_of(conv(), images)
    problem.signs[0] *= -1
    assert distances(FAB(steps=3), problem)[0] == 0
    assert distances(DeepFool(steps=3), problem)[0] == 0
    found = run_verified(FAB(steps=5), problem.with_epsilon(0.5))
    assert found.misjudged.tolist() == [True, False, False]
    assert found.steps[0] == 0


def test_results_do_not_depend_on_the_batch():
    victim, images = conv(5), images_of(6, seed=5)
    one, four = (
        distances(FAB(steps=10, restarts=2), problem_of(victim, images, batch_size=size)) for size in (1, 4)
    )
    torch.testing.assert_close(one, four, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: FAB(steps=0), "steps is 0"),
        (lambda: FAB(beta=1.0), "beta=1.0"),
        (lambda: FAB(eta=0.9), "eta=0.9"),
        (lambda: DeepFool(overshoot=-0.1), "overshoot is -0.1"),
        (lambda: DeepFool(steps=0), "steps is 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, said):
    with pytest.raises(AttackError, match=said):
        make()
