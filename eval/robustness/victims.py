"""Our classifiers as victims of attacks: `adversarial.victim.Victim` for judge, student, filters and cascade.

A victim is evaluated in two ways, which must agree. `margins` is differentiable in the pixels and is what attacks
optimise. `score` is the deployed classifier, with its image processor, and alone decides whether an attack succeeded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.special import expit, logit
from torch import Tensor

from adversarial.errors import AttackError
from adversarial.storing import to_images, to_pixels
from adversarial.victim import Context
from judge.cascade.cascade import Cascade
from judge.cascade.margins import PATHS, Path
from judge.cascade.stages import stage_verdict
from judge.encoders.pixels import preprocess
from judge.errors import CheckpointError
from judge.protocol import (
    Classifier,
    DifferentiableClassifier,
    ForwardOnlyClassifier,
    HasImageProcessor,
    modules_of,
)
from prompts.taxonomy import Taxonomy

Array = NDArray[np.float64]
_REPEATED = 1e-3
"""Largest difference in probability allowed between two passes over the same pixels."""


@dataclass
class ClassifierVictim:
    """A classifier under attack; its weights are frozen, so that gradients are computed for the pixels only.

    A LoRA judge is attacked with its adapter beside the base, as it is deployed.

    Attributes:
        classifier: the classifier; it stays in its own dtype, pixels stay float32.
        category: attack the score of this category, instead of the whole; each context's policy must contain it.
        name: shown in tables; by default the classifier's name.
        threshold: probability from which the deployment flags; margins and scores are shifted so that it is 0 and 0.5.
        path: the stage of a cascade that the attack follows (`judge.cascade.margins`).
        no_gradients: None where `margins` is differentiable, else which part is not.
    """

    classifier: Classifier
    category: str | None = None
    name: str = ""
    threshold: float = 0.5
    path: Path = "any"
    no_gradients: str | None = field(init=False)

    def __post_init__(self) -> None:
        """Freeze the weights.

        Raises:
            AttackError: a threshold, path or category that this classifier does not support.
        """
        self.name = self.name or self.classifier.name
        if not 0 < self.threshold < 1:
            raise AttackError(f"The threshold is {self.threshold}; it is a probability between 0 and 1.")
        if isinstance(self.classifier, Cascade):
            _check_cascade(self, self.classifier)
        elif self.path != "any":
            raise AttackError(f"{self.name} is no cascade, so no path {self.path!r} leads through it.")
        for module in modules_of(self.classifier):
            module.requires_grad_(False)
        self.no_gradients = _why_no_gradients(self.classifier)

    def margins(self, pixels: Tensor, contexts: Sequence[Context]) -> Tensor:
        """(B, 3, H, W) floats in [0, 1] and B contexts -> (B,) float32; positive means unsafe.

        Without gradients the images are stored as bytes and scored by `score`, as in a query attack; what could not be
        judged has margin 0, which is a success for neither goal.

        Raises:
            AttackError: a context whose policy is no taxonomy.
        """
        parts, places = [], []
        for taxonomy, rows in _by_policy(contexts):
            some = pixels if len(rows) == len(pixels) else pixels[rows]
            parts.append(self._margins(some, [contexts[row] for row in rows], taxonomy))
            places += rows
        if len(parts) == 1:
            return parts[0]
        found = torch.cat(parts) if parts else pixels.new_zeros(0)
        return found[torch.tensor(places, dtype=torch.long).argsort().to(found.device)]

    def _margins(self, pixels: Tensor, contexts: Sequence[Context], taxonomy: Taxonomy) -> Tensor:
        if self.no_gradients is not None:
            scores = self.score(to_images(pixels), contexts)
            answers = np.clip(np.nan_to_num(scores, nan=0.5), 1e-6, 1 - 1e-6)
            return torch.from_numpy(logit(answers)).float()
        options: dict[str, Any] = {} if self.category is None else {"category": self.category}
        if self.path != "any":
            options["path"] = self.path
        classifier: Any = self.classifier
        margins: Tensor = classifier.pixel_margins(pixels, [c.prompt for c in contexts], taxonomy, **options)
        return margins.float() - float(logit(self.threshold))

    def score(self, images: "Sequence[Image.Image]", contexts: Sequence[Context]) -> Array:
        """B images scored as deployed -> (B,) p(unsafe), shifted so that 0.5 is the threshold; NaN unjudged."""
        found = np.full(len(images), np.nan)
        for taxonomy, rows in _by_policy(contexts):
            prompts = [contexts[row].prompt for row in rows]
            scores = self.classifier.score([images[row] for row in rows], prompts, taxonomy)
            column = scores.unsafe
            if self.category is not None:
                column = scores.categories[:, taxonomy.index(self.category)]
            found[rows] = column
        return found if self.threshold == 0.5 else stage_verdict(found, self.threshold, self.threshold)


def as_victim(classifier: Classifier, **options: Any) -> ClassifierVictim:
    """The classifier under attack; `options` are those of `ClassifierVictim`."""
    return ClassifierVictim(classifier, **options)


def check_victim(
    victim: ClassifierVictim,
    images: "Sequence[Image.Image]",
    contexts: Sequence[Context],
    *,
    tolerance: float = 0.02,
) -> None:
    """Check on a few clean images that a victim is deterministic and that its margins agree with its scores.

    Raises:
        AttackError: a module in training mode, scores that differ from pass to pass, or margins that differ from the
            scores by more than `tolerance` in probability (for a cascade: verdicts that differ, beyond it).
    """
    for root in modules_of(victim.classifier):
        for name, module in root.named_modules():
            if module.training:
                raise AttackError(
                    f"{victim.name} has {type(module).__name__} {name!r} in training mode, where dropout and batch "
                    "statistics change answers; call .eval() on the model before it is attacked."
                )
    passes = [_answers(victim, images, contexts) for _ in range(2)]
    change = float(np.abs(passes[0] - passes[1]).max(initial=0.0))
    if change > _REPEATED:
        raise AttackError(
            f"{victim.name} answers the same pictures differently from pass to pass (by {change:.3f}): something in "
            "it is random, such as dropout that eval mode does not switch off. Set its rate to 0 before an attack."
        )
    real = victim.score(images, contexts)
    distance = np.abs(passes[0] - real)
    if isinstance(victim.classifier, Cascade):  # its margin is a distance to the other verdict, not a logit
        distance = np.where((passes[0] >= 0.5) != (real >= 0.5), np.abs(real - 0.5), 0.0)
    distance = np.nan_to_num(distance, nan=0.0)
    if len(distance) and distance.max() > tolerance:
        worst = int(distance.argmax())
        raise AttackError(
            f"{victim.name} scores picture {worst} {real[worst]:.3f} on its real path and {passes[0][worst]:.3f} by "
            f"its margin, more than {tolerance:g} apart: preprocessing differs between the two. See that both resize, "
            "crop and normalise alike."
        )


def _check_cascade(victim: ClassifierVictim, cascade: Cascade) -> None:
    if victim.category is not None:
        raise AttackError(
            f"{victim.name} is a cascade, whose score for {victim.category!r} is that of whichever stage decides; "
            "attack its student, its judge or its filters, or ask it under a policy of that category only."
        )
    if victim.threshold != 0.5:
        raise AttackError(
            f"{victim.name} is a cascade with cutoffs of its own, moved to 0.5; leave the threshold out."
        )
    allowed = [path for path in PATHS if path != "judge" or cascade.judge is not None]
    if victim.path not in allowed:
        raise AttackError(f"No path {victim.path!r} through {victim.name}; it has: {', '.join(allowed)}.")


def stages_of(classifier: Classifier) -> list[Any]:
    """The classifier, or the stages of a cascade."""
    if isinstance(classifier, Cascade):
        return [classifier.student] + ([] if classifier.judge is None else [classifier.judge])
    return [classifier]


def image_processor_of(stage: Any) -> Any:
    """The image processor of transformers that a stage applies, or None where none is known."""
    return stage.image_processor if isinstance(stage, HasImageProcessor) else None


def _why_no_gradients(classifier: Classifier) -> str | None:
    """Which part of a classifier gives no gradients, and why; None where all do."""
    for stage in stages_of(classifier):
        kind = type(stage).__name__
        who = f"its stage {stage.name!r} is a {kind}: " if stage is not classifier else f"as a {kind}, "
        if isinstance(stage, ForwardOnlyClassifier):
            return who + stage.why_no_gradients
        if not isinstance(stage, DifferentiableClassifier):
            return who + "it has no pixel_margins"
        processor = image_processor_of(stage)
        if processor is None:
            continue
        # Tried on one blank image: whether all settings of a processor are known cannot be told from its class.
        try:
            preprocess(processor, torch.zeros(1, 3, 64, 64))
        except (CheckpointError, AttributeError) as error:
            return (
                f"{who}what its image processor {type(processor).__name__} does is not known here ({error})"
            )
    return None


def _answers(victim: ClassifierVictim, images: "Sequence[Image.Image]", contexts: Sequence[Context]) -> Array:
    """(B,) probabilities from the margins; images of one size form a batch."""
    found = np.full(len(images), np.nan)
    for size in dict.fromkeys(image.size for image in images):
        rows = [row for row, image in enumerate(images) if image.size == size]
        with torch.no_grad():
            margins = victim.margins(to_pixels([images[row] for row in rows]), [contexts[r] for r in rows])
        found[rows] = expit(margins.double().cpu().numpy())
    return found


def _by_policy(contexts: Sequence[Context]) -> list[tuple[Taxonomy, list[int]]]:
    found: dict[Taxonomy, list[int]] = {}
    for row, context in enumerate(contexts):
        if not isinstance(context.policy, Taxonomy):
            raise AttackError(
                f"Context {row} has the policy {context.policy!r}; our classifiers are asked under a Taxonomy."
            )
        found.setdefault(context.policy, []).append(row)
    return list(found.items())
