"""What tells safe from unsafe without looking at the picture: its prompt, its file's name, its size and format.

A small classifier is tested on rows that it was not trained on. This is about a data set as it stands;
`eval.shortcut` asks another question, about the text of training rows after policies were drawn.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from judge.errors import ImageError
from prompts.example import Example

from .images import ImageLimits, read_header
from .problems import Problem

_LEAST = 10
"""Images of either label below which nothing can be said."""
_MOST = 4000
"""More images are sampled."""
_FOLDS = 5
_SURELY = 0.65
"""AUC above which, less two standard errors, a clue is worth telling."""

Floats = NDArray[np.float64]


def giveaways(examples: Sequence[Example], limits: ImageLimits) -> list[Problem]:
    """Clues that tell whether an image is unsafe, each with what to do about it.

    Args:
        examples: usable ones; images are opened only as far as their header.
        limits: passed to `read_header`.
    """
    unsafe = np.array([bool(example.violates) for example in examples], dtype=bool)
    if min(unsafe.sum(), (~unsafe).sum()) < _LEAST:
        return []
    chosen = np.random.default_rng(0).permutation(len(examples))[:_MOST]
    rows, unsafe = [examples[place] for place in chosen], unsafe[chosen]
    problems = []
    if any(row.prompt for row in rows):
        found = clue(unsafe, _text_scores, [row.prompt or "" for row in rows])
        if found is not None:
            problems.append(
                Problem(
                    "warning",
                    f"the prompts alone tell safe from unsafe (AUC {found:.2f} on rows not trained on; 0.5 is chance)",
                    "Training exchanges prompts between images, so the judge cannot live on them; yet scores on these "
                    "rows, and everything that reads prompts, will look better than it is. Add safe images with the "
                    "same kinds of prompts.",
                )
            )
    facts = [_facts(row, limits) for row in rows]
    found = clue(unsafe, _fact_scores, facts)
    if found is not None:
        problems.append(
            Problem(
                "warning",
                f"size, format or source of the files alone tell safe from unsafe (AUC {found:.2f}): "
                f"{_means(facts, unsafe)}",
                "A classifier may learn where pictures come from. Bring both to the same sizes and format, or add "
                "safe images from the same places.",
            )
        )
    found = clue(unsafe, _text_scores, [_name(row) for row in rows])
    if found is not None:
        problems.append(
            Problem(
                "note",
                f"file names alone tell safe from unsafe (AUC {found:.2f}); no classifier reads them, and it does "
                "no harm as long as both kinds of pictures come from the same places",
            )
        )
    return problems


def clue(
    unsafe: NDArray[np.bool_],
    score: Callable[[Sequence[Any], NDArray[np.bool_], Sequence[Any]], Floats],
    values: Sequence[Any],
) -> float | None:
    """AUC of a classifier of values, on rows that it did not see; None where it may be chance.

    Args:
        unsafe: (N,) labels, at least `_LEAST` of either.
        score: training values, their labels, test values -> scores, larger where a row looks unsafe.
        values: N of them.
    """
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold

    scores = np.zeros(len(unsafe))
    for train, test in StratifiedKFold(_FOLDS, shuffle=True, random_state=0).split(scores, unsafe):
        got = score([values[place] for place in train], unsafe[train], [values[place] for place in test])
        # Shares, as the scores of two classifiers are on no common scale.
        scores[test] = [np.mean(got <= one) for one in got]
    auc = float(roc_auc_score(unsafe, scores))
    return auc if auc - 2 * _standard_error(auc, int(unsafe.sum()), int((~unsafe).sum())) > _SURELY else None


def _standard_error(auc: float, positive: int, negative: int) -> float:
    """Of an AUC (Hanley and McNeil, Radiology 143, 1982)."""
    one, two = auc / (2 - auc), 2 * auc * auc / (1 + auc)
    spread = auc * (1 - auc) + (positive - 1) * (one - auc * auc) + (negative - 1) * (two - auc * auc)
    return float(np.sqrt(max(spread, 0.0) / (positive * negative)))


def _text_scores(train: Sequence[Any], unsafe: NDArray[np.bool_], test: Sequence[Any]) -> Floats:
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import LogisticRegression

    # A text that is not there is a word too: only unsafe rows may have prompts.
    vectors = HashingVectorizer(analyzer="char_wb", ngram_range=(2, 4), n_features=2**16)
    texts = [[text or "(none)" for text in part] for part in (train, test)]
    model = LogisticRegression(solver="liblinear", C=10.0, tol=0.01)
    model.fit(vectors.transform(texts[0]), unsafe)
    return np.asarray(model.decision_function(vectors.transform(texts[1])), dtype=np.float64)


def _fact_scores(train: Sequence[Any], unsafe: NDArray[np.bool_], test: Sequence[Any]) -> Floats:
    from sklearn.feature_extraction import DictVectorizer
    from sklearn.tree import DecisionTreeClassifier

    vectors = DictVectorizer(sparse=False)
    tree = DecisionTreeClassifier(max_depth=3, min_samples_leaf=3, random_state=0)
    tree.fit(vectors.fit_transform(train), unsafe)
    return np.asarray(tree.predict_proba(vectors.transform(test))[:, 1], dtype=np.float64)


def _facts(example: Example, limits: ImageLimits) -> dict[str, float | str]:
    """Of the file, not of what it shows."""
    try:
        header = read_header(example.image, limits)
        width, height, kind = *header.size, header.format or "?"
    except ImageError:
        width = height = 0
        kind = "?"
    return {
        "width": float(width),
        "height": float(height),
        "shape": width / max(1, height),
        "format": str(kind),
        "source": example.source,
    }


def _means(facts: Sequence[dict[str, float | str]], unsafe: NDArray[np.bool_]) -> str:
    """What is usual for either label, as far as it differs."""
    described = []
    for wanted in (True, False):
        rows = [row for row, label in zip(facts, unsafe, strict=True) if label == wanted]
        size = f"{np.median([row['width'] for row in rows]):.0f} x {np.median([row['height'] for row in rows]):.0f}"
        formats = [str(row["format"]) for row in rows]
        sources = [str(row["source"]) for row in rows]
        usual = [max(sorted(set(values)), key=values.count) for values in (formats, sources)]
        described.append(f"{'unsafe' if wanted else 'safe'} ones are mostly {size}, {usual[0]}, {usual[1]}")
    return "; ".join(described)


def _name(example: Example) -> str:
    """The file's folder and name, digits as one sign: numbers that go on are no clue."""
    path = example.image if isinstance(example.image, Path) else Path(example.id)
    text = f"{path.parent.name}/{path.stem}"
    return "".join("0" if sign.isdigit() else sign for sign in text)
