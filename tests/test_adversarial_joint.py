from dataclasses import dataclass, replace

import pytest
import torch

from adversarial.errors import AttackError
from adversarial.joint import JointAttack, run_joint_verified
from adversarial.pixels.pgd import PGD
from adversarial.problem import AttackResult, Problem, Spent
from adversarial.threat import ThreatModel
from adversarial.victim import Context
from eval.metrics.attack_rates import attack_success_rate

EPSILON = 8 / 255
WORTH = {"a seven": 1.0, "a harmless seven": 0.55, "a drawing of a balloon": 0.45, "SEVEN!": 1.6}


@dataclass
class Victim:
    """Margin = what the text says, plus what the pixels say; the budget moves the latter by 0.5 at most."""

    name: str = "sum"
    no_gradients: str | None = None
    worth: dict | None = None

    def margins(self, pixels, contexts):
        said = torch.tensor([(self.worth or WORTH)[context.prompt] for context in contexts])
        shown = torch.stack([pixels[:, 0].mean((1, 2)), pixels[:, 1].mean((1, 2))]).amin(0)
        return said + (shown - 0.5) * 0.5 / EPSILON

    def score(self, images, contexts):
        raise NotImplementedError


def problem_of(victim=None, count=4, prompt="a seven", after=("8bit",), sign=1.0, **options):
    images = torch.full((count, 3, 4, 4), 0.5)
    threat = ThreatModel(EPSILON, after=after)
    return Problem(
        victim or Victim(),
        images,
        [Context(prompt, "p")] * count,
        torch.full((count,), sign),
        threat,
        **options,
    )


def texts(row, context):
    return [replace(context, prompt=prompt) for prompt in WORTH]


def test_only_image_and_text_together_succeed():
    problem = problem_of()
    image, text = JointAttack(PGD(steps=20), [[]] * 4), JointAttack(None, texts)
    assert not run_joint_verified(image, problem).success.any()
    assert not run_joint_verified(text, problem).success.any()
    assert not PGD(steps=20).run(problem).success.any()
    found = run_joint_verified(JointAttack(PGD(steps=20), texts), problem)
    assert found.success.all()
    assert {context.prompt for context in found.contexts} == {"a drawing of a balloon"}
    assert found.passed[:, 0].all()
    assert found.attempts.tolist() == [1] * 4
    assert bool(problem.threat.within_budget(found.pixels, problem.images).all())
    assert torch.equal(
        found.margin, problem.with_contexts(found.contexts).signed_margins(found.pixels, torch.arange(4))
    )


def test_a_text_that_is_enough_costs_no_image_attack():
    spent = Spent()
    victim = Victim(worth={"a seven": 1.0, "a kite": -0.5})
    problem = problem_of(victim, spent=spent)
    attack = JointAttack(PGD(steps=20), [[Context("a kite", "p")]] * 4)
    found = run_joint_verified(attack, problem)
    assert found.success.all()
    assert torch.equal(found.pixels, problem.images)
    assert spent.backwards == 0
    assert found.passed[:, 0].all()


@dataclass(frozen=True)
class OneStep:
    """Moves every value by a fifth of the budget from where it starts, so that five attempts are needed."""

    start: torch.Tensor | None = None
    name: str = "one_step"
    needs_gradients: bool = False

    def starting_at(self, pixels):
        return OneStep(pixels)

    def run(self, problem):
        begin = problem.images if self.start is None else self.start
        pixels = problem.threat.project(begin - problem.threat.epsilon / 5, problem.images)
        rows = torch.arange(len(problem))
        return AttackResult(
            pixels, problem.signed_margins(pixels, rows), rows * 0 + 1, problem.clean_margins() < 0
        )


def test_rounds_go_on_where_the_last_one_stopped():
    problem = problem_of(after=())
    for rounds, passes in ((4, False), (5, True), (9, True)):
        found = run_joint_verified(JointAttack(OneStep(), texts, rounds=rounds), problem)
        assert bool(found.success.all()) == passes
        assert found.passed.shape == (4, rounds + 1)
    assert found.attempts.tolist() == [5] * 4
    assert not found.passed[:, 0].any()
    assert found.passed[0].tolist() == [False] * 4 + [True] * 6
    rates = attack_success_rate([True] * 4, ~found.misjudged, found.passed)
    assert (rates.asr_1.value, rates.asr_n.value, rates.attempts) == (0.0, 1.0, 10)


