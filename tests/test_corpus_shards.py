"""Shards of a corpus: read back by ours, by webdataset and by datasets; audited; and killed for real while built."""

import json
import multiprocessing
import os
import random
import signal
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from fixtures_corpus import TREES, stub_plan, stub_stages

from judge.corpus.audit import audit_corpus
from judge.corpus.builder import build
from judge.data.examples import load_examples
from judge.data.images import open_image
from judge.errors import CorpusError
from prompts.errors import ExampleError

leaves_files_open = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
"""Both libraries leave it to the collector to close a tar."""


@pytest.fixture(scope="module")
def built(tmp_path_factory, no_waiting_for_disks):
    folder = tmp_path_factory.mktemp("built")
    return {
        name: build(stub_plan(format=name), stub_stages(), folder / name)
        for name in ("webdataset", "parquet")
    }


def rows_in_shards(folder: Path) -> dict[str, dict]:
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    return {row["id"]: row for row in rows if row["failure"] is None and row["duplicate_of"] is None}


@pytest.mark.parametrize(("name", "kind"), [("webdataset", "webdataset"), ("parquet", "dataset")])
def test_our_own_examples_are_the_rows(built, name, kind):
    folder = built[name].folder
    expected = rows_in_shards(folder)
    seen = {}
    for split in (
        "train",
        "validation",
        "test",
    ):  # of a corpus without validation, a tenth of train becomes it
        found = load_examples(f"{kind}:{folder / 'shards'}", split=split, taxonomy=TREES)
        assert not found.skipped
        for example in found.examples:
            row = expected[example.id.rpartition("/")[2]]
            seen[row["id"]] = split
            assert row["split"] == ("test" if split == "test" else "train")
            assert example.prompt == row["prompt"]
            assert example.source == "generated"
            assert example.violates == {key for key, score in row["scores"].items() if score >= 0.5}
            assert open_image(example.image).size == (16, 16)
    assert set(seen) == set(expected)


def test_a_bare_folder_of_tars_is_known_by_what_is_in_it(built):
    shards = built["webdataset"].folder / "shards"
    assert load_examples(str(shards), split="test", taxonomy=TREES).examples
    assert load_examples(str(min(shards.glob("train*.tar"))), split="train", taxonomy=TREES).examples


@leaves_files_open
def test_webdataset_reads_the_shards(built):
    webdataset = pytest.importorskip("webdataset")
    folder = built["webdataset"].folder
    paths = sorted(str(path) for path in (folder / "shards").glob("*.tar"))
    samples = list(webdataset.WebDataset(paths, shardshuffle=False).decode("pil"))
    expected = rows_in_shards(folder)
    assert {sample["__key__"] for sample in samples} == set(expected)
    for sample in samples:
        assert sample["png"].size == (16, 16)
        assert sample["json"]["seed"] == expected[sample["__key__"]]["seed"]


@leaves_files_open
@pytest.mark.parametrize(("name", "suffix"), [("webdataset", "tar"), ("parquet", "parquet")])
def test_datasets_reads_the_shards(built, tmp_path, name, suffix):
    import datasets

    folder = built[name].folder
    files = sorted(str(path) for path in (folder / "shards").glob(f"train-*.{suffix}"))
    found = datasets.load_dataset(name, data_files=files, split="train", cache_dir=str(tmp_path))
    expected = {key: row for key, row in rows_in_shards(folder).items() if row["split"] == "train"}
    records = [row["json"] if name == "webdataset" else row for row in found]
    assert {record["id"] for record in records} == set(expected)
    assert found[0]["png" if name == "webdataset" else "image"].size == (16, 16)
    for record in records:
        row = expected[record["id"]]
        assert record["scores"] == row["scores"]
        assert (json.loads(record["variant"]) if record["variant"] else None) == row["variant"]


def test_a_category_without_a_score_is_unknown_and_not_safe(tmp_path, corpus_stubs):
    stages = corpus_stubs.stages(variants=False)
    plain = stages.labels

    class Partly:
        name, about = "labels", {}

        def __call__(self, task):
            result = plain(task)
            rows = [replace(row, scores={"oak": None, "birch": 0.1}, unsafe=0.1) for row in result.rows]
            return replace(result, rows=tuple(rows))

    for name, kind in (("webdataset", "webdataset"), ("parquet", "dataset")):
        build(corpus_stubs.plan(format=name), replace(stages, labels=Partly()), tmp_path / name)
        [example, *_] = load_examples(
            f"{kind}:{tmp_path / name / 'shards'}", split="all", taxonomy=TREES
        ).examples
        assert (example.violates, example.unknown) == (frozenset(), {"oak"})
    with tarfile.open(min((tmp_path / "webdataset" / "shards").iterdir())) as tar:
        records = [json.loads(tar.extractfile(m).read()) for m in tar if m.name.endswith(".json")]
    # Who reads the label alone is not told that it is safe.
    assert {(record["label"], record["unknown"]) for record in records} == {("unknown", "Oak")}


