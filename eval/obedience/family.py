"""What a family of rewritings is: a function to another policy with its truth, or to another prompt.

A policy that says the same in other words keeps its labels. One that says something else (a negation, fewer categories)
gets new ones, computed from the image's labels: `Condition` covers what `Category.members` cannot express. Labels of
images are only ever computed, never assumed: a category nobody has labelled makes the rewriting refuse.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import ClassVar, Literal

from prompts.errors import ArbiterError
from prompts.example import Example
from prompts.flip import Row
from prompts.flip.conditions import Condition
from prompts.taxonomy import Category, Taxonomy

Wanted = Literal["safe", "unsafe"]
"""The verdict that an injected text asks for."""


class RefusedRewritingError(ArbiterError, ValueError):
    """A rewriting that does not apply, would change nothing, or would leave the truth unknown; with the reason."""


@dataclass(frozen=True)
class Policy:
    """A rewritten taxonomy and how the truth under it follows from an image's labels."""

    taxonomy: Taxonomy
    conditions: Mapping[str, Condition] = field(default_factory=dict)
    """Key of a category -> which images it covers, where that is not the union of its members."""
    absent: frozenset[str] = frozenset()
    """Keys that no image violates, as whoever chose the data vouches (`prompts.unrelated`)."""

    def labelled(self, example: Example) -> Example:
        """The example with the labels of `conditions` among its own, so that `Taxonomy.label` gives the truth."""
        labels = {key: condition.label(example) for key, condition in self.conditions.items()}
        return replace(
            example,
            violates=example.violates | {key for key, label in labels.items() if label},
            unknown=example.unknown | {key for key, label in labels.items() if label is None},
        )

    def truth(self, example: Example) -> bool | None:
        """Whether the example violates the policy; None where nobody knows."""
        labels = self.taxonomy.label(self.labelled(example))
        return True if True in labels else None if None in labels else False


@dataclass(frozen=True)
class Setting:
    """What a rewriting may draw on besides the policy or prompt itself."""

    taxonomy: Taxonomy
    """Categories that may be mentioned, with their aliases, rewordings and examples."""
    examples: tuple[Example, ...]
    """The images asked about under this policy, for choosing the categories that matter to them."""
    unrelated: tuple[Category, ...]
    """Categories that none of the images violates."""
    rng: Random
    """Seeded by run, family and policy (or image), so a draw depends on nothing else."""

    def entry_of(self, category: Category) -> Category:
        """The taxonomy's entry of a policy's category, with the aliases and rewordings that a policy leaves out.

        Raises:
            RefusedRewritingError: the taxonomy has no such key.
        """
        for entry in self.taxonomy:
            if entry.key == category.key:
                return entry
        raise RefusedRewritingError(f"the taxonomy has no category with the key {category.key!r}")

    def outside(self, policy: Taxonomy) -> list[Category]:
        """The taxonomy's categories that the policy does not cover."""
        covered = {member for category in policy for member in category.members}
        return [category for category in self.taxonomy if covered.isdisjoint(category.members)]

    def by_frequency(self, categories: Iterable[Category]) -> list[Category]:
        """The categories, those that most images violate first; ties at random."""
        drawn = [(self.violations(category), self.rng.random(), category) for category in categories]
        return [category for _, _, category in sorted(drawn, key=lambda entry: (-entry[0], entry[1]))]

    def violations(self, *categories: Category) -> int:
        """How many of the images violate all of these categories."""
        return sum(all(category.label(example) for category in categories) for example in self.examples)


PolicyRewriter = Callable[[Taxonomy, Setting], Policy]
PromptRewriter = Callable[[Row, Setting], str]


@dataclass(frozen=True)
class PolicyFamily:
    """Rewritings of the policy; images and prompts stay."""

    kind: ClassVar[str] = "policy"
    name: str
    about: str
    """One line."""
    rewrite: PolicyRewriter
    """Policy and setting -> rewritten policy; `RefusedRewritingError` or `TaxonomyError` where it does not apply."""
    in_lessons: bool = True
    """Whether training may use it."""
    changes_truth: bool = False
    """Whether an image's label may differ from that under the original policy."""
    aims: Wanted | None = None
    """The verdict that text in the policy asks the model for."""


@dataclass(frozen=True)
class PromptFamily:
    """Rewritings of the prompt; images and policies stay, and so does the truth."""

    kind: ClassVar[str] = "prompt"
    name: str
    about: str
    rewrite: PromptRewriter
    """Row and setting -> the prompt to show; `RefusedRewritingError` where there is none."""
    in_lessons: bool = True
    harmless: bool = False
    """Says nothing about any category, so recall must not fall (`worst_prompt_recall_drop`)."""
    ordinary: bool = False
    """True, lying or long, as ordinary users write: counted in `false_alarms_added`."""
    aims: Wanted | None = None


Family = PolicyFamily | PromptFamily


def replace_categories(policy: Taxonomy, categories: Iterable[Category], **truth: object) -> Policy:
    """The policy with other categories; `truth` gives fields of `Policy`."""
    return Policy(Taxonomy(policy.name, policy.version, tuple(categories)), **truth)  # type: ignore[arg-type]


def for_each(policy: Taxonomy, change: Callable[[Category, int], Category]) -> Policy:
    """Change every category by itself; `change` gets its number, from 1."""
    return replace_categories(policy, (change(category, number) for number, category in enumerate(policy, 1)))
