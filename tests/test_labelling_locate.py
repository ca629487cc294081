"""Which files of an input are labelled: every image and every table, here and behind URLs; ids that are unique."""

import base64
import os
import random
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fixtures_inputs import PNG, lines_of, read_file, read_row, tar_of
from hypothesis import given
from hypothesis import strategies as st

from judge.data.walk import in_order
from judge.errors import ConfigError
from judge.labelling.inputs.ids import file_id, place_id, storable
from judge.labelling.inputs.locate import Found, find_sources, root_of
from judge.labelling.inputs.read import read_shard
from judge.labelling.inputs.shards import Shard


def parquet_of(folder: Path, image: bytes) -> bytes:
    pq.write_table(pa.table({"image": [image]}), folder / "made")
    data = (folder / "made").read_bytes()
    (folder / "made").unlink()
    return data


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    """Path -> content of files that an input holds: one of each kind, by name and by content, and others."""
    tar, table = tar_of([("k.png", PNG + b"tar")]), parquet_of(tmp_path, PNG + b"table")
    return {
        "a.png": PNG + b"a",
        "b.JPG": b"",
        "sub/c": PNG + b"c",
        "sub/deep/d.heic": b"d",
        "t.tar": tar,
        "sub/tar": tar,
        "t.parquet": table,
        "table": table,
        "t.jsonl": lines_of([{"path": "sub/c"}]),
        "notes.txt": b"notes",
        "sub/labels.csv": b"path,label\n",
        ".hidden.png": PNG,
        "_marks/e.png": PNG,
        "sub/.git/f.png": PNG,
        "_SUCCESS": b"",
    }


FOUND = [
    *(
        ("images", "a.png"),
        ("images", "b.JPG"),
        ("jsonl", "t.jsonl"),
        ("parquet", "t.parquet"),
        ("tar", "t.tar"),
    ),
    *(("parquet", "table"), ("images", "sub/c"), ("tar", "sub/tar"), ("images", "sub/deep/d.heic")),
]
IMAGES = {
    **{"a.png": PNG + b"a", "b.JPG": b"", "sub/c": PNG + b"c", "sub/deep/d.heic": b"d"},
    **{"t.tar/k": PNG + b"tar", "sub/tar/k": PNG + b"tar"},
    **{"t.parquet#0": PNG + b"table", "table#0": PNG + b"table", "t.jsonl#1": PNG + b"c"},
}


@pytest.fixture(params=["local", "file", "memory"])
def where(request: pytest.FixtureRequest, tmp_path: Path, files: dict[str, bytes]) -> Iterator[str]:
    """An input with these files: a folder, or a URL."""
    root = f"memory://{uuid4().hex}" if request.param == "memory" else f"file://{tmp_path}/in"
    system, below = fsspec.core.url_to_fs(root)
    for path, content in files.items():
        system.makedirs(f"{below}/{path}".rpartition("/")[0], exist_ok=True)
        system.pipe_file(f"{below}/{path}", content)
    yield str(tmp_path / "in") if request.param == "local" else root
    system.rm(below, recursive=True)


def test_every_image_and_table_is_found_and_read(where: str) -> None:
    remarks: list[str] = []
    found = list(find_sources(where, {}, remarks.append))
    assert [(one.kind, one.path) for one in found] == FOUND
    [remark] = remarks
    assert "2 files are neither" in remark
    assert "1 .txt" in remark
    assert all(one.modified > 10**18 for one in found)
    read = [row for one in found for row in read_file(root_of(where), one.path, one.kind)]
    assert {row.id: row.image for row in read} == IMAGES
    folder = Shard(0, "images", root_of(where), tuple(one.path for one in found if one.kind == "images"))
    rows = list(read_shard(folder, lambda number: number == 1))
    assert [row and read_row(row).id for row in rows] == ["a.png", None, "sub/c", "sub/deep/d.heic"]


