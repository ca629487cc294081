"""Taxonomies as files: reading, checking, and the ones that ship."""

from collections.abc import Mapping
from os import sep
from pathlib import Path
from typing import Any

from .errors import TaxonomyError
from .printable import printable
from .taxonomy import Category, Taxonomy, nearest

SHIPPED = Path(__file__).parent / "taxonomies"
_TAXONOMY_FIELDS = ("name", "version", "categories")
_LIST_FIELDS = ("examples", "aliases", "rewordings", "members")
_CATEGORY_FIELDS = ("name", "definition", "code", "key", "name_only", *_LIST_FIELDS)


def shipped_taxonomies() -> tuple[str, ...]:
    """Names that `load_taxonomy` knows without a file."""
    return tuple(sorted(path.stem for path in SHIPPED.glob("*.yaml")))


def load_taxonomy(name_or_path: str | Path) -> Taxonomy:
    """Load a taxonomy that ships, by name, or any other, by the path of its YAML file.

    Raises:
        TaxonomyError: no such name or file, or not a taxonomy; the message names file and entry.
    """
    text = str(name_or_path)
    if text in shipped_taxonomies():
        path = SHIPPED / f"{text}.yaml"
    elif isinstance(name_or_path, Path) or sep in text or "/" in text or text.endswith((".yaml", ".yml")):
        path = Path(name_or_path)
    else:
        known = shipped_taxonomies()
        raise TaxonomyError(
            f"No taxonomy {text!r} ships{nearest(text, known)}. Those that do: {', '.join(known)}. "
            "For your own, give the path of a .yaml file."
        )
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise TaxonomyError(f"Cannot read the taxonomy file {str(path)!r}: {error}.") from error
    return taxonomy_from_data(_parse_yaml(content, str(path)), str(path))


def taxonomy_from_data(data: object, source: str) -> Taxonomy:
    """Check plain data, as `Taxonomy.to_dict` gives it, and make a taxonomy; `source` names it in errors."""
    fields = _checked_fields(data, _TAXONOMY_FIELDS, _TAXONOMY_FIELDS, source)
    name, version, entries = fields["name"], fields["version"], fields["categories"]
    if not isinstance(name, str) or not _plain(name):
        raise TaxonomyError(
            f"{source}: the taxonomy's name must be text, got {name!r} (control characters are refused)."
        )
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
    if not isinstance(fields.get("name_only", False), bool):
        raise TaxonomyError(f"{where}: 'name_only' must be true or false, got {fields['name_only']!r}.")
    fields["definition"] = _one_line(fields["definition"])
    try:
        return Category(**fields)
    except TaxonomyError as error:
        raise TaxonomyError(f"{where}: {error}") from error


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


def _plain(text: str) -> bool:
    """Whether a text says something, and nothing to the terminal that it is printed on."""
    return bool(text.strip()) and text == printable(text)


def _one_line(value: Any) -> Any:
    """Text with its white space collapsed (YAML's folded blocks leave line ends); the rest as it is."""
    return " ".join(value.split()) if isinstance(value, str) else value


def _parse_yaml(content: str, source: str) -> object:
    import yaml

    try:
        for event in yaml.parse(content, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                # An entry may hold itself, or ten times one that holds another ten times: both have no end.
                raise TaxonomyError(f"{source}: *{event.anchor} is an alias; write out what it stands for.")
        root = yaml.compose(content, Loader=yaml.SafeLoader)
        _refuse_repeated_fields(root, source)
        data: object = yaml.safe_load(content)
    except yaml.YAMLError as error:
        raise TaxonomyError(f"{source} is not valid YAML: {error}") from error
    return data


def _refuse_repeated_fields(node: Any, source: str) -> None:
    """YAML keeps the last of two equal fields in silence: a forgotten `- name:` would swallow a category."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                raise TaxonomyError(f"{source}, line {line}: the name of a field is a text.")
            if key.value in seen:
                line = key.start_mark.line + 1
                raise TaxonomyError(f"{source}, line {line}: {key.value!r} is given twice in one entry.")
            seen.add(key.value)
            _refuse_repeated_fields(value, source)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_repeated_fields(item, source)
