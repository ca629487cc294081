"""Distribution shift between sources in image quality (UnsafeBench, section 3.1 and Figure 13)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from judge.data.images import open_image
from judge.errors import ImageError
from prompts.example import Example

from .effects import common_edges, compare, distribution
from .image_statistics import STATISTICS, WORKING_PIXELS, image_statistics
from .outcomes import divide_sources


@dataclass(frozen=True)
class MeasuredImages:
    """The statistics of the images that could be opened."""

    examples: tuple[Example, ...]
    """N of them, in the order given."""
    table: NDArray[np.float64]
    """(N, S) in the order of `STATISTICS`."""
    enlarged: NDArray[np.bool_]
    """(N,) whether it is smaller than what it was measured at."""
    unreadable: dict[str, str]
    """Id -> why it could not be opened."""


def measure_images(
    examples: Sequence[Example],
    *,
    working_pixels: int = WORKING_PIXELS,
    progress: Callable[[int], Any] | None = None,
) -> MeasuredImages:
    """Open every image once and measure it; one at a time in memory. `progress` gets the number of images done."""
    readable: list[Example] = []
    rows: list[list[float]] = []
    unreadable: dict[str, str] = {}
    for done, example in enumerate(examples, start=1):
        try:
            found = image_statistics(open_image(example.image), working_pixels=working_pixels)
            rows.append([found[name] for name in STATISTICS])
            readable.append(example)
        except ImageError as error:
            unreadable[example.id] = str(error)
        if progress is not None:
            progress(done)
    table = np.array(rows, dtype=np.float64).reshape(len(rows), len(STATISTICS))
    enlarged = table[:, list(STATISTICS).index("pixels")] * 1e3 < working_pixels
    return MeasuredImages(tuple(readable), table, enlarged, unreadable)


def distribution_shift(measured: MeasuredImages, *, seed: int = 0) -> dict[str, Any]:
    """Compare every statistic between the sources.

    Returns:
        `reference`, the source that the others are compared with: `real`, or else the one of most images; None
        without images. `sources`: source -> images, of those compared; `left_out`: likewise, of those beyond
        `outcomes.MOST_SOURCES`. `enlarged`: source -> share of its images that are smaller than what they were
        measured at, and look smoother for it. `statistics`: name -> `label`, `edges` of the histogram, `sources`
        (source -> `effects.distribution`) and `against_reference` (source -> `effects.compare`, positive where that
        source is larger than the reference).
    """
    of = np.array([example.source for example in measured.examples])
    kept, left_out = divide_sources(example.source for example in measured.examples)
    statistics: dict[str, Any] = {}
    for column, (name, label) in enumerate(STATISTICS.items()):
        values = measured.table[:, column]
        edges = common_edges(values)
        statistics[name] = {
            "label": label,
            "edges": edges,
            "sources": {source: distribution(values[of == source], edges) for source in kept},
            "against_reference": {
                source: compare(values[of == kept[0]], values[of == source], seed=seed) for source in kept[1:]
            },
        }
    return {
        "reference": kept[0] if kept else None,
        "sources": {source: int((of == source).sum()) for source in kept},
        "enlarged": {source: float(measured.enlarged[of == source].mean()) for source in kept},
        "left_out": left_out,
        "statistics": statistics,
    }
