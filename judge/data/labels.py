"""From the label and category strings of a data set's row to keys of categories.

- A safe row violates none of the categories that the data set was labelled for.
- An unsafe row violates the categories it names. UnsafeBench names one; whether others are violated too was not
  labelled. The paper counts them as not violated, and so does `others="safe"`; with `others="unknown"` such a row is
  never used as a negative for them.
- An unsafe row that names no category violates the stand-in key `UNSPECIFIED`, and every category is unknown: it is
  unsafe under a policy with all of them, and of any other nobody knows. Where the taxonomy has one category and the
  data set no vocabulary of its own, unsafe is that category.
- A label that is a category's name says both: unsafe, and how.
- Categories of the taxonomy that the data set was not labelled for are unknown in every row; those in the column
  `unknown` in that row. Its label may be `unknown` too: nothing was found, and not all was looked for.
"""

import ast
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from prompts.example import UNSPECIFIED, Example
from prompts.names import RESERVED_NAMES, nearest
from prompts.taxonomy import Taxonomy

from .sources import Row

_SOURCES = {"laion5b": "real", "lexica": "generated"}
_LABELS = {
    **dict.fromkeys(("safe", "0", "0.0", "0,0", "false"), False),
    **dict.fromkeys(("unsafe", "1", "1.0", "1,0", "true"), True),
    # What spreadsheets write for true and false in other languages.
    **dict.fromkeys(("falsch", "faux", "falso", "onwaar"), False),
    **dict.fromkeys(("wahr", "vrai", "verdadero", "verdadeiro", "vero", "waar"), True),
}
"""Words that can mean one thing only; of "yes" nobody knows whether it says safe or unsafe."""
_HINTS = {
    **dict.fromkeys(("yes", "no", "y", "n", "ja", "nein", "oui", "non", "si", "sí", "+", "-", "positive", "negative"),
                    ": nobody knows whether it says safe or unsafe"),
    "nsfw": ": probably unsafe",
    "sfw": ": probably safe",
    "ok": ": probably safe",
    "normal": ": probably safe",
    "none": ": probably safe",
}  # fmt: skip


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
        own = known is None and not only and len(self._keys) == 1
        self._alone = next(iter(self._keys)) if own else None
        """The one category that an unsafe row can mean."""
        self._others_unknown = others == "unknown"
        self._safe_names = safe_names

    def example(self, row: Row) -> Example:
        """The row as an example.

        Raises:
            UnusableRowError: no label, one that cannot be understood, an unknown category, or a severity that is no
                whole number.
        """
        violates, unknown = self._labels(self._label_of_category(row))
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

    def _label_of_category(self, row: Row) -> Row:
        """The row with label and categories apart, where its label is the name of categories."""
        word = row.label
        if not isinstance(word, str) or word.strip().casefold() in _LABELS or _names(row.categories):
            return row
        found = [self._by_word.get(name.casefold()) for name in self._split(word)]
        return replace(row, label="unsafe", categories=word) if found and None not in found else row

    def _labels(self, row: Row) -> tuple[frozenset[str], frozenset[str]]:
        """The keys violated, and those that are unknown."""
        partly = str(row.label).strip().casefold() == "unknown" and bool(_names(row.unknown))
        unsafe = False if partly else _is_unsafe(row.label, self._names)
        never_looked_for = frozenset(self._keys - self._looked_for)
        names = self._split(row.categories)
        if not unsafe:
            # No category can have these names, so they say that there is none.
            names = [name for name in names if name.strip().casefold() not in RESERVED_NAMES]
            if names and not self._safe_names:
                raise UnusableRowError("contradictory_label", f"safe, yet in category {names[0]!r}")
            # A safe row of a one-category set says nothing about the other categories.
            others = self._keys - {self._only} if self._only and self._others_unknown else never_looked_for
            return frozenset(), frozenset(others)
        violates = frozenset([self._only] if self._only else [self._key(name) for name in names])
        if not violates and self._alone:
            return frozenset([self._alone]), frozenset()
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

    def _split(self, categories: Any) -> list[str]:
        """The names in a cell: split at semicolons, and at commas or bars where each part is a known category."""
        found = list[str]()
        for name in _names(categories):
            parts = [part.strip() for part in re.split(r"[,|]", name) if part.strip()]
            whole = name.strip().casefold() in self._by_word
            found += [name] if whole or not self._all_known(parts) else parts
        return found

    def _all_known(self, names: list[str]) -> bool:
        return bool(names) and all(name.casefold() in self._by_word for name in names)

    def _key(self, name: str) -> str:
        key = self._by_word.get(name.strip().casefold())
        if key is None:
            several = "; several are separated by ';'" if re.search(r"[,|/]", name) else ""
            hint = nearest(name, self._names)
            raise UnusableRowError(
                "unknown_category", f"{name!r}{hint}; known: {', '.join(dict.fromkeys(self._names))}{several}"
            )
        return key


