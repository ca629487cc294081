"""Clusters of near prompts, and splits that no cluster straddles.

Two prompts are joined if they are made of the same words (`sources`), if they are the same text but for case,
punctuation and hidden characters, if they share most of their telling words, or, where embeddings are given, if these
are close. A cluster is whatever a chain of such pairs joins; all seeds and variants of a prompt are in it.

How much a word tells is its inverse document frequency over *sources*: in a list of templates the template's words
stand in every source and tell nothing, so that fillings keep apart what only its template has in common.

Near pairs among N texts are found by locality-sensitive hashing (Indyk and Motwani 1998) in time and memory of
O(N log N): a weighted MinHash for words, whose chance of a collision is exactly the weighted Jaccard index, as a word
has the same weight in every text, and signs of random projections for embeddings. What collides is compared exactly,
so no pair is joined by chance; of pairs at the limit about one in two hundred is missed. A million prompts take one or
two minutes on one core.
"""

import hashlib
import re
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from judge.errors import ConfigError
from prompts.reading import clean

SIMILARITY = 0.6
"""Least weighted Jaccard index of the words of near prompts."""
COSINE = 0.95
"""Least cosine of the embeddings of near prompts."""
_BANDS, _ROWS = 40, 4
"""Weighted MinHash: P(collision) = 1 - (1 - s^4)^40, which is .996 at s = .6 and .28 at s = .3."""
_PLANE_BANDS, _PLANES = 24, 16
"""Random projections: P(collision) = 1 - (1 - (1 - angle / pi)^16)^24, which is .993 at a cosine of .95."""
_WINDOW = 16
"""Members of a bucket that each is compared with, those next in order; a bucket may hold a whole template."""
_AT_ONCE = 2**16
"""Pairs compared at a time."""
_LEAST_WEIGHT = 0.01
"""Of a word that stands in every source: it decides only between texts that have no other words."""

Floats = NDArray[np.float64]
Places = NDArray[np.int64]


def cluster_prompts(
    prompts: Sequence[str],
    sources: Sequence[Collection[Hashable]] | None = None,
    *,
    embeddings: NDArray[np.floating[Any]] | None = None,
    similarity: float = SIMILARITY,
    cosine: float = COSINE,
) -> list[int]:
    """The cluster of each prompt, as a number of 48 bits that does not depend on the order of prompts.

    Args:
        prompts: N texts; repeats are welcome.
        sources: what each was made of: the words that fill its template, taken together as one source, or the row that
            it is a variant of. Prompts that share a source are joined.
        embeddings: (N, D) of a text encoder, any length; None to compare words alone.
        similarity: least weighted Jaccard index of near prompts, in (0, 1].
        cosine: least cosine of near embeddings, in (0, 1].

    Raises:
        ConfigError: counts that differ, or a limit outside its range.
    """
    origins: Sequence[Collection[Hashable]] = [()] * len(prompts) if sources is None else sources
    _check(len(prompts), len(origins), embeddings, similarity, cosine)
    if not prompts:
        return []
    words = [_words(prompt) for prompt in prompts]
    texts = [" ".join(each) for each in words]
    # Sorted, so that the order of prompts changes nothing.
    distinct = sorted(set(texts))
    place_of = {text: place for place, text in enumerate(distinct)}
    places = np.array([place_of[text] for text in texts], dtype=np.int64)
    groups: dict[Hashable, int] = {}
    joined = [
        (place, groups.setdefault(origin, place))
        for place, each in zip(places.tolist(), origins, strict=True)
        for origin in each
    ]
    component = _components(len(distinct), np.array(joined, dtype=np.int64).reshape(-1, 2))
    component = _join_near(component, *_by_words(distinct, component, similarity))
    if embeddings is not None:
        first = np.unique(places, return_index=True)[1]
        component = _join_near(component, *_by_embeddings(np.asarray(embeddings)[first], cosine))
    # Named by its first text in sorted order, so that other prompts of the corpus mostly change nothing.
    _, firsts = np.unique(component, return_index=True)
    names = [_number(distinct[place]) for place in firsts.tolist()]
    return [names[number] for number in component[places].tolist()]


