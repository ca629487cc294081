"""An exported student, run by ONNX Runtime, with the same scores as in PyTorch.

`judge.student.export` writes its files (`judge.student.onnx_files`). Needs numpy, Pillow, PyYAML, cachetools,
`onnxruntime` and `tokenizers`; neither torch nor transformers is imported.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from judge.data.preprocessing import Floats, ImagePreprocessing
from judge.encoders.phrases import (
    KINDS,
    MAX_CACHED_PHRASES,
    MAX_CACHED_TAXONOMIES,
    NOT_FINITE,
    phrases,
    too_long_message,
    without_surrogates,
)
from judge.errors import CheckpointError, ConfigError
from judge.inputs import check_prompts, concatenate_scores, no_rows, validate_inputs
from judge.lessons.outside import unjudged_scores
from judge.lessons.record import record_from_dict
from judge.protocol import Scores, on_one_scale
from judge.readings import Readings, combine_readings, read_prompts
from prompts.errors import TaxonomyError
from prompts.reading import PromptMode, check_prompt_mode
from prompts.taxonomy import Taxonomy

from .feature_scores import score_in_batches, score_inside
from .onnx_files import (
    MANIFEST,
    SIDES,
    check_file,
    damaged,
    import_extra,
    open_session,
    open_tokenizer,
    read_manifest,
)
from .preprocessing import TextPreprocessing
from .unread import withhold_unread

if TYPE_CHECKING:
    from PIL.Image import Image

Queries = dict[str, NDArray[Any]]


class OnnxStudent:
    """A classifier of any taxonomy, with the scores of the `Student` that it was exported from.

    Attributes:
        name: of the student.
        default_taxonomy: the one it was trained on, if known.
        manifest: the content of student.json.
        batch_size: images in one pass of the encoder, and readings with a text in one pass of the head.
        prompt_mode: as of `Student`.
        envelope: as of `Student`; None in exports of older versions.
        evidence: as of `Student`.
    """

    why_no_gradients: ClassVar[str] = "it is an exported ONNX graph, which has no backward pass"

    def __init__(
        self,
        path: str | Path,
        *,
        threads: int = 0,
        batch_size: int = 32,
        prompt_mode: PromptMode = "max",
    ) -> None:
        """Open the files beside `path`, which ends in `.onnx`; see `load_onnx_student`."""
        self.path, self.batch_size = Path(path), batch_size
        self.prompt_mode: PromptMode = check_prompt_mode(prompt_mode)
        for package in ("onnxruntime", "tokenizers"):  # before hashing files of many megabytes
            import_extra(package)
        self.manifest = read_manifest(self.path)
        files = {side: self.path.with_suffix(suffix) for side, suffix in SIDES.items()}
        for side, file in files.items():
            check_file(file, self.manifest["sha256"].get(side), self.path)
        try:
            self.images = ImagePreprocessing(
                **{key: _as_tuple(v) for key, v in self.manifest["image"].items()}
            )
            self.texts = TextPreprocessing(**self.manifest["text"])
            self.width, self.name = int(self.manifest["head"]["width"]), str(self.manifest["name"])
            own = self.manifest["taxonomy"]
            self.default_taxonomy = None if own is None else Taxonomy.from_dict(own, str(self.path))
            record = record_from_dict(self.manifest.get("lessons"), str(self.path))
        except (KeyError, TypeError, ValueError, AttributeError, TaxonomyError) as error:
            raise damaged(self.path.with_suffix(MANIFEST), error) from error
        self.envelope, self.evidence = record.envelope, record.evidence
        self._image = open_session(files["image"], threads)
        self._text = open_session(files["text"], threads)
        self._taxonomy = open_session(files["taxonomy"], threads)
        self._head = open_session(files["head"], threads)
        self._tokenizer = open_tokenizer(files["tokenizer"], self.texts.context)
        self._phrases: dict[str, Floats] = {}
        self._queries: LRUCache[str, Queries] = LRUCache(MAX_CACHED_TAXONOMIES)

    @validate_inputs
    def score(
        self, images: "Sequence[Image]", prompts: Sequence[str | None] | None, taxonomy: Taxonomy
    ) -> Scores:
        """Score B images with B prompts (or none at all) under a taxonomy of K categories.

        An image whose scores are not finite is NaN with a reason.

        Raises:
            ConfigError: a phrase of a category is longer than all windows of the text encoder.
        """
        prompts = check_prompts(len(images), prompts)
        outside = self.outside_lessons(taxonomy)
        if outside is not None:  # without a pass of the encoder
            return unjudged_scores(len(images), taxonomy, outside, "student")
        parts = [no_rows(taxonomy)]
        for start in range(0, len(images), self.batch_size):  # so that few features are in memory at a time
            some = slice(start, start + self.batch_size)
            parts += self.score_features(self.encode_images(images[some]), prompts[some], [taxonomy])
        return replace(concatenate_scores(parts), decided_by=("student",) * len(images))

    @property
    def image_preprocessing(self) -> ImagePreprocessing:
        """What is done to images before they are encoded."""
        return self.images

    def encode_images(self, images: "Sequence[Image]") -> Floats:
        """Tokens (B, 1 + P, D) of B RGB images, `batch_size` in one pass of the encoder."""
        return self._in_batches(lambda some: np.stack([self.images(image) for image in some]), images)

    def encode_resized(self, pixels: NDArray[np.uint8]) -> Floats:
        """`encode_images` of B images (B, H, W, 3) that `image_preprocessing.resized` gave."""
        return self._in_batches(self.images.normalised, pixels)

    def _in_batches(self, prepare: Callable[[Any], Floats], images: Any) -> Floats:
        # The empty first part keeps the concatenation valid for B = 0.
        parts: list[Floats] = [np.zeros((0, 1, self.width), np.float32)]
        for start in range(0, len(images), self.batch_size):
            pixels = prepare(images[start : start + self.batch_size])
            parts.append(self._image.run(["tokens"], {"pixel_values": pixels})[0])
        return np.concatenate(parts[1:] or parts)

    def score_features(
        self, features: Floats, prompts: Sequence[str | None] | None, taxonomies: Sequence[Taxonomy]
    ) -> list[Scores]:
        """`score` of B images from their tokens (B, 1 + P, D), under each taxonomy; prompts are encoded once."""
        return score_in_batches(self._score_batch, features, prompts, taxonomies, self.batch_size)

    def _score_batch(
        self, tokens: Floats, prompts: Sequence[str | None], taxonomies: Sequence[Taxonomy]
    ) -> list[Scores]:
        readings = read_prompts(prompts, self.prompt_mode, self.envelope, too_long=self.too_long)

        def score(inside: Sequence[Taxonomy]) -> list[Scores]:
            logits = self.logits(tokens, readings, inside)
            return [
                self._scores(*pair, readings, taxonomy) for pair, taxonomy in zip(logits, inside, strict=True)
            ]

        return score_inside(score, len(tokens), taxonomies, self.outside_lessons)

    def _scores(self, unsafe: Floats, categories: Floats, readings: Readings, taxonomy: Taxonomy) -> Scores:
        """Scores of B images from the logits (R,) and (R, K) of their readings."""
        finite = np.isfinite(unsafe) & np.isfinite(categories).all(-1)
        scores = Scores(
            _sigmoid(np.where(finite, unsafe.astype(np.float64), np.nan)),
            _sigmoid(np.where(finite[:, None], categories.astype(np.float64), np.nan)),
            tuple(None if fine else NOT_FINITE for fine in finite),
        )
        return withhold_unread(combine_readings(on_one_scale(scores), readings), readings, taxonomy)

    def outside_lessons(self, taxonomy: Taxonomy) -> str | None:
        """What of a policy lies outside the envelope, and what to do about it; None where nothing does."""
        return None if self.envelope is None else self.envelope.why_policy_outside(taxonomy)

    def too_long(self, text: str) -> bool:
        """Whether a text takes more windows than allowed."""
        return len(self._tokenizer.encode(without_surrogates(text)).overflowing) >= self.texts.windows

    def logits(
        self, tokens: Floats, readings: Readings, taxonomies: Sequence[Taxonomy]
    ) -> list[tuple[Floats, Floats]]:
        """Logits (R,) that anything is violated and (R, K) of the categories, of R readings, under each taxonomy.

        `tokens` (B, 1 + P, D) are those of the images.
        """
        found = [
            (np.zeros(len(readings), np.float32), np.zeros((len(readings), len(taxonomy)), np.float32))
            for taxonomy in taxonomies
        ]
        for batch in readings.batches(self.batch_size):
            prompt, mask = self.encode_prompts([readings.texts[reading] for reading in batch])
            image = tokens[[readings.rows[reading] for reading in batch]]
            for (unsafe, categories), taxonomy in zip(found, taxonomies, strict=True):
                inputs = {"image": image, "prompt": prompt, "prompt_mask": mask, **self.queries(taxonomy)}
                unsafe[batch], categories[batch] = self._head.run(["whole", "categories"], inputs)
        return found

    def encode_prompts(self, prompts: Sequence[str | None]) -> tuple[Floats, NDArray[np.bool_]]:
        """(B, 1 + L, D) tokens, the pooled embedding first, and (B, 1 + L) mask, all False without a prompt."""
        present = [place for place, prompt in enumerate(prompts) if prompt and prompt.strip()]
        encoded = dict(
            zip(present, self.encode_texts([prompts[place] or "" for place in present]), strict=True)
        )
        longest = max(map(len, encoded.values()), default=1)
        tokens = np.zeros((len(prompts), longest, self.width), dtype=np.float32)
        mask = np.zeros((len(prompts), longest), dtype=np.bool_)
        for place, row in encoded.items():
            tokens[place, : len(row)], mask[place, : len(row)] = row, True
        return tokens, mask

    def encode_texts(self, texts: Sequence[str]) -> list[Floats]:
        """For each of B texts an array (T, D): the pooled embedding, then its own tokens of all windows.

        Raises:
            CheckpointError: a text takes too many windows.
        """
        if not texts:
            return []
        encoded = self._tokenizer.encode_batch([without_surrogates(text) for text in texts])
        windows = [[first, *first.overflowing] for first in encoded]
        most = max(map(len, windows))
        if most > self.texts.windows:
            raise CheckpointError(
                f"A text takes {most} windows of {self.texts.context} tokens; at most {self.texts.windows} are read."
            )
        # All windows of all texts in one batch: ids (W, L).
        flat = [window for text in windows for window in text]
        longest = self.texts.context if self.texts.fill else max(len(window.ids) for window in flat)
        ids = np.full((len(flat), longest), self.texts.pad, dtype=np.int64)
        mask = np.zeros_like(ids)
        for place, window in enumerate(flat):
            ids[place, : len(window.ids)], mask[place, : len(window.ids)] = window.ids, 1
        # A CLIP and a SigLIP are exported without a mask.
        given = {"input_ids": ids, "attention_mask": mask}
        inputs = {side.name: given[side.name] for side in self._text.get_inputs()}
        outputs: Iterator[tuple[Floats, Floats]] = zip(
            *self._text.run(["pooled", "tokens"], inputs), strict=True
        )
        rows = []
        for text in windows:
            pooled, tokens = [], []
            for window in text:
                whole, each = next(outputs)  # (D,), (L, D)
                own = np.array(window.special_tokens_mask, dtype=np.bool_)
                pooled.append(whole)
                tokens.append(each[: len(own)][~own])  # without padding and special tokens
            rows.append(np.concatenate([np.mean(pooled, axis=0, keepdims=True), *tokens]))
        return rows

    def queries(self, taxonomy: Taxonomy) -> Queries:
        """The taxonomy side, cached: phrases (K, M, D), where (K, M, H, inner / H), kinds (K, M)."""
        found = self._queries.get(taxonomy.hash)
        if found is None:
            listed = [phrases(category) for category in taxonomy]
            self._encode_phrases([phrase.text for category in listed for phrase in category])
            longest = max(map(len, listed))
            embeddings = np.zeros((len(listed), longest, self.width), dtype=np.float32)
            kinds = np.full((len(listed), longest), -1, dtype=np.int64)
            for k, category in enumerate(listed):
                for m, phrase in enumerate(category):
                    embeddings[k, m] = self._phrases[phrase.text]
                    kinds[k, m] = KINDS.index(phrase.kind)
            corrected, where = self._taxonomy.run(["phrases", "where"], {"embeddings": embeddings})
            found = self._queries[taxonomy.hash] = {"phrases": corrected, "where": where, "kinds": kinds}
        return found

    def _encode_phrases(self, texts: Sequence[str]) -> None:
        """Embed the phrases that are not cached, as `judge.encoders.phrase_embeddings` does with torch."""
        if len(self._phrases) > MAX_CACHED_PHRASES:
            self._phrases.clear()
        new = [text for text in dict.fromkeys(texts) if text not in self._phrases]
        for text, first in zip(new, self._tokenizer.encode_batch(new), strict=True):
            if len(first.overflowing) >= self.texts.windows:
                tokens = sum(len(window.ids) for window in (first, *first.overflowing))
                raise ConfigError(too_long_message(text, tokens, self.texts.context))
        new.sort(key=len)  # a batch is padded to its longest text
        for start in range(0, len(new), 64):
            part = new[start : start + 64]
            self._phrases.update(
                (text, row[0]) for text, row in zip(part, self.encode_texts(part), strict=True)
            )


def load_onnx_student(path: str | Path, *, threads: int = 0, batch_size: int = 32) -> OnnxStudent:
    """Open an exported student.

    Args:
        path: `student.onnx`, with the other exported files beside it.
        threads: of ONNX Runtime; 0 lets it choose.
        batch_size: images in one pass of the encoder, and readings with a text in one pass of the head.

    Raises:
        CheckpointError: a file is missing, damaged, of another export or of a newer format.
        MissingExtraError: onnxruntime or tokenizers is not installed.
    """
    return OnnxStudent(path, threads=threads, batch_size=batch_size)


def _as_tuple(value: Any) -> Any:
    """JSON has lists where `ImagePreprocessing` has tuples."""
    return tuple(value) if isinstance(value, list) else value


def _sigmoid(logits: NDArray[Any]) -> NDArray[np.float64]:
    small = np.exp(-np.abs(logits))  # never overflows
    result: NDArray[np.float64] = np.where(logits >= 0, 1.0, small) / (1.0 + small)
    return result
