"""Occlusion: how much a score falls when a part of the image is covered (Zeiler and Fergus 2014, section 4.2).

It needs nothing but `score`, so it works for every classifier, at the price of one image a window.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from judge.protocol import Classifier
from prompts.taxonomy import Taxonomy

WINDOW = 2
"""Side of a window in cells; windows overlap, so that a cell is covered by up to four of them."""


def occlusion_map(
    classifier: Classifier,
    image: Image.Image,
    prompt: str | None,
    taxonomy: Taxonomy,
    category: int,
    cells: int,
) -> NDArray[np.float64]:
    """(cells, cells): by how much the logit of a category falls, on average over the windows that cover a cell.

    Windows are filled with the image's mean colour. Covering may also raise a score; that counts as 0. A window that
    could not be judged counts as 0 too.

    Args:
        classifier: what decided.
        image: RGB, at least `cells` pixels a side.
        prompt: as it was judged with.
        taxonomy: as it was judged by.
        category: its place in the taxonomy.
        cells: rows and columns of the map, at least `WINDOW`.
    """
    pixels = np.asarray(image)
    fill = pixels.reshape(-1, 3).mean(0).round().astype(np.uint8)
    rows = np.linspace(0, pixels.shape[0], cells + 1).round().astype(int)
    columns = np.linspace(0, pixels.shape[1], cells + 1).round().astype(int)
    corners = [(top, left) for top in range(cells - WINDOW + 1) for left in range(cells - WINDOW + 1)]
    covered = [image]
    for top, left in corners:
        copy = pixels.copy()
        copy[rows[top] : rows[top + WINDOW], columns[left] : columns[left + WINDOW]] = fill
        covered.append(Image.fromarray(copy))
    scores = classifier.score(covered, [prompt] * len(covered), taxonomy)
    logits = _logit(scores.category_probabilities[:, category])
    falls = np.nan_to_num(np.maximum(logits[0] - logits[1:], 0.0))
    total, windows = np.zeros((cells, cells)), np.zeros((cells, cells))
    for (top, left), fall in zip(corners, falls, strict=True):
        place = (slice(top, top + WINDOW), slice(left, left + WINDOW))
        total[place] += fall
        windows[place] += 1
    return total / windows


def _logit(probability: NDArray[np.float64]) -> NDArray[np.float64]:
    # Saturated scores hide how far they moved: 1 - 1e-6 is as far as is told apart.
    clipped = np.clip(probability, 1e-6, 1 - 1e-6)
    return np.asarray(np.log(clipped) - np.log1p(-clipped))
