import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from adversarial.errors import AttackError
from adversarial.pixels.boundary import FAB
from adversarial.pixels.pgd import PGD
from adversarial.pixels.square import Square
from adversarial.problem import Problem
from adversarial.search import run_verified
from adversarial.threat import ThreatModel
from adversarial.victim import Context


class Net:
    """A module from (B, 3, H, W) to (B,) as a victim that counts questions."""

    name = "net"

    def __init__(self, module, no_gradients=None):
        self.module, self.no_gradients, self.asked = module.requires_grad_(False), no_gradients, 0

    def margins(self, pixels, contexts):
        self.asked += len(pixels)
        return self.module(pixels).flatten()


class Stairs(nn.Module):
    """Pixels rounded to 64 levels first: the margin changes with them, its gradient is zero everywhere."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, pixels):
        return self.module(torch.round(pixels * 64) / 64)


class TwoClasses(nn.Module):
    """The margin as two logits, for libraries that want them: class 1 is unsafe."""

    def __init__(self, module):
        super().__init__()
        self.module = module
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, pixels):
        margin = self.module(pixels).flatten() * self.scale
        return torch.stack([torch.zeros_like(margin), margin], dim=1)


def conv(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(1)
    )


def module_for(images, seed=0):
    """A random net whose margins have mean 0 over the images, so that both verdicts occur."""
    net = conv(seed)
    with torch.no_grad():
        net(images[:1])
        net[-1].bias -= net(images).mean()
    return net


def images_of(count, size=12, seed=0):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def problem_of(module, images, epsilon, norm="linf", no_gradients=None, after=(), **options):
    victim = Net(module, no_gradients)
    with torch.no_grad():
        signs = torch.where(module(images).flatten() >= 0, 1.0, -1.0)
    contexts = [Context(None)] * len(images)
    return Problem(victim, images, contexts, signs, ThreatModel(epsilon, norm, after=after), **options)


def median_gap_epsilon(problem, steps=30):
    """A budget at which PGD breaks about half of the images."""
    for epsilon in torch.logspace(-3.5, -0.5, 25).tolist():
        if PGD(steps=steps).run(problem.with_epsilon(epsilon)).success.float().mean() >= 0.6:
            return epsilon
    raise AssertionError("PGD never broke it")


def test_hidden_gradients_stop_pgd_and_not_square():
    images = images_of(10)
    problem = problem_of(Stairs(module_for(images)), images, 0.08)
    pgd = run_verified(PGD(steps=20), problem)
    assert problem.spent.zero_gradients == problem.spent.backwards > 0
    assert not pgd.success.any()
    square = run_verified(Square(queries=300), problem)
    assert square.success.float().mean() >= 0.7


def test_it_asks_a_victim_without_gradients():
    images = images_of(6)
    problem = problem_of(module_for(images), images, 0.2, no_gradients="a tree decides")
    with pytest.raises(AttackError, match="a tree decides"):
        PGD(steps=2).run(problem)
    assert run_verified(Square(queries=200), problem).success.any()
    assert problem.spent.backwards == 0


def test_it_asks_no_more_than_its_queries():
    images = images_of(7)
    problem = problem_of(module_for(images), images, 1e-4)
    problem.clean_margins()
    problem.victim.asked = 0
    found = Square(queries=23).run(problem)
    assert not found.success.any()
    assert problem.victim.asked == 23 * 7
    problem = problem.with_epsilon(0.3)
    problem.victim.asked = 0
    found = Square(queries=200).run(problem)
    assert found.success.all()
    assert problem.victim.asked == int(found.steps.sum())


def test_more_queries_never_hurt_the_attacker():
    images = images_of(8, seed=1)
    module = module_for(images, 1)
    problem = problem_of(module, images, 0.02)
    few, many = (Square(queries=count).run(problem).margin.mean() for count in (5, 200))
    assert many < few
    pgd = PGD(steps=40, early_stop=False).run(problem).margin
    assert (Square(queries=400).run(problem).margin >= torch.minimum(pgd, torch.zeros(())) - 0.05).all()


def test_squares_shrink_on_the_schedule_of_the_paper():
    square = Square(queries=10_000, share=0.8)
    sides = [square.side(step, 1600) for step in (1, 10, 11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001)]
    assert sides == [
        round((0.8 * 1600 / 2**halvings) ** 0.5) for halvings in (0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9)
    ]
    short = Square(queries=1000, share=0.8)
    assert [short.side(step // 10, 1600) for step in (10, 60, 2010, 8010)] == [
        square.side(step, 1600) for step in (10, 60, 2010, 8010)
    ]
    assert Square(queries=10, share=0.01).side(9, 16) == 1


def test_every_point_lies_at_the_edge_of_the_budget_and_every_query_is_new():
    images, seen = images_of(3, seed=2), []

    class Keeping(nn.Module):
        def forward(self, pixels):
            seen.append(pixels[:1].clone())
            return pixels.flatten(1)[:, :1] * 0 + 1.0

    problem = problem_of(Keeping(), images[:1], 0.05)
    seen.clear()
    Square(queries=60).run(problem)
    points = torch.cat(seen[1:])
    edges = torch.stack([problem.threat.project(images[0] + way * 0.05, images[0]) for way in (-1, 1)])
    assert ((points == edges[0]) | (points == edges[1])).all()
    assert (points[0] - images[0] > 0).eq((points[0] - images[0] > 0)[:, :1]).all()  # stripes first
    assert (
        (points[1:] - points[:1]).abs().flatten(1).amax(1) > 0
    ).all()  # none was better, so all start from them


def test_results_depend_on_seed_and_row_only():
    images = images_of(6, seed=3)
    module = module_for(images, 3)
    runs = [
        Square(queries=40).run(problem_of(module, images, 0.03, batch_size=size, seed=seed))
        for size, seed in ((6, 0), (2, 0), (6, 1))
    ]
    torch.testing.assert_close(runs[0].pixels, runs[1].pixels)
    assert not torch.equal(runs[0].pixels, runs[2].pixels)


@settings(max_examples=15)
@given(
    st.integers(0, 1000),
    st.floats(0, 0.5),
    st.sampled_from([(3, 3), (5, 9), (9, 4), (1, 1)]),
    st.floats(0.01, 1),
)
def test_budgets_are_kept_on_any_shape(seed, epsilon, shape, share):
    images = torch.rand(3, 3, *shape, generator=torch.Generator().manual_seed(seed))
    images[0] = images[0].round()
    weight = torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(seed + 1))
    problem = problem_of(Linear(weight), images, epsilon, after=("8bit",))
    found = run_verified(Square(queries=12, share=share), problem)
    assert (found.margin <= problem.clean_margins() + 1e-6).all()
    if epsilon == 0:
        assert not found.success.any()


class Linear(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, pixels):
        return ((pixels - 0.5) * self.weight).flatten(1).sum(1)


def test_square_is_no_weaker_than_foolbox_without_gradients():
    foolbox = pytest.importorskip("foolbox")
    images = images_of(16, seed=4)
    module = module_for(images, 4)
    problem = problem_of(module, images, 0.0)
    epsilon, queries = median_gap_epsilon(problem), 200
    ours = run_verified(Square(queries=queries), problem.with_epsilon(epsilon)).success
    logits = TwoClasses(module).eval()
    model = foolbox.PyTorchModel(logits, bounds=(0, 1), device="cpu")
    labels = (problem.signs > 0).long()
    noise = foolbox.attacks.LinfRepeatedAdditiveUniformNoiseAttack(repeats=queries)
    *_, theirs = noise(model, images, labels, epsilons=epsilon)
    assert ours.float().mean() > theirs.float().mean()
    # One step of this asks more than 200 times: a linear search, 100 directions, binary searches.
    hop = foolbox.attacks.HopSkipJumpAttack(
        steps=1, initial_gradient_eval_steps=100, max_gradient_eval_steps=100, constraint="linf"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        *_, hopped = hop(model, images, labels, epsilons=epsilon)
    assert ours.float().mean() >= hopped.float().mean()
    assert ours.float().mean() > 0


def test_square_is_no_weaker_than_torchattacks():
    torchattacks = pytest.importorskip("torchattacks")
    images = images_of(24, seed=5)
    module = module_for(images, 5)
    problem = problem_of(module, images, 0.0)
    epsilon, queries = median_gap_epsilon(problem), 150
    ours = run_verified(Square(queries=queries), problem.with_epsilon(epsilon)).success
    logits = TwoClasses(module).eval()
    labels = (problem.signs > 0).long()
    theirs = torchattacks.Square(logits, eps=epsilon, n_queries=queries, p_init=0.8, seed=0)(images, labels)
    robust = (logits(theirs).argmax(1) == labels).float().mean()
    assert 1 - ours.float().mean() <= robust + 1e-6
    assert ours.any()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Square(queries=0), "queries is 0"),
        (lambda: Square(share=0.0), "share is 0.0"),
        (lambda: Square().run(problem_of(Linear(torch.ones(3, 4, 4)), images_of(2, 4), 0.5, "l2")), "L-inf"),
    ],
)
def test_what_makes_no_sense_is_refused(make, said):
    with pytest.raises(AttackError, match=said):
        make()


@settings(max_examples=10)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=6, unique=True), st.integers(1, 6))
def test_an_image_is_attacked_alike_among_any_others(some, batch_size):
    images = images_of(6, seed=3)
    module = module_for(images, 3)
    rows = torch.tensor(some)
    for attack in (Square(queries=10), PGD(steps=3, restarts=2), FAB(steps=2, restarts=2)):
        every = attack.run(problem_of(module, images, 0.01))
        part = attack.run(problem_of(module, images, 0.01, batch_size=batch_size).subset(rows))
        torch.testing.assert_close(part.pixels, every.pixels[rows], rtol=0, atol=1e-5)
