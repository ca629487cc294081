"""Search for tokens by gradient: prompts that a text encoder takes for something else.

The greedy coordinate gradient (GCG, Zou et al. 2023, algorithm 1): the gradient of a loss in the one-hot tokens says
which swaps promise most; many single swaps are drawn from those and tried; the best becomes the next prompt. With the
distance to an embedding as loss, and words forbidden, it is the text attack of MMA-Diffusion (Yang et al. 2024,
section 3.2): a prompt that means the target to the encoder and holds none of its words. With a victim's margin as
loss it is white-box evasion through the prompt.

A prompt is a text, not a list of numbers: tokens that a tokenizer would not make of their own text are never kept.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from adversarial.errors import AttackError
from adversarial.problem import Problem
from adversarial.victim import Context

from .search import FamilyResult, TextResult, initial_result, prompt_margins

Loss = Callable[[Tensor], Tensor]
"""(B, L, W) embedded tokens of B prompts -> (B,) what to make small, differentiable."""


class SoftText(Protocol):
    """A text encoder's tokenizer and token embeddings (`judge.encoders.soft_text.SoftText` is one)."""

    table: Tensor
    """(V, W) embeddings of the vocabulary: a one-hot row times this is an embedded token."""
    allowed: Tensor
    """(A,) ids that a prompt may hold: no special tokens, nothing that is no text."""
    max_tokens: int
    """Tokens that fit beside the special ones."""

    def encode(self, text: str) -> Tensor:
        """The text's own tokens (L,), without special ones."""
        ...

    def decode(self, ids: Tensor) -> str:
        """The text of (L,) tokens."""
        ...


@dataclass
class TokenResult:
    """The best prompt of one search."""

    text: str
    ids: Tensor
    """(L,) tokens; encoding `text` gives the same."""
    loss: float
    steps: int
    """Swaps made."""
    tried: int
    """Prompts whose loss was asked for."""
    losses: list[float] = field(repr=False, default_factory=list)
    """Best loss so far: at the start, and after each step."""


