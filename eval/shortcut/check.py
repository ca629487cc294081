"""Does the text of training rows reveal their label? A strong text-only classifier must stay at chance.

The published training code of PerspectiveVision writes its flipped negatives without definitions, so a model can
recognise them by format and ignore the image. Here three classifiers get the same text as the model, without the image:
logistic regression on words, characters of the prompt and (prompt word, policy line) pairs; logistic regression on
n-grams of characters of names and prompts; and gradient-boosted trees on frequent words and explicit features (of form,
of meaning, of how texts were rewritten). The best of them counts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import MaxAbsScaler, normalize

from eval.metrics.arrays import MetricError
from prompts.template import render

from .features import explicit_features, frequent_words, pair_incidence, row_features, text_of
from .image_facts import image_facts_auc

if TYPE_CHECKING:
    from prompts.flip import Row

FOLDS = 3
LEAST_ROWS = 2 * 10 * FOLDS**2
"""Rows to train and test on, half of them unsafe."""
COMMON = 0.05
"""Rows with a value that more than this share of rows has (no prompt, one fixed policy) are split by row."""
MOST_ROWS = 4000
"""More rows are subsampled to this many, by whole groups; the interval reflects that."""
TOLERANCE = 0.03
"""Largest distance of the AUC from 0.5 that still counts as chance."""
RESAMPLES = 200
"""Bootstrap samples for the interval."""

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class ShortcutResult:
    """How well text alone predicts the label of held-out rows."""

    auc: float
    """The largest of the classifiers' AUCs; 0.5 is chance."""
    interval: tuple[float, float]
    """95 %, by resampling groups."""
    by_model: dict[str, float]
    rows: int
    groups: int
    features: dict[str, float]
    """AUC of each explicit feature alone over all rows, the farthest from 0.5 first."""
    image_auc: float | None = None
    """AUC of facts of the image alone (`eval.shortcut.image_facts`), where rows were given and not texts."""

    @property
    def clean(self) -> bool:
        """Whether the AUC is chance within `TOLERANCE`."""
        return abs(self.auc - 0.5) <= TOLERANCE

    @property
    def metrics(self) -> dict[str, float | None]:
        """The two AUCs as a run's metrics name them."""
        return {"shortcut_auc": self.auc, "image_shortcut_auc": self.image_auc}

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {**vars(self), "interval": list(self.interval), "clean": self.clean}


def check_rows(
    rows: "Sequence[Row]",
    seed: int = 0,
    *,
    groups: Sequence[str] | None = None,
    template: str = "policy_first",
) -> ShortcutResult:
    """Run the check on drawn rows.

    Args:
        rows: training rows of `prompts.flip`.
        seed: of folds, trees and interval.
        groups: one name per row; rows of one name stay in the same fold. By default all rows under one policy, as
            `draw_groups` draws them. Pairs of `draw_pairs` that share a policy on either side belong in one group.
        template: how rows are rendered.
    """
    if groups is None:
        # Rows of a group share one taxonomy object, which is hashed once.
        hashes = {id(row.taxonomy): row.taxonomy.hash for row in rows}
        groups = [hashes[id(row.taxonomy)] for row in rows]
    found = shortcut_auc(
        rows_to_text(rows, template),
        [row.unsafe for row in rows],
        groups,
        seed,
        prompts=[row.prompt for row in rows],
        features=row_features(rows),
    )
    return replace(found, image_auc=image_facts_auc(rows, seed))


def rows_to_text(rows: "Sequence[Row]", template: str = "policy_first") -> list[str]:
    """The text of each row as the model gets it."""
    return [text_of(render(row.taxonomy, row.prompt, template=template, focus=row.focus)) for row in rows]


