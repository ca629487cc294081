"""What an existing project of Label Studio asks about an image, and a suggestion as the answer to it."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from judge.errors import ConfigError, first_line

from .label_studio import CATEGORIES, LABEL
from .verdict_suggestions import Suggestion


@dataclass(frozen=True)
class Questions:
    """What a project asks about an image."""

    image: str
    """Key of a task's data with the image's address."""
    to: str
    """Name of the image in the interface."""
    label: Mapping[str, str]
    """Case-folded choices of the question safe or unsafe -> as the project writes them; empty where it is not asked."""
    categories: Mapping[str, str]
    """Those of the question which categories; empty where it is not asked."""

    def result(self, suggestion: Suggestion) -> list[dict[str, Any]]:
        """The `result` of a prediction."""
        chosen = {}
        if self.label:
            chosen[LABEL] = [self.label["unsafe" if suggestion.unsafe else "safe"]]
        if self.categories and suggestion.flagged:
            chosen[CATEGORIES] = [self.categories[name.casefold()] for name in suggestion.flagged]
        return [
            {"from_name": name, "to_name": self.to, "type": "choices", "value": {"choices": choices}}
            for name, choices in chosen.items()
        ]


def read_questions(config: str, categories: Iterable[str]) -> Questions:
    """The two questions of a project's labelling interface, which has to know every category.

    Args:
        config: XML, from Label Studio.
        categories: names that may be suggested.

    Raises:
        ConfigError: the interface has neither question, or lacks a category.
    """
    if re.search(r"<!(DOCTYPE|ENTITY)", config, re.IGNORECASE):
        raise ConfigError("The project's labelling interface declares entities, which are not read.")
    try:
        view = ElementTree.fromstring(config)
    except ElementTree.ParseError as error:
        raise ConfigError(f"The project's labelling interface cannot be read: {first_line(error)}.") from None
    images = {one.get("name"): str(one.get("value", "")).removeprefix("$") for one in view.iter("Image")}
    asked = {
        one.get("name"): one
        for one in view.iter("Choices")
        if one.get("name") in (LABEL, CATEGORIES) and one.get("toName") in images
    }
    if not asked:
        names = ", ".join(sorted(f"{one.get('name')!r}" for one in view.iter("Choices"))) or "none"
        raise ConfigError(
            "The project's labelling interface has no choices named 'label' (safe, unsafe) or 'categories' about its "
            f"image, but {names}; use the one that `arbiter annotate tasks --out tasks.json` writes."
        )
    choices = {
        name: {
            str(one.get("value")).casefold(): str(one.get("alias") or one.get("value"))
            for one in asked[name].iter("Choice")
        }
        if name in asked
        else {}
        for name in (LABEL, CATEGORIES)
    }
    wanted = {LABEL: ("safe", "unsafe"), CATEGORIES: tuple(categories)}
    for name in asked:
        missing = [one for one in wanted[str(name)] if one.casefold() not in choices[str(name)]]
        if missing:
            raise ConfigError(
                f"The project's question {name!r} has no choice {', '.join(missing)}; add it to the labelling "
                "interface, or push rows of another taxonomy (--taxonomy NAME)."
            )
    if len({one.get("toName") for one in asked.values()}) > 1:
        raise ConfigError("The project's questions 'label' and 'categories' are about two images.")
    to = str(next(iter(asked.values())).get("toName"))
    return Questions(images[to], to, choices[LABEL], choices[CATEGORIES])
