"""The student: a frozen encoder and a cross-attention head, as a classifier of any taxonomy."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from cachetools import LRUCache
from torch import Tensor, nn

from judge.calibration.thresholds import Thresholds
from judge.category_margin import category_margin
from judge.encoders.dual import DualEncoder, check_encoder
from judge.encoders.phrase_embeddings import PhraseEmbeddings
from judge.encoders.phrases import MAX_CACHED_TAXONOMIES, NOT_FINITE
from judge.encoders.soft_text import SoftText
from judge.errors import CheckpointError
from judge.inputs import check_prompts, concatenate_scores, no_rows, validate_inputs
from judge.lessons.envelope import LessonsEnvelope
from judge.lessons.evidence import Evidence
from judge.lessons.outside import unjudged_scores
from judge.lessons.record import read_record
from judge.protocol import Scores, on_one_scale, rows_of
from judge.readings import Readings, combine_readings, highest_margins, read_prompts
from judge.runs.files import write_atomically
from judge.runs.folder import RunDir
from judge.runs.references import stored_model
from prompts.reading import PromptMode, check_prompt_mode
from prompts.taxonomy import Taxonomy

from .asked_phrases import AskedPhrases, ask_phrases
from .feature_scores import score_in_batches, score_inside
from .head import CrossAttentionHead, HeadConfig, Queries
from .unread import withhold_unread

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    from judge.data.preprocessing import ImagePreprocessing

WEIGHTS, CONFIG = "head.safetensors", "head.json"


@dataclass
class Student:
    """Scores images under any taxonomy at the cost of one encoder pass.

    An image is read alone and with its prompt, and the higher score counts (`judge.readings`): the encoder runs once,
    the head once a reading.
    """

    encoder: DualEncoder
    head: CrossAttentionHead
    name: str = "student"
    default_taxonomy: Taxonomy | None = None
    batch_size: int = 32
    """Images in one pass of the encoder, and readings with a text in one pass of the head."""
    prompt_mode: PromptMode = "max"
    envelope: LessonsEnvelope | None = None
    """How far its lessons reached: outside, a policy leaves every image unjudged and a prompt is not read."""
    evidence: Evidence | None = None
    """Which categories it was trained and measured on."""
    thresholds: Thresholds | None = None
    """Its own, one a category, used where the caller gives none."""
    _queries: "LRUCache[str, Queries]" = field(
        default_factory=lambda: LRUCache(MAX_CACHED_TAXONOMIES), repr=False
    )
    _asked: "LRUCache[tuple[Taxonomy, ...], AskedPhrases]" = field(
        default_factory=lambda: LRUCache(MAX_CACHED_TAXONOMIES), repr=False
    )

    def __post_init__(self) -> None:
        check_prompt_mode(self.prompt_mode)
        if self.head.config.width != self.encoder.width:
            raise CheckpointError(
                f"The head was made for an encoder of width {self.head.config.width}, {self.encoder.name!r} has "
                f"{self.encoder.width}; load the encoder it was trained with."
            )
        self.head.to(self.encoder.device).eval()
        self.phrase_embeddings = PhraseEmbeddings(self.encoder)

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
        prompts = check_prompts(len(images), prompts)
        outside = self.outside_lessons(taxonomy)
        if outside is not None:
            return unjudged_scores(len(images), taxonomy, outside, "student")
        parts = [no_rows(taxonomy)]
        for start in range(0, len(images), self.batch_size):  # so that few features are in memory at a time
            some = slice(start, start + self.batch_size)
            parts += self.score_features(self.encode_images(images[some]), prompts[some], [taxonomy])
        return replace(concatenate_scores(parts), decided_by=("student",) * len(images))

    @property
    def image_preprocessing(self) -> "ImagePreprocessing | None":
        """As `DualEncoder.image_preprocessing`."""
        return self.encoder.image_preprocessing

    def encode_images(self, images: "Sequence[Image]") -> Tensor:
        """Tokens (B, 1 + P, D) of B RGB images, `batch_size` in one pass of the encoder."""
        return self._in_batches(self.encoder.encode_images, images)

    def encode_resized(self, pixels: "NDArray[np.uint8]") -> Tensor:
        """`encode_images` of B images (B, H, W, 3) that `image_preprocessing.resized` gave."""
        return self._in_batches(self.encoder.encode_resized, pixels)

    def _in_batches(self, encode: Callable[[Any], Tensor], images: Any) -> Tensor:
        # The empty first part keeps `torch.cat` valid for B = 0.
        parts = [torch.zeros(0, 1, self.encoder.width, device=self.encoder.device)]
        for start in range(0, len(images), self.batch_size):
            parts.append(encode(images[start : start + self.batch_size]))
        return torch.cat(parts[1:] or parts)

    def score_features(
        self, features: Tensor, prompts: Sequence[str | None] | None, taxonomies: Sequence[Taxonomy]
    ) -> list[Scores]:
        """`score` of B images from their tokens (B, 1 + P, D), under each taxonomy."""
        return score_in_batches(self._score_batch, features, prompts, taxonomies, self.batch_size)

    def score_mixed(
        self, images: "Sequence[Image]", prompts: Sequence[str | None], taxonomies: Sequence[Taxonomy]
    ) -> list[Scores]:
        """`score` of each of B images under its own taxonomy; the encoder runs once for all of them."""
        groups: dict[Taxonomy, list[int]] = {}
        for row, taxonomy in enumerate(taxonomies):
            groups.setdefault(taxonomy, []).append(row)
        found: dict[int, Scores] = {}
        for start in range(0, len(images), self.batch_size):
            stop = min(start + self.batch_size, len(images))
            tokens = self.encoder.encode_images(images[start:stop])
            for taxonomy, rows in groups.items():
                here = [row for row in rows if start <= row < stop]
                if here:
                    some = tokens[[row - start for row in here]]
                    scores = self.score_tokens(some, [prompts[row] for row in here], taxonomy)
                    scores = replace(scores, decided_by=("student",) * len(here))
                    found |= {row: rows_of(scores, place, place + 1) for place, row in enumerate(here)}
        return [found[row] for row in range(len(images))]

    def score_tokens(
        self, image_tokens: Tensor, prompts: Sequence[str | None] | None, taxonomy: Taxonomy
    ) -> Scores:
        """`score` of B images from their tokens (B, 1 + P, D), as `DualEncoder.encode_pixel_values` gives them."""
        prompts = check_prompts(len(image_tokens), prompts)
        return self._score_batch(image_tokens, prompts, [taxonomy])[0]

    def _score_batch(
        self, tokens: Tensor, prompts: Sequence[str | None], taxonomies: Sequence[Taxonomy]
    ) -> list[Scores]:
        readings = self.read_prompts(prompts)

        def score(inside: Sequence[Taxonomy]) -> list[Scores]:
            with torch.no_grad():
                logits = self.reading_logits(tokens, readings, inside)
            return [_scores(*pair, readings, taxonomy) for pair, taxonomy in zip(logits, inside, strict=True)]

        return score_inside(score, len(tokens), taxonomies, self.outside_lessons)

    def logits(
        self, image_tokens: Tensor, prompts: Sequence[str | None], taxonomy: Taxonomy
    ) -> tuple[Tensor, Tensor]:
        """Logits (B,) that anything is violated and (B, K) of the categories, differentiable in `image_tokens`.

        Each is the highest over the image's readings.

        Args:
            image_tokens: (B, 1 + P, D).
            prompts: B prompts, None where there is none.
            taxonomy: of K categories.
        """
        readings = self.read_prompts(prompts)
        [(unsafe, categories)] = self.reading_logits(image_tokens, readings, [taxonomy])
        return highest_margins(unsafe, readings), highest_margins(categories, readings)

    def reading_logits(
        self, image_tokens: Tensor, readings: Readings, taxonomies: Sequence[Taxonomy]
    ) -> list[tuple[Tensor, Tensor]]:
        """Logits of R readings of B images under each taxonomy, differentiable in their tokens (B, 1 + P, D).

        Returns:
            For each taxonomy (R,) that anything is violated and (R, K) of its categories.
        """
        batches = readings.batches(self.batch_size)
        image_tokens = image_tokens.to(self.encoder.device)
        asked = self.ask(taxonomies)
        parts = []
        for batch in batches:
            tokens, mask = self.encode_prompts([readings.texts[reading] for reading in batch])
            rows = [readings.rows[reading] for reading in batch]
            images = image_tokens if rows == [*range(len(image_tokens))] else image_tokens[rows]
            # One group of N readings.
            found = self.head.phrase_logits(images[None], tokens[None], mask[None], asked.queries)
            parts.append(asked.policy_logits(self.head, found))
        # (G, R) and (G, R, K), and from the order of the batches to that of the readings
        unsafe, categories = (torch.cat(column, dim=1) for column in zip(*parts, strict=True))
        order = torch.tensor([reading for batch in batches for reading in batch]).argsort().to(unsafe.device)
        unsafe, categories = unsafe[:, order], categories[:, order]
        return [(unsafe[g], categories[g, :, : len(taxonomy)]) for g, taxonomy in enumerate(taxonomies)]

    def read_prompts(self, prompts: Sequence[str | None]) -> Readings:
        """The readings of B images with these prompts."""
        return read_prompts(prompts, self.prompt_mode, self.envelope, too_long=self.encoder.too_long)

    def outside_lessons(self, taxonomy: Taxonomy) -> str | None:
        """What of a policy lies outside the envelope, and what to do about it; None where nothing does."""
        return None if self.envelope is None else self.envelope.why_policy_outside(taxonomy)

    def pixel_margins(
        self,
        pixels: Tensor,
        prompts: Sequence[str | None] | None,
        taxonomy: Taxonomy,
        *,
        category: str | None = None,
    ) -> Tensor:
        """Logit of unsafe, differentiable in the images' pixels.

        Args:
            pixels: (B, 3, H, W) floats in [0, 1]; resizing, cropping and normalising happen inside.
            prompts: B prompts, or None.
            taxonomy: the policy.
            category: name of a category, for the logit of its score instead.

        Returns:
            (B,) float32, the logit of `Scores.unsafe` or of the category's score, the highest over the readings;
            positive means unsafe.

        Raises:
            TaxonomyError: no such category.
            CheckpointError: an unsupported image processor.
        """
        place = None if category is None else taxonomy.index(category)
        readings = self.read_prompts(check_prompts(len(pixels), prompts))
        tokens = self.encoder.encode_pixels(pixels)
        [(unsafe, categories)] = self.reading_logits(tokens, readings, [taxonomy])
        if place is not None:
            unsafe = category_margin(unsafe, F.logsigmoid(categories), place)
        return highest_margins(unsafe, readings)

    def encode_prompts(self, prompts: Sequence[str | None]) -> tuple[Tensor, Tensor]:
        """(B, 1 + L, D) tokens and (B, 1 + L) mask, all False where there is no prompt."""
        present = torch.tensor(
            [bool(prompt and prompt.strip()) for prompt in prompts], device=self.encoder.device
        )
        if not present.any():  # saves a pass of the text encoder
            empty = present.new_zeros(len(prompts), 1, self.encoder.width, dtype=torch.float32)
            return empty, present[:, None]
        tokens, mask = self.encoder.encode_texts([prompt or "" for prompt in prompts])
        return tokens, mask & present[:, None]

    def queries(self, taxonomy: Taxonomy) -> Queries:
        """The taxonomy side (G = 1), cached."""
        found = self._queries.get(taxonomy.hash)
        if found is None:
            embeddings, kinds = self.phrase_embeddings.embed([taxonomy])
            device = self.encoder.device
            with torch.no_grad():
                found = self.head.queries(embeddings.to(device), kinds.to(device))
            self._queries[taxonomy.hash] = found
        return found

    def ask(self, taxonomies: Sequence[Taxonomy]) -> AskedPhrases:
        """The phrases of taxonomies, cached."""
        key = tuple(taxonomies)
        found = self._asked.get(key)
        if found is None:
            found = self._asked[key] = ask_phrases(taxonomies, self.phrase_embeddings, self.head)
        return found

    def clear_cache(self) -> None:
        """Drop cached taxonomies; call it after the head's weights have changed."""
        self._queries.clear()
        self._asked.clear()


