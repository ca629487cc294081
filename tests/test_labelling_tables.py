"""Parquet and JSON lines as inputs: every row once, in order, whatever is damaged; paths stay inside the input."""

import base64
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fixtures_inputs import PNG, check_skips, lines_of, read_file, tar_of
from hypothesis import given
from hypothesis import strategies as st

from judge.data.images import ImageLimits
from judge.errors import ConfigError
from judge.labelling.inputs.read import check_source, read_shard
from judge.labelling.inputs.shards import Shard

IMAGES = st.lists(st.binary(max_size=300).map(PNG.__add__), max_size=9)
FLIPS = st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), max_size=3)
SKIPPED = st.sets(st.integers(0, 9))


def text_of(image: bytes) -> str:
    return base64.b64encode(image).decode()


def damage(data: bytes, flips: list[tuple[int, int]], cut: int | None) -> bytes:
    made = bytearray(data)
    for place, bits in flips:
        made[place % len(made)] ^= bits
    return bytes(made if cut is None else made[: cut % len(made)])


FORMS = {
    "binary": lambda images: pa.array(images, pa.binary()),
    "large_binary": lambda images: pa.array(images, pa.large_binary()),
    "datasets": lambda images: pa.array(
        [{"bytes": image, "path": "a.png"} for image in images],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    ),
    "base64": lambda images: pa.array(map(text_of, images), pa.string()),
    "data_url": lambda images: pa.array(
        (f"data:image/png;base64,{text_of(image)}" for image in images), pa.large_string()
    ),
}


@given(IMAGES, st.sampled_from(sorted(FORMS)), st.integers(1, 4), SKIPPED)
def test_every_row_of_parquet_once(
    tmp_path: Path, images: list[bytes], form: str, rows: int, skipped: set[int]
) -> None:
    prompts = [None if number % 3 == 2 else f"p{number}" for number in range(len(images))]
    table = pa.table({"image": FORMS[form](images), "prompt": pa.array(prompts, pa.string())})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=rows)
    read = check_skips(tmp_path, "t.parquet", "parquet", skipped)
    assert [(row.id, row.prompt, row.image) for row in read] == [
        (f"t.parquet#{number}", prompt, image)
        for number, (prompt, image) in enumerate(zip(prompts, images, strict=True))
    ]


@given(IMAGES.filter(bool), st.integers(1, 4), FLIPS, st.none() | st.integers(0, 10**6), SKIPPED)
def test_damaged_parquet_never_raises(
    tmp_path: Path, images: list[bytes], rows: int, flips: list, cut: int | None, skipped: set[int]
) -> None:
    table = pa.table({"image": images})
    pq.write_table(
        table, tmp_path / "t.parquet", row_group_size=rows, write_page_checksum=True, compression="none"
    )
    data = damage((tmp_path / "t.parquet").read_bytes(), flips, cut)
    (tmp_path / "t.parquet").write_bytes(data)
    read = check_skips(tmp_path, "t.parquet", "parquet", skipped)
    if len(read) == len(images):
        # Pages have checksums: what is read is what was written.
        assert all(
            isinstance(row.image, str) or row.image == one for row, one in zip(read, images, strict=True)
        )
    else:
        assert [row.id for row in read] == ["t.parquet"]
        assert read[0].image == "unreadable"


def test_a_damaged_row_group_costs_its_own_rows(tmp_path: Path) -> None:
    images = [PNG + bytes([number]) * 500 for number in range(6)]
    pq.write_table(
        pa.table({"image": images}),
        tmp_path / "t.parquet",
        row_group_size=2,
        compression="none",
        write_page_checksum=True,
    )
    data = bytearray((tmp_path / "t.parquet").read_bytes())
    data[data.index(images[2]) + 100] ^= 1
    (tmp_path / "t.parquet").write_bytes(data)
    rows = check_skips(tmp_path, "t.parquet", "parquet", {2})
    assert [row.image for row in rows] == [*images[:2], "unreadable", "unreadable", *images[4:]]
    assert "row group 1 is damaged" in rows[2].reason


