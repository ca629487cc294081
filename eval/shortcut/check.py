"""Can the label be read off the text alone? A strong text-only classifier on rendered rows must find nothing.

The published training code of PerspectiveVision wrote its flipped negatives without definitions, so a model
could tell them by format and never look at the image. Here two classifiers read what the model reads, without
the image: logistic regression on words, characters of the prompt and (prompt word, policy line) pairs, and
gradient-boosted trees on explicit features and frequent words. The better of the two is the answer.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse  # comes with scikit-learn
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import MaxAbsScaler, normalize

from eval.metrics.arrays import MetricError
from prompts.template import render

from .features import explicit_features, frequent_words, pair_incidence, row_features, text_of

if TYPE_CHECKING:
    from prompts.flip import Pair, Row

FOLDS = 3
COMMON = 0.05
"""A value that more than this share of rows has (no prompt, one fixed policy) is dealt by row."""
MOST_ROWS = 8000
"""More rows are thinned to this many, whole groups at a time; the interval says what that costs."""
TOLERANCE = 0.03
RESAMPLES = 200

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class ShortcutResult:
    """How well text alone predicts the label of held-out rows."""

    auc: float
    """The larger of the two classifiers' AUCs; 0.5 is chance."""
    interval: tuple[float, float]
    """95 %, by resampling groups."""
    by_model: dict[str, float]
    rows: int
    groups: int
    features: dict[str, float]
    """AUC of each explicit feature by itself, over all rows, the most telling first."""

    @property
    def clean(self) -> bool:
        """Whether the AUC is chance within `TOLERANCE`."""
        return abs(self.auc - 0.5) <= TOLERANCE

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
        rows: as `prompts.flip` draws them.
        seed: of the check itself.
        groups: what was drawn together, one name a row. By default rows with one policy text are a group,
            which is right for `draw_groups`; for `draw_pairs` take `pair_groups`.
        template: how rows are rendered.
    """
    if groups is None:
        hashes = {id(row.taxonomy): row.taxonomy.hash for row in rows}
        groups = [hashes[id(row.taxonomy)] for row in rows]
    return shortcut_auc(
        rows_to_text(rows, template),
        [row.unsafe for row in rows],
        groups,
        seed,
        prompts=[row.prompt for row in rows],
        features=row_features(rows),
    )


def pair_groups(pairs: "Sequence[Pair]") -> list[str]:
    """One group name a pair: pairs are drawn together when they share a policy text on either side.

    The two policies of a couple differ in one line, and all labels of one are reversed in the other. Split
    between training and test, such twins let a classifier look up what no new policy would tell it.
    """
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while leader.setdefault(name, name) != name:
            name = leader[name]
        return name

    sides = [(pair.unsafe.taxonomy.hash, pair.safe.taxonomy.hash) for pair in pairs]
    for one, other in sides:
        leader[find(one)] = find(other)
    return [find(one) for one, _ in sides]


def rows_to_text(rows: "Sequence[Row]", template: str = "policy_first") -> list[str]:
    """All that a model reads of each row but the image."""
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
    """Train text-only classifiers on some rows and measure them on rows that share nothing with those.

    The split decides whether the number is honest. Rows of one policy are drawn to be balanced: some safe,
    some unsafe. Put some of them into training and the rest into the test, and a classifier that remembers
    the policy learns the *opposite* of the rest: its AUC falls below 0.5, and could hide a real shortcut that
    lifts it again. The two rows of a flip pair do the same through the prompt they share, in two groups. So
    both are kept apart: groups and prompts are dealt into three folds each, and a row is tested by a
    classifier that saw neither its group's nor its prompt's fold. All nine blocks are tested, and their AUCs
    averaged by number of pairs. Values that many rows have (no prompt, one fixed policy) are dealt by row:
    what is learned of so common a value is real, and must be seen in training to be found.

    Args:
        texts: N rendered texts.
        labels: N, True for unsafe.
        groups: N names of policy texts.
        seed: of the folds, the trees and the interval.
        prompts: N generating prompts, where there are any.
        features: explicit features by name, (N,) each, beside those read off the texts.

    Raises:
        MetricError: columns of different length, or too few rows to train and test on.
    """
    unsafe = np.asarray(labels, dtype=np.bool_)
    more = {name: np.asarray(column, dtype=np.float64) for name, column in (features or {}).items()}
    sizes = {len(texts), len(groups), len(unsafe if prompts is None else prompts), *map(len, more.values())}
    if sizes != {len(unsafe)}:
        raise MetricError(f"{len(unsafe)} labels, but columns of {sorted(sizes)} rows; give one entry a row")
    if min(unsafe.sum(), (~unsafe).sum()) < 10 * FOLDS**2:
        raise MetricError(
            f"{int(unsafe.sum())} unsafe and {int((~unsafe).sum())} safe rows; "
            f"the shortcut check needs {10 * FOLDS**2} of each, and a few thousand to be precise"
        )
    rng = np.random.default_rng(seed)
    group = np.unique(np.asarray(groups, dtype=np.str_), return_inverse=True)[1]
    kept = _thinned(group, rng)
    prompt = ["" if prompts is None else prompts[row] or "" for row in kept]
    explicit = explicit_features([texts[row] for row in kept], prompt)
    explicit |= {name: column[kept] for name, column in more.items()}
    blocks = list(_blocks(group[kept], np.unique(prompt, return_inverse=True)[1], rng))
    unsafe, group = unsafe[kept], group[kept]
    scores = _cross_scores([texts[row] for row in kept], prompt, explicit, unsafe, blocks, seed)
    tests = [test for _, test in blocks]
    by_model = {name: _auc(unsafe, score, tests) for name, score in scores.items()}
    best = max(by_model, key=lambda name: by_model[name])
    alone = {name: _auc(unsafe, column, [np.arange(len(unsafe))]) for name, column in explicit.items()}
    return ShortcutResult(
        auc=by_model[best],
        interval=_interval(unsafe, scores[best], tests, group, rng),
        by_model=by_model,
        rows=len(unsafe),
        groups=len(np.unique(group)),
        features=dict(sorted(alone.items(), key=lambda entry: -abs(entry[1] - 0.5))),
    )


def _cross_scores(
    texts: Sequence[str],
    prompts: Sequence[str],
    explicit: Mapping[str, Floats],
    unsafe: NDArray[np.bool_],
    blocks: Sequence[tuple[Integers, Integers]],
    seed: int,
) -> dict[str, Floats]:
    """Scores of each classifier for every row, by the model that did not train on its block."""
    dense = np.column_stack(list(explicit.values()))
    lines, incidence = _lines(texts)
    words = HashingVectorizer(ngram_range=(1, 2), n_features=2**16, alternate_sign=False, norm=None)
    characters = HashingVectorizer(analyzer="char_wb", ngram_range=(3, 4), n_features=2**14, norm="l2")
    wide = sparse.hstack(
        [
            normalize(incidence @ words.transform(lines)),
            characters.transform(prompts),
            normalize(pair_incidence(prompts, lines, incidence)),
            MaxAbsScaler().fit_transform(dense),
        ],
        format="csr",
    )
    narrow = np.column_stack([dense, frequent_words(lines, incidence)])
    scores = {"logistic_regression": np.zeros(len(texts)), "boosted_trees": np.zeros(len(texts))}
    for train, test in blocks:
        if not len(test) or len(np.unique(unsafe[train])) < 2:
            continue
        linear = LogisticRegression(solver="liblinear", C=1.0, max_iter=1000).fit(wide[train], unsafe[train])
        trees = HistGradientBoostingClassifier(
            max_iter=60, max_leaf_nodes=15, early_stopping=False, random_state=seed
        ).fit(narrow[train], unsafe[train])
        scores["logistic_regression"][test] = linear.decision_function(wide[test])
        scores["boosted_trees"][test] = trees.decision_function(narrow[test])
    return scores


def _lines(texts: Sequence[str]) -> tuple[list[str], sparse.csr_matrix]:
    """The distinct lines of all texts, and how often each row holds each: (N, lines).

    Rows of a group repeat their policy, so lines are vectorised once and summed.
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


