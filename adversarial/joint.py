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
from .problem import Context, Problem, all_gaps
from .search import Attack

Texts = Callable[[int, Context], Sequence[Context]] | Sequence[Sequence[Context]]
"""Candidate contexts of a row: made from its number and its own context, or a list for each row."""

_SCORED = 8
"""Batches of (image, text) pairs that are laid out at once."""


@dataclass
class FoundJoint:
    """What a joint attack made of N rows: pixels within the budget, under a candidate context each.

    An attempt is one picture with one text, as it would be submitted. Asking the victim for margins is none.
    """

    pixels: Tensor
    """(N, 3, H, W): what the victim misjudges, else what came nearest to it."""
    contexts: list[Context]
    """N contexts under which it does."""
    gap: Tensor
    """(N,) the victim's margin on the attacker's terms; below 0 the attack succeeded."""
    misjudged: Tensor
    """(N,) whether the clean image under its own context was judged as the attacker wants already."""
    passed: Tensor
    """(N, attempts) whether a row had passed by each attempt; `attack_success_rate` takes it as it is."""
    tries: Tensor
    """(N,) attempts until it passed, or all of them; 0 where misjudged."""

    @property
    def success(self) -> Tensor:
        """(N,) some attempt succeeded, and the clean row was judged right."""
        return (self.gap < 0) & ~self.misjudged

    @property
    def first_try(self) -> Tensor:
        """(N,) the first attempt succeeded, and the clean row was judged right."""
        return self.passed[:, 0] & ~self.misjudged


class _Standing:
    """The best picture and text of each row so far, by the rules of `Search`."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.pixels, self.gap = problem.images.clone(), problem.clean_gap().clone()
        self.contexts = list(problem.contexts)
        self.misjudged = self.gap < 0
        self.done = self.misjudged.clone()

    def open(self) -> Tensor:
        """(n,) rows without success."""
        return (~self.done).nonzero().flatten()

    def offer(self, rows: Tensor, pixels: Tensor, contexts: Sequence[Context], gap: Tensor) -> None:
        """Keep for (n,) open rows what is better; close rows whose success survives storing."""
        survives, threat = gap < 0, self.problem.threat
        if threat.after and threat.can_be_stored and bool(survives.any()):
            places = survives.nonzero().flatten()
            stored = threat.stored(pixels[places], self.problem.images[rows[places]])
            part = self.problem.subset(rows[places]).asking([contexts[place] for place in places.tolist()])
            survives[places] = all_gaps(part, stored) < 0
        better = (survives | (gap < self.gap[rows])) & ~self.done[rows]
        for place in better.nonzero().flatten().tolist():
            self.contexts[int(rows[place])] = contexts[place]
        self.pixels[rows[better]], self.gap[rows[better]] = pixels[better], gap[better]
        self.done[rows[better]] = survives[better]


@dataclass(frozen=True)
class JointAttack:
    """Choose the best text at the current pixels, attack the image under it, and again.

    The attempts of a row are `rounds` times `keep` runs of the image attack and a last choice of text at the pixels
    that came of them. A row whose best text passes needs no run. Restarts of the image attack belong to one attempt.
    """

    image: Attack | None
    """Attack on the pixels; one with a field `start` goes on from the pixels before. None: texts alone."""
    texts: Texts
    """Candidates beside a row's own context, which is always one of them."""
    rounds: int = 2
    """How often text and image take turns."""
    keep: int = 1
    """Texts of each round under which the image is attacked, best first."""
    name: str = "joint"

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.keep < 1:
            raise AttackError(f"rounds is {self.rounds}, keep {self.keep}; both are 1 at least.")

    @property
    def needs_gradients(self) -> bool:
        """Whether the attack on the image does."""
        return self.image is not None and self.image.needs_gradients

    def run(self, problem: Problem) -> FoundJoint:
        """Search within the problem's budget and the candidate texts.

        Raises:
            AttackError: not one list of candidates for each row.
        """
        candidates, best = self.candidates(problem), _Standing(problem)
        passed: list[Tensor] = []
        for _ in range(self.rounds):
            ranked = _choose_texts(best, candidates)
            for place in range(self.keep):
                rows = torch.tensor(
                    [row for row in best.open().tolist() if place < len(ranked[row])], dtype=torch.long
                )
                if len(rows) and self.image is not None:
                    self._attack_images(best, rows, [ranked[row][place] for row in rows.tolist()])
                passed.append(best.done.clone())
        _choose_texts(best, candidates)
        passed.append(best.done.clone())
        by_attempt = torch.stack(passed, dim=1)
        tries = torch.where(best.misjudged, 0, (~by_attempt[:, :-1]).sum(1) + 1)
        # `done` asks more than a gap below 0: the success has to survive storing. What has only the gap is the last.
        by_attempt[:, -1] |= best.gap < 0
        return FoundJoint(best.pixels, best.contexts, best.gap, best.misjudged, by_attempt, tries)

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

    def _attack_images(self, best: _Standing, rows: Tensor, contexts: list[Context]) -> None:
        attack = cast(Any, self.image)
        if is_dataclass(attack) and any(field.name == "start" for field in fields(attack)):
            attack = replace(cast(Any, attack), start=best.pixels[rows])
        found = attack.run(best.problem.subset(rows).asking(contexts))
        best.offer(rows, found.pixels, contexts, found.gap)


def _choose_texts(best: _Standing, candidates: list[list[Context]]) -> dict[int, list[Context]]:
    """Ask about all candidates of open rows at their pixels; keep the best; give them ranked, best first."""
    scored: dict[int, list[tuple[float, int]]] = {row: [] for row in best.open().tolist()}
    pairs = [(row, place) for row in scored for place in range(len(candidates[row]))]
    size = best.problem.batch_size * _SCORED
    for chunk in (pairs[first : first + size] for first in range(0, len(pairs), size)):
        rows = torch.tensor([row for row, _ in chunk])
        part = best.problem.subset(rows).asking([candidates[row][place] for row, place in chunk])
        for (row, place), gap in zip(chunk, all_gaps(part, best.pixels[rows]).tolist(), strict=True):
            scored[row].append((gap, place))
    ranked = {row: [candidates[row][place] for _, place in sorted(gaps)] for row, gaps in scored.items()}
    if scored:
        rows = torch.tensor(list(scored))
        lowest = torch.tensor([min(gaps)[0] for gaps in scored.values()])
        best.offer(rows, best.pixels[rows], [texts[0] for texts in ranked.values()], lowest)
    return ranked


def find_joint(attack: JointAttack, problem: Problem) -> FoundJoint:
    """Run a joint attack and believe nothing it says: check budget and texts, and ask the victim again.

    Raises:
        AttackError: it left the budget, or used a text that was no candidate.
    """
    found = attack.run(problem)
    outside = ~problem.threat.keeps_budget(found.pixels, problem.images)
    if bool(outside.any()):
        raise AttackError(f"{attack.name} left its budget on {int(outside.sum())} of {len(outside)} images.")
    strange = [
        row for row, texts in enumerate(attack.candidates(problem)) if found.contexts[row] not in texts
    ]
    if strange:
        raise AttackError(f"{attack.name} used texts that were no candidates, in rows {strange[:5]}.")
    again = all_gaps(problem.asking(found.contexts), found.pixels)
    confirmed = (again < 0)[:, None]
    return replace(found, gap=again, misjudged=problem.clean_gap() < 0, passed=found.passed & confirmed)
