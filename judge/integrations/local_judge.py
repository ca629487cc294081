"""Verdicts of a classifier in this process: loaded at the first question, once for everybody who names the same."""

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from judge.errors import ConfigError, ImageError
from prompts.taxonomy import Taxonomy
from prompts.verdict import DEFAULT_THRESHOLD

from .verdict_client import NotJudgedError, is_address

if TYPE_CHECKING:
    from judge.data.frames import Frames
    from judge.protocol import Classifier


@dataclass
class _Loaded:
    """A classifier of this process."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while it is loaded and while it scores: forward passes of two threads would only slow each other."""
    classifier: "Classifier | None" = None
    hash: str | None = None


_loaded: dict[tuple[str, str | None], _Loaded] = {}
"""By name and device, what has been asked for in this process."""


class LocalJudge:
    """Judges as `VerdictClient` does, without a server; threads may share one, and all instances share one model.

    Images are decoded in this process. Those of strangers are better sent to a server, which decodes each in a process
    that may be killed.

    Args:
        model: what `judge.load_classifier` takes.
        taxonomy: what is judged by; None: the classifier's own.
        thresholds: one number in [0, 1], or category -> number; None: the classifier's own, else 0.5.
        device: such as `cpu` or `cuda`; by default a GPU where there is one.
    """

    def __init__(
        self,
        model: str,
        taxonomy: Taxonomy | None = None,
        *,
        thresholds: float | Mapping[str, float] | None = None,
        device: str | None = None,
    ) -> None:
        self.model, self.taxonomy, self.thresholds, self.device = model, taxonomy, thresholds, device

    def ask(self, image: bytes | str, prompt: str | None = None) -> dict[str, Any]:
        """The verdict row of one image; its status may be `unjudged`.

        Raises:
            NotJudgedError: it cannot be opened, or its scores are no probabilities.
            ConfigError: `image` is an address; or no taxonomy was given and the classifier has none.
            ArbiterError: the classifier cannot be loaded, or a threshold is for a category that is not there.
        """
        from judge.data.frames import open_frames

        if not isinstance(image, bytes):
            what = "the address of an image" if is_address(image) else "text"
            raise ConfigError(f"Got {what}; without a server give the bytes of the encoded image.")
        try:
            frames = open_frames(image)
        except ImageError as error:
            raise NotJudgedError(str(error)) from error
        loaded = _loaded.setdefault((self.model, self.device), _Loaded())
        with loaded.lock:
            classifier = self._load(loaded) if loaded.classifier is None else loaded.classifier
            return self._judge(classifier, loaded.hash, image, frames, prompt)

    def _load(self, loaded: _Loaded) -> "Classifier":
        from judge.classifiers import load_classifier
        from judge.publish.hub import model_hash

        classifier = load_classifier(self.model, device=self.device)
        loaded.hash = model_hash(self.model)
        loaded.classifier = classifier
        return classifier

    def _judge(
        self,
        classifier: "Classifier",
        model_hash: str | None,
        image: bytes,
        frames: "Frames",
        prompt: str | None,
    ) -> dict[str, Any]:
        from judge.lessons.evidence import evidence_of
        from judge.protocol import PromisesMissRate
        from judge.runs.machine import now
        from judge.verdicts.from_scores import verdict_of_frames, verdicts_from_scores
        from judge.verdicts.rows import Judging, verdict_row

        taxonomy = self._taxonomy(classifier)
        threshold = self._threshold(classifier, taxonomy)
        scores = classifier.score(frames.images, [prompt] * len(frames.images), taxonomy)
        try:
            verdicts = verdicts_from_scores(
                scores,
                taxonomy,
                threshold=threshold,
                model=classifier.name,
                evidence=evidence_of(classifier).of_policy(taxonomy),
                promise=classifier.promise(taxonomy) if isinstance(classifier, PromisesMissRate) else None,
            )
        except ValueError as error:
            raise NotJudgedError(f"no verdict: {error}") from error
        verdict, frame = verdict_of_frames(frames, verdicts)
        judging = Judging(taxonomy, threshold, classifier.name, model_hash)
        digest = hashlib.sha256(image).hexdigest()
        return verdict_row(verdict, judging, time=now(), image_hash=digest, frame=frame)

    def _taxonomy(self, classifier: "Classifier") -> Taxonomy:
        from judge.protocol import HasDefaultTaxonomy

        own = classifier.default_taxonomy if isinstance(classifier, HasDefaultTaxonomy) else None
        taxonomy = self.taxonomy or own
        if taxonomy is None:
            raise ConfigError(f"{self.model} has no taxonomy of its own; give one.")
        return taxonomy

    def _threshold(self, classifier: "Classifier", taxonomy: Taxonomy) -> float | Mapping[str, float]:
        from judge.calibration.thresholds import HasThresholds

        if self.thresholds is not None:
            return self.thresholds
        own = classifier.thresholds if isinstance(classifier, HasThresholds) else None
        return (own.for_known(taxonomy) if own else None) or DEFAULT_THRESHOLD