@dataclass(frozen=True)
class Fixed:
    """Darkens to the edge of the budget; has no start."""

    name: str = "fixed"
    needs_gradients: bool = False

    def run(self, problem):
        pixels = problem.threat.project(problem.images - 1, problem.images)
        rows = torch.arange(len(problem))
        return AttackResult(
            pixels, problem.signed_margins(pixels, rows), rows * 0 + 1, problem.clean_margins() < 0
        )


class Interacting(Victim):
    """One text is best when clean, another once the picture is dark."""

    def margins(self, pixels, contexts):
        dark = (0.5 - pixels.mean((1, 2, 3))) / EPSILON
        base = {"a seven": 1.0, "clean": 0.4, "dark": 0.8}
        slope = {"a seven": 0.0, "clean": 0.1, "dark": 1.0}
        return torch.stack(
            [base[c.prompt] - slope[c.prompt] * d for c, d in zip(contexts, dark, strict=True)]
        )


def test_texts_are_scored_again_at_the_attacked_pixels():
    candidates = [[Context("clean", "p"), Context("dark", "p")]] * 4
    problem = problem_of(Interacting())
    found = run_joint_verified(JointAttack(Fixed(), candidates, rounds=1), problem)
    assert found.success.all()  # by the last choice of text: the second attempt
    assert {context.prompt for context in found.contexts} == {"dark"}
    assert found.attempts.tolist() == [2] * 4
    assert not found.passed[:, 0].any()
    # Two texts kept in a round: the second one is attacked as well.
    kept = run_joint_verified(JointAttack(Fixed(), candidates, rounds=1, texts_per_round=2), problem)
    assert kept.passed.shape == (4, 3)
    assert kept.attempts.tolist() == [2] * 4


def test_rows_have_texts_of_their_own_and_misjudged_ones_are_left_out():
    problem = Problem(
        Victim(worth=WORTH | {"safe": -1.0}),
        torch.full((3, 3, 4, 4), 0.5),
        [Context("a seven"), Context("safe"), Context("a seven")],
        torch.ones(3),
        ThreatModel(EPSILON),
        batch_size=2,
    )
    found = run_joint_verified(
        JointAttack(PGD(steps=10), [[Context("a drawing of a balloon")], [Context("SEVEN!")], []]), problem
    )
    assert found.misjudged.tolist() == [False, True, False]
    assert found.success.tolist() == [True, False, False]
    assert found.contexts[1] == Context("safe")
    assert torch.equal(found.pixels[1], problem.images[1])
    assert found.attempts.tolist() == [1, 0, 3]


def test_storing_is_checked_under_each_rows_own_text():
    victim = Victim(worth={"a seven": 9.0, "weak": 0.45, "strong": 0.75})
    candidates = [
        [Context("strong", "p")],
        [Context("weak", "p")],
        [Context("strong", "p")],
        [Context("weak", "p")],
    ]
    found = run_joint_verified(JointAttack(PGD(steps=20), candidates, rounds=1), problem_of(victim))
    assert found.success.tolist() == found.passed[:, 0].tolist() == [False, True, False, True]
    backwards = run_joint_verified(
        JointAttack(PGD(steps=20), candidates[1:] + candidates[:1], rounds=1), problem_of(victim)
    )
    assert backwards.passed[:, 0].tolist() == [True, False, True, False]


def test_the_other_direction():
    problem = problem_of(Victim(worth={"a seven": -1.0, "SEVEN!": -0.4}), sign=-1.0)
    found = run_joint_verified(JointAttack(PGD(steps=20), [[Context("SEVEN!", "p")]] * 4), problem)
    assert found.success.all()
    assert {context.prompt for context in found.contexts} == {"SEVEN!"}