def shortcut_auc(
    texts: Sequence[str],
    labels: Sequence[bool],
    groups: Sequence[str],
    seed: int = 0,
    *,
    prompts: Sequence[str | None] | None = None,
    features: Mapping[str, ArrayLike] | None = None,
) -> ShortcutResult:
    """Train text-only classifiers and test them on rows that share neither group nor prompt with the training rows.

    The rows of one policy are balanced. If some are in training and others in the test, a classifier that memorises
    the policy predicts the *opposite* of the test label: its AUC falls below 0.5 and may hide a real shortcut. The
    two rows of a flip pair have the same effect through their common prompt. So groups and prompts are split into
    three folds each, and a row is tested by a classifier trained on neither its group's nor its prompt's fold. The
    AUCs of all nine blocks are averaged, weighted by number of pairs. Values that many rows have (no prompt, one
    fixed policy) are split by row: what is learned of so common a value is no memorised row.

    Args:
        texts: N rendered texts.
        labels: (N,) True for unsafe.
        groups: N names of policy texts.
        seed: of the folds, the trees and the interval.
        prompts: N generating prompts, if there are any.
        features: further explicit features by name, (N,) each.

    Raises:
        MetricError: arguments of different length, or too few rows to train and test on.
    """
    unsafe = np.asarray(labels, dtype=np.bool_)
    given = {name: np.asarray(column, dtype=np.float64) for name, column in (features or {}).items()}
    sizes = {len(texts), len(groups), len(unsafe if prompts is None else prompts), *map(len, given.values())}
    if sizes != {len(unsafe)}:
        raise MetricError(
            f"{len(unsafe)} labels, but columns of {sorted(sizes)} rows; give one entry per row"
        )
    if min(unsafe.sum(), (~unsafe).sum()) < LEAST_ROWS // 2:
        raise MetricError(
            f"{int(unsafe.sum())} unsafe and {int((~unsafe).sum())} safe rows; "
            f"the shortcut check needs {10 * FOLDS**2} of each, and a few thousand for a precise AUC"
        )
    rng = np.random.default_rng(seed)
    group = np.unique(np.asarray(groups, dtype=np.str_), return_inverse=True)[1]
    kept = _subsample(group, rng)  # (M,) indices
    prompt = ["" if prompts is None else prompts[row] or "" for row in kept]
    explicit = explicit_features([texts[row] for row in kept], prompt)
    explicit |= {name: column[kept] for name, column in given.items()}
    blocks = list(_blocks(group[kept], np.unique(prompt, return_inverse=True)[1], rng))
    unsafe, group = unsafe[kept], group[kept]
    scores = _cross_scores([texts[row] for row in kept], prompt, explicit, unsafe, blocks, seed)
    tests = [test for _, test in blocks]
    by_model = {name: _auc(unsafe, score, tests) for name, score in scores.items()}
    # The larger AUC, not the one farther from 0.5: below it, nothing usable was learned.
    best = max(by_model, key=lambda name: by_model[name])
    single = {name: _auc(unsafe, column, [np.arange(len(unsafe))]) for name, column in explicit.items()}
    return ShortcutResult(
        auc=by_model[best],
        interval=_interval(unsafe, scores[best], tests, group, rng),
        by_model=by_model,
        rows=len(unsafe),
        groups=len(np.unique(group)),
        features=dict(sorted(single.items(), key=lambda entry: -abs(entry[1] - 0.5))),
    )


def _cross_scores(
    texts: Sequence[str],
    prompts: Sequence[str],
    explicit: Mapping[str, Floats],
    unsafe: NDArray[np.bool_],
    blocks: Sequence[tuple[Integers, Integers]],
    seed: int,
) -> dict[str, Floats]:
    """(N,) scores of each classifier, cross-validated: each row is scored by the model not trained on its block."""
    dense = np.column_stack(list(explicit.values()))  # (N, F)
    lines, incidence = _lines(texts)
    # Counts are kept unnormalised, as the lines of a row are summed before.
    words = HashingVectorizer(ngram_range=(1, 2), n_features=2**16, alternate_sign=False, norm=None)
    characters = HashingVectorizer(analyzer="char_wb", ngram_range=(3, 4), n_features=2**14, norm="l2")
    # Sparse and wide for the linear model, dense and narrow for the trees, which cannot take sparse input.
    wide = sparse.hstack(
        [
            normalize(incidence @ words.transform(lines)),
            characters.transform(prompts),
            normalize(pair_incidence(prompts, lines, incidence)),
            MaxAbsScaler().fit_transform(dense),
        ],
        format="csr",
    )
    # Of policies only the names, up to the colon: of whole definitions there would be thousands in each row.
    grams = HashingVectorizer(analyzer="char_wb", ngram_range=(2, 4), n_features=2**14, norm=None)
    heads = [line.split(":")[0][:80] for line in lines]
    spelled = sparse.hstack(
        [normalize(incidence @ grams.transform(heads)), normalize(grams.transform(prompts))], format="csr"
    )
    narrow = np.column_stack([dense, frequent_words(lines, incidence)])
    names = ("logistic_regression", "character_ngrams", "boosted_trees")
    scores = {name: np.zeros(len(texts)) for name in names}
    for train, test in blocks:
        # The scores of such a block stay 0: all ties, an AUC of 0.5.
        if not len(test) or len(np.unique(unsafe[train])) < 2:
            continue
        # Both are deterministic: liblinear solves the primal problem, and the trees have a seed.
        for name, sparse_features in (("logistic_regression", wide), ("character_ngrams", spelled)):
            linear = LogisticRegression(solver="liblinear", C=1.0, tol=0.01, max_iter=1000)
            linear.fit(sparse_features[train], unsafe[train])
            # Any monotone score will do for an AUC.
            scores[name][test] = linear.decision_function(sparse_features[test])
        trees = HistGradientBoostingClassifier(
            max_iter=60, max_leaf_nodes=15, early_stopping=False, random_state=seed
        ).fit(narrow[train], unsafe[train])
        scores["boosted_trees"][test] = trees.decision_function(narrow[test])
    return scores