def test_the_folder_of_labels_is_no_input(tmp_path: Path) -> None:
    """By whatever path it is found: its Parquet files would be labelled, or refused, in the next run."""
    for path in ("a.png", "labels/deep/b.png", "sub/labels/c.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(PNG)
    (tmp_path / "sub" / "link").symlink_to(tmp_path / "labels")
    found = find_sources(str(tmp_path), leave_out=tmp_path / "sub" / ".." / "labels")
    assert [one.path for one in found] == ["a.png", "sub/labels/c.png"]


def test_one_file_of_each_kind(where: str) -> None:
    for path, ident in (("sub/c", "c"), ("sub/tar", "tar/k"), ("table", "table#0"), ("t.jsonl", "t.jsonl#1")):
        one = f"{where}/{path}"
        [found] = find_sources(one)
        assert found.path == path.rpartition("/")[2]
        [row] = read_file(root_of(one), found.path, found.kind)
        assert (row.id, row.image) == (ident, IMAGES[f"sub/{ident}" if path.startswith("sub/") else ident])
    with pytest.raises(ConfigError, match=r"is no image and none of \.tar"):
        list(find_sources(f"{where}/notes.txt"))
    with pytest.raises(ConfigError, match="none"):
        root_of(f"{where}/none")


def test_a_table_without_images_is_an_error_at_once(where: str) -> None:
    with pytest.raises(ConfigError, match=r"t\.jsonl.* has no column 'picture'"):
        list(find_sources(where, {"image": "picture"}))


def test_one_strange_table_stops_nothing(tmp_path: Path) -> None:
    """Whoever may upload a file could end every run; and a folder of images may have a metadata.jsonl."""
    pq.write_table(pa.table({"x": [1]}), tmp_path / "upload")
    (tmp_path / "metadata.jsonl").write_bytes(lines_of([{"file_name": "a.png"}]))
    with pytest.raises(ConfigError, match=r"metadata\.jsonl, line 1 has neither"):
        list(find_sources(str(tmp_path)))
    (tmp_path / "z.png").write_bytes(PNG)
    remarks: list[str] = []
    found = list(find_sources(str(tmp_path), {}, remarks.append))
    assert [one.path for one in found] == ["metadata.jsonl", "upload", "z.png"]
    [remark] = remarks
    assert remark.startswith(
        "2 tables hold no images, and their rows will have no verdict; the first: metadata"
    )
    rows = [row for one in found for row in read_file(tmp_path, one.path, one.kind)]
    assert [row and row.image for row in rows] == ["missing", "not_an_image", PNG]
    with pytest.raises(ConfigError, match="no column 'jpg'"):
        list(find_sources(str(tmp_path), {"image": "jpg"}))


def test_what_cannot_be_read_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/x.png", "closed/y.png", "z/loop"):
        (tmp_path / name).parent.mkdir()
    (tmp_path / "a/x.png").write_bytes(PNG)
    (tmp_path / "z/loop.png").symlink_to("loop.png")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if os.path.basename(path) == "closed":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = list(find_sources(str(tmp_path)))
    assert [(one.kind, one.path) for one in found] == [
        ("images", "a/x.png"),
        ("images", "closed"),
        ("images", "z/loop.png"),
    ]
    read = [row for one in found for row in read_file(tmp_path, one.path, one.kind)]
    assert [row.image for row in read] == [PNG, "unreadable", "unreadable"]


def test_linked_folders_are_read_once(tmp_path: Path) -> None:
    (tmp_path / "in" / "b").mkdir(parents=True)
    (tmp_path / "in" / "b" / "x.png").write_bytes(PNG)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "y.png").write_bytes(PNG)
    for name, target in (("a", "b"), ("circle", "."), ("l1", "../elsewhere"), ("l2", "../elsewhere")):
        (tmp_path / "in" / name).symlink_to(target)
    assert [one.path for one in find_sources(str(tmp_path / "in"))] == ["b/x.png", "l1/y.png"]


@pytest.mark.parametrize("kind", ["images", "tar", "parquet", "jsonl"])
def test_a_file_that_vanished_is_one_row(tmp_path: Path, kind: str) -> None:
    for root in (str(tmp_path), f"memory://{uuid4().hex}"):
        [row] = read_file(root, "gone", kind)
        assert row[:3] == ("gone", None, "missing")
        assert read_file(root, "gone", kind, lambda number: True) == [None]


