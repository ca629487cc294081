"""An exported student, run by ONNX Runtime: the same answers where there is no torch.

`judge.student.export` writes five files that belong together and share a stem:

    student.onnx            image encoder and head: pixels, prompt tokens, queries -> logits
    student.text.onnx       text encoder: token ids -> pooled and token embeddings
    student.taxonomy.onnx   embeddings of phrases -> queries, once per taxonomy
    student.tokenizer.json  of the text encoder
    student.json            how to prepare images and texts, the taxonomy, and the SHA-256 of the other four

Needs numpy, Pillow, PyYAML, cachetools, `onnxruntime` and `tokenizers`; neither torch nor transformers is imported.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from judge.encoders.phrases import (
    KINDS,
    MAX_CACHED_PHRASES,
    MAX_CACHED_TAXONOMIES,
    phrases,
    unjudged_reason,
    unreadable,
)
from judge.errors import CheckpointError, ConfigError, MissingExtraError
from judge.protocol import Scores, on_one_scale
from judge.questions import check_prompts, validate_inputs
from judge.runs.files import file_hash
from prompts.errors import TaxonomyError
from prompts.taxonomy import Taxonomy

if TYPE_CHECKING:
    from PIL.Image import Image

FORMAT = 1
"""Version of the files; raised when older code could no longer read them."""
SIDES = {"image": ".onnx", "text": ".text.onnx", "taxonomy": ".taxonomy.onnx", "tokenizer": ".tokenizer.json"}
"""What replaces `.onnx` in the name of each file but the manifest."""
MANIFEST = ".json"

Floats = NDArray[np.float32]
Queries = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class ImagePreprocessing:
    """What an image processor of CLIP or SigLIP does to an RGB image, in this order."""

    resize: tuple[int, int] | int | None
    """Height and width, or the length of the shorter side."""
    resample: int
    """Pillow's number of the filter."""
    crop: tuple[int, int] | None
    """Height and width of the middle that stays; black is added where the image is smaller."""
    scale: float | None
    """What pixels of 0 to 255 are multiplied with."""
    mean: tuple[float, ...] | None
    deviation: tuple[float, ...] | None
    """(3,) each, of the scaled pixels; both or neither."""

    def __call__(self, image: "Image") -> Floats:
        """An RGB image -> (3, H, W)."""
        if self.resize is not None:
            height, width = self.resize if isinstance(self.resize, tuple) else _shorter(image, self.resize)
            image = image.resize((width, height), resample=self.resample)
        pixels: NDArray[Any] = np.asarray(image)
        if self.crop is not None:
            pixels = _middle(pixels, *self.crop)
        values = (pixels.astype(np.float64) * (1.0 if self.scale is None else self.scale)).astype(np.float32)
        if self.mean is not None and self.deviation is not None:
            mean: Floats = np.array(self.mean, dtype=np.float32)
            deviation: Floats = np.array(self.deviation, dtype=np.float32)
            values = (values - mean) / deviation
        return np.ascontiguousarray(values.transpose(2, 0, 1))


@dataclass(frozen=True)
class TextPreprocessing:
    """How texts become token ids."""

    context: int
    """Tokens read at once, special ones included."""
    pad: int
    """Id of the token behind shorter texts."""
    fill: bool
    """Pad to the context (SigLIP) and not just to the longest text (CLIP)."""
    windows: int
    """Contexts that are read of one text, at most."""