@given(IMAGES, st.booleans(), st.sampled_from([b"\n", b"\r\n", b"\n \n"]), SKIPPED)
def test_every_line_once(
    tmp_path: Path, images: list[bytes], packed: bool, end: bytes, skipped: set[int]
) -> None:
    records = [{"image": text_of(image), "prompt": f"p{number}"} for number, image in enumerate(images)]
    data = b"\xef\xbb\xbf" + b"".join(json.dumps(record).encode() + end for record in records)
    (tmp_path / "t.jsonl").write_bytes(gzip.compress(data) if packed else data)
    if not images:
        data = b""
        (tmp_path / "t.jsonl").write_bytes(data)
    step = end.count(b"\n")
    assert [
        (row.id, row.prompt, row.image) for row in check_skips(tmp_path, "t.jsonl", "jsonl", skipped)
    ] == [(f"t.jsonl#{number * step + 1}", f"p{number}", image) for number, image in enumerate(images)]


@given(IMAGES.filter(bool), FLIPS, st.none() | st.integers(0, 10**6), SKIPPED, st.booleans())
def test_damaged_lines_never_raise(
    tmp_path: Path, images: list[bytes], flips: list, cut: int | None, skipped: set[int], packed: bool
) -> None:
    data = lines_of({"image": text_of(image)} for image in images)
    plain = damage(data, flips, cut)
    (tmp_path / "t.jsonl").write_bytes(damage(gzip.compress(data), flips, cut) if packed else plain)
    rows = check_skips(tmp_path, "t.jsonl", "jsonl", skipped)
    same = next((place for place, (one, two) in enumerate(zip(data, plain)) if one != two), len(plain))  # noqa: B905
    if not packed:
        whole = data[:same].count(b"\n")
        assert [row.image for row in rows[:whole]] == images[:whole]


