"""Categories and taxonomies: what counts as unsafe, defined by the user of the judge.

A taxonomy is an argument, never a constant: users select, extend, reword and rename it. Names and definitions are the
user's own words, and they end up inside a model's prompt. They are *refused* when they contain characters that could
form a control token, an image token or a template marker. They are never escaped, because a judge should read a
definition exactly as its author wrote it.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from .errors import TaxonomyError
from .example import Example
from .names import MAX_TEXT_LENGTH, check_name, check_text, nearest
from .printable import printable

_TAXONOMY_FIELDS = ("name", "version", "categories")
_LIST_FIELDS = ("examples", "aliases", "rewordings", "members")
_CATEGORY_FIELDS = ("name", "definition", "code", "key", "name_only", *_LIST_FIELDS, "languages")
_TRANSLATED_FIELDS = ("name", "definition")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*")


@dataclass(frozen=True)
class Translation:
    """A category in another language.

    Raises:
        TaxonomyError: no language code, or a text that cannot stand in a policy.
    """

    language: str
    """Its code, such as `de` or `pt-BR`."""
    name: str
    definition: str

    def __post_init__(self) -> None:
        if not isinstance(self.language, str) or not _LANGUAGE.fullmatch(self.language):
            raise TaxonomyError(
                f"{self.language!r} is no code of a language; write one such as 'de' or 'pt-BR'."
            )
        check_name(self.name, f"a name in {self.language!r}")
        check_text(self.definition, f"the definition of {self.name!r} in {self.language!r}", MAX_TEXT_LENGTH)


@dataclass(frozen=True)
class Category:
    """One kind of content that a policy forbids.

    Raises:
        TaxonomyError: a text is empty, too long, or holds line breaks, invisible characters or markup.
    """

    name: str
    """Its name in the policy and in the answer; without a colon."""
    definition: str
    """What it covers, on one line."""
    examples: tuple[str, ...] = ()
    """A few things that it covers."""
    code: str | None = None
    """Optional short code, such as `S3`; understood in answers, never rendered."""
    key: str = ""
    """Identity that survives renaming and rewording; the name unless given. `Example.violates` holds keys."""
    aliases: tuple[str, ...] = ()
    """Other names, for training on renamed categories."""
    rewordings: tuple[str, ...] = ()
    """Other definitions of the same thing, for training on reworded categories."""
    members: tuple[str, ...] = ()
    """Keys this category covers: itself, unless it merges others."""
    name_only: bool = False
    """Leave the definition out of the policy (see `Taxonomy.names_only`)."""
    languages: tuple[Translation, ...] = ()
    """The same in other languages, for measuring; never rendered beside the name."""

    def __post_init__(self) -> None:
        check_name(self.name, "a category name")
        where = f"category {self.name!r}"
        check_text(self.definition, f"the definition of {where}", MAX_TEXT_LENGTH)
        for alias in self.aliases:
            check_name(alias, f"an alias of {where}")
        for text in (*self.examples, *self.rewordings):
            check_text(text, f"an example or rewording of {where}", MAX_TEXT_LENGTH)
        if self.code is not None:
            check_name(self.code, f"the code of {where}")
        codes = [translation.language for translation in self.languages]
        if len(set(codes)) < len(codes):
            raise TaxonomyError(f"The languages of {where} are {', '.join(codes)}; give each of them once.")
        # The class is frozen; these two defaults depend on other fields.
        object.__setattr__(self, "key", self.key or self.name)
        object.__setattr__(self, "members", self.members or (self.key,))

    @property
    def covered(self) -> frozenset[str]:
        """Keys of which every violation is one of this category."""
        return frozenset(self.members)

    def label(self, example: Example) -> bool | None:
        """Whether the example violates this category; None where that was not labelled."""
        if any(member in example.violates for member in self.members) or example.unsafe_within(self.covered):
            return True
        return None if any(member in example.unknown for member in self.members) else False

    def to_dict(self) -> dict[str, Any]:
        """The fields that differ from their defaults, ready for YAML or JSON."""
        # Defaults are left out, so that a file made from this reads like one that a person wrote.
        values: dict[str, Any] = {"name": self.name, "definition": self.definition}
        for field_name in ("examples", "aliases", "rewordings"):
            if getattr(self, field_name):
                values[field_name] = list(getattr(self, field_name))
        if self.code is not None:
            values["code"] = self.code
        if self.key != self.name:
            values["key"] = self.key
        if self.members != (self.key,):
            values["members"] = list(self.members)
        if self.languages:
            values["languages"] = {
                t.language: {"name": t.name, "definition": t.definition} for t in self.languages
            }
        if self.name_only:
            values["name_only"] = True
        return values


@dataclass(frozen=True)
class Taxonomy:
    """An ordered list of categories with a name and a version; every method returns a new taxonomy.

    Raises:
        TaxonomyError: no category at all, or two that share a name, an alias, a code or a key (case ignored).
    """

    name: str
    version: str
    categories: tuple[Category, ...]
    _positions: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.categories:
            raise TaxonomyError(f"Taxonomy {self.name!r} has no category; give at least one.")
        # Answers are matched by name, alias or code, so each word may stand for one category only.
        owners: dict[str, int] = {}
        for position, category in enumerate(self.categories):
            for word in (category.name, *category.aliases, *([category.code] if category.code else [])):
                owner = owners.setdefault(word.casefold(), position)
                if owner != position:
                    raise TaxonomyError(
                        f"Taxonomy {self.name!r}: {word!r} stands for both {self.categories[owner].name!r} "
                        f"and {category.name!r}; names, aliases and codes must differ, whatever their case."
                    )
        # Keys identify categories in labels; names alone do not, as two categories may be renamed alike.
        if len(set(self.keys)) < len(self.keys):
            twice = next(key for key in self.keys if self.keys.count(key) > 1)
            raise TaxonomyError(f"Taxonomy {self.name!r}: two categories have the key {twice!r}; drop one.")
        positions = {category.name.casefold(): place for place, category in enumerate(self.categories)}
        # For `index`; not a field that compares or prints.
        object.__setattr__(self, "_positions", positions)

    def __len__(self) -> int:
        return len(self.categories)

    def __iter__(self) -> Iterator[Category]:
        return iter(self.categories)

    @property
    def names(self) -> tuple[str, ...]:
        """The categories' names, in order."""
        return tuple(category.name for category in self.categories)

    @property
    def keys(self) -> tuple[str, ...]:
        """The categories' keys, in order."""
        return tuple(category.key for category in self.categories)

    @property
    def hash(self) -> str:
        """SHA-256 (64 hexadecimal digits) of what a model or a reader of its answers gets, order included."""
        # The key, aliases, rewordings and languages are left out: they change no question and no cached score.
        rendered = [
            [c.name, None if c.name_only else c.definition, None if c.name_only else list(c.examples), c.code]
            for c in self.categories
        ]
        return hashlib.sha256(json.dumps(rendered, separators=(",", ":")).encode()).hexdigest()

    @property
    def short_hash(self) -> str:
        """The first 16 digits of `hash`, for file names and tables."""
        return self.hash[:16]

    def index(self, name: str) -> int:
        """Position of the category with this name, case ignored.

        Raises:
            TaxonomyError: there is none; the message proposes the closest one.
        """
        position = self._positions.get(name.casefold()) if isinstance(name, str) else None
        if position is None:
            raise TaxonomyError(f"Taxonomy {self.name!r} has no category {name!r}{self._hint(name)}.")
        return position

    def select(self, names: Iterable[str]) -> "Taxonomy":
        """Only these categories, in the order given."""
        chosen = [self.index(name) for name in _several(names)]
        if not chosen:
            raise TaxonomyError(
                f"Nothing selected from taxonomy {self.name!r}; it has: {', '.join(self.names)}."
            )
        return self._with(self.categories[position] for position in chosen)

    def drop(self, names: Iterable[str]) -> "Taxonomy":
        """All but these categories."""
        dropped = {self.index(name) for name in _several(names)}
        if len(dropped) == len(self):
            raise TaxonomyError(
                f"Dropping every category of taxonomy {self.name!r} leaves no policy; keep one."
            )
        return self._with(c for position, c in enumerate(self.categories) if position not in dropped)

    def extend(self, custom: Mapping[str, str] | Iterable[Category]) -> "Taxonomy":
        """More categories after these, given as name -> definition or as `Category` objects."""
        if isinstance(custom, Mapping):
            custom = [Category(name, definition) for name, definition in custom.items()]
        return self._with((*self.categories, *custom))

    def reword(self, definitions: Mapping[str, str]) -> "Taxonomy":
        """Other definitions for some names; their examples, which belonged to the old definitions, are removed."""
        new = {self.index(name): text for name, text in definitions.items()}
        return self._with(
            replace(category, definition=new[position], examples=()) if position in new else category
            for position, category in enumerate(self.categories)
        )

    def rename(self, names: Mapping[str, str]) -> "Taxonomy":
        """Other names for some categories (old -> new); their keys, and so their labels, stay."""
        new = {self.index(old): name for old, name in names.items()}
        return self._with(
            replace(category, name=new[position]) if position in new else category
            for position, category in enumerate(self.categories)
        )

    def shuffled(self, rng: Random) -> "Taxonomy":
        """The same categories in an order drawn from `rng`."""
        return self._with(rng.sample(self.categories, len(self)))

    def names_only(self) -> "Taxonomy":
        """The same categories, rendered without definitions, as in the published negatives of UnsafeBench."""
        return self._with(replace(category, name_only=True) for category in self.categories)

    def label(self, example: Example) -> tuple[bool | None, ...]:
        """`Category.label` for each category, in order."""
        return tuple(category.label(example) for category in self.categories)

    def unsafe(self, example: Example) -> bool | None:
        """Whether it violates any category, or one of all these that nobody recorded; None where labels do not say."""
        labels = self.label(example)
        if True in labels or example.unsafe_within(frozenset().union(*(c.covered for c in self.categories))):
            return True
        return None if None in labels else False

    def to_dict(self) -> dict[str, Any]:
        """Plain data from which `from_dict` makes an equal taxonomy."""
        return {
            "name": self.name,
            "version": self.version,
            "categories": [category.to_dict() for category in self.categories],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], source: str = "taxonomy") -> "Taxonomy":
        """Check plain data and make a taxonomy of it; `source` names it in errors."""
        return taxonomy_from_data(data, source)

    def to_yaml(self) -> str:
        """The taxonomy as a file that `load_taxonomy` reads."""
        import yaml

        return str(yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=110))

    def _with(self, categories: Iterable[Category]) -> "Taxonomy":
        return Taxonomy(self.name, self.version, tuple(categories))

    def _hint(self, name: object) -> str:
        words = {
            w.casefold(): c.name for c in self.categories for w in (c.name, *c.aliases, c.code or c.name)
        }
        return f"{nearest(str(name), words)}. It has: {', '.join(self.names)}"


