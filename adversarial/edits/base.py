"""Edits: functions of an RGB picture and a severity from 1 to 5, and registries of them by name."""

from collections.abc import Callable, MutableMapping
from functools import wraps

from PIL import Image

from adversarial.errors import AttackError

Edit = Callable[[Image.Image, int], Image.Image]
"""(RGB picture, severity 1 to 5) -> RGB picture."""
SEVERITIES = (1, 2, 3, 4, 5)


def check_edit(image: Image.Image, severity: int) -> None:
    """Check that a picture can be edited.

    Raises:
        AttackError: another mode than RGB, no pixels, or a severity other than 1 to 5.
    """
    if image.mode != "RGB":
        raise AttackError(f"The picture's mode is {image.mode}; edits take RGB: image.convert('RGB').")
    if not image.width or not image.height:
        raise AttackError(f"The picture is {image.width} x {image.height} pixels; there is nothing to edit.")
    if severity not in SEVERITIES:
        raise AttackError(f"The severity is {severity!r}; it is 1, 2, 3, 4 or 5.")


def registered(edits: MutableMapping[str, Edit]) -> Callable[[Edit], Edit]:
    """A decorator that checks an edit's arguments and registers it under its name."""

    def register(function: Edit) -> Edit:
        @wraps(function)
        def checked(image: Image.Image, severity: int) -> Image.Image:
            check_edit(image, severity)
            return function(image, severity)

        edits[checked.__name__] = checked
        return checked

    return register
