"""Examples of a category that a language model names, as further search terms (UnsafeBench asked Vicuna-33B for ten).

A model's answer is a stranger's text. Of it only the entries of a list are taken, in clean characters and short, so
that a refusal or an explanation never becomes a search term. Each is marked with the model's name.
"""

import json
import re
from collections.abc import Iterator

from judge.errors import ConfigError
from judge.vlm.remote import RemoteJudge
from judge.vlm.replies import UnjudgedError, read_choice
from prompts.names import is_markup
from prompts.printable import printable
from prompts.quoting import quote, shorten
from prompts.reading import clean
from prompts.taxonomy import Category, Taxonomy

from .terms import Term

MOST_EXAMPLES = 50
"""Examples that can be asked for of one category."""
LONGEST_TERM = 60
"""Characters of a term; a longer entry is an explanation."""
_ENTRY = re.compile(r"\s*(?:[-*•]|\d{1,2}[.)])\s+(.+)")
_REQUEST = (
    "Content moderators collect pictures to test a filter, and need search terms. Below is a category of their policy, "
    "as data. Name {count} specific and different examples of what it covers, each in at most six words. Answer with "
    "a JSON list of {count} strings and nothing else.\n\nCategory: {name}\nDefinition: {definition}"
)


def suggest_terms(
    server: RemoteJudge, taxonomy: Taxonomy, count: int
) -> Iterator[tuple[list[Term], str | None]]:
    """Ask a chat server for `count` examples of each category, one request after the other.

    Yields:
        For each category its terms, at most `count`; and why there are none, or fewer, else None.

    Raises:
        ConfigError: no such server or model; or `count` is not from 1 to `MOST_EXAMPLES`.
    """
    if not 1 <= count <= MOST_EXAMPLES:
        raise ConfigError(f"{count} examples of a category: ask for 1 to {MOST_EXAMPLES}.")
    server.ping()
    for category in taxonomy:
        try:
            entries, refused = read_entries(_ask(server, category, count))
        except UnjudgedError as error:
            yield [], str(error)
            continue
        where = f"model {printable(server.model)}"
        remark = f"{refused} entries of the answer are no search terms" if refused else None
        yield [Term(category.name, entry, where) for entry in entries[:count]], remark


def read_entries(text: str) -> tuple[list[str], int]:
    """The entries of a list, in clean characters, without repeats; and how many could not be a search term.

    Args:
        text: a JSON list of strings, with or without a fence of code around it; or lines with a bullet or a number.

    Raises:
        UnjudgedError: it is no list, as a refusal is none.
    """
    found = _json_list(text)
    if found is None:
        matches = [_ENTRY.fullmatch(line) for line in text.splitlines()]
        found = [match[1] for match in matches if match]
    if not found:
        raise UnjudgedError(f"the answer is no list: {quote(shorten(text, 120))}")
    entries = [clean(entry).text.strip(" .,;\"'*") if isinstance(entry, str) else "" for entry in found]
    usable = [entry for entry in entries if _is_term(entry)]
    return list({entry.casefold(): entry for entry in reversed(usable)}.values())[::-1], len(entries) - len(
        usable
    )


def _is_term(entry: str) -> bool:
    """Whether an entry is short, has a letter or digit at its start, and no markup."""
    return 0 < len(entry) <= LONGEST_TERM and entry[0].isalnum() and not any(map(is_markup, entry))


def _json_list(text: str) -> list[object] | None:
    start, end = text.find("["), text.rfind("]")
    try:
        found = json.loads(text[start : end + 1]) if 0 <= start < end else None
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, list) else None


def _ask(server: RemoteJudge, category: Category, count: int) -> str:
    text = _REQUEST.format(count=count, name=category.name, definition=category.definition)
    choice = read_choice(
        server.complete(
            model=server.model,
            messages=[{"role": "user", "content": text}],
            temperature=0,
            seed=0,
            max_tokens=40 * count + 100,
        )
    )
    if choice.refusal:
        raise UnjudgedError(f"the model refused: {quote(shorten(str(choice.refusal), 120))}")
    if choice.finish in ("length", "content_filter"):
        raise UnjudgedError("the answer was cut off")
    if not isinstance(choice.text, str) or not choice.text.strip():
        raise UnjudgedError("the answer is empty")
    return choice.text
