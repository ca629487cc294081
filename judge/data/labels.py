"""From the label and category strings of a data set's row to keys of categories.

- A safe row violates none of the categories that the data set was labelled for.
- An unsafe row violates the categories it names. UnsafeBench names one; whether others are violated too was not
  labelled. The paper counts them as not violated, and so does `others="safe"`; with `others="unknown"` such a row is
  never used as a negative for them.
- An unsafe row that names no category violates the stand-in key `UNSPECIFIED`, and every category is unknown:
  under which policy it is safe cannot be known, so label flipping leaves it out.
- Categories of the taxonomy that the data set was not labelled for are unknown in every row; those in the column
  `unknown` in that row.
"""

from typing import Any, Literal

from prompts.example import Example
from prompts.names import nearest
from prompts.taxonomy import Taxonomy

from .sources import Row

UNSPECIFIED = "unsafe-unspecified"
"""In `Example.violates`: some category is violated, but it was not recorded which."""
_SOURCES = {"laion5b": "real", "lexica": "generated"}
_LABELS = {"safe": False, "0": False, "false": False, "unsafe": True, "1": True, "true": True}


class UnusableRowError(Exception):
    """Why one row cannot become an example; ends up in `ExampleSet.skipped`."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(status, reason)
        self.status, self.reason = status, reason


class Labels:
    """Turns a row's label and category strings into keys.

    Args:
        taxonomy: its names, aliases, codes and keys are matched first, case ignored.
        others: whether the categories that an unsafe row does not name are `safe` or `unknown`.
        known: the vocabulary that the data set was labelled with, if it is not the taxonomy.
        only: the one category that the data set's unsafe rows violate.
        safe_names: whether safe rows may name a category, as UnsafeBench's do (the one that was searched for).
    """

    def __init__(
        self,
        taxonomy: Taxonomy,
        others: Literal["safe", "unknown"],
        *,
        known: Taxonomy | None = None,
        only: str | None = None,
        safe_names: bool = False,
    ) -> None:
        self._keys = {member for category in taxonomy for member in category.members}
        # The taxonomy comes last, so that its words override those of the data set's own vocabulary.
        words = [_words(vocabulary) for vocabulary in (known, taxonomy) if vocabulary]
        self._by_word = {word: key for vocabulary in words for word, key in vocabulary.items()}
        self._names = [name for vocabulary in (known, taxonomy) if vocabulary for name in vocabulary.names]
        # Categories outside of the data set's own vocabulary were never labelled in it.
        self._looked_for = self._keys if known is None else {self._key(name) for name in known.names}
        self._only = self._key(only) if only else None
        self._others_unknown = others == "unknown"
        self._safe_names = safe_names

    def example(self, row: Row) -> Example:
        """The row as an example.

        Raises:
            UnusableRowError: no label, one that cannot be understood, an unknown category, or a severity that is no
                whole number.
        """
        violates, unknown = self._labels(row)
        unknown |= frozenset(self._key(name) for name in _names(row.unknown)) - violates
        source = "" if row.source is None else str(row.source)
        return Example(
            id=row.id,
            image=row.image,
            prompt=str(row.prompt) if row.prompt not in (None, "") and row.prompt == row.prompt else None,
            violates=violates,
            unknown=unknown,
            source=_SOURCES.get(source.casefold(), source) or "real",
            split=row.split,
            collected_for=self._collected_for(row),
            severity=_severity(row.severity),
            step=row.step,
        )

    def _labels(self, row: Row) -> tuple[frozenset[str], frozenset[str]]:
        """The keys violated, and those that are unknown."""
        unsafe = _is_unsafe(row.label)
        never_looked_for = frozenset(self._keys - self._looked_for)
        names = _names(row.categories)
        if not unsafe:
            if names and not self._safe_names:
                raise UnusableRowError("contradictory_label", f"safe, yet in category {names[0]!r}")
            # A safe row of a one-category set says nothing about the other categories.
            others = self._keys - {self._only} if self._only and self._others_unknown else never_looked_for
            return frozenset(), frozenset(others)
        violates = frozenset([self._only] if self._only else [self._key(name) for name in names])
        # Unsafe in an unnamed way: no single category can be trusted as a negative.
        if not violates:
            return frozenset({UNSPECIFIED}), frozenset(self._keys | self._looked_for)
        others = self._keys if self._others_unknown else never_looked_for
        return violates, frozenset(others - violates)

    def _collected_for(self, row: Row) -> str | None:
        """Key of the category that the row's image was searched for; None where nobody says, or in other words."""
        # A safe row's category labels nothing, so one that is not known makes no row unusable.
        names = _names(row.collected_for) or (_names(row.categories) if self._safe_names else [])
        return self._by_word.get(names[0].strip().casefold()) if names else None

    def _key(self, name: str) -> str:
        key = self._by_word.get(name.strip().casefold())
        if key is None:
            hint = nearest(name, self._names)
            raise UnusableRowError(
                "unknown_category", f"{name!r}{hint}; known: {', '.join(dict.fromkeys(self._names))}"
            )
        return key


def _words(taxonomy: Taxonomy) -> dict[str, str]:
    """Case-folded word -> key; a category that merges others is found by their keys, not by its own name."""
    words: dict[str, str] = {}
    for category in taxonomy:
        words |= {member.casefold(): member for member in category.members}
        if category.key in category.members:
            own = (category.name, *category.aliases, *([category.code] if category.code else []))
            words |= {word.casefold(): category.key for word in own}
    return words


def _is_unsafe(label: Any) -> bool:
    if isinstance(label, float):
        # A column of integers with missing values arrives as floats; NaN is the missing one.
        label = None if label != label else int(label) if label.is_integer() else label
    word = "" if label is None else str(label).strip().casefold()
    if not word:
        raise UnusableRowError("no_label", "the row has no label")
    if word not in _LABELS:
        raise UnusableRowError("bad_label", f"{label!r}; allowed: safe, unsafe, 0, 1, true, false")
    return _LABELS[word]


def _severity(value: Any) -> int | None:
    """A whole number, also as text or as the float that a column with missing values makes of it."""
    if value is None or value != value or value == "":
        return None
    try:
        number = float(value)
        if not isinstance(value, bool) and number.is_integer():
            return int(number)
    except (TypeError, ValueError, OverflowError):
        pass
    raise UnusableRowError(
        "bad_severity", f"{value!r}; expected a whole number, larger where the harm is worse"
    )


def _names(categories: Any) -> list[str]:
    # NaN, a missing value of a table, differs from itself.
    if categories is None or categories != categories:
        return []
    if isinstance(categories, str):
        return [name.strip() for name in categories.split(";") if name.strip()]
    if isinstance(categories, (list, tuple)) and all(isinstance(name, str) for name in categories):
        return [name for name in categories if name.strip()]
    raise UnusableRowError("bad_row", f"categories {categories!r}; expected a list or text separated by ';'")
