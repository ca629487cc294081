"""One call for every classifier: the map of a category, its box, and what the prompt added."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from judge.errors import ConfigError
from judge.protocol import Classifier, ForwardOnlyClassifier, HasEncoder, OwnsModules
from prompts.taxonomy import Taxonomy

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

METHODS = ("attention", "occlusion")
"""`attention` for students, and cascades by their student; `occlusion` for every classifier."""
CELLS = 8
"""Rows and columns of a map."""
CELLS_OF_SERVED = 4
"""Rows and columns for a classifier that costs a request or much time an image."""
NOTE = "a hint, not proof: covering or looking at a region is not the same as understanding it"


@dataclass(frozen=True)
class Explanation:
    """Where in the image the score of one category comes from, as far as can be told."""

    method: str
    category: str
    grid: list[list[float]]
    """Rows of numbers in [0, 1], 1 at the strongest cell; all 0 where no part of the image mattered on its own."""
    box: tuple[float, float, float, float] | None
    """Left, top, right, bottom in [0, 1] of the image, around the cells above half; None where the grid is all 0."""
    score: float | None
    """The category's score as judged; None where it has none."""
    alone: float | None
    """Its score without the prompt; None where there is no prompt, or no score."""
    by: str
    """The classifier, or the stage of a cascade, that was asked."""
    note: str = NOTE

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


@runtime_checkable
class HasStages(Protocol):
    """A classifier made of others, the cheapest that explains first."""

    def stages(self) -> Iterator[object]:
        """The stages."""
        ...


def explain(
    classifier: Classifier,
    image: "Image",
    prompt: str | None,
    taxonomy: Taxonomy,
    category: str,
    *,
    method: str | None = None,
) -> Explanation:
    """Which region of an image drove the score of a category.

    Of a cascade the student is asked, whatever stage decided: filters have no regions, and a judge costs too much.

    Args:
        classifier: what judged the image.
        image: RGB, as `judge.data.images.open_image` returns it.
        prompt: as it was judged with.
        taxonomy: as it was judged by.
        category: a name in the taxonomy.
        method: `attention` (students only; one more pass of the encoder) or `occlusion` (50 more images to score; 10
            for a classifier that is served or exported); None for attention where there is any.

    Raises:
        TaxonomyError: no such category.
        ConfigError: no such method, or attention of a classifier that has none to show.
    """
    import numpy as np

    place = taxonomy.index(category)
    if method not in (None, *METHODS):
        raise ConfigError(f"No way to explain {method!r}; use one of {', '.join(METHODS)}.")
    asked = _explained_stage(classifier)
    found = None if method == "occlusion" else _attention(asked, image, prompt, taxonomy, place)
    if found is None and method == "attention":
        raise ConfigError(f"{asked.name} is no student, so it has no attention to show; use occlusion.")
    method = "occlusion" if found is None else "attention"
    if found is None:
        from .occlusion import occlusion_map

        cells = CELLS_OF_SERVED if isinstance(asked, ForwardOnlyClassifier) else CELLS
        found = occlusion_map(asked, image, prompt, taxonomy, place, cells)
    grid = found / found.max() if found.max() > 0 else np.zeros_like(found)
    prompts = [prompt, None] if prompt else [prompt]
    scores = asked.score([image] * len(prompts), prompts, taxonomy).category_probabilities[:, place]
    known = [None if math.isnan(score) else float(score) for score in scores]
    return Explanation(
        method=method,
        category=taxonomy.names[place],
        grid=grid.round(4).tolist(),
        box=_box(grid),
        score=known[0],
        alone=known[1] if prompt else None,
        by=asked.name,
    )


def _explained_stage(classifier: Classifier) -> Classifier:
    if isinstance(classifier, HasStages):
        first: Any = next(classifier.stages())
        return _explained_stage(first)
    return classifier


def _attention(
    classifier: Classifier, image: "Image", prompt: str | None, taxonomy: Taxonomy, place: int
) -> "NDArray[np.float64] | None":
    """The student's map; None of another classifier."""
    if not isinstance(classifier, HasEncoder | OwnsModules):  # then torch is not needed to know
        return None
    from judge.student.student import Student

    from .attention import attention_map

    if not isinstance(classifier, Student):
        return None
    return attention_map(classifier, image, prompt, taxonomy, place, CELLS)


def _box(grid: "NDArray[np.float64]") -> tuple[float, float, float, float] | None:
    """Around the cells of at least half the maximum that are connected to the strongest one."""
    from scipy.ndimage import label

    if not grid.any():
        return None
    regions, _ = label(grid >= 0.5)
    strongest = regions.flat[int(grid.argmax())]
    rows, columns = (regions == strongest).nonzero()
    cells = len(grid)
    return (
        float(columns.min() / cells),
        float(rows.min() / cells),
        float((columns.max() + 1) / cells),
        float((rows.max() + 1) / cells),
    )
