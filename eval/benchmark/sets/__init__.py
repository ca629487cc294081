"""Other people's policy tests: rows that bring their own policy, as questions for any classifier."""

from .catalog import ReadableSet, readable_sets
from .load import POLICY_SETS, load_policy_set
from .rows import PolicySet

__all__ = [
    "POLICY_SETS",
    "PolicySet",
    "ReadableSet",
    "load_policy_set",
    "readable_sets",
]
