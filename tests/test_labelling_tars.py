"""Webdataset tars as inputs: every image once, in order, whatever is damaged."""

import gzip
import json
import tarfile
from itertools import chain
from pathlib import Path

import pytest
from fixtures_inputs import PNG, check_skips, read_file, tar_of
from hypothesis import given
from hypothesis import strategies as st

from judge.data.images import ImageLimits
from judge.data.sources import UNDECLARED, Row, Skipped
from judge.data.tar_shards import TarReader
from judge.labelling.inputs.read import read_shard
from judge.labelling.inputs.shards import Shard

KEYS = st.text("ab/é\udcff#-", min_size=1, max_size=9).filter(lambda key: "" not in key.split("/"))
LONG = st.text("k", min_size=120, max_size=300)


@st.composite
def samples(draw: st.DrawFn, least: int = 0) -> list[list[tuple[str, bytes]]]:
    """The members of each sample: an image, and often a prompt as .txt or in .json; no key twice."""
    found = []
    for key in draw(st.lists(KEYS | LONG, min_size=least, max_size=7, unique=True)):
        image, prompt = draw(st.binary(max_size=1500)), draw(st.none() | st.text("xy ü", max_size=5))
        members = [(f"{key}.png", image)]
        if prompt is not None and draw(st.booleans()):
            members.append((f"{key}.txt", prompt.encode()))
        elif prompt is not None:
            members.append((f"{key}.json", json.dumps({"prompt": prompt}).encode()))
        found.append(members)
    return found


def expected(sample: list[tuple[str, bytes]]) -> tuple[str | None, bytes]:
    """The prompt and the image of a sample, known from its members alone."""
    text = {name.rpartition(".")[2]: content.decode() for name, content in sample[1:]}
    prompt = json.loads(text["json"])["prompt"] if "json" in text else text.get("txt")
    return prompt, sample[0][1]


def ends_of(found: list[list[tuple[str, bytes]]], form: int) -> list[int]:
    """Where each sample ends in the tar, its padding included."""
    ends, members = [], []
    for sample in found:
        members += sample
        tar = tar_of(members, form, end=False)
        ends.append(len(tar))
    return ends


def write(folder: Path, data: bytes, packed: bool = False) -> None:
    (folder / "t.tar").write_bytes(gzip.compress(data, 1) if packed else data)


@given(
    samples(),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    st.booleans(),
    st.sets(st.integers(0, 8)),
)
def test_every_sample_once_and_in_order(
    tmp_path: Path, found: list, form: int, packed: bool, skipped: set[int]
) -> None:
    write(tmp_path, tar_of(chain(*found), form), packed)
    rows = check_skips(tmp_path, "t.tar", "tar", skipped)
    assert [(row.prompt, row.image) for row in rows] == list(map(expected, found))
    for row, [(name, _), *_] in zip(rows, found, strict=True):
        assert row.id == f"t.tar/{name.removesuffix('.png')}".replace("\udcff", "\\xff")


@given(samples(least=1), st.integers(0, 10**6), st.booleans())
def test_a_cut_tar_keeps_what_is_whole(tmp_path: Path, found: list, place: int, packed: bool) -> None:
    ends = ends_of(found, tarfile.GNU_FORMAT)
    place %= ends[-1] + 1
    write(tmp_path, tar_of(chain(*found))[:place], packed)
    rows = check_skips(tmp_path, "t.tar", "tar", {0, 2})
    whole = sum(end <= place for end in ends)
    # More of the last sample, such as its prompt, may have been behind the cut.
    sure = max(0, whole - 1)
    assert [(row.prompt, row.image) for row in rows[:sure]] == list(map(expected, found[:sure]))
    assert all(isinstance(row.image, str) for row in rows[whole:])
    assert rows[-1].id.startswith("t.tar#")
    assert rows[-1].image == "truncated"
    assert "lost, and was not counted" in rows[-1].reason
    assert len(rows) - 1 <= whole + 1


@given(samples(least=2), st.data(), st.booleans())
def test_flipped_bits_cost_their_own_samples(
    tmp_path: Path, found: list, data: st.DataObject, packed: bool
) -> None:
    ends = ends_of(found, tarfile.GNU_FORMAT)
    tar = bytearray(tar_of(chain(*found)))
    first = len(tar)
    for place in data.draw(st.lists(st.integers(0, ends[-1] - 1), min_size=1, max_size=3)):
        tar[place] ^= 1 << data.draw(st.integers(0, 7))
        first = min(first, place)
    write(tmp_path, bytes(tar), packed)
    rows = check_skips(tmp_path, "t.tar", "tar", {1})
    before = max(0, sum(end <= first for end in ends) - 1)
    assert [(row.prompt, row.image) for row in rows[:before]] == list(map(expected, found[:before]))