@dataclass(frozen=True)
class TokenSearch:
    """GCG's greedy search, with the defaults of MMA-Diffusion.

    Raises:
        AttackError: sizes below 1.
    """

    length: int = 20
    """Tokens of a prompt."""
    top_k: int = 256
    """Tokens with the most promising gradient, at each place."""
    candidates: int = 512
    """Swaps tried in a step."""
    steps: int = 500
    forbidden: tuple[str, ...] = ()
    """Words that must not come up where the text may change, in capitals or not, not even across a space."""
    stop_below: float = -math.inf
    """Stop below this loss; 0 where it is a victim's margin."""
    batch_size: int = 128
    """Candidates in one forward pass."""

    def __post_init__(self) -> None:
        if min(self.length, self.top_k, self.candidates, self.steps, self.batch_size) < 1:
            raise AttackError("length, top_k, candidates, steps and batch_size must be at least 1.")

    def run(
        self,
        soft: SoftText,
        loss: Loss,
        *,
        start: Tensor | None = None,
        editable: Tensor | None = None,
        seed: int = 0,
    ) -> TokenResult:
        """Search one prompt.

        Args:
            soft: the encoder's tokens.
            loss: what to make small.
            start: (L,) tokens to begin with; random ones without.
            editable: (L,) which places may change; all without. A suffix is a prompt with its first places fixed.
            seed: of all draws.

        Raises:
            AttackError: no start can be found, or no prompt one swap away from a given one is a text without forbidden
                words; no token is left that may be used; a loss or gradients that are not finite.
        """
        generator = torch.Generator().manual_seed(seed)
        usable = self._usable(soft)
        ids = self._random_start(soft, generator) if start is None else start.cpu()
        places = torch.arange(len(ids)) if editable is None else editable.cpu().nonzero().flatten()
        if not len(places):
            raise AttackError("No place of the prompt may change; free one at least.")
        now = float(self._losses(soft, loss, ids[None])[0])
        # A start may hold what is forbidden, or be no text; it is then no result.
        best, lowest = (ids, now) if self._is_prompt(soft, ids, places) else (None, math.inf)
        losses, tried, steps = [now], 1, 0
        while steps < self.steps and lowest >= self.stop_below:
            swaps = self._swaps(soft, loss, ids, places, usable, generator)
            if not len(swaps):
                break
            values = self._losses(soft, loss, swaps)
            at = int(values.argmin())
            ids, now, steps, tried = swaps[at], float(values[at]), steps + 1, tried + len(swaps)
            if now < lowest:
                best, lowest = ids, now
            losses.append(lowest)
        if best is None:
            raise AttackError(
                "The start is no text of its own tokens, or holds forbidden words, and no single swap changes that; "
                "start at random."
            )
        return TokenResult(soft.decode(best), best, lowest, steps, tried, losses)

    def _swaps(
        self,
        soft: SoftText,
        loss: Loss,
        ids: Tensor,
        places: Tensor,
        usable: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """(C, L) prompts one swap away, drawn from the most promising ones; no prompt twice."""
        promise = -one_hot_gradient(soft, loss, ids)[places][:, usable.to(soft.table.device)].cpu()
        promise[ids[places][:, None] == usable[None]] = -math.inf  # what stands there already
        top_k = usable[promise.topk(min(self.top_k, len(usable)), dim=-1).indices]
        kept: dict[tuple[int, ...], None] = {}
        # Many drawn swaps are no text of their own: draw again a few times for those.
        for _ in range(4):
            count = self.candidates - len(kept)
            which = torch.randint(len(places), (count,), generator=generator)
            rank = torch.randint(top_k.shape[1], (count,), generator=generator)
            swapped = ids.repeat(count, 1)
            swapped[torch.arange(count), places[which]] = top_k[which, rank]
            for row in swapped:
                key = tuple(row.tolist())
                if key not in kept and not torch.equal(row, ids) and self._is_prompt(soft, row, places):
                    kept[key] = None
            if len(kept) >= self.candidates:
                break
        return torch.tensor(list(kept), dtype=torch.long)

    def _losses(self, soft: SoftText, loss: Loss, ids: Tensor) -> Tensor:
        """(C,) losses of (C, L) prompts."""
        with torch.no_grad():
            parts = [
                loss(soft.table[part.to(soft.table.device)]).float().cpu()
                for part in torch.split(ids, self.batch_size)
            ]
        losses = torch.cat(parts)
        if not bool(torch.isfinite(losses).all()):
            raise AttackError("The loss of a prompt is not finite; load the model in float32 or bfloat16.")
        return losses

    def _is_prompt(self, soft: SoftText, ids: Tensor, places: Tensor) -> bool:
        """Whether (L,) tokens are what their own text is read as, with no forbidden word where it may change."""
        if self._forbids(soft.decode(ids[places])):
            return False
        return torch.equal(soft.encode(soft.decode(ids)).cpu(), ids)

    def _forbids(self, text: str) -> bool:
        plain = text.casefold()
        together = "".join(plain.split())
        return any(
            word.casefold() in plain or "".join(word.casefold().split()) in together
            for word in self.forbidden
            if word.strip()
        )

    def _usable(self, soft: SoftText) -> Tensor:
        allowed = soft.allowed.cpu()
        good = [not self._forbids(soft.decode(token[None])) for token in allowed] if self.forbidden else None
        usable = allowed if good is None else allowed[torch.tensor(good, dtype=torch.bool)]
        if len(usable) < 2:
            raise AttackError("Fewer than two tokens may be used; allow more, or forbid fewer words.")
        return usable

    def extend(self, soft: SoftText, ids: Tensor, generator: torch.Generator) -> Tensor | None:
        """Add `length` random tokens to (K,), one by one so that they stay the tokens of their own text.

        None where that does not work out: not every text is read as what its tokens say.
        """
        usable, own = self._usable(soft), len(ids)
        for _ in range(200 * self.length):
            if len(ids) == own + self.length:
                return ids
            longer = torch.cat([ids, usable[torch.randint(len(usable), (1,), generator=generator)]])
            ids = longer if self._is_prompt(soft, longer, torch.arange(own, len(longer))) else ids
        return None

    def _random_start(self, soft: SoftText, generator: torch.Generator) -> Tensor:
        ids = self.extend(soft, torch.zeros(0, dtype=torch.long), generator)
        if ids is None:
            raise AttackError(
                f"No {self.length} random tokens make a text that is read as the same tokens; give a start."
            )
        return ids


Margin = Callable[[Tensor, Context], Loss]
"""(1, 3, H, W) pixels and their context -> margins (B,) of embedded prompts (B, L, W); positive is unsafe."""


@dataclass(frozen=True)
class TokenAttack:
    """Token search against a victim that gives gradients to the prompt, one row after the other.

    What is found is asked again as a text, by the victim's own path, and only that margin is reported.
    """

    soft: SoftText
    margin: Margin
    """The victim's margin at fixed pixels, as `judge.student.student.student_margin` gives it."""
    search: TokenSearch = field(default_factory=lambda: TokenSearch(stop_below=0.0))
    keep_prompt: bool = True
    """Keep the row's prompt, as much of it as leaves room, and search a suffix; else search a prompt of its own."""
    name: str = "token search"
    needs_gradients: bool = True

    def run(self, problem: Problem, pixels: Tensor | None = None) -> TextResult:
        """Search for each row that is not misjudged, at the clean images or at (N, 3, H, W) `pixels`."""
        found, shown = initial_result(problem, pixels), problem.images if pixels is None else pixels
        ends: list[list[float]] = [[] for _ in problem.contexts]
        for row in (~found.misjudged & (found.margin >= 0)).nonzero().flatten().tolist():
            tokens = self._search_row(problem, shown, row)
            margin = prompt_margins(problem, shown, {row: tokens.text})[row]
            found.update(row, tokens.text, margin, self.name)
            found.tries[row] = tokens.tried + 1
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
        own = self.soft.encode(prompt).cpu()[: max(self.soft.max_tokens - self.search.length, 0)]
        ids = self.search.extend(self.soft, own, torch.Generator().manual_seed(seed)) if len(own) else None
        if ids is None:
            return self.search.run(self.soft, signed_margin, seed=seed)
        return self.search.run(
            self.soft, signed_margin, start=ids, editable=torch.arange(len(ids)) >= len(own), seed=seed
        )


def one_hot_gradient(soft: SoftText, loss: Loss, ids: Tensor) -> Tensor:
    """(L, V) gradient of the loss in the one-hot rows of (L,) tokens.

    A one-hot row enters through its embedding only, so its gradient is the embedding's, times the table; a one-hot of
    many prompts over a large vocabulary is never built.

    Raises:
        AttackError: it is not finite.
    """
    embedded = soft.table[ids.to(soft.table.device)][None].detach().requires_grad_(True)
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(loss(embedded).sum(), embedded)
    if not bool(torch.isfinite(gradient).all()):
        raise AttackError("Gradients to the tokens are not finite; load the model in float32 or bfloat16.")
    return gradient[0] @ soft.table.T
