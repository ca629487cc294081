"""Shards, which are read from one end to the other, and the inputs in them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, SupportsBytes

from judge.errors import ImageError

LONGEST_PROMPT = 2**16
"""Characters; the prompts of many rows are in memory together, and no model reads as much."""

Kind = Literal["images", "tar", "parquet", "jsonl"]


@dataclass(frozen=True)
class Shard:
    """What is read from one end to the other; it is pickled to get to the process that reads it."""

    number: int
    """From 0, in the order of the plan; never changes."""
    kind: Kind
    root: str
    """The folder that paths are relative to, or an fsspec URL such as `s3://bucket/uploads`."""
    paths: tuple[str, ...]
    """With `/`, relative to `root`: the one file that is read, or the image files of a folder."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """`image`, `prompt` and `id` -> names of columns of a table, where they are others."""


@dataclass(frozen=True)
class InputRow:
    """One input: it becomes one row of the output, whatever happens."""

    id: str
    """The same in every run; no other input of the folder has it."""
    source: str
    """The file it stood in, relative to the root."""
    image: SupportsBytes | None = None
    """Its `bytes()` are the encoded image, read when they are needed; raises ImageError where they cannot be."""
    prompt: str | None = None
    problem: ImageError | None = None
    """Why there is no image, where that is known already."""
    place: float = 0.0
    """Share of the shard that is read with this input, from 0 to 1; tells how long the rest will take."""


def check_prompt(text: str) -> str:
    """A prompt as it is.

    Raises:
        ImageError: `too_large`.
    """
    if len(text) > LONGEST_PROMPT:
        raise ImageError(
            "too_large", f"a prompt of {len(text):,} characters; at most {LONGEST_PROMPT:,} are read"
        )
    return text
