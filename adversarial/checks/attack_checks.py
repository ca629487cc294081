"""Honesty checks of attack results: each compares results that must be ordered if attacks and gradients work."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from adversarial.problem import AttackResult, Problem
from adversarial.search import Attack

from .check import Check, build_check
from .recording import Record

SMALL_SHARE = 0.02
"""Share of rows that may differ by chance; at least one row is allowed."""
_SLACK = 1e-9
"""Rounding error of shares."""


def success_rate(found: AttackResult) -> float:
    """Share of successes among the rows judged right when clean; 0 without such rows."""
    return float(found.success.sum()) / max(1, int((~found.misjudged).sum()))


def robust_accuracy(found: AttackResult) -> float:
    """Share of all rows that are judged right, clean and attacked."""
    return float((~found.misjudged & (found.margin >= 0)).float().mean())


def zero_epsilon_is_clean(problem: Problem, found: AttackResult) -> Check:
    """With epsilon 0 the attack returns the clean images, their margins and no success."""
    clean = problem.clean_margins()
    moved, changed = (
        float((found.pixels - problem.images).abs().max()),
        float((found.margin - clean).abs().max()),
    )
    limit, success = 1e-4 * max(1.0, float(clean.abs().max())), success_rate(found)
    return build_check(
        "zero_epsilon",
        moved <= 1e-6 and changed <= limit and not success,
        {"pixels": moved, "gap": changed, "success": success},
        limit,
        f"At epsilon 0 pixels move by {moved:.2g}, margins by {changed:.2g}.",
        "Something other than the budget changes the verdict: dropout, noise, preprocessing.",
    )


def more_epsilon_never_helps(found: Mapping[float, AttackResult]) -> Check:
    """Robust accuracy does not rise with epsilon; `found` holds an independent run for each."""
    curve = {f"{epsilon * 255:.4g}/255": robust_accuracy(found[epsilon]) for epsilon in sorted(found)}
    values, limit = list(curve.values()), _some_rows(next(iter(found.values())))
    # The largest rise between any smaller and any larger budget, not only between neighbours.
    rise = max(later - value for place, value in enumerate(values) for later in values[place:])
    return build_check(
        "more_epsilon",
        rise <= limit + _SLACK,
        curve,
        limit,
        f"Robust accuracy rises by at most {rise:.1%} of rows with epsilon.",
        "A larger ball holds the smaller one: the attack fails to search it.",
    )


def huge_epsilon_breaks(
    found: Sequence[AttackResult],
    attack: str = "the attack",
    alone: Mapping[str, Sequence[AttackResult]] | None = None,
    *,
    by_queries: bool = False,
) -> Check:
    """At budgets that turn any picture into any other, the attack succeeds.

    Args:
        found: its results at each huge budget. Success at any of them counts, as the largest ball contains the others
            and an attack may be stuck in it.
        attack: its name, for the message.
        alone: results of other attacks by name, for the message.
        by_queries: whether the attack takes no gradients, so that more queries may be the cure.
    """
    cause = "it has too few queries" if by_queries else "gradients are masked"
    success = _success_share(found)
    others = "".join(f", {name} alone on {_success_share(each):.1%}" for name, each in (alone or {}).items())
    return build_check(
        "huge_epsilon",
        success >= 0.99,
        success,
        0.99,
        f"At a huge epsilon {attack} succeeds on {success:.1%} of rows{others}.",
        f"No classifier withstands that: the attack is broken, or {cause}.",
    )


def _success_share(found: Sequence[AttackResult]) -> float:
    """Share of the rows judged right when clean on which any of the runs succeeds."""
    success = torch.stack([each.success for each in found]).any(0)
    return float(success.sum()) / max(1, int((~found[0].misjudged).sum()))


def best_is_kept(found: AttackResult, record: Record) -> Check:
    """The attack returns the best point within its budget that it queried."""
    slack = 1e-3 * found.margin.abs().clamp(min=1.0)
    # Among successes, one that survives rounding to bytes may be preferred to one with a lower margin.
    forgotten = (record.best < found.margin - slack) & (found.margin >= 0)
    # Losing a success is never accepted; a lower margin without success is, on a few rows.
    share, lost = float(forgotten.float().mean()), int((forgotten & (record.best < 0)).sum())
    return build_check(
        "best_kept",
        not lost and share <= SMALL_SHARE,
        share,
        SMALL_SHARE,
        f"A better point was forgotten on {share:.1%} of rows, on {lost} rows a success.",
        "Keep the best iterate, not the last.",
    )


def gradients_are_not_zero(zeros: int, taken: int) -> Check:
    """At most 1 % of the gradients taken are zero in every pixel."""
    share = zeros / max(1, taken)
    return build_check(
        "zero_gradients",
        share <= 0.01,
        share,
        0.01,
        f"Of {taken} gradients {share:.1%} are zero in every pixel.",
        "The margins are flat there (rounding, saturation, half precision): attack a smooth stand-in (BPDA), or the "
        "logits in place of what saturates.",
    )


def step_is_small(attack: Attack) -> Check | None:
    """The attack's step (`step` or `alpha`, in epsilons) is shorter than the budget; None if it has neither."""
    # PGD has both, and its `step` is the effective one where `alpha` is None.
    step = getattr(attack, "step", None)
    step = getattr(attack, "alpha", None) if step is None else step
    if not isinstance(step, int | float):
        return None
    return build_check(
        "step_size",
        step < 1,
        float(step),
        1.0,
        f"One step is {step:.3g} epsilons.",
        "From 2 on each step forgets the one before: give it as a share of epsilon, below 1.",
    )


