"""`Records`: what the server asks for and stores; each call is one transaction."""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import URL, ColumnElement, Select, delete, func, select
from sqlalchemy.orm import Session

from judge.runs.machine import now
from prompts.printable import printable
from prompts.taxonomy import Taxonomy

from .database import Database
from .entries import STATES, Decision, Item, NewItem, Ruling, SavedTaxonomy, StoredVerdict
from .errors import EntryError, NotFoundError, RecordsError
from .images import ImageFolder, make_private_folder
from .ruling import check_ruling
from .saved import newest_taxonomies, policy, save_policy, save_version, saved_version
from .tables import DecisionRow, ItemRow, RemovalRow, VerdictRow
from .texts import checked_text, person

MAX_NAME, MAX_PROMPT, MAX_NOTE = 200, 100_000, 4000
"""Characters of an item's name, its prompt, and a note."""
_PAGE = 500
"""Rows that are read at a time where all of them are asked for."""
DATABASE_FILE, IMAGE_FOLDER = "records.sqlite", "images"
"""What a state folder holds."""


class Records:
    """Saved taxonomies, the queue with its images, verdicts and decisions. Synchronous, and safe for many threads.

    Args:
        url: `sqlite:///PATH` or `postgresql+psycopg://USER:PASSWORD@HOST/NAME`; made or migrated as needed.
        folder: where the images of the queue are stored, by their hash.

    Raises:
        ConfigError, RecordsError, MissingExtraError: as `Database`; every method may raise `RecordsError`.
    """

    def __init__(self, url: str | URL, folder: Path) -> None:
        self._images = ImageFolder(folder)
        self._database = Database(url)
        self._finish_removals()

    @classmethod
    def in_folder(cls, state: Path, url: str | URL | None = None) -> "Records":
        """The records of a state folder: its images, and its database unless another one is named."""
        make_private_folder(state)
        # As an object: a path may hold what means something in the text of a URL.
        own = URL.create("sqlite", database=str(state / DATABASE_FILE))
        return cls(url or own, state / IMAGE_FOLDER)

    @property
    def name(self) -> str:
        """The database's URL without its password, for messages."""
        return self._database.name

    def free_bytes(self) -> float:
        """Free space where the images are; NaN where nobody can say."""
        try:
            return self._images.free_bytes()
        except OSError:
            return math.nan

    def close(self) -> None:
        """Close the connections."""
        self._database.close()

    # Taxonomies

    def save_taxonomy(self, name: str, taxonomy: Taxonomy, by: str | None = None) -> SavedTaxonomy:
        """Save the next version of a taxonomy; one that equals the newest version is not saved again.

        Args:
            name: what it is saved under; the name and version of `taxonomy` itself are replaced.
            taxonomy: its categories.
            by: who saves it.

        Raises:
            TaxonomyError: the name cannot be one, such as one with `@`, which separates name and version.
        """
        with self._database.write() as session:
            return save_version(session, name, taxonomy, person(by))

    def taxonomy(self, name: str, version: int | None = None) -> SavedTaxonomy:
        """A saved taxonomy, by default its newest version.

        Raises:
            NotFoundError: no such name or version; the message lists what there is.
        """
        with self._database.read() as session:
            return saved_version(session, name, version)

    def taxonomies(self) -> list[SavedTaxonomy]:
        """The newest version of each saved taxonomy, by name."""
        with self._database.read() as session:
            return newest_taxonomies(session)

    def policy(self, taxonomy_hash: str) -> Taxonomy:
        """The taxonomy that verdicts with this hash were judged by.

        Raises:
            NotFoundError: none was.
        """
        with self._database.read() as session:
            return policy(session, taxonomy_hash)

    # The queue

    def add_items(self, new: Sequence[NewItem], *, again: bool = True) -> list[Item]:
        """Put images at the end of the queue: all of them, or on an error none.

        Args:
            new: the images.
            again: whether to add what the queue has already, the same bytes with the same prompt.

        Raises:
            EntryError: a prompt that is too long or cannot be stored.
        """
        prompts = [checked_text(item.prompt, MAX_PROMPT, "A prompt") for item in new]
        try:
            with self._database.write() as session:
                return [_item(row) for row in self._new_rows(session, new, prompts, again)]
        except BaseException:
            with suppress(RecordsError):
                self._finish_removals(hashlib.sha256(item.data).hexdigest() for item in new)
            raise

    def _new_rows(
        self, session: Session, new: Sequence[NewItem], prompts: Sequence[str | None], again: bool
    ) -> list[ItemRow]:
        rows = []
        for item, prompt in zip(new, prompts, strict=True):
            # Within the transaction, so that nobody deletes the same image meanwhile.
            sha256 = self._images.add(item.data)
            if again or not _in_queue(session, sha256, ItemRow.prompt == prompt):
                name = printable(item.name)[:MAX_NAME] or "image"
                rows.append(ItemRow(name=name, sha256=sha256, prompt=prompt, state="open", added=now()))
                session.add(rows[-1])
                session.flush()
        return rows

    def items(self, state: str | None = None, *, after: int = 0, limit: int = 50) -> list[Item]:
        """Items in the order they were added, each with its latest verdict.

        Args:
            state: `open`, `decided` or `skipped`; all of these by default.
            after: id of the last one that is already known.
            limit: how many at most.
        """
        states = STATES if state is None else (state,)
        with self._database.read() as session:
            found = select(ItemRow).where(ItemRow.state.in_(states), ItemRow.id > after)
            rows = session.scalars(found.order_by(ItemRow.id).limit(limit)).all()
            latest = {row.item_id: row for row in session.scalars(_latest_of([row.id for row in rows]))}
            return [_item(row, latest.get(row.id)) for row in rows]

    def counts(self) -> dict[str, int]:
        """How many items are open, decided and skipped."""
        with self._database.read() as session:
            found = dict(session.execute(select(ItemRow.state, func.count()).group_by(ItemRow.state)).all())
            return {state: found.get(state, 0) for state in STATES}

    def item(self, item_id: int) -> Item:
        """An item with its latest verdict.

        Raises:
            NotFoundError: it is not in the queue.
        """
        with self._database.read() as session:
            row = _queued(session, item_id)
            return _item(row, session.scalars(_latest_of([row.id])).one_or_none())

    def image(self, sha256: str) -> bytes:
        """The encoded image with this hash, as it was uploaded.

        Raises:
            NotFoundError: it was deleted, or never stored.
        """
        return self._images.read(sha256)

    def delete_item(self, item_id: int) -> None:
        """Take an item out of the queue, with its prompt, and its image if no other item has the same.

        What was decided about it stays in the log; without a decision its verdicts go too.

        Raises:
            NotFoundError: it is not in the queue.
        """
        with self._database.write() as session:
            row = _queued(session, item_id)
            if session.scalars(select(DecisionRow.id).where(DecisionRow.item_id == item_id).limit(1)).first():
                row.state, row.prompt = "deleted", None
            else:
                session.execute(delete(VerdictRow).where(VerdictRow.item_id == item_id))
                session.delete(row)
            session.merge(RemovalRow(sha256=row.sha256))
        # A crash from here on leaves the entry, and the next start removes the file.
        self._finish_removals()

    def _finish_removals(self, more: Iterable[str] = ()) -> None:
        """Remove the files of deleted items, and `more` (hashes), as far as no other item shares them."""
        with self._database.write() as session:
            for sha256 in {*session.scalars(select(RemovalRow.sha256)), *more}:
                if not _in_queue(session, sha256):
                    self._images.remove(sha256)
            session.execute(delete(RemovalRow))

    # Verdicts and decisions

    def add_verdict(self, item_id: int, row: dict[str, Any], taxonomy: Taxonomy) -> StoredVerdict:
        """Store what the judge said of an item, and the taxonomy that it was asked about.

        Args:
            item_id: an item in the queue.
            row: as `judge.verdicts.rows.verdict_row` makes it.
            taxonomy: what `row["taxonomy"]` names.

        Raises:
            NotFoundError: the item is not in the queue.
        """
        with self._database.write() as session:
            item = _queued(session, item_id)
            save_policy(session, taxonomy)
            verdict = VerdictRow(item_id=item_id, policy_hash=taxonomy.hash, row=row, created=now())
            session.add(verdict)
            session.flush()
            return _verdict(verdict, item)

    def verdict(self, verdict_id: int) -> StoredVerdict:
        """A verdict by its id.

        Raises:
            NotFoundError: there is none.
        """
        with self._database.read() as session:
            return _verdict(*_verdict_and_item(session, verdict_id))

    def latest_verdicts(self, taxonomy_hash: str) -> Iterator[StoredVerdict]:
        """The latest verdict under this taxonomy of each item in the queue, by item, read page by page."""
        latest = (
            select(func.max(VerdictRow.id).label("id"))
            .join(ItemRow, ItemRow.id == VerdictRow.item_id)
            .where(VerdictRow.policy_hash == taxonomy_hash, ItemRow.state.in_(STATES))
            .group_by(VerdictRow.item_id)
            .order_by(VerdictRow.item_id)
            .limit(_PAGE)
        )
        after, page = 0, list[StoredVerdict]()
        while not after or len(page) == _PAGE:
            # The ids of a page first: a database that joins all of them for each page takes minutes.
            ids = latest.where(VerdictRow.item_id > after).subquery()
            found = select(VerdictRow, ItemRow).join(ids, ids.c.id == VerdictRow.id)
            found = found.join(ItemRow, ItemRow.id == VerdictRow.item_id).order_by(ItemRow.id)
            with self._database.read() as session:
                page = [_verdict(*row) for row in session.execute(found)]
            yield from page
            after = page[-1].item.id if page else -1

    def decide(
        self,
        item_id: int,
        verdict_id: int,
        action: str,
        *,
        moderator: str,
        status: str | None = None,
        categories: Sequence[str] | None = None,
        note: str | None = None,
    ) -> Decision:
        """Add a decision to the log, by the rules of `judge.records.ruling`; the item is then decided, or skipped.

        An item may be decided again; the latest decision counts, and the earlier ones stay in the log.

        Raises:
            DecisionError: it says too little, or contradicts itself or the verdict.
            EntryError: nobody decides, or a text is too long.
            TaxonomyError: a category that the verdict's taxonomy lacks.
            NotFoundError: the item is not in the queue, or has no such verdict.
        """
        by = person(moderator)
        if by is None:
            raise EntryError("A decision needs the name of its moderator; a pseudonym will do.")
        note = checked_text(note, MAX_NOTE, "A note")
        with self._database.write() as session:
            item = _queued(session, item_id)
            verdict = session.get(VerdictRow, verdict_id)
            if verdict is None or verdict.item_id != item_id:
                raise NotFoundError(f"Item {item_id} has no verdict {verdict_id}.")
            ruling = check_ruling(
                verdict.row, policy(session, verdict.policy_hash), action, status, categories
            )
            decision = DecisionRow(
                verdict_id=verdict_id,
                item_id=item_id,
                action=ruling.action,
                status=ruling.status,
                categories=list(ruling.categories),
                note=note,
                moderator=by,
                time=now(),
            )
            session.add(decision)
            item.state = "skipped" if action == "skip" else "decided"
            session.flush()
            return _decision(decision, verdict, item)

    def decisions(
        self,
        *,
        after: int = 0,
        before: int | None = None,
        limit: int | None = None,
        newest_first: bool = False,
    ) -> list[Decision]:
        """Entries of the log.

        Args:
            after: only those with a higher id.
            before: only those with a lower id; all by default.
            limit: how many at most; all by default.
            newest_first: instead of the oldest.
        """
        found = (
            select(DecisionRow, VerdictRow, ItemRow)
            .join(VerdictRow, VerdictRow.id == DecisionRow.verdict_id)
            .join(ItemRow, ItemRow.id == DecisionRow.item_id)
            .where(DecisionRow.id > after)
            .order_by(DecisionRow.id.desc() if newest_first else DecisionRow.id)
            .limit(limit)
        )
        if before is not None:
            found = found.where(DecisionRow.id < before)
        with self._database.read() as session:
            return [_decision(*row) for row in session.execute(found)]

    def each_decision(self, *, newest_first: bool = False) -> Iterator[Decision]:
        """All entries of the log, read page by page: they need not fit into memory."""
        page = self.decisions(limit=_PAGE, newest_first=newest_first)
        while page:
            yield from page
            last = page[-1].id
            edge = {"before": last} if newest_first else {"after": last}
            page = self.decisions(**edge, limit=_PAGE, newest_first=newest_first)


