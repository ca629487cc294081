"""Thresholds of single categories, fitted to a user's own rows, and the file that holds them.

A threshold is fitted for one of two targets: the best F1 on the rows, or a promised miss rate by conformal risk control
(`judge.calibration.conformal`; the promise is about the unsafe rows of that category). The file is YAML, and may be
edited:

    judge: cascade
    target: best F1
    thresholds:
      three: {threshold: 0.31, definition: 52f1c0f2d3b09f8a, unsafe: 80, safe: 400}

`definition` ties a threshold to the wording it was fitted for (`judge.calibration.envelope.category_hash`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import yaml
from numpy.typing import ArrayLike

from judge.errors import ConfigError
from judge.runs.files import write_atomically
from judge.runs.folder import THRESHOLDS
from prompts.taxonomy import Taxonomy

from .conformal import conformal_threshold, split_by_label
from .envelope import category_hash

MIN_ROWS = 20
"""Fewest unsafe rows, and fewest safe rows, from which a category's threshold is fitted."""
SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class FittedThreshold:
    """The threshold of one category, and how it does on the rows it was fitted to."""

    threshold: float
    """In [0, 1]; a score from it on is a violation."""
    definition: str
    """`category_hash` of the category it was fitted for."""
    unsafe: int
    """Unsafe rows it was fitted to."""
    safe: int
    """Safe rows it was fitted to."""
    recall: float
    """Share of the unsafe rows from the threshold on."""
    false_alarm_rate: float
    """Share of the safe rows from the threshold on."""


@dataclass(frozen=True)
class Thresholds:
    """Thresholds by category name."""

    judge: str
    """Name of the classifier they were fitted for."""
    target: str
    """What they were fitted for, in words."""
    thresholds: Mapping[str, FittedThreshold]

    def for_taxonomy(self, taxonomy: Taxonomy) -> dict[str, float]:
        """Thresholds of the categories of a taxonomy; those without one keep 0.5.

        Raises:
            ConfigError: none of them has one, or one was fitted for another definition.
        """
        found = {}
        for category in taxonomy:
            fitted = self.thresholds.get(category.name)
            if fitted is not None and fitted.definition != category_hash(category):
                raise ConfigError(
                    f"The threshold of {category.name!r} was fitted for another definition or other examples; fit it "
                    "again with `arbiter calibrate`, or give it by hand: --threshold NAME=T."
                )
            if fitted is not None:
                found[category.name] = fitted.threshold
        if not found:
            raise ConfigError(
                f"No threshold for any of {', '.join(taxonomy.names)}; fitted were {', '.join(self.thresholds)}."
            )
        return found

    def for_known(self, taxonomy: Taxonomy) -> dict[str, float]:
        """Thresholds of the categories that they were fitted for, word for word; the others are left to 0.5."""
        fitted = {category: self.thresholds.get(category.name) for category in taxonomy}
        return {
            category.name: one.threshold
            for category, one in fitted.items()
            if one is not None and one.definition == category_hash(category)
        }

    def save(self, path: Path) -> None:
        """Write the file that `load_thresholds` reads; JSON where the name ends so."""
        data = asdict(self)
        data["thresholds"] = {name: asdict(fitted) for name, fitted in self.thresholds.items()}
        if path.suffix == ".json":
            text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
        else:
            text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=110)
        write_atomically(path, text)


@runtime_checkable
class HasThresholds(Protocol):
    """A classifier that may have thresholds of its own."""

    thresholds: Thresholds | None


