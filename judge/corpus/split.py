"""Train, validation and test of a corpus, by clusters of prompts (`judge.corpus.clusters`)."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .clusters import SIMILARITY, cluster_prompts, split_clusters
from .duplicates import family
from .rows import CorpusRow

SHARES: Mapping[str, float] = {"train": 0.8, "validation": 0.1, "test": 0.1}


@dataclass(frozen=True)
class SplitByCluster:
    """The stage that puts every row that is kept into a split.

    All seeds and variants of a prompt, near prompts, and prompts made of the same words are in one split. A picture
    without a prompt is a cluster of its own.

    Args:
        shares: split -> its share of the rows; they add up to 1.
        seed: another one gives another split.
        similarity: as of `cluster_prompts`.
    """

    shares: Mapping[str, float] = field(default_factory=lambda: SHARES)
    seed: int = 0
    similarity: float = SIMILARITY
    name: str = field(default="split", init=False)

    @property
    def about(self) -> Mapping[str, Any]:
        """What the split depends on beyond the rows."""
        return {"shares": dict(self.shares), "seed": self.seed, "similarity": self.similarity}

    def __call__(self, rows: Sequence[CorpusRow], read: Callable[[CorpusRow], bytes]) -> Iterator[CorpusRow]:
        """The rows that are kept, each with its cluster and split.

        Raises:
            ConfigError: shares that do not add up to 1, or too few clusters for them.
        """
        kept = [row for row in rows if row.kept]
        # An id has no word in common with anything.
        prompts = [row.prompt or family(row) for row in kept]
        clusters = cluster_prompts(prompts, [_sources(row) for row in kept], similarity=self.similarity)
        splits = split_clusters(clusters, self.shares, seed=self.seed)
        for row, cluster, split in zip(kept, clusters, splits, strict=True):
            yield replace(row, cluster=cluster, split=split)


def _sources(row: CorpusRow) -> list[Hashable]:
    """What a row's prompt was made of: the row itself, for its variants, and the words that it was written of."""
    words = row.written_by.get("words")
    made_of: list[Hashable] = [("row", family(row))]
    if isinstance(words, (list, tuple)) and words:
        made_of.append(("words", *sorted(str(word).casefold() for word in words)))
    return made_of
