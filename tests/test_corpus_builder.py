"""Building a corpus: every row once, whatever instant the process dies at; and what stops a build."""

import contextlib
import errno
import hashlib
import json
import tarfile
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from judge.corpus import builder, files, ledger, shards
from judge.corpus.builder import build
from judge.corpus.ledger import Ledger
from judge.corpus.stages import Result, in_this_process
from judge.errors import CorpusError


class Killed(BaseException):
    """Stands for the end of the process."""


def hashes(folder):
    names = sorted([*(folder / "shards").iterdir(), folder / "rows.jsonl", folder / "failed.jsonl"])
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in names}


def shard_rows(folder):
    """(id, record, picture) of every row in the shards, in a plain loop."""
    for path in sorted((folder / "shards").glob("*.tar")):
        with tarfile.open(path) as tar:
            content = {member.name: tar.extractfile(member).read() for member in tar}
        for name in content:
            if name.endswith(".json"):
                record = json.loads(content[name])
                yield name.removesuffix(".json"), record, content[name.replace(".json", ".png")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, no_waiting_for_disks):
    """A build that nothing interrupted."""
    from fixtures_corpus import stub_plan, stub_stages

    folder = tmp_path_factory.mktemp("corpus")
    return build(stub_plan(), stub_stages(), folder)


def test_every_row_of_the_plan_is_in_a_shard_or_says_why_not(whole, corpus_stubs):
    rows = [json.loads(line) for line in (whole.folder / "rows.jsonl").read_text().splitlines()]
    failed = [json.loads(line) for line in (whole.folder / "failed.jsonl").read_text().splitlines()]
    found = list(shard_rows(whole.folder))
    in_shards = [row_id for row_id, _, _ in found]
    assert len(in_shards) == len(set(in_shards)) == sum(shard.rows for shard in whole.shards)
    duplicates = {row["id"] for row in rows if row["duplicate_of"]}
    assert {row["id"] for row in rows} == {*in_shards, *duplicates, *(row["id"] for row in failed)}
    assert {row.id for row in corpus_stubs.plan().rows} <= {row["id"] for row in rows}
    assert {row["failure"]["status"] for row in failed} == {"black"}
    assert all(row["failure"]["reason"] == "all pixels are black" for row in failed)
    assert sum(1 for row in rows if row["variant"]) > 5
    for row_id, record, picture in found:
        assert record["id"] == row_id
        assert hashlib.sha256(picture).hexdigest() == record["sha256"]
    splits = {record["split"] for _, record, _ in found}
    assert splits == {"train", "test"}


def test_the_prompts_label_and_the_pictures_label_are_columns_of_their_own(whole):
    records = [record for _, record, _ in shard_rows(whole.folder)]
    assert {record["prompt_label"] for record in records} == {"oak", "safe"}
    for record in records:
        violated = [
            name for name, key in (("Oak", "oak"), ("Birch", "birch")) if record["scores"][key] >= 0.5
        ]
        assert record["categories"] == ";".join(violated)
        assert record["label"] == ("unsafe" if violated else "safe")
    assert {(r["prompt_label"], r["label"]) for r in records} == {
        (prompt, picture) for prompt in ("oak", "safe") for picture in ("safe", "unsafe")
    }


def kill_at(monkeypatch, instant):
    """Let the process die at the given one of all instants before and after something is written."""
    count = iter(range(10**6))

    def passing():
        if next(count) == instant:
            raise Killed

    def around(function):
        def wrapped(*args, **kwargs):
            passing()
            result = function(*args, **kwargs)
            passing()
            return result

        return wrapped

    for name in ("add_plan", "record", "record_new", "add_shard", "set_meta", "_create"):
        monkeypatch.setattr(Ledger, name, around(getattr(Ledger, name)))
    monkeypatch.setattr(files.Parts, "write", around(files.Parts.write))
    monkeypatch.setattr(builder, "write_shard", around(shards.write_shard))
    insert = ledger._insert_rows

    def half(database, entries):
        entries = list(entries)
        insert(database, entries[: len(entries) // 2])
        passing()
        insert(database, entries[len(entries) // 2 :])

    monkeypatch.setattr(ledger, "_insert_rows", half)


@settings(max_examples=10)
@given(instants=st.lists(st.integers(0, 120), min_size=1, max_size=3))
def test_killed_and_resumed_it_has_the_same_rows_and_the_same_bytes(
    tmp_path_factory, whole, corpus_stubs, instants
):
    folder = tmp_path_factory.mktemp("killed")
    for instant in instants:
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Killed):
            kill_at(patch, instant)
            build(corpus_stubs.plan(), corpus_stubs.stages(), folder)
    resumed = build(corpus_stubs.plan(), corpus_stubs.stages(), folder)
    assert resumed.shards == whole.shards
    assert resumed.counts == whole.counts
    assert hashes(folder) == hashes(whole.folder)


def test_chunks_may_end_in_any_order(tmp_path, whole, corpus_stubs):
    def backwards(stage, tasks):
        return reversed(list(in_this_process(stage, tasks)))

    built = build(corpus_stubs.plan(), corpus_stubs.stages(), tmp_path, backwards)
    assert built.shards == whole.shards
    assert hashes(tmp_path) == hashes(whole.folder)


def test_a_chunk_that_an_engine_loses_is_not_written_without_labels(tmp_path, whole, corpus_stubs):
    def losing(stage, tasks):
        return (
            result for result in in_this_process(stage, tasks) if (stage.name, result.chunk) != ("labels", 2)
        )

    with pytest.raises(CorpusError, match="nothing back for the chunk 2 of labels"):
        build(corpus_stubs.plan(), corpus_stubs.stages(), tmp_path, losing)
    assert build(corpus_stubs.plan(), corpus_stubs.stages(), tmp_path).shards == whole.shards


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"prompts": 11}, r"plan, rows: '20 \(.*'22 \("),
        ({"seed": 1}, r"plan, rows: '20 \(.*'20 \("),
        ({"chunk_size": 5}, "chunk_size: 4, not 5"),
        ({"format": "parquet"}, "format: 'webdataset', not 'parquet'"),
    ],
)
def test_another_plan_is_refused_and_says_what_changed(tmp_path, corpus_stubs, other, says):
    build(corpus_stubs.plan(), corpus_stubs.stages(variants=False), tmp_path)
    before = hashes(tmp_path)
    with pytest.raises(CorpusError, match=says):
        build(corpus_stubs.plan(**other), corpus_stubs.stages(variants=False), tmp_path)
    with pytest.raises(CorpusError, match="variants, kind: None, not 'flip'"):
        build(corpus_stubs.plan(), corpus_stubs.stages(), tmp_path)
    assert hashes(tmp_path) == before


