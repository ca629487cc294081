"""Images of noise with prompts, for benchmarks: only their sizes matter."""

import numpy as np
from PIL import Image

WORDS = (
    "a quiet street in the old town painted in bright colours while people walk home after the rain".split()
)


def noise_posts(count: int, seed: int = 0) -> list[tuple[Image.Image, str]]:
    """Draw RGB images of 400 x 400 pixels of noise, each with a prompt of fifteen words."""
    rng = np.random.default_rng(seed)
    return [
        (
            Image.fromarray(rng.integers(0, 256, (400, 400, 3), dtype=np.uint8)),
            " ".join(rng.choice(WORDS, 15)),
        )
        for _ in range(count)
    ]
