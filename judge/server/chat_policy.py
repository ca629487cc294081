"""A free policy text -> a taxonomy: what a caller of `/v1/chat/completions` wrote into the system message.

It is read by its form alone, and nothing of it is ever dropped. Only where every line belongs to a named category is it
taken apart; else all of it is the definition of one category. So a sentence above a list ("Allowed, never flag these:")
cannot get lost and turn the list into its opposite.
"""

import re
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from prompts.errors import TaxonomyError
from prompts.taxonomy import Category, Taxonomy
from prompts.taxonomy_file import parse_taxonomy

from .errors import bad_request
from .questions import MAX_CATEGORIES, parse_json, read_taxonomy

Form = Literal["json", "yaml", "headings", "codes", "list", "text"]
NAME = "policy"
"""Name of the taxonomy, and of the category of a text that is not taken apart."""
MAX_POLICY_LENGTH = 50_000
"""Characters of a policy."""
# A line is a stranger's, of 50,000 characters: each pattern reads it once, with nothing to try again.
_HEADING = re.compile(r"(?P<mark>#{1,6})[ \t]+(?P<rest>\S.*)")
_CODE = re.compile(r"(?P<code>[A-Z]{1,3}\d{1,3})[ \t]*[:.][ \t]+(?P<rest>\S.*)")
_ITEM = re.compile(r"(?P<mark>[-*•]|\d{1,3}[.)])[ \t]+(?P<rest>\S.*)")
_NUMBER = re.compile(r"\d{1,3}[.)][ \t]+")
_BOLD = ("**", "__")
_DASHES = (" – ", " — ", " - ")
_YAML = re.compile(r"^categories[ \t]*:", re.MULTILINE)


class ReadPolicy(NamedTuple):
    """A policy text as it was understood."""

    taxonomy: Taxonomy
    form: Form
    """How it was read: as `text` it is one category, named `policy`."""


class _Block(NamedTuple):
    """A line that starts a category, and the lines below it."""

    mark: str
    head: str
    body: list[str]


def read_policy(text: str, param: str) -> ReadPolicy:
    """Read a policy.

    Args:
        text: JSON or YAML of a taxonomy; headings with texts; lines such as `S1: Name.` with their texts; a list of
            `- Name: definition`; or anything else.
        param: where it stands in the request, for errors.

    Raises:
        ApiError: 400 `policy_required` for a blank one; `invalid_taxonomy` where a text may not stand in a policy.
    """
    stripped = text.strip()
    if not stripped:
        raise bad_request(
            "The policy is empty: say in the system message what counts as unsafe.",
            param=param,
            code="policy_required",
        )
    if stripped[0] in "[{":
        return ReadPolicy(read_taxonomy(_json(stripped, param), param, NAME), "json")
    try:
        read = ReadPolicy(_yaml(text), "yaml") if _YAML.search(text) else _plain(stripped)
    except (TaxonomyError, RecursionError) as error:
        raise bad_request(f"The policy: {error}", param=param, code="invalid_taxonomy") from None
    if len(read.taxonomy) > MAX_CATEGORIES:
        raise bad_request(
            f"The policy: {len(read.taxonomy)} categories, at most {MAX_CATEGORIES}.",
            param=param,
            code="invalid_taxonomy",
        )
    return read


def _json(text: str, param: str) -> object:
    try:
        return parse_json(text)
    except (ValueError, RecursionError) as error:
        raise bad_request(
            f"The policy starts like JSON and is none: {error}.", param=param, code="invalid_taxonomy"
        ) from None


def _yaml(text: str) -> Taxonomy:
    """A taxonomy file, whose name and version may be left out."""
    for key, value in (("version", "'1'"), ("name", NAME)):
        if not re.search(rf"^{key}[ \t]*:", text, re.MULTILINE):
            text = f"{key}: {value}\n{text}"
    return parse_taxonomy(text, NAME)


def _plain(text: str) -> ReadPolicy:
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    readers: tuple[tuple[Form, Callable[[Sequence[str]], list[Category] | None]], ...] = (
        ("headings", _headings),
        ("codes", _codes),
        ("list", _items),
    )
    for form, read in readers:
        found = read(lines)
        if found is not None:
            return ReadPolicy(Taxonomy(NAME, "1", tuple(found)), form)
    return ReadPolicy(Taxonomy(NAME, "1", (Category(NAME, _one_line(lines)),)), "text")


def _headings(lines: Sequence[str]) -> list[Category] | None:
    blocks = _blocks(lines, _HEADING)
    # A heading without a text is the title of others, and what it says of them belongs to the policy.
    if blocks is None or len({block.mark for block in blocks}) > 1 or not all(block.body for block in blocks):
        return None
    return [
        Category(_name(_NUMBER.sub("", rest, count=1)), _one_line(block.body), code=code)
        for block in blocks
        for code, rest in [_split_code(_without_closing_marks(block.head))]
    ]


def _codes(lines: Sequence[str]) -> list[Category] | None:
    """`S1: Violent Crimes.` with its definition below or behind it, or alone."""
    blocks = _blocks(lines, _CODE)
    if blocks is None:
        return None
    found = []
    for block in blocks:
        named = (_name(block.head), _one_line(block.body)) if block.body else _named(block.head)
        name, definition = named or (_name(block.head), "")
        found.append(Category(name, definition or name, code=block.mark, name_only=not definition))
    return found


def _items(lines: Sequence[str]) -> list[Category] | None:
    """`- Name: definition`; what goes on below an item is indented."""
    blocks = _blocks(lines, _ITEM)
    if blocks is None or len({"1" if block.mark[0].isdigit() else block.mark for block in blocks}) > 1:
        return None
    found = []
    for block in blocks:
        if not all(line[0].isspace() for line in block.body):
            return None
        text = _one_line((block.head, *block.body))
        code, rest = _split_code(text)
        named = _named(rest)
        if named is None:
            code, named = None, _named(text)
        if named is None:
            return None
        found.append(Category(*named, code=code))
    return found


def _blocks(lines: Sequence[str], start: re.Pattern[str]) -> list[_Block] | None:
    """The lines in blocks that each begin with such a line; None where the first one does not."""
    found: list[_Block] = []
    for line in lines:
        match = start.fullmatch(line)
        if match is not None:
            found.append(_Block(match[1], match["rest"], []))
        elif not found:
            return None
        else:
            found[-1].body.append(line)
    return found


def _without_closing_marks(heading: str) -> str:
    """`Name ##`, as headings may be closed -> `Name`; `C#` stays."""
    text = heading.rstrip("#")
    return text.rstrip() if text[-1:].isspace() else heading


def _split_code(text: str) -> tuple[str | None, str]:
    match = _CODE.fullmatch(text)
    return (None, text) if match is None else (match["code"], match["rest"])


def _named(text: str) -> tuple[str, str] | None:
    """`Name: definition` or `Name - definition`, the name perhaps in bold; None for anything else."""
    separator = next((one for one in (":", *_DASHES) if one in text), None)
    if separator is None:
        return None
    name, _, definition = text.partition(separator)
    for mark in _BOLD:
        if name.startswith(mark):
            definition = definition.removeprefix(mark)
    name, definition = _name(name), definition.strip()
    return (name, definition) if name and definition else None


def _name(text: str) -> str:
    """A name without bold, and without the stop or colon that ends its line."""
    text = text.strip()
    for mark in _BOLD:
        text = text.removeprefix(mark).removesuffix(mark)
    return " ".join(text.rstrip(".:").split())


def _one_line(lines: Sequence[str]) -> str:
    return " ".join(" ".join(lines).split())