def test_a_stage_that_has_not_begun_may_be_set_otherwise(tmp_path, whole, corpus_stubs):
    stages = corpus_stubs.stages()

    class Refusing:
        name, about = "split", {"share": 9}

        def __call__(self, rows, read):
            raise CorpusError("too few clusters")

    with pytest.raises(CorpusError, match="too few clusters"):
        build(corpus_stubs.plan(), replace(stages, whole=(Refusing(),)), tmp_path)
    stages.labels.about = {"classifier": "other"}
    with pytest.raises(CorpusError, match="labels, classifier: 'stub', not 'other'"):
        build(corpus_stubs.plan(), stages, tmp_path)
    stages.labels.about = {"classifier": "stub"}
    assert build(corpus_stubs.plan(), stages, tmp_path).shards == whole.shards


def test_too_many_failures_stop_the_build_and_more_can_be_allowed_later(tmp_path, whole, corpus_stubs):
    plan = corpus_stubs.plan(max_failures=0.05)
    with pytest.raises(
        CorpusError, match=r"2 of 20 rows failed \(10\.0%, allowed 5\.0%\): 2 pictures: black"
    ):
        build(plan, corpus_stubs.stages(), tmp_path)
    built = build(replace(plan, max_failures=0.5), corpus_stubs.stages(), tmp_path)
    assert built.shards == whole.shards


def test_where_every_row_failed_nothing_is_built(tmp_path, corpus_stubs):
    stages = corpus_stubs.stages()
    stages.pictures.fails = 1
    with pytest.raises(CorpusError, match="20 of 20 rows failed"):
        build(corpus_stubs.plan(), stages, tmp_path)
    assert not list((tmp_path / "shards").iterdir())


def test_a_full_disk_is_said_and_the_build_goes_on_afterwards(tmp_path, whole, corpus_stubs, monkeypatch):
    write, calls = files.Parts.write, iter(range(100))

    def full(self, chunk, pictures):
        if next(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, chunk, pictures)

    monkeypatch.setattr(files.Parts, "write", full)
    with pytest.raises(CorpusError, match=r"The disk is full: .* run the same command again"):
        build(corpus_stubs.plan(), corpus_stubs.stages(), tmp_path)
    assert build(corpus_stubs.plan(), corpus_stubs.stages(), tmp_path).shards == whole.shards


def test_a_damaged_ledger_and_missing_pictures_are_said(tmp_path, corpus_stubs):
    with pytest.raises(CorpusError, match="failed"):
        build(corpus_stubs.plan(max_failures=0.06), corpus_stubs.stages(), tmp_path)
    part = min((tmp_path / "parts").iterdir())
    part.unlink()
    with pytest.raises(CorpusError, match=r"000000\.tar lacks a picture that the ledger has"):
        build(corpus_stubs.plan(), corpus_stubs.stages(), tmp_path)
    (tmp_path / "ledger.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(CorpusError, match="damaged, or is none"):
        build(corpus_stubs.plan(), corpus_stubs.stages(), tmp_path)


def test_two_builds_of_one_folder_do_not_mix(tmp_path, corpus_stubs):
    with builder._locked(tmp_path), pytest.raises(CorpusError, match="Another process is building"):
        build(corpus_stubs.plan(), corpus_stubs.stages(), tmp_path)


def test_a_stage_that_answers_with_other_rows_is_a_bug_and_enters_nothing(tmp_path, corpus_stubs):
    stages = corpus_stubs.stages()

    class Dropping:
        name, about = "labels", {}

        def __call__(self, task):
            return Result(task.chunk, stages.labels(task).rows[1:])

    with pytest.raises(CorpusError, match="labels answered with other rows"):
        build(corpus_stubs.plan(), replace(stages, labels=Dropping()), tmp_path)
    assert not (tmp_path / "rows.jsonl").exists()