def _scores(unsafe: Tensor, categories: Tensor, readings: Readings, taxonomy: Taxonomy) -> Scores:
    """Scores of B images from the logits (R,) and (R, K) of their readings."""
    finite = torch.isfinite(unsafe) & torch.isfinite(categories).all(-1)
    # In float64, where the sigmoid of a large logit is still below 1.
    scores = Scores(
        unsafe.masked_fill(~finite, float("nan")).double().sigmoid().cpu().numpy(),
        categories.masked_fill(~finite[:, None], float("nan")).double().sigmoid().cpu().numpy(),
        tuple(None if fine else NOT_FINITE for fine in finite.tolist()),
    )
    return withhold_unread(combine_readings(on_one_scale(scores), readings), readings, taxonomy)


def save_student(run: RunDir, student: Student) -> None:
    """Write the head's weights and configuration, and the encoder they belong to into the manifest."""
    from safetensors.torch import save

    state = {name: tensor.detach().cpu().contiguous() for name, tensor in student.head.state_dict().items()}
    write_atomically(run.path / WEIGHTS, save(state))
    run.write_text(CONFIG, json.dumps(asdict(student.head.config), indent=2) + "\n")
    run.update_manifest(
        encoder=student.encoder.name,
        encoder_fingerprint=student.encoder.fingerprint,
        width=student.encoder.width,
    )


