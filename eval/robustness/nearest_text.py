"""How well an image encoder withstands attacks, measured without any head: its tokens, and the nearest text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adversarial.errors import AttackError
from adversarial.pixels.pgd import PGD
from adversarial.problem import Problem
from adversarial.search import run_verified
from adversarial.threat import ThreatModel, format_epsilon
from adversarial.victim import Context
from judge.cascade.similarity import Similarities
from judge.encoders.dual import DualEncoder
from judge.encoders.fare import fare_loss, resize_to_input, token_cosines
from judge.encoders.perturb import as_pixels, perturb
from prompts import Example, Taxonomy

BATCH = 64
"""Images attacked at once for the cosines."""


@dataclass
class NearestText:
    """Zero-shot classification by the nearest text, as an attack's victim: correct as long as the margin is positive.

    A context's `policy` is a tuple of K booleans: which categories of `taxonomy` the image shows.
    """

    encoder: DualEncoder
    taxonomy: Taxonomy
    name: str = "nearest text"
    no_gradients: str | None = None

    def __post_init__(self) -> None:
        self._similarities = Similarities(self.encoder)

    def margins(self, pixels: Tensor, contexts: Sequence[Context]) -> Tensor:
        """(B, 3, h, w) in [0, 1] -> (B,): largest cosine to a shown category minus the largest to any other."""
        cosine = self._similarities.cosines(self.encoder.encode_pixels(pixels)[:, 0], self.taxonomy)  # (B, K)
        shown = torch.tensor([context.policy for context in contexts], device=cosine.device)
        # -2 is below any cosine, so masked categories never win.
        right, wrong = (cosine.masked_fill(mask, -2.0).amax(-1) for mask in (~shown, shown))
        return right - wrong

    def score(self, images: Any, contexts: Any) -> Any:
        """Not available: this victim is attacked at the model's input only.

        Raises:
            AttackError: always.
        """
        raise AttackError("The nearest text is measured at the model's input; it scores no image files.")


def measure_encoder(
    encoder: DualEncoder,
    original: DualEncoder,
    examples: Sequence[Example],
    taxonomy: Taxonomy,
    budgets: Sequence[float],
    *,
    steps: int,
    seed: int,
) -> dict[str, Any]:
    """Compare an encoder with the one it was fine-tuned from, clean and under PGD at each L-inf budget.

    Returns:
        By budget in grey levels (`0/255` is clean): `cosine_pooled` and `cosine_patches` to the original's tokens of
        the clean images, where those tokens are attacked, and `accuracy` of the nearest text, where its margin is.
    """
    torch.manual_seed(seed)
    images = as_pixels(resize_to_input(encoder, examples)).to(encoder.device)
    found: dict[str, Any] = {"cosine_pooled": {}, "cosine_patches": {}}
    for epsilon in (0.0, *budgets):
        pooled, patches = _attacked_cosines(encoder, original, images, epsilon, steps)
        found["cosine_pooled"][format_epsilon(epsilon)] = pooled
        found["cosine_patches"][format_epsilon(epsilon)] = patches
    found["accuracy"] = nearest_text_accuracy(
        encoder, examples, images, taxonomy, budgets, steps=steps, seed=seed
    )
    return found


def _attacked_cosines(
    encoder: DualEncoder, original: DualEncoder, images: Tensor, epsilon: float, steps: int
) -> list[float]:
    """Mean cosines of the pooled and of the patch tokens, of images (N, 3, h, w) attacked at one budget."""
    pairs = []
    for part in torch.split(images, BATCH):
        with torch.no_grad():
            wanted = original.encode_pixels(part)  # (B, 1 + P, D)

        def distance(pixels: Tensor, wanted: Tensor = wanted) -> Tensor:
            return fare_loss(encoder.encode_pixels(pixels), wanted, 1.0)

        attacked = perturb(distance, part, epsilon, steps) if epsilon else part
        with torch.no_grad():
            pairs.append(torch.stack(token_cosines(encoder.encode_pixels(attacked), wanted)))  # (2, B)
    means: list[float] = torch.cat(pairs, dim=1).mean(1).tolist()
    return means


def nearest_text_accuracy(
    encoder: DualEncoder,
    examples: Sequence[Example],
    images: Tensor,
    taxonomy: Taxonomy,
    budgets: Sequence[float],
    *,
    steps: int,
    seed: int,
) -> dict[str, float]:
    """Accuracy by budget in grey levels; an attacked image counts only if it was classified correctly before.

    Args:
        encoder: classifies by its text encoder's nearest category.
        examples: N images' labels; those that show no category, or all of them, are left out.
        images: (N, 3, h, w), their pixels at the model's input, in [0, 1].
        taxonomy: the categories.
        budgets: L-inf, in pixels of [0, 1].
        steps: of PGD.
        seed: of PGD's starts.
    """
    shown = [tuple(bool(label) for label in taxonomy.label(example)) for example in examples]
    rows = [place for place, each in enumerate(shown) if any(each) and not all(each)]
    if not rows:
        return {}
    problem = Problem(
        NearestText(encoder, taxonomy),
        images[rows].cpu(),
        [Context(None, shown[place]) for place in rows],
        torch.ones(len(rows)),
        ThreatModel(budgets[0] if budgets else 0.0, space="input", after=()),
        seed=seed,
    )
    correct = problem.clean_margins() > 0
    found = {format_epsilon(0.0): float(correct.float().mean())}
    for epsilon in budgets:
        margin = run_verified(PGD(steps=steps), problem.with_epsilon(epsilon)).margin
        found[format_epsilon(epsilon)] = float(((margin > 0) & correct).float().mean())
    return found