class OnnxStudent:
    """A classifier of any taxonomy; answers as the `Student` that it was exported from.

    Attributes:
        name: of the student.
        default_taxonomy: the one it was trained on, if that is known.
        manifest: everything that student.json says.
        batch_size: images in one pass.
    """

    why_no_gradients: ClassVar[str] = "it is an exported ONNX graph, which has no backward pass"

    def __init__(self, path: str | Path, *, threads: int = 0, batch_size: int = 32) -> None:
        """Open the files beside `path`, which ends in `.onnx`; see `load_onnx_student`."""
        self.path, self.batch_size = Path(path), batch_size
        for package in ("onnxruntime", "tokenizers"):  # asked before files of many megabytes are checked
            _need(package)
        self.manifest = _read_manifest(self.path)
        files = {side: self.path.with_suffix(suffix) for side, suffix in SIDES.items()}
        for side, file in files.items():
            _check_file(file, self.manifest["sha256"].get(side), self.path)
        try:
            self.images = ImagePreprocessing(**{key: _frozen(v) for key, v in self.manifest["image"].items()})
            self.texts = TextPreprocessing(**self.manifest["text"])
            self.width, self.name = int(self.manifest["head"]["width"]), str(self.manifest["name"])
            own = self.manifest["taxonomy"]
            self.default_taxonomy = None if own is None else Taxonomy.from_dict(own, str(self.path))
        except (KeyError, TypeError, ValueError, AttributeError, TaxonomyError) as error:
            raise _damaged(self.path.with_suffix(MANIFEST), error) from error
        self._image = _session(files["image"], threads)
        self._text = _session(files["text"], threads)
        self._taxonomy = _session(files["taxonomy"], threads)
        self._tokenizer = _tokenizer(files["tokenizer"], self.texts.context)
        self._known: dict[str, Floats] = {}
        self._queries: LRUCache[str, Queries] = LRUCache(MAX_CACHED_TAXONOMIES)

    @validate_inputs
    def score(
        self, images: "Sequence[Image]", prompts: Sequence[str | None] | None, taxonomy: Taxonomy
    ) -> Scores:
        """Score B images with B prompts (or none at all) under a taxonomy of K categories.

        An image whose prompt is longer than is read, or whose scores are not finite, is NaN with a reason.

        Raises:
            ConfigError: a phrase of a category that is longer than the text encoder reads in all its windows.
        """
        prompts = check_prompts(len(images), prompts)
        long = [prompt is not None and self.too_long(prompt) for prompt in prompts]
        prompts = [None if unread else prompt for prompt, unread in zip(prompts, long, strict=True)]
        whole, categories = np.zeros(len(images)), np.zeros((len(images), len(taxonomy)))
        for start in range(0, len(images), self.batch_size):
            part = slice(start, start + self.batch_size)
            whole[part], categories[part] = self.logits(images[part], prompts[part], taxonomy)
        finite = np.isfinite(whole) & np.isfinite(categories).all(-1)
        reasons = tuple(unjudged_reason(unread, fine) for unread, fine in zip(long, finite, strict=True))
        unjudged = np.array([reason is not None for reason in reasons], dtype=bool)
        whole[unjudged], categories[unjudged] = np.nan, np.nan
        decided_by = ("student",) * len(images)
        return on_one_scale(Scores(_sigmoid(whole), _sigmoid(categories), reasons, decided_by=decided_by))

    def too_long(self, text: str) -> bool:
        """Whether a text takes more windows than are read."""
        return len(self._tokenizer.encode(_readable(text)).overflowing) >= self.texts.windows

    def logits(
        self, images: "Sequence[Image]", prompts: Sequence[str | None], taxonomy: Taxonomy
    ) -> tuple[Floats, Floats]:
        """Logits (B,) of the whole and (B, K) of the categories, all B images in one pass."""
        prompt, mask = self.encode_prompts(prompts)
        pixels = np.stack([self.images(image) for image in images])
        inputs = {"pixel_values": pixels, "prompt": prompt, "prompt_mask": mask, **self.queries(taxonomy)}
        whole, categories = self._image.run(["whole", "categories"], inputs)
        return whole, categories

    def encode_prompts(self, prompts: Sequence[str | None]) -> tuple[Floats, NDArray[np.bool_]]:
        """(B, 1 + L, D) tokens, the pooled embedding first, and (B, 1 + L) mask, all False without a prompt."""
        there = [place for place, prompt in enumerate(prompts) if prompt and prompt.strip()]
        read = dict(zip(there, self.encode_texts([prompts[place] or "" for place in there]), strict=True))
        longest = max(map(len, read.values()), default=1)
        tokens = np.zeros((len(prompts), longest, self.width), dtype=np.float32)
        mask = np.zeros((len(prompts), longest), dtype=np.bool_)
        for place, row in read.items():
            tokens[place, : len(row)], mask[place, : len(row)] = row, True
        return tokens, mask

    def encode_texts(self, texts: Sequence[str]) -> list[Floats]:
        """For each text (1 + L, D): the pooled embedding, then its own tokens, all windows of a long text."""
        if not texts:
            return []
        encoded = self._tokenizer.encode_batch([_readable(text) for text in texts])
        windows = [[first, *first.overflowing] for first in encoded]
        most = max(map(len, windows))
        if most > self.texts.windows:
            raise CheckpointError(
                f"A text takes {most} windows of {self.texts.context} tokens; at most {self.texts.windows} are read."
            )
        flat = [window for text in windows for window in text]
        longest = self.texts.context if self.texts.fill else max(len(window.ids) for window in flat)
        ids = np.full((len(flat), longest), self.texts.pad, dtype=np.int64)
        for place, window in enumerate(flat):
            ids[place, : len(window.ids)] = window.ids
        seen: Iterator[tuple[Floats, Floats]] = zip(
            *self._text.run(["pooled", "tokens"], {"input_ids": ids}), strict=True
        )
        rows = []
        for text in windows:
            pooled, tokens = [], []
            for window in text:
                whole, each = next(seen)
                own = np.array(window.special_tokens_mask, dtype=np.bool_)
                pooled.append(whole)
                tokens.append(each[: len(own)][~own])
            rows.append(np.concatenate([np.mean(pooled, axis=0, keepdims=True), *tokens]))
        return rows

    def queries(self, taxonomy: Taxonomy) -> Queries:
        """The taxonomy side, computed once and kept: phrases (K, M, D), where (K, M, H, d), kinds (K, M)."""
        found = self._queries.get(taxonomy.hash)
        if found is None:
            listed = [phrases(category) for category in taxonomy]
            self._learn([phrase.text for category in listed for phrase in category])
            longest = max(map(len, listed))
            embeddings = np.zeros((len(listed), longest, self.width), dtype=np.float32)
            kinds = np.full((len(listed), longest), -1, dtype=np.int64)
            for k, category in enumerate(listed):
                for m, phrase in enumerate(category):
                    embeddings[k, m] = self._known[phrase.text]
                    kinds[k, m] = KINDS.index(phrase.kind)
            corrected, where = self._taxonomy.run(["phrases", "where"], {"embeddings": embeddings})
            found = self._queries[taxonomy.hash] = {"phrases": corrected, "where": where, "kinds": kinds}
        return found

    def _learn(self, texts: Sequence[str]) -> None:
        if len(self._known) > MAX_CACHED_PHRASES:
            self._known.clear()
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        for text, first in zip(new, self._tokenizer.encode_batch(new), strict=True):
            if len(first.overflowing) >= self.texts.windows:
                tokens = sum(len(window.ids) for window in (first, *first.overflowing))
                raise ConfigError(unreadable(text, tokens, self.texts.context))
        new.sort(key=len)  # what is read together is padded to the longest
        for start in range(0, len(new), 64):
            part = new[start : start + 64]
            self._known.update(
                (text, row[0]) for text, row in zip(part, self.encode_texts(part), strict=True)
            )


