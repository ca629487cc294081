"""The options of label flipping."""

from dataclasses import dataclass, field, replace

from prompts.errors import ArbiterError, TaxonomyError
from prompts.names import nearest
from prompts.taxonomy import Taxonomy

NEUTRAL_NAMES = ("house list", "own rule", "local rule", "our list")
"""Neutral names: a custom category with such a name can be judged by its definition only."""
POLICY_PARTS = (
    "case", "clauses", "codes", "nonsense", "names_only", "phrases", "legal_prose", "orders", "distract",
    "negation", "conjunction", "exception", "split",
)  # fmt: skip
"""Shares of what may happen to a restyled policy."""
PROMPT_PARTS = ("describe", "lengthen", "odd", "inject")
"""Shares of what may happen to a rewritten prompt."""
_SHARES = (
    "rename", "reword", "custom", "neutral_name", "no_prompt", "focus", "benign",
    "restyle", "mixed", "reprompt", "balance", "prompt_condition", *POLICY_PARTS, *PROMPT_PARTS,
)  # fmt: skip


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
    benign: float = 0.2
    """Share of safe rows whose image violates nothing at all, where the data has such images."""
    balance: float = 1.0
    """Share of row pairs whose two images violate equally many keys, where the data allow it; rows with a benign image
    are never balanced. Otherwise how much an image violates hints at its label."""

    restyle: float = 0.25
    """Share of policies that are worded and put together as other users would; the others are in the taxonomy's words.
    The shares that follow are of these policies, and any of them may be 0."""
    mixed: float = 0.15
    """Share whose entries are styled one by one; the others have one style throughout, as a user's list has."""
    case: float = 0.1
    """In upper, lower or title case."""
    clauses: float = 0.1
    """Names inside a clause: "4.2 Ban on NAME"."""
    codes: float = 0.05
    """Codes as names: "S1"; the definition says what is meant."""
    nonsense: float = 0.1
    """Made-up words as names; the definition says what is meant."""
    names_only: float = 0.05
    """Names without definitions."""
    phrases: float = 0.2
    """A few words around each definition."""
    legal_prose: float = 0.1
    """Definitions in the middle of a paragraph as lawyers write it."""
    orders: float = 0.12
    """Definitions that order the reader to answer safe, or unsafe; labels stay as they are."""
    distract: float = 0.4
    """Filled up with unrelated categories; never where `distractors` names no taxonomy."""
    negation: float = 0.12
    """With a category of pictures that do *not* show something."""
    conjunction: float = 0.1
    """With categories that take two things in one picture."""
    exception: float = 0.1
    """With categories that are allowed beside another thing."""
    split: float = 0.05
    """With a category in two: by itself, and beside another of the list."""
    prompt_condition: float = 0.0
    """Share of groups with a category that depends on the prompt as well: "alcohol, if the prompt speaks of driving".
    They are drawn in a way of their own (`prompts.flip.prompt_conditions`)."""
    topics: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """What prompts may speak of in these groups -> ways to say so, at the end of a prompt. Without any, and in half of
    the groups, the names of other categories."""
    distractors: tuple[str, ...] = ()
    """Taxonomies, by name or file, of which no training image violates anything. Whoever names them vouches for it."""
    longest: int = 24
    """Most categories of a policy with distractors; they are never taken out of a longer one."""
    policy_characters: int = 2000
    """Characters of names and definitions that rewording may lead to, since a row has to fit into `max_length` tokens.
    A policy that would be longer loses distractors, or else stays in the words of the taxonomy."""

    reprompt: float = 0.3
    """Share of row pairs with prompts whose prompts are rewritten; the others are as in the data. The shares that
    follow are of these pairs, and any of them may be 0."""
    describe: float = 0.6
    """A description of what an image shows, in other words of the taxonomy."""
    lengthen: float = 0.4
    """The prompt somewhere in a longer text, of 10 to 2,000 characters, of which one window is shown."""
    odd: float = 0.2
    """Another case, emoji, or signs in odd places."""
    inject: float = 0.15
    """An order to answer safe, or unsafe; labels stay as they are."""

    held_out: frozenset[str] = frozenset()
    """Keys that no policy may contain and no image may violate."""

    def __post_init__(self) -> None:
        # Options may come from YAML, which has lists and no sets.
        object.__setattr__(self, "held_out", frozenset(_texts("held_out", self.held_out)))
        object.__setattr__(self, "names", _texts("names", self.names))
        object.__setattr__(self, "distractors", _texts("distractors", self.distractors))
        topics = {topic: _texts(f"topics: {topic}", ways) for topic, ways in self.topics.items()}
        object.__setattr__(self, "topics", topics)
        if len(topics) == 1 or not all(topics.values()):
            raise ArbiterError(
                f"topics is {topics!r}; give none, or two and more, each with a way to say it."
            )
        if not 1 <= self.min_categories <= self.max_categories:
            raise ArbiterError(
                f"Policies of {self.min_categories} to {self.max_categories} categories do not exist; "
                "give 1 <= min_categories <= max_categories."
            )
        if self.group_size < 2 or self.group_size % 2:
            raise ArbiterError(
                f"group_size is {self.group_size}; half of a group is unsafe, so make it even."
            )
        if self.longest < 1:
            raise ArbiterError(f"longest is {self.longest}; a policy has at least one category.")
        if self.policy_characters < 0:
            raise ArbiterError(f"policy_characters is {self.policy_characters}; give 0 or more.")
        for name in _SHARES:
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ArbiterError(f"{name} is {getattr(self, name)}; a share lies between 0 and 1.")

    @property
    def plain(self) -> "FlipOptions":
        """The same with policies and prompts in the words of taxonomy and data, for evaluations."""
        return replace(self, restyle=0.0, reprompt=0.0, balance=0.0, prompt_condition=0.0)

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
