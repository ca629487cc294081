"""The prompt filter in front of a generator: how near a prompt comes to a category, before anything is drawn."""

from collections.abc import Sequence
from dataclasses import dataclass

from judge.readings import Readings
from prompts.taxonomy import Taxonomy

from .similarity import Platt, Similarities
from .stages import Array


@dataclass(frozen=True)
class PromptFilter:
    """The text filter of a cascade (`judge.cascade.similarity`), used alone; it can refuse a prompt and clear none."""

    similarities: Similarities
    platt: Platt
    """From a prompt's cosine to the probability that its picture is unsafe."""

    def score(self, prompts: Sequence[str | None], taxonomy: Taxonomy) -> tuple[Array, Readings]:
        """(B, K) probabilities in [0, 1] of B prompts under K categories, and how the prompts were read.

        NaN where there is no prompt, or one that is not read (`Readings.notes` says why).
        """
        readings = self.similarities.read_prompts(prompts)
        return self.platt(self.similarities.prompt_similarities(readings, taxonomy)), readings
