"""Results of attacks through the prompt, and the queries that they share.

The pictures stay as they are (clean, or as an attack on pixels left them); only `Context.prompt` changes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from adversarial.errors import AttackError
from adversarial.problem import Problem
from adversarial.victim import Context


@dataclass
class FamilyResult:
    """What one family of prompts achieved on N rows."""

    margins: list[list[float]]
    """N lists: the signed margin under each prompt that was tried, in the family's order."""
    misjudged: Tensor
    """(N,) bool, rows that were misjudged already; they are left out of the rates."""

    @property
    def most_prompts(self) -> int:
        """The N of ASR-N: the largest number of prompts that a row had."""
        return max(map(len, self.margins), default=0)

    def asr_1(self) -> float:
        """Chance of success with one prompt drawn from the family, mean over rows; NaN without rows.

        A row for which the family had no prompt counts as no success.
        """
        return self._mean(lambda margins: sum(margin < 0 for margin in margins) / max(len(margins), 1))

    def asr_n(self) -> float:
        """Share of rows on which any of the family's prompts succeeds; NaN without rows."""
        return self._mean(lambda margins: float(any(margin < 0 for margin in margins)))

    def _mean(self, rate: Callable[[list[float]], float]) -> float:
        rows = zip(self.margins, self.misjudged.tolist(), strict=True)
        rates = [rate(margins) for margins, misjudged in rows if not misjudged]
        return sum(rates) / len(rates) if rates else math.nan


@dataclass
class TextResult:
    """The best prompt that an attack found for each of N rows."""

    prompts: list[str | None]
    """N prompts: misjudged ones, else those with the lowest signed margin; the row's own where none was better."""
    margin: Tensor
    """(N,) signed margin; below 0 the attack succeeded."""
    family: list[str]
    """The family of each prompt; empty for the row's own."""
    queries: Tensor
    """(N,) int64, queries of the victim, the first one with the row's own prompt left out."""
    misjudged: Tensor
    """(N,) bool, whether the row was misjudged with its own prompt, which is no success."""
    families: dict[str, FamilyResult] = field(default_factory=dict)

    @classmethod
    def initial(cls, problem: Problem, pixels: Tensor | None = None) -> "TextResult":
        """Each row with its own prompt, at (N, 3, H, W) `pixels` or at the clean images."""
        margin = problem.clean_margins() if pixels is None else problem.all_signed_margins(pixels)
        count = len(problem)
        return cls(
            prompts=[context.prompt for context in problem.contexts],
            margin=margin.clone(),
            family=[""] * count,
            queries=torch.zeros(count, dtype=torch.long),
            misjudged=problem.clean_margins() < 0,
        )

    @property
    def success(self) -> Tensor:
        """(N,) bool: misjudged with the found prompt, but not with its own."""
        return (self.margin < 0) & ~self.misjudged

    def contexts(self, problem: Problem) -> list[Context]:
        """The problem's contexts with the found prompts."""
        return with_prompts(problem, self.prompts)

    def update(self, row: int, prompt: str | None, margin: float, family: str) -> None:
        """Count a query, and keep the prompt if it is the best."""
        self.queries[row] += 1
        # Strictly lower: of equal prompts the first one tried stays.
        if margin < float(self.margin[row]):
            self.prompts[row], self.family[row] = prompt, family
            self.margin[row] = margin


def with_prompts(problem: Problem, prompts: Sequence[str | None]) -> list[Context]:
    """The problem's contexts with other prompts."""
    return [
        replace(context, prompt=prompt) for prompt, context in zip(prompts, problem.contexts, strict=True)
    ]


def prompt_margins(problem: Problem, pixels: Tensor, prompts: Mapping[int, str | None]) -> dict[int, float]:
    """Signed margins of some rows under other prompts, in batches of one policy.

    Args:
        problem: of N rows.
        pixels: (N, 3, H, W) in [0, 1].
        prompts: row -> prompt.

    Returns:
        Row -> margin.
    """
    margins: dict[int, float] = {}
    # Sorted, so that results do not depend on the order of the dict.
    for rows in problem.batches(torch.tensor(sorted(prompts), dtype=torch.long)):
        part = problem.subset(rows)
        part = part.with_contexts(with_prompts(part, [prompts[row] for row in rows.tolist()]))
        found = part.signed_margins(pixels[rows], torch.arange(len(rows)))
        margins |= zip(rows.tolist(), found.tolist(), strict=True)
    return margins


def verify_prompts(found: TextResult, problem: Problem, pixels: Tensor | None = None) -> TextResult:
    """Compute the margins of the found prompts again, at (N, 3, H, W) `pixels` or at the clean images.

    Raises:
        AttackError: another number of prompts than rows.
    """
    if len(found.prompts) != len(problem):
        raise AttackError(
            f"Got {len(found.prompts)} prompts for {len(problem)} rows; an attack gives one each."
        )
    with_found = problem.with_contexts(found.contexts(problem))
    margin = with_found.all_signed_margins(problem.images if pixels is None else pixels)
    return replace(found, margin=margin, misjudged=problem.clean_margins() < 0)
