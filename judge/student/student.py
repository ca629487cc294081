"""The student: a frozen encoder and a cross-attention head, as a classifier of any taxonomy."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from cachetools import LRUCache
from torch import Tensor, nn

from judge.category_margin import category_margin
from judge.encoders.dual import DualEncoder, check_encoder
from judge.encoders.phrase_embeddings import PhraseEmbeddings
from judge.encoders.phrases import MAX_CACHED_TAXONOMIES, unjudged_reason
from judge.encoders.soft_text import SoftText
from judge.errors import CheckpointError
from judge.protocol import Scores, on_one_scale
from judge.questions import check_prompts, validate_inputs
from judge.runs.folder import RunDir
from judge.runs.references import stored_model
from prompts.taxonomy import Taxonomy

from .head import CrossAttentionHead, HeadConfig, Queries

if TYPE_CHECKING:
    from PIL.Image import Image

WEIGHTS, SHAPE = "head.safetensors", "head.json"


@dataclass
class Student:
    """Answers under the caller's taxonomy at the cost of one encoder pass (design, section 5)."""

    encoder: DualEncoder
    head: CrossAttentionHead
    name: str = "student"
    default_taxonomy: Taxonomy | None = None
    batch_size: int = 32
    _queries: "LRUCache[str, Queries]" = field(
        default_factory=lambda: LRUCache(MAX_CACHED_TAXONOMIES), repr=False
    )

    def __post_init__(self) -> None:
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
        parts = [
            self.score_tokens(
                self.encoder.encode_images(images[start : start + self.batch_size]),
                prompts[start : start + self.batch_size],
                taxonomy,
            )
            for start in range(0, len(images), self.batch_size)
        ]
        if not parts:
            return Scores(np.zeros(0), np.zeros((0, len(taxonomy))), ())
        return on_one_scale(
            Scores(
                np.concatenate([part.unsafe for part in parts]),
                np.concatenate([part.category_probabilities for part in parts]),
                tuple(reason for part in parts for reason in part.reasons),
                decided_by=("student",) * len(images),
            )
        )

    def score_tokens(
        self, image_tokens: Tensor, prompts: Sequence[str | None] | None, taxonomy: Taxonomy
    ) -> Scores:
        """`score` of images that the encoder has seen already: (B, 1 + P, D) of `DualEncoder.encode_pixel_values`."""
        prompts = check_prompts(len(image_tokens), prompts)
        long = [prompt is not None and self.encoder.too_long(prompt) for prompt in prompts]
        read = [None if too_long else prompt for prompt, too_long in zip(prompts, long, strict=True)]
        with torch.no_grad():
            whole, categories = self.logits(image_tokens, read, taxonomy)
        finite = (torch.isfinite(whole) & torch.isfinite(categories).all(-1)).tolist()
        reasons = [unjudged_reason(too_long, fine) for too_long, fine in zip(long, finite, strict=True)]
        unjudged = torch.tensor([reason is not None for reason in reasons], device=whole.device)
        return on_one_scale(
            Scores(
                whole.masked_fill(unjudged, float("nan")).double().sigmoid().cpu().numpy(),
                categories.masked_fill(unjudged[:, None], float("nan")).double().sigmoid().cpu().numpy(),
                tuple(reasons),
            )
        )

    def logits(
        self, image_tokens: Tensor, prompts: Sequence[str | None], taxonomy: Taxonomy
    ) -> tuple[Tensor, Tensor]:
        """Logits (B,) of the whole and (B, K) of the categories, differentiable in `image_tokens`."""
        tokens, mask = self.encode_prompts(prompts)
        whole, categories = self.head(
            image_tokens[None].to(self.encoder.device), tokens[None], mask[None], self.queries(taxonomy)
        )
        return whole[0], categories[0]

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
            pixels: (B, 3, H, W) floats in [0, 1]; resizing, cropping and normalising happen in here.
            prompts: B prompts, or None.
            taxonomy: what is asked.
            category: name of a category, to give the logit of its score instead.

        Returns:
            (B,) float32, the logit of `Scores.unsafe` or of the category's score; positive means unsafe.

        Raises:
            TaxonomyError: no such category.
            CheckpointError: a prompt that is longer than the student reads, or an image processor of unknown steps.
        """
        place = None if category is None else taxonomy.index(category)
        prompts = check_prompts(len(pixels), prompts)
        whole, categories = self.logits(self.encoder.encode_pixels(pixels), prompts, taxonomy)
        return whole if place is None else category_margin(whole, F.logsigmoid(categories), place)

    def encode_prompts(self, prompts: Sequence[str | None]) -> tuple[Tensor, Tensor]:
        """(B, 1 + L, D) tokens and (B, 1 + L) mask, all False where there is no prompt."""
        there = torch.tensor(
            [bool(prompt and prompt.strip()) for prompt in prompts], device=self.encoder.device
        )
        if not there.any():  # the text encoder is not asked about nothing
            return there.new_zeros(len(prompts), 1, self.encoder.width, dtype=torch.float32), there[:, None]
        tokens, mask = self.encoder.encode_texts([prompt or "" for prompt in prompts])
        return tokens, mask & there[:, None]

    def queries(self, taxonomy: Taxonomy) -> Queries:
        """The taxonomy side, computed once and kept."""
        found = self._queries.get(taxonomy.hash)
        if found is None:
            embeddings, kinds = self.phrase_embeddings.embed([taxonomy])
            device = self.encoder.device
            with torch.no_grad():
                found = self.head.queries(embeddings.to(device), kinds.to(device))
            self._queries[taxonomy.hash] = found
        return found

    def clear_cache(self) -> None:
        """Drop the kept taxonomies; needed after the head's weights have changed."""
        self._queries.clear()


