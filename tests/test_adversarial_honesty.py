import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

from adversarial.checks.attack_checks import (
    doubling_changes_little,
    huge_epsilon_breaks,
    iterative_beats_one_step,
    more_epsilon_never_helps,
    step_is_small,
    white_box_beats,
)
from adversarial.checks.honesty import Check, check_honesty, format_checks, require_honest, sample_rows
from adversarial.checks.recording import RecordingProblem
from adversarial.checks.victim_checks import margins_are_logits, paths_agree, swap_prompts
from adversarial.errors import AttackError
from adversarial.pixels.pgd import FGSM, PGD
from adversarial.problem import AttackResult, Problem, Spent
from adversarial.threat import ThreatModel
from adversarial.victim import Context

EPSILON = 4 / 255
PROMPTS = ("a red balloon", "two handwritten digits", "a seven on a wall")


class Victim:
    """A smooth random conv; `bend` is applied to its margins, `real` to its probabilities."""

    no_gradients = None

    def __init__(
        self, seed=0, name="conv", bend=lambda m: m, before=lambda x: x, real=lambda p: p, text=1.0, gain=6
    ):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.net = nn.Sequential(
                nn.Conv2d(3, 8, 3, padding=1), nn.Softplus(4), nn.Conv2d(8, 8, 3, stride=2), nn.Flatten(), nn.Tanh(),
                nn.Linear(72, 1, bias=False),
            ).eval()  # fmt: skip
            nn.init.normal_(self.net[-1].weight, std=1.0)
        for parameter in self.net.parameters():
            parameter.requires_grad_(False)
        self.name, self.bend, self.before, self.real, self.text = name, bend, before, real, text
        self.gain = gain
        self.level = 0.0
        self.level = float(self.raw(pictures()).median())

    def raw(self, pixels):
        return self.net((self.before(pixels) - 0.5) * self.gain)[:, 0] - self.level

    def margins(self, pixels, contexts):
        said = torch.tensor([0.3 * self.text * (len(context.prompt) % 3 - 1) for context in contexts])
        return self.bend(self.raw(pixels) + said)

    def score(self, images, contexts):
        pixels = torch.stack([torch.from_numpy(np.array(image)) for image in images])
        with torch.no_grad():
            said = torch.tensor([0.3 * self.text * (len(context.prompt) % 3 - 1) for context in contexts])
            margin = self.raw(pixels.permute(0, 3, 1, 2) / 255.0) + said
        return self.real(margin.double().sigmoid().numpy())


def pictures(count=24, size=8):
    generator = torch.Generator().manual_seed(5)
    return torch.randint(20, 236, (count, 3, size, size), generator=generator) / 255.0


def problem_of(victim, epsilon=EPSILON, images=None):
    images = pictures() if images is None else images
    contexts = [Context(PROMPTS[row % 3]) for row in range(len(images))]
    signs = torch.ones(len(images))
    plain = Problem(victim, images, contexts, signs, ThreatModel(epsilon), batch_size=16)
    with torch.no_grad():
        return Problem(
            victim,
            images,
            contexts,
            torch.where(plain.clean_margins() >= 0, 1.0, -1.0),
            ThreatModel(epsilon),
            batch_size=16,
        )


@dataclass(frozen=True)
class RandomSearch:
    """Corners of the ball, changed a few values at a time; no gradients."""

    queries: int = 60
    name: str = "random_search"
    needs_gradients: bool = False

    def run(self, problem):
        clean, rows = problem.images, torch.arange(len(problem))
        best, margin = clean.clone(), problem.clean_margins().clone()
        for query in range(self.queries):
            corner = problem.draw_noise(rows, f"corner/{query}").sign() * problem.threat.epsilon
            where = problem.draw_noise(rows, f"where/{query}") > (-1.0 if query == 0 else 0.8)
            tried = problem.threat.project(torch.where(where, clean + corner, best), clean)
            got = torch.cat([problem.signed_margins(tried[part], part) for part in problem.batches(rows)])
            better = got < margin
            best[better], margin[better] = tried[better], got[better]
        return AttackResult(best, margin, torch.full_like(rows, self.queries), problem.clean_margins() < 0)


