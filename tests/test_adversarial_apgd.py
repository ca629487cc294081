import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adversarial.pixels.apgd import APGD, checkpoints
from adversarial.pixels.pgd import PGD
from adversarial.problem import Problem
from adversarial.search import run_verified
from adversarial.threat import ThreatModel, clip_change
from adversarial.victim import Context


class Victim:
    name = "planted"
    no_gradients = None

    def __init__(self, function):
        self.function, self.visited = function, []

    def margins(self, pixels, contexts):
        self.visited.append(pixels.detach().clone())
        return self.function(pixels)


def curved(seed=0, side=6, frequency=1.0):
    generator = torch.Generator().manual_seed(seed)
    inner = torch.randn(3 * side * side, 24, generator=generator) * frequency
    outer = torch.randn(24, generator=generator)
    return lambda pixels: torch.sin((pixels - 0.5).flatten(1) @ inner) @ outer


def problem_of(function, count=4, epsilon=0.03, norm="linf", lift=0.0, seed=1, **options):
    """`lift` is added to all margins: with 100, nothing is ever misjudged."""
    images = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed)) * 0.8 + 0.1
    with torch.no_grad():
        signs = torch.where(function(images) < 0, -1.0, 1.0)
    victim = Victim(lambda pixels: function(pixels) + lift * signs[: len(pixels)])
    return Problem(
        victim, images, [Context(None)] * count, signs, ThreatModel(epsilon, norm=norm, after=()), **options
    )


def by_the_book(gap_of, clean, epsilon, norm, steps):
    """Algorithm 1 for one image, in plain Python: points asked about, and the step size after each."""

    def ask(point):
        point = point.clone().requires_grad_(True)
        margin = gap_of(point)
        (gradient,) = torch.autograd.grad(margin.sum(), point)
        ahead = gradient.sign() if norm == "linf" else gradient / gradient.norm().clamp(min=1e-12)
        return float(margin.detach()), ahead

    def project(point):
        return clip_change(point, clean, epsilon, norm)

    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    windows = [math.ceil(round(share * steps, 9)) for share in shares if share <= 1]
    points, margins, sizes = [clean], [], []
    margin, ahead = ask(clean)
    margins.append(margin)
    best, best_gap, best_ahead = clean, margin, ahead
    size, falls = 2 * epsilon, 0
    before, here = clean, clean
    gap_here, halved_last, best_at_window = margin, False, margin
    for k in range(1, steps + 1):
        ahead_point = project(here - size * ahead)
        following = (
            ahead_point if k == 1 else project(here + 0.75 * (ahead_point - here) + 0.25 * (here - before))
        )
        before, here = here, following
        margin, ahead = ask(here)
        points.append(here)
        falls += margin < gap_here
        gap_here = margin
        if margin < best_gap:
            best, best_gap, best_ahead = here, margin, ahead
        if k in windows:
            span = k - windows[windows.index(k) - 1]
            halve = falls < 0.75 * span or (not halved_last and best_at_window == best_gap)
            halved_last, best_at_window, falls = halve, best_gap, 0
            if halve:
                size /= 2
                here, gap_here, ahead = best, best_gap, best_ahead
        sizes.append(size)
    return points, sizes


@given(
    seed=st.integers(0, 200),
    norm=st.sampled_from(["linf", "l2"]),
    steps=st.integers(1, 40),
    frequency=st.sampled_from([0.3, 1.0, 2.0]),
)
def test_every_point_is_that_of_algorithm_1(seed, norm, steps, frequency):
    function = curved(seed, frequency=frequency)
    epsilon = 0.03 if norm == "linf" else 0.3
    problem = problem_of(function, 1, epsilon, norm, seed=seed)
    problem.victim.visited.clear()
    APGD(steps=steps, early_stop=False).run(problem)
    visited = problem.victim.visited[1:]  # after the clean margin; the clean gradient is the first
    expected, _ = by_the_book(
        lambda pixels: function(pixels) * problem.signs, problem.images, epsilon, norm, steps
    )
    assert len(visited) == len(expected) == steps + 1
    for one, other in zip(visited, expected, strict=True):
        assert torch.allclose(one, other, atol=5e-4)  # rounding adds up over 40 steps


