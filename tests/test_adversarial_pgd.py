import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adversarial.errors import AttackError
from adversarial.pixels.apgd import APGD
from adversarial.pixels.pgd import FGSM, PGD, GaussianNoise
from adversarial.pixels.steps import direction
from adversarial.problem import Problem
from adversarial.search import run_verified
from adversarial.threat import ThreatModel, perturbation_norm
from adversarial.victim import Context

EPSILON = 8 / 255


class Victim:
    """Margins of `function`, with a record of what was asked (by the rows' prompts)."""

    name = "planted"
    no_gradients = None

    def __init__(self, function):
        self.function, self.asked = function, []

    def margins(self, pixels, contexts):
        self.asked.append([context.prompt for context in contexts])
        return self.function(pixels)


def linear(seed=0, side=8, offset=0.0, scale=1.0):
    weights = torch.randn(3, side, side, generator=torch.Generator().manual_seed(seed)) * scale
    return weights, lambda pixels: ((pixels - 0.5) * weights).flatten(1).sum(1) + offset


def curved(seed=0, side=8):
    """A smooth margin with many bends: a random net of sines."""
    generator = torch.Generator().manual_seed(seed)
    inner = torch.randn(3 * side * side, 24, generator=generator)
    outer = torch.randn(24, generator=generator)
    return lambda pixels: torch.sin((pixels - 0.5).flatten(1) @ inner) @ outer


def pictures(count, side=8, low=0.2, high=0.8, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, side, side, generator=generator) * (high - low) + low


def problem_of(function, images, epsilon=EPSILON, norm="linf", after=(), signs=None, **options):
    """Rows are named by their prompts; signs by default those under which every clean image is judged right."""
    if signs is None:
        with torch.no_grad():
            signs = torch.where(function(images) < 0, -1.0, 1.0)
    contexts = [Context(prompt=str(row)) for row in range(len(images))]
    threat = ThreatModel(epsilon, norm=norm, after=after)
    return Problem(Victim(function), images, contexts, signs, threat, **options)


ATTACKS = {
    "noise": GaussianNoise(draws=3),
    "length": GaussianNoise(length=0.3, draws=2),
    "fgsm": FGSM(),
    "pgd": PGD(steps=4, restarts=2),
    "pgd_cross_entropy": PGD(steps=4, loss="cross_entropy", early_stop=False),
    "pgd_last": PGD(steps=4, alpha=3.33, allow_large_steps=True, last_iterate=True),
    "apgd": APGD(steps=6, restarts=2, early_stop=False),
    "apgd_cross_entropy": APGD(steps=6, loss="cross_entropy"),
}


@given(
    name=st.sampled_from(sorted(ATTACKS)),
    norm=st.sampled_from(["linf", "l2"]),
    epsilon=st.floats(0, 1),
    side=st.integers(1, 9),
    wild=st.booleans(),
)
def test_every_attack_keeps_its_budget(name, norm, epsilon, side, wild):
    images = pictures(3, side, 0, 1, seed=side)
    if wild:
        images = images.round()
    problem = problem_of(curved(side=side), images, epsilon, norm)
    found = run_verified(ATTACKS[name], problem)  # checks the budget and the margin claimed
    assert problem.threat.within_budget(found.pixels, images).all()
    assert torch.allclose(found.margin, ATTACKS[name].run(problem).margin, atol=1e-4)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_without_a_budget_nothing_changes(name, norm):
    problem = problem_of(curved(), pictures(4), 0.0, norm)
    found = ATTACKS[name].run(problem)
    assert torch.equal(found.pixels, problem.images)
    assert torch.allclose(found.margin, problem.clean_margins(), atol=1e-6)
    assert not found.success.any()


@pytest.mark.parametrize(
    "attack", [FGSM(), PGD(steps=20, early_stop=False), APGD(steps=20, early_stop=False)]
)
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_on_a_linear_victim_the_exact_optimum_is_reached(attack, sign, norm):
    weights, function = linear(offset=2.0 * sign, scale=0.1)
    problem = problem_of(function, pictures(5), norm=norm, signs=torch.full((5,), sign))
    most = weights.abs().sum() if norm == "linf" else weights.norm()
    best = problem.clean_margins() - EPSILON * most
    assert torch.allclose(attack.run(problem).margin, best, atol=1e-4)