def raw_categories(row: Row) -> list[str] | None:
    """The names of an unsafe row as they are written, before any taxonomy; None where it is safe.

    Raises:
        UnusableRowError: no label, one that says neither, or categories that are no text or list.
    """
    word, names = "" if row.label is None else str(row.label).strip().casefold(), _names(row.categories)
    if word and word not in _LABELS and word not in _HINTS and word != "unknown":
        return names or _names(row.label)  # a label that is a category's name
    return names if _is_unsafe(row.label, names) else None


def label_notes(examples: Sequence[Example], taxonomy: Taxonomy) -> list[str]:
    """What labels of these images cannot teach, in sentences; none where every unsafe image names its category.

    Args:
        examples: of any splits.
        taxonomy: whose categories they were labelled for.
    """
    unsafe = [example for example in examples if example.violates]
    unnamed = sum(UNSPECIFIED in example.violates for example in unsafe)
    if unsafe and len(taxonomy) == 1:
        return [
            "the taxonomy has one category, so unsafe means that one; training teaches it in many wordings and its "
            "negation, and as there is no other category to exchange it for, no pair score can be measured"
        ]
    if not unnamed:
        return []
    what = f"{unnamed:,} of {len(unsafe):,} unsafe rows name no category; they are asked about under "
    what += f"all {len(taxonomy)} categories together only, and never count as safe"
    if unnamed == len(unsafe):
        what += (
            ". So training teaches safe from unsafe, but neither which category it is nor that another policy changes "
            "the verdict, and no pair score can be measured: name categories in the table for that"
        )
    return [what]


def _listed(text: str) -> Any:
    """The list that a cell writes as JSON or as Python does, such as `["Hate", "Violence"]`; else the text."""
    try:
        found = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return found if isinstance(found, list) and all(isinstance(name, str) for name in found) else text


def _words(taxonomy: Taxonomy) -> dict[str, str]:
    """Case-folded word -> key; a category that merges others is found by their keys, not by its own name."""
    words: dict[str, str] = {}
    for category in taxonomy:
        words |= {member.casefold(): member for member in category.members}
        if category.key in category.members:
            own = (category.name, *category.aliases, *([category.code] if category.code else []))
            words |= {word.casefold(): category.key for word in own}
    return words


def _is_unsafe(label: Any, categories: list[str]) -> bool:
    if isinstance(label, float):
        # A column of integers with missing values arrives as floats; NaN is the missing one.
        label = None if label != label else int(label) if label.is_integer() else label
    word = "" if label is None else str(label).strip().casefold()
    if not word:
        raise UnusableRowError("no_label", "the row has no label")
    if word not in _LABELS:
        hint = _HINTS.get(word) or nearest(word, categories)
        raise UnusableRowError(
            "bad_label",
            f"{label!r}; write unsafe or safe (also 1 or 0, true or false), or the name of a category{hint}; "
            "unknown beside unknown categories",
        )
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
    if isinstance(categories, str) and categories.strip().startswith("["):
        categories = _listed(categories)
    if isinstance(categories, str):
        return [name.strip() for name in categories.split(";") if name.strip()]
    if isinstance(categories, (list, tuple)) and all(isinstance(name, str) for name in categories):
        return [name for name in categories if name.strip()]
    raise UnusableRowError("bad_row", f"categories {categories!r}; expected a list or text separated by ';'")
