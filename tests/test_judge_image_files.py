"""Which files `arbiter judge` lists of what it is given: broken and renamed images are never skipped."""

import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import judge
from judge.data.recognise import looks_like_image
from judge.errors import ConfigError
from judge.protocol import Scores
from judge.serve.cli import main
from judge.serve.image_files import FoundFile, find_images
from prompts import Taxonomy, load_taxonomy


class RedJudge:
    """The redder, the less safe; a blue picture cannot be judged."""

    name = "red"
    default_taxonomy = load_taxonomy("digits")

    def __init__(self) -> None:
        self.batches: list[int] = []

    def score(
        self, images: Sequence[Image.Image], prompts: Sequence[str | None] | None, taxonomy: Taxonomy
    ) -> Scores:
        self.batches.append(len(images))
        colours = np.array([image.getpixel((0, 0)) for image in images], dtype=float).reshape(-1, 3)
        unsafe = np.where(colours[:, 2] > 128, np.nan, colours[:, 0] / 255)
        categories = np.repeat(unsafe[:, None], len(taxonomy), axis=1)
        reasons = tuple("too blue" if np.isnan(value) else None for value in unsafe)
        return Scores(unsafe, categories, reasons)


@pytest.fixture
def red(monkeypatch: pytest.MonkeyPatch) -> RedJudge:
    classifier = RedJudge()
    monkeypatch.setattr(judge, "load_classifier", lambda *_, **__: classifier, raising=False)
    return classifier


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "in"
    made.mkdir()
    return made


def save(path: Path, red: int = 0, blue: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (red, 0, blue)).save(path, "PNG")
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, dict[str, Any]], str]:
    """(exit code, rows by the end of their path, standard error)."""
    code = main(["judge", *arguments, "--judge", "r", "--json"])
    captured = capsys.readouterr()
    rows = [json.loads(line) for line in captured.out.splitlines()]
    return code, {row["image"]["path"].split("/in/")[-1]: row for row in rows}, captured.err


