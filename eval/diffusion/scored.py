"""What detectors say of the pictures of a store, kept in the run's folder as they come."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from judge.diffusion.detector import Detector
from judge.diffusion.pairs import PairStore
from judge.diffusion.text_alone import PromptOnly
from judge.errors import CheckpointError
from judge.runs.files import write_atomically
from prompts.taxonomy import Taxonomy

Floats = NDArray[np.float64]
Progress = Callable[[int], None]


def score_rows(
    detector: Detector,
    store: PairStore,
    rows: Sequence[int] | NDArray[np.int64],
    step: int,
    taxonomy: Taxonomy,
    *,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Floats:
    """Probabilities (R, K) of each category in R pictures after a step; NaN where the detector did not judge.

    Who reads the prompt alone is asked once a prompt: otherwise rounding, which depends on a picture's place in its
    batch, would tell pictures of equal prompts apart. `progress` is called with the number of pictures done.
    """
    rows = np.asarray(rows, np.int64)
    places = np.arange(len(rows))
    if isinstance(detector, PromptOnly) and len(rows):
        prompts = np.array([store.pairs[row].prompt for row in rows])
        _, first, places = np.unique(prompts, return_index=True, return_inverse=True)
        rows = rows[first]
    parts = [np.empty((0, len(taxonomy)))]
    for start in range(0, len(rows), batch_size):
        some = rows[start : start + batch_size]
        parts.append(detector.score(store.look(some, step), taxonomy).category_probabilities)
        if progress is not None:
            progress(start + len(some))
    scores: Floats = np.concatenate(parts)[places.ravel()]
    return scores


class ScoreFiles:
    """Scores of R pictures by name and step, as NPY files; what is there already is read and not made again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def once(self, name: str, shape: tuple[int, int], make: Callable[[], Floats]) -> Floats:
        """The (R, K) scores of this name: those of the file, or new ones, which are written.

        Raises:
            CheckpointError: the file is damaged, or of another number of pictures or categories.
        """
        path = self.folder / f"{name}.npy"
        if path.exists():
            try:
                found: Floats = np.load(path, allow_pickle=False)
                if found.shape != shape or found.dtype != np.float64:
                    raise ValueError(f"it holds {found.dtype} of shape {found.shape}, not float64 of {shape}")
            except (OSError, ValueError, EOFError) as error:
                raise CheckpointError(
                    f"{path} cannot be read ({error}); delete it, and it is made again."
                ) from None
            return found
        made = make()
        self.folder.mkdir(parents=True, exist_ok=True)
        saved = BytesIO()
        np.save(saved, made, allow_pickle=False)
        write_atomically(path, saved.getvalue())
        return made


def score_all(
    detectors: Mapping[str, Detector],
    store: PairStore,
    rows: NDArray[np.int64],
    at: Sequence[int],
    files: ScoreFiles,
    show: Callable[[str, int], AbstractContextManager[Progress]],
) -> dict[str, dict[int, Floats | None]]:
    """Who -> step -> (R, K) scores of R pictures; None for a step that a detector is not offered for.

    Args:
        detectors: by name.
        store: of the pictures.
        rows: R of them.
        at: steps.
        files: where scores are kept.
        show: makes a progress bar of a name and a number of pictures.
    """
    scores: dict[str, dict[int, Floats | None]] = {who: dict.fromkeys(at) for who in detectors}
    for who, detector in detectors.items():
        low, high = detector.log_snrs
        for step in (step for step in at if low <= store.log_snrs[step] <= high):
            with show(f"{who}, step {step}", len(rows)) as progress:
                make = partial(score_rows, detector, store, rows, step, store.taxonomy, progress=progress)
                scores[who][step] = files.once(f"{who}-{step}", (len(rows), len(store.taxonomy)), make)
    return scores


def joined(
    scores: Sequence[Floats], labels: Floats, groups: Sequence[object], *, threshold: float = 0.5
) -> Floats:
    """Several scores of the same cells (N, K) as one, by logistic regression on their logits.

    A baseline, such as text and decoded picture together. The regression has a weight for each and one number more for
    all categories, and is fitted on half of the prompts for the other half, both ways. Cells that any of the scores
    lacks stay NaN.

    Args:
        scores: (N, K) each, in [0, 1], NaN where not judged.
        labels: (N, K) in [0, 1], NaN where unknown.
        groups: N prompts.
        threshold: label from which a category counts as violated.
    """
    from sklearn.linear_model import LogisticRegression

    logits = np.stack([_logit(score) for score in scores], axis=-1)  # (N, K, S)
    judged = ~np.isnan(logits).any(axis=-1)
    _, number = np.unique(np.asarray(list(map(str, groups)), dtype=np.str_), return_inverse=True)
    half = np.repeat((number.ravel() % 2)[:, None], logits.shape[1], axis=1)
    found = np.full(judged.shape, np.nan)
    for side in (0, 1):
        learn, tell = judged & (half != side) & ~np.isnan(labels), judged & (half == side)
        truth = labels[learn] >= threshold
        if tell.any() and truth.any() and not truth.all():
            model = LogisticRegression(C=10.0).fit(logits[learn], truth)
            found[tell] = model.predict_proba(logits[tell])[:, 1]
    return found


def _logit(probability: Floats) -> Floats:
    bounded = np.clip(probability, 1e-4, 1 - 1e-4)
    found: Floats = np.log(bounded) - np.log1p(-bounded)
    return found