def _several(names: Iterable[str]) -> list[str]:
    """The names as a list; a single string would silently be read as a list of letters."""
    # A text is an iterable of texts too, so types cannot catch this.
    if isinstance(names, str):
        raise TaxonomyError(f"Expected a list of category names, got the text {names!r}; pass [{names!r}].")
    return list(names)


def taxonomy_from_data(data: object, source: str) -> Taxonomy:
    """Check plain data, as `Taxonomy.to_dict` gives it, and make a taxonomy; `source` names it in errors."""
    fields = _checked_fields(data, _TAXONOMY_FIELDS, _TAXONOMY_FIELDS, source)
    name, version, entries = fields["name"], fields["version"], fields["categories"]
    if not isinstance(name, str) or not _plain(name):
        raise TaxonomyError(
            f"{source}: the taxonomy's name must be text, got {name!r} (control characters are refused)."
        )
    # YAML reads `version: 1.0` as a number, and `yes` as a bool.
    if isinstance(version, bool) or not isinstance(version, str | int | float) or not _plain(str(version)):
        raise TaxonomyError(
            f"{source}: the version must be text or a number, got {version!r} (control characters are refused)."
        )
    if not isinstance(entries, list) or not entries:
        raise TaxonomyError(
            f"{source}: 'categories' must be a list with at least one entry, got {entries!r}."
        )
    categories = tuple(
        _category_from_data(entry, f"{source}, category {number}")
        for number, entry in enumerate(entries, start=1)
    )
    try:
        return Taxonomy(name, str(version), categories)
    except TaxonomyError as error:
        raise TaxonomyError(f"{source}: {error}") from error