def fit_thresholds(
    taxonomy: Taxonomy,
    truth: ArrayLike,
    scores: ArrayLike,
    *,
    judge: str,
    miss_rate: float | None = None,
    min_rows: int = MIN_ROWS,
) -> Thresholds:
    """One threshold for each of K categories from N rows.

    Args:
        taxonomy: of the K categories.
        truth: (N, K) 1 where violated, 0 where not, NaN where not labelled.
        scores: (N, K) `Scores.categories`, NaN where not judged; such rows are left out.
        judge: the classifier's name, for the file.
        miss_rate: the promised share, 0 to 1, of each category's unsafe rows below its threshold; None: best F1.
        min_rows: unsafe and safe rows, each, that a category needs.

    Raises:
        ConfigError: too few rows of some categories, or for the promise; the message names them and the numbers.
    """
    labels, found = np.asarray(truth, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    sides = [split_by_label(labels[:, place], found[:, place]) for place in range(len(taxonomy))]
    few = [
        f"{name} ({len(unsafe)} unsafe, {len(safe)} safe)"
        for name, (unsafe, safe) in zip(taxonomy.names, sides, strict=True)
        if min(len(unsafe), len(safe)) < min_rows
    ]
    if few:
        raise ConfigError(
            f"Too few labelled and judged rows, of at least {min_rows} unsafe and {min_rows} safe ones: "
            f"{', '.join(few)}. Add rows, or leave these categories out with --categories: they keep 0.5."
        )
    fitted = {}
    for place, (category, (unsafe, safe)) in enumerate(zip(taxonomy, sides, strict=True)):
        if miss_rate is None:
            threshold = best_f1(unsafe, safe)
        else:
            try:
                threshold = conformal_threshold(labels[:, place], found[:, place], miss_rate=miss_rate)
            except ConfigError as error:
                raise ConfigError(f"{category.name}: {error}") from None
        fitted[category.name] = FittedThreshold(
            threshold,
            category_hash(category),
            len(unsafe),
            len(safe),
            float((unsafe >= threshold).mean()),
            float((safe >= threshold).mean()),
        )
    target = "best F1" if miss_rate is None else f"at most {miss_rate:g} of the unsafe rows missed"
    return Thresholds(judge, target, fitted)


def best_f1(unsafe: Sequence[float] | np.ndarray, safe: Sequence[float] | np.ndarray) -> float:
    """The threshold of the best F1 on the scores (U,) of unsafe and (S,) of safe rows; the lowest of several.

    It is the midpoint between the lowest score that is flagged and the next lower one, so that new rows near either
    are classified like it.
    """
    unsafe, safe = np.sort(unsafe), np.sort(safe)
    # F1 changes only at a score that occurs, so these are all the thresholds there are to try.
    cuts = np.unique(np.concatenate([unsafe, safe]))
    # Rows from each cut on: both score lists are sorted.
    hits = len(unsafe) - np.searchsorted(unsafe, cuts)
    alarms = len(safe) - np.searchsorted(safe, cuts)
    best = int(np.argmax(2 * hits / (hits + alarms + len(unsafe))))
    # argmax gives the first, so the lowest, of equally good cuts.
    lowest, below = float(cuts[best]), float(cuts[best - 1]) if best else 0.0
    middle = (lowest + below) / 2
    return middle if middle > below or not best else lowest  # neighbours among floats have no middle


def run_thresholds(run: Path) -> Thresholds | None:
    """Thresholds that were written into a run's folder; None where there are none.

    Raises:
        ConfigError: the file holds something else.
    """
    return load_thresholds(run / THRESHOLDS) if (run / THRESHOLDS).is_file() else None


def load_thresholds(path: Path) -> Thresholds:
    """Read what `Thresholds.save` wrote.

    Raises:
        ConfigError: the file is missing, or holds something else.
    """
    try:
        data: Any = yaml.safe_load(path.read_text(encoding="utf-8"))  # of which JSON is a part
        fitted = {str(name): FittedThreshold(**entry) for name, entry in data["thresholds"].items()}
        for name, entry in fitted.items():
            value = entry.threshold
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise ValueError(f"the threshold of {name!r} is {value!r}, no number from 0 to 1")
        return Thresholds(str(data["judge"]), str(data["target"]), fitted)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"{path} holds no thresholds ({first}); `arbiter calibrate` writes such a file."
        ) from None
