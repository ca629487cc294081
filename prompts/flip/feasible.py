"""What can be drawn from images at all: of few of them, of one category, of labels that name none."""

from collections.abc import Sequence
from dataclasses import replace

from prompts.example import UNSPECIFIED, Example
from prompts.taxonomy import Taxonomy

from .options import FlipOptions


def names_no_category(examples: Sequence[Example]) -> bool:
    """Whether there are unsafe images, and none of them names its category."""
    return any(example.violates for example in examples) and all(
        example.violates <= {UNSPECIFIED} for example in examples
    )


def no_pairs(examples: Sequence[Example], keys: Sequence[str]) -> str:
    """Why no image can be unsafe under one policy and safe under another; empty where some may be.

    Args:
        examples: images.
        keys: of the categories that policies may use.
    """
    if len(keys) < 2:
        return "the taxonomy has one category, and pairs exchange one for another, so they take at least two"
    if names_no_category(examples):
        return "no unsafe image names its category, so nobody knows under which policy it would be safe"
    return ""


def fit_group_size(examples: Sequence[Example], taxonomy: Taxonomy, options: FlipOptions) -> FlipOptions:
    """The options with groups so small that few images fill them, for questions about a small split.

    A group's size changes no question, only how many images are asked about under one policy. Where images abound, the
    options stay as they are.

    Args:
        examples: of the split.
        taxonomy: where policies come from.
        options: whose `group_size` is the largest to use.
    """
    keys = set(options.training_keys(taxonomy))
    usable = [example for example in examples if not example.violates & options.held_out]
    counts = [sum(key in example.violates for example in usable) for key in keys]
    counts.append(sum(UNSPECIFIED in example.violates for example in usable))
    counts.append(sum(not (example.violates | example.unknown) & keys for example in usable))
    # What there is none of is no matter of size.
    fewest = min((count for count in counts if count), default=1)
    return replace(options, group_size=max(2, min(options.group_size, 2 * fewest)))
