"""Which policies a calibration covers: a promised miss rate holds for policies like those it was calibrated on."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

from judge.errors import ConfigError
from prompts.taxonomy import Category, Taxonomy

SHOWN = 3
"""Categories that a reason names at most; it is repeated for every row."""


@dataclass(frozen=True)
class Envelope:
    """The policies of a calibration set: which categories they held, and how many at a time.

    Policies are drawn (`prompts.flip`): categories selected, renamed, reworded, merged. The promise is about the mean
    over such draws, so it covers policies composed of the same categories, but no other category and no longer list. A
    category is identified by its name, definition and examples, which are what a classifier reads.
    """

    categories: tuple[str, ...]
    """`category_hash` of each, sorted."""
    largest: int
    """Number of categories of the longest policy."""

    def __post_init__(self) -> None:
        hashes = all(isinstance(known, str) for known in self.categories)
        if not hashes or isinstance(self.largest, bool) or not isinstance(self.largest, int):
            raise ConfigError(f"No envelope of a calibration: {self.categories!r:.80}, {self.largest!r}")

    @classmethod
    def from_policies(cls, policies: Iterable[Taxonomy]) -> Self:
        """The envelope of these policies."""
        policies = list(policies)
        known = {category_hash(category) for policy in policies for category in policy}
        return cls(tuple(sorted(known)), max(map(len, policies), default=0))

    @classmethod
    def from_dict(cls, data: Any) -> Self | None:
        """What `dataclasses.asdict` gave; None stays None.

        Raises:
            ConfigError: it is something else.
            KeyError, TypeError: it is not even an object.
        """
        return None if data is None else cls(tuple(data["categories"]), data["largest"])

    def why_outside(self, taxonomy: Taxonomy) -> str | None:
        """Which part of a taxonomy the calibration does not cover, on one line; None where it covers all."""
        known = set(self.categories)
        new = [category.name for category in taxonomy if category_hash(category) not in known]
        if new:
            rest = f" and {len(new) - SHOWN} more" if len(new) > SHOWN else ""
            return f"not calibrated for {', '.join(map(repr, new[:SHOWN]))}{rest}, worded so"
        if len(taxonomy) > self.largest:
            return f"calibrated for at most {self.largest} categories at a time, not {len(taxonomy)}"
        return None


def category_hash(category: Category) -> str:
    """16 hexadecimal digits of what a classifier reads of a category, wherever in a policy it stands."""
    # The key, the code and aliases are left out: no classifier reads them.
    read = [category.name]
    if not category.name_only:
        read += [category.definition, *category.examples]
    return hashlib.sha256(json.dumps(read).encode()).hexdigest()[:16]
