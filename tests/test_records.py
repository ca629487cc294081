"""Records on SQLite and PostgreSQL: the queue, verdicts, decisions, taxonomies; many writers, and a killed process."""

import hashlib
import math
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from fixtures_server import PATIENCE
from sqlalchemy import text

from judge.errors import ConfigError
from judge.records.entries import NewItem
from judge.records.errors import EntryError, NotFoundError, RecordsError
from judge.records.records import Records
from prompts.errors import TaxonomyError
from prompts.taxonomy import Category

ROOT = Path(__file__).resolve().parents[1]
NAN = math.nan


@pytest.fixture
def records(database_url, open_records):
    return open_records(database_url)


def stored_images(tmp_path):
    return {path.name for path in (tmp_path / "images").iterdir()}


def test_an_item_comes_back_as_it_was_added(records, tmp_path):
    hostile = "../../etc/passwd\n\x1b[31m\u202e.png"
    [item] = records.add_items([NewItem(b"the bytes", hostile, "=1+1 'quote' \u00e4\u4e2d\U0001f600")])
    assert item.name == r"../../etc/passwd\n\x1b[31m\u202e.png"
    assert item.prompt == "=1+1 'quote' \u00e4\u4e2d\U0001f600"
    assert item.sha256 == hashlib.sha256(b"the bytes").hexdigest()
    assert item.state == "open"
    assert records.item(item.id) == item
    assert records.image(item.sha256) == b"the bytes"
    assert stored_images(tmp_path) == {item.sha256}


def test_what_the_queue_has_need_not_be_added_again(records):
    new = [NewItem(b"x", "1"), NewItem(b"x", "2"), NewItem(b"x", "3", "a prompt"), NewItem(b"y", "4")]
    assert [item.name for item in records.add_items(new, again=False)] == ["1", "3", "4"]
    assert records.add_items(new, again=False) == []
    records.delete_item(records.items()[0].id)
    assert [item.name for item in records.add_items(new, again=False)] == ["1"]
    assert len(records.add_items(new)) == 4


def test_images_and_the_database_are_private(records, tmp_path):
    records.add_items([NewItem(b"x", "x")])
    for path in tmp_path.rglob("*"):
        allowed = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == allowed, path


def test_the_queue_is_read_page_by_page(records, own_taxonomy, make_row):
    items = records.add_items([NewItem(bytes([n]), f"{n}") for n in range(7)])
    for item in items[:3]:
        verdict = records.add_verdict(item.id, make_row([0.1, 0.2, 0.3]), own_taxonomy)
        records.decide(item.id, verdict.id, "agree", moderator="m")
    verdict = records.add_verdict(items[3].id, make_row([NAN, NAN, NAN]), own_taxonomy)
    records.decide(items[3].id, verdict.id, "skip", moderator="m")
    assert records.counts() == {"open": 3, "decided": 3, "skipped": 1}
    first = records.items("open", limit=2)
    assert [item.name for item in first] == ["4", "5"]
    assert [item.name for item in records.items("open", after=first[-1].id, limit=2)] == ["6"]
    assert [item.name for item in records.items()] == [str(n) for n in range(7)]
    assert [item.name for item in records.items("skipped")] == ["3"]
    assert records.items("skipped")[0].verdict == verdict.row


def test_an_item_has_its_latest_verdict(records, own_taxonomy, make_row):
    [item] = records.add_items([NewItem(b"x", "x")])
    assert item.verdict is None
    records.add_verdict(item.id, make_row([0.9, NAN, 0.3]), own_taxonomy)
    later = records.add_verdict(item.id, make_row([0.25, 0.5, 1 / 3]), own_taxonomy)
    assert records.item(item.id).verdict == later.row == make_row([0.25, 0.5, 1 / 3])
    assert list(records.item(item.id).verdict["scores"]) == list(own_taxonomy.names), (
        "the order of the taxonomy"
    )
    assert records.verdict(later.id) == later
    assert [stored.id for stored in records.latest_verdicts(own_taxonomy.hash)] == [later.id]
    assert list(records.latest_verdicts("0" * 64)) == []
    assert records.policy(own_taxonomy.hash) == own_taxonomy