def test_shards_say_nothing_of_when_where_and_by_whom(built):
    for path in (built["webdataset"].folder / "shards").iterdir():
        with tarfile.open(path) as tar:
            assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in tar} == {
                (0, 0, 0, "", "", 0o644)
            }


def test_tars_that_are_damaged_or_incomplete_are_skipped_by_name(built, tmp_path):
    whole = min((built["webdataset"].folder / "shards").glob("train*.tar")).read_bytes()
    with pytest.raises(ExampleError, match=r"holds no \.tar"):
        load_examples(f"webdataset:{tmp_path}", split="train", taxonomy=TREES)
    (tmp_path / "train-0.tar").write_bytes(whole)
    (tmp_path / "train-1.tar").write_bytes(whole[: len(whole) // 2 + 100])
    with tarfile.open(tmp_path / "train-2.tar", "w") as tar:
        for name in ("a.json", "b.png"):
            (tmp_path / name).write_text("[]")
            tar.add(tmp_path / name, name)
    found = load_examples(f"webdataset:{tmp_path}", split="train", taxonomy=TREES, max_failures=1.0)
    statuses = {skipped.id: skipped.status for skipped in found.skipped}
    assert statuses["train-2.tar/a"] == statuses["train-2.tar/b"] == "bad_row"
    assert any(
        name.startswith("train-1.tar") or status == "duplicate_id" for name, status in statuses.items()
    )


# --- audit -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["webdataset", "parquet"])
def test_a_whole_corpus_has_nothing_lost_doubled_or_damaged(built, name):
    audit = audit_corpus(built[name].folder)
    assert (audit.lost, audit.doubled, audit.damaged) == ((), (), ())
    assert audit.in_shards + audit.failed + audit.duplicates == audit.rows
    assert min(audit.in_shards, audit.failed, audit.duplicates) > 0


def test_the_audit_finds_what_is_lost_doubled_or_exchanged(tmp_path, corpus_stubs):
    built = build(corpus_stubs.plan(), corpus_stubs.stages(), tmp_path)
    first, second = sorted((tmp_path / "shards").glob("train*.tar"))[:2]
    lost = [record["id"] for record in samples(second)]
    doubled = [record["id"] for record in samples(first)]
    second.write_bytes(first.read_bytes())
    audit = audit_corpus(tmp_path)
    assert (list(audit.lost), list(audit.doubled)) == (lost, doubled)
    content = bytearray(first.read_bytes())
    place = content.index(b"IDAT")
    content[place + 8] ^= 255
    first.write_bytes(content)
    assert list(audit_corpus(tmp_path).damaged) == doubled[:1]
    assert built.shards
    with pytest.raises(CorpusError, match=r"holds no ledger\.sqlite"):
        audit_corpus(tmp_path / "shards")


def samples(path):
    with tarfile.open(path) as tar:
        return [json.loads(tar.extractfile(m).read()) for m in tar if m.name.endswith(".json")]


# --- a real kill -------------------------------------------------------------------------------------------


def _build_and_tell(folder, told):
    """In a process of its own: build, and write a byte after each chunk."""
    build(stub_plan(), stub_stages(), folder, progress=lambda *_: os.write(told, b"."))


def test_killed_again_and_again_it_ends_with_the_same_bytes(tmp_path, built):
    draw, kills = random.Random(0), 0
    for chunks in (1, 2, 3, 1, 4, 2):
        listen, told = os.pipe()
        process = multiprocessing.get_context("fork").Process(target=_build_and_tell, args=(tmp_path, told))
        process.start()
        os.close(told)
        for _ in range(chunks):
            os.read(listen, 1)
        for _ in range(draw.randrange(3000)):
            pass  # a little later, wherever it is by then
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.join()
        os.close(listen)
    assert kills >= 2
    resumed = build(stub_plan(), stub_stages(), tmp_path)
    assert resumed.shards == built["webdataset"].shards
    assert audit_corpus(tmp_path) == audit_corpus(built["webdataset"].folder)
    for name in ("rows.jsonl", "failed.jsonl"):
        assert (tmp_path / name).read_bytes() == (built["webdataset"].folder / name).read_bytes()
    assert not [path for path in tmp_path.rglob(".*") if path.name != ".lock"], "nothing unfinished is left"
