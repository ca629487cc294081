"""Do facts of an image alone reveal a row's label? How many categories it violates, which ones, where it comes from.

They must not say much: under a user's policy the same image is safe or unsafe. Some will always remain, as an image
that violates nothing is safe under any policy without a negation.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score

if TYPE_CHECKING:
    from prompts.flip import Row

FOLDS = 3


def image_facts(rows: "Sequence[Row]") -> dict[str, NDArray[np.float64]]:
    """Features of the rows' images, (N,) each."""
    keys = sorted({key for row in rows for key in row.example.violates | row.example.unknown})
    sources = sorted({row.example.source for row in rows})
    facts = {
        "violated": [len(row.example.violates) for row in rows],
        "unknown": [len(row.example.unknown) for row in rows],
        **{f"violates {key}": [key in row.example.violates for row in rows] for key in keys},
        **{f"from {source}": [row.example.source == source for row in rows] for source in sources},
    }
    return {name: np.array(column, dtype=np.float64) for name, column in facts.items()}


def image_facts_auc(rows: "Sequence[Row]", seed: int = 0) -> float:
    """AUC of boosted trees on these facts, on rows of policies that they did not see; 0.5 is chance.

    Where the number of violated categories alone does better, that counts.
    """
    columns = image_facts(rows)
    facts, unsafe = np.column_stack(list(columns.values())), np.array([row.unsafe for row in rows])
    # Rows of a group share one taxonomy object; numbered as they come, as addresses differ from run to run.
    numbers: dict[int, int] = {}
    group = [numbers.setdefault(id(row.taxonomy), len(numbers)) for row in rows]
    fold = np.random.default_rng(seed).permutation(len(numbers))[group] % FOLDS
    scores = np.zeros(len(rows))
    for one in range(FOLDS):
        train, test = fold != one, fold == one
        if test.any() and len(np.unique(unsafe[train])) == 2:
            trees = HistGradientBoostingClassifier(
                max_iter=30, max_leaf_nodes=15, early_stopping=False, random_state=seed
            ).fit(facts[train], unsafe[train])
            scores[test] = trees.predict_proba(facts[test])[:, 1]
    return float(max(roc_auc_score(unsafe, scores), roc_auc_score(unsafe, columns["violated"])))