@dataclass(frozen=True)
class Buggy:
    """UnsafeBench's loop: a step beyond the ball, the last iterate returned."""

    steps: int = 10
    length: float = 3.0
    name: str = "buggy"
    needs_gradients: bool = True

    def run(self, problem):
        rows, pixels = torch.arange(len(problem)), problem.images.clone()
        for _ in range(self.steps):
            _, gradient = problem.gradient(pixels, rows)
            step = self.length * problem.threat.epsilon * gradient.sign()
            pixels = problem.threat.project(pixels - step, problem.images)
        return AttackResult(
            pixels,
            problem.signed_margins(pixels, rows),
            torch.full_like(rows, self.steps),
            problem.clean_margins() < 0,
        )


@dataclass(frozen=True)
class Cheat:
    name: str = "cheat"
    needs_gradients: bool = False

    def run(self, problem):
        count = len(problem)
        pixels = (problem.images + 2 * problem.threat.epsilon + 1e-3).clamp(0, 1)
        return AttackResult(
            pixels, torch.full((count,), -1.0), torch.ones(count).long(), torch.zeros(count).bool()
        )


def checks_of(victim, problem=None, **options):
    settings = {
        "strong": PGD(steps=20),
        "one_step": FGSM(),
        "doubled": PGD(steps=40),
        "black_box": RandomSearch(),
        **options,
    }
    found = check_honesty(problem or problem_of(victim), **settings)
    assert len({check.name for check in found}) == len(found)
    return {check.name: check for check in found}


def failed(checks):
    return {name for name, check in checks.items() if not check.passed}


def test_a_healthy_victim_passes_every_check():
    victim = Victim()
    problem = problem_of(victim)
    checks = checks_of(
        victim, problem, reads_text=True, transfer=problem.with_victim(Victim(seed=1, name="other"))
    )
    assert not failed(checks), format_checks(list(checks.values()))
    assert checks["huge_epsilon"].measured == 1.0
    assert set(checks) == {
        "zero_epsilon", "more_epsilon", "huge_epsilon", "best_kept", "zero_gradients", "step_size", "memory",
        "one_step", "doubled_steps", "black_box", "transfer", "deterministic", "logits", "real_path_clean",
        "real_path_attacked", "text",
    }  # fmt: skip
    curve = list(checks["more_epsilon"].measured.values())
    assert curve[0] > curve[-1] == 0.0  # a sample on which the attack can fail and succeed
    assert 0.1 < curve[1] < 0.95
    require_honest(list(checks.values()))
    assert json.loads(json.dumps([check.to_dict() for check in checks.values()]))


def test_stairs_hide_gradients():
    checks = checks_of(Victim(bend=lambda margin: (margin * 8).round() / 8 + 0.0 * margin))
    assert checks["zero_gradients"].measured == 1.0
    assert {"zero_gradients", "huge_epsilon", "black_box"} <= failed(checks)
    assert "BPDA" in checks["zero_gradients"].message


def test_quantised_input_hides_gradients():
    def quantise(pixels):
        return (pixels * 127).round() / 127 + 0.0 * pixels

    assert {"zero_gradients", "huge_epsilon", "black_box"} <= failed(checks_of(Victim(before=quantise)))


def test_saturation_hides_gradients():
    checks = checks_of(Victim(bend=lambda margin: 1000 * (torch.sigmoid(60 * margin) - 0.5)))
    assert {"zero_gradients", "logits"} <= failed(checks)


def test_a_random_defence_is_no_deterministic_victim():
    victim = Victim()
    problem = problem_of(victim)
    victim.bend = lambda margin: margin + 0.3 * torch.randn(len(margin))
    checks = checks_of(victim, problem)
    assert {"deterministic", "zero_epsilon"} <= failed(checks)
    assert "eval()" in checks["deterministic"].message


def test_dropout_left_on_is_found():
    victim = Victim()
    problem = problem_of(victim)
    victim.net.insert(5, nn.Dropout(0.2))
    assert "deterministic" in failed(checks_of(victim, problem))


@pytest.mark.parametrize(
    "bend",
    [lambda m: 2 * m.sigmoid() - 1, lambda m: m.sigmoid() - 0.5, lambda m: 7 * m.sigmoid() - 3.5],
    ids=["difference", "probability", "scaled"],
)
def test_probabilities_taken_for_logits(bend):
    assert failed(checks_of(Victim(bend=bend))) == {"logits"}


