"""Other people's policy texts as taxonomies: what is changed in them, and what is refused."""

import hashlib

from judge.data.labels import UnusableRowError
from prompts.errors import TaxonomyError
from prompts.taxonomy import Category, Taxonomy


def one_line(text: object) -> str:
    """A policy text as a definition can hold it; whatever else a `Category` refuses stays, and is refused there.

    Two things change, and neither changes a word: line breaks and runs of spaces become one space, as in the
    definitions of a taxonomy file; straight double quotes, which could end a quotation in a prompt, become ” (to get
    them back, replace each ” in a text that had none of its own).
    """
    return " ".join(str(text).split()).replace('"', "”")


def category(name: object, text: object, code: str | None = None) -> Category:
    """A category whose key depends on its words alone, so that one policy has one key in all rows.

    Raises:
        UnusableRowError: `bad_policy`; a text that cannot stand in a policy, with the reason.
    """
    words = one_line(name), one_line(text)
    key = hashlib.sha256("\n".join(words).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    try:
        return Category(*words, code=code, key=key)
    except TaxonomyError as error:
        raise UnusableRowError("bad_policy", str(error)) from error


def policy(name: object, categories: list[Category]) -> Taxonomy:
    """A taxonomy of a row's policy.

    Raises:
        UnusableRowError: `bad_policy`; no category, or two of one name.
    """
    try:
        return Taxonomy(one_line(name), "1", tuple(categories))
    except TaxonomyError as error:
        raise UnusableRowError("bad_policy", str(error)) from error
