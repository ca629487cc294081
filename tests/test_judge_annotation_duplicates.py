"""Near copies: the largest of a group stays, every image is in one list, no file is touched."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from judge.annotation.duplicates import Deduplicated, find_copies
from judge.annotation.images import Folder, Picture, list_files
from judge.standins.digits import digits_examples


def canvases(count: int) -> list[Image.Image]:
    return [example.image for example in digits_examples("test", count=count)]


def find(folder: Path) -> Deduplicated:
    names = sorted(path.name for path in folder.iterdir())
    return find_copies(list_files(names, Folder(folder)), Folder(folder))


def test_the_largest_of_a_group_is_kept(tmp_path: Path) -> None:
    first, second, third = canvases(3)
    first.resize((160, 160)).save(tmp_path / "c.png")
    first.resize((80, 80)).save(tmp_path / "a.jpg", quality=80)
    first.save(tmp_path / "b.png")
    # Of equal sizes the first name stays, also where the files differ.
    second.save(tmp_path / "e.png")
    second.save(tmp_path / "d.png", compress_level=0)
    third.save(tmp_path / "f.png")
    (tmp_path / "g.png").write_bytes(b"no picture")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    found = find(tmp_path)
    assert [picture.name for picture in found.kept] == ["c.png", "d.png", "f.png"]
    assert [(copy.picture.name, copy.of, copy.exact) for copy in found.copies] == [
        ("a.jpg", "c.png", False),
        ("b.png", "c.png", False),
        ("e.png", "d.png", True),
    ]
    [(picture, reason)] = found.unreadable
    assert (picture, reason.split(":")[0]) == (Picture("g.png"), "not_an_image")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_every_image_is_in_one_list_and_copies_are_of_what_is_kept(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number, canvas in enumerate(canvases(12)):
        canvas.save(tmp_path / f"{number}.png")
        for copy in range(rng.integers(0, 3)):
            side = int(rng.integers(36, 90))
            canvas.resize((side, side)).save(
                tmp_path / f"{number}-{copy}.jpg", quality=int(rng.integers(50, 95))
            )
    found = find(tmp_path)
    kept = [picture.name for picture in found.kept]
    listed = [*kept, *(copy.picture.name for copy in found.copies)]
    assert sorted(listed) == sorted(path.name for path in tmp_path.iterdir())
    assert {copy.of for copy in found.copies} <= set(kept)
    # Copies are of the same canvas; and again among those that are kept there is none.
    assert all(
        copy.picture.name.split("-")[0].split(".")[0] == copy.of.split("-")[0].split(".")[0]
        for copy in found.copies
    )
    assert len(found.copies) >= 5
    again = find_copies(found.kept, Folder(tmp_path))
    assert again.kept == found.kept


def test_a_chain_of_small_changes_makes_no_copies_of_its_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, side, canvas in zip("abc", (90, 80, 70), canvases(3), strict=True):
        canvas.resize((side, side)).save(tmp_path / f"{name}.png")
    pairs = [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 1), (2, 2)]
    monkeypatch.setattr("judge.annotation.duplicates.near_copies", lambda one, other: np.array(pairs))
    found = find(tmp_path)
    assert [picture.name for picture in found.kept] == ["a.png", "c.png"]
    assert [(copy.picture.name, copy.of) for copy in found.copies] == [("b.png", "a.png")]


@pytest.mark.parametrize("different", [False, True])
def test_uniform_pictures_are_copies_only_pixel_by_pixel(tmp_path: Path, different: bool) -> None:
    Image.new("RGB", (32, 32), "white").save(tmp_path / "a.png")
    Image.new("RGB", (32, 32), "grey" if different else "white").save(tmp_path / "b.png")
    assert [copy.of for copy in find(tmp_path).copies] == ([] if different else ["a.png"])


def test_animations_are_compared_by_their_first_frame(tmp_path: Path) -> None:
    first, second = canvases(2)
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second], duration=100)
    with Image.open(tmp_path / "a.gif") as animation:
        animation.convert("RGB").save(tmp_path / "b.png")
    found = find(tmp_path)
    assert [copy.of for copy in found.copies] == ["a.gif"]
    assert found.unreadable == ()