def test_a_long_log_is_read_page_by_page(records, own_taxonomy, make_row, monkeypatch):
    monkeypatch.setattr("judge.records.records._PAGE", 2)
    ids = []
    for number in range(5):
        [item] = records.add_items([NewItem(bytes([number]), "x")])
        ids.append(records.add_verdict(item.id, make_row([0.1, 0.1, 0.1]), own_taxonomy).id)
        records.decide(item.id, ids[-1], "agree", moderator="m")
        assert [stored.id for stored in records.latest_verdicts(own_taxonomy.hash)] == ids
        assert [decision.verdict_id for decision in records.each_decision()] == ids
        assert [decision.verdict_id for decision in records.each_decision(newest_first=True)] == ids[::-1]


def test_nan_never_enters_the_database(records, own_taxonomy, make_row):
    [item] = records.add_items([NewItem(b"x", "x")])
    with pytest.raises(Exception, match="not JSON compliant"):
        records.add_verdict(item.id, {**make_row([0.9, 0.1, 0.3]), "unsafe": NAN}, own_taxonomy)
    assert records.item(item.id).verdict is None


def test_a_decision_is_kept_with_what_it_was_about(records, own_taxonomy, make_row):
    [item] = records.add_items([NewItem(b"x", "x.png", "a prompt")])
    verdict = records.add_verdict(item.id, make_row([0.9, 0.1, 0.7]), own_taxonomy)
    agreed = records.decide(item.id, verdict.id, "agree", moderator="ada")
    assert (agreed.ruling.status, agreed.ruling.categories) == ("unsafe", ("Knives", "Gore"))
    again = records.decide(
        item.id, verdict.id, "overrule", status="unsafe", categories=["gore"], note="n", moderator="bob"
    )
    assert records.item(item.id).state == "decided"
    log = records.decisions()
    assert [entry.id for entry in log] == [agreed.id, again.id]
    assert log[1] == again
    assert again.to_dict() == {
        "id": again.id,
        "time": again.time,
        "moderator": "bob",
        "item_id": item.id,
        "name": "x.png",
        "sha256": item.sha256,
        "action": "overrule",
        "status": "unsafe",
        "categories": ["Gore"],
        "note": "n",
        "verdict_id": verdict.id,
        "verdict": verdict.row,
    }
    assert records.decisions(after=agreed.id) == [again]
    assert records.decisions(limit=1) == [agreed]
    assert records.decisions(limit=1, newest_first=True) == [again]
    assert records.decisions(before=again.id) == [agreed]


@pytest.mark.parametrize("statement", ["UPDATE decisions SET status = 'safe'", "DELETE FROM decisions"])
def test_the_log_only_grows(records, own_taxonomy, make_row, statement):
    [item] = records.add_items([NewItem(b"x", "x.png")])
    verdict = records.add_verdict(item.id, make_row([0.9, 0.1, 0.7]), own_taxonomy)
    decision = records.decide(item.id, verdict.id, "agree", moderator="ada")
    with pytest.raises(RecordsError, match="append-only"), records._database.write() as session:
        session.execute(text(statement))
    assert records.decisions() == [decision]


def test_a_decision_needs_its_own_item_and_a_moderator(records, own_taxonomy, make_row):
    first, second = records.add_items([NewItem(b"x", "x"), NewItem(b"y", "y")])
    verdict = records.add_verdict(first.id, make_row([0.9, 0.1, 0.7]), own_taxonomy)
    with pytest.raises(NotFoundError, match=f"Item {second.id} has no verdict {verdict.id}"):
        records.decide(second.id, verdict.id, "agree", moderator="m")
    with pytest.raises(NotFoundError, match="no item 99"):
        records.decide(99, verdict.id, "agree", moderator="m")
    with pytest.raises(EntryError, match="name of its moderator"):
        records.decide(first.id, verdict.id, "agree", moderator=" \n")
    with pytest.raises(EntryError, match="at most 100"):
        records.decide(first.id, verdict.id, "agree", moderator="m" * 101)
    with pytest.raises(TaxonomyError, match="no category 'Knifes'"):
        records.decide(
            first.id, verdict.id, "overrule", status="unsafe", categories=["Knifes"], moderator="m"
        )
    assert records.decisions() == []
    assert records.counts() == {"open": 2, "decided": 0, "skipped": 0}