def test_logits_of_any_scale_pass_and_hidden_softmax_does_not():
    logit = torch.linspace(-5, 5, 20)
    likely = logit.double().sigmoid()
    for scale in (0.1, 1.0, 3.0):
        assert margins_are_logits(scale * logit, likely).passed
    assert margins_are_logits(logit[9:11], likely[9:11]).passed  # unsure: both are a line there
    assert not margins_are_logits((2 * likely - 1).float(), likely).passed
    sure = torch.tensor([5.0, -5.0]).double().sigmoid()  # equally sure: any multiple fits
    assert not margins_are_logits((2 * sure - 1).float(), sure).passed
    assert margins_are_logits(torch.tensor([5.0, -5.0]), sure).passed
    extreme = torch.tensor([40.0, -40.0, 2.0])
    assert margins_are_logits(extreme, extreme.float().sigmoid().double()).passed
    assert not margins_are_logits(torch.zeros(3), extreme.double().sigmoid()).passed


def test_a_real_path_that_differs():
    checks = checks_of(Victim(real=lambda probability: 1 - probability))
    assert {"real_path_clean", "real_path_attacked"} <= failed(checks)
    assert checks["real_path_clean"].measured["same"] < 0.1
    # A threshold elsewhere shows on attacked pictures, which lie near it.
    shifted = checks_of(Victim(real=lambda probability: probability**1.6))
    assert "real_path_attacked" in failed(shifted)


def test_paths_forgive_rounding_at_the_threshold_and_nothing_else():
    margins = torch.tensor([0.01, 2.0])
    assert paths_agree("x", margins, torch.tensor([0.499, 0.88], dtype=torch.float64)).passed
    assert not paths_agree("x", margins, torch.tensor([0.45, 0.88], dtype=torch.float64)).passed
    unjudged = paths_agree("x", margins, torch.tensor([torch.nan, 0.88], dtype=torch.float64))
    assert not unjudged.passed
    assert unjudged.measured == {"same": 0.5, "apart": 1.0}


def wavy(margin):
    return margin + 0.5 * torch.sin(6 * margin)


def test_a_large_step_and_the_last_iterate_are_found_without_knowing_the_code():
    checks = checks_of(Victim(gain=25), strong=Buggy(steps=20), doubled=None)
    assert {"memory", "best_kept"} <= failed(checks)
    assert checks["memory"].measured > 0.9
    assert "forgotten" in checks["best_kept"].message


def test_the_real_attack_with_the_same_faults_is_found():
    weak = PGD(steps=20, alpha=1 / 0.3, allow_large_steps=True, last_iterate=True)
    assert {"step_size", "memory", "best_kept"} <= failed(
        checks_of(Victim(gain=25), strong=weak, doubled=None)
    )


def test_small_steps_without_memory_of_the_best():
    weak = PGD(steps=20, alpha=0.9, last_iterate=True)
    checks = checks_of(Victim(bend=wavy, gain=25), strong=weak, doubled=None)
    assert "best_kept" in failed(checks)
    assert not {"step_size", "memory"} & failed(checks)


def test_gradients_that_mislead_show_against_one_step():
    checks = checks_of(Victim(bend=wavy, gain=25))
    assert {"one_step", "black_box"} <= failed(checks)
    assert "best_kept" not in failed(checks)


def test_too_few_steps_show_when_doubled():
    checks = checks_of(Victim(), strong=PGD(steps=4, alpha=0.05), doubled=PGD(steps=8, alpha=0.05))
    assert {"doubled_steps", "one_step"} <= failed(checks)


def test_an_attack_that_leaves_its_budget_stops_everything():
    with pytest.raises(AttackError, match="cheat left its budget"):
        checks_of(Victim(), black_box=Cheat())


def test_text_that_moves_nothing():
    deaf = Victim(text=0.0)
    checks = checks_of(deaf, reads_text=True)
    assert failed(checks) == {"text"}
    assert "claims to read prompts" in checks["text"].message
    silent = checks_of(deaf)
    assert not failed(silent)
    assert "Does not read text" in silent["text"].message


def test_swapped_prompts_differ_and_keep_the_policy():
    images = pictures(4)
    same = Problem(Victim(), images, [Context("one", "p")] * 4, torch.ones(4), ThreatModel(0.1))
    assert all(context.prompt != "one" and context.policy == "p" for context in swap_prompts(same))
    mixed = Problem(
        Victim(),
        images,
        [Context("a"), Context("a"), Context(None), Context("b")],
        torch.ones(4),
        ThreatModel(0.1),
    )
    assert [context.prompt for context in swap_prompts(mixed)] == ["b", "b", "b", "a"]


