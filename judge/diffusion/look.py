"""What can be seen of pictures while they are made."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class Look:
    """What one denoising step of B pictures shows: the picture predicted so far, and how the prompt acts on it.

    Floats are as the pipeline computes them (its device and dtype); C, H, W are those of the latents, unpacked where a
    transformer packs them. Everything of a guided pipeline is of the half that reads the prompt, apart from `noise`
    and `clean`, which are guided.
    """

    step: int
    """The step that just ended, from 1 to `steps`."""
    steps: int
    """How many steps the call makes."""
    log_snr: float
    """log(signal power / noise power) of the latents that entered the step; from about -8 to 8 for noise to picture.

    This, and not the step's number, tells how far a picture is: schedules differ, and so do their lengths.
    """
    noisy: Tensor
    """(B, C, H, W) latents that entered the step, scaled to signal power + noise power = 1."""
    noise: Tensor
    """(B, C, H, W) noise predicted in them, guided."""
    clean: Tensor
    """(B, C, H, W) picture predicted in them, guided, in latents as the autoencoder's decoder is scaled for."""
    tokens: Mapping[str, Tensor]
    """Name of an attention layer -> (B, T, D) image tokens that entered it."""
    text: Tensor
    """(B, L, E) embeddings of the prompts, as the denoiser reads them."""
    prompts: tuple[str | None, ...]
    """B prompts, None where only embeddings are known."""

    def rows(self, kept: Tensor) -> "Look":
        """The look at some of the pictures, by their (R,) indices."""
        return replace(
            self,
            noisy=self.noisy[kept],
            noise=self.noise[kept],
            clean=self.clean[kept],
            tokens={name: tokens[kept] for name, tokens in self.tokens.items()},
            text=self.text[kept],
            prompts=tuple(self.prompts[row] for row in kept.tolist()),
        )
