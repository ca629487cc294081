"""What all detectors that learnt from pairs have in common: when they answer, and how logits become scores."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from judge.lessons.envelope import LessonsEnvelope
from judge.lessons.outside import unjudged_scores
from judge.protocol import Scores
from prompts.taxonomy import Category, Taxonomy

from .layouts import layout_of
from .look import Look
from .pairs import PairStore

KNOWN_SHARE = 2 / 3
"""Of the tokens of a category's name, and of its definition, at least so many were in the lessons."""
MAX_CACHED = 256
"""Taxonomies of which it is remembered whether they may be answered."""
MARGIN = 0.5
"""Log-SNRs this far outside of those learnt from are still judged: half a step of a schedule of 20."""


@dataclass
class Lessons:
    """What a detector learnt from, and so where it may answer."""

    taxonomy: Taxonomy
    """Whose categories it was shown."""
    envelope: LessonsEnvelope
    """Lengths and scripts of single categories and of prompts."""
    words: frozenset[str]
    """Words and parts of words, as the pipeline's tokenizer splits texts, that were in categories or prompts."""
    evidence: dict[str, Any] = field(default_factory=dict)
    """What was measured, ready for JSON."""

    @classmethod
    def of(cls, pipeline: Any, taxonomies: Iterable[Taxonomy], prompts: Iterable[str]) -> "Lessons":
        """The lessons made of these taxonomies, the plain one first, and prompts."""
        taxonomies, shown = list(taxonomies), sorted(set(prompts))
        single = [Taxonomy(t.name, t.version, (category,)) for t in taxonomies for category in t]
        texts = [text for policy in single for text in _texts(policy.categories[0])] + shown
        return cls(
            taxonomies[0],
            LessonsEnvelope.of(single, shown),
            frozenset(word for text in texts for word in _words(pipeline.tokenizer, text)),
        )

    def why_outside(self, pipeline: Any, taxonomy: Taxonomy) -> str | None:
        """What of a taxonomy the detector cannot know, on one line; None where it may answer.

        Categories are looked at one by one, as they are scored.
        """
        for category in taxonomy:
            alone = Taxonomy(taxonomy.name, taxonomy.version, (category,))
            reason = self.envelope.why_policy_outside(alone)
            if reason is not None:
                return reason
            for text in _texts(category):
                reason = self._why_text_outside(pipeline.tokenizer, category.name, text)
                if reason is not None:
                    return reason
        return None

    def _why_text_outside(self, tokenizer: Any, name: str, text: str) -> str | None:
        own = _words(tokenizer, text)
        known = sum(word in self.words for word in own)
        if known < KNOWN_SHARE * len(own):
            return (
                f"{name!r} is in words that the detector was not trained on ({known} of {len(own)} of "
                f"{text!r:.60} are known); train it with such prompts or categories"
            )
        return None


class LearnedDetector:
    """A detector with a head that was trained on pairs; its subclasses are the families."""

    kind: ClassVar[str]
    """Name of the family in files."""

    def __init__(
        self, pipeline: Any, head: nn.Module, *, layers: tuple[str, ...] = (), name: str = ""
    ) -> None:
        """A detector that was not trained yet, and so judges nothing."""
        self.pipeline, self.head, self.layers = pipeline, head.eval(), layers
        self.name = name or self.kind
        self.log_snrs: tuple[float, float] = (np.inf, -np.inf)
        self.lessons: Lessons | None = None
        self._outside: dict[Taxonomy, str | None] = {}

    @classmethod
    def of_sizes(
        cls, pipeline: Any, sizes: dict[str, Any], *, layers: tuple[str, ...] = (), name: str = ""
    ) -> "LearnedDetector":
        """A detector that was not trained, of the sizes that `sizes` gave."""
        raise NotImplementedError

    def sizes(self) -> dict[str, Any]:
        """What `of_sizes` needs, ready for JSON."""
        raise NotImplementedError

    def logits(self, look: Look, taxonomy: Taxonomy) -> Tensor:
        """(B, K) float32 logits, differentiable in the head's weights; NaN for categories that it does not know."""
        raise NotImplementedError

    @torch.no_grad()
    def score(self, look: Look, taxonomy: Taxonomy) -> Scores:
        """Score B pictures under K categories; NaN with a reason where it cannot judge."""
        rows = len(look.clean)
        reason = self.why_not(look, taxonomy)
        if reason is not None:
            return unjudged_scores(rows, taxonomy, reason, self.name)
        found = torch.sigmoid(self.logits(look, taxonomy)).double().cpu().numpy()
        seen = finite_rows(look).cpu().numpy() & ~np.isnan(found).all(axis=1)
        found[~seen] = np.nan
        whole = np.fmax.reduce(found, axis=1, initial=np.nan)
        return Scores(
            unsafe=whole,
            categories=found,
            reasons=tuple(None if row else "what the denoiser predicted is not finite" for row in seen),
            decided_by=(self.name,) * rows,
        )

    def prepare(self, store: PairStore, rows: NDArray[np.int64], taxonomy: Taxonomy) -> None:
        """Fit what is not trained by steps, such as scales of the inputs, before training on some rows of a store."""

    def why_not(self, look: Look, taxonomy: Taxonomy) -> str | None:
        """Why a look cannot be judged under a taxonomy at all; None where it can."""
        if self.lessons is None:
            return f"the detector {self.name} was not trained"
        low, high = self.log_snrs
        if not low <= look.log_snr <= high:
            return (
                f"the look is at log-SNR {look.log_snr:.2f}, {self.name} was trained from {low:.2f} to {high:.2f}; "
                "look at another step"
            )
        missing = [layer for layer in self.layers if layer not in look.tokens]
        if missing:
            return f"the look has no tokens of {missing[0]!r}; watch the layers that the detector names"
        # By the taxonomy itself: `Taxonomy.hash` takes longer than some of the layers.
        if taxonomy not in self._outside:
            if len(self._outside) >= MAX_CACHED:
                self._outside.clear()
            self._outside[taxonomy] = self.outside_lessons(taxonomy)
        return self._outside[taxonomy]

    def outside_lessons(self, taxonomy: Taxonomy) -> str | None:
        """What of a taxonomy lies outside its lessons; None where nothing does."""
        return self.lessons.why_outside(self.pipeline, taxonomy) if self.lessons is not None else None

    def finish(self, lessons: Lessons, log_snrs: tuple[float, float], margin: float = MARGIN) -> None:
        """Say what it was trained on: from now on it answers there, and `margin` beyond the log-SNRs."""
        self.lessons, self.log_snrs = lessons, (log_snrs[0] - margin, log_snrs[1] + margin)
        self._outside.clear()
        self.head.eval()