def load_student(
    run: RunDir, *, device: str | None = None, encoder: DualEncoder | None = None, batch_size: int = 32
) -> Student:
    """Load what `save_student` wrote.

    Raises:
        CheckpointError: files are missing or damaged, or the encoder is not the one it was trained with.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if "encoder" not in run.manifest:
        raise CheckpointError(f"{run.path} holds no trained head; its training did not finish.")
    own = run.path / "encoder"  # fine-tuned with the head; a relative place, so that runs can be moved
    if encoder is None:
        name = own if own.is_dir() else stored_model(run.manifest["encoder"], run.path)
        encoder = DualEncoder.load(name, device=device)
    check_encoder(run, encoder)
    try:
        config = HeadConfig(**json.loads((run.path / CONFIG).read_text(encoding="utf-8")))
        head = CrossAttentionHead(config)
        # Heads of earlier versions knew no conditions on the prompt; those they read as a new head does.
        head.load_state_dict({"condition": head.condition.detach(), **load_file(run.path / WEIGHTS)})
    except (OSError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{run.path} holds no student that can be loaded: {first}") from error
    record = read_record(run)
    return Student(
        encoder,
        head,
        name=run.name,
        default_taxonomy=run.taxonomy,
        batch_size=batch_size,
        envelope=record.envelope,
        evidence=record.evidence,
    )


def student_margin(
    student: Student, soft: SoftText, pixels: Tensor, taxonomy: Taxonomy
) -> Callable[[Tensor], Tensor]:
    """The student's logit of unsafe as a function of the prompt's embedded tokens, for one image.

    Under `max` it is never below the logit of the image alone, and has no gradient where that one is the higher.

    Args:
        student: the student.
        soft: of the student's encoder.
        pixels: (1, 3, H, W) floats in [0, 1].
        taxonomy: the policy.

    Returns:
        A function (B, L, W) -> (B,), with gradient; for a text's own tokens `Student.pixel_margins` of that text.
    """
    with torch.no_grad():  # the search moves tokens only
        image = student.encoder.encode_pixels(pixels)
        alone = student.logits(image, [None], taxonomy)[0]

    def margin(embedded: Tensor) -> Tensor:
        tokens, mask = soft.encode_embedded(embedded)
        images = image.expand(len(tokens), -1, -1)  # (B, 1 + P, D), views of one image
        unsafe: Tensor = student.head(images[None], tokens[None], mask[None], student.queries(taxonomy))[0][0]
        if student.prompt_mode == "use":
            return unsafe
        # 0 * keeps a constant margin in the graph, so that its gradient is zero and not missing.
        return torch.maximum(alone, unsafe) if student.prompt_mode == "max" else alone + 0 * unsafe

    return margin
