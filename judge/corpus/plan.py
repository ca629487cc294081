"""The plan of a corpus: every row before anything is drawn, and how rows are put into chunks and shards."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from judge.errors import ConfigError
from prompts.taxonomy import Taxonomy

from .rows import FLAGGED_FROM, CorpusRow, Failure, fingerprint, with_id

ShardFormat = Literal["webdataset", "parquet"]


@dataclass(frozen=True)
class Prompt:
    """A prompt to draw from."""

    text: str
    label: tuple[str, ...] | None = None
    """Keys of the categories that its words or its list stand for, `()` for safe; None where nobody says."""
    written_by: Mapping[str, Any] = field(default_factory=dict)
    """How it came about; JSON values."""
    failure: Failure | None = None
    """Why it is not drawn, such as a refusal of the chat model that was to write it."""


@dataclass(frozen=True)
class Drawing:
    """How pictures are drawn; the same in every row of a corpus."""

    model: str
    """Name or folder of the pipeline."""
    revision: str
    """Its commit on the hub, or `sha256:` and a hash of the folder's files."""
    scheduler: str
    """Class name."""
    steps: int
    guidance: float
    width: int | None = None
    height: int | None = None
    """In pixels; None for the pipeline's own size."""
    safety_checker: bool = False
    """Whether the pipeline's own safety checker runs; what it flags is a failed row."""


@dataclass(frozen=True)
class Plan:
    """All rows of a corpus, in order, and what else its files depend on."""

    rows: Sequence[CorpusRow]
    taxonomy: Taxonomy
    """What the pictures are labelled by."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Where the rows come from, in words that tell a user what changed when a build is resumed with another plan."""
    chunk_size: int = 64
    """Rows that are drawn, labelled and kept together."""
    shard_rows: int = 1000
    format: ShardFormat = "webdataset"
    threshold: float = FLAGGED_FROM
    """Score from which a category counts as violated in a shard's `label` and `categories`."""
    max_failures: float = 0.05
    """Largest share of rows, 0 to 1, that may fail; may differ when a build is resumed."""

    def __post_init__(self) -> None:
        if not self.rows:
            raise ConfigError(
                "The plan has no rows: no prompt and no picture was given, or none could be used."
            )
        for name in ("chunk_size", "shard_rows"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; give at least 1.")
        if not 0 <= self.max_failures <= 1:
            raise ConfigError(f"max_failures is {self.max_failures}; it is a share, from 0 to 1.")
        if not 0 < self.threshold <= 1:
            raise ConfigError(f"threshold is {self.threshold}; it is a score, over 0 and up to 1.")
        if self.format not in ("webdataset", "parquet"):
            raise ConfigError(f"format is {self.format!r}; use 'webdataset' or 'parquet'.")

    @property
    def chunks(self) -> int:
        """Number of chunks of the plan; variants stand in further ones."""
        return -(-len(self.rows) // self.chunk_size)

    @property
    def description(self) -> dict[str, Any]:
        """What a build may be resumed with only if it is equal: JSON values by name."""
        return {
            **self.about,
            "rows": f"{len(self.rows):,} ({_hash_of(row.to_dict() for row in self.rows)})",
            "taxonomy": f"{self.taxonomy.name} ({self.taxonomy.short_hash})",
            "chunk_size": self.chunk_size,
            "shard_rows": self.shard_rows,
            "format": self.format,
            "threshold": self.threshold,
        }


def plan_pictures(
    prompts: Sequence[Prompt], drawing: Drawing, *, seeds: int = 1, seed: int = 0
) -> list[CorpusRow]:
    """Rows for pictures to be drawn: every prompt with each of its seeds.

    A picture's seed follows from `seed`, the prompt's text and the picture's number alone, so that prompts that are
    added later do not change the pictures of the others.

    Args:
        prompts: each text once; one that failed is a row that failed.
        drawing: how.
        seeds: pictures of each prompt.
        seed: of the corpus.

    Raises:
        ConfigError: fewer than one picture a prompt.
    """
    if seeds < 1:
        raise ConfigError(f"seeds is {seeds}; draw at least one picture of each prompt.")
    rows: list[CorpusRow] = []
    for place, prompt in enumerate(prompts):
        row = CorpusRow("", prompt.text or None, prompt.label, prompt.written_by)
        if prompt.failure is not None:
            # Made of its place: nothing was asked of the pipeline, and several may have no text at all.
            row_id = fingerprint({"failed prompt": place, "text": prompt.text})
            rows.append(replace(row, id=row_id, failure=prompt.failure))
            continue
        for number in range(seeds):
            drawn = replace(row, seed=_picture_seed(seed, prompt.text, number), **vars(drawing))
            rows.append(with_id(drawn))
    return rows


def _picture_seed(seed: int, prompt: str, number: int) -> int:
    """32 bits; what every generator of random numbers takes."""
    text = json.dumps([seed, prompt, number])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])


def _hash_of(values: Iterator[Any]) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(json.dumps(value, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()[:16]
