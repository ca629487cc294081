"""Published data sets: where they come from, how a copy is opened, and those labelled with one taxonomy."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from prompts.errors import ExampleError

from .labels import UnusableRowError
from .layouts import Layout, Record, Records, open_records, parse_spec
from .sources import LeftOut, Row, Skipped, canonical_split


@dataclass(frozen=True)
class Origin:
    """Where a published data set comes from, and what is known of it."""

    hub: str
    """Its name on the hub."""
    access: str
    """How a copy is had."""
    licence: str
    verified: str
    """What of its columns, files and labels was seen, and where."""
    assumed: str
    """What was not."""
    whole: bool = True
    """Whether the hub holds rows and images together, so that its name alone can be read."""


@dataclass(frozen=True)
class PublishedSet:
    """A published data set: where it is kept and how its rows are read."""

    origin: Origin
    layout: Layout
    taxonomy: str
    """The shipped taxonomy that it was labelled with."""
    read: Callable[[Record], Row | LeftOut]
    """One record as a row; raises `UnusableRowError` where it cannot be understood."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Other names for declared splits."""
    once: str | None = None
    """The field that tells pictures apart, where several rows may be about one."""


class PublishedReader:
    """A published data set, split by split.

    Args:
        name: of the set.
        where: a local copy, which may end in `?ours=COLUMN`; None for the hub.
        published: the set.

    Raises:
        ExampleError: no copy, no access, or another layout.
    """

    def __init__(self, name: str, where: str | None, published: PublishedSet) -> None:
        _, path, columns = parse_spec(f"{name}:{where or ''}")
        self._set = published
        self._table = open_copy(name, path, published.origin, published.layout, columns)
        self._names = {
            split: published.renamed.get(split, canonical_split(split)) for split in self._table.splits
        }
        self.splits = tuple(dict.fromkeys(self._names.values()))

    def rows(self, split: str) -> Iterator[Row | Skipped | LeftOut]:
        """Iterate over one declared split."""
        labels: dict[str, tuple[object, object]] = {}
        for theirs, ours in self._names.items():
            if ours != split:
                continue
            for record in self._table.records(theirs):
                if isinstance(record, Skipped):
                    yield record
                    continue
                try:
                    row = self._set.read(record)
                except UnusableRowError as error:
                    yield Skipped(record.place, error.status, error.reason)
                    continue
                if isinstance(row, Row):
                    yield self._first(replace(row, split=split), record, labels)
                else:
                    yield row

    def _first(
        self, row: Row, record: Record, labels: dict[str, tuple[object, object]]
    ) -> Row | Skipped | LeftOut:
        """The row, unless an earlier one is about the same picture."""
        picture = record.values.get(self._set.once) if self._set.once else None
        if not isinstance(picture, str):
            return row
        label = (row.label, row.categories)
        if picture not in labels:
            labels[picture] = label
            return row
        if labels[picture] != label:
            return Skipped(row.id, "contradictory_label", "an earlier row labels the same image otherwise")
        return LeftOut("another row about the same image")


def open_copy(
    name: str, where: str | None, origin: Origin, layout: Layout, renamed: Mapping[str, str] | None = None
) -> Records:
    """Open a copy of a published data set, or the hub's where none is given.

    Raises:
        ExampleError: nothing there, no access, or another layout; the message says how to get a copy, and how to name
            its columns.
    """
    advice = (
        f"Access to {name} ({origin.hub} on the hub): {origin.access}. Then `hf auth login` and `hf download "
        f"{origin.hub} --repo-type dataset --local-dir DIR`, and give {name}:DIR."
    )
    if where is None and not origin.whole:
        raise ExampleError(f"{name} cannot be read from the hub alone. {advice}")
    if where is not None and not Path(where).exists():
        raise ExampleError(f"{name}: there is nothing at {where}. {advice}")
    try:
        return open_records(where or origin.hub, layout, name=name, renamed=renamed)
    except ExampleError as error:
        if where is not None:
            raise
        raise ExampleError(f"{error} {advice}") from error