def split_clusters(clusters: Sequence[int], shares: Mapping[str, float], *, seed: int = 0) -> list[str]:
    """The split of each row, so that no cluster is in two of them.

    Clusters are put in an order that depends on `seed` and their names alone, and cut where the shares of rows say; so
    a split is off its share by at most one cluster, and none is empty. More rows may move clusters: a corpus is split
    once, as a whole.

    Args:
        clusters: of N rows, in any order.
        shares: split -> its share of the rows; they add up to 1.
        seed: another one gives another split.

    Raises:
        ConfigError: shares that do not add up to 1, or fewer clusters than splits.
    """
    if any(share < 0 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-6:
        raise ConfigError(
            f"Shares of splits are {dict(shares)}; give numbers from 0 that add up to 1, as in train 0.8, test 0.2."
        )
    names, sizes = np.unique(np.array(clusters, dtype=object), return_counts=True)
    order = sorted(
        range(len(names)), key=lambda place: hashlib.sha256(f"{seed}/{names[place]}".encode()).digest()
    )
    wanted = [name for name, share in shares.items() if share]
    if 0 < len(names) < len(wanted):
        raise ConfigError(
            f"{len(clusters)} rows form {len(names)} clusters of near prompts, which cannot be put into {len(wanted)} "
            f"splits ({', '.join(wanted)}). Add prompts about other things, or ask for fewer splits."
        )
    middles = (np.cumsum(sizes[order]) - sizes[order] / 2) / max(len(clusters), 1)
    cuts = np.searchsorted(middles, np.cumsum([shares[name] for name in wanted])[:-1]).tolist()
    # Every split gets a cluster, however small its share.
    for number in range(len(cuts)):
        before = cuts[number - 1] if number else 0
        cuts[number] = min(max(cuts[number], before + 1), len(names) - len(cuts) + number)
    split_of: dict[int, str] = {}
    for name, start, end in zip(wanted, [0, *cuts], [*cuts, len(names)], strict=True):
        split_of |= {int(names[place]): name for place in order[start:end]}
    return [split_of[name] for name in clusters]


def _check(
    count: int, origins: int, embeddings: NDArray[np.floating[Any]] | None, similarity: float, cosine: float
) -> None:
    if origins != count or (embeddings is not None and len(embeddings) != count):
        rows = origins if embeddings is None else len(embeddings)
        raise ConfigError(f"Got {count} prompts with {rows} sources or embeddings; give one each.")
    for name, value in (("similarity", similarity), ("cosine", cosine)):
        if not 0 < value <= 1:
            raise ConfigError(f"{name} is {value}; it is above 0 and at most 1.")
    if embeddings is not None and not np.isfinite(embeddings).all():
        raise ConfigError(
            "Embeddings hold NaN or infinite values; leave such prompts out, or their embeddings."
        )


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6])


def _words(prompt: str) -> list[str]:
    """Words in lower case; of scripts without spaces, pairs of neighbouring characters. Never empty."""
    found: list[str] = []
    for word in re.findall(r"\w+", clean(prompt).text.casefold()):
        for part in re.findall(f"[{_UNSPACED}]+|[^{_UNSPACED}]+", word):
            unspaced = len(part) > 2 and re.match(f"[{_UNSPACED}]", part)
            found += [part[at : at + 2] for at in range(len(part) - 1)] if unspaced else [part]
    return found or [prompt.strip().encode("utf-8", "replace").decode()]


_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
"""Thai, Lao, Burmese, Khmer, kana and Han."""


