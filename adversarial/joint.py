"""Image and text attacked together, adaptively: the best text for the pixels, then pixels for that text, in turn.

Filters in a row fall to neither alone: the prompt must pass the one, the picture the other. What this attack sees is
the victim's margin, so whatever that goes through (filters, student, the worst over stages) is attacked as a whole. It
is a block-coordinate search: exhaustive over candidate texts, by any image attack over the pixels, each starting where
the other stopped. (MMA-Diffusion, Yang et al. 2024, arXiv 2311.17516, also attacks both, but each with an objective of
its own and without the defence in the loop: that measures transfer.)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from .errors import AttackError
from .problem import Context, Problem
from .search import Attack

Texts = Callable[[int, Context], Sequence[Context]] | Sequence[Sequence[Context]]
"""Candidate contexts of a row: made from its number and its own context, or a list for each row."""

_SCORED = 8
"""Batches of (image, text) pairs that are laid out at once."""


@dataclass
class JointResult:
    """What a joint attack made of N rows: pixels within the budget, under a candidate context each.

    An attempt is one picture with one text, as it would be submitted. Asking the victim for margins is none.
    """

    pixels: Tensor
    """(N, 3, H, W): what the victim misjudges, else what came nearest to it."""
    contexts: list[Context]
    """N contexts under which it does."""
    margin: Tensor
    """(N,) the victim's margin on the attacker's terms; below 0 the attack succeeded."""
    misjudged: Tensor
    """(N,) whether the clean image under its own context was judged as the attacker wants already."""
    passed: Tensor
    """(N, attempts) whether a row had passed by each attempt; `attack_success_rate` takes it as it is."""
    attempts: Tensor
    """(N,) attempts until it passed, or all of them; 0 where misjudged."""

    @property
    def success(self) -> Tensor:
        """(N,) some attempt succeeded, and the clean row was judged right."""
        return (self.margin < 0) & ~self.misjudged


class _BestSoFar:
    """The best picture and text of each row so far, by the rules of `Search`."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.pixels, self.margin = problem.images.clone(), problem.clean_margins().clone()
        self.contexts = list(problem.contexts)
        self.misjudged = self.margin < 0
        self.done = self.misjudged.clone()

    def active_rows(self) -> Tensor:
        """(n,) rows without success."""
        return (~self.done).nonzero().flatten()

    def update(self, rows: Tensor, pixels: Tensor, contexts: Sequence[Context], margin: Tensor) -> None:
        """Keep for (n,) open rows what is better; close rows whose success survives storing."""
        survives, threat = margin < 0, self.problem.threat
        if threat.after and threat.can_be_stored and bool(survives.any()):
            places = survives.nonzero().flatten()
            stored = threat.quantize(pixels[places], self.problem.images[rows[places]])
            part = self.problem.subset(rows[places]).with_contexts(
                [contexts[place] for place in places.tolist()]
            )
            survives[places] = part.all_signed_margins(stored) < 0
        better = (survives | (margin < self.margin[rows])) & ~self.done[rows]
        for place in better.nonzero().flatten().tolist():
            self.contexts[int(rows[place])] = contexts[place]
        self.pixels[rows[better]], self.margin[rows[better]] = pixels[better], margin[better]
        self.done[rows[better]] = survives[better]


