"""A joint attack on image and text: choose the best text for the pixels, attack the pixels under it, and repeat.

A text filter and an image filter in a row are passed by neither kind alone. This attack sees only the victim's margin,
so a cascade is attacked as a whole. It is a block-coordinate search: exhaustive over candidate texts, by any image
attack over the pixels, each starting where the other stopped. (MMA-Diffusion, Yang et al. 2024, arXiv 2311.17516, also
attacks both, but each with its own objective and without the defence in the loop, which measures transfer.)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .errors import AttackError
from .problem import Problem
from .search import Attack, WarmStart
from .victim import Context

Texts = Callable[[int, Context], Sequence[Context]] | Sequence[Sequence[Context]]
"""Candidate contexts: a function of a row's index and context, or a list for each row."""

_BATCHES_AT_ONCE = 8
"""Batches of (image, text) pairs that are held in memory at once."""


@dataclass
class JointResult:
    """The best pixels and candidate context that a joint attack found for each of N rows.

    An attempt is one picture with one text, as it would be submitted. Queries of the victim's margin do not count.
    """

    pixels: Tensor
    """(N, 3, H, W) in [0, 1]: misjudged pixels, else those with the lowest signed margin."""
    contexts: list[Context]
    """N contexts that go with them."""
    margin: Tensor
    """(N,) signed margin; below 0 the attack succeeded."""
    misjudged: Tensor
    """(N,) bool, whether the clean image under its own context was misjudged already."""
    passed: Tensor
    """(N, attempts) bool, whether a row had passed by each attempt, as `attack_success_rate` takes it."""
    attempts: Tensor
    """(N,) int64, attempts until it passed, or all of them; 0 where misjudged."""

    @property
    def success(self) -> Tensor:
        """(N,) bool: some attempt succeeded, and the clean row was judged right."""
        return (self.margin < 0) & ~self.misjudged


class _BestSoFar:
    """The best picture and text of each row so far, by the same rules as `Search`."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.pixels, self.margin = problem.images.clone(), problem.clean_margins().clone()
        self.contexts = list(problem.contexts)
        self.misjudged = self.margin < 0
        self.done = self.misjudged.clone()

    def active_rows(self) -> Tensor:
        """(n,) indices of rows without success."""
        return (~self.done).nonzero().flatten()

    def update(self, rows: Tensor, pixels: Tensor, contexts: Sequence[Context], margin: Tensor) -> None:
        """Keep better (n, 3, H, W) pixels and n contexts of (n,) rows; a success that survives storing is final."""
        survives, threat = margin < 0, self.problem.threat
        if threat.after and threat.can_be_stored and bool(survives.any()):
            places = survives.nonzero().flatten()
            stored = threat.quantize(pixels[places], self.problem.images[rows[places]])
            part = self.problem.subset(rows[places]).with_contexts(
                [contexts[place] for place in places.tolist()]
            )
            survives[places] = part.all_signed_margins(stored) < 0
        # A success that survives storing is kept even if its margin is higher; after it nothing changes.
        better = (survives | (margin < self.margin[rows])) & ~self.done[rows]
        for place in better.nonzero().flatten().tolist():
            self.contexts[int(rows[place])] = contexts[place]
        self.pixels[rows[better]], self.margin[rows[better]] = pixels[better], margin[better]
        self.done[rows[better]] = survives[better]


@dataclass(frozen=True)
class JointAttack:
    """Choose the best text at the current pixels, attack the image under it, and repeat.

    A row gets `rounds` times `texts_per_round` runs of the image attack, and a last choice of text at the resulting
    pixels. A row whose best text passes needs no run. Restarts of the image attack belong to one attempt.
    """

    image_attack: Attack | None
    """Attack on the pixels; a `WarmStart` continues from the previous pixels. None: texts alone."""
    texts: Texts
    """Candidates in addition to a row's own context."""
    rounds: int = 2
    """Alternations of text and image."""
    texts_per_round: int = 1
    """How many of the best texts the image is attacked under in each round."""
    name: str = "joint"

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.texts_per_round < 1:
            raise AttackError(
                f"rounds is {self.rounds}, texts_per_round {self.texts_per_round}; both must be at least 1."
            )

    @property
    def needs_gradients(self) -> bool:
        """Whether the attack on the image needs gradients."""
        return self.image_attack is not None and self.image_attack.needs_gradients

    def run(self, problem: Problem) -> JointResult:
        """Search within the problem's budget and the candidate texts.

        Raises:
            AttackError: not one list of candidates for each row.
        """
        candidates, best = self.candidates(problem), _BestSoFar(problem)
        passed: list[Tensor] = []
        for _ in range(self.rounds):
            # Coordinate 1: the text, at fixed pixels.
            ranked = _choose_texts(best, candidates)
            # Coordinate 2: the pixels, under each of the best texts.
            for place in range(self.texts_per_round):
                rows = torch.tensor(
                    [row for row in best.active_rows().tolist() if place < len(ranked[row])], dtype=torch.long
                )
                if len(rows) and self.image_attack is not None:
                    contexts = [ranked[row][place] for row in rows.tolist()]
                    _attack_images(self.image_attack, best, rows, contexts)
                passed.append(best.done.clone())
        # The last image attack may have made another text the best.
        _choose_texts(best, candidates)
        passed.append(best.done.clone())
        by_attempt = torch.stack(passed, dim=1)
        # (N, attempts) is monotone along a row, so its False entries count the failed attempts.
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


def _attack_images(attack: Attack, best: _BestSoFar, rows: Tensor, contexts: list[Context]) -> None:
    """Attack the (n,) rows under n contexts, from their current pixels on."""
    if isinstance(attack, WarmStart):
        attack = attack.starting_at(best.pixels[rows])
    found = attack.run(best.problem.subset(rows).with_contexts(contexts))
    best.update(rows, found.pixels, contexts, found.margin)


def _choose_texts(best: _BestSoFar, candidates: list[list[Context]]) -> dict[int, list[Context]]:
    """Score all candidate texts of active rows at their current pixels and keep the best; row -> texts, best first."""
    scored: dict[int, list[tuple[float, int]]] = {row: [] for row in best.active_rows().tolist()}
    # All (row, text) pairs, in chunks: each needs a copy of its row's pixels.
    pairs = [(row, place) for row in scored for place in range(len(candidates[row]))]
    size = best.problem.batch_size * _BATCHES_AT_ONCE
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
    """Run a joint attack without trusting its claims: check budget and texts, and compute its margins again.

    Raises:
        AttackError: it left the budget, or used a text that is not a candidate.
    """
    found = attack.run(problem)
    outside = ~problem.threat.within_budget(found.pixels, problem.images)
    if bool(outside.any()):
        raise AttackError(f"{attack.name} left its budget on {int(outside.sum())} of {len(outside)} images.")
    strange = [
        row for row, texts in enumerate(attack.candidates(problem)) if found.contexts[row] not in texts
    ]
    if strange:
        raise AttackError(f"{attack.name} used texts that are no candidates, in rows {strange[:5]}.")
    again = problem.with_contexts(found.contexts).all_signed_margins(found.pixels)
    confirmed = (again < 0)[:, None]
    return replace(
        found, margin=again, misjudged=problem.clean_margins() < 0, passed=found.passed & confirmed
    )
