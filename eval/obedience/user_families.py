"""A user's own families of rewritings, from a YAML file.

    families:
      - name: german                      # a table of texts, by the categories' keys or names
        kind: policy
        about: names and definitions in German
        texts:
          four: {name: vier, definition: die Ziffer 4}
      - name: house_style                 # a template; placeholders: {name}, {definition}, {number}
        kind: policy
        in_lessons: true                  # training may use it; by default it may not
        template: {name: "Rule {number}, {name}", definition: "{definition}, in any form"}
      - name: our_captions                # one of the texts is drawn for each image
        kind: prompt
        harmless: true                    # says nothing of any category, so recall must not fall
        texts: [a quiet street, an old mill]
      - name: in_a_frame                  # placeholder: {prompt}, the image's own
        kind: prompt
        template: "{prompt}, in a golden frame"

A family of policies may change words only: the labels of the images stay.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from string import Formatter
from typing import Any

import yaml

from judge.errors import ConfigError
from prompts.errors import TaxonomyError
from prompts.flip import Row
from prompts.names import nearest
from prompts.taxonomy import Category, Taxonomy

from .family import Family, Policy, PolicyFamily, PromptFamily, RefusedRewritingError, Setting, for_each

_FIELDS = {
    "policy": ("name", "kind", "about", "in_lessons", "template", "texts"),
    "prompt": ("name", "kind", "about", "in_lessons", "template", "texts", "harmless"),
}
_TEXTS = ("name", "definition")
_PLACEHOLDERS = {"policy": ("name", "definition", "number"), "prompt": ("prompt",)}


def load_families(path: str | Path, taxonomy: Taxonomy, taken: Collection[str] = ()) -> tuple[Family, ...]:
    """Read a file of families.

    Args:
        path: the YAML file.
        taxonomy: the one that will be asked about; tables name its categories, templates are tried on them.
        taken: names of families that exist already.

    Raises:
        ConfigError: no such file, or an entry that cannot be used; the message names both and says what is allowed.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    entries = content.get("families") if isinstance(content, dict) and len(content) == 1 else None
    if not isinstance(entries, list) or not entries:
        raise ConfigError(
            f"{path} must hold `families:` with a list of at least one entry, and nothing else."
        )
    names, found = set(taken), []
    for number, entry in enumerate(entries, 1):
        family = _family(entry, taxonomy, f"{path}, entry {number}")
        if family.name in names:
            raise ConfigError(
                f"{path}, entry {number}: a family {family.name!r} exists already; rename this one."
            )
        names.add(family.name)
        found.append(family)
    return tuple(found)


def _family(entry: Any, taxonomy: Taxonomy, where: str) -> Family:
    if not isinstance(entry, dict):
        raise ConfigError(
            f"{where}: expected a mapping with name, kind, and template or texts; got {entry!r}."
        )
    kind = entry.get("kind")
    if kind not in _FIELDS:
        raise ConfigError(f"{where}: kind is {kind!r}; it is policy or prompt.")
    _check_names(entry, _FIELDS[kind], where)
    name, about = entry.get("name"), entry.get("about", "a user's own")
    for field, value in (("name", name), ("about", about)):
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            raise ConfigError(f"{where}: {field} is {value!r}; give a line of text.")
    for field in ("in_lessons", "harmless"):
        if not isinstance(entry.get(field, False), bool):
            raise ConfigError(f"{where}: {field} is {entry[field]!r}; it is true or false.")
    if ("template" in entry) == ("texts" in entry):
        raise ConfigError(f"{where}: give either template or texts.")
    shared = {"name": name, "about": about, "in_lessons": entry.get("in_lessons", False)}
    if kind == "policy":
        texts = (
            _templates(entry["template"], taxonomy, where)
            if "template" in entry
            else _table(entry["texts"], taxonomy, where)
        )
        return PolicyFamily(rewrite=texts, **shared)
    prompt = (
        _PromptTemplate(entry["template"], where) if "template" in entry else _Prompts(entry["texts"], where)
    )
    return PromptFamily(rewrite=prompt, harmless=entry.get("harmless", False), **shared)


class _Templates:
    """Name and definition of every category in templates."""

    def __init__(self, templates: Mapping[str, str]) -> None:
        self.templates = dict(templates)

    def __call__(self, policy: Taxonomy, setting: Setting) -> Policy:
        return for_each(policy, self.fill)

    def fill(self, category: Category, number: int) -> Category:
        values = {"name": category.name, "definition": category.definition, "number": number}
        return _with_texts(category, {field: text.format(**values) for field, text in self.templates.items()})