class Levels(Victim):
    """Gives way to a half-level change that no byte can hold, under one text; and to bytes under another."""

    def margins(self, pixels, contexts):
        levels = pixels * 255
        off = (levels - levels.round()).abs().amax((1, 2, 3))
        moved = (levels.round() - 128).abs().amax((1, 2, 3))
        fragile = 0.2 - off
        sturdy = 0.5 - 0.2 * moved
        return torch.stack([
            {"fragile": f, "sturdy": s, "a seven": torch.tensor(1.0)}[c.prompt]
            for c, f, s in zip(contexts, fragile, sturdy, strict=True)
        ])  # fmt: skip


@dataclass(frozen=True)
class Quarter:
    """Moves by 7.4 levels: under `fragile` it succeeds until it is rounded."""

    name: str = "quarter"
    needs_gradients: bool = False

    def run(self, problem):
        pixels = problem.threat.project(problem.images + 7.4 / 255, problem.images)
        rows = torch.arange(len(problem))
        return AttackResult(
            pixels, problem.signed_margins(pixels, rows), rows * 0 + 1, problem.clean_margins() < 0
        )


def test_a_success_that_rounding_undoes_does_not_stop_the_search():
    images = torch.full((2, 3, 4, 4), 128 / 255)
    contexts = [Context("a seven")] * 2
    candidates = [[Context("fragile"), Context("sturdy")]] * 2
    stored = Problem(Levels(), images, contexts, torch.ones(2), ThreatModel(EPSILON, after=("8bit",)))
    found = run_joint_verified(JointAttack(Quarter(), candidates, rounds=1, texts_per_round=2), stored)
    assert {context.prompt for context in found.contexts} == {"sturdy"}
    assert found.attempts.tolist() == [2, 2]
    raw = Problem(Levels(), images, contexts, torch.ones(2), ThreatModel(EPSILON, after=()))
    found = run_joint_verified(JointAttack(Quarter(), candidates, rounds=1, texts_per_round=2), raw)
    assert {context.prompt for context in found.contexts} == {"fragile"}
    # With the fragile text alone the raw success is still reported.
    only = run_joint_verified(JointAttack(Quarter(), [[Context("fragile")]] * 2, rounds=1), stored)
    assert only.success.all()
    assert only.passed.tolist() == [[False, True]] * 2


def test_batches_of_candidates_do_not_change_what_is_found():
    wide = run_joint_verified(JointAttack(PGD(steps=10), texts), problem_of(batch_size=64))
    narrow = run_joint_verified(JointAttack(PGD(steps=10), texts), problem_of(batch_size=1))
    assert torch.allclose(wide.margin, narrow.margin, atol=1e-5)
    assert wide.contexts == narrow.contexts


def test_a_joint_attack_that_cheats():
    @dataclass(frozen=True)
    class TooFar(Fixed):
        def run(self, problem):
            found = super().run(problem)
            return replace(found, pixels=found.pixels - 0.1)

    with pytest.raises(AttackError, match="joint left its budget on 4 of 4"):
        run_joint_verified(JointAttack(TooFar(), texts), problem_of())

    class Liar(JointAttack):
        def run(self, problem):
            found = super().run(problem)
            return replace(found, contexts=[Context("made up")] * 4)

    with pytest.raises(AttackError, match="no candidates, in rows"):
        run_joint_verified(Liar(None, texts), problem_of())

    class Boaster(JointAttack):
        def run(self, problem):
            found = super().run(problem)
            return replace(found, margin=found.margin - 9, passed=torch.ones_like(found.passed))

    found = run_joint_verified(Boaster(None, texts), problem_of())
    assert not found.success.any()
    assert not found.passed.any()


def test_what_a_joint_attack_refuses():
    with pytest.raises(AttackError, match="at least 1"):
        JointAttack(None, texts, rounds=0)
    with pytest.raises(AttackError, match="for 2 rows, but 4"):
        JointAttack(None, [[], []]).run(problem_of())
    assert not JointAttack(None, texts).needs_gradients
    assert JointAttack(PGD(), texts).needs_gradients
    with pytest.raises(AttackError, match="no gradients to pixels: JPEG in the way"):
        JointAttack(PGD(), texts).run(problem_of(Victim(no_gradients="JPEG in the way")))
