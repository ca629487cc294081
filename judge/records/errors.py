"""Errors of the records; `RecordsError` means the database or the images, the others what was asked of them."""

from prompts.errors import ArbiterError


class RecordsError(ArbiterError, RuntimeError):
    """A database or an image folder that cannot be used: unreachable, damaged, full, or newer than this program."""


class NotFoundError(ArbiterError, LookupError):
    """An item, verdict, taxonomy or image that the records do not hold."""


class EntryError(ArbiterError, ValueError):
    """What cannot be stored: a text that is too long or none, a decision that nobody made."""


class DecisionError(EntryError):
    """A decision that says too little, or contradicts the verdict that it is about."""
