"""Checks that an attack is sound, as robust accuracy is only an upper bound.

The bound is loose where the attack is broken (steps too large, best point forgotten, too few steps) or where the victim
masks its gradients without being robust. Each check looks for one symptom of these. They follow Carlini et al. 2019
(arXiv 1902.06705, section 3), the flags of AutoAttack (Croce and Hein 2020) and the indicators of Pintor et al. 2022
(arXiv 2106.09947).

`check_honesty` runs the attacks on a sample of rows and all checks on their results. Each check is also a function of
its own.
"""

import math

import torch
from torch import Tensor

from adversarial.errors import AttackError
from adversarial.problem import AttackResult, Problem
from adversarial.search import Attack, run_verified

from .attack_checks import (
    best_is_kept,
    doubling_changes_little,
    gradients_are_not_zero,
    huge_epsilon_breaks,
    iterative_beats_one_step,
    more_epsilon_never_helps,
    moves_are_small,
    step_is_small,
    white_box_beats,
    zero_epsilon_is_clean,
)
from .check import Check, format_checks, require_honest
from .recording import RecordingProblem
from .victim_checks import margins_are_logits, passes_agree, paths_agree, score_both_paths, text_moves_margins

__all__ = ["Check", "check_honesty", "format_checks", "require_honest"]

HUGE = (128 / 255, 1.0)
"""L-inf budgets at which any picture can be made grey, and turned into any other."""


def check_honesty(
    problem: Problem,
    *,
    strong: Attack,
    one_step: Attack | None = None,
    black_box: Attack | None = None,
    transfer: Problem | None = None,
    doubled: Attack | None = None,
    huge: Attack | None = None,
    reads_text: bool = False,
    rows: int = 32,
) -> list[Check]:
    """Run all checks that apply, on a sample of rows that the victim judges right when clean.

    The strong attack runs once for each of six budgets, the others once at the problem's own; at the two huge ones
    `huge` runs beside it, if given.

    Args:
        problem: victim, images and budget.
        strong: the attack that the evaluation rests on.
        one_step: a weaker gradient attack (FGSM), which it must beat.
        black_box: an attack without gradients (Square), which must not beat it.
        transfer: the same rows against another victim (`problem.with_victim(other)`), where `strong` crafts pixels that
            must not fool this victim more often than its own do.
        doubled: the strong attack with twice the steps, which must change little.
        huge: the attack at the huge budgets, by default the strong one. In so large a ball one run may be stuck in a
            corner, which says nothing about the victim's gradients; more restarts avoid that.
        reads_text: whether the victim claims that prompts matter.
        rows: size of the sample.

    Raises:
        AttackError: no row is judged right when clean; an attack leaves its budget (see `run_verified`).
    """
    places = sample_rows(problem, rows)
    sample, recorded = problem.subset(places), RecordingProblem(problem.subset(places))
    # Costs are shared with the problem, so only what the strong attack adds to them counts.
    backwards, zeros = sample.spent.backwards, sample.spent.zero_gradients
    found = run_verified(strong, recorded)
    backwards, zeros = sample.spent.backwards - backwards, sample.spent.zero_gradients - zeros
    checks = [*_budget_checks(sample, found, strong, huge), best_is_kept(found, recorded.record)]
    if strong.needs_gradients:
        checks.append(gradients_are_not_zero(zeros, backwards))
        checks += [step] if (step := step_is_small(strong)) else []
        checks += [moves_are_small(recorded.record)] if problem.threat.norm == "linf" else []
    if one_step is not None:
        checks.append(iterative_beats_one_step(found, run_verified(one_step, sample)))
    if doubled is not None:
        checks.append(doubling_changes_little(found, run_verified(doubled, sample)))
    if black_box is not None:
        checks.append(white_box_beats("black_box", found, run_verified(black_box, sample).success))
    if transfer is not None:
        other = run_verified(strong, transfer.subset(places))
        checks.append(white_box_beats("transfer", found, sample.all_signed_margins(other.pixels) < 0))
    stored = (
        sample.threat.quantize(found.pixels, sample.images) if sample.threat.can_be_stored else found.pixels
    )
    # Both paths see the same bytes, clean and attacked.
    margins, probabilities = score_both_paths(sample, sample.images)
    return [
        *checks,
        passes_agree(sample, found.pixels),
        margins_are_logits(margins, probabilities),
        paths_agree("clean", margins, probabilities),
        paths_agree("attacked", *score_both_paths(sample, stored)),
        text_moves_margins(sample, reads_text),
    ]


def _budget_checks(sample: Problem, found: AttackResult, strong: Attack, huge: Attack | None) -> list[Check]:
    """Checks over budgets: `found` at the problem's own epsilon, and one run at each other one."""
    largest, budgets = huge or strong, huge_epsilons(sample)
    by_epsilon = {sample.threat.epsilon: found}
    for epsilon in epsilon_grid(sample):
        attack = largest if epsilon in budgets else strong
        by_epsilon[epsilon] = run_verified(attack, sample.with_epsilon(epsilon))
    alone = None
    if huge is not None:
        alone = {strong.name: [run_verified(strong, sample.with_epsilon(epsilon)) for epsilon in budgets]}
    return [
        zero_epsilon_is_clean(sample, run_verified(strong, sample.with_epsilon(0.0))),
        more_epsilon_never_helps(by_epsilon),
        huge_epsilon_breaks(
            [by_epsilon[epsilon] for epsilon in budgets],
            largest.name,
            alone,
            by_queries=not largest.needs_gradients,
        ),
    ]


def sample_rows(problem: Problem, rows: int) -> Tensor:
    """(B,) indices of at most `rows` rows judged right when clean, evenly spaced.

    Raises:
        AttackError: there is none.
    """
    right = (problem.clean_margins() >= 0).nonzero().flatten()
    if not len(right):
        raise AttackError(
            f"{problem.victim.name} misjudges all {len(problem)} images when clean: nothing is left to attack."
        )
    count = min(rows, len(right))
    return right[torch.arange(count) * len(right) // count]


def huge_epsilons(problem: Problem) -> tuple[float, ...]:
    """`HUGE` in the problem's norm; in L2 the norm of a change of that size in every value."""
    scale = 1.0 if problem.threat.norm == "linf" else math.sqrt(problem.images[0].numel())
    return tuple(epsilon * scale for epsilon in HUGE)


def epsilon_grid(problem: Problem) -> list[float]:
    """Half and twice the problem's budget, and the huge ones."""
    huge, epsilon = huge_epsilons(problem), problem.threat.epsilon
    return sorted({epsilon / 2, min(2 * epsilon, huge[-1]), *huge} - {epsilon})
