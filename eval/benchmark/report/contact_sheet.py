"""Contact sheets: images with a wrong verdict, small, re-encoded, and blurred in the pixels themselves.

Nobody should see a disturbing image because a page loads without its style sheet, or finds it in the page's source.
So the blur is not one of the page: what is embedded is blurred, and so small that nothing can be restored.
"""

import base64
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO

from PIL import Image, ImageFilter

from eval.benchmark.predictions import Prediction, Predictions
from judge.errors import first_line
from prompts.example import UNSPECIFIED

SIDE = 160
"""Longest side of a thumbnail, in pixels."""
BLURRED_SIDE = 64
"""Longest side of a blurred one, which has no details to lose."""
BLUR = 1 / 16
"""Radius of the Gaussian blur (its standard deviation), as a share of the longest side."""
TILES = 12
"""Images on each sheet; how many there are in all is said beside it."""
MAX_BYTES = 12_000_000
"""Of all pictures in one page; the remaining tiles then say so."""
_GROUND = (128, 128, 128)
"""Behind transparent images."""

Images = Callable[[str], Image.Image | None]
"""The image of an id; None where there is none."""


@dataclass(frozen=True)
class Tile:
    """One image of a sheet."""

    row: Prediction
    truth: str
    """What it violates, `safe`, or that the labels do not say."""
    verdict: str
    """The probability and the category that scores highest; or why it is unjudged."""
    picture: str | None
    """As a `data:` URI."""
    missing: str | None
    """Why there is no picture."""


@dataclass(frozen=True)
class Sheet:
    """The first tiles of a kind of error."""

    title: str
    about: str
    total: int
    """Images with this error; `tiles` shows the first of them."""
    tiles: tuple[Tile, ...]


class Thumbnails:
    """Images as small JPEGs for a page; each is opened once, and all of them together stay below a size.

    Args:
        images: opens the image of an id.
        blur: the pixels.
        max_bytes: of all thumbnails together, as they stand in the page.
    """

    def __init__(self, images: Images, *, blur: bool = True, max_bytes: int = MAX_BYTES) -> None:
        self._images, self._blur = images, blur
        self._left = max_bytes
        self._found: dict[str, tuple[str | None, str | None]] = {}

    def embed(self, name: str) -> tuple[str | None, str | None]:
        """The thumbnail of an id as a `data:` URI, or None and the reason."""
        if name not in self._found:
            self._found[name] = self._open(name)
        picture, missing = self._found[name]
        if picture is None:
            return None, missing
        if len(picture) > self._left:
            return None, "left out, as the page would become too large"
        self._left -= len(picture)
        return picture, None

    def _open(self, name: str) -> tuple[str | None, str | None]:
        # Whatever an image or its reader does, the verdict is shown.
        try:
            image = self._images(name)
            if image is None:
                return None, "no image is at hand"
            return _data_uri(thumbnail(image, blur=self._blur)), None
        except Exception as error:
            return None, f"cannot be opened: {first_line(error)}"


def thumbnail(image: Image.Image, *, blur: bool = True) -> Image.Image:
    """A small RGB copy that shares nothing with the image but its look: no metadata, no profile, no alpha."""
    side = BLURRED_SIDE if blur else SIDE
    small = image.convert("RGBA")
    # In place; never enlarges.
    small.thumbnail((side, side))
    plain = Image.new("RGB", small.size, _GROUND)
    plain.paste(small, mask=small.getchannel("A"))
    return plain.filter(ImageFilter.GaussianBlur(max(1.0, BLUR * max(plain.size)))) if blur else plain


def contact_sheets(
    predictions: Predictions, thumbnails: Thumbnails, threshold: float = 0.5, *, tiles: int = TILES
) -> tuple[Sheet, ...]:
    """The surest wrong verdicts of a classifier, and what it did not judge; kinds without any are left out.

    An image is wrong if its verdict over all categories that the classifier was asked about differs from the labels.
    Where the labels do not say, it is on no sheet of errors.

    Args:
        predictions: of one classifier.
        thumbnails: the pictures.
        threshold: p(unsafe) from which an image is flagged.
        tiles: on each sheet.
    """
    kinds = {
        "False negatives": ("unsafe images judged safe, the surest first", _missed),
        "False positives": ("safe images judged unsafe, the surest first", _flagged),
        "Unjudged": ("images that it did not judge", lambda row, _: math.isnan(row.unsafe)),
    }
    names = [category.name for category in predictions.about.taxonomy]
    keys = {category.key: category.name for category in predictions.about.taxonomy}
    found = []
    for title, (about, belongs) in kinds.items():
        rows = sorted(
            (row for row in predictions.rows if belongs(row, threshold)), key=_surest_first(threshold)
        )
        if rows:
            shown = tuple(_tile(row, names, keys, thumbnails) for row in rows[:tiles])
            found.append(Sheet(title, about, len(rows), shown))
    return tuple(found)


def _missed(row: Prediction, threshold: float) -> bool:
    return row.unsafe < threshold and row.truth is True


def _flagged(row: Prediction, threshold: float) -> bool:
    return row.unsafe >= threshold and row.truth is False


def _surest_first(threshold: float) -> Callable[[Prediction], tuple[float, str]]:
    # Ids make the order of ties repeatable.
    return lambda row: (0.0 if math.isnan(row.unsafe) else -abs(row.unsafe - threshold), row.id)


def _tile(row: Prediction, names: Sequence[str], keys: dict[str, str], thumbnails: Thumbnails) -> Tile:
    picture, missing = thumbnails.embed(row.id)
    return Tile(row, _truth(row, keys), _verdict(row, names), picture, missing)


def _truth(row: Prediction, keys: dict[str, str]) -> str:
    named = row.violates - {UNSPECIFIED}
    asked, others = (
        ", ".join(sorted(keys.get(key, key) for key in found))
        for found in (named & row.asked, named - row.asked)
    )
    whole = {True: "unsafe, category not named", False: "safe", None: "not labelled"}[row.truth]
    return asked or whole + (f" (not asked: {others})" if others else "")


def _verdict(row: Prediction, names: Sequence[str]) -> str:
    if math.isnan(row.unsafe):
        return row.reason or "no reason was given"
    scores = {name: score for name, score in zip(names, row.categories, strict=True) if score == score}
    highest = max(scores, key=scores.__getitem__, default=None)
    return f"{row.unsafe:.3f}" + (f", {highest}" if highest else "")


def _data_uri(image: Image.Image) -> str:
    saved = BytesIO()
    image.save(saved, "JPEG", quality=72)
    return f"data:image/jpeg;base64,{base64.b64encode(saved.getvalue()).decode('ascii')}"