def moves_are_small(record: Record) -> Check:
    """At most half of the recorded moves cross the whole L-inf ball, whatever step size the attack reports."""
    return build_check(
        "memory",
        record.jump_share <= 0.5,
        record.jump_share,
        0.5,
        f"Of all moves of a pixel {record.jump_share:.1%} cross the whole ball.",
        "Each step forgets the one before (FGSM in a loop): use smaller ones.",
    )


def iterative_beats_one_step(strong: AttackResult, one_step: AttackResult) -> Check:
    """Where one step succeeds, many steps do; measured is the share of rows where only one step succeeds."""
    # Rows on which one step succeeds and many do not, as total rates could hide them.
    only, limit = float((one_step.success & ~strong.success).float().mean()), _some_rows(strong)
    return build_check(
        "one_step",
        only <= limit + _SLACK and success_rate(strong) >= success_rate(one_step),
        only,
        limit,
        f"Only one step succeeds on {only:.1%} of rows; success is {success_rate(one_step):.1%} with one step, "
        f"{success_rate(strong):.1%} with many.",
        "Many steps should find what the first one does: check the step size and the loss.",
    )


def doubling_changes_little(strong: AttackResult, doubled: AttackResult) -> Check:
    """Doubling the steps raises the success rate by at most 5 % of rows."""
    rise, limit = success_rate(doubled) - success_rate(strong), max(0.05, 1 / max(1, len(strong.margin)))
    return build_check(
        "doubled_steps",
        rise <= limit + _SLACK,
        rise,
        limit,
        f"Twice the steps change the success by {rise:+.1%} of rows.",
        "The attack has not converged: give it more steps.",
    )


def white_box_beats(name: str, strong: AttackResult, fooled: Tensor) -> Check:
    """A weaker attacker, who succeeds on `fooled` (N,) bool rows, does not beat the white-box attack."""
    # A transfer attack may also fool rows that were misjudged when clean; those do not count.
    lead = float((fooled & ~strong.misjudged).float().mean() - strong.success.float().mean())
    limit = _some_rows(strong)
    return build_check(
        name,
        lead <= limit + _SLACK,
        lead,
        limit,
        f"Compared with the white box, an attacker who sees less succeeds on {lead:+.1%} of rows.",
        "That is a sign of masked gradients: the victim is less robust than the white-box attack suggests.",
    )


def _some_rows(found: AttackResult) -> float:
    return max(SMALL_SHARE, 1 / max(1, len(found.margin)))
