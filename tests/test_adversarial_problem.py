from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch

from adversarial.errors import AttackError
from adversarial.problem import AttackResult, Problem, Spent, check_images
from adversarial.search import Search, run_verified
from adversarial.threat import ThreatModel
from adversarial.victim import Context

EPSILON = 4 / 255
A, B = Context("one", "a"), Context("two", "b")


class Victim:
    """Margin = 100 times (mean - 0.5): an image is unsafe if it is bright."""

    name = "bright"
    no_gradients = None

    def __init__(self, change=lambda margins: margins):
        self.change, self.asked, self.policies = change, [], []

    def margins(self, pixels, contexts):
        self.asked.append(len(pixels))
        self.policies.append({context.policy for context in contexts})
        return self.change((pixels.mean((1, 2, 3)) - 0.5) * 100)

    def score(self, images, contexts):
        raise NotImplementedError


def flat(*levels):
    return torch.stack([torch.full((3, 2, 2), level / 255) for level in levels])


def problem_of(images=None, victim=None, contexts=None, signs=None, threat=None, **options):
    images = flat(129, 130, 140) if images is None else images
    return Problem(
        victim or Victim(),
        images,
        contexts or [A] * len(images),
        torch.ones(len(images)) if signs is None else signs,
        threat or ThreatModel(EPSILON),
        **options,
    )


def rows(*places):
    return torch.tensor(places)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.full((1, 3, 2, 2), 128.0), r"from 128 to 128; give pixels in \[0, 1\]: divide bytes by 255"),
        (torch.full((1, 3, 2, 2), -0.1), r"from -0\.1 to -0\.1"),
        (torch.zeros(1, 3, 2, 2, dtype=torch.uint8), r"torch\.uint8 \(1, 3, 2, 2\); give floats"),
        (torch.zeros(3, 2, 2), r"\(3, 2, 2\); give floats \(N, 3, H, W\)"),
        (torch.zeros(1, 1, 2, 2), r"\(1, 1, 2, 2\)"),
        (torch.full((1, 3, 2, 2), torch.nan), "not finite"),
        (torch.full((1, 3, 2, 2), torch.inf), "not finite"),
    ],
)
def test_images_that_are_none(images, message):
    with pytest.raises(AttackError, match=message):
        check_images(images)
    with pytest.raises(AttackError, match=message):
        problem_of(images)


def test_no_images_are_no_error():
    assert len(problem_of(torch.zeros(0, 3, 2, 2))) == 0


def test_counts_and_signs():
    with pytest.raises(AttackError, match="3 images, 1 contexts and 3 signs"):
        problem_of(contexts=[A])
    for signs in ([1.0, 0.0, 1.0], [1.0, 2.0, -1.0]):
        with pytest.raises(AttackError, match="signs must be 1"):
            problem_of(signs=torch.tensor(signs))


def test_gaps_and_gradients_are_on_the_attackers_terms():
    problem = problem_of(flat(153, 102), signs=torch.tensor([1, -1]))
    margin, gradient = problem.gradient(problem.images, rows(0, 1))
    assert margin.tolist() == pytest.approx([10.0, 10.0], abs=1e-4)
    assert gradient[0].flatten().tolist() == pytest.approx([100 / 12] * 12)
    assert gradient[1].flatten().tolist() == pytest.approx([-100 / 12] * 12)
    assert problem.signed_margins(problem.images[1:], rows(1)).tolist() == pytest.approx([10.0], abs=1e-4)
    assert not margin.requires_grad
    with torch.no_grad():  # callers often stand in one
        problem.gradient(problem.images, rows(0, 1))


def test_a_victim_without_gradients_says_which_part():
    victim = Victim()
    victim.no_gradients = "pictures become PIL images"
    problem = problem_of(victim=victim)
    with pytest.raises(
        AttackError, match=r"bright gives no gradients to pixels: pictures become PIL .*Square"
    ):
        problem.gradient(problem.images, rows(0, 1, 2))
    assert problem.signed_margins(problem.images, rows(0, 1, 2)).shape == (3,)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_margins_that_are_not_finite(value):
    problem = problem_of(victim=Victim(lambda margins: margins * 0 + value))
    with pytest.raises(AttackError, match=r"margins that are not finite, as float16 overflows .* bfloat16"):
        problem.signed_margins(problem.images, rows(0, 1, 2))