def test_the_sample_is_of_rows_judged_right():
    victim = Victim()
    images = pictures()
    problem = Problem(victim, images, [Context("a")] * 24, torch.ones(24), ThreatModel(EPSILON))
    rows = sample_rows(problem, 5)
    assert len(rows) == 5
    assert bool((problem.clean_margins()[rows] >= 0).all())
    assert len(set(rows.tolist())) == 5
    wrong = problem.subset((problem.clean_margins() < 0).nonzero().flatten())
    with pytest.raises(AttackError, match="misjudges all"):
        check_honesty(wrong, strong=PGD(steps=2))


def test_failures_are_raised_together_and_tabled():
    checks = [
        Check("one", True, 0.5, 1.0, "Fine."),
        Check("two", False, {"a": 1.0, "b": 2.0}, 0.1, "Broken here."),
        Check("three", False, 3.0, 0.1, "And there."),
    ]
    with pytest.raises(AttackError, match=r"2 of 3 .*\n- two: Broken here\.\n- three: And there\."):
        require_honest(checks)
    require_honest(checks[:1])
    table = format_checks(checks).splitlines()
    assert len(table) == 4
    assert table[1].startswith("ok")
    assert "FAILED" in table[2]
    assert "a 1, b 2" in table[2]
    assert (
        len({line.index(word) for line, word in zip(table[1:], ("Fine", "Broken", "And"), strict=True)}) == 1
    )


def found_of(margins, misjudged=None):
    margin = torch.tensor(margins)
    missed = torch.zeros(len(margin)).bool() if misjudged is None else torch.tensor(misjudged)
    return AttackResult(torch.zeros(len(margin), 3, 2, 2), margin, torch.ones(len(margin)).long(), missed)


def test_orders_of_results():
    weak, strong = found_of([-1.0, 1.0, 1.0, 1.0]), found_of([1.0, -1.0, -1.0, -1.0])
    assert iterative_beats_one_step(strong, weak).passed  # one row of chance
    assert not iterative_beats_one_step(weak, strong).passed
    two = found_of([-1.0, -1.0, 1.0, 1.0])
    assert not iterative_beats_one_step(
        two, found_of([1.0, 1.0, -1.0, -1.0])
    ).passed  # equal sums, other rows
    assert doubling_changes_little(two, weak).passed
    assert not doubling_changes_little(weak, strong).passed
    assert not white_box_beats("x", weak, strong.margin < 0).passed
    assert white_box_beats("x", strong, weak.margin < 0).passed
    assert not more_epsilon_never_helps({0.1: strong, 0.2: weak}).passed
    assert more_epsilon_never_helps({0.2: strong, 0.1: weak}).passed
    assert huge_epsilon_breaks([found_of([-1.0, -1.0], [False, True])]).passed
    assert huge_epsilon_breaks([found_of([-1.0, -1.0]), found_of([-1.0, 1.0])]).passed
    stuck = huge_epsilon_breaks([found_of([1.0, -1.0]), found_of([1.0, 1.0])])
    assert (stuck.passed, stuck.measured) == (False, 0.5)


def test_steps_by_any_name():
    assert step_is_small(PGD(steps=20)).passed
    assert not step_is_small(replace(PGD(steps=20), alpha=1.0, allow_large_steps=True)).passed
    assert step_is_small(RandomSearch()) is None


def test_a_record_follows_subsets_and_counts_only_what_is_allowed():
    problem = RecordingProblem(problem_of(Victim()))
    rows = torch.tensor([3, 5])
    part = problem.subset(rows)
    part.signed_margins(part.images, torch.tensor([0, 1]))
    assert problem.record.queries.nonzero().flatten().tolist() == [3, 5]
    assert torch.allclose(problem.record.best[rows], problem.clean_margins()[rows])
    before = problem.record.best.clone()
    far = PGD(steps=5).run(part.with_epsilon(1.0)).pixels
    assert bool((part.signed_margins(far, torch.tensor([0, 1])) < before[rows] - 0.1).all())
    assert torch.equal(problem.record.best, before)
    assert problem.record.queries[3] == 2
    assert problem.record.jump_share == 0.0


def test_costs_are_counted_with_the_problem():
    victim, spent = Victim(), Spent()
    plain = problem_of(victim)
    problem = Problem(victim, plain.images, plain.contexts, plain.signs, plain.threat, spent=spent)
    check_honesty(problem, strong=PGD(steps=3), rows=4)
    assert spent.forwards > 24
    assert spent.backwards > 0