def test_lines_that_are_no_rows(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(
        b'[1]\n{"image": "iVBO\n{}\n{"image": null, "id": "x"}\n{"image": 7}\n\xff\xfe\n'
        b'{"image": "data:image/png;base64,iVBORw0KGgo=", "prompt": 5}\n' + b"[" * 5000 + b"\n" + bytes(900)
    )
    rows = check_skips(tmp_path, "t.jsonl", "jsonl", {2})
    assert [(row.id.removeprefix("t.jsonl#"), row.image) for row in rows] == [
        *(
            ("1", "unreadable"),
            ("2", "unreadable"),
            ("3", "missing"),
            ("4/x", "missing"),
            ("5", "not_an_image"),
        ),
        *(("6", "unreadable"), ("7", "unreadable"), ("8", "unreadable"), ("9", "unreadable")),
    ]
    assert "900 zero bytes" in rows[-1].reason


def test_a_long_line_is_not_kept(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(lines_of([{"image": "A" * 4_000_000}, {"image": text_of(PNG)}]))
    shard = Shard(0, "jsonl", str(tmp_path), ("t.jsonl",))
    large, small = read_shard(shard, lambda number: False, ImageLimits(max_bytes=1000))
    assert large is not None
    assert large.problem is not None
    assert large.problem.status == "too_large"
    assert small is not None
    assert small.id == "t.jsonl#2"
    assert bytes(small.image) == PNG


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_paths_stay_inside_the_input(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "in"
    (root / "tables" / "pictures").mkdir(parents=True)
    for place in (tmp_path / "secret.png", root / "up.png", root / "tables" / "pictures" / "a b.png"):
        place.write_bytes(PNG + place.name.encode())
    (root / "tables" / "link.png").symlink_to(tmp_path / "secret.png")
    paths = {
        "pictures/a b.png": PNG + b"a b.png",
        "pictures\\a b.png": PNG + b"a b.png",
        "../up.png": PNG + b"up.png",
        str(root / "up.png"): PNG + b"up.png",
        "../../secret.png": "unreadable",
        str(tmp_path / "secret.png"): "unreadable",
        "link.png": "unreadable",
        "none.png": "missing",
        "https://example.org/a.png": "url_refused",
        "file:///etc/passwd": "url_refused",
        "s3://bucket/a.png": "url_refused",
        "": "missing",
        "a\0b.png": "unreadable",
        f"{'x' * 300}.png": "unreadable",
    }
    records = [{"path": path} for path in paths]
    if kind == "jsonl":
        (root / "tables" / "t.jsonl").write_bytes(lines_of(records))
    else:
        pq.write_table(pa.Table.from_pylist(records), root / "tables" / "t.parquet")
    read = check_skips(root, f"tables/t.{kind}", kind, {1})
    assert {path: row.image for path, row in zip(paths, read, strict=True)} == paths


def test_a_text_is_a_path_or_base64(tmp_path: Path) -> None:
    (tmp_path / "abcd").write_bytes(PNG + b"file")
    long = text_of(PNG + bytes(300))  # no file system takes it as a name
    texts = ["abcd", text_of(PNG + b"abc"), long, "a.png", "abcde"]
    (tmp_path / "t.jsonl").write_bytes(lines_of({"image": text} for text in texts))
    read = [row.image for row in read_file(tmp_path, "t.jsonl", "jsonl")]
    assert read == [PNG + b"file", PNG + b"abc", PNG + bytes(300), "missing", "not_an_image"]


def test_a_row_names_itself_and_stays_distinguishable(tmp_path: Path) -> None:
    names = ["cat", "cat", None, 7, "x\ud800"]
    (tmp_path / "t.jsonl").write_bytes(lines_of({"image": text_of(PNG), "uuid": name} for name in names))
    rows = read_file(tmp_path, "t.jsonl", "jsonl", id="uuid")
    assert [row.id for row in rows] == [
        *("t.jsonl#1/cat", "t.jsonl#2/cat", "t.jsonl#3", "t.jsonl#4/7", "t.jsonl#5/x\\ud800"),
    ]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_columns_are_checked_before_anything_is_read(tmp_path: Path, kind: str) -> None:
    record = {"picture": text_of(PNG), "caption": "c"}
    path = tmp_path / f"t.{kind}"
    if kind == "jsonl":
        path.write_bytes(lines_of([record]))
    else:
        pq.write_table(pa.Table.from_pylist([record]), path)
    with pytest.raises(ConfigError, match=r"neither a column 'image' nor 'path'.*'picture', 'caption'"):
        check_source(str(tmp_path), path.name, kind, {})
    with pytest.raises(ConfigError, match="no column 'pic'"):
        check_source(str(tmp_path), path.name, kind, {"image": "pic"})
    named = {"image": "picture", "prompt": "caption"}
    check_source(str(tmp_path), path.name, kind, named)
    assert [row[1:3] for row in read_file(tmp_path, path.name, kind, **named)] == [("c", PNG)]
    path.write_bytes(b"damaged")  # what its rows say, not an error of the run
    check_source(str(tmp_path), path.name, kind, {})


def test_row_groups_that_are_skipped_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [PNG + bytes([number]) for number in range(6)]
    pq.write_table(pa.table({"image": images, "other": [1] * 6}), tmp_path / "t.parquet", row_group_size=2)
    asked: list[tuple[list[int], list[str]]] = []
    iter_batches = pq.ParquetFile.iter_batches

    def record(table: pq.ParquetFile, *arguments: object, **named: object) -> object:
        asked.append((named["row_groups"], named["columns"]))
        return iter_batches(table, *arguments, **named)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", record)
    rows = read_file(tmp_path, "t.parquet", "parquet", lambda number: number < 3)
    assert [row and row.image for row in rows] == [None, None, None, *images[3:]]
    assert asked == [([1], ["image"]), ([2], ["image"])]


def test_what_a_row_calls_itself_and_its_prompt_have_limits(tmp_path: Path) -> None:
    """Strangers choose them, and the ids of 4,096 rows are in memory together."""
    rows = [{"image": text_of(PNG), "id": "n" * 10**6, "prompt": "p" * size} for size in (10**5, 2**16)]
    (tmp_path / "t.jsonl").write_bytes(lines_of(rows))
    long, kept = read_file(tmp_path, "t.jsonl", "jsonl")
    assert long is not None
    assert kept is not None
    assert (long.image, long.prompt, long.reason) == (
        "too_large",
        None,
        "a prompt of 100,000 characters; at most 65,536 are read",
    )
    assert (kept.image, kept.prompt) == (PNG, "p" * 2**16)
    assert kept.id == "t.jsonl#2/" + "n" * 1024
    names = [f"{'d' * 5000}{number}.{'s' * 5000}{also}.png" for number in (1, 2) for also in "ab"]
    (tmp_path / "t.tar").write_bytes(
        tar_of([*((name, PNG) for name in names), ("z.png", PNG), ("z.txt", b"p" * 10**5)])
    )
    found = [row for row in read_file(tmp_path, "t.tar", "tar") if row is not None]  # ids differ
    assert [row.image for row in found] == [PNG] * 4 + ["too_large"]
    assert max(len(row.id) for row in found) < 2100