def test_gradients_that_are_not_finite():
    problem = problem_of(victim=Victim(lambda margins: (margins * 0).sqrt() + 1))
    with pytest.raises(AttackError, match=r"gradients that are not finite, as float16 overflows .* bfloat16"):
        problem.gradient(problem.images, rows(0, 1, 2))


def test_costs_and_zero_gradients_are_counted_over_all_parts():
    problem = problem_of(victim=Victim(lambda margins: margins.clamp(max=1.0)), spent=Spent())
    problem.gradient(problem.images, rows(0, 1, 2))
    problem.subset(rows(2)).signed_margins(problem.images[2:], rows(0))
    problem.with_epsilon(0.5).signed_margins(problem.images[2:], rows(2))
    problem.with_contexts([B] * 3).signed_margins(problem.images[2:], rows(2))
    assert (problem.spent.forwards, problem.spent.backwards, problem.spent.zero_gradients) == (6, 3, 1)
    assert problem.spent.seconds > 0


def test_half_precision_margins_come_back_in_float32():
    problem = problem_of(victim=Victim(lambda margins: margins.bfloat16()))
    margin, gradient = problem.gradient(problem.images, rows(0, 1, 2))
    assert margin.dtype == gradient.dtype == torch.float32


def test_batches_are_of_one_policy():
    problem = problem_of(flat(*[140] * 7), contexts=[A, B, A, A, B, A, A], batch_size=2)
    assert [batch.tolist() for batch in problem.batches(rows(0, 1, 2, 3, 4, 6))] == [[0, 2], [3, 6], [1, 4]]
    assert problem.batches(torch.tensor([], dtype=torch.long)) == []
    problem.clean_margins()
    assert all(len(policies) == 1 for policies in problem.victim.policies)
    assert max(problem.victim.asked) == 2


def test_clean_gaps_are_asked_once_and_kept_for_other_budgets():
    problem = problem_of()
    first = problem.clean_margins()
    assert problem.with_epsilon(0.1).clean_margins() is first
    assert problem.subset(rows(2, 0)).clean_margins().tolist() == first[[2, 0]].tolist()
    assert len(problem.victim.asked) == 1
    other = problem.with_victim(Victim(lambda margins: -margins))
    assert other.clean_margins().tolist() == pytest.approx((-first).tolist())
    problem.with_contexts([B] * 3).clean_margins()
    assert len(problem.victim.asked) == 2
    assert problem.with_epsilon(0.1).threat.epsilon == 0.1
    assert problem.threat.epsilon == EPSILON


