"""Taxonomies as files: reading, checking, and the ones that ship."""

from functools import lru_cache
from os import sep
from pathlib import Path
from typing import Any

from .errors import TaxonomyError
from .names import nearest
from .taxonomy import Taxonomy, taxonomy_from_data

SHIPPED = Path(__file__).parent / "taxonomies"
_DEPTH = 8
"""How deep entries may lie in each other; a taxonomy needs 5. Of thousands, YAML takes seconds to say no."""


def shipped_taxonomies() -> tuple[str, ...]:
    """Names that `load_taxonomy` knows without a file."""
    return tuple(sorted(path.stem for path in SHIPPED.glob("*.yaml")))


def load_taxonomy(name_or_path: str | Path) -> Taxonomy:
    """Load a taxonomy that ships, by name, or any other, by the path of its YAML file.

    Raises:
        TaxonomyError: no such name or file, or not a taxonomy; the message names file and entry.
    """
    text = str(name_or_path)
    # A shipped name wins over a file of the same name in the working folder; `./NAME` reaches that.
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
    return (_parse_shipped if path.parent == SHIPPED else parse_taxonomy)(content, str(path))


@lru_cache(maxsize=32)
def _parse_shipped(content: str, source: str) -> Taxonomy:
    """A taxonomy that ships: there are few of them, asked for again and again, and parsing one takes a while."""
    return parse_taxonomy(content, source)


def parse_taxonomy(content: str, source: str) -> Taxonomy:
    """A taxonomy from the text of its YAML file.

    Args:
        content: as `Taxonomy.to_yaml` writes it.
        source: what errors call it.

    Raises:
        TaxonomyError: not YAML, or not a taxonomy; the message names the entry.
    """
    return taxonomy_from_data(_parse_yaml(content, source), source)


def _parse_yaml(content: str, source: str) -> object:
    import yaml

    class Loader(yaml.SafeLoader):
        depth = 0

        def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
            if self.check_event(yaml.AliasEvent):
                # An alias can make an entry contain itself, or grow exponentially (ten times ten times ten ...).
                name = self.get_event().anchor  # type: ignore[no-untyped-call]
                raise TaxonomyError(f"{source}: *{name} is an alias; write out what it stands for.")
            if self.depth > _DEPTH:
                raise TaxonomyError(f"{source}: entries lie more than {_DEPTH} deep in each other.")
            self.depth += 1
            try:
                return super().compose_node(parent, index)
            finally:
                self.depth -= 1

    try:
        loader = Loader(content)
        root = loader.get_single_node()
        _refuse_repeated_fields(root, source)
        data: object = None if root is None else loader.construct_document(root)
    except yaml.YAMLError as error:
        raise TaxonomyError(f"{source} is not valid YAML: {error}") from error
    return data


def _refuse_repeated_fields(node: Any, source: str) -> None:
    """Refuse a field that is given twice: YAML silently keeps the last, so a forgotten `-` would drop a category."""
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
