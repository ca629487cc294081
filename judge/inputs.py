"""Input validation for every `score`: images of any form, prompts and taxonomy, checked in one place.

A wrong *argument* raises an error with what to pass instead. An *image* that cannot be decoded becomes a row of NaN
with the reason, never safe, and the other rows are judged.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from prompts.taxonomy import Taxonomy

from .errors import ImageError, QuestionError
from .protocol import Scores

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    Score = TypeVar("Score", bound=Callable[..., Scores])
    ScoreSeveral = TypeVar("ScoreSeveral", bound=Callable[..., list[Scores]])

OPENED_PIXELS = 2**26
"""Pixels in memory at a time of images that were opened here: 256 MB at 4 bytes each. The caller's do not count."""
FORMS = "a PIL image, a path, the bytes of a file, or an array (uint8, or floats of 0 to 1; (H, W, 3) or (3, H, W))"
_URL = re.compile(r"(?i)data:|[a-z][a-z0-9+.-]+://")


def check_prompts(count: int, prompts: Sequence[str | None] | None) -> list[str | None]:
    """The prompts as a list of `count` texts or None; all None where none are given.

    Raises:
        QuestionError: another number of prompts, one string for all of them, or an entry that is no string.
    """
    if prompts is None:
        return [None] * count
    if isinstance(prompts, str | bytes | Mapping):
        raise QuestionError(
            f"prompts is one {type(prompts).__name__}; give a list with a text or None for each image, or None."
        )
    found = list(prompts)
    if len(found) != count:
        raise QuestionError(f"Got {count} images but {len(found)} prompts; give one each, or None.")
    for prompt in found:
        if prompt is not None and not isinstance(prompt, str):
            raise QuestionError(f"A prompt is a text or None, not {type(prompt).__name__}.")
    return found


def check_taxonomy(taxonomy: object) -> None:
    """Check that the argument is a `Taxonomy`.

    Raises:
        QuestionError: it is something else, such as a name.
    """
    if not isinstance(taxonomy, Taxonomy):
        raise QuestionError(
            f"taxonomy is a {type(taxonomy).__name__}, not a prompts.Taxonomy; give load_taxonomy(NAME or FILE), "
            'or Taxonomy.from_dict({"name": ..., "categories": [{"name": ..., "definition": ...}]}).'
        )


def check_images(images: object) -> Sequence[Any]:
    """The images as a sequence: a list, a tuple, an array (B, H, W, 3) or (B, 3, H, W), or another sequence.

    Raises:
        QuestionError: one image instead of several, or an object without a length, such as a generator.
    """
    from PIL import Image

    from .data.arrays import is_array

    # One image or one path would otherwise be iterated over, row by row or letter by letter.
    if isinstance(images, str | bytes | bytearray | memoryview | Path | Image.Image) or (
        is_array(images) and len(images.shape) < 4
    ):
        raise QuestionError(f"images is one {type(images).__name__}; give a list of images: [image].")
    if isinstance(images, Mapping) or not (hasattr(images, "__len__") and hasattr(images, "__getitem__")):
        raise QuestionError(f"images is a {type(images).__name__}; give a list or tuple, each of it {FORMS}.")
    return cast("Sequence[Any]", images)


def open_input(source: Any) -> "Image.Image":
    """Decode one image of any form into the RGB image that is judged; a clean RGB image is returned as it is.

    Raises:
        ImageError: an image that cannot be judged.
        QuestionError: another type, or a URL: nothing is ever fetched.
    """
    from PIL import Image

    from .data.arrays import image_of_array, is_array
    from .data.images import open_image

    if isinstance(source, Image.Image):
        return source if _is_clean(source) else open_image(source)
    if is_array(source):
        return open_image(image_of_array(source))
    if isinstance(source, str) and _URL.match(source):
        raise QuestionError(
            f"{source[:60]!r} is a URL, and nothing is fetched here; download it, and give {FORMS}."
        )
    if isinstance(source, str | Path | bytes | bytearray | memoryview) or hasattr(source, "__bytes__"):
        return open_image(source)
    raise QuestionError(f"An image is {FORMS}; not {type(source).__name__}.")


def _is_clean(image: "Image.Image") -> bool:
    """Whether `open_image` would change nothing: plain RGB pixels within the limits, without metadata of a file."""
    from PIL import Image

    from .data.images import DEFAULT_LIMITS, MAX_JUDGED_PIXELS

    width, height = image.size
    return (
        type(image) is Image.Image
        and image.mode == "RGB"
        and not image.info
        and 0 < width * height <= MAX_JUDGED_PIXELS
        and max(width, height) <= DEFAULT_LIMITS.max_aspect * min(width, height)
    )


def validate_inputs(score: "Score") -> "Score":
    """Decorator for a method `score(self, images, prompts, taxonomy, ...)`, which then gets valid rows only.

    Its images are RGB PIL images, opened in chunks of `OPENED_PIXELS`; its prompts a list of as many; its taxonomy a
    `Taxonomy`. Rows whose image cannot be opened are added to its result: NaN, with the reason, decided by the `door`.
    """

    @wraps(score)
    def checked(self: Any, images: Any, prompts: Any, taxonomy: Any, **options: Any) -> Scores:
        return _score_opened(
            lambda opened, asked: [score(self, opened, asked, taxonomy, **options)],
            images,
            prompts,
            [taxonomy],
        )[0]

    return cast("Score", checked)