def test_a_run_that_falls_at_every_step_and_beats_nothing_is_stuck():
    """Condition 2 of section 3.2: the first step leaps to a hill whose descent never gets as low as the clean image."""
    told = itertools.chain([1.0, 1.0], (9.0 - 0.1 * step for step in itertools.count()))

    def script(pixels):  # the margin is what the script says, its gradient is always the same
        slope = pixels.flatten(1).sum(1)
        return slope - slope.detach() + next(told)

    clean = torch.full((1, 3, 6, 6), 0.5)
    victim = Victim(script)
    problem = Problem(victim, clean, [Context(None)], torch.ones(1), ThreatModel(0.1, after=()))
    APGD(steps=20).run(problem)
    far = [float((clean - pixels).mean()) for pixels in victim.visited[2:]]
    first, second = checkpoints(20)[1:3]
    assert far[:first] == pytest.approx([0.1] * first)
    # Back to the clean image, from where three quarters of a halved step lead ahead and the momentum a quarter back.
    assert far[first] == pytest.approx(0.75 * 0.1 - 0.25 * 0.1)
    # The step was halved at the last checkpoint, so that the best has not moved is no reason to halve it again.
    assert min(far[first + 1 : second + 1]) > 0.05


def test_checkpoints_are_the_papers():
    assert checkpoints(100) == [0, 22, 41, 57, 70, 80, 87, 93, 99, 100]
    assert checkpoints(1)[-1] == 1


@given(st.integers(1, 1000))
def test_checkpoints_rise_and_stay_inside(steps):
    stops = checkpoints(steps)
    assert stops[0] == 0
    assert stops[-1] == steps
    assert all(one < other for one, other in itertools.pairwise(stops))


def test_the_first_step_is_two_epsilon_and_later_ones_shrink():
    problem = problem_of(curved(frequency=3.0), 1, norm="l2", epsilon=0.5, lift=100.0)
    APGD(steps=100).run(problem)
    visited = problem.victim.visited[1:]
    jumps = [float((one - other).norm()) for one, other in itertools.pairwise(visited)]
    assert max(jumps[:5]) > 0.3
    assert max(jumps[-5:]) < 0.05


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_at_least_as_deep_as_pgd_on_average(norm):
    epsilon = 0.03 if norm == "linf" else 0.3
    problem = problem_of(curved(frequency=2.0), 60, epsilon, norm)
    auto = APGD(steps=60, early_stop=False).run(problem).margin
    plain = PGD(steps=60, early_stop=False).run(problem).margin
    assert auto.mean() < plain.mean() + 0.05


def test_a_mistuned_step_costs_pgd_more():
    problem = problem_of(curved(frequency=2.0), 60, 0.05)
    auto = APGD(steps=60, early_stop=False).run(problem).margin
    for alpha in (0.002, 0.95):
        assert auto.mean() < PGD(steps=60, alpha=alpha, early_stop=False).run(problem).margin.mean() - 0.1


def test_restarts_go_deeper_and_begin_afresh():
    problem = problem_of(curved(frequency=3.0), 30, 0.05)
    once, thrice = (APGD(steps=20, restarts=runs, early_stop=False).run(problem) for runs in (1, 3))
    assert (thrice.margin <= once.margin).all()
    assert thrice.margin.mean() < once.margin.mean() - 0.1
    # The second run of two equals a first run that is started at the same random points.
    rows = torch.arange(30)
    alone = APGD(steps=20, early_stop=False, start=problem.restart_points(rows, 1, "apgd")).run(problem)
    twice = APGD(steps=20, restarts=2, early_stop=False).run(problem)
    assert torch.allclose(twice.margin, torch.minimum(once.margin, alone.margin), atol=1e-4)


def test_survivors_go_on_as_if_alone_when_others_are_done():
    problem = problem_of(curved(2, frequency=2.0), 12, 0.004, batch_size=5)
    found = run_verified(APGD(steps=30), problem)
    assert 0 < found.success.sum() < 12
    for row in (~found.success).nonzero().flatten():
        alone = APGD(steps=30).run(problem.subset(row[None]))
        assert torch.allclose(alone.margin, found.margin[row], atol=1e-4)
        assert alone.steps[0] == found.steps[row]


def test_costs_are_one_pass_a_step_and_no_gradient_at_the_end():
    problem = problem_of(curved(), 3, lift=100.0)
    APGD(steps=10, restarts=2).run(problem)
    assert problem.spent.forwards == 3 * (1 + 1 + 20)
    assert problem.spent.backwards == 3 * (1 + 9 + 9)
