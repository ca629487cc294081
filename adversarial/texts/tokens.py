"""Gradient search over tokens: the prompt that minimises a loss on a text encoder's embeddings.

Greedy coordinate gradient (GCG, Zou et al. 2023, algorithm 1): the gradient of the loss in the one-hot tokens ranks the
swaps of single tokens; many of the best are drawn and tried; the best becomes the next prompt. With a victim's margin
as loss it is white-box evasion through the prompt. With the distance to a target embedding as loss, and words
forbidden, it is the text attack of MMA-Diffusion (Yang et al. 2024, section 3.2).

A prompt is a text, so tokens are only kept if the tokenizer gives the same tokens for their text.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from adversarial.errors import AttackError

Loss = Callable[[Tensor], Tensor]
"""(B, L, W) embedded tokens of B prompts -> (B,) differentiable values to minimise."""


class SoftText(Protocol):
    """A text encoder's tokenizer and token embeddings (`judge.encoders.soft_text.SoftText` is one)."""

    table: Tensor
    """(V, W) embeddings of the vocabulary: a one-hot row times this is an embedded token."""
    allowed: Tensor
    """(A,) ids that a prompt may contain: no special tokens, no bytes that are no text."""
    max_tokens: int
    """Length of a prompt without special tokens."""

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
    """(L,) int64 tokens; encoding `text` gives the same."""
    loss: float
    steps: int
    """Swaps made."""
    tried: int
    """Prompts whose loss was computed."""
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
    """Tokens with the lowest gradient that are candidates at each position."""
    candidates: int = 512
    """Swaps tried in a step."""
    steps: int = 500
    forbidden: tuple[str, ...] = ()
    """Words that must not appear where the text may change, in any case, nor across a space."""
    stop_below: float = -math.inf
    """Stop below this loss; 0 where it is a signed margin."""
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
            loss: to minimise.
            start: (L,) initial tokens; random by default.
            editable: (L,) bool, which positions may change; all by default. For a suffix, the first ones are fixed.
            seed: of all random draws.

        Raises:
            AttackError: no start is found, or no single swap makes a given one a valid prompt; fewer than two tokens
                are allowed; a loss or gradients that are not finite.
        """
        generator = torch.Generator().manual_seed(seed)
        usable = self._usable(soft)
        ids = self._random_start(soft, generator) if start is None else start.cpu()
        places = torch.arange(len(ids)) if editable is None else editable.cpu().nonzero().flatten()
        if not len(places):
            raise AttackError("No position of the prompt may change; make at least one editable.")
        now = float(self._losses(soft, loss, ids[None])[0])
        # A given start may contain forbidden words or be no valid text; it is then not a result.
        best, lowest = (ids, now) if self._is_prompt(soft, ids, places) else (None, math.inf)
        losses, tried, steps = [now], 1, 0
        while steps < self.steps and lowest >= self.stop_below:
            swaps = self._swaps(soft, loss, ids, places, usable, generator)
            if not len(swaps):
                break
            values = self._losses(soft, loss, swaps)
            at = int(values.argmin())
            # Greedy: the best swap becomes the next prompt even if its loss is higher; the best one is kept apart.
            ids, now, steps, tried = swaps[at], float(values[at]), steps + 1, tried + len(swaps)
            if now < lowest:
                best, lowest = ids, now
            losses.append(lowest)
        if best is None:
            raise AttackError(
                "The start does not round-trip through the tokenizer, or contains forbidden words, and no single swap "
                "changes that; start at random."
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
        """(L,) tokens -> (C, L) distinct prompts one swap away, drawn from the most promising swaps."""
        # (P, A): for each editable position and allowed token, how much the loss should fall.
        promise = -one_hot_gradient(soft, loss, ids)[places][:, usable.to(soft.table.device)].cpu()
        promise[ids[places][:, None] == usable[None]] = -math.inf  # no swap of a token for itself
        best = usable[promise.topk(min(self.top_k, len(usable)), dim=-1).indices]
        kept: dict[tuple[int, ...], None] = {}
        # Many swaps do not round-trip through the tokenizer: draw again a few times for those.
        for _ in range(4):
            count = self.candidates - len(kept)
            # GCG: a random position, then a random one of its top k tokens.
            which = torch.randint(len(places), (count,), generator=generator)
            rank = torch.randint(best.shape[1], (count,), generator=generator)
            swapped = ids.repeat(count, 1)
            swapped[torch.arange(count), places[which]] = best[which, rank]
            for row in swapped:
                key = tuple(row.tolist())
                if key not in kept and not torch.equal(row, ids) and self._is_prompt(soft, row, places):
                    kept[key] = None
            if len(kept) >= self.candidates:
                break
        return torch.tensor(list(kept), dtype=torch.long)

    def _losses(self, soft: SoftText, loss: Loss, ids: Tensor) -> Tensor:
        """(C, L) prompts -> (C,) losses."""
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
        """Whether (L,) tokens round-trip through the tokenizer, with no forbidden word at the editable places."""
        if self._forbids(soft.decode(ids[places])):
            return False
        return torch.equal(soft.encode(soft.decode(ids)).cpu(), ids)

    def _forbids(self, text: str) -> bool:
        plain = text.casefold()
        # A filter may ignore white space, so forbidden words are searched without it, too.
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
        """(K,) tokens -> (K + length,): random ones added one by one so that they round-trip; None if that fails."""
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
                f"No {self.length} random tokens were found that round-trip through the tokenizer; give a start."
            )
        return ids


def one_hot_gradient(soft: SoftText, loss: Loss, ids: Tensor) -> Tensor:
    """(L,) tokens -> (L, V) gradient of the loss in their one-hot rows.

    A one-hot row enters only through its embedding, so its gradient is that of the embedding times the table; the large
    one-hot matrix is never built.

    Raises:
        AttackError: it is not finite.
    """
    embedded = soft.table[ids.to(soft.table.device)][None].detach().requires_grad_(True)
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(loss(embedded).sum(), embedded)
    if not bool(torch.isfinite(gradient).all()):
        raise AttackError("Gradients to the tokens are not finite; load the model in float32 or bfloat16.")
    return gradient[0] @ soft.table.T  # (L, W) @ (W, V)
