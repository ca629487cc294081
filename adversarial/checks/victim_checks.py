"""Honesty checks of the victim: whether what is attacked is smooth, repeatable, and the thing that is deployed."""

import numpy as np
import torch
from torch import Tensor

from adversarial.problem import Context, Problem
from adversarial.storing import to_images
from adversarial.threat import round_to_8_bits

from .check import Check, build_check

_CLIPPED = 12.0
"""Logits beyond are one to a probability in float32."""
_EXCESS = 0.02
"""Share of the margins' length by which probabilities may fit better than logits."""
_CLOSE = 0.02
"""Difference of probabilities that rounding may leave near the threshold."""
_ANOTHER = "a red balloon over a lake"
"""The other prompt, where all rows have the same."""


def score_both_paths(problem: Problem, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Round (N, 3, H, W) to bytes -> (N,) margins and (N,) float64 p(unsafe) by the real path, of the same pictures."""
    rounded = round_to_8_bits(pixels)
    margins = problem.all_signed_margins(rounded) * problem.signs
    probabilities = torch.empty(len(problem), dtype=torch.float64)
    for rows in problem.batches(torch.arange(len(problem))):
        contexts = [problem.contexts[row] for row in rows.tolist()]
        scores = problem.victim.score(to_images(rounded[rows]), contexts)
        probabilities[rows] = torch.from_numpy(np.asarray(scores, dtype=np.float64))
    return margins, probabilities


def swap_prompts(problem: Problem) -> list[Context]:
    """Contexts of (N,) rows with the prompt of a later row that has another, or, if all are alike, of nobody."""
    prompts, count = [context.prompt for context in problem.contexts], len(problem)
    turned = []
    for row, context in enumerate(problem.contexts):
        later = (prompts[(row + shift) % count] for shift in range(1, count))
        other = next(
            (prompt for prompt in later if prompt is not None and prompt != context.prompt), _ANOTHER
        )
        turned.append(Context(other, context.policy))
    return turned


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
        "The victim draws at random: call eval() and set dropout to 0; a random defence must be attacked in "
        "expectation (EoT).",
    )


def margins_are_logits(margins: Tensor, probabilities: Tensor) -> Check:
    """Margins do not look like differences of probabilities, as softmax outputs taken for logits do.

    A probability of 0.99 is a logit of 4.6, but a difference of probabilities of 0.98. Looked for are that difference
    itself, and anything proportional to it. Measured is how much worse the best multiple of the logits fits the margins
    than the best multiple of the differences, in shares of the margins' length.

    Args:
        margins: (N,), positive where the victim says unsafe.
        probabilities: (N,) p(unsafe) of the same pictures by the real path; NaN is left out.
    """
    known = torch.isfinite(probabilities)
    likely = probabilities[known]
    got = margins[known].double().clamp(-_CLIPPED, _CLIPPED)
    logits, differences = torch.logit(likely).clamp(-_CLIPPED, _CLIPPED), 2 * likely - 1
    excess = _misfit(got, logits) - _misfit(got, differences)
    from_logits, from_differences = _distance(got, logits), _distance(got, differences)
    same = from_differences < 0.02 and from_logits > 0.2
    return build_check(
        "logits",
        bool(got.any()) and not same and excess <= _EXCESS,
        excess,
        _EXCESS,
        f"Margins lie {from_logits:.2g} from logits, {from_differences:.2g} from differences of probabilities.",
        "They behave as probabilities, whose gradients vanish with confidence: give logits.",
    )


def _distance(values: Tensor, others: Tensor) -> float:
    return float((values - others).square().mean().sqrt())


def _misfit(values: Tensor, shape: Tensor) -> float:
    scale = (values * shape).sum() / shape.square().sum().clamp(min=1e-12)
    return float((values - scale * shape).norm() / values.norm().clamp(min=1e-12))


def paths_agree(what: str, margins: Tensor, probabilities: Tensor) -> Check:
    """What is attacked and what is deployed say the same of the same pictures.

    A row agrees if both verdicts are the same, or both probabilities within 0.02; a row that the real path leaves
    unjudged (NaN) does not.

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
        "What is attacked is not what is deployed: compare preprocessing, dtype, prompt, threshold.",
    )


def text_moves_margins(problem: Problem, reads_text: bool) -> Check:
    """Other prompts move the margins of a victim that claims to read them; measured is the share of rows that move."""
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
        "It claims to read prompts; attention over a single key, for one, has nothing to choose from.",
    )
