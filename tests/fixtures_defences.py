"""A defence that looks at one colour, so that it is seen whether an attack was made against it."""

import numpy as np
import torch

from judge.inputs import validate_inputs
from judge.protocol import Scores


class ChannelIsUnsafe:
    """Flags what has much of a colour, unless the prompt says that it is harmless; has gradients in the pixels."""

    def __init__(self, channel=0):
        self.channel, self.name = channel, ("red", "green", "blue")[channel]

    def pixel_margins(self, pixels, prompts, taxonomy):
        calm = torch.tensor([6.0 if prompt and "harmless" in prompt else 0.0 for prompt in prompts])
        return 60 * (pixels[:, self.channel].mean((1, 2)) - 0.5) + 0.2 - calm

    @validate_inputs
    def score(self, images, prompts, taxonomy):
        pixels = torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in images]))
        pixels = pixels.permute(0, 3, 1, 2).float() / 255
        margins = self.pixel_margins(pixels, prompts or [None] * len(images), taxonomy)
        unsafe = margins.sigmoid().double().numpy()
        return Scores(unsafe, np.stack([unsafe, unsafe], 1), (None,) * len(images))


class WithoutGradients(ChannelIsUnsafe):
    """The same behind a service."""

    pixel_margins = None
    why_no_gradients = "it is a service"

    @validate_inputs
    def score(self, images, prompts, taxonomy):
        return ChannelIsUnsafe(self.channel).score(images, prompts, taxonomy)