@pytest.mark.parametrize(
    ("prompt", "reason"), [("a" * 100_001, "at most 100,000"), ("a\0b", "NUL"), ("\ud800", "is no text")]
)
def test_a_prompt_that_cannot_be_stored_stores_nothing(records, tmp_path, prompt, reason):
    with pytest.raises(EntryError, match=reason):
        records.add_items([NewItem(b"x", "x"), NewItem(b"y", "y", prompt)])
    assert records.items() == []
    assert stored_images(tmp_path) == set()


def test_deleting_removes_the_image_with_its_last_item(records, own_taxonomy, make_row, tmp_path):
    one, same, other = records.add_items([NewItem(b"x", "1", "p"), NewItem(b"x", "2"), NewItem(b"y", "3")])
    records.add_verdict(one.id, make_row([0.9, 0.1, 0.7]), own_taxonomy)
    records.delete_item(one.id)
    assert stored_images(tmp_path) == {same.sha256, other.sha256}
    records.delete_item(same.id)
    assert stored_images(tmp_path) == {other.sha256}
    assert [item.id for item in records.items()] == [other.id]
    with pytest.raises(NotFoundError):
        records.image(same.sha256)
    with pytest.raises(NotFoundError, match=f"no item {one.id}"):
        records.delete_item(one.id)
    [new] = records.add_items([NewItem(b"x", "4")])
    assert new.id > other.id, "an id is never given twice"
    assert records.image(new.sha256) == b"x"


def test_deleting_keeps_what_was_decided(records, own_taxonomy, make_row, tmp_path):
    [item] = records.add_items([NewItem(b"x", "x", "a private prompt")])
    verdict = records.add_verdict(item.id, make_row([0.9, 0.1, 0.7]), own_taxonomy)
    decision = records.decide(item.id, verdict.id, "agree", moderator="m")
    records.delete_item(item.id)
    [kept] = records.decisions()
    assert kept.to_dict() == decision.to_dict()
    assert kept.item.prompt is None
    assert records.items() == []
    assert list(records.latest_verdicts(own_taxonomy.hash)) == []
    assert sum(records.counts().values()) == 0
    assert stored_images(tmp_path) == set()
    with pytest.raises(NotFoundError):
        records.decide(item.id, verdict.id, "agree", moderator="m")


def test_a_removal_that_was_interrupted_is_done_at_the_next_start(
    records, database_url, open_records, tmp_path, monkeypatch
):
    [item] = records.add_items([NewItem(b"x", "x")])
    monkeypatch.setattr(Records, "_finish_removals", lambda self: None)  # killed here
    records.delete_item(item.id)
    assert stored_images(tmp_path) == {item.sha256}
    monkeypatch.undo()
    open_records(database_url)
    assert stored_images(tmp_path) == set()


def test_an_upload_that_fails_leaves_no_image(records, tmp_path, monkeypatch):
    [kept] = records.add_items([NewItem(b"x", "x")])

    def fail(row):
        raise OSError("disk full")

    monkeypatch.setattr("judge.records.records._item", fail)
    with pytest.raises(OSError, match="disk full"):
        records.add_items([NewItem(b"x", "again"), NewItem(b"y", "y")])
    monkeypatch.undo()
    assert records.items() == [kept]
    assert stored_images(tmp_path) == {kept.sha256}


