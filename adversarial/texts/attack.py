"""The attack that tries every prompt of the families in `adversarial/texts/families.py`; it needs no gradients."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from adversarial.errors import AttackError
from adversarial.problem import Problem

from .families import FAMILIES, Maker, target_of
from .result import FamilyResult, TextResult, prompt_margins


@dataclass(frozen=True)
class TextAttack:
    """Try every prompt of every family, and keep the best.

    It does not adapt to the answers, so its success rate is a lower bound for an attacker with query access.
    """

    families: Mapping[str, Maker] = field(default_factory=lambda: FAMILIES)
    """Name -> family; `lies` and `paraphrases` make more."""
    early_stop: bool = False
    """Skip a row once a prompt succeeded: cheaper, but the rates of later families become meaningless."""
    name: str = "made prompts"
    needs_gradients: bool = False

    def __post_init__(self) -> None:
        if not self.families:
            raise AttackError(f"No families of prompts; choose from {', '.join(FAMILIES)}.")

    def run(self, problem: Problem, pixels: Tensor | None = None) -> TextResult:
        """Query each prompt, at the clean images or at (N, 3, H, W) `pixels`."""
        found, shown = TextResult.initial(problem, pixels), problem.images if pixels is None else pixels
        for name, maker in self.families.items():
            made = [
                maker(context.prompt, target_of(float(sign)), problem.seed)
                for context, sign in zip(problem.contexts, problem.signs, strict=True)
            ]
            margins: list[list[float]] = [[] for _ in made]
            for turn in range(max(map(len, made), default=0)):
                active = (~found.misjudged & ~(found.success & self.early_stop)).nonzero().flatten()
                # One prompt of each row at a time, so that rows share batches.
                tried = {row: made[row][turn] for row in active.tolist() if turn < len(made[row])}
                for row, margin in prompt_margins(problem, shown, tried).items():
                    found.update(row, tried[row], margin, name)
                    margins[row].append(margin)
            found.families[name] = FamilyResult(margins, found.misjudged)
        return found
