"""Adversarial training of the judge: part of every batch is replaced by its worst case within the budget.

Rows are attacked by PGD on the judge's own margin (Madry et al., arXiv 1706.06083, eq. 2.1) while it learns their
answers. Beside the answers' loss, features at attacked pixels stay near the base's at clean ones
(`judge.vlm.training.tower`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from judge.errors import ConfigError
from judge.vlm.encode import Encoded, Variant
from judge.vlm.score import VisionLanguageJudge
from judge.vlm.tree import one_vs_rest
from prompts.flip.rows import Group
from prompts.template import render

from .collate import GroupCollator
from .tower import TowerFeatures
from .trainer import JudgeTrainer


@dataclass(frozen=True)
class HardeningOptions:
    """How rows of a batch are attacked during training."""

    epsilon: float = 4 / 255
    """L-inf budget, in pixels of [0, 1] at the model's input."""
    steps: int = 2
    """Gradient steps on each attacked row."""
    share: float = 0.75
    """Share of rows that are attacked; the others stay clean."""
    feature_weight: float = 1.0
    """Weight of `TowerFeatures.distance` beside the answers' loss."""

    def __post_init__(self) -> None:
        if not 0 < self.epsilon <= 1:
            raise ConfigError(f"epsilon is {self.epsilon:g}; it is in pixels of [0, 1], such as 4/255.")
        if self.steps < 1:
            raise ConfigError(f"{self.steps} attack steps; give at least one.")
        if self.feature_weight < 0:
            raise ConfigError(f"feature_weight is {self.feature_weight:g}; it must not be negative.")
        if not 0 < self.share <= 1:
            raise ConfigError(
                f"share is {self.share:g}; between 0 and 1 of the rows are attacked, and 0 hardens nothing."
            )


class RobustCollator(GroupCollator):
    """A `GroupCollator` whose batches also have the `questions` and `unsafe` labels that an attack needs."""

    def __call__(self, groups: Sequence[Group]) -> dict[str, Any]:
        """As `GroupCollator`; also `questions`, B rows truncated to safe or unsafe, and `unsafe` (B,) bool."""
        rows = [row for group in groups for row in group.rows]
        questions = []
        for row in rows:
            chat = render(row.taxonomy, row.prompt, template=self.encoder.template, focus=row.focus)
            encoded = self.encoder.encode_row([Variant(chat)], self.pixels.get(row.example)[0])
            questions.append(replace(encoded, questions=(one_vs_rest(encoded.continuations),)))
        unsafe = torch.tensor([row.unsafe for row in rows])
        return {**super().__call__(groups), "questions": questions, "unsafe": unsafe}


class RobustTrainer(JudgeTrainer):
    """A `JudgeTrainer` that attacks part of each batch, and keeps the tower's features near the base's.

    Args:
        judge: scores with the model that is trained; its cached policies are dropped in every step.
        features: of the base, which features at attacked pixels should match.
        hardening: how rows are attacked.
        options: `JudgeTrainer`'s own.
    """

    def __init__(
        self,
        *,
        judge: VisionLanguageJudge,
        features: TowerFeatures,
        hardening: HardeningOptions,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.judge, self.tower, self.hardening = judge, features, hardening

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The answers' loss on partly attacked pixels, plus the weighted distance of their features."""
        questions, unsafe = inputs.pop("questions"), inputs.pop("unsafe")
        if not model.training:
            return super().compute_loss(model, inputs, *args, **kwargs)
        clean = inputs["pixel_values"]
        pixels = inputs["pixel_values"] = self.attack_batch(clean, questions, unsafe)
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if self.hardening.feature_weight:
            weights = self.tower.merged_weights(self.judge.model)
            with torch.no_grad():
                target = self.tower(clean)
            # The answers' loss is a mean over all rows of an optimizer step, so this one is divided as well.
            weight = self.hardening.feature_weight / self.args.gradient_accumulation_steps
            loss = loss + weight * self.tower.distance(weights, pixels, target)
        return loss

    def attack_batch(self, visual: Tensor, questions: Sequence[Encoded], unsafe: Tensor) -> Tensor:
        """Attack a random share of the rows.

        Args:
            visual: (B, 3, h, w) normalised pixels.
            questions: B rows, as `RobustCollator` encodes them.
            unsafe: (B,) bool, the right answers.

        Returns:
            (B, 3, h, w), attacked rows within epsilon of the clean ones.
        """
        model = self.judge.model
        training = model.training
        model.eval()  # no dropout in the attack's gradients
        self.judge.clear_cache()  # the last optimizer step changed the weights
        attacked = visual.clone()
        chosen = torch.rand(len(questions)) < self.hardening.share
        for rows in _by_policy(questions, chosen.nonzero().flatten().tolist()):
            same_policy = [questions[row] for row in rows]
            attacked[rows] = self._pgd(visual[rows], same_policy, unsafe[rows])
        self.judge.clear_cache()
        model.train(training)
        return attacked

    def _pgd(self, clean: Tensor, questions: Sequence[Encoded], unsafe: Tensor) -> Tensor:
        """PGD from a random start on normalised pixels (B, 3, h, w), with epsilon divided by the same deviations."""
        mean, deviation = self.tower.mean, self.tower.deviation
        lowest, highest = -mean / deviation, (1 - mean) / deviation
        budget = self.hardening.epsilon / deviation
        # Reaches the border of the ball from anywhere inside (Madry et al., section 4).
        step = 2.5 * budget / self.hardening.steps
        sign = torch.where(unsafe, 1.0, -1.0).to(clean.device)  # margins times sign are lowered
        pixels = clean + budget * (2 * torch.rand(clean.shape).to(clean.device) - 1)
        for _ in range(self.hardening.steps):
            pixels = pixels.clamp(lowest, highest).detach().requires_grad_(True)
            margins = self.judge.margins({"pixel_values": pixels}, questions) * sign
            (gradient,) = torch.autograd.grad(margins.sum(), pixels)
            pixels = clean + (pixels.detach() - step * gradient.sign() - clean).clamp(-budget, budget)
        return pixels.clamp(lowest, highest).detach()


def _by_policy(questions: Sequence[Encoded], rows: Sequence[int]) -> list[list[int]]:
    """Row numbers in groups of the same policy, which one forward pass requires."""
    sets: dict[tuple[int, ...], list[int]] = {}
    for row in rows:
        sets.setdefault(questions[row].prefix, []).append(row)
    return list(sets.values())