@dataclass(frozen=True)
class JointAttack:
    """Choose the best text at the current pixels, attack the image under it, and again.

    A row gets `rounds` times `texts_per_round` runs of the image attack, and a last choice of text at the resulting
    pixels. A row whose best text passes needs no run. Restarts of the image attack belong to one attempt.
    """

    image_attack: Attack | None
    """Attack on the pixels; one with a field `start` goes on from the pixels before. None: texts alone."""
    texts: Texts
    """Candidates beside a row's own context, which is always one of them."""
    rounds: int = 2
    """How often text and image take turns."""
    texts_per_round: int = 1
    """Texts of each round under which the image is attacked, best first."""
    name: str = "joint"

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.texts_per_round < 1:
            raise AttackError(
                f"rounds is {self.rounds}, texts_per_round {self.texts_per_round}; both must be at least 1."
            )

    @property
    def needs_gradients(self) -> bool:
        """Whether the attack on the image does."""
        return self.image_attack is not None and self.image_attack.needs_gradients

    def run(self, problem: Problem) -> JointResult:
        """Search within the problem's budget and the candidate texts.

        Raises:
            AttackError: not one list of candidates for each row.
        """
        candidates, best = self.candidates(problem), _BestSoFar(problem)
        passed: list[Tensor] = []
        for _ in range(self.rounds):
            ranked = _choose_texts(best, candidates)
            for place in range(self.texts_per_round):
                rows = torch.tensor(
                    [row for row in best.active_rows().tolist() if place < len(ranked[row])], dtype=torch.long
                )
                if len(rows) and self.image_attack is not None:
                    self._attack_images(best, rows, [ranked[row][place] for row in rows.tolist()])
                passed.append(best.done.clone())
        _choose_texts(best, candidates)
        passed.append(best.done.clone())
        by_attempt = torch.stack(passed, dim=1)
        attempts = torch.where(best.misjudged, 0, (~by_attempt[:, :-1]).sum(1) + 1)
        # `done` needs more than a negative margin: the success must survive storing as bytes. Without that, a row
        # counts as passed at the last attempt only.
        by_attempt[:, -1] |= best.margin < 0
        return JointResult(best.pixels, best.contexts, best.margin, best.misjudged, by_attempt, attempts)

    def candidates(self, problem: Problem) -> list[list[Context]]:
        """Each row's own context and its candidates, without repeats.

        Raises:
            AttackError: not one list for each row.
        """
        if callable(self.texts):
            made = [self.texts(row, context) for row, context in enumerate(problem.contexts)]
        else:
            made = list(self.texts)
        if len(made) != len(problem):
            raise AttackError(f"Got candidate texts for {len(made)} rows, but {len(problem)} are attacked.")
        return [
            list(dict.fromkeys([context, *more]))
            for context, more in zip(problem.contexts, made, strict=True)
        ]

    def _attack_images(self, best: _BestSoFar, rows: Tensor, contexts: list[Context]) -> None:
        attack = cast(Any, self.image_attack)
        if is_dataclass(attack) and any(field.name == "start" for field in fields(attack)):
            attack = replace(cast(Any, attack), start=best.pixels[rows])
        found = attack.run(best.problem.subset(rows).with_contexts(contexts))
        best.update(rows, found.pixels, contexts, found.margin)


def _choose_texts(best: _BestSoFar, candidates: list[list[Context]]) -> dict[int, list[Context]]:
    """Ask about all candidates of open rows at their pixels; keep the best; give them ranked, best first."""
    scored: dict[int, list[tuple[float, int]]] = {row: [] for row in best.active_rows().tolist()}
    pairs = [(row, place) for row in scored for place in range(len(candidates[row]))]
    size = best.problem.batch_size * _SCORED
    for chunk in (pairs[first : first + size] for first in range(0, len(pairs), size)):
        rows = torch.tensor([row for row, _ in chunk])
        part = best.problem.subset(rows).with_contexts([candidates[row][place] for row, place in chunk])
        for (row, place), margin in zip(
            chunk, part.all_signed_margins(best.pixels[rows]).tolist(), strict=True
        ):
            scored[row].append((margin, place))
    ranked = {
        row: [candidates[row][place] for _, place in sorted(margins)] for row, margins in scored.items()
    }
    if scored:
        rows = torch.tensor(list(scored))
        lowest = torch.tensor([min(margins)[0] for margins in scored.values()])
        best.update(rows, best.pixels[rows], [texts[0] for texts in ranked.values()], lowest)
    return ranked


def run_joint_verified(attack: JointAttack, problem: Problem) -> JointResult:
    """Run a joint attack and believe nothing it says: check budget and texts, and ask the victim again.

    Raises:
        AttackError: it left the budget, or used a text that was no candidate.
    """
    found = attack.run(problem)
    outside = ~problem.threat.within_budget(found.pixels, problem.images)
    if bool(outside.any()):
        raise AttackError(f"{attack.name} left its budget on {int(outside.sum())} of {len(outside)} images.")
    strange = [
        row for row, texts in enumerate(attack.candidates(problem)) if found.contexts[row] not in texts
    ]
    if strange:
        raise AttackError(f"{attack.name} used texts that were no candidates, in rows {strange[:5]}.")
    again = problem.with_contexts(found.contexts).all_signed_margins(found.pixels)
    confirmed = (again < 0)[:, None]
    return replace(
        found, margin=again, misjudged=problem.clean_margins() < 0, passed=found.passed & confirmed
    )