def save_student(run: RunDir, student: Student) -> None:
    """Write the head's weights and shape, and in the manifest which encoder they belong to."""
    from safetensors.torch import save_file

    state = {name: tensor.detach().cpu().contiguous() for name, tensor in student.head.state_dict().items()}
    save_file(state, run.path / WEIGHTS)
    run.write_text(SHAPE, json.dumps(asdict(student.head.config), indent=2) + "\n")
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
        raise CheckpointError(f"{run.path} holds no trained head; the run did not get that far.")
    own = (
        run.path / "encoder"
    )  # of a student whose encoder learnt with it; found wherever the run is moved to
    if encoder is None:
        name = own if own.is_dir() else stored_model(run.manifest["encoder"], run.path)
        encoder = DualEncoder.load(name, device=device)
    check_encoder(run, encoder)
    try:
        config = HeadConfig(**json.loads((run.path / SHAPE).read_text(encoding="utf-8")))
        head = CrossAttentionHead(config)
        head.load_state_dict(load_file(run.path / WEIGHTS))
    except (OSError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{run.path} holds no student that can be loaded: {first}") from error
    return Student(encoder, head, name=run.path.name, default_taxonomy=run.taxonomy, batch_size=batch_size)


def student_margin(
    student: Student, soft: SoftText, pixels: Tensor, taxonomy: Taxonomy
) -> Callable[[Tensor], Tensor]:
    """The student's logit of unsafe as a function of the prompt's embedded tokens, at fixed pixels.

    Args:
        student: who is asked.
        soft: of the student's encoder.
        pixels: (1, 3, H, W) floats in [0, 1].
        taxonomy: what is asked.

    Returns:
        A function (B, L, W) -> (B,), with gradient; for a text's own tokens `Student.pixel_margins` of that text.
    """
    with torch.no_grad():
        image = student.encoder.encode_pixels(pixels)

    def margin(embedded: Tensor) -> Tensor:
        tokens, mask = soft.encode_embedded(embedded)
        seen = image.expand(len(tokens), -1, -1)
        whole: Tensor = student.head(seen[None], tokens[None], mask[None], student.queries(taxonomy))[0][0]
        return whole

    return margin