def _lines(texts: Sequence[str]) -> tuple[list[str], sparse.csr_matrix]:
    """The L distinct lines of all texts, and counts (N, L) of each line in each row.

    Rows of a group repeat their policy, so lines are vectorised once and summed by row.
    """
    index: dict[str, int] = {}
    holds = [
        (row, index.setdefault(line, len(index)))
        for row, text in enumerate(texts)
        for line in text.split("\n")
    ]
    row, column = np.array(holds, dtype=np.int64).T
    shape = (len(texts), len(index))
    return list(index), sparse.csr_matrix((np.ones(len(row)), (row, column)), shape=shape)


def _subsample(group: Integers, rng: np.random.Generator) -> Integers:
    """(M,) indices of all rows of randomly chosen groups, M <= `MOST_ROWS`.

    Where a few large groups hold most rows, single rows are chosen.
    """
    if len(group) <= MOST_ROWS:
        return np.arange(len(group))
    sizes = np.bincount(group)
    order = rng.permutation(len(sizes))
    chosen = order[np.cumsum(sizes[order]) <= MOST_ROWS]
    kept = np.flatnonzero(np.isin(group, chosen))
    return kept if len(kept) > MOST_ROWS // 2 else np.sort(rng.permutation(len(group))[:MOST_ROWS])


def _folds(column: Integers, rng: np.random.Generator) -> Integers:
    """(N,) fold of each row; rows of equal value share a fold, except for common values."""
    rows = np.bincount(column)
    # Folds of nearly equal numbers of values, in random order.
    folds = rng.permutation(np.arange(len(rows)) % FOLDS)[column]
    return np.where(rows[column] > COMMON * len(column), rng.integers(0, FOLDS, len(column)), folds)


def _blocks(
    group: Integers, prompt: Integers, rng: np.random.Generator
) -> Iterator[tuple[Integers, Integers]]:
    """Indices of training and test rows, for each pair of a fold of groups and a fold of prompts."""
    group_fold = _folds(group, rng)
    if prompt.max() == 0:  # no prompts: folds of groups only
        for one in range(FOLDS):
            yield np.flatnonzero(group_fold != one), np.flatnonzero(group_fold == one)
        return
    prompt_fold = _folds(prompt, rng)
    for one in range(FOLDS):
        for other in range(FOLDS):
            train = (group_fold != one) & (prompt_fold != other)
            yield np.flatnonzero(train), np.flatnonzero((group_fold == one) & (prompt_fold == other))


def _auc(
    unsafe: NDArray[np.bool_],
    score: Floats,
    tests: Sequence[Integers],
    weight: NDArray[np.float64 | np.int64] | None = None,
) -> float:
    """AUC over the pairs within each block, as the models of two blocks do not share a scale.

    Args:
        unsafe: (N,) labels.
        score: (N,) scores.
        tests: indices of the rows of each block.
        weight: (N,) weight of each row; a row drawn twice counts twice.
    """
    weight = np.ones(len(unsafe)) if weight is None else weight
    wins, pairs = 0.0, 0.0
    for test in tests:
        # Weight of either class at each distinct score. scikit-learn's AUC is too slow for hundreds of resamples.
        rank = np.unique(score[test], return_inverse=True)[1]
        positive = np.bincount(rank, weights=weight[test] * unsafe[test])
        negative = np.bincount(rank, weights=weight[test] * ~unsafe[test])
        # Each positive wins against all negatives of lower score, and half against those of its own.
        wins += float(np.sum(positive * (np.cumsum(negative) - negative / 2)))
        pairs += float(positive.sum() * negative.sum())
    return wins / pairs if pairs else float("nan")


def _interval(
    unsafe: NDArray[np.bool_],
    score: Floats,
    tests: Sequence[Integers],
    group: Integers,
    rng: np.random.Generator,
) -> tuple[float, float]:
    """95 % percentile interval of the AUC by bootstrap over groups, as rows of one group are not independent."""
    # Numbered without gaps, as subsampling left some groups out.
    present = np.unique(group, return_inverse=True)[1]
    number = int(present.max()) + 1
    draws = [
        _auc(unsafe, score, tests, np.bincount(rng.integers(0, number, number), minlength=number)[present])
        for _ in range(RESAMPLES)
    ]
    # A resample without one of the classes has no AUC (NaN).
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return float(low), float(high)