def test_half_an_image_is_stored_again(records, tmp_path):
    [item] = records.add_items([NewItem(b"the whole image", "x")])
    (tmp_path / "images" / item.sha256).write_bytes(b"the wh")
    records.add_items([NewItem(b"the whole image", "x")])
    assert records.image(item.sha256) == b"the whole image"


def test_a_damaged_image_is_no_other_image(records, tmp_path):
    [item] = records.add_items([NewItem(b"x", "x")])
    (tmp_path / "images" / item.sha256).write_bytes(b"y")
    with pytest.raises(RecordsError, match="damaged"):
        records.image(item.sha256)


@pytest.mark.parametrize("name", ["../records.sqlite", "", "A" * 64, "0" * 63])
def test_no_path_is_a_hash(records, name):
    with pytest.raises(NotFoundError, match="no SHA-256"):
        records.image(name)


def test_taxonomies_are_saved_in_versions(records, own_taxonomy):
    first = records.save_taxonomy("mine", own_taxonomy, "ada")
    assert (first.name, first.version, first.saved_by) == ("mine", 1, "ada")
    assert first.taxonomy.categories == own_taxonomy.categories
    assert (first.taxonomy.name, first.taxonomy.version) == ("mine", "1")
    assert records.save_taxonomy("mine", own_taxonomy, "bob") == first, "nothing changed"
    reworded = own_taxonomy.reword({"Gore": "blood"})
    second = records.save_taxonomy("mine", reworded)
    assert (second.version, second.saved_by) == (2, None)
    third = records.save_taxonomy("mine", own_taxonomy)
    assert third.version == 3
    records.save_taxonomy("a", reworded)
    assert records.taxonomy("mine") == third
    assert records.taxonomy("mine", 2) == second
    assert [(saved.name, saved.version) for saved in records.taxonomies()] == [("a", 1), ("mine", 3)]
    with pytest.raises(NotFoundError, match="no version 4; there are 1 to 3"):
        records.taxonomy("mine", 4)
    with pytest.raises(NotFoundError, match="saved are: 'a', 'mine'"):
        records.taxonomy("Mine")


@pytest.mark.parametrize("name", ["mine@2", "a/b", "a?b", "", "a\nb", "safe", "<script>", "x" * 81])
def test_what_cannot_name_a_taxonomy(records, own_taxonomy, name):
    with pytest.raises(TaxonomyError):
        records.save_taxonomy(name, own_taxonomy)
    assert records.taxonomies() == []


def test_a_taxonomy_comes_back_to_the_letter(records, own_taxonomy):
    odd = own_taxonomy.extend(
        [
            Category("yes", "'quoted' & more - 5%: #", examples=("null", "- a"), code="1.0"),
            Category("\u00c4rger", "\u4e2d\u6587 " + "word " * 60 + "end", key="k", aliases=("Zorn",)),
        ]
    )
    saved = records.save_taxonomy("odd", odd)
    assert records.taxonomy("odd").taxonomy.categories == odd.categories
    assert saved.hash == odd.hash


def test_sixteen_writers_lose_nothing(
    database_url, open_records, own_taxonomy, make_row, tmp_path, monkeypatch
):
    monkeypatch.setattr("judge.records.database._WAIT_SECONDS", PATIENCE)  # a disk may take its time
    records = open_records(database_url)
    rounds, writers = 2, 16
    ready = threading.Barrier(writers)

    def work(writer):
        ready.wait(PATIENCE)
        decided = []
        for number in range(rounds):
            mine, shared = records.add_items(
                [NewItem(f"{writer} {number}".encode(), "mine"), NewItem(b"shared", "shared")]
            )
            verdict = records.add_verdict(mine.id, make_row([0.9, 0.1, 0.7]), own_taxonomy)
            decided.append(records.decide(mine.id, verdict.id, "agree", moderator=f"{writer}"))
            records.delete_item(shared.id)
            records.save_taxonomy("mine", own_taxonomy.reword({"Gore": f"{writer} {number}"}))
        return decided

    with ThreadPoolExecutor(writers) as pool:
        acknowledged = [decision for done in pool.map(work, range(writers)) for decision in done]
    log = records.decisions()
    assert sorted(log, key=lambda d: d.id) == sorted(acknowledged, key=lambda d: d.id)
    assert len(log) == rounds * writers
    assert records.counts() == {"open": 0, "decided": rounds * writers, "skipped": 0}
    assert stored_images(tmp_path) == {entry.item.sha256 for entry in log}
    versions = [records.taxonomy("mine", version).version for version in range(1, rounds * writers + 1)]
    assert records.taxonomy("mine").version == len(versions)


