"""Run a suite of attacks against one classifier, and verify every success on the real path."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adversarial.checks.check import Check
from adversarial.checks.honesty import check_honesty
from adversarial.errors import AttackError
from adversarial.pixels.apgd import APGD
from adversarial.pixels.ensemble import Ensemble
from adversarial.pixels.pgd import FGSM, PGD
from adversarial.pixels.square import Square
from adversarial.problem import Problem, Spent
from adversarial.search import Attack, run_verified
from adversarial.storing import check_stored, to_images
from adversarial.threat import ThreatModel
from adversarial.victim import Context
from eval.own_classifier import check_scores
from eval.questions import Question
from judge.student.student import Student
from judge.vlm.questions import QuestionJudge

from .problems import PreparedProblem, attack_sign, build_problems, context_of, picture_of
from .suites import Suite, queries_only
from .trials import Row, Trial, VictimResults
from .victims import ClassifierVictim, check_victim

Progress = Callable[[str], Any]


class AdversarialExample(NamedTuple):
    """A picture whose verdict was changed."""

    clean: Tensor
    """(3, H, W) in [0, 1]."""
    stored: Tensor
    """(3, H, W) as stored and scored."""
    epsilon: float
    """The smallest budget of the suite that sufficed."""
    context: Context
    """The policy and the prompt that were asked about."""
    score: float
    """p(unsafe) of the picture as stored."""


def attack_victim(
    victim: ClassifierVictim,
    questions: Sequence[Question],
    suite: Suite,
    *,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress = lambda text: None,
) -> tuple[VictimResults, dict[str, AdversarialExample]]:
    """Attack every question that the victim judges right, at every budget of the suite.

    Args:
        victim: the classifier under attack.
        questions: the rows; the same for all victims that are compared.
        suite: attacks and budgets.
        batch_size: images in one forward pass.
        seed: of every random start.
        progress: called with a line about the next attack.

    Returns:
        All trials; and question -> its first adversarial example.

    Raises:
        AttackError: the suite needs gradients that the victim does not have, or an attack leaves its budget.
    """
    parts = build_problems(victim, questions, suite.threat, batch_size=batch_size, seed=seed)
    results = VictimResults(victim.name, _rows(questions, parts, suite.threat))
    pictures: dict[str, AdversarialExample] = {}
    for part in parts:
        names = [questions[place].id for place in part.places]
        # Rows without a success on bytes, and for each row the kinds of storage without one.
        left = torch.ones(len(names), dtype=torch.bool)
        not_broken = [set(suite.threat.after) for _ in names]
        for epsilon in suite.epsilons:
            headline = epsilon == suite.threat.epsilon
            for number, attack in enumerate(suite.attacks_at(epsilon)):
                # A row broken as bytes but still robust as, say, JPEG gets one attack per budget, or it would count as
                # robust at budgets where it was not attacked.
                encoded = torch.tensor([bool(entries) and not number for entries in not_broken])
                chosen = (left | encoded | headline).nonzero().flatten()
                if not len(chosen):
                    break
                progress(f"{victim.name}: {attack.name} at {epsilon * 255:.3g}/255 on {len(chosen)}")
                problem = part.problem.subset(chosen).with_epsilon(epsilon)
                trials, stored = run_attack(attack, problem, [names[row] for row in chosen.tolist()])
                results.trials += trials
                _add_cost(results, attack, problem.spent)
                for place, trial in enumerate(trials):
                    left[chosen[place]] &= not trial.success
                    not_broken[int(chosen[place])] -= {
                        entry for entry, success in trial.stored.items() if success
                    }
                    # Budgets ascend, so the first success has the smallest one.
                    if trial.success:
                        pictures.setdefault(trial.id, _example(problem, place, stored[place], epsilon))
    return results, pictures


def _example(problem: Problem, place: int, stored: Tensor, epsilon: float) -> AdversarialExample:
    context = problem.contexts[place]
    score = float(problem.victim.score(to_images(stored[None]), [context])[0])
    return AdversarialExample(problem.images[place], stored, epsilon, context, score)


def suite_for(victim: ClassifierVictim, suite: Suite) -> Suite:
    """The suite, or its attacks by queries where the victim gives no gradients.

    Raises:
        AttackError: it gives none, and every attack of the suite needs them.
    """
    if victim.no_gradients is None or suite.threat.knowledge == "queries":
        return suite
    try:
        return queries_only(suite)
    except AttackError as error:
        raise AttackError(
            f"{victim.name} gives no gradients ({victim.no_gradients}). {error} Attack it in the norm linf, with the "
            "preset strong."
        ) from None


def check_victim_sample(
    victim: ClassifierVictim, questions: Sequence[Question], threat: ThreatModel, size: int = 8
) -> None:
    """Check on a few questions what a victim gives back, that its two paths agree, and that it is in evaluation mode.

    Raises:
        AttackError: no probabilities of the right shapes; or what `check_victim` finds.
    """
    chosen = [question for question in questions if attack_sign(question, threat)][:size]
    if victim.no_gradients is None:
        check_victim(victim, list(map(picture_of, chosen)), list(map(context_of, chosen)))
        return
    for question in chosen[:2]:
        policy = question.row.taxonomy
        found = victim.classifier.score([picture_of(question)], [question.row.prompt], policy)
        try:
            check_scores(found, 1, len(policy))
        except ValueError as error:
            raise AttackError(f"{victim.name}: `score` gave back {error}.") from None


def run_attack(attack: Attack, problem: Problem, names: Sequence[str]) -> tuple[list[Trial], Tensor]:
    """Run one attack on N named images at one budget -> N trials, and the (N, 3, H, W) pictures as stored."""
    # A counter of its own: subsets share the cost of the problem they were taken from.
    problem.spent = Spent()
    found = run_verified(attack, problem)
    checked = check_stored(problem.victim, found, problem)
    clean = problem.clean_margins()
    trials = [
        Trial(
            id=name,
            attack=attack.name,
            epsilon=problem.threat.epsilon,
            gap_clean=float(clean[row]),
            gap=float(found.margin[row]),
            steps=int(found.steps[row]),
            raw=bool(found.success[row]),
            stored={entry: bool(checked.success[entry][row]) for entry in problem.threat.after},
            unjudged=any(bool(checked.unjudged[entry][row]) for entry in problem.threat.after),
            levels=max((float(values[row]) for values in checked.distance.values()), default=0.0),
        )
        for row, name in enumerate(names)
    ]
    return trials, problem.threat.quantize(found.pixels, problem.images)


def check_attack(
    victim: ClassifierVictim,
    questions: Sequence[Question],
    suite: Suite,
    *,
    steps: int,
    queries: int,
    other: ClassifierVictim | None = None,
    batch_size: int = 32,
) -> list[Check]:
    """Run the honesty checks of one victim, with the attack that its numbers rest on.

    At the huge budgets, where a single run may be stuck, an ensemble runs; the check's message names it.

    Args:
        victim: the classifier under attack.
        questions: of the suite; a sample is taken.
        suite: its headline is the budget.
        steps: of APGD.
        queries: of Square, which is checked instead of APGD where there are no gradients.
        other: a second victim, whose adversarial pictures must not fool this one more often than its own.
        batch_size: images in one forward pass.
    """
    parts = build_problems(victim, questions, suite.threat, batch_size=batch_size)
    problem = max((part.problem for part in parts), key=len)
    reads_text = isinstance(victim.classifier, Student | QuestionJudge)
    if victim.no_gradients is not None or suite.threat.knowledge == "queries":
        return check_honesty(problem, strong=Square(queries=queries), reads_text=reads_text)
    return check_honesty(
        problem,
        strong=APGD(steps=steps),
        one_step=FGSM(),
        black_box=Square(queries=queries) if suite.threat.norm == "linf" else None,
        transfer=None if other is None or other.no_gradients is not None else problem.with_victim(other),
        doubled=APGD(steps=2 * steps),
        huge=Ensemble(
            (APGD(steps=steps), APGD(steps=steps, restarts=5), PGD(steps=4 * steps, restarts=5)),
            f"an ensemble (APGD with 1 and 5 starts of {steps} steps, PGD with 5 starts of {4 * steps})",
        ),
        reads_text=reads_text,
    )


def _rows(questions: Sequence[Question], parts: Sequence[PreparedProblem], threat: ThreatModel) -> list[Row]:
    """The rows of all questions that match the attacker's goal, in their order."""
    scores = {place: score for part in parts for place, score in part.scores.items()}
    return [
        Row(
            id=questions[place].id,
            truth=attack_sign(questions[place], threat) > 0,
            source=questions[place].row.example.source,
            categories=tuple(
                "custom" if len(category.members) > 1 else category.key
                for category in questions[place].row.taxonomy
                if category.label(questions[place].row.example)
            ),
            clean=scores[place],
            image=questions[place].row.example.id,
        )
        for place in sorted(scores)
    ]


def _add_cost(results: VictimResults, attack: Attack, spent: Spent) -> None:
    total = results.spent.setdefault(attack.name, dict.fromkeys(asdict(spent), 0.0))
    for name, value in asdict(spent).items():
        total[name] += value
