"""White-box evasion through the prompt: token search (`adversarial/texts/tokens.py`) on the victim's margin."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from adversarial.problem import Problem
from adversarial.victim import Context

from .result import FamilyResult, TextResult, prompt_margins
from .tokens import Loss, SoftText, TokenResult, TokenSearch

Margin = Callable[[Tensor, Context], Loss]
"""(1, 3, H, W) pixels and their context -> a function from (B, L, W) embedded prompts to (B,) margins."""


@dataclass(frozen=True)
class TokenAttack:
    """Token search against a victim with gradients in the prompt's embeddings, row by row.

    The found tokens are queried again as a text, by the victim's own margins, and only that margin is reported.
    """

    soft: SoftText
    margin: Margin
    """The victim's margin at fixed pixels, such as `judge.student.student.student_margin`."""
    search: TokenSearch = field(default_factory=lambda: TokenSearch(stop_below=0.0))
    keep_prompt: bool = True
    """Keep as much of the row's prompt as fits and search a suffix; else search a whole prompt."""
    name: str = "token search"
    needs_gradients: bool = True

    def run(self, problem: Problem, pixels: Tensor | None = None) -> TextResult:
        """Search for each row that is judged right, at the clean images or at (N, 3, H, W) `pixels`."""
        found, shown = TextResult.initial(problem, pixels), problem.images if pixels is None else pixels
        ends: list[list[float]] = [[] for _ in problem.contexts]
        for row in (~found.misjudged & (found.margin >= 0)).nonzero().flatten().tolist():
            tokens = self._search_row(problem, shown, row)
            # The search used embeddings; the text may be tokenised or cut differently by the victim.
            margin = prompt_margins(problem, shown, {row: tokens.text})[row]
            found.update(row, tokens.text, margin, self.name)
            found.queries[row] = tokens.tried + 1
            problem.spent.backwards += tokens.steps
            problem.spent.forwards += tokens.tried
            ends[row].append(margin)
        found.families[self.name] = FamilyResult(ends, found.misjudged)
        return found

    def _search_row(self, problem: Problem, shown: Tensor, row: int) -> TokenResult:
        context, sign = problem.contexts[row], float(problem.signs[row])
        margin = self.margin(shown[row : row + 1], context)

        def signed_margin(embedded: Tensor) -> Tensor:
            return sign * margin(embedded)

        seed = problem.seed_of(row, "tokens")
        prompt = (context.prompt or "").strip() if self.keep_prompt else ""
        # Leave room for the suffix: a prompt that is too long is cut.
        own = self.soft.encode(prompt).cpu()[: max(self.soft.max_tokens - self.search.length, 0)]
        ids = self.search.extend(self.soft, own, torch.Generator().manual_seed(seed)) if len(own) else None
        if ids is None:
            return self.search.run(self.soft, signed_margin, seed=seed)
        return self.search.run(
            self.soft, signed_margin, start=ids, editable=torch.arange(len(ids)) >= len(own), seed=seed
        )