def test_draws_depend_on_seed_row_and_salt_only():
    problem = problem_of(seed=3)
    all_rows = problem.draw_noise(rows(0, 1, 2), "x")
    assert torch.equal(problem.draw_noise(rows(2, 0), "x"), all_rows[[2, 0]])
    assert not torch.equal(all_rows[0], all_rows[1])
    assert not torch.equal(problem.draw_noise(rows(0), "y"), all_rows[:1])
    assert not torch.equal(problem_of(seed=4).draw_noise(rows(0), "x"), all_rows[:1])
    assert torch.equal(problem_of(seed=3, batch_size=1).draw_noise(rows(0, 1, 2), "x"), all_rows)
    before = torch.get_rng_state()
    wide = problem_of(torch.full((1, 3, 64, 64), 0.5)).draw_noise(rows(0), "x")
    assert torch.equal(before, torch.get_rng_state())
    assert (float(wide.min()), float(wide.max())) == pytest.approx((-1, 1), abs=1e-3)
    normal = problem_of(torch.full((1, 3, 64, 64), 0.5)).draw_noise(rows(0), "x", "normal")
    assert float(normal.std()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_restarts_begin_clean_then_anywhere_in_the_ball(norm):
    problem = problem_of(threat=ThreatModel(0.1, norm=norm))
    every = rows(0, 1, 2)
    assert torch.equal(problem.restart_points(every, 0), problem.images)
    first, second = problem.restart_points(every, 1), problem.restart_points(every, 2)
    assert not torch.equal(first, second)
    for begin in (first, second):
        assert bool(problem.threat.within_budget(begin, problem.images).all())
        assert bool(((begin - problem.images).flatten(1).abs().amax(1) > 0.01).all())


def test_a_search_excludes_misjudged_rows_and_closes_successes():
    victim = Victim()
    problem = problem_of(flat(129, 120, 140), victim)
    search = Search(problem, 3)
    assert search.result.misjudged.tolist() == [False, True, False]
    assert [batch.tolist() for batch in search.batches()] == [[0, 2]]
    search.update(rows(0, 2), flat(126, 139), torch.tensor([-0.5, 4.5]))
    assert [batch.tolist() for batch in search.batches()] == [[2]]
    search.update(rows(2), flat(138), torch.tensor([4.1]))
    search.update(rows(2), flat(141), torch.tensor([5.3]))
    assert search.batches() == []
    assert search.result.margin.tolist() == pytest.approx([-0.5, float(problem.clean_margins()[1]), 4.1])
    assert search.result.steps.tolist() == [1, 0, 2]
    assert search.steps_taken.tolist() == [1, 0, 3]
    assert search.result.success.tolist() == [True, False, False]
    assert torch.equal(search.result.pixels[1], problem.images[1])
    assert torch.equal(search.result.pixels[2], flat(138)[0])


def test_batches_refill_with_open_rows():
    problem = problem_of(flat(129, 129, 140, 129, 140), batch_size=2)
    search = Search(problem, 5)
    assert [batch.tolist() for batch in search.batches()] == [[0, 1], [2, 3], [4]]
    search.update(rows(0, 3), flat(126, 126), torch.tensor([-0.5, -0.5]))
    assert [batch.tolist() for batch in search.batches()] == [[1, 2], [4]]


def test_without_early_stop_the_best_goes_on_improving():
    problem = problem_of(flat(129))
    search = Search(problem, 2, early_stop=False)
    search.update(rows(0), flat(126), torch.tensor([-0.5]))
    assert search.active.tolist() == [True]
    search.update(rows(0), flat(125), torch.tensor([-0.9]))
    assert search.active.tolist() == [False]
    assert search.result.margin.tolist() == pytest.approx([-0.9])


def test_a_search_without_steps_asks_nothing_more():
    assert Search(problem_of(), 0).batches() == []


def test_a_success_must_survive_storing_as_bytes():
    # 127.3 is safe by a hair; rounded within the budget it is 127, the margin of 127.6 is 128: unsafe again.
    half, whole = flat(127.45), flat(127.6)
    images = flat(129)
    problem = problem_of(
        images, Victim(lambda margins: margins - 0.05), threat=ThreatModel(EPSILON, after=("8bit",))
    )
    search = Search(problem, 9)
    margin = torch.tensor([-0.01])
    search.update(rows(0), whole, margin)
    assert search.active.tolist() == [True]
    assert search.result.success.tolist() == [True]  # raw success is kept
    search.update(rows(0), flat(127.55), torch.tensor([-0.02]))
    assert torch.equal(search.result.pixels, flat(127.55))  # better, though it does not survive either
    search.update(rows(0), half, torch.tensor([-0.005]))
    assert search.active.tolist() == [False]
    assert torch.equal(search.result.pixels, half)  # a higher margin that survives is the better one
    raw = Search(problem_of(images, threat=ThreatModel(EPSILON, after=())), 9)
    raw.update(rows(0), whole, margin)
    assert raw.active.tolist() == [False]
    below = Search(problem_of(images, threat=ThreatModel(0.5 / 255, after=("8bit",))), 9)
    below.update(rows(0), flat(128.6), margin)
    assert below.active.tolist() == [False]  # no byte can hold half a level, so nothing is asked of it


@dataclass(frozen=True)
class Made:
    """An attack that returns what it is told to."""

    shift: float
    claim: float = -1.0
    name: str = "made"
    needs_gradients: bool = False

    def run(self, problem):
        count = len(problem)
        pixels = (problem.images + self.shift).clamp(0, 1)
        return AttackResult(
            pixels, torch.full((count,), self.claim), torch.ones(count).long(), torch.zeros(count).bool()
        )


def test_parts_of_a_problem_keep_all_that_they_do_not_change():
    victim, spent = Victim(), Spent()
    threat = ThreatModel(EPSILON, norm="l2", after=())
    problem = problem_of(
        victim=victim, contexts=[A, B, A], signs=torch.tensor([1.0, -1.0, 1.0]), threat=threat, spent=spent,
        batch_size=7, seed=5,
    )  # fmt: skip
    other = Victim()
    parts = {
        "subset": problem.subset(rows(2, 1)),
        "at": problem.with_epsilon(0.25),
        "against": problem.with_victim(other),
        "asking": problem.with_contexts([B, B, A]),
    }
    for name, part in parts.items():
        chosen = [2, 1] if name == "subset" else [0, 1, 2]
        assert torch.equal(part.images, problem.images[chosen])
        assert part.signs.tolist() == [problem.signs[row] for row in chosen]
        asked = (B, B, A) if name == "asking" else (A, B, A)
        assert part.contexts == tuple(asked[row] for row in chosen)
        assert part.victim is (other if name == "against" else victim)
        assert part.threat == (replace(threat, epsilon=0.25) if name == "at" else threat)
        assert (part.batch_size, part.seed) == (7, 5)
        assert part.spent is spent
    assert (problem_of().batch_size, problem_of().seed) == (32, 0)


def test_a_gap_of_zero_is_no_success():
    margin = torch.tensor([-1e-6, 0.0, 0.5, -0.5])
    clean = torch.tensor([False, False, False, True])
    found = AttackResult(flat(1, 2, 3, 4), margin, torch.zeros(4), clean)
    assert found.success.tolist() == [True, False, False, False]
    edge = problem_of(flat(129), Victim(lambda margins: margins * 0))
    assert (
        run_verified(Made(0.0), edge).success.tolist()
        == run_verified(Made(0.0), edge).misjudged.tolist()
        == [False]
    )
    assert Search(edge, 1).active.tolist() == [True]


def test_images_that_touch_the_edges_of_the_range_are_fine():
    check_images(torch.tensor([0.0, 1.0, 0.5]).reshape(1, 3, 1, 1))
    check_images(torch.rand(2, 3, 1, 5).half())


def test_normal_draws_repeat_too():
    wide = problem_of(torch.full((2, 3, 8, 8), 0.5), seed=3)
    both = wide.draw_noise(rows(0, 1), "x", "normal")
    assert torch.equal(wide.draw_noise(rows(1), "x", "normal"), both[1:])
    assert not torch.equal(both[0], both[1])
    before = torch.get_rng_state()
    wide.draw_noise(rows(0), "x", "normal")
    assert torch.equal(before, torch.get_rng_state())


def test_random_starts_fill_the_cube_and_lie_on_the_sphere():
    many = torch.full((40, 3, 1, 1), 0.5)
    every = torch.arange(40)
    cube = (problem_of(many, threat=ThreatModel(0.1)).restart_points(every, 1) - many).abs() / 0.1
    assert float(cube.mean()) == pytest.approx(
        0.5, abs=0.1
    )  # uniform: neither at the corners nor at the middle
    assert float(cube.max()) > 0.9
    sphere = problem_of(many, threat=ThreatModel(0.1, norm="l2")).restart_points(every, 1) - many
    assert sphere.flatten(1).norm(dim=1).tolist() == pytest.approx([0.1] * 40, rel=1e-3)
    assert float(sphere.flatten(1).mean(0).abs().max()) < 0.04  # in all directions


def test_nothing_is_spent_before_anybody_asks_and_everything_adds_up():
    assert Spent() == Spent(forwards=0, backwards=0, zero_gradients=0, seconds=0.0)
    problem = problem_of(victim=Victim(lambda margins: margins * 0))
    for _ in range(2):
        problem.gradient(problem.images, rows(0, 1, 2))
    spent = problem.spent
    assert (spent.forwards, spent.backwards, spent.zero_gradients) == (6, 6, 6)


def test_a_row_closes_at_gaps_below_zero_only_before_and_after_storing():
    search = Search(problem_of(flat(129), threat=ThreatModel(EPSILON, after=())), 9)
    assert search.steps_taken.dtype == search.result.steps.dtype == torch.long
    for margin in (0.5, 0.0):
        search.update(rows(0), flat(128), torch.tensor([margin]))
        assert search.active.tolist() == [True]
    search.update(rows(0), flat(127), torch.tensor([-0.1]))
    assert search.active.tolist() == [False]
    # 127.4 is stored as 127, where this victim's margin is exactly nothing: not misjudged.
    level = float(flat(127).mean((1, 2, 3)))
    victim = Victim(lambda margins: torch.where((margins / 100 + 0.5 - level).abs() < 1e-6, 0.0, margins))
    stored = Search(problem_of(flat(129), victim, threat=ThreatModel(EPSILON, after=("8bit",))), 9)
    stored.update(rows(0), flat(127.4), torch.tensor([-0.04]))
    assert stored.active.tolist() == [True]


def test_images_brighter_than_white_are_refused():
    with pytest.raises(AttackError, match=r"from 1\.2 to 1\.2"):
        check_images(torch.full((1, 3, 2, 2), 1.2))


def test_find_believes_no_attack():
    problem = problem_of(flat(129, 120, 140))
    with pytest.raises(AttackError, match="made left its budget on 3 of 3 images"):
        run_verified(Made(-2 * EPSILON), problem)
    found = run_verified(Made(-EPSILON), problem)
    assert found.margin.tolist() == pytest.approx(
        [(level / 255 - 0.5) * 100 for level in (125, 116, 136)], abs=1e-3
    )
    assert found.misjudged.tolist() == [False, True, False]
    assert found.success.tolist() == [True, False, False]
    modest = run_verified(Made(-EPSILON, claim=9.0), problem)
    assert modest.success.tolist() == [True, False, False]


def test_find_refuses_pixels_out_of_range():
    @dataclass(frozen=True)
    class Bright(Made):
        def run(self, problem):
            found = super().run(problem)
            return replace(found, pixels=problem.images + self.shift)

    with pytest.raises(AttackError, match="left its budget on 1 of 2"):
        run_verified(Bright(EPSILON), problem_of(flat(255, 200)))


def test_draws_belong_to_an_image_wherever_it_stands():
    """An attack on survivors draws for each what an attack on all rows would."""
    problem = problem_of(seed=3, ids=["a", "b", "c"])
    left = problem.subset(rows(2, 0))
    for other in (left, left.with_epsilon(0.1), left.with_victim(Victim()), left.with_contexts([B, B])):
        assert torch.equal(other.draw_noise(rows(0, 1), "x"), problem.draw_noise(rows(2, 0), "x"))
    assert torch.equal(left.subset(rows(1)).restart_points(rows(0), 1), problem.restart_points(rows(0), 1))
    assert torch.equal(
        problem_of(flat(140), seed=3, ids=["c"]).draw_noise(rows(0), "x"), problem.draw_noise(rows(2), "x")
    )
    with pytest.raises(AttackError, match="2 names for 3 images"):
        problem_of(ids=["a", "b"])


def test_seconds_hold_the_backward_pass(monkeypatch):
    passed = []
    monkeypatch.setattr("adversarial.problem.time", SimpleNamespace(perf_counter=lambda: float(sum(passed))))

    class Slow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, margins):
            return margins.clone()

        @staticmethod
        def backward(ctx, gradient):
            passed.append(50)
            return gradient

    problem = problem_of(victim=Victim(Slow.apply))
    problem.signed_margins(problem.images, rows(0, 1, 2))
    assert problem.spent.seconds == 0
    problem.gradient(problem.images, rows(0, 1, 2))
    assert problem.spent.seconds == 50
