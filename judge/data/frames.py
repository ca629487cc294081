"""An animation -> the frames that are judged, and whether they represent the others.

Viewers show every frame, but judging all of them could cost a thousand images for one file. So the frames that differ
most are judged, and the animation is safe only if each of the others is similar to one of them; else it is unjudged.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image

from judge.errors import ConfigError

from .images import (
    DEFAULT_LIMITS,
    MAX_JUDGED_PIXELS,
    ImageLimits,
    ImageSource,
    decode_frame,
    frame_count,
    load_frame,
    read_header,
    shrink_by,
    too_many_pixels,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_ANIMATION_PIXELS = 300_000_000
"""Width x height x frames up to which an animation is decoded: some ten seconds."""
MAX_HELD_PIXELS = 8 * MAX_JUDGED_PIXELS
"""Width x height x frames in memory at a time: 100 MB. Of large animations fewer frames are judged."""
MAX_FRAMES = 32
"""Frames of one animation that are judged by default."""
MAX_DIFFERENCE = 24.0
"""Mean difference of two frames, in levels of 0-255 at 16 x 16 pixels, above which one does not represent the other: a
tenth of the range. Chosen, not measured: small and faint content may differ by less."""


class Frames(NamedTuple):
    """Some frames of an animation, or the single image of any other file."""

    images: list[Image.Image]
    """As `open_image` returns them, in the order of the file."""
    numbers: list[int]
    """Which frames they are, from 0."""
    total: int
    """Frames in the file; the hidden default image of an animated PNG is one of them."""
    unrepresented: int
    """How many of the others are similar to none of them (`MAX_DIFFERENCE`), so that their content is unknown."""


def open_frames(
    source: ImageSource, limits: ImageLimits = DEFAULT_LIMITS, *, max_frames: int = MAX_FRAMES
) -> Frames:
    """Open an image and, if it is animated, the frames that differ most from each other.

    All frames are compared at 16 x 16 pixels. The first is taken, then repeatedly the one farthest from those taken
    (farthest-first traversal, Gonzalez 1985), until there are `max_frames` or the others are copies. With frames at
    even steps, a single frame between two of them would go unjudged.

    Args:
        source: as for `open_image`.
        limits: as for `open_image`, for each frame; `limits.frames` is ignored.
        max_frames: how many frames to take, from 1; fewer where they would exceed `MAX_HELD_PIXELS`.

    Raises:
        ImageError: as `open_image`, but never `animated`; `too_many_pixels` also if all frames together hold more
            than `MAX_ANIMATION_PIXELS`. One damaged frame is enough to refuse the file.
        ConfigError: `max_frames` below 1.
    """
    if max_frames < 1:
        raise ConfigError(f"open_frames: max_frames is {max_frames}; take at least 1 frame.")
    image = read_header(source, limits)
    total = frame_count(image)
    if total == 1:
        return Frames([decode_frame(image, 0, limits)], [0], 1, 0)
    pixels = image.width * image.height
    if total * pixels > MAX_ANIMATION_PIXELS:
        raise too_many_pixels(f"{total} frames of {image.width} x {image.height}", MAX_ANIMATION_PIXELS)
    # Frames are held after they were reduced (`shrink_by`), which divides both sides.
    held = max(1, MAX_HELD_PIXELS // max(1, pixels // shrink_by(image) ** 2))
    numbers, distances = _farthest_first(
        [_thumbnail(image, number, limits) for number in range(total)], min(max_frames, held)
    )
    unrepresented = int((distances > MAX_DIFFERENCE).sum())
    return Frames([decode_frame(image, number, limits) for number in numbers], numbers, total, unrepresented)


def _thumbnail(image: Image.Image, frame: int, limits: ImageLimits) -> "NDArray[np.int16]":
    """(16, 16, 4) colours and alpha of a frame, to compare it with others."""
    import numpy as np

    load_frame(image, frame, limits)
    return np.asarray(image.convert("RGBA").resize((16, 16), Image.Resampling.BOX), dtype=np.int16)


def _farthest_first(
    thumbnails: "Sequence[NDArray[np.int16]]", max_frames: int
) -> tuple[list[int], "NDArray[np.float64]"]:
    """Farthest-first traversal of N frames, from the first one on.

    Returns:
        The numbers of at most `max_frames` different frames, in order; and (N,) the distance of every frame to the
        nearest of those: a third of the summed differences of red, green, blue and alpha, on average over the pixels.
    """
    import numpy as np

    every = np.stack(thumbnails).astype(np.float64)  # (N, 16, 16, 4)
    # The first frame is always taken: it is what a viewer shows before the animation starts.
    taken, distances = [0], np.full(len(every), np.inf)
    while True:
        apart = np.abs(every - every[taken[-1]])  # (N, 16, 16, 4)
        distances = np.minimum(distances, apart.sum(axis=3).mean(axis=(1, 2)) / 3)
        # All distances 0: the remaining frames are copies of frames that were taken.
        if len(taken) == max_frames or not distances.any():
            return sorted(taken), distances
        taken.append(int(distances.argmax()))
