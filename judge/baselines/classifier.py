"""Classifiers whose categories were fixed in training, used under a taxonomy that is chosen later.

They cannot read definitions, so an operator would map categories to theirs by hand. That mapping is made here, by
default in their favour (`match="members"`); categories without a match are unjudged, never safe.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from judge.calibration.thresholds import Thresholds
from judge.encoders.dual import DualEncoder, check_encoder
from judge.errors import CheckpointError
from judge.inputs import check_prompts, check_taxonomy, validate_inputs
from judge.lessons.evidence import Evidence
from judge.lessons.record import read_record
from judge.protocol import Match, Scores
from judge.readings import Readings, combine_readings, read_prompts
from judge.runs.files import write_atomically
from judge.runs.folder import RunDir
from judge.runs.references import stored_model
from prompts.reading import PromptMode, check_prompt_mode
from prompts.taxonomy import Taxonomy

from .coverage import asked_outputs, check_match, covered_scores

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from judge.data.preprocessing import ImagePreprocessing

WEIGHTS = "head.safetensors"


@dataclass
class FixedClassifier:
    """A head with fixed outputs on a frozen encoder's pooled embeddings; base class of this folder's classifiers.

    Attributes:
        encoder: computes the embeddings.
        head: the trained module; its `width` is D.
        default_taxonomy: the one it was trained on, used if the caller has none.
        name: what verdicts and reports call it.
        match: how the caller's categories are mapped to the trained ones (`match_categories`).
        batch_size: images or texts in one pass of the encoder.
        prompt_mode: which readings of an image count (`judge.readings`), where `uses_prompts`.
        evidence: which categories it was trained and measured on. It has no envelope, as it reads no policy.
        thresholds: its own, one a category, used where the caller gives none.
    """

    encoder: DualEncoder
    head: Any
    default_taxonomy: Taxonomy
    name: str = ""
    match: Match = "members"
    batch_size: int = 64
    evidence: Evidence | None = None
    prompt_mode: PromptMode = "max"
    thresholds: Thresholds | None = None

    kind: ClassVar[str]
    """The kind of its run folders."""
    uses_prompts: ClassVar[bool] = False
    """Whether it encodes prompts."""
    scores_categories: ClassVar[bool] = True
    """Whether it scores categories; if not, it ignores the taxonomy, and `match` has no effect."""

    def __post_init__(self) -> None:
        check_prompt_mode(self.prompt_mode)
        check_match(self.match)
        if self.head.width != self.encoder.width:
            raise CheckpointError(
                f"The head was made for embeddings of width {self.head.width}, {self.encoder.name!r} has "
                f"{self.encoder.width}; load the encoder it was trained with."
            )
        self.name = self.name or self.kind
        self.head.to(self.encoder.device).eval()

    @property
    def image_processor(self) -> Any:
        """What resizes, crops and normalises the images."""
        return self.encoder.image_processor

    def modules(self) -> tuple[nn.Module, ...]:
        """The encoder's model and the head."""
        return self.encoder.model, self.head

    @validate_inputs
    def score(
        self, images: "Sequence[Image]", prompts: Sequence[str | None] | None, taxonomy: Taxonomy
    ) -> Scores:
        """Score B images with B prompts (or none at all) under a taxonomy of K categories."""
        return self.score_features(self.encode_images(images), prompts, [taxonomy])[0]

    @property
    def image_preprocessing(self) -> "ImagePreprocessing | None":
        """As `DualEncoder.image_preprocessing`."""
        return self.encoder.image_preprocessing

    def encode_images(self, images: "Sequence[Image]") -> Tensor:
        """Pooled embeddings (B, D) of B RGB images, on the CPU."""
        return self._pooled(self.encoder.encode_images, images)

    def encode_resized(self, pixels: "NDArray[np.uint8]") -> Tensor:
        """`encode_images` of B images (B, H, W, 3) that `image_preprocessing.resized` gave."""
        return self._pooled(self.encoder.encode_resized, pixels)

    def _pooled(self, encode: Callable[[Any], Tensor], images: Any) -> Tensor:
        # The empty first part keeps `torch.cat` valid for B = 0.
        parts = [torch.zeros(0, self.encoder.width)]
        for start in range(0, len(images), self.batch_size):
            parts.append(encode(images[start : start + self.batch_size])[:, 0].cpu())
        return torch.cat(parts)

    def score_features(
        self, features: Tensor, prompts: Sequence[str | None] | None, taxonomies: Sequence[Taxonomy]
    ) -> list[Scores]:
        """`score` of B images from their pooled embeddings (B, D), under each taxonomy; texts are encoded once."""
        for taxonomy in taxonomies:
            check_taxonomy(taxonomy)
        readings = self.read_prompts(check_prompts(len(features), prompts))
        images = features[list(readings.rows)]
        texts = self.pooled_texts(readings).cpu() if self.uses_prompts else None
        return [
            combine_readings(self.score_embeddings(images, texts, taxonomy), readings)
            for taxonomy in taxonomies
        ]

    def read_prompts(self, prompts: Sequence[str | None]) -> Readings:
        """The readings of B images with these prompts: the images alone, where the head reads none."""
        mode = self.prompt_mode if self.uses_prompts else "ignore"
        return read_prompts(prompts, mode, too_long=self.encoder.too_long)

    def pooled_texts(self, readings: Readings) -> Tensor:
        """(R, D) pooled embeddings of the readings' texts; those of an empty text for an image alone."""
        texts = [text or "" for text in readings.texts]
        parts = [torch.zeros(0, self.encoder.width, device=self.encoder.device)]
        for start in range(0, len(texts), self.batch_size):
            parts.append(self.encoder.encode_texts(texts[start : start + self.batch_size])[0][:, 0])
        return torch.cat(parts)

    def score_embeddings(
        self, pooled_images: Tensor, pooled_texts: Tensor | None, taxonomy: Taxonomy
    ) -> Scores:
        """`score` from precomputed embeddings: pooled images (B, D); pooled texts (B, D), or None."""
        raise NotImplementedError