def test_where_the_pixel_range_ends_the_optimum_is_the_clipped_one():
    weights, function = linear(offset=30.0, scale=0.1)
    images = pictures(4, low=0, high=1).round()
    problem = problem_of(function, images, epsilon=0.1, signs=torch.ones(4))
    best = function((images - 0.1 * weights.sign()).clamp(0, 1))
    for attack in (FGSM(), PGD(steps=10), APGD(steps=10)):
        assert torch.allclose(attack.run(problem).margin, best, atol=1e-4)


@given(seed=st.integers(0, 50), fewer=st.integers(2, 6), more=st.integers(1, 6), runs=st.integers(1, 3))
def test_more_steps_and_more_restarts_are_never_worse(seed, fewer, more, runs):
    problem = problem_of(curved(seed), pictures(4, seed=seed))
    few = PGD(steps=fewer, alpha=0.3, early_stop=False).run(problem)
    many = PGD(steps=fewer + more, alpha=0.3, early_stop=False).run(problem)
    again = PGD(steps=fewer, alpha=0.3, restarts=runs, early_stop=False).run(problem)
    assert (many.margin <= few.margin).all()
    assert (again.margin <= few.margin).all()
    assert (few.margin <= problem.clean_margins()).all()


def test_iterating_beats_one_step_and_one_step_beats_noise():
    problem = problem_of(curved(), pictures(40))
    noise, once = (attack.run(problem).margin.mean() for attack in (GaussianNoise(draws=1), FGSM()))
    often = PGD(steps=30, early_stop=False).run(problem).margin.mean()
    assert often < once - 0.3 < noise - 0.6


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_one_step_of_pgd_is_fgsm(norm):
    problem = problem_of(curved(), pictures(6), norm=norm)
    one, fast = PGD(steps=1).run(problem), FGSM().run(problem)
    assert torch.equal(one.pixels, fast.pixels)
    assert torch.equal(one.steps, fast.steps)


def test_fgsm_is_the_sign_of_the_gradient_at_the_clean_image():
    weights, function = linear(scale=0.1, offset=9.0)
    problem = problem_of(function, pictures(3), signs=torch.ones(3))
    found = FGSM().run(problem)
    assert torch.allclose(found.pixels, problem.images - EPSILON * weights.sign())
    assert problem.spent.forwards == 3 * 3  # clean margin, gradient, where the step ends
    assert problem.spent.backwards == 3
    assert found.steps.tolist() == [1, 1, 1]


@pytest.mark.parametrize("attack", [PGD(steps=12, restarts=3), APGD(steps=12, restarts=3)])
def test_what_is_done_costs_nothing_more(attack):
    weights, function = linear(scale=0.1)
    images = pictures(8)
    margins = torch.tensor([-1.0, 0.01, 0.02, 0.2, 0.2, 1e4, 1e4, 1e4])
    images = images - (function(images)[:, None, None, None] / weights.norm() ** 2) * weights  # margin 0
    lifts = dict(zip(map(str, range(8)), margins, strict=True))

    victim = Victim(None)

    def margins(pixels, contexts):
        victim.asked.append([context.prompt for context in contexts])
        return function(pixels) + torch.stack([lifts[context.prompt] for context in contexts])

    victim.margins = margins
    contexts = [Context(prompt=str(row)) for row in range(8)]
    problem = Problem(victim, images, contexts, torch.ones(8), ThreatModel(0.02, after=()), batch_size=3)
    found = attack.run(problem)
    assert found.misjudged.tolist() == [True] + [False] * 7
    assert (found.margin < 0).tolist() == [True] * 5 + [False] * 3
    questions = [sum(batch.count(str(row)) for batch in victim.asked) for row in range(8)]
    assert questions[0] == 1  # misjudged from the start: only its clean margin
    assert questions[1] == questions[2] == 3  # clean margin, clean gradient, first step
    assert questions[5:] == [2 + 36] * 3
    assert sum(questions) == problem.spent.forwards
    # Closed rows are replaced: the last batches hold all the open rows.
    assert victim.asked[-1] == ["5", "6", "7"]
    assert (found.steps[5:] <= 36).all()


def test_early_stop_saves_and_can_be_switched_off():
    problem, thorough = (problem_of(curved(), pictures(20)) for _ in range(2))
    stopped = PGD(steps=30).run(problem)
    deepest = PGD(steps=30, early_stop=False).run(thorough)
    assert torch.equal(stopped.success, deepest.success)
    assert (deepest.margin <= stopped.margin).all()
    assert thorough.spent.forwards == 20 * (2 + 30)
    assert problem.spent.forwards < thorough.spent.forwards / 2


