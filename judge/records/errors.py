"""Errors of the records; `RecordsError` means the database, the others what was asked of it."""

from prompts.errors import ArbiterError


class RecordsError(ArbiterError, RuntimeError):
    """A database or an image folder that cannot be used: unreachable, damaged, full, or newer than this program."""


class NotFoundError(ArbiterError, LookupError):
    """An item, verdict, taxonomy or image that the records do not hold."""


class DecisionError(ArbiterError, ValueError):
    """A decision that says too little, or contradicts the verdict that it is about."""
