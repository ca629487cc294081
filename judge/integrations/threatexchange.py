"""A classifier for pytx: any image under your own taxonomy, where ThreatExchange's tools expect labels.

The contract is `threatexchange.classifier.classifier.Classifier` of python-threatexchange 1.2.17 (it came with 1.2.16,
facebook/ThreatExchange#1864): content arrives as a content type and a text, which for a photo is a path or, as in
its own OpenAI client, an address; what comes back are labels, each a match or none.

That client knows 13 categories. Of another server's answer it drops every other one, takes a missing one for "no match"
with a score of 0, and renames `sexual/minors` to `csam`. Here every category of the taxonomy is a label under its own
name, and an image that was not judged is an error, because a label has no third value.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

from judge.errors import ConfigError, ImageError, MissingExtraError

from .local_judge import LocalJudge
from .verdict_client import NotJudgedError, VerdictClient, is_address, judged_row

try:
    from threatexchange.classifier.classifier import ClassificationInfo, ClassificationResult, Classifier
    from threatexchange.content_type.content_base import ContentType
    from threatexchange.content_type.photo import PhotoContent
except ImportError as error:
    raise MissingExtraError(
        "The classifier for pytx needs python-threatexchange: pip install 'arbiter-vision[threatexchange]'."
    ) from error

URL, MODEL, TAXONOMY = "ARBITER_URL", "ARBITER_JUDGE", "ARBITER_TAXONOMY"
"""Environment variables of `ArbiterClassifier.get_with_default_settings`."""


class Judge(Protocol):
    """What gives verdict rows: `VerdictClient` or `LocalJudge`."""

    def ask(self, image: bytes | str, prompt: str | None = None) -> dict[str, Any]:
        """The verdict row of one image."""
        ...


@dataclass
class ArbiterInfo(ClassificationInfo):  # type: ignore[misc]
    """One category: whether its score reaches its threshold."""

    score: float = 0.0
    """From 0 to 1."""
    threshold: float = 0.5

    def weight_str(self) -> str:
        """The score, in per cent."""
        return f"{self.score:.2%}"


@dataclass
class ArbiterResult(ClassificationResult[ArbiterInfo]):  # type: ignore[misc]
    """A label for every category of the taxonomy, under its own name."""

    row: Mapping[str, Any] = field(default_factory=dict)
    """The verdict row (`docs/verdict_row.schema.json`): model, taxonomy's hash, thresholds, what is not known."""


class ArbiterClassifier(Classifier):  # type: ignore[misc]
    """Classifies photos by an Arbiter judge, on a server or in this process.

    Args:
        judge: `VerdictClient("http://127.0.0.1:8080", taxonomy)`, or `LocalJudge("runs/mine", taxonomy)`, of which all
            instances in a process share one model that is loaded at the first photo.
    """

    def __init__(self, judge: Judge) -> None:
        self.judge = judge

    @classmethod
    def get_content_types(cls) -> list[type[ContentType]]:
        """Photos only: a text alone is nothing that this judge could call safe."""
        return [PhotoContent]

    @classmethod
    def get_with_default_settings(cls) -> Self:
        """From the environment: `ARBITER_URL` of a server or `ARBITER_JUDGE` in this process, and `ARBITER_TAXONOMY`.

        The taxonomy is a shipped name or a YAML file; without it, the judge's own.

        Raises:
            ConfigError: neither or both of the first two are set.
            TaxonomyError: there is no such taxonomy.
        """
        from prompts.taxonomy_file import load_taxonomy

        url, model = os.environ.get(URL), os.environ.get(MODEL)
        named = os.environ.get(TAXONOMY)
        taxonomy = load_taxonomy(named) if named else None
        if bool(url) == bool(model):
            raise ConfigError(
                f"Set {URL} to a server's address, or {MODEL} to a run or model to load in this process."
            )
        return cls(VerdictClient(url, taxonomy) if url else LocalJudge(str(model), taxonomy))

    def classify(self, content_type: type[ContentType], content_val: str | bytes | Path) -> ArbiterResult:
        """Labels of one photo.

        Args:
            content_type: `PhotoContent`.
            content_val: its path; or its address, which only a server that allows its host fetches; or its bytes.

        Raises:
            NotJudgedError: the photo, or a category, could not be judged. It is not "no match": `row` has the scores of
                what was judged.
            ValueError: another type of content.
            ArbiterError: the judge cannot be used as it is set up.
        """
        if not issubclass(content_type, PhotoContent):
            raise ValueError(
                f"This classifier judges photos, not content of the type {content_type.get_name()}."
            )
        row = judged_row(self.judge.ask(_encoded(content_val)))
        labels = {
            name: ArbiterInfo(row["flags"][name], score=row["scores"][name], threshold=threshold)
            for name, threshold in row["thresholds"].items()
        }
        return ArbiterResult(labels, row)

    def classify_image(self, image: str | bytes | Path) -> ArbiterResult:
        """As `classify`, of a photo."""
        return self.classify(PhotoContent, image)


def _encoded(content: str | bytes | Path) -> bytes | str:
    """What the judge is asked: bytes, or an address as it is."""
    from judge.data.images import read_bytes

    if isinstance(content, str) and is_address(content):
        return content
    try:
        return read_bytes(content)
    except ImageError as error:
        raise NotJudgedError(str(error)) from error
