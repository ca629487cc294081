"""What a vision-language model wrote about an image, and the interface of whatever can be asked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from PIL.Image import Image

Ending = Literal["whole", "cut", "refused", "failed"]


@dataclass(frozen=True)
class Reply:
    """A model's free text."""

    text: str
    """What it wrote; of a reply that failed, why."""
    ending: Ending = "whole"
    """`cut`: it ran into the limit of tokens. `refused`: by the model's or the server's own safeguard, without a text
    to read. `failed`: there is no reply."""
    unanswered: bool = False
    """Whether it failed because a service gave no answer, so that asking again later may help."""


class Chat(Protocol):
    """A model that answers questions about images in free text."""

    @property
    def name(self) -> str:
        """What verdicts call it."""
        ...

    def ask(self, images: "Sequence[Image]", texts: Sequence[str]) -> list[Reply]:
        """The replies to N questions, each about its own image."""
        ...
