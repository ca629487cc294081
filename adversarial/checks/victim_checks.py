"""Honesty checks of the victim: its margins are logits, repeatable, and agree with the deployed path."""

import numpy as np
import torch
from torch import Tensor

from adversarial.problem import Problem
from adversarial.storing import to_images
from adversarial.threat import round_to_8_bits
from adversarial.victim import Context

from .check import Check, build_check

_CLIPPED = 12.0
"""Logits are clipped here, as larger ones give probability 1 in float32."""
_EXCESS = 0.02
"""By how much of the margins' norm probabilities may fit better than logits."""
_CLOSE = 0.02
"""Difference of probabilities that rounding may cause near the threshold."""
_OTHER_PROMPT = "a red balloon over a lake"
"""Swapped in where all rows have the same prompt."""


def score_both_paths(problem: Problem, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """(N, 3, H, W) pixels, rounded to bytes -> (N,) margins and (N,) float64 p(unsafe) by the real path."""
    rounded = round_to_8_bits(pixels)
    margins = problem.all_signed_margins(rounded) * problem.signs
    probabilities = torch.empty(len(problem), dtype=torch.float64)
    for rows in problem.batches(torch.arange(len(problem))):
        contexts = [problem.contexts[row] for row in rows.tolist()]
        scores = problem.victim.score(to_images(rounded[rows]), contexts)
        probabilities[rows] = torch.from_numpy(np.asarray(scores, dtype=np.float64))
    return margins, probabilities


def swap_prompts(problem: Problem) -> list[Context]:
    """N contexts, each with the prompt of a later row that differs, or a fixed one if all prompts are the same."""
    prompts, count = [context.prompt for context in problem.contexts], len(problem)
    contexts = []
    for row, context in enumerate(problem.contexts):
        # Prompts of the other rows, in a circle from the next one on.
        later = (prompts[(row + shift) % count] for shift in range(1, count))
        other = next(
            (prompt for prompt in later if prompt is not None and prompt != context.prompt), _OTHER_PROMPT
        )
        contexts.append(Context(other, context.policy))
    return contexts


def passes_agree(problem: Problem, pixels: Tensor) -> Check:
    """Two passes over the same (N, 3, H, W) pixels give the same margins."""
    first, second = problem.all_signed_margins(pixels), problem.all_signed_margins(pixels)
    apart, limit = float((first - second).abs().max()), 1e-4 * max(1.0, float(first.abs().max()))
    return build_check(
        "deterministic",
        apart <= limit,
        apart,
        limit,
        f"Two passes over the same pixels differ by {apart:.2g}.",
        "The victim is random: call eval() and set dropout to 0; a randomised defence must be attacked in "
        "expectation (EoT).",
    )


def margins_are_logits(margins: Tensor, probabilities: Tensor) -> Check:
    """Margins are not differences of probabilities, as softmax outputs taken for logits would be.

    A probability of 0.99 is a logit of 4.6, but a difference of probabilities of 0.98. The check finds that difference
    and any multiple of it. Measured is how much worse the best multiple of the logits fits the margins than the best
    multiple of the differences, as a share of the margins' norm.

    Args:
        margins: (N,), positive where the victim says unsafe.
        probabilities: (N,) p(unsafe) of the same pictures by the real path; NaN is left out.
    """
    known = torch.isfinite(probabilities)
    likely = probabilities[known]
    got = margins[known].double().clamp(-_CLIPPED, _CLIPPED)
    logits, differences = torch.logit(likely).clamp(-_CLIPPED, _CLIPPED), 2 * likely - 1
    # Positive where margins are closer to a multiple of 2p - 1 than to a multiple of logit(p).
    excess = _misfit(got, logits) - _misfit(got, differences)
    from_logits, from_differences = _distance(got, logits), _distance(got, differences)
    # Near p = 0.5 both shapes are lines and fit equally well, so the difference itself is tested as well.
    same = from_differences < 0.02 and from_logits > 0.2
    return build_check(
        "logits",
        bool(got.any()) and not same and excess <= _EXCESS,
        excess,
        _EXCESS,
        f"Margins lie {from_logits:.2g} from logits, {from_differences:.2g} from differences of probabilities.",
        "They behave like probabilities, whose gradients vanish with confidence: return logits.",
    )


def _distance(values: Tensor, others: Tensor) -> float:
    return float((values - others).square().mean().sqrt())


def _misfit(values: Tensor, shape: Tensor) -> float:
    # Least squares over multiples of the shape.
    scale = (values * shape).sum() / shape.square().sum().clamp(min=1e-12)
    return float((values - scale * shape).norm() / values.norm().clamp(min=1e-12))


def paths_agree(what: str, margins: Tensor, probabilities: Tensor) -> Check:
    """The attacked margins and the deployed path agree on the same pictures.

    A row agrees if both verdicts are the same, or both probabilities are within 0.02; a row that the real path leaves
    unjudged (NaN) does not agree.

    Args:
        what: name of the pictures.
        margins: (N,) of the attacked path, positive where it says unsafe.
        probabilities: (N,) p(unsafe) by the real path.
    """
    apart = (probabilities - margins.double().sigmoid()).abs()
    verdicts = ((probabilities >= 0.5) == (margins >= 0)) & torch.isfinite(probabilities)
    share = float((verdicts | (apart <= _CLOSE)).double().mean())
    return build_check(
        f"real_path_{what}",
        share >= 0.98,
        {"same": share, "apart": float(apart.nan_to_num(1.0).max())},
        0.98,
        f"Attacked and real path agree on {share:.1%} of rows.",
        "The attacked function is not the deployed one: compare preprocessing, dtype, prompt, threshold.",
    )


def text_moves_margins(problem: Problem, reads_text: bool) -> Check:
    """Other prompts change the margins of a victim that claims to read text; measured is the share of rows changed."""
    moved = (
        problem.with_contexts(swap_prompts(problem)).all_signed_margins(problem.images)
        - problem.clean_margins()
    ).abs() > 1e-4
    share = float(moved.float().mean())
    reads = share >= 0.5
    return build_check(
        "text",
        reads or not reads_text,
        share,
        0.5 if reads_text else 0.0,
        f"{'Reads text' if reads else 'Does not read text'}: another prompt moves the margin of {share:.1%} of rows.",
        "It claims to read prompts, but ignores them, as attention over a single key does.",
    )
