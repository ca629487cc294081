"""Some images that are decoded together: what comes out, and how it comes together."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from judge.errors import ImageError

from .processes import Answer, pil_images, plain_buffers

if TYPE_CHECKING:
    from PIL.Image import Image

    from judge.data.frames import Frames

Pixels = NDArray[np.uint8]


class Opened(NamedTuple):
    """What became of one image."""

    sha256: str | None
    """64 hexadecimal digits, of the encoded bytes; None where they could not be read."""
    problem: ImageError | None = None
    """Why there are no pixels."""
    frames: "Frames | None" = None
    """What the views are, without their images; None with a problem."""

    @property
    def views(self) -> int:
        """How many of the block's images are views of this one; 0 with a problem."""
        return len(self.frames.numbers) if self.frames else 0


class OpenedBlock(NamedTuple):
    """A block of images, decoded."""

    rows: list[Opened]
    """One for each source."""
    images: "Pixels | list[Image]"
    """All views of all rows, in order: (V, H, W, 3) as the preprocessing resizes them; without one, V RGB images."""
    read_seconds: float
    """Spent on reading, by the clock, added up over images."""
    decode_seconds: float
    """Processor time of the workers for images that were decoded, as they say."""
    size: int
    """Encoded bytes that were read."""


class UnfinishedBlock:
    """Images of one block, some of which are decoded."""

    def __init__(self, size: int, shape: tuple[int, int] | None, most_views: int) -> None:
        self.unfinished = size
        self.wanted = True
        self.read_seconds = self.decode_seconds = 0.0
        self.size = self.held = 0
        """Encoded bytes that were read, and bytes that are in memory: pixels, and what its maker adds."""
        self._rows: list[Opened | None] = [None] * size
        self._views: list[Sequence[Any]] = [()] * size
        self._shape, self._most_views = shape, most_views
        # Where each image has one view, as most have, their pixels are read to where they stay.
        self._pixels = None if shape is None else np.empty((size, *shape, 3), np.uint8)

    def __len__(self) -> int:
        return len(self._rows)

    def places(self, index: int, sizes: list[list[int]]) -> Sequence[Any]:
        """As `processes.Places`, for one of the images."""
        if len(sizes) > self._most_views:
            raise ValueError
        if self._shape is None or self._pixels is None:
            return plain_buffers(sizes)
        height, width = self._shape
        if any(size != [width, height] for size in sizes):
            raise ValueError
        if len(sizes) == 1:
            return [self._pixels[index]]
        return [np.empty((height, width, 3), np.uint8) for _ in sizes]

    def views_of(self, answer: Answer) -> Sequence[Any]:
        """The views of an image that was read to `places`."""
        return pil_images(answer) if self._shape is None else answer.buffers

    def finish(
        self, index: int, sha256: str | None, found: Answer | ImageError, views: Sequence[Any]
    ) -> None:
        """Take the result for one of the images; by one thread at a time."""
        if isinstance(found, Answer):
            self._rows[index] = Opened(sha256, None, found.frames)
            self._views[index] = views
            self.held += sum(3 * width * height for width, height in found.sizes)
            self.decode_seconds += found.seconds
        else:
            self._rows[index] = Opened(sha256, found)
        self.unfinished -= 1

    def opened(self) -> OpenedBlock:
        """The block, when nothing is unfinished."""
        rows = [row for row in self._rows if row is not None]
        images: Any = [view for views in self._views for view in views]
        if self._shape is not None:
            if all(len(views) == 1 for views in self._views):
                images = self._pixels
            else:
                images = np.stack(images) if images else np.empty((0, *self._shape, 3), np.uint8)
        return OpenedBlock(rows, images, self.read_seconds, self.decode_seconds, self.size)