@dataclass
class CategoryClassifier(FixedClassifier):
    """A two-way softmax (safe, unsafe) for each trained category; `head` maps (B, D) to (B, H, 2) logits.

    `Scores.unsafe` is the largest category score: an image is flagged when any single head flags it, as in
    UnsafeBench. (1 - prod(1 - p) would treat correlated categories as independent and grow with their number.)
    """

    def score_embeddings(
        self, pooled_images: Tensor, pooled_texts: Tensor | None, taxonomy: Taxonomy
    ) -> Scores:
        """Score pooled image embeddings (B, D); texts are ignored.

        Categories without a trained match are NaN. `unsafe` is then the largest of the other scores if that flags the
        image, else NaN with the reason, because an unscored category might be violated.
        """
        with torch.no_grad():
            logits: Tensor = self.head(pooled_images.to(self.encoder.device))
        heads = logits.double().softmax(-1)[..., 1].cpu().numpy()
        return covered_scores(self.name, heads, self.default_taxonomy, taxonomy, self.match)

    def pixel_margins(
        self,
        pixels: Tensor,
        prompts: Sequence[str | None] | None,
        taxonomy: Taxonomy,
        *,
        category: str | None = None,
    ) -> Tensor:
        """Largest logit of the matching trained categories, differentiable in pixels (B, 3, H, W) in [0, 1].

        Returns:
            (B,) float32, the logit of `Scores.unsafe` or of the category's score; prompts are ignored.

        Raises:
            ConfigError: a category without a trained match: no verdict can be safe then, so there is no margin.
            TaxonomyError: no such category.
        """
        chosen = asked_outputs(self.name, self.default_taxonomy, taxonomy, self.match, category)
        logits: Tensor = self.head(self.encoder.encode_pixels(pixels)[:, 0])
        return (logits[..., 1] - logits[..., 0])[:, chosen].amax(dim=1)


Classifier = TypeVar("Classifier", bound=FixedClassifier)


def save_fixed(run: RunDir, classifier: FixedClassifier, **about: Any) -> None:
    """Write weights and taxonomy, and the encoder they belong to and `about` into the manifest."""
    from safetensors.torch import save

    state = classifier.head.state_dict()
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_atomically(run.path / WEIGHTS, save(tensors))
    run.write_taxonomy(classifier.default_taxonomy)
    encoder = classifier.encoder
    run.update_manifest(
        encoder=encoder.name, encoder_fingerprint=encoder.fingerprint, width=encoder.width, **about
    )


def load_fixed(
    run: RunDir,
    cls: type[Classifier],
    build: Callable[[DualEncoder, Taxonomy], nn.Module],
    *,
    device: str | None,
    encoder: DualEncoder | None,
    **options: Any,
) -> Classifier:
    """Load what `save_fixed` wrote; `build` constructs the head for the encoder and the run's taxonomy.

    Raises:
        CheckpointError: files are missing or damaged, or the encoder is not the one it was trained with.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if run.kind != cls.kind:
        raise CheckpointError(f"{run.path} is a run of kind {run.kind!r}, not {cls.kind!r}")
    if "encoder" not in run.manifest:
        raise CheckpointError(f"{run.path} names no encoder; its training did not finish, run it again")
    encoder = encoder or DualEncoder.load(stored_model(run.manifest["encoder"], run.path), device=device)
    check_encoder(run, encoder)
    try:
        head = build(encoder, run.taxonomy)
        head.load_state_dict(load_file(run.path / WEIGHTS))
    except (OSError, KeyError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{run.path} holds no {cls.kind} that can be loaded: {first}") from error
    evidence = read_record(run).evidence
    return cls(encoder, head, run.taxonomy, name=run.name, evidence=evidence, **options)
