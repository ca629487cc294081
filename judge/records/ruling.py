"""What a moderator may say of a verdict: agree, overrule with what it should have been, or skip."""

from collections.abc import Mapping, Sequence
from typing import Any

from prompts.taxonomy import Taxonomy

from .entries import ACTIONS, Ruling
from .errors import DecisionError


def check_ruling(
    row: Mapping[str, Any],
    taxonomy: Taxonomy,
    action: str,
    status: str | None = None,
    categories: Sequence[str] | None = None,
) -> Ruling:
    """The ruling, complete: who agrees says what the verdict says.

    Args:
        row: the verdict, as a row.
        taxonomy: what it was judged by.
        action: `agree`, `overrule` or `skip`.
        status: `safe` or `unsafe`; needed to overrule. An agreement may repeat the verdict's.
        categories: names, case ignored. To overrule with `unsafe`, they have to be given, if only as an empty list,
            which says "some category".

    Raises:
        DecisionError: an agreement with a verdict that is none, or one that says something else; an overrule that
            says too little, or just what the verdict says.
        TaxonomyError: a category that does not exist.
    """
    if action not in ACTIONS:
        raise DecisionError(f"No action {action!r}; allowed: {', '.join(ACTIONS)}.")
    if status not in (None, "safe", "unsafe"):
        raise DecisionError(f"A moderator says safe or unsafe, not {status!r}.")
    chosen = None if categories is None else {taxonomy.index(name) for name in categories}
    named = tuple(name for place, name in enumerate(taxonomy.names) if chosen and place in chosen)
    if action == "skip":
        if status is not None or named:
            raise DecisionError("Who skips an image says nothing of it; leave out status and categories.")
        return Ruling("skip", None, ())
    judged = _as_ruling(row)
    if action == "agree":
        return _agreement(judged, status, None if chosen is None else named)
    if status is None:
        raise DecisionError("To overrule a verdict, say status: safe or unsafe.")
    if status == "safe" and named:
        raise DecisionError(f"A safe image violates nothing; leave out {', '.join(map(repr, named))}.")
    if status == "unsafe" and chosen is None:
        raise DecisionError(
            "Say which categories an unsafe image violates; an empty list says some category."
        )
    ruling = Ruling("overrule", "safe" if status == "safe" else "unsafe", named)
    if judged is not None and (judged.status, judged.categories) == (ruling.status, ruling.categories):
        raise DecisionError("The verdict says the same; agree with it.")
    return ruling


def _as_ruling(row: Mapping[str, Any]) -> Ruling | None:
    """What who agrees with this verdict says; None for an unjudged one."""
    if row["status"] not in ("safe", "unsafe"):
        return None
    return Ruling("agree", row["status"], tuple(name for name, flagged in row["flags"].items() if flagged))


def _agreement(judged: Ruling | None, status: str | None, named: tuple[str, ...] | None) -> Ruling:
    if judged is None:
        raise DecisionError(
            "This image was not judged, so there is nothing to agree with; say safe or unsafe."
        )
    if status not in (None, judged.status) or (named is not None and named != judged.categories):
        raise DecisionError("That is not what the verdict says; overrule it.")
    return judged