def test_the_last_point_of_a_run_takes_no_gradient():
    problem = problem_of(linear(offset=1e4)[1], pictures(4))
    PGD(steps=5, restarts=3).run(problem)
    assert problem.spent.forwards == 4 * (1 + 1 + 15)
    assert problem.spent.backwards == 4 * (1 + 4 + 4 + 4)


def test_restarts_begin_elsewhere_and_only_for_survivors():
    visited = []

    def function(pixels):
        visited.append(pixels.detach().clone())
        return pixels.flatten(1).sum(1) * 0 + 1.0

    problem = problem_of(function, pictures(2), signs=torch.ones(2))
    PGD(steps=2, restarts=3).run(problem)
    # Without a slope a run stays where it began: clean margin, clean gradient, then two points a run.
    assert len(visited) == 2 + 3 * 2
    first, second, third = visited[2], visited[4], visited[6]
    assert torch.equal(first, problem.images)
    for one, other in ((first, second), (first, third), (second, third)):
        assert (perturbation_norm(one - other, "linf") > EPSILON / 2).all()
    assert torch.equal(second, visited[5])


@pytest.mark.parametrize("attack", [PGD, APGD])
def test_restarts_leave_a_flat_region(attack):
    def plateau(pixels):
        """Flat at the clean image and falling elsewhere, as gradient masking would have it."""
        change = (pixels - 0.5).flatten(1)
        return 1 - 2000 * torch.relu(change.pow(2).mean(1) - 1e-5)

    problem = problem_of(plateau, torch.full((6, 3, 8, 8), 0.5), epsilon=0.05)
    assert not attack(steps=10).run(problem).success.any()
    assert problem.spent.zero_gradients > 0
    assert attack(steps=10, restarts=2).run(problem).success.all()


@pytest.mark.parametrize("attack", [PGD, APGD])
def test_a_warm_start_is_asked_about_itself_and_brought_into_the_budget(attack):
    weights, function = linear(offset=1.0, scale=0.1)
    images = pictures(3)
    goal = images - EPSILON * weights.sign()
    problem = problem_of(function, images, signs=torch.ones(3))
    found = attack(steps=1, start=goal).run(problem)
    assert torch.allclose(found.pixels, goal, atol=1e-6)
    assert problem.spent.backwards == 0
    far = attack(steps=3, early_stop=False, start=(images + 0.5).clamp(0, 1)).run(problem)
    assert problem.threat.within_budget(far.pixels, images).all()
    with pytest.raises(AttackError, match=r"start is \(2, 3, 8, 8\), the images are \(3, 3, 8, 8\)"):
        attack(start=images[:2]).run(problem)


@pytest.mark.parametrize("attack", [PGD, APGD])
def test_a_warm_start_goes_on_from_where_another_attack_stopped(attack):
    problem = problem_of(curved(3), pictures(10))
    before = attack(steps=5, early_stop=False).run(problem)
    after = attack(steps=20, early_stop=False, start=before.pixels).run(problem)
    assert (after.margin <= before.margin + 1e-6).all()
    assert after.margin.mean() < before.margin.mean() - 0.1


@pytest.mark.parametrize("attack", [ATTACKS[name] for name in sorted(ATTACKS)], ids=sorted(ATTACKS))
def test_the_batch_size_does_not_matter(attack):
    images = pictures(7)
    founds = [attack.run(problem_of(curved(2), images, batch_size=size)) for size in (1, 3, 32)]
    for other in founds[1:]:
        assert torch.allclose(founds[0].margin, other.margin, atol=1e-4)
        assert torch.allclose(founds[0].pixels, other.pixels, atol=1e-5)
        assert torch.equal(founds[0].steps, other.steps)


@pytest.mark.parametrize("attack", [PGD(steps=5), APGD(steps=9)])
def test_other_rows_do_not_matter(attack):
    problem = problem_of(curved(2), pictures(7))
    rows = torch.tensor([1, 4, 6])
    whole, part = attack.run(problem), attack.run(problem.subset(rows))
    assert torch.allclose(whole.margin[rows], part.margin, atol=1e-4)
    assert torch.equal(whole.steps[rows], part.steps)