def validate_inputs_for_taxonomies(score: "ScoreSeveral") -> "ScoreSeveral":
    """As `validate_inputs`, for a method that takes a sequence of taxonomies and returns scores for each."""

    @wraps(score)
    def checked(self: Any, images: Any, prompts: Any, taxonomies: Any, **options: Any) -> list[Scores]:
        return _score_opened(
            lambda opened, asked: score(self, opened, asked, taxonomies, **options),
            images,
            prompts,
            taxonomies,
        )

    return cast("ScoreSeveral", checked)


def _score_opened(
    score: "Callable[[list[Image.Image], list[str | None]], list[Scores]]",
    images: Any,
    prompts: Any,
    taxonomies: Sequence[Taxonomy],
) -> list[Scores]:
    """Check the inputs, open the images chunk by chunk, and return the scores of all B rows for each taxonomy."""
    for taxonomy in taxonomies:
        check_taxonomy(taxonomy)
    sources = check_images(images)
    prompts = check_prompts(len(sources), prompts)
    # One part for each chunk of images that fits into memory.
    parts = []
    for rows, opened, failed in _open_in_chunks(sources):
        # Prompts of failed rows are dropped with their images, so that the two lists stay aligned.
        some = [prompts[row] for row in rows if row not in failed]
        # A chunk in which every image failed leaves nothing to score.
        found = (
            [no_rows(taxonomy) for taxonomy in taxonomies] if failed and not opened else score(opened, some)
        )
        parts.append([insert_failed_rows(one, [failed.get(row) for row in rows]) for one in found])
    return (
        parts[0] if len(parts) == 1 else [concatenate_scores(of_one) for of_one in zip(*parts, strict=True)]
    )


def no_rows(taxonomy: Taxonomy) -> Scores:
    """Scores of zero rows, (0,) and (0, K)."""
    import numpy as np

    return Scores(np.zeros(0), np.zeros((0, len(taxonomy))), (), (), ())


def _open_in_chunks(sources: Sequence[Any]) -> "Iterator[tuple[range, list[Image.Image], dict[int, str]]]":
    """Chunks of rows: their numbers, the images that could be opened, and by row why the others could not."""
    start, pixels = 0, 0
    opened: list[Image.Image] = []
    failed: dict[int, str] = {}
    # By index and not by iteration: a data set may open its images when they are asked for.
    for row in range(len(sources)):
        try:
            # Only an image that cannot be decoded becomes a row; a wrong type raises, as the caller must correct it.
            image = open_input(sources[row])
            opened.append(image)
            pixels += 0 if image is sources[row] else image.width * image.height
        except ImageError as error:
            failed[row] = str(error)
        if pixels >= OPENED_PIXELS:
            yield range(start, row + 1), opened, failed
            start, pixels, opened, failed = row + 1, 0, [], {}
    # Without any images there is still one chunk, so that `score` returns arrays of the right shape.
    if start < len(sources) or not len(sources):
        yield range(start, len(sources)), opened, failed


def insert_failed_rows(scores: Scores, failed: Sequence[str | None]) -> Scores:
    """Scores of the opened rows -> scores of all B rows; `failed` holds B reasons, None where a row was opened."""
    if not any(failed):
        return scores
    import numpy as np

    judged = [row for row, reason in enumerate(failed) if reason is None]

    def known(found: "NDArray[np.float64]") -> "NDArray[np.float64]":
        # (B,) or (B, K), NaN where a row failed
        whole = np.full((len(failed), *found.shape[1:]), np.nan)
        whole[judged] = found
        return whole

    def each(found: Sequence[Any] | None, rest: Callable[[str], Any]) -> tuple[Any, ...] | None:
        if found is None:
            return None
        # `found` has one entry for each opened row; the failed ones are filled in between.
        rows = iter(found)
        return tuple(next(rows) if reason is None else rest(reason) for reason in failed)

    return Scores(
        known(scores.unsafe),
        known(scores.categories),
        each(scores.reasons, str) or (),
        each(scores.decided_by, lambda _: "door"),
        each(scores.because, str),
        None if scores.separate is None else known(scores.separate),
        each(scores.notes, lambda _: None),
        each(scores.unanswered, lambda _: False),
    )


def concatenate_scores(parts: Sequence[Scores]) -> Scores:
    """Scores of consecutive chunks as one."""
    import numpy as np

    def chain(name: str) -> tuple[Any, ...] | None:
        every = [getattr(part, name) for part in parts]
        return None if None in every else tuple(entry for one in every for entry in one)

    # Most chunks have no notes, so those of one chunk must not be lost with them.
    noted = [part.notes or (None,) * len(part.unsafe) for part in parts]
    notes = tuple(note for one in noted for note in one)
    unanswered = tuple(one for part in parts for one in part.unanswered or (False,) * len(part.unsafe))

    return Scores(
        np.concatenate([part.unsafe for part in parts]),
        np.concatenate([part.categories for part in parts]),
        chain("reasons") or (),
        chain("decided_by"),
        chain("because"),
        # `separate` is None in a chunk whose categories were not moved; there they are the same numbers.
        None
        if all(part.separate is None for part in parts)
        else np.concatenate([part.category_probabilities for part in parts]),
        notes if any(notes) else None,
        unanswered if any(unanswered) else None,
    )