def _thinned(group: Integers, rng: np.random.Generator) -> Integers:
    """Rows of randomly chosen whole groups, at most `MOST_ROWS` where groups are smaller than that."""
    if len(group) <= MOST_ROWS:
        return np.arange(len(group))
    sizes = np.bincount(group)
    order = rng.permutation(len(sizes))
    chosen = order[np.cumsum(sizes[order]) <= MOST_ROWS]
    kept = np.flatnonzero(np.isin(group, chosen))
    return kept if len(kept) > MOST_ROWS // 2 else np.sort(rng.permutation(len(group))[:MOST_ROWS])


def _folds(column: Integers, rng: np.random.Generator) -> Integers:
    """(N,) fold of each row: equal values share one, but for those that are common."""
    rows = np.bincount(column)
    folds = rng.permutation(np.arange(len(rows)) % FOLDS)[column]
    return np.where(rows[column] > COMMON * len(column), rng.integers(0, FOLDS, len(column)), folds)


def _blocks(
    group: Integers, prompt: Integers, rng: np.random.Generator
) -> Iterator[tuple[Integers, Integers]]:
    """Rows to train and to test on, for every pair of a fold of groups and a fold of prompts."""
    group_fold = _folds(group, rng)
    if prompt.max() == 0:
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
    """Mean over blocks of the AUC within the block (models of two blocks do not share a scale)."""
    weight = np.ones(len(unsafe)) if weight is None else weight
    wins, pairs = 0.0, 0.0
    for test in tests:
        place = np.unique(score[test], return_inverse=True)[1]
        positive = np.bincount(place, weights=weight[test] * unsafe[test])
        negative = np.bincount(place, weights=weight[test] * ~unsafe[test])
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
    """95 % interval of the AUC from resampled groups: rows of one group are not independent."""
    present = np.unique(group, return_inverse=True)[1]
    number = int(present.max()) + 1
    draws = [
        _auc(unsafe, score, tests, np.bincount(rng.integers(0, number, number), minlength=number)[present])
        for _ in range(RESAMPLES)
    ]
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return float(low), float(high)