def _category_from_data(data: object, where: str) -> Category:
    fields = _checked_fields(data, _CATEGORY_FIELDS, ("name", "definition"), where)
    for name in _LIST_FIELDS:
        value = fields.get(name)
        if value is None:
            fields.pop(name, None)
        elif not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise TaxonomyError(f"{where}: {name!r} must be a list of texts, got {value!r}.")
        else:
            fields[name] = tuple(_one_line(item) for item in value)
    if fields.get("key") is None:
        fields.pop("key", None)
    elif not isinstance(fields["key"], str) or not _plain(fields["key"]):
        raise TaxonomyError(
            f"{where}: 'key' must be text, got {fields['key']!r} (control characters are refused); leave it out to use "
            "the name."
        )
    fields["languages"] = _translations_from_data(fields.get("languages"), where)
    if not isinstance(fields.get("name_only", False), bool):
        raise TaxonomyError(f"{where}: 'name_only' must be true or false, got {fields['name_only']!r}.")
    # Only line ends are repaired; whatever else is wrong, `Category` refuses.
    fields["definition"] = _one_line(fields["definition"])
    try:
        return Category(**fields)
    except TaxonomyError as error:
        raise TaxonomyError(f"{where}: {error}") from error


def _translations_from_data(data: object, where: str) -> tuple[Translation, ...]:
    """`languages: {de: {name: ..., definition: ...}}` of a category."""
    if data is None:
        return ()
    if not isinstance(data, Mapping):
        raise TaxonomyError(
            f"{where}: 'languages' must map codes such as de to name and definition, got {data!r}."
        )
    found = []
    for language, entry in data.items():
        fields = _checked_fields(
            entry, _TRANSLATED_FIELDS, _TRANSLATED_FIELDS, f"{where}, language {language!r}"
        )
        try:
            found.append(Translation(language, fields["name"], _one_line(fields["definition"])))
        except TaxonomyError as error:
            raise TaxonomyError(f"{where}: {error}") from error
    return tuple(found)


def _checked_fields(
    data: object, allowed: tuple[str, ...], required: tuple[str, ...], where: str
) -> dict[str, Any]:
    """A copy of a mapping that has every required field and none that is not allowed."""
    if not isinstance(data, Mapping):
        raise TaxonomyError(f"{where}: expected fields ({', '.join(required)}, ...), got {data!r}.")
    for name in data:
        if name not in allowed:
            hint = nearest(str(name), allowed)
            raise TaxonomyError(f"{where}: unknown field {name!r}{hint}. Allowed: {', '.join(allowed)}.")
    missing = [name for name in required if data.get(name) is None]
    if missing:
        raise TaxonomyError(f"{where}: missing {', '.join(missing)}.")
    return dict(data)


def _one_line(value: Any) -> Any:
    """Text with its white space collapsed (YAML's folded blocks leave line ends); the rest as it is."""
    return " ".join(value.split()) if isinstance(value, str) else value


def _plain(text: str) -> bool:
    """Whether a text is not blank and holds no control sequence for the terminal that it is printed on."""
    return bool(text.strip()) and text == printable(text)