def _by_words(
    texts: Sequence[str], groups: Places, similarity: float
) -> tuple[Iterator[NDArray[np.uint64]], Callable[[Places, Places], NDArray[np.bool_]]]:
    """Keys of MinHash bands, and the exact comparison."""
    from sklearn.feature_extraction.text import CountVectorizer

    rows = CountVectorizer(analyzer=str.split, binary=True, dtype=np.float64).fit_transform(texts).tocsr()
    rows.sort_indices()
    # How many sources have a word; of each source once.
    by_source = _sum_rows(rows, groups)
    seen = np.asarray((by_source > 0).sum(axis=0)).ravel()
    weights = np.maximum(np.log((1 + by_source.shape[0]) / (1 + seen)), _LEAST_WEIGHT)
    weighted = rows.multiply(weights).tocsr()
    total = np.asarray(weighted.sum(axis=1)).ravel()

    def keys() -> Iterator[NDArray[np.uint64]]:
        draw = np.random.default_rng(0)
        for _ in range(_BANDS):
            key = np.zeros(len(texts), dtype=np.uint64)
            for _ in range(_ROWS):
                # The first of exponential clocks whose rates are the weights.
                clocks = draw.exponential(size=len(weights)) / weights
                first = np.minimum.reduceat(clocks[rows.indices], rows.indptr[:-1])
                key = _mixed(key, first.view(np.uint64))
            yield key

    def alike(one: Places, other: Places) -> NDArray[np.bool_]:
        common = np.asarray(weighted[one].multiply(rows[other]).sum(axis=1)).ravel()
        near: NDArray[np.bool_] = common >= similarity * (total[one] + total[other] - common) * (1 - 1e-9)
        return near

    return keys(), alike


def _by_embeddings(
    embeddings: NDArray[np.floating[Any]], cosine: float
) -> tuple[Iterator[NDArray[np.uint64]], Callable[[Places, Places], NDArray[np.bool_]]]:
    """Keys of bands of random projections, and the exact comparison."""
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    units = (embeddings / np.where(lengths > 0, lengths, 1)).astype(np.float32)

    def keys() -> Iterator[NDArray[np.uint64]]:
        draw = np.random.default_rng(0)
        places = np.uint64(1) << np.arange(_PLANES, dtype=np.uint64)
        for _ in range(_PLANE_BANDS):
            planes = draw.standard_normal((units.shape[1], _PLANES), dtype=np.float32)
            yield (units @ planes > 0).astype(np.uint64) @ places

    def alike(one: Places, other: Places) -> NDArray[np.bool_]:
        near: NDArray[np.bool_] = np.einsum("ij,ij->i", units[one], units[other]) >= cosine - 1e-6
        return near

    return keys(), alike


def _join_near(
    components: Places,
    bands: Iterator[NDArray[np.uint64]],
    alike: Callable[[Places, Places], NDArray[np.bool_]],
) -> Places:
    """Join the near pairs of each band's buckets; (N,) components -> (N,) components, numbered from 0."""
    for keys in bands:
        order = np.argsort(keys, kind="stable")
        found = []
        for apart in range(1, min(_WINDOW + 1, len(order))):
            one, other = order[:-apart], order[apart:]
            candidates = (keys[one] == keys[other]) & (components[one] != components[other])
            one, other = one[candidates], other[candidates]
            for start in range(0, len(one), _AT_ONCE):
                left, right = one[start : start + _AT_ONCE], other[start : start + _AT_ONCE]
                near = alike(left, right)
                found.append(np.stack([left[near], right[near]], axis=1))
        pairs = np.concatenate([np.zeros((0, 2), dtype=np.int64), *found])
        if len(pairs):
            merged = _components(int(components.max()) + 1, components[pairs])
            components = merged[components]
    return components


def _components(count: int, pairs: Places) -> Places:
    """(count,) numbers of the connected components under (P, 2) pairs."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(pairs), dtype=np.int8), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)


def _sum_rows(rows: Any, groups: Places) -> Any:
    """(G, V) sums of the rows of each group."""
    from scipy.sparse import coo_array

    member = coo_array((np.ones(len(groups)), (groups, np.arange(len(groups)))))
    return member.tocsr() @ rows


def _mixed(key: NDArray[np.uint64], more: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One 64-bit key of two (wrapping multiplication and shifts, after SplitMix64)."""
    with np.errstate(over="ignore"):
        mixed = (key ^ more) * np.uint64(0x9E3779B97F4A7C15)
        return np.asarray((mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9))