class FixedDetector(LearnedDetector):
    """A detector whose head has an output for each category that it was trained on; any other category is NaN."""

    trained: Taxonomy | None = None

    def __init__(self, pipeline: Any, head: nn.Module, sizes: dict[str, Any], *, name: str = "") -> None:
        """A detector that was not trained; its family takes `sizes` by name."""
        super().__init__(pipeline, head, name=name)
        self._sizes = sizes

    @classmethod
    def of_sizes(
        cls, pipeline: Any, sizes: dict[str, Any], *, layers: tuple[str, ...] = (), name: str = ""
    ) -> Self:
        """A detector that was not trained, of the sizes that `sizes` gave."""
        return cls(pipeline, **sizes, name=name)

    def sizes(self) -> dict[str, Any]:
        """What `of_sizes` needs."""
        return dict(self._sizes)

    def outputs(self, look: Look) -> Tensor:
        """(B, N) float32 logits of the N categories that it was trained on."""
        raise NotImplementedError

    def logits(self, look: Look, taxonomy: Taxonomy) -> Tensor:
        """(B, K) float32 logits, NaN for categories whose key is none of the trained ones."""
        outputs = self.outputs(look)
        places = torch.tensor(self._places(taxonomy), device=outputs.device)
        return torch.where(places >= 0, outputs[:, places.clamp(min=0)], torch.nan)

    def outside_lessons(self, taxonomy: Taxonomy) -> str | None:
        """Why none of a taxonomy's categories can be scored; None where one can."""
        if max(self._places(taxonomy)) >= 0 or self.trained is None:
            return None
        return (
            f"{self.name} knows the categories {', '.join(self.trained.names)} only, and none of these; train one for "
            "them, or use a detector that reads definitions"
        )

    def prepare(self, store: PairStore, rows: NDArray[np.int64], taxonomy: Taxonomy) -> None:
        """Remember which output is whose."""
        self.trained = taxonomy

    def finish(self, lessons: Lessons, log_snrs: tuple[float, float], margin: float = MARGIN) -> None:
        """Say what it was trained on."""
        self.trained = lessons.taxonomy
        super().finish(lessons, log_snrs, margin)

    def _places(self, taxonomy: Taxonomy) -> list[int]:
        known = {} if self.trained is None else {key: place for place, key in enumerate(self.trained.keys)}
        return [known.get(category.key, -1) for category in taxonomy]


def denoiser_of(pipeline: Any) -> nn.Module:
    """The U-Net or transformer of a pipeline that can be watched."""
    denoiser: nn.Module = getattr(pipeline, layout_of(pipeline).denoiser)
    return denoiser


def finite_rows(look: Look) -> Tensor:
    """(B,) bool: which pictures' look holds finite numbers only."""
    tensors = (look.clean, look.noise, look.text, *look.tokens.values())
    return torch.stack(
        [torch.isfinite(tensor.flatten(1).sum(1, dtype=torch.float32)) for tensor in tensors]
    ).all(0)


def _words(tokenizer: Any, text: str) -> list[str]:
    """The tokens of a text without marks of where words begin and end, so that it does not matter where one stands."""
    return [token.replace("</w>", "").strip("\u0120\u2581") for token in tokenizer.tokenize(text)]


def _texts(category: Category) -> tuple[str, ...]:
    return (category.name,) if category.name_only else (category.name, category.definition)
