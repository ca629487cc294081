"""Attacked images of a robustness report: before, after, and what was changed, with the verdict on each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from adversarial.storing import to_images
from adversarial.threat import format_epsilon
from eval.robustness.run import AdversarialExample
from eval.robustness.trials import VictimResults
from prompts.taxonomy import Taxonomy

from .page import picture_data_uri

OF_EACH = 3
"""Attacked images of each victim."""
GAIN = 20
"""Factor by which differences are enlarged, as they would not be visible otherwise."""
SIDE = 224
"""Longest side of an image on the page, in pixels."""


@dataclass(frozen=True)
class Attacked:
    """One image whose verdict an attack turned."""

    victim: str
    size: str
    """The largest change of a colour value, such as `2/255`."""
    truth: str
    """`safe` or `unsafe`, which was the verdict before, too."""
    turned: str
    """The verdict after."""
    clean: float
    """p(unsafe) before."""
    score: float
    """p(unsafe) after."""
    policy: tuple[str, ...]
    prompt: str | None
    before: str
    """Images as `data:` URIs; blown up where they are small, without smoothing."""
    after: str
    difference: str


def attacked_pictures(
    results: Mapping[str, VictimResults], broken: Mapping[str, Mapping[str, AdversarialExample]]
) -> list[Attacked]:
    """A few images of each victim, those first that the smallest change sufficed for."""
    found = []
    for victim, examples in broken.items():
        rows = {row.id: row for row in results[victim].rows}
        smallest = sorted(examples.items(), key=lambda item: item[1].epsilon)
        for key, example in smallest[:OF_EACH]:
            words = ("unsafe", "safe") if rows[key].truth else ("safe", "unsafe")
            policy = example.context.policy
            changed = (example.stored - example.clean) * GAIN * 0.5 + 0.5
            shown = _shown([example.clean, example.stored, changed])
            found.append(
                Attacked(
                    victim, format_epsilon(example.epsilon), *words, rows[key].clean, example.score,
                    policy.names if isinstance(policy, Taxonomy) else (), example.context.prompt, *shown,
                )
            )  # fmt: skip
    return found


def _shown(images: Sequence[torch.Tensor]) -> list[str]:
    """(3, H, W) floats, of which those outside [0, 1] are cut, as `data:` URIs."""
    found = []
    for image in to_images(torch.stack(list(images)).float().clamp(0, 1)):
        scale = max(1, SIDE // max(image.size))
        size = (image.width * scale, image.height * scale)
        found.append(picture_data_uri(image.resize(size, Image.Resampling.NEAREST), SIDE))
    return found
