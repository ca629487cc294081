"""Categories whose truth is a condition over others, such as "X without Y"; `Category.members` are unions only."""

from dataclasses import dataclass, field

from prompts.example import Example
from prompts.taxonomy import Category


@dataclass(frozen=True)
class Condition:
    """Which images a category made of others covers: those that violate all of some, one of some and none of others.

    With `spoken_in`, the prompt decides too: what is labelled is the image with the prompt that is shown beside it.
    """

    all_of: tuple[Category, ...] = ()
    none_of: tuple[Category, ...] = ()
    any_of: tuple[Category, ...] = ()
    """Of these at least one; empty asks for nothing."""
    spoken_in: frozenset[str] | None = None
    """Prompts that speak of what the condition asks for; the example's has to be one of them. None for any, or none."""

    def label(self, example: Example) -> bool | None:
        """Whether it covers the example (Kleene's three-valued logic); None where the labels do not decide it."""
        if self.spoken_in is not None and example.prompt not in self.spoken_in:
            return False
        present = [category.label(example) for category in self.all_of]
        if self.any_of:
            one_of = [category.label(example) for category in self.any_of]
            present.append(True if True in one_of else None if None in one_of else False)
        absent = [category.label(example) for category in self.none_of]
        if False in present or True in absent:
            return False
        return None if None in present or None in absent else True


@dataclass(frozen=True)
class Conditional(Category):
    """A category of a training policy that covers what its condition says; `members` are the keys it speaks of."""

    condition: Condition = field(default_factory=Condition)

    @property
    def about_prompt(self) -> bool:
        """Whether the prompt decides too."""
        return self.condition.spoken_in is not None

    @property
    def covered(self) -> frozenset[str]:
        """No key: violating one of the members is not enough."""
        return frozenset()

    def label(self, example: Example) -> bool | None:
        """Whether the condition covers the example; None where the labels do not decide it."""
        return self.condition.label(example)
