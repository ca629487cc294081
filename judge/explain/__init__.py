"""Which region of an image drove a verdict: a hint for people, not a proof."""

from .explain import METHODS, Explanation, explain

__all__ = ["METHODS", "Explanation", "explain"]
