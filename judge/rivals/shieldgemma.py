"""ShieldGemma 2: for each image and policy, the probability of Yes against No (arXiv 2504.01081).

The user's categories become policies (`custom_policies` of its processor) in the form of its own three. Images alone;
prompts are ignored.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from judge.errors import ConfigError
from judge.inputs import validate_inputs
from judge.protocol import Scores
from judge.student.unread import without_prompts
from prompts.taxonomy import Category, Taxonomy

from .checkpoints import Checkpoint, checkpoint_name, load_checkpoint

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch.nn import Module

DEFAULT_PATH = "google/shieldgemma-2-4b-it"


class ShieldGemma:
    """Yes-or-no probabilities of a `ShieldGemma2ForImageClassification`, one pass for each image and category.

    Args:
        model: the model.
        processor: its own, which writes the question about a policy.
        name: what verdicts call it.
        batch_size: pairs of an image and a category in one pass.

    Raises:
        ConfigError: a batch size under 1.
    """

    why_no_gradients: ClassVar[str] = "its processor takes files of images, not pixels with gradients"

    def __init__(
        self, model: Any, processor: Any, *, name: str = "shieldgemma-2", batch_size: int = 8
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; give at least 1.")
        self.model, self.processor = model.eval(), processor
        self.name, self.batch_size = name, batch_size

    def modules(self) -> "tuple[Module, ...]":
        """The model."""
        return (self.model,)

    @validate_inputs
    def score(
        self, images: "Sequence[Image]", prompts: Sequence[str | None] | None, taxonomy: Taxonomy
    ) -> Scores:
        """Score B images under a taxonomy of K categories; `unsafe` is the largest of them."""
        unread = without_prompts(len(images), taxonomy)
        if unread is not None:
            return unread
        policies = {category.name: policy_text(category) for category in taxonomy}
        categories = np.full((len(images), len(policies)), np.nan)
        # Several images with all policies, or one image with some of them.
        step = min(self.batch_size, len(policies))
        some = max(1, self.batch_size // len(policies))
        for first in range(0, len(images), some):
            batch = list(images[first : first + some])
            for place in range(0, len(policies), step):
                names = list(policies)[place : place + step]
                found = self._probabilities(batch, policies, names)
                categories[first : first + some, place : place + step] = found
        unsafe = categories.max(axis=1)
        broken = f"{self.name} gave no finite probability"
        return Scores(unsafe, categories, tuple(broken if np.isnan(one) else None for one in unsafe))

    def _probabilities(
        self, images: "Sequence[Image]", policies: dict[str, str], names: list[str]
    ) -> "NDArray[np.float64]":
        """(N, P) probability that each of N images violates each of P policies."""
        import torch

        inputs = self.processor(
            images=list(images), custom_policies=policies, policies=names, return_tensors="pt"
        ).to(self.model.device, self.model.dtype)
        with torch.no_grad():
            logits = self.model(**inputs).logits  # (N * P, 2), yes first
        # In float64: the model's own softmax rounds to its dtype.
        yes: NDArray[np.float64] = logits.double().softmax(-1)[:, 0].cpu().numpy()
        return yes.reshape(len(images), len(names))


def policy_text(category: Category) -> str:
    """A category as a policy, in the form of ShieldGemma's own: `No NAME: The image shall not contain ...`."""
    if category.name_only:
        return f"No {category.name}: The image shall not contain content of this kind."
    examples = f" (e.g., {', '.join(category.examples)})" if category.examples else ""
    definition = category.definition.rstrip(".")
    return f"No {category.name}: The image shall not contain content of this kind: {definition}{examples}."


def load_shieldgemma(
    *,
    path: str = DEFAULT_PATH,
    device: str | None = None,
    dtype: str = "auto",
    revision: str = "main",
    batch_size: int = 8,
) -> ShieldGemma:
    """Load a ShieldGemma 2 checkpoint from a folder or the hub.

    Raises:
        CheckpointError: it cannot be loaded; on the hub it is gated, so accept Gemma's terms and log in first.
    """
    model, processor = load_checkpoint(
        Checkpoint(path, device, dtype, revision), "ShieldGemma2ForImageClassification"
    )
    return ShieldGemma(model, processor, name=checkpoint_name(path), batch_size=batch_size)
