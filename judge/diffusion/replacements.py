"""What takes the place of a stopped picture."""

from dataclasses import dataclass
from typing import Any

from judge.errors import ConfigError

from .picture_verdicts import PictureVerdict


@dataclass(frozen=True)
class Redraw:
    """Draw a stopped picture again from its prompt, with other seeds, each time under the guard."""

    times: int = 3
    """How often at most; after that it stays blank."""
    seed: int = 0
    """The seeds follow from this one, the picture's place in the call and the number of the attempt."""

    def __post_init__(self) -> None:
        if isinstance(self.times, bool) or not isinstance(self.times, int) or self.times < 1 or self.seed < 0:
            raise ConfigError(
                f"A picture is redrawn once or more, from a seed of 0 or more; got {self.times!r} and {self.seed!r}."
            )

    def generator_seed(self, picture: int, attempt: int) -> int:
        """Of one attempt, counted from 0, at one picture of the call."""
        import numpy as np

        return int(np.random.SeedSequence([self.seed, picture, attempt]).generate_state(1)[0])


@dataclass(frozen=True)
class StoppedPicture:
    """What a function in `on_stop` is told."""

    index: int
    """Its place among the pictures that were asked for."""
    prompt: str | None
    """None where only embeddings are known."""
    verdict: PictureVerdict
    blank: Any
    """A black picture of the form that has to be returned: PIL image, array, tensor or latents."""
