"""Wrong verdicts as cards, which a reader filters by category and by kind of error."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from eval.metrics.judged import JudgedRow
from prompts.errors import ArbiterError

from .flip_pair import verdict_word
from .page import picture_data_uri

MOST_WRONG = 24
"""Wrong verdicts that are shown whatever they violate."""
OF_EACH = 4
"""Wrong verdicts of each category that are shown beyond those, so that the filter has something to show."""
MOST_CARDS = 96
"""Cards in one page."""
THUMBNAIL = 224
"""Longest side of an image on a card, in pixels."""
KINDS = {
    "missed": "unsafe, judged safe",
    "flagged": "safe, judged unsafe",
    "unjudged": "not judged",
}
"""Kind of error -> what it is called."""
SAFE, UNNAMED = "none (safe images)", "not named"
"""In place of a category, of images that violate none, or that are known to be unsafe and no more."""

Images = Callable[[JudgedRow], Image.Image | None]
"""Opens the image of a row; None, or an error, where there is none."""


@dataclass(frozen=True)
class Card:
    """One wrong verdict."""

    row: JudgedRow
    verdict: str
    kind: str
    """Of `KINDS`."""
    categories: tuple[str, ...]
    """Keys of what it violates; or `SAFE`, or `UNNAMED`."""
    picture: str | None
    """As a `data:` URI."""


@dataclass(frozen=True)
class WrongVerdicts:
    """The cards, and what a reader can filter them by."""

    cards: tuple[Card, ...]
    total: int
    """Wrong verdicts, of which `cards` shows some."""
    categories: Mapping[str, int]
    """Category -> how many cards it has; one card may have several."""
    kinds: Mapping[str, int]
    """Kind -> how many cards it has."""


def wrong_verdicts(rows: Sequence[JudgedRow], threshold: float = 0.5) -> list[JudgedRow]:
    """Rows with a wrong verdict, unjudged ones first, then the most confident."""
    wrong = [row for row in rows if not row.correct(threshold)]
    return sorted(
        # False sorts before True, so unjudged rows are first; ids make the order of ties repeatable.
        wrong,
        key=lambda row: (row.judged, -abs(row.unsafe - threshold) if row.judged else 0, row.id),
    )


def wrong_cards(rows: Sequence[JudgedRow], images: Images | None, threshold: float = 0.5) -> WrongVerdicts:
    """The worst wrong verdicts, and some of each category."""
    wrong = wrong_verdicts(rows, threshold)
    shown = sorted(_selected(wrong), key=wrong.index)
    cards = tuple(_card(row, images, threshold) for row in shown)
    categories = Counter(category for card in cards for category in card.categories)
    kinds = Counter(card.kind for card in cards)
    return WrongVerdicts(
        cards,
        len(wrong),
        dict(sorted(categories.items(), key=lambda item: (item[0] == SAFE, item[0]))),
        {kind: kinds[kind] for kind in KINDS if kinds[kind]},
    )


def _selected(wrong: Sequence[JudgedRow]) -> list[JudgedRow]:
    shown = list(wrong[:MOST_WRONG])
    count = Counter(category for row in shown for category in _categories(row))
    for row in wrong[MOST_WRONG:]:
        if len(shown) < MOST_CARDS and any(count[category] < OF_EACH for category in _categories(row)):
            shown.append(row)
            count.update(_categories(row))
    return shown


def _categories(row: JudgedRow) -> tuple[str, ...]:
    key_of = dict(zip(row.policy, row.keys or row.policy, strict=True))
    violated = {key_of.get(name, name) for name in row.violated}
    return tuple(sorted(violated)) or ((UNNAMED,) if row.truth else (SAFE,))


def _card(row: JudgedRow, images: Images | None, threshold: float) -> Card:
    kind = "unjudged" if not row.judged else "missed" if row.truth else "flagged"
    return Card(row, verdict_word(row, threshold), kind, _categories(row), picture_of(row, images))


def picture_of(row: JudgedRow, images: Images | None, side: int = THUMBNAIL) -> str | None:
    """A row's image as a `data:` URI; None without one, as the verdict counts anyway."""
    try:
        found = None if images is None else images(row)
        return None if found is None else picture_data_uri(found, side)
    except (ArbiterError, OSError):
        return None