def test_a_damaged_header_costs_one_sample(tmp_path: Path) -> None:
    found = [[(f"{number}.png", PNG * 90), (f"{number}.txt", b"p")] for number in range(5)]
    tar, start = bytearray(tar_of(chain(*found))), ends_of(found, tarfile.GNU_FORMAT)[1]
    tar[start + 20 : start + 40] = b"\xee" * 20
    write(tmp_path, bytes(tar))
    rows = read_file(tmp_path, "t.tar", "tar")
    # The text that was left of the damaged sample is one without an image.
    assert [row.id for row in rows] == [
        *("t.tar/0", "t.tar/1", f"t.tar#{start}", "t.tar/2", "t.tar/3", "t.tar/4"),
    ]
    assert [row.image if isinstance(row.image, str) else "whole" for row in rows] == [
        *("whole", "truncated", "truncated", "missing", "whole", "whole"),
    ]


@pytest.mark.parametrize(("zeros", "said"), [(512, False), (10240, False), (2**20 + 10240, True)])
def test_zeros_at_the_end_are_padding_or_a_hole(tmp_path: Path, zeros: int, said: bool) -> None:
    members = [("a.png", PNG)]
    write(tmp_path, tar_of(members, end=False) + bytes(zeros))
    rows = read_file(tmp_path, "t.tar", "tar")
    # What belongs to the last sample may have been in the hole.
    assert [row.image for row in rows] == (["truncated", "truncated"] if said else [PNG])
    assert ("zero bytes" in rows[-1].reason) == said


def test_joined_tars_are_read_to_the_last(tmp_path: Path) -> None:
    write(tmp_path, tar_of([("a.png", b"1")]) + tar_of([("b.png", b"2")]))
    assert [row.image for row in read_file(tmp_path, "t.tar", "tar")] == [b"1", b"2"]
    # Zeros that end where no record of a tar ends are a hole.
    write(tmp_path, tar_of([("a.png", b"1")], end=False) + bytes(4096) + tar_of([("b.png", b"2")]))
    assert [row.image for row in read_file(tmp_path, "t.tar", "tar")] == ["truncated", "truncated", b"2"]


def test_the_forms_that_a_sample_takes(tmp_path: Path) -> None:
    members = [
        *(("./d/a.jpg", b"1"), ("./d/a.seg.PNG", b"2"), ("./d/a.txt", b"both")),
        *(("b.cls", b"7"), ("b.json", b'{"caption": "no image"}')),
        *(("c.webp", b"3"), ("c.json", b"{broken")),
        *(("d.bin", PNG + b"4"), ("e.bin", b"other"), ("._f.png", b"hidden"), ("README", b"x")),
        *(("g.png", b"5"), ("h.png", b"6"), ("g.png", b"7"), ("h.txt", b"late")),
    ]
    write(tmp_path, tar_of(members))
    for packed in (False, True):
        write(tmp_path, tar_of(members), packed)
        rows = check_skips(tmp_path, "t.tar", "tar", {1, 4})
        assert [row[:3] for row in rows] == [
            ("t.tar/d/a.jpg", "both", b"1"),
            ("t.tar/d/a.seg.PNG", "both", b"2"),
            ("t.tar/b", None, "missing"),
            ("t.tar/c", None, "unreadable"),
            ("t.tar/d", None, PNG + b"4"),
            ("t.tar/g", None, b"5"),
            ("t.tar/h", None, b"6"),
            ("t.tar/g#2", None, b"7"),
            ("t.tar/h#2", None, "missing"),
        ]
        assert "stand together" in rows[-1].reason


def test_a_link_and_another_packer_are_said(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        link = tarfile.TarInfo("a.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    [row] = read_file(tmp_path, "t.tar", "tar")
    assert row[:3] == ("t.tar/a", None, "missing")
    with tarfile.open(tmp_path / "t.tar", "w:xz") as tar:
        tar.addfile(tarfile.TarInfo("a.png"))
    [row] = check_skips(tmp_path, "t.tar", "tar", set())
    assert row.image == "unsupported_format"
    assert "xz" in row.reason
    [row] = check_skips(tmp_path, "gone.tar", "tar", set())
    assert row[:3] == ("gone.tar", None, "missing")
    write(tmp_path, b"")
    [row] = check_skips(tmp_path, "t.tar", "tar", set())
    assert row.image == "truncated"


def test_a_large_image_is_not_read(tmp_path: Path) -> None:
    write(tmp_path, tar_of([("a.png", bytes(2000)), ("b.png", b"1")]))
    shard = Shard(0, "tar", str(tmp_path), ("t.tar",))
    large, small = read_shard(shard, lambda number: False, ImageLimits(max_bytes=1000))
    assert large is not None
    assert large.problem is not None
    assert large.problem.status == "too_large"
    assert small is not None
    assert small.problem is None


def test_the_reader_of_examples_goes_on_behind_damage(tmp_path: Path) -> None:
    found = [[(f"{number}.png", PNG), (f"{number}.json", b'{"label": "safe"}')] for number in range(4)]
    tar, start = bytearray(tar_of(chain(*found))), ends_of(found, tarfile.GNU_FORMAT)[1]
    tar[start + 20] ^= 1
    write(tmp_path, bytes(tar))
    rows = list(TarReader(tmp_path).rows(UNDECLARED))
    assert [row.id for row in rows if isinstance(row, Row)] == ["0", "3"]
    assert any(
        isinstance(row, Skipped) and f"{tmp_path / 't.tar'} is no whole tar" in row.reason for row in rows
    )
