"""Whether a detector finds categories that its training never showed, by their words alone."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from judge.errors import ConfigError
from prompts.taxonomy import Taxonomy

from .areas import ALL, by_category
from .comparison import Finished, areas_of


def held_out_columns(taxonomy: Taxonomy, keys: Sequence[str]) -> list[int]:
    """Columns of the categories with these keys.

    Raises:
        ConfigError: a key that the taxonomy lacks, or nothing left to train on.
    """
    unknown = [key for key in keys if key not in taxonomy.keys]
    if unknown:
        raise ConfigError(
            f"held_out names {', '.join(map(repr, unknown))}, which {taxonomy.name!r} lacks; it has "
            f"{', '.join(taxonomy.keys)}."
        )
    columns = [taxonomy.keys.index(key) for key in dict.fromkeys(keys)]
    if columns and len(columns) == len(taxonomy):
        raise ConfigError("held_out names every category, so that none is left to train on; leave some out.")
    return columns


def measure_held_out(
    finished: Finished, without: ArrayLike, full: ArrayLike, columns: Sequence[int]
) -> dict[str, Any]:
    """Areas of two detectors, one trained without some categories and one with all, on those and on the others.

    `held_out` and `trained` are of the one trained without. A category may be hard for everybody, whether it is held
    out or not; `held_out_when_trained` is what the other detector makes of the same cells.

    Args:
        finished: N pictures, K categories.
        without: (N, K) scores of the detector that was not shown `columns`.
        full: (N, K) scores of the one that was shown all.
        columns: of the categories held out.

    Returns:
        Records of `Area`, and `categories`: the areas of each category alone, by both.
    """
    truth, held = finished.labels, list(columns)
    others = [column for column in range(truth.shape[1]) if column not in set(held)]

    def area(scores: ArrayLike, chosen: list[int]) -> dict[str, Any]:
        part = np.asarray(scores, np.float64)[:, chosen]
        cells = replace(finished, labels=truth[:, chosen])
        return areas_of(cells, part)[ALL].to_dict()

    return {
        "held_out": area(without, held),
        "trained": area(without, others),
        "held_out_when_trained": area(full, held),
        "categories": {
            "without": by_category(truth, without, threshold=finished.threshold),
            "full": by_category(truth, full, threshold=finished.threshold),
        },
    }


def held_out_by_step(
    finished: Finished,
    without: Mapping[int, ArrayLike | None],
    full: Mapping[int, ArrayLike | None],
    columns: Sequence[int],
) -> dict[str, Any]:
    """`measure_held_out` of each step that both are offered for, as it stands in metrics.json.

    Returns:
        `held_out`: step -> what `measure_held_out` gives; `heldout_auc` and `trained_auc`: step -> number.
    """
    found = {
        str(step): measure_held_out(finished, scores, other, columns)
        for step, scores in without.items()
        if scores is not None and (other := full[step]) is not None
    }
    return {
        "held_out": found,
        "heldout_auc": {step: one["held_out"]["auc"] for step, one in found.items()},
        "trained_auc": {step: one["trained"]["auc"] for step, one in found.items()},
    }