def test_readers_do_not_wait_for_a_writer(records):
    records.add_items([NewItem(b"x", "x")])
    with records._database.write() as session:
        session.execute(text("UPDATE items SET name = 'changed'"))
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(records.items).result(PATIENCE)[0].name == "x"
    assert records.items()[0].name == "changed"


def test_a_writer_does_not_wait_for_ever(database_url, open_records, monkeypatch):
    monkeypatch.setattr("judge.records.database._WAIT_SECONDS", 0.2)
    records, other = open_records(database_url), open_records(database_url)
    with records._database.write():
        with pytest.raises(RecordsError, match="lock"):
            other.add_items([NewItem(b"x", "x")])
        with ThreadPoolExecutor(1) as pool, pytest.raises(RecordsError, match="lock"):
            pool.submit(records.add_items, [NewItem(b"x", "x")]).result(PATIENCE)
    assert [item.name for item in other.add_items([NewItem(b"x", "later")])] == ["later"]


def test_an_error_undoes_the_whole_write(records):
    records.add_items([NewItem(b"x", "x")])
    with suppress(KeyError), records._database.write() as session:
        session.execute(text("UPDATE items SET name = 'changed'"))
        raise KeyError
    assert records.items()[0].name == "x"


def test_a_state_folder_may_have_any_name(tmp_path):
    for name in ("a?mode=ro", "100%20 #1", "\u00e4\u4e2d'"):
        records = Records.in_folder(tmp_path / name)
        records.add_items([NewItem(b"x", "x")])
        records.close()
        assert (tmp_path / name / "records.sqlite").stat().st_size > 0


def test_a_state_folder_holds_everything(tmp_path):
    records = Records.in_folder(tmp_path / "a" / "state")
    records.add_items([NewItem(b"x", "x")])
    records.close()
    assert {path.name for path in (tmp_path / "a" / "state").iterdir()} == {"images", "records.sqlite"}
    assert stat.S_IMODE((tmp_path / "a" / "state").stat().st_mode) == 0o700
    again = Records.in_folder(tmp_path / "a" / "state")
    assert [item.name for item in again.items()] == ["x"]
    again.close()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("mysql://root@localhost/a", "kind 'mysql'"),
        ("records.sqlite", "no URL"),
        ("postgresql+psycopg://me:secret@/no?port=nonsense&host=/nowhere", "nonsense"),
        ("postgresql://me:secret@/no?host=/nowhere", "No such file"),
    ],
)
def test_a_database_that_cannot_be_used_says_so(url, reason, tmp_path):
    with pytest.raises((ConfigError, RecordsError), match=reason) as error:
        Records(url, tmp_path / "images")
    assert "secret" not in str(error.value)


def test_a_file_that_is_no_database(tmp_path):
    (tmp_path / "notes.txt").write_text("not a database, but long enough to look at " * 50)
    with pytest.raises(RecordsError, match="not a database"):
        Records(f"sqlite:///{tmp_path / 'notes.txt'}", tmp_path / "images")
    with pytest.raises(RecordsError, match="cannot be opened"):
        Records(f"sqlite:///{tmp_path / 'missing' / 'a.sqlite'}", tmp_path / "images")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RecordsError, match="cannot be made"):
        Records(f"sqlite:///{tmp_path / 'a.sqlite'}", tmp_path / "file")
    assert not os.path.exists(tmp_path / "a.sqlite")