def load_onnx_student(path: str | Path, *, threads: int = 0, batch_size: int = 32) -> OnnxStudent:
    """Open an exported student.

    Args:
        path: `student.onnx`; the files exported with it lie beside it.
        threads: of ONNX Runtime; 0 leaves the choice to it.
        batch_size: images in one pass.

    Raises:
        CheckpointError: a file is missing, damaged, of another export or of a newer format.
        MissingExtraError: onnxruntime or tokenizers is not installed.
    """
    return OnnxStudent(path, threads=threads, batch_size=batch_size)


def make_manifest(images: ImagePreprocessing, texts: TextPreprocessing, **about: Any) -> dict[str, Any]:
    """What `OnnxStudent` reads from student.json; `about` are the other entries."""
    return {"format": FORMAT, "kinds": list(KINDS), "image": asdict(images), "text": asdict(texts), **about}


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path.with_suffix(MANIFEST)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; `arbiter export RUN {path}` writes it.")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        version, kinds = found["format"], found["kinds"]
        if not isinstance(found["sha256"], dict) or not isinstance(version, int):
            raise TypeError("entries of another type")
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing; {path} needs all files it was exported with.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(file, error) from error
    if version != FORMAT or kinds != list(KINDS):
        raise CheckpointError(
            f"{path} has export format {version} with phrases {kinds}, this version reads {FORMAT} with "
            f"{list(KINDS)}; export it again, or use the version of arbiter-vision that wrote it."
        )
    return dict(found)


def _check_file(file: Path, expected: object, path: Path) -> None:
    try:
        found = file_hash(file)
    except OSError as error:
        raise CheckpointError(
            f"{file} cannot be read ({error.strerror}); {path} needs all files it was exported with."
        ) from error
    if found != expected:
        raise CheckpointError(
            f"{file} is not the file that was exported with {path.with_suffix(MANIFEST)} (SHA-256 "
            f"{found[:16]}, not {str(expected)[:16]}): damaged, or of another export. Export again."
        )


def _session(file: Path, threads: int) -> Any:
    runtime = _need("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    # One student has three pools of threads, and those that wait for work must not keep the others from it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors only: the notices are about hardware that is not there
    try:
        return runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its classes are not public
        raise _damaged(file, error) from error


def _tokenizer(file: Path, context: int) -> Any:
    library = _need("tokenizers")
    try:
        tokenizer = library.Tokenizer.from_file(str(file))
    except Exception as error:  # it raises bare ones
        raise _damaged(file, error) from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(context)
    return tokenizer


def _need(package: str) -> Any:
    from importlib import import_module

    try:
        return import_module(package)
    except ImportError as error:
        raise MissingExtraError(
            f"An exported student needs {package}; install it with `pip install 'arbiter-vision[onnx]'`, or alone."
        ) from error


def _damaged(file: Path, error: Exception) -> CheckpointError:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return CheckpointError(
        f"{file} is damaged ({type(error).__name__}: {first[:200]}); export the student again."
    )


def _shorter(image: "Image", edge: int) -> tuple[int, int]:
    """Height and width with `edge` as the shorter side, cut down as transformers does it."""
    short, long = min(image.size), max(image.size)
    longer = int(edge * long / short)
    return (longer, edge) if image.width <= image.height else (edge, longer)


def _middle(pixels: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """(H, W, 3) -> (height, width, 3); odd differences go where transformers puts them."""
    missing = [max(wanted - has, 0) for wanted, has in zip((height, width), pixels.shape, strict=False)]
    before = [math.ceil(gap / 2) for gap in missing]
    if any(missing):
        sides = [(first, gap - first) for first, gap in zip(before, missing, strict=True)]
        pixels = np.pad(pixels, [*sides, (0, 0)])
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _readable(text: str) -> str:
    """The text without lone surrogates, which no tokenizer takes; a stranger's prompt may hold some."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _sigmoid(logits: NDArray[Any]) -> NDArray[np.float64]:
    small = np.exp(-np.abs(logits))
    result: NDArray[np.float64] = np.where(logits >= 0, 1.0, small) / (1.0 + small)
    return result
