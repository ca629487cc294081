"""What the records hold, as plain values: saved taxonomies, items, verdicts, decisions."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from prompts.taxonomy import Taxonomy

State = Literal["open", "decided", "skipped"]
STATES: tuple[State, ...] = get_args(State)
"""Of an item in the queue."""
Action = Literal["agree", "overrule", "skip"]
ACTIONS: tuple[Action, ...] = get_args(Action)


@dataclass(frozen=True)
class SavedTaxonomy:
    """One version of a taxonomy that was saved under a name."""

    name: str
    version: int
    """1, 2, 3 ..."""
    taxonomy: Taxonomy
    """With this name and version as its own."""
    saved_at: str
    saved_by: str | None

    @property
    def hash(self) -> str:
        """`Taxonomy.hash`."""
        return self.taxonomy.hash


@dataclass(frozen=True)
class NewItem:
    """An image for the queue."""

    data: bytes
    """Encoded, as it came; nothing is decoded here."""
    name: str
    """What a person calls it; shown, and never used as a path."""
    prompt: str | None = None


@dataclass(frozen=True)
class Item:
    """An image in the queue."""

    id: int
    name: str
    """On one printable line."""
    sha256: str
    """Of the encoded image, 64 hexadecimal digits."""
    prompt: str | None
    state: str
    """`open`, `decided`, `skipped`; `deleted` where only its decisions are left."""
    added: str
    verdict: dict[str, Any] | None = None
    """The row of its latest verdict, where it was asked for."""
    verdict_id: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "id": self.id,
            "name": self.name,
            "sha256": self.sha256,
            "prompt": self.prompt,
            "state": self.state,
            "added": self.added,
            "verdict_id": self.verdict_id,
            "verdict": self.verdict,
        }


@dataclass(frozen=True)
class StoredVerdict:
    """What the judge said of an item under a taxonomy."""

    id: int
    item: Item
    row: dict[str, Any]
    """As `judge.verdicts.rows.verdict_row` makes it."""
    taxonomy_hash: str
    created: str


@dataclass(frozen=True)
class Ruling:
    """What a moderator says of a verdict, checked by `judge.records.ruling`."""

    action: Action
    status: Literal["safe", "unsafe"] | None
    """None for skip."""
    categories: tuple[str, ...]
    """Names, in the order of the taxonomy; of an unsafe image none means "some category"."""


@dataclass(frozen=True)
class Decision:
    """One entry of the log, which only grows; of several about one item the latest counts."""

    id: int
    item: Item
    verdict_id: int
    verdict: dict[str, Any]
    """The row of the verdict that the moderator saw."""
    ruling: Ruling
    note: str | None
    moderator: str
    time: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "id": self.id,
            "time": self.time,
            "moderator": self.moderator,
            "item_id": self.item.id,
            "name": self.item.name,
            "sha256": self.item.sha256,
            "action": self.ruling.action,
            "status": self.ruling.status,
            "categories": list(self.ruling.categories),
            "note": self.note,
            "verdict_id": self.verdict_id,
            "verdict": self.verdict,
        }