class _Table:
    """Name and definition of every category from a table."""

    def __init__(self, texts: Mapping[str, Mapping[str, str]]) -> None:
        self.texts = texts

    def __call__(self, policy: Taxonomy, setting: Setting) -> Policy:
        return for_each(policy, self.fill)

    def fill(self, category: Category, number: int) -> Category:
        if category.key not in self.texts:
            raise RefusedRewritingError(f"the table has no texts for {category.key!r}")
        return _with_texts(category, self.texts[category.key])


def _with_texts(category: Category, texts: Mapping[str, str]) -> Category:
    """The category under another name, definition or both; examples belong to the old definition and go with it."""
    return replace(
        category,
        name=texts.get("name", category.name),
        definition=texts.get("definition", category.definition),
        examples=() if "definition" in texts else category.examples,
    )


class _PromptTemplate:
    """The image's own prompt in a template."""

    def __init__(self, template: object, where: str) -> None:
        self.template = _checked_template(template, "prompt", f"{where}: template")

    def __call__(self, row: Row, setting: Setting) -> str:
        if "{prompt}" in self.template and not (row.example.prompt or "").strip():
            raise RefusedRewritingError("the image has no prompt of its own")
        return self.template.format(prompt=row.example.prompt)


class _Prompts:
    """One of several prompts, drawn for each image."""

    def __init__(self, texts: object, where: str) -> None:
        if (
            not isinstance(texts, list)
            or not texts
            or not all(isinstance(t, str) and t.strip() for t in texts)
        ):
            raise ConfigError(f"{where}: texts of a prompt family is a list of texts, got {texts!r}.")
        self.texts: list[str] = texts

    def __call__(self, row: Row, setting: Setting) -> str:
        return setting.rng.choice(self.texts)


def _templates(value: object, taxonomy: Taxonomy, where: str) -> _Templates:
    texts = _text_fields(value, f"{where}: template")
    found = _Templates(
        {k: _checked_template(v, "policy", f"{where}: template of {k}") for k, v in texts.items()}
    )
    for number, category in enumerate(taxonomy, 1):
        _try(found.fill, category, number, where)
    return found


def _table(value: object, taxonomy: Taxonomy, where: str) -> _Table:
    if not isinstance(value, dict) or not value:
        raise ConfigError(
            f"{where}: texts of a policy family is a mapping, category -> {{name: ..., definition: ...}}; "
            f"got {value!r}."
        )
    keys = {word.casefold(): category.key for category in taxonomy for word in (category.name, category.key)}
    texts = {}
    for word, entry in value.items():
        if str(word).casefold() not in keys:
            raise ConfigError(
                f"{where}: {taxonomy.name!r} has no category {word!r}{nearest(str(word), keys)}. "
                f"It has: {', '.join(taxonomy.keys)}."
            )
        texts[keys[str(word).casefold()]] = _text_fields(entry, f"{where}: texts of {word!r}")
    found = _Table(texts)
    for number, category in enumerate(taxonomy, 1):
        if category.key in texts:
            _try(found.fill, category, number, where)
    return found


def _text_fields(value: object, where: str) -> dict[str, str]:
    """A mapping with a name, a definition or both."""
    if not isinstance(value, dict) or not value:
        raise ConfigError(f"{where}: expected name, definition or both, got {value!r}.")
    _check_names(value, _TEXTS, where)
    for field, text in value.items():
        if not isinstance(text, str):
            raise ConfigError(
                f"{where}: {field} is {text!r}; give text, in quotes where YAML would read a number."
            )
    return value


def _checked_template(text: object, kind: str, where: str) -> str:
    allowed = _PLACEHOLDERS[kind]
    shown = ", ".join(f"{{{name}}}" for name in allowed)
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f"{where} is {text!r}; give text with placeholders: {shown}.")
    try:
        fields = [
            (name, spec, conversion)
            for _, name, spec, conversion in Formatter().parse(text)
            if name is not None
        ]
    except ValueError as error:
        raise ConfigError(f"{where}, {text!r}: {error}; placeholders are {shown}.") from None
    # Neither attributes nor format specifications: `{name.__class__}` and `{number:>9999999}` are no placeholders.
    for name, spec, conversion in fields:
        if name not in allowed or spec or conversion:
            raise ConfigError(f"{where} has an unknown placeholder {{{name}}}; allowed are {shown}.")
    return text


def _check_names(fields: Mapping[Any, Any], allowed: tuple[str, ...], where: str) -> None:
    for name in fields:
        if name not in allowed:
            raise ConfigError(
                f"{where}: unknown field {name!r}{nearest(str(name), allowed)}. Allowed: {', '.join(allowed)}."
            )


def _try(fill: Any, category: Category, number: int, where: str) -> None:
    """See that a category can be called and defined so."""
    try:
        fill(category, number)
    except TaxonomyError as error:
        raise ConfigError(f"{where}: {error}") from error
