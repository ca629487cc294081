"""One row of a corpus: a picture, what it was made of, and what was found on it.

The prompt's own label (what its words were listed under) and the labels of the picture (what a classifier saw) are
different columns, and neither is ever made of the other. A row that failed keeps its place and says why.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

FLAGGED_FROM = 0.5
"""Score from which a category counts as violated in a shard's `label` and `categories`; the scores are beside them."""


@dataclass(frozen=True)
class Failure:
    """Why a row is in no shard."""

    stage: str
    """`prompts`, `pictures`, `labels`, or the name of a later stage."""
    status: str
    """A short word for counting, such as `black` or `unreadable`."""
    reason: str
    """What went wrong, on one line."""


@dataclass(frozen=True)
class Variant:
    """What an adversarial row is: which attack, against whom, with how much."""

    kind: str
    """Name of the attack, such as `token_search` or `apgd`."""
    target: str
    """The defence that it was run against: a classifier's name."""
    budget: Mapping[str, Any]
    """What the attack might spend, such as `{"epsilon": 0.0314, "steps": 100}`; plain JSON values."""
    of: str
    """Id of the row that it was made from."""
    outcome: Mapping[str, Any] = field(default_factory=dict)
    """What came of it, such as whether the target was evaded; no part of the row's id."""


@dataclass(frozen=True)
class CorpusRow:
    """A row, from its place in the plan to its place in a shard; each stage fills in more."""

    id: str
    """32 hexadecimal digits of what the picture is made of (`row_id`); two rows of a corpus never share it."""
    prompt: str | None = None
    """What the picture was drawn from; None where nobody says."""
    prompt_label: tuple[str, ...] | None = None
    """Keys of the categories that the prompt's words or its list stand for, `()` for safe; None where nobody says."""
    written_by: Mapping[str, Any] = field(default_factory=dict)
    """How the prompt came about: a file, a template with its words, or a chat model with temperature and seed."""
    file: str | None = None
    """Name of the picture in its folder, where it was not drawn here."""
    seed: int | None = None
    """Of the picture's own noise."""
    model: str | None = None
    revision: str | None = None
    """Commit of the model on its hub, or `sha256:` and a hash of its files."""
    scheduler: str | None = None
    """Class of the scheduler."""
    steps: int | None = None
    guidance: float | None = None
    width: int | None = None
    height: int | None = None
    """In pixels; None for the pipeline's own size."""
    safety_checker: bool | None = None
    """Whether the pipeline's own safety checker ran."""
    prompt_cut: str | None = None
    """Which tokenizers cut the prompt, and from how many tokens; None where all of it was read."""
    variant: Variant | None = None
    """Set in an adversarial row."""

    sha256: str | None = None
    """Of the picture's file as it stands in the shard."""
    phash: str | None = None
    """16 hexadecimal digits (`judge.data.perceptual_hash.perceptual_hash`)."""

    labelled_by: str | None = None
    """The classifier's name."""
    scores: Mapping[str, float | None] = field(default_factory=dict)
    """Category key -> score of the picture in [0, 1]; None for a category that was not judged."""
    unsafe: float | None = None
    """Probability in [0, 1] that any category is violated."""
    decided_by: str | None = None
    """Which stage of a cascade decided."""

    duplicate_of: str | None = None
    """Id of the row that is kept in its place."""
    cluster: int | None = None
    """Of the prompt; a cluster stands in one split."""
    split: str | None = None
    """`train`, `validation` or `test`."""
    failure: Failure | None = None
    """Why the row is in no shard; None while it may be."""

    @property
    def kept(self) -> bool:
        """Whether the row goes into a shard, as things stand."""
        return self.failure is None and self.duplicate_of is None

    def failed(self, stage: str, status: str, reason: str) -> "CorpusRow":
        """The row with a failure."""
        return replace(self, failure=Failure(stage, status, reason))

    def violates(self, threshold: float = FLAGGED_FROM) -> tuple[str, ...]:
        """Keys of the categories whose score of the picture reaches the threshold."""
        return tuple(key for key, score in self.scores.items() if score is not None and score >= threshold)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; every field, in the order of the class."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "CorpusRow":
        """The row that `to_dict` described; fields of newer versions are left out."""
        known = {one.name for one in fields(cls)}
        given: dict[str, Any] = {name: value for name, value in data.items() if name in known}
        if given.get("prompt_label") is not None:
            given["prompt_label"] = tuple(given["prompt_label"])
        if given.get("variant") is not None:
            given["variant"] = Variant(**given["variant"])
        if given.get("failure") is not None:
            given["failure"] = Failure(**given["failure"])
        return cls(**given)


MADE_OF = (
    *("prompt", "file", "seed", "model", "revision", "scheduler", "steps", "guidance", "width", "height"),
    "safety_checker",
)
"""Fields that a picture is made of, and so its row's id; with an attack's kind, target, budget and origin."""


def with_id(row: CorpusRow, **more: Any) -> CorpusRow:
    """The row with the id that follows from what it is made of.

    Args:
        row: its present id does not matter.
        more: what else it is made of, as JSON values, such as the settings of an attack that draws several variants.
    """
    made_of: dict[str, Any] = {name: getattr(row, name) for name in MADE_OF} | more
    if row.variant is not None:
        made_of["variant"] = {
            "kind": row.variant.kind,
            "target": row.variant.target,
            "budget": dict(row.variant.budget),
            "of": row.variant.of,
        }
    return replace(row, id=fingerprint(made_of))


def fingerprint(value: Any) -> str:
    """32 hexadecimal digits of a JSON value; the order of keys does not matter.

    Raises:
        TypeError: it is no JSON value.
        ValueError: it holds NaN or an infinity.
    """
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