@pytest.mark.parametrize("attack", [PGD, APGD, FGSM])
def test_cross_entropy_saturates_where_the_margin_does_not(attack):
    _, steep = linear(scale=60.0, offset=200.0)
    images = torch.full((4, 3, 8, 8), 0.5)  # margin 200 exactly
    problem = problem_of(steep, images, signs=torch.ones(4))
    assert attack(loss="margin").run(problem).success.all()
    assert problem.spent.zero_gradients == 0
    saturated = attack(loss="cross_entropy").run(problem)
    assert not saturated.success.any()
    assert torch.equal(saturated.pixels, images)
    assert problem.spent.zero_gradients >= 4  # and it says so


@pytest.mark.parametrize("attack", [PGD, APGD])
def test_below_saturation_the_two_losses_lead_to_the_same_point(attack):
    problem = problem_of(curved(4), pictures(8))
    one, other = (
        attack(steps=12, loss=loss, early_stop=False).run(problem) for loss in ("margin", "cross_entropy")
    )
    assert torch.allclose(one.pixels, other.pixels, atol=1e-5)


def test_a_step_above_twice_epsilon_forgets_what_came_before():
    visited = []
    bend = curved(5)

    def function(pixels):
        visited.append(pixels.detach().clone())
        return bend(pixels)

    images = pictures(3)
    problem = problem_of(function, images)
    PGD(steps=6, alpha=1 / 0.3, allow_large_steps=True, last_iterate=True).run(problem)
    iterates = visited[2:]  # after the signs and the clean margins; the first is clean
    assert len(iterates) == 1 + 6
    for here, following in itertools.pairwise(iterates):
        here.requires_grad_(True)
        (gradient,) = torch.autograd.grad((bend(here) * problem.signs).sum(), here)
        assert torch.allclose(following - images, -EPSILON * gradient.sign(), atol=1e-6)


def test_the_last_iterate_is_worse_than_the_best():
    images, bend = pictures(60), curved()
    weak = PGD(steps=20, alpha=1 / 0.3, allow_large_steps=True, last_iterate=True)
    best = PGD(steps=20, alpha=1 / 0.3, allow_large_steps=True, early_stop=False)
    last, kept, sound = (
        attack.run(problem_of(lambda pixels: bend(pixels) + 11, images, epsilon=0.02, signs=torch.ones(60)))
        for attack in (weak, best, PGD(steps=20))
    )
    assert (kept.margin <= last.margin + 1e-6).all()
    assert kept.margin.mean() < last.margin.mean() - 0.1
    assert (last.steps == 20).all()
    assert 60 > sound.success.sum() > kept.success.sum() > last.success.sum()


def test_success_is_looked_for_only_now_and_then():
    _weights, function = linear(scale=0.1, offset=0.1)
    images = torch.full((2, 3, 8, 8), 0.5)
    for check, forwards in ((None, 12), (12, 12), (5, 5), (1, 1)):
        problem = problem_of(function, images, signs=torch.ones(2))
        attack = PGD(steps=12, alpha=0.9, last_iterate=True, check_every=check)
        found = attack.run(problem)
        assert found.success.all()
        assert problem.spent.forwards == 2 * (2 + forwards)
        assert found.steps.tolist() == [forwards] * 2


@pytest.mark.parametrize("epsilon", [1 / 255, 2.55 / 255, 4 / 255])
def test_what_is_kept_survives_rounding_if_anything_does(epsilon):
    images = (pictures(30) * 255).round() / 255
    plain = problem_of(curved(1), images, epsilon)
    rounded = problem_of(curved(1), images, epsilon, after=("8bit",))
    attack = PGD(steps=15)
    fooled, survives = attack.run(plain), attack.run(rounded)
    stored = rounded.threat.quantize(survives.pixels, images)
    confirmed = rounded.signed_margins(stored, torch.arange(30)) < 0
    # An early crossing that rounding undoes is not enough: the attack goes on until one survives.
    naive = plain.signed_margins(rounded.threat.quantize(fooled.pixels, images), torch.arange(30)) < 0
    assert confirmed.sum() >= naive.sum() > 0
    assert (confirmed | ~naive).all()
    assert (survives.margin[confirmed] < 0).all()


@pytest.mark.parametrize("alpha", [1.0, 1.5, 1 / 0.3])
def test_steps_of_epsilon_and_more_are_refused_unless_asked_for(alpha):
    with pytest.raises(AttackError, match="times epsilon: steps that large jump"):
        PGD(alpha=alpha)
    assert PGD(alpha=alpha, allow_large_steps=True).step == alpha


