"""An image file -> all views that are judged: frames of an animation, and grounds behind transparent parts.

Viewers show every frame, but judging all of them could cost a thousand images for one file. So the frames that differ
most are judged, and the animation is safe only if each of the others is similar to one of them; else it is unjudged.

Viewers also choose the ground behind a transparent image: white on a page, black in the dark. Where the two differ
visibly, both are judged (`judge.data.modes` says why two are enough), and the worst view decides.
"""

from collections.abc import Sequence
from io import BytesIO
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
    read_header,
    shrink_by,
    too_many_pixels,
)
from .modes import Ground

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_ANIMATION_PIXELS = 300_000_000
"""Width x height x frames up to which an animation is decoded: some ten seconds."""
MAX_HELD_PIXELS = 6 * MAX_JUDGED_PIXELS
"""Width x height x views in memory at a time: 100 MB. Of animations above 1024 x 768 pixels fewer frames are judged."""
MAX_FRAMES = 32
"""Views of one animation that are judged by default."""
MAX_DIFFERENCE = 24.0
"""Mean difference of two frames, in levels of 0-255 at 16 x 16 pixels, above which one does not represent the other: a
tenth of the range. Chosen, not measured: small and faint content may differ by less."""


class Frames(NamedTuple):
    """The views of a file that are judged, frame by frame and ground by ground; one for most files."""

    images: list[Image.Image]
    """As `open_image` returns them, in the order of the file."""
    numbers: list[int]
    """Of which frame each image is a view, from 0."""
    total: int
    """Frames in the file; the hidden default image of an animated PNG is one of them."""
    unrepresented: int
    """How many of the other frames are similar to none of them (`MAX_DIFFERENCE`), so that their content is unknown."""
    grounds: Sequence[str] = ()
    """On which ground each image stands: "white", "black" or "#rrggbb"; "" where the frame is not transparent.
    Nothing at all stands for "" everywhere."""

    def place(self, view: int) -> str:
        """Which view that is, such as "frame 3 of 4 on black"; "" for the only view of a file."""
        frame = f"frame {self.numbers[view] + 1} of {self.total}" if self.total > 1 else ""
        ground = f"on {self.grounds[view]}" if self.grounds and self.grounds[view] else ""
        return f"{frame} {ground}".strip()


def open_frames(
    source: ImageSource, limits: ImageLimits = DEFAULT_LIMITS, *, max_frames: int = MAX_FRAMES
) -> Frames:
    """Open an image on each ground that matters and, if it is animated, the frames that differ most from each other.

    All frames are compared at 16 x 16 pixels. The first is taken, then repeatedly the one farthest from those taken
    (farthest-first traversal, Gonzalez 1985), until there are `max_frames` or the others are copies. With frames at
    even steps, a single frame between two of them would go unjudged.

    Args:
        source: as for `open_image`.
        limits: as for `open_image`, for each frame; `limits.frames` is ignored.
        max_frames: how many frames to take, from 1; half as many if any is transparent, as each of them is then two
            views; fewer where they would exceed `MAX_HELD_PIXELS`. One frame is always taken, on both grounds.

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
        return _frames(image, [0], 1, 0, limits, {})
    pixels = image.width * image.height
    if total * pixels > MAX_ANIMATION_PIXELS:
        raise too_many_pixels(f"{total} frames of {image.width} x {image.height}", MAX_ANIMATION_PIXELS)
    # Frames are held after they were reduced (`shrink_by`), which divides both sides.
    held = max(1, MAX_HELD_PIXELS // max(1, pixels // shrink_by(image) ** 2))
    thumbnails, decoded = _decode_all(image, total, limits)
    views = max(map(len, thumbnails))
    numbers, distances = _farthest_first(thumbnails, max(1, min(max_frames, held) // views))
    unrepresented = int((distances > MAX_DIFFERENCE).sum())
    return _frames(image, numbers, total, unrepresented, limits, decoded)


def png_bytes(image: Image.Image) -> bytes:
    """A view as a PNG of its pixels alone, to show what is judged; nothing of the file that it came from is left."""
    file = BytesIO()
    Image.frombytes("RGB", image.size, image.convert("RGB").tobytes()).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _frames(
    image: Image.Image,
    numbers: Sequence[int],
    total: int,
    unrepresented: int,
    limits: ImageLimits,
    decoded: dict[int, list[Image.Image]],
) -> Frames:
    """All views of the frames `numbers`, as far as possible from those that were decoded before."""
    grounds: list[str] = []
    found = Frames([], [], total, unrepresented, grounds)
    for number in numbers:
        views = decoded.get(number) or decode_frame(image, number, limits, limits.grounds)
        found.images.extend(views)
        found.numbers.extend([number] * len(views))
        grounds.extend(map(_ground_name, limits.grounds) if len(views) > 1 else [""])
    return found


def _ground_name(ground: Ground) -> str:
    known = {(0, 0, 0): "black", (255, 255, 255): "white"}
    return known.get(ground, "#{:02x}{:02x}{:02x}".format(*ground))


def _decode_all(
    image: Image.Image, total: int, limits: ImageLimits
) -> "tuple[list[list[NDArray[np.int16]]], dict[int, list[Image.Image]]]":
    """Decode every frame once.

    Returns:
        Of each frame its views in (16, 16, 3) colours, to compare it with others; and frame number -> views where all
        of them fit into `MAX_HELD_PIXELS`, as most do, so that none has to be decoded again; else nothing.
    """
    import numpy as np

    thumbnails: list[list[NDArray[np.int16]]] = []
    kept: dict[int, list[Image.Image]] = {}
    room = MAX_HELD_PIXELS
    for number in range(total):
        views = decode_frame(image, number, limits, limits.grounds)
        thumbnails.append(
            [np.asarray(view.resize((16, 16), Image.Resampling.BOX), dtype=np.int16) for view in views]
        )
        room -= sum(view.width * view.height for view in views)
        if room >= 0:
            kept[number] = views
        else:
            kept.clear()
    return thumbnails, kept


def _farthest_first(
    thumbnails: "Sequence[Sequence[NDArray[np.int16]]]", max_frames: int
) -> tuple[list[int], "NDArray[np.float64]"]:
    """Farthest-first traversal of N frames, from the first one on.

    Args:
        thumbnails: of each frame its views, one that stands for both grounds or two.
        max_frames: how many frames to take.

    Returns:
        The numbers of at most `max_frames` different frames, in order; and (N,) the distance of every frame to the
        nearest of those: the mean difference of colours, on the ground where it is larger.
    """
    import numpy as np

    every = np.stack([np.stack([views[0], views[-1]]) for views in thumbnails])  # (N, 2, 16, 16, 3)
    # The first frame is always taken: it is what a viewer shows before the animation starts.
    taken, distances = [0], np.full(len(every), np.inf)
    while True:
        apart = np.abs(every - every[taken[-1]]).mean(axis=(2, 3, 4))  # (N, 2)
        distances = np.minimum(distances, apart.max(axis=1))
        # All distances 0: the remaining frames are copies of frames that were taken.
        if len(taken) == max_frames or not distances.any():
            return sorted(taken), distances
        taken.append(int(distances.argmax()))