def test_names_that_are_no_utf8_stay_apart(tmp_path: Path) -> None:
    names = [
        b"a\xff.png",
        rb"a\xff.png",
        rb"a\\xff.png",
        b"a\xfe.png",
        rb"b\c.png",
        b"t.jsonl#1",
        b"album#3/a.png",
    ]
    (tmp_path / "album#3").mkdir()
    for name in names:
        (tmp_path / os.fsdecode(name)).write_bytes(PNG + name)
    (tmp_path / "t.jsonl").write_bytes(lines_of([{"path": "album#3/a.png"}]))
    found: list[Found] = list(find_sources(str(tmp_path)))
    read = [row for one in found for row in read_file(tmp_path, one.path, one.kind)]
    assert len({row.id for row in read}) == len(names) + 1
    assert {row.image for row in read} == {PNG + name for name in names}
    assert {row.id for row in read} >= {r"a\xff.png", r"b\c.png", "t.jsonl#1"}


TEXTS = st.text("ax#1/\\feud8\udcff\ud800é", max_size=9)


@given(TEXTS, TEXTS, st.integers(0, 20))
def test_different_things_have_different_ids(one: str, two: str, number: int) -> None:
    assert (storable(one) == storable(two)) == (one == two)
    assert (file_id(one) == file_id(two)) == (one == two)
    assert file_id(one) != place_id(two, number)
    for text in (storable(one), file_id(one), place_id(one, number, two)):
        text.encode()


@given(st.lists(st.text("ab\n\0\udcffé", max_size=4)), st.integers(1, 5))
def test_any_number_of_names_is_sorted(names: list[str], at_once: int) -> None:
    assert list(in_order(names, at_once)) == sorted(names)


def test_a_listing_does_not_depend_on_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in random.Random(0).sample(range(50), 50):
        (tmp_path / f"{number:02}.png").touch()
    found = list(find_sources(str(tmp_path)))
    monkeypatch.setattr(in_order, "__defaults__", (7,))  # names that are sorted in memory
    assert list(find_sources(str(tmp_path))) == found
    assert [one.path for one in found] == sorted(one.path for one in found)


@pytest.mark.parametrize("kind", ["images", "tar", "parquet", "jsonl"])
def test_rows_say_how_much_of_the_shard_is_read(tmp_path: Path, kind: str) -> None:
    images = [PNG + random.Random(number).randbytes(300_000) for number in range(12)]
    paths = tuple(f"{number}.png" for number in range(12)) if kind == "images" else ("t",)
    if kind == "images":
        for path, image in zip(paths, images, strict=True):
            (tmp_path / path).write_bytes(image)
    elif kind == "tar":
        (tmp_path / "t").write_bytes(tar_of((f"{number}.png", image) for number, image in enumerate(images)))
    elif kind == "parquet":
        pq.write_table(pa.table({"image": images}), tmp_path / "t")
    else:
        (tmp_path / "t").write_bytes(
            lines_of({"image": base64.b64encode(image).decode()} for image in images)
        )
    rows = list(read_shard(Shard(0, kind, str(tmp_path), paths), lambda number: False))
    places = [row.place for row in rows if row is not None]
    assert places == sorted(places)
    assert all(abs(place - (number + 1) / 12) < 0.15 for number, place in enumerate(places))


def test_images_behind_a_url_are_fetched_ahead_and_no_further() -> None:
    root = f"memory://{uuid4().hex}"
    system, below = fsspec.core.url_to_fs(root)
    paths = tuple(f"{number:02}.png" for number in range(60))
    for path in paths:
        system.pipe_file(f"{below}/{path}", PNG + path.encode())
    rows = list(read_shard(Shard(0, "images", root, paths), lambda number: number % 3 == 1))
    first = rows[0]
    assert first is not None
    assert read_row(first).image == PNG + b"00.png"
    system.rm_file(f"{below}/41.png")  # too far ahead to have been fetched with the first
    read = [row and read_row(row) for row in rows]
    assert [row and row.image for row in read] == [
        None if number % 3 == 1 else "missing" if number == 41 else PNG + path.encode()
        for number, path in enumerate(paths)
    ]
    system.rm(below, recursive=True)