def test_usual_steps_are_small_and_reach_the_edge():
    for steps in range(2, 200):
        step = PGD(steps=steps).step
        assert step < 1 <= steps * step + 1e-9
        if steps > 3:
            assert steps * step >= 2 - 1e-9


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PGD(steps=0), "steps is 0"),
        (lambda: PGD(restarts=0), "restarts is 0"),
        (lambda: PGD(alpha=0.0), "alpha is 0.0; it is a positive number"),
        (lambda: PGD(alpha=-1.0), "alpha is -1.0"),
        (lambda: PGD(alpha=float("nan")), "alpha is nan"),
        (lambda: PGD(loss="dlr"), "DLR divides by the difference to a third class"),
        (lambda: APGD(loss="dlr"), "DLR divides by the difference to a third class"),
        (lambda: FGSM(loss="mse"), "loss is 'mse'"),
        (lambda: APGD(steps=0), "steps is 0"),
        (lambda: PGD(last_iterate=True, restarts=2), "restarts would be lost"),
        (lambda: PGD(check_every=5), "check_every needs last_iterate"),
        (lambda: GaussianNoise(draws=0), "draws is 0"),
        (lambda: GaussianNoise(sigma=0.0), "sigma is 0.0"),
        (lambda: GaussianNoise(length=-1.0), "length is -1.0"),
        (lambda: GaussianNoise(sigma=0.1, length=0.1), "not both"),
    ],
)
def test_options_that_mean_nothing_are_refused(make, message):
    with pytest.raises(AttackError, match=message):
        make()


def test_a_victim_without_gradients_is_refused_but_takes_noise():
    problem = problem_of(curved(), pictures(2))
    problem.victim.no_gradients = "its filter compares hashes"
    for attack in (FGSM(), PGD(), APGD()):
        assert attack.needs_gradients
        with pytest.raises(AttackError, match="its filter compares hashes"):
            attack.run(problem)
    assert not GaussianNoise().needs_gradients
    GaussianNoise().run(problem)


def test_noise_has_its_sigma_in_pixels():
    visited = []

    def function(pixels):
        visited.append(pixels.detach().clone())
        return pixels.flatten(1).sum(1) * 0 + 1.0

    images = torch.full((4, 3, 32, 32), 0.5)

    def change(norm, epsilon, **options):
        visited.clear()
        GaussianNoise(draws=1, **options).run(
            problem_of(function, images, epsilon, norm, signs=torch.ones(4))
        )
        return visited[-1] - images

    assert float(change("linf", 0.3, sigma=0.02).std()) == pytest.approx(0.02, rel=0.03)
    usual = change("linf", 0.1)
    assert (usual.abs() >= 0.0999).float().mean() == pytest.approx(0.0455, abs=0.006)
    assert float(change("l2", 2.0).flatten(1).norm(dim=1).mean()) == pytest.approx(2.0, rel=0.02)
    weak = change("linf", 0.01, length=0.01)
    assert torch.allclose(weak.flatten(1).norm(dim=1), torch.tensor(0.01), atol=1e-4)
    assert float(weak.abs().max()) < 0.001  # a fourth of a grey level


def test_noise_keeps_the_best_of_its_draws():
    problem = problem_of(curved(), pictures(10))
    margins = [GaussianNoise(draws=draws, early_stop=False).run(problem).margin for draws in (1, 4, 16)]
    assert (margins[2] <= margins[1]).all()
    assert (margins[1] <= margins[0]).all()
    assert margins[2].mean() < margins[0].mean()


def test_directions_have_length_one_however_small_the_gradient():
    gradient = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    gradient[1] *= 1e-30
    gradient[2] *= 1e30
    gradient[3] = 0
    ahead = direction(gradient, "l2")
    assert torch.allclose(perturbation_norm(ahead, "l2"), torch.tensor([1.0, 1, 1, 0]))
    assert torch.allclose(direction(gradient * 7, "l2"), ahead)
    assert set(direction(gradient, "linf").unique().tolist()) == {-1.0, 0.0, 1.0}


def test_names_tell_variants_apart():
    attacks = [
        GaussianNoise(),
        FGSM(),
        FGSM("cross_entropy"),
        PGD(),
        PGD(loss="cross_entropy"),
        PGD(last_iterate=True),
        APGD(),
        APGD(loss="cross_entropy"),
    ]
    assert len({attack.name for attack in attacks}) == len(attacks)