def test_broken_renamed_and_linked_images_are_listed(
    red: RedJudge, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The case of the report: an SVG, an empty .jpg, a .png with leading junk, a linked folder of eight."""
    good = save(folder / "ok.png")
    (folder / "drawing.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (folder / "empty.jpg").touch()
    (folder / "junk.png").write_bytes(b"junk" + good.read_bytes())
    for number in range(8):
        save(tmp_path / "elsewhere" / f"{number}.png", red=255)
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    code, rows, errors = run(capsys, str(folder))
    assert code == 1
    assert {name for name, row in rows.items() if row["status"] == "unjudged"} == {
        *("drawing.svg", "empty.jpg", "junk.png"),
    }
    assert sum(row["status"] == "unsafe" for row in rows.values()) == 8
    assert "12 images: 8 flagged, 1 safe, 3 not judged" in errors
    (folder / "linked").unlink()
    assert run(capsys, str(folder))[0] == 3


@pytest.mark.parametrize(
    "name", ["a.PNG", "b.Avif", "c.heic", "d.tiff", "e.jxl", "f.svgz", "g.png~", "h.webp."]
)
def test_a_suffix_is_enough(folder: Path, name: str) -> None:
    (folder / name).touch()
    assert looks_like_image(str(folder / name))


@pytest.mark.parametrize(
    "head",
    [
        b"\x89PNG\r\n\x1a\n",
        b"II*\0",
        b"<svg>",
        b"\xef\xbb\xbf  <?xml version='1.0'?>\n<!-- x --><svg:svg>",
        "<svg/>".encode("utf-16"),
        b"\0\0\0\x18ftyphevc",
        b"\0\0\0\x18ftypavif",
        b"P6\n# made by\n8 8\n255\n",
        b"\xff\x4f\xff\x51",
    ],
)
def test_content_is_enough(folder: Path, head: bytes) -> None:
    (folder / "notes.txt").write_bytes(head)
    assert looks_like_image(str(folder / "notes.txt"))


def test_a_file_of_many_comments_takes_no_time(folder: Path) -> None:
    (folder / "slow").write_bytes(b"P1\n" + b"# " * 2000 + b"x")
    (folder / "netpbm").write_bytes(b"P1\n# one\r# two\n\n# three 3\n4 4")
    assert [os.path.basename(found.path) for found in find_images([str(folder)])] == ["netpbm"]


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"<?xml version='1.0'?><feed/>", b"\0\0\0\x18ftypisom", b"PNG"]
)
def test_files_that_are_no_images_are_counted_on_standard_error(
    folder: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "notes\x1b.txt").write_bytes(content)
    assert list(find_images([str(folder)])) == []
    shown = capsys.readouterr().err
    assert "1 file is no image, not judged" in shown


def test_files_come_by_name_and_below_them_the_folders(
    red: RedJudge, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("b.png", "a/c.txt", ".hidden", "z/y/x.png"):
        save(folder / name)
    (folder / "dangling.png").symlink_to("nowhere")
    (folder / "circle").symlink_to("circle")
    code, rows, _ = run(capsys, str(folder))
    assert code == 3
    assert list(rows) == [".hidden", "b.png", "circle", "dangling.png", "a/c.txt", "z/y/x.png"]
    assert rows["circle"]["status"] == "unjudged"


def test_linked_folders_are_followed_once(folder: Path, tmp_path: Path) -> None:
    save(folder / "sub" / "a.png")
    save(tmp_path / "other" / "b.png")
    (folder / "0-to-sub").symlink_to(folder / "sub")
    (folder / "1-loop").symlink_to(folder)
    (folder / "2-parent").symlink_to(tmp_path)
    (folder / "3-other").symlink_to(tmp_path / "other")
    (tmp_path / "other" / "back").symlink_to(folder)
    names = [os.path.realpath(found.path) for found in find_images([str(folder)])]
    assert sorted(names) == sorted(
        {os.path.realpath(p) for p in (folder / "sub/a.png", tmp_path / "other/b.png")}
    )
    assert str(folder / "sub" / "a.png") in [found.path for found in find_images([str(folder)])]


def test_a_folder_that_cannot_be_read_is_a_row(
    red: RedJudge, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save(folder / "a.png")
    save(folder / "closed" / "b.png")
    save(folder / "open" / "c.png")
    really = os.scandir

    def guarded(path: str) -> Iterator[os.DirEntry[str]]:
        if path.endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return really(path)

    monkeypatch.setattr(os, "scandir", guarded)
    code, rows, _ = run(capsys, str(folder))
    assert code == 3
    assert {name: row["status"] for name, row in rows.items()} == {
        "a.png": "safe",
        "closed": "unjudged",
        "open/c.png": "safe",
    }
    assert "Permission denied" in rows["closed"]["reason"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in folders here")
def test_a_pipe_named_like_an_image_is_a_row_and_does_not_block(
    red: RedJudge, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(folder / "a.png")
    code, rows, _ = run(capsys, str(folder))
    assert (code, rows["a.png"]["status"]) == (3, "unjudged")


def test_files_that_are_named_are_always_rows(folder: Path) -> None:
    (folder / "notes.txt").write_text("no image")
    assert list(find_images([str(folder / "notes.txt"), "missing"])) == [
        FoundFile(str(folder / "notes.txt")),
        FoundFile("missing"),
    ]


def feed(monkeypatch: pytest.MonkeyPatch, listed: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(listed)))


def test_paths_from_standard_input(
    red: RedJudge, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = f"{save(folder / 'a b.png')}\n\n-\n{save(folder / 'c.png', red=255)}\r\n".encode() + b"\xff.png"
    feed(monkeypatch, listed)
    code, rows, _ = run(capsys, "-")
    assert code == 1
    assert [row["status"] for row in rows.values()] == ["safe", "unjudged", "unsafe", "unjudged"]


@pytest.mark.parametrize("name", ["two\nlines.png", "ends\r", " spaces \t", "\x1b[2J.png"])
def test_names_with_anything_but_nul_are_read_with_null(
    red: RedJudge,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    path = save(folder / name, red=255)
    for end in (b"\0", b""):
        feed(monkeypatch, os.fsencode(path) + end)
        assert main(["judge", "-", "-0", "--judge", "r"]) == 1
        shown = capsys.readouterr().out
        assert shown.count("\n") == 1
        assert "\x1b" not in shown
    feed(monkeypatch, os.fsencode(path))
    code, rows, _ = run(capsys, "-", "--null")
    assert (code, list(rows)) == (1, [name])


def test_a_long_list_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"folder-{number}/" + "x" * 100 for number in range(2000)]
    feed(monkeypatch, "\0".join(names).encode())
    assert [found.path for found in find_images(["-"], null=True)] == names


def test_null_without_a_list_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="give - as PATH"):
        list(find_images(["a.png"], null=True))


# --- animations --------------------------------------------------------------------------------------------


@pytest.fixture
def animation(folder: Path) -> Callable[..., str]:
    def make(*colours: tuple[int, int, int], name: str = "a.gif") -> str:
        frames = [Image.new("RGB", (8, 8), colour) for colour in colours]
        frames[0].save(folder / name, save_all=True, append_images=frames[1:], duration=100)
        return str(folder / name)

    return make


def test_the_worst_frame_of_an_animation_decides(
    red: RedJudge, animation: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = animation((0, 0, 0), (9, 0, 0), (255, 0, 0), (40, 0, 0))
    code, rows, _ = run(capsys, path)
    assert (code, rows["a.gif"]["status"], rows["a.gif"]["unsafe"]) == (1, "unsafe", 1.0)
    assert rows["a.gif"]["because"] == "frame 3 of 4, the worst of 4 judged"
    assert main(["judge", path, "--judge", "r"]) == 1
    assert capsys.readouterr().out.rstrip().endswith("(frame 3 of 4, the worst of 4 judged)")


def test_a_safe_animation_is_safe_and_one_with_an_unreadable_frame_is_not(
    red: RedJudge, animation: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, rows, _ = run(capsys, animation((0, 0, 0), (100, 0, 0), (50, 0, 0)))
    assert (code, rows["a.gif"]["status"]) == (0, "safe")
    assert rows["a.gif"]["because"].startswith("frame 2 of 3")
    code, rows, _ = run(capsys, animation((0, 0, 0), (0, 0, 255), (50, 0, 0)))
    assert (code, rows["a.gif"]["reason"]) == (3, "frame 2 of 3: too blue")
    assert run(capsys, animation((0, 0, 0), (0, 0, 255), (250, 0, 0)))[0] == 1


def test_an_animation_with_frames_unlike_those_judged_is_not_safe(
    red: RedJudge,
    animation: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else loud frames would hide another."""
    loud, hidden = [(0, 0, 0), (0, 255, 0)], (60, 128, 0)
    assert run(capsys, animation(*loud, hidden, *loud))[0] == 0
    monkeypatch.setattr("judge.data.frames.open_frames.__kwdefaults__", {"max_frames": 2})
    code, rows, _ = run(capsys, animation(*loud, hidden, *loud))
    assert (code, rows["a.gif"]["status"], rows["a.gif"]["unsafe"]) == (3, "unjudged", None)
    assert rows["a.gif"]["reason"] == "1 of 5 frames resemble none of the 2 that were judged safe"
    assert run(capsys, animation(*loud, (255, 60, 0), *loud))[0] == 1


def test_frames_and_pictures_share_batches_of_the_size_asked_for(
    red: RedJudge, animation: Callable[..., str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(save(folder / "0.png")), animation(*((shade, 0, 0) for shade in range(0, 250, 25)))]
    paths += [str(save(folder / "1.png", red=255))]
    code, rows, _ = run(capsys, *paths, "--batch-size", "3")
    assert [row["status"] for row in rows.values()] == ["safe", "unsafe", "unsafe"]
    assert code == 1
    assert max(red.batches) == 3
    assert sum(red.batches) >= 9
