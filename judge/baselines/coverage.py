"""Fixed categories under a taxonomy that is chosen later: which ones are covered, and the scores that follow."""

from typing import TYPE_CHECKING, get_args

from judge.errors import ConfigError
from judge.protocol import Match, Scores, on_one_scale
from prompts.taxonomy import Taxonomy
from prompts.verdict import DEFAULT_THRESHOLD

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MATCHES: tuple[Match, ...] = get_args(Match)


def check_match(match: str) -> None:
    """Check that the mapping of categories is one of `MATCHES`.

    Raises:
        ConfigError: it is not.
    """
    if match not in MATCHES:
        raise ConfigError(f"match is {match!r}; use one of {', '.join(MATCHES)}.")


def match_categories(trained: Taxonomy, requested: Taxonomy, match: Match = "members") -> list[list[int]]:
    """For each of the caller's categories, indices of the trained ones that together cover it; empty if none do.

    Args:
        trained: taxonomy of the heads, in their order.
        requested: the caller's taxonomy.
        match: `members` maps by meaning, as a person would: the same members, or trained categories for all of its
            members. `name` maps by name (or a trained alias, ignoring case), as a system that has only names.
    """
    if match == "name":
        places = {
            word.casefold(): place
            for place, category in enumerate(trained)
            for word in (category.name, *category.aliases)
        }
        found = [places.get(category.name.casefold()) for category in requested]
        return [[] if place is None else [place] for place in found]
    by_key = {category.key: place for place, category in enumerate(trained)}
    by_members = {frozenset(category.members): place for place, category in enumerate(trained)}
    covered = []
    # One trained category with the same members is better than several that cover them.
    for category in requested:
        same = by_members.get(frozenset(category.members))
        parts = [by_key.get(member) for member in category.members]
        several = [place for place in parts if place is not None]
        covered.append([same] if same is not None else several if len(several) == len(parts) else [])
    return covered


def covered_scores(
    name: str, probabilities: "NDArray[np.float64]", trained: Taxonomy, requested: Taxonomy, match: Match
) -> Scores:
    """Scores under the caller's taxonomy from probabilities (B, H) of the H trained categories.

    Categories without a trained match are NaN. `unsafe` is then the largest of the other scores if that flags the
    image, else NaN with the reason, because an unscored category might be violated.

    Args:
        name: of the classifier, for reasons.
        probabilities: in [0, 1]; a row that is not finite is unjudged.
        trained: taxonomy of the H outputs.
        requested: the caller's taxonomy.
        match: as of `match_categories`.
    """
    import numpy as np

    # (B, H) probabilities of the trained categories -> (B, K) of the requested ones.
    covered = match_categories(trained, requested, match)
    categories = np.full((len(probabilities), len(requested)), np.nan)
    for place, members in enumerate(covered):
        if members:  # any of several trained ones
            categories[:, place] = probabilities[:, members].max(axis=1)
    finite = np.asarray(np.isfinite(probabilities).all(axis=1))
    categories[~finite] = np.nan
    # NaN counts as 0 here, so `judged` has to ask separately whether a category is missing.
    highest = np.where(np.isnan(categories), 0.0, categories).max(axis=1)
    missed = [label for label, members in zip(requested.names, covered, strict=True) if not members]
    judged = finite & (highest >= DEFAULT_THRESHOLD) if missed else finite
    why = f"{name} does not cover: {', '.join(missed)}"
    broken = f"{name} gave no finite score"
    reasons = tuple(
        None if fine else why if known else broken for fine, known in zip(judged, finite, strict=True)
    )
    return on_one_scale(Scores(np.where(judged, highest, np.nan), categories, reasons))


def asked_outputs(
    name: str, trained: Taxonomy, requested: Taxonomy, match: Match, category: str | None = None
) -> list[int]:
    """Indices of the trained categories of which the largest logit is the margin: of one category, or of all.

    Raises:
        ConfigError: a category without a trained match: no verdict can be safe then, so there is no margin.
        TaxonomyError: no such category.
    """
    covered = match_categories(trained, requested, match)
    places = range(len(covered)) if category is None else [requested.index(category)]
    missed = [requested.names[place] for place in places if not covered[place]]
    if missed:
        raise ConfigError(
            f"{name} does not cover {', '.join(missed)}, so it can call nothing safe under this taxonomy and "
            "has no margin; ask about trained categories only."
        )
    return sorted({member for place in places for member in covered[place]})
