"""What label flipping draws, and its options."""

from dataclasses import dataclass

from prompts.errors import ArbiterError, TaxonomyError
from prompts.example import Example
from prompts.names import nearest
from prompts.taxonomy import Taxonomy

NEUTRAL_NAMES = ("house list", "own rule", "local rule", "our list")
"""Neutral names: a custom category with such a name can be judged by its definition only."""
_SHARES = ("rename", "reword", "custom", "neutral_name", "no_prompt", "focus", "benign")


@dataclass(frozen=True)
class FlipOptions:
    """How policies and rows are drawn; shares are probabilities from 0 to 1.

    Raises:
        ArbiterError: a number out of range.
    """

    min_categories: int = 1
    """Fewest categories in a policy."""
    max_categories: int = 9
    """Most categories in a policy; lowered where more would leave no safe image."""
    group_size: int = 8
    """Rows that share one policy; even, as half of them are unsafe."""
    rename: float = 0.25
    """Share of categories that are renamed to one of their aliases."""
    reword: float = 0.25
    """Share of categories whose definition is replaced by one of their rewordings."""
    custom: float = 0.25
    """Share of policies with a custom category, which merges two or three others."""
    neutral_name: float = 0.5
    """Share of custom categories with a neutral name."""
    names: tuple[str, ...] = NEUTRAL_NAMES
    """The neutral names."""
    no_prompt: float = 0.25
    """Share of row pairs shown without prompts."""
    focus: float = 0.25
    """Share of row pairs that ask about one category of the policy only."""
    benign: float = 0.25
    """Share of safe rows whose image violates nothing at all, where the data has such images."""
    held_out: frozenset[str] = frozenset()
    """Keys that no policy may contain and no image may violate."""

    def __post_init__(self) -> None:
        # Options may come from YAML, which has lists and no sets.
        object.__setattr__(self, "held_out", frozenset(_texts("held_out", self.held_out)))
        object.__setattr__(self, "names", _texts("names", self.names))
        if not 1 <= self.min_categories <= self.max_categories:
            raise ArbiterError(
                f"Policies of {self.min_categories} to {self.max_categories} categories do not exist; "
                "give 1 <= min_categories <= max_categories."
            )
        if self.group_size < 2 or self.group_size % 2:
            raise ArbiterError(
                f"group_size is {self.group_size}; half of a group is unsafe, so make it even."
            )
        for name in _SHARES:
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ArbiterError(f"{name} is {getattr(self, name)}; a share lies between 0 and 1.")

    def training_keys(self, taxonomy: Taxonomy) -> list[str]:
        """Keys that policies may use, in the taxonomy's order.

        Raises:
            TaxonomyError: a held-out key that does not exist, or nothing left to train on.
        """
        for key in sorted(self.held_out - set(taxonomy.keys)):
            raise TaxonomyError(
                f"Cannot hold out {key!r}: not a key of {taxonomy.name!r}{nearest(key, taxonomy.keys)}. "
                f"Its keys: {', '.join(taxonomy.keys)}."
            )
        keys = [key for key in taxonomy.keys if key not in self.held_out]
        if not keys:
            raise TaxonomyError(f"Every category of {taxonomy.name!r} is held out; leave some to train on.")
        return keys


def _texts(field: str, value: object) -> tuple[str, ...]:
    """The value as a tuple, as YAML gives lists; a single string would be read as a list of letters."""
    if isinstance(value, list | tuple | set | frozenset) and all(isinstance(text, str) for text in value):
        return tuple(value)
    raise ArbiterError(f"{field} takes a list of texts, got {value!r}.")


@dataclass(frozen=True)
class Row:
    """One question to the judge with its correct answer."""

    example: Example
    taxonomy: Taxonomy
    """The policy as this row states it: names, definitions and order."""
    prompt: str | None
    """The prompt shown with the image; it may be that of another image."""
    prompt_of: str | None
    """Id of the example the prompt belongs to; None when no prompt is shown."""
    unsafe: bool
    category: str | None
    """Name, in `taxonomy`, of the category the answer names; None when safe."""
    focus: str | None
    """Name of the only category asked about; None to ask about the whole policy."""
    arm: str
    """How the label came about.

    - `keep`: unsafe, and everything the image violates is in the policy;
    - `partial`: unsafe, and the policy misses something else the image violates;
    - `flip`: safe, although the image violates something outside the policy;
    - `benign`: safe, and the image violates nothing at all;
    - `focus_keep`: unsafe for the category asked about;
    - `focus_flip`: safe for the category asked about, although the image violates another one;
    - `focus_benign`: safe for the category asked about, and the image violates nothing at all;
    - `paper_keep`, `paper_flip`, `paper_safe`: the published scheme (`prompts.flip.published`).
    """

    @property
    def prompt_kind(self) -> str:
        """`none`, `kept` (the image's own prompt) or `lie` (another image's)."""
        if self.prompt_of is None:
            return "none"
        return "kept" if self.prompt_of == self.example.id else "lie"


@dataclass(frozen=True)
class Group:
    """Rows that share one policy, half of them unsafe, half safe, no image twice."""

    taxonomy: Taxonomy
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Pair:
    """One image with one prompt under two policies of the same length and of opposite label."""

    unsafe: Row
    safe: Row
    direction: str
    """`safe_to_unsafe` or `unsafe_to_safe`: which of the two policies counts as the changed one."""