def _in_queue(session: Session, sha256: str, *conditions: ColumnElement[bool]) -> bool:
    found = select(ItemRow.id).where(ItemRow.sha256 == sha256, ItemRow.state.in_(STATES), *conditions)
    return session.scalars(found.limit(1)).first() is not None


def _queued(session: Session, item_id: int) -> ItemRow:
    row = session.get(ItemRow, item_id)
    if row is None or row.state not in STATES:
        raise NotFoundError(f"The queue has no item {item_id}.")
    return row


def _verdict_and_item(session: Session, verdict_id: int) -> tuple[VerdictRow, ItemRow]:
    row = session.get(VerdictRow, verdict_id)
    if row is None:
        raise NotFoundError(f"There is no verdict {verdict_id}.")
    return row, session.get_one(ItemRow, row.item_id)


def _latest_of(item_ids: Iterable[int]) -> Select[VerdictRow]:
    """The latest verdict of each of these items, under whatever taxonomy."""
    latest = select(func.max(VerdictRow.id)).where(VerdictRow.item_id.in_(list(item_ids)))
    return select(VerdictRow).where(VerdictRow.id.in_(latest.group_by(VerdictRow.item_id)))


def _item(row: ItemRow, verdict: VerdictRow | None = None) -> Item:
    told = (None, None) if verdict is None else (verdict.row, verdict.id)
    return Item(row.id, row.name, row.sha256, row.prompt, row.state, row.added, *told)


def _verdict(row: VerdictRow, item: ItemRow) -> StoredVerdict:
    return StoredVerdict(row.id, _item(item), row.row, row.policy_hash, row.created)


def _decision(row: DecisionRow, verdict: VerdictRow, item: ItemRow) -> Decision:
    # The database holds what `check_ruling` allowed.
    ruling = Ruling(row.action, row.status, tuple(row.categories))  # type: ignore[arg-type]
    return Decision(row.id, _item(item), verdict.id, verdict.row, ruling, row.note, row.moderator, row.time)
