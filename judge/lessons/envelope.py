"""How far lessons reached: lengths and scripts of the policies and prompts that a model was trained on.

Outside, a classifier answers with the confidence that it learnt inside, and mostly "safe". So a policy outside leaves
every image unjudged, and a prompt outside is not read. `arbiter obedience` measures beyond the lessons and widens the
envelope by what was answered well (`judge.lessons.measured`).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any, Self

from judge.encoders.phrases import has_condition
from judge.errors import CheckpointError
from prompts.flip import Row
from prompts.scripts import scripts
from prompts.taxonomy import Category, Taxonomy

SLACK = 1.25
"""Lengths may exceed the longest of the lessons by this factor: that one is a matter of luck in the draw."""
_COUNTED = 16
"""Of the longest policies, so many are tokenised to find the one with the most tokens."""
_WHAT_TO_DO = (
    "Train with such lessons, or measure it with `arbiter obedience`, which widens what is answered."
)


@dataclass(frozen=True)
class LessonsEnvelope:
    """The reach of lessons; every number is the largest of any row, 0 where there was nothing."""

    categories: int
    """Categories of a policy."""
    category_characters: int
    """Characters of one category: name, definition and examples."""
    policy_characters: int
    """Characters of all categories of a policy."""
    policy_tokens: int | None
    """Tokens of a row without image and prompt; None for what reads categories one by one."""
    policy_scripts: tuple[str, ...]
    """Scripts of names, definitions and examples, as `prompts.scripts` names them; sorted."""
    prompt_characters: int
    """Characters of a prompt; 0 if no row had one."""
    prompt_scripts: tuple[str, ...]
    """Scripts of prompts, sorted."""
    conditions: bool = False
    """Whether a category had a condition on the prompt."""

    @classmethod
    def of(
        cls,
        policies: Iterable[Taxonomy],
        prompts: Iterable[str | None] = (),
        tokens: Callable[[Taxonomy], int] | None = None,
    ) -> Self:
        """The smallest envelope of these policies and prompts.

        Args:
            policies: at least one; those with equal text are looked at once.
            prompts: None and blank ones do not count.
            tokens: of a policy without image and prompt, by the model's tokenizer.
        """
        different = {policy.hash: policy for policy in policies}.values()
        longest = sorted(different, key=_policy_characters, reverse=True)
        shown = {prompt for prompt in prompts if prompt and prompt.strip()}
        return cls(
            max(map(len, different)),
            max(sum(map(len, _texts(category))) for policy in different for category in policy),
            _policy_characters(longest[0]),
            None if tokens is None else max(map(tokens, longest[:_COUNTED])),
            _scripts(text for policy in different for category in policy for text in _texts(category)),
            max(map(len, shown), default=0),
            _scripts(shown),
            any(has_condition(category) for policy in different for category in policy),
        )

    @classmethod
    def of_lessons(
        cls, rows: Iterable[Row], taxonomy: Taxonomy, tokens: Callable[[Taxonomy], int] | None = None
    ) -> Self:
        """The envelope of drawn rows, and of the taxonomy they were drawn from.

        The taxonomy as a whole counts, although lessons may hold categories out: it is what the run is made for.
        """
        rows = list(rows)
        # Rows of a group share one object, which is hashed once.
        policies = {id(row.taxonomy): row.taxonomy for row in rows}.values()
        return cls.of([taxonomy, *policies], (row.prompt for row in rows), tokens)

    @classmethod
    def from_dict(cls, data: object, source: str) -> Self:
        """What `to_dict` gave.

        Raises:
            CheckpointError: it is something else; `source` names the file.
        """
        try:
            if not isinstance(data, Mapping):
                raise TypeError("not an object")
            values: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value for key, value in data.items()
            }
            envelope = cls(**values)
            for field in fields(cls):
                _check_field(field.name, getattr(envelope, field.name))
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"{source} holds no envelope of lessons ({error}); it is damaged."
            ) from None
        return envelope

    def to_dict(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return asdict(self)

    def widened(self, other: "LessonsEnvelope | None") -> "LessonsEnvelope":
        """The smallest envelope that holds both."""
        if other is None:
            return self

        def wider(one: Any, two: Any) -> Any:
            if isinstance(one, tuple):
                return tuple(sorted({*one, *two}))
            return max((value for value in (one, two) if value is not None), default=None)

        names = [field.name for field in fields(self)]
        return LessonsEnvelope(**{name: wider(getattr(self, name), getattr(other, name)) for name in names})

    def why_policy_outside(
        self, taxonomy: Taxonomy, tokens: Callable[[Taxonomy], int] | None = None
    ) -> str | None:
        """What of a policy lies outside, and what to do about it; None where it lies inside.

        Args:
            taxonomy: the policy.
            tokens: as in `of`; without it, tokens are not compared.
        """
        # Asked for every batch of images.
        return _why_outside(self, taxonomy) if tokens is None else self._compare(taxonomy, tokens)

    def _compare(self, taxonomy: Taxonomy, tokens: Callable[[Taxonomy], int] | None) -> str | None:
        if len(taxonomy) > self.categories:
            return self._outside(f"it has {len(taxonomy)} categories", f"at most {self.categories}")
        for category in taxonomy:
            # What reads policies as a text has no part of its own for conditions, and is not confident for lack of it.
            if tokens is None and not self.conditions and has_condition(category):
                return self._outside(f"{category.name!r} has a condition on the prompt", "none with one")
            length = sum(map(len, _texts(category)))
            if length > SLACK * self.category_characters:
                return self._outside(
                    f"{category.name!r} takes {length} characters", f"at most {self.category_characters}"
                )
            foreign = sorted({*_scripts(_texts(category))}.difference(self.policy_scripts))
            if foreign:
                return self._outside(f"{category.name!r} is in {', '.join(foreign)}", self._known_scripts())
        length = _policy_characters(taxonomy)
        if length > SLACK * self.policy_characters:
            return self._outside(f"it has {length:,} characters", f"at most {self.policy_characters:,}")
        if tokens is not None and self.policy_tokens is not None:
            count = tokens(taxonomy)
            if count > SLACK * self.policy_tokens:
                return self._outside(f"it takes {count:,} tokens", f"at most {self.policy_tokens:,}")
        return None

    def why_prompt_outside(self, text: str) -> str | None:
        """What of a prompt, or of a window of one, lies outside, on one line; None where it lies inside."""
        if not self.prompt_characters:
            return "lessons held no prompts"
        if len(text) > SLACK * self.prompt_characters:
            return f"it has {len(text)} characters, lessons had at most {self.prompt_characters}"
        foreign = sorted(scripts(text).difference(self.prompt_scripts))
        return f"it is in {', '.join(foreign)}, which no prompt of the lessons was" if foreign else None

    def _known_scripts(self) -> str:
        return ", ".join(self.policy_scripts) or "no letters"

    def _outside(self, found: str, known: str) -> str:
        return f"the policy lies outside the lessons: {found}, lessons had {known}. {_WHAT_TO_DO}"


@lru_cache(maxsize=256)
def _why_outside(envelope: LessonsEnvelope, taxonomy: Taxonomy) -> str | None:
    return envelope._compare(taxonomy, None)


def _texts(category: Category) -> tuple[str, ...]:
    """What a classifier reads of a category."""
    if category.name_only:
        return (category.name,)
    return (category.name, category.definition, *category.examples)


def _policy_characters(policy: Taxonomy) -> int:
    return sum(len(text) for category in policy for text in _texts(category))


def _scripts(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(frozenset[str]().union(*map(scripts, texts))))


def _check_field(name: str, value: object) -> None:
    """Scripts are a list of texts, conditions are there or not, anything else is a count."""
    if name.endswith("scripts"):
        good = isinstance(value, tuple) and all(isinstance(script, str) for script in value)
    elif name == "conditions":
        good = isinstance(value, bool)
    else:
        good = (value is None and name == "policy_tokens") or (type(value) is int and value >= 0)
    if not good:
        raise ValueError(f"{name} is {value!r:.60}")
