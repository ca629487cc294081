"""What a cascade around a generator does for each picture, and what that costs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np

from .generation_stages import GENERATION_STAGES, GenerationCutoffs, GenerationDecisions
from .stages import Array

JUDGE = GENERATION_STAGES.index("judge")


@dataclass(frozen=True)
class Work:
    """How often each piece of work is done for each of N pictures, (N,) each."""

    prompt: Array
    """Prompts compared with the categories."""
    step: Array
    """Steps of the denoiser, of all passes that guidance takes."""
    look: Array
    decode: Array
    """Pictures decoded."""
    student: Array
    judge: Array


@dataclass(frozen=True)
class Prices:
    """What each piece of `Work` costs for one picture, all in one unit: seconds, or steps of the denoiser."""

    prompt: float = 0.0
    step: float = 1.0
    look: float = 0.0
    decode: float = 0.0
    student: float = 0.0
    judge: float = 0.0

    def in_steps(self) -> "Prices":
        """The same prices with a step of the denoiser as the unit."""
        return Prices(**{name: value / self.step for name, value in asdict(self).items()})

    def of(self, work: Work) -> Array:
        """(N,) the cost of each picture."""
        return sum(
            (getattr(self, f.name) * getattr(work, f.name) for f in fields(Prices)), np.zeros(len(work.step))
        )

    @classmethod
    def from_dict(cls, prices: Mapping[str, float]) -> "Prices":
        """Prices by name; what is not named costs nothing."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in prices.items() if name in known})


def work_of(decided: GenerationDecisions, cutoffs: GenerationCutoffs, at: Sequence[int], steps: int) -> Work:
    """The work behind N decisions.

    A picture that a look stops has made that look's step and none after it, and is not decoded. Every other picture
    that the prompt filter lets through is drawn to the end and decoded, released or not. What is switched off is free.

    Args:
        decided: by `decide_generation`.
        cutoffs: that it was given.
        at: the steps of the S looks, from 1, rising.
        steps: of a whole picture.
    """
    refused = (decided.stage == 0) & (decided.unsafe >= 0.5)
    stopped = decided.look >= 0
    finished = (~refused & ~stopped).astype(np.float64)
    made = np.array([*at, steps], dtype=np.float64)  # steps at which a picture can end
    ends = np.where(stopped, decided.look, len(at))
    looks = np.cumsum([*cutoffs.looks_on.astype(np.float64), 0.0])  # looks made up to each of these
    return Work(
        prompt=np.full(len(refused), float(cutoffs.uses_prompt_filter)),
        step=np.where(refused, 0.0, made[ends]),
        look=np.where(refused, 0.0, looks[ends]),
        decode=finished,
        student=finished * (cutoffs.student is not None),
        judge=(decided.stage == JUDGE).astype(np.float64),
    )
