"""One labelled image, as every data source yields it."""

from dataclasses import dataclass
from typing import Any

UNSPECIFIED = "unsafe-unspecified"
"""In `Example.violates`: at least one of its `unknown` categories is violated, but it was not recorded which."""


@dataclass(frozen=True)
class Example:
    """An image, the prompt behind it, and what is known of the categories it violates.

    `violates` and `unknown` hold category *keys* (`Category.key`), so a renamed category keeps its labels.
    A key in neither set is known not to be violated.
    """

    id: str
    """Stable and unique within its data set."""
    image: Any
    """A path, encoded bytes or a PIL image; opened by `judge.data.images.open_image` when it is needed."""
    prompt: str | None = None
    """The text the image was generated from or posted with; untrusted."""
    violates: frozenset[str] = frozenset()
    """Keys of the categories this image violates."""
    unknown: frozenset[str] = frozenset()
    """Keys that were not labelled; such an image is never used as a negative for them."""
    source: str = "real"
    """`real`, `generated`, or a finer name the data set uses."""
    split: str = "train"
    """`train`, `validation` or `test`."""
    collected_for: str | None = None
    """Key of the category that the image was collected for, violated or not; None where the data set does not say."""
    severity: int | None = None
    """Ordered grade of harm, larger is worse, where the data set has one; comparable within one data set only."""
    step: str | None = None
    """When during its generation the picture was taken, in the data set's words; None where it does not say. Such a
    picture may still be noise, while its label is that of the finished one."""

    def unsafe_within(self, keys: frozenset[str]) -> bool:
        """Whether it is unsafe in a way that was not recorded, and these keys are all that it could be."""
        return UNSPECIFIED in self.violates and bool(self.unknown) and self.unknown <= keys
