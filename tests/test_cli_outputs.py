"""`arbiter judge`: tables, pages, orders, counts, prompts for each file, an image on standard input."""

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import judge
from judge.protocol import Scores
from judge.serve.cli import main
from judge.verdicts.from_scores import threshold_note, verdicts_from_scores
from prompts import Taxonomy, load_taxonomy

DIGITS = load_taxonomy("digits").select(["one", "two", "three"])
ROOT = Path(__file__).parents[1]


class ColourJudge:
    """Red is one, green is two, blue is three; a prompt that speaks of guns makes everything one; white is unjudged."""

    name = "colours"
    default_taxonomy = DIGITS

    def __init__(self) -> None:
        self.prompts: list[str | None] = []

    def score(
        self, images: Sequence[Image.Image], prompts: Sequence[str | None], taxonomy: Taxonomy
    ) -> Scores:
        self.prompts += prompts
        scores = np.array([image.getpixel((0, 0)) for image in images], dtype=float).reshape(-1, 3) / 255
        scores[["gun" in (prompt or "") for prompt in prompts], 0] = 1
        white = (scores == 1).all(axis=1)
        scores[white] = np.nan
        return Scores(scores.max(axis=1), scores, tuple("too white" if one else None for one in white))


@pytest.fixture
def colours(monkeypatch: pytest.MonkeyPatch) -> ColourJudge:
    classifier = ColourJudge()
    monkeypatch.setattr(judge, "load_classifier", lambda *_, **__: classifier, raising=False)
    return classifier


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder: b flagged as one, c as two, a safe, d unjudged, e broken."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "in"
    folder.mkdir()
    for name, colour in {"b": (200, 20, 0), "c": (200, 250, 0), "a": (90, 0, 0), "d": (255,) * 3}.items():
        Image.new("RGB", (4, 4), colour).save(folder / f"{name}.png")  # type: ignore[arg-type]
    (folder / "e.png").write_bytes(b"no picture")
    return folder


def paths(out: str) -> list[str]:
    return [Path(line.split("  ")[-1].split(" ")[0] or line).name for line in out.splitlines()]


def test_rows_are_sorted_and_counted(
    colours: ColourJudge, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["judge", "in", "--judge", "r", "--json"]
    for by, order in {"score": "cbdea", "category": "bcdea", "path": "abcde"}.items():
        assert main([*words, "--sort", by]) == 1
        shown = capsys.readouterr()
        found = [json.loads(line)["image"]["path"] for line in shown.out.splitlines()]
        assert found == [f"in/{name}.png" for name in order]
    assert shown.err.splitlines()[-3:] == [
        "5 images: 2 flagged, 1 safe, 2 not judged",
        "flagged: one 2, two 1",
        "not judged: by the judge 1, not an image 1",
    ]
    assert main([*words, "--quiet"]) == 1
    assert capsys.readouterr().err == ""


def test_the_table_opens_in_spreadsheets_without_running_anything(
    colours: ColourJudge, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "b.png").rename("=cmd|' ,\n.png")
    assert (
        main(["judge", "=cmd|' ,\n.png", "in", "--judge", "r", "--csv", "out.csv", "--threshold", "two=0.99"])
        == 1
    )
    data = Path("out.csv").read_bytes()
    assert data.startswith(b"\xef\xbb\xbfpath,status,unsafe,category,")
    rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"))))
    assert [row["path"] for row in rows] == [r"'=cmd|' ,\n.png", *(f"in/{name}.png" for name in "acde")]
    assert (rows[2]["category"], rows[2]["note"]) == ("one", "two 0.98 is below its threshold 0.99")
    assert [row["status"] for row in rows] == ["unsafe", "safe", "unsafe", "unjudged", "unjudged"]
    assert float(rows[0]["score of one"]) == pytest.approx(200 / 255)
    assert rows[4]["score of one"] == ""
    assert rows[4]["reason"].startswith("not_an_image: ")
    assert len(rows[0]["sha256"]) == 64


def test_only_verdicts_are_overwritten(
    colours: ColourJudge, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["judge", "in", "--judge", "r", "--csv", "out.csv", "--html", "out.html"]
    assert main(words) == main(words) == 1
    for name, option in {"out.csv": "--csv", "out.html": "--html"}.items():
        before = Path(name).read_bytes()
        Path(name).write_text("path,label,categories\nmy own work\n")
        capsys.readouterr()
        assert main(words) == 2
        assert f"{option} {name} holds something else than verdicts" in capsys.readouterr().err
        assert "my own work" in Path(name).read_text()
        Path(name).write_bytes(before)
    Path("out.csv").write_bytes(b"")
    assert main(words) == 1


def test_json_of_any_name_can_be_read(
    colours: ColourJudge, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "in/\x7f\x1b[2J\u202e\u00e9\n.png"
    (pictures / "b.png").rename(name)
    assert main(["judge", name, "--judge", "r", "--json"]) == 1
    [line] = capsys.readouterr().out.splitlines()
    assert line.isprintable()
    assert json.loads(line)["image"]["path"] == name


# --- why a threshold decided -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "threshold", "status", "note"),
    [
        ((0.1, 0.2, 0.62), {"three": 0.9}, "safe", "three 0.62 is below its threshold 0.9"),
        ((0.1, 0.2, 0.89996), {"three": 0.9}, "safe", "three 0.89996 is below its threshold 0.9"),
        ((0.1, 0.42, 0.2), {"two": 0.42}, "unsafe", "two 0.42 reaches its threshold 0.42"),
        ((0.1, 0.2, 0.42), 0.3, "unsafe", "three 0.42 reaches its threshold 0.3"),
        (
            (0.6, 0.2, 0.62),
            0.9,
            "safe",
            "one 0.60 is below its threshold 0.9; three 0.62 is below its threshold 0.9",
        ),
        ((0.6, 0.2, 0.62), {"three": 0.9}, "unsafe", "three 0.62 is below its threshold 0.9"),
        ((0.6, 0.2, 0.58), {"three": 0.9}, "unsafe", None),
        (
            (0.3, 0.2, 0.62),
            {"one": 0.1, "three": 0.9},
            "unsafe",
            "one 0.30 reaches its threshold 0.1; three 0.62 is below its threshold 0.9",
        ),
        ((0.1, 0.2, 0.3), {"three": 0.9}, "safe", None),
        ((0.1, np.nan, 0.62), {"three": 0.9}, "unjudged", "three 0.62 is below its threshold 0.9"),
        ((np.nan,) * 3, 0.7, "safe", "0.62 is below every threshold"),
        ((np.nan,) * 3, 0.6, "unsafe", None),
    ],
)
def test_a_verdict_that_a_threshold_decided_says_so(
    scores: tuple[float, ...], threshold: Any, status: str, note: str | None
) -> None:
    whole = 0.62 if np.isnan(scores).all() else float(np.nanmax(scores))
    found = Scores(np.array([whole]), np.array([scores]), (None,), notes=("hidden characters",))
    [verdict] = verdicts_from_scores(found, DIGITS, threshold=threshold, model="m")
    assert verdict.status == status
    assert verdict.note == "; ".join(filter(None, (note, "hidden characters")))
    [usual] = verdicts_from_scores(found, DIGITS, threshold=0.5, model="m")
    assert threshold_note(usual, dict.fromkeys(DIGITS.names, 0.5)) is None


# --- prompts -----------------------------------------------------------------------------------------------


def test_every_image_has_its_own_prompt(
    colours: ColourJudge, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pictures / "prompts.csv"
    lines = [
        "\ufeffid,path,prompt",
        "1,a.png,a gun",
        f'2,{pictures}/b.png,"two\nlines"',
        "3,in/c.png,",
        "4,gone.png,x",
    ]
    table.write_text("\n".join(lines), encoding="utf-8")
    assert main(["judge", "in", "--judge", "r", "--prompts", str(table), "--json"]) == 1
    shown = capsys.readouterr()
    assert colours.prompts == ["a gun", "two\nlines", None, None]
    rows = [json.loads(line) for line in shown.out.splitlines()]
    assert [row["category"] for row in rows] == ["one", "one", "two", None, None]
    assert f"in/d.png, in/e.png: no row in {table}, so judged without a prompt" in shown.err
    assert f"gone.png: in {table}, but not among the images" in shown.err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,promt\na.png,x\n", "has no column 'prompt' (did you mean 'promt'?)"),
        ("path,prompt\na.png,x\n./a.png,y\n", "row 3: './a.png' has another prompt in a row before"),
        ("path,prompt\na.png\n", "row 2: expected a path and a prompt, got 'a.png' and None"),
        ("path,prompt\n,x\n", "row 2: expected a path and a prompt"),
        ('path,prompt\na.png,"x\n', "cannot be read as a table of prompts: unexpected end of data"),
        ("path,prompt\n\udcff,x\n", "cannot be read as a table of prompts"),
    ],
)
def test_a_table_of_prompts_with_mistakes(
    colours: ColourJudge, pictures: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("p.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert main(["judge", "in", "--judge", "r", "--prompts", "p.csv"]) == 2
    assert message in capsys.readouterr().err


# --- standard input ----------------------------------------------------------------------------------------


class Pipe(io.RawIOBase):
    """Gives its pieces one by one, as a slow pipe does."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = list(pieces)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self.pieces.pop(0) if self.pieces else b""
        buffer[: len(piece)] = piece
        return len(piece)


def encoded(kind: str, size: tuple[int, int] = (4, 4)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (255, 0, 0)).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"])
@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_an_image_on_standard_input_is_judged(
    kind: str,
    step: int,
    colours: ColourJudge,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = encoded(kind, (300, 300))[: 10_000 if step == 1 else None]
    pieces = [data[start : start + step] for start in range(0, len(data), step)]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BufferedReader(Pipe(*pieces))))
    code = main(["judge", "-", "--judge", "r", "--json"])
    [row] = map(json.loads, capsys.readouterr().out.splitlines())
    assert row["image"]["path"] == "-"
    if kind == "TIFF":
        assert (code, row["reason"]) == (
            3,
            "unsupported_format: TIFF; convert it to one of JPEG, PNG, WEBP, GIF, BMP",
        )
    elif len(data) < 10_000 or step > 1:
        assert (code, row["status"]) == (1, "unsafe")


def test_a_list_whose_names_start_like_images_is_a_list(
    colours: ColourJudge, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["BMW.png", "GIF89a.png", "II*.png", "P6 8 8.png", "<svg.png", "%PDF.png", "ü.png"]
    for name in names:
        Path(name).hardlink_to(pictures / "b.png")
    for first in names:
        listed = [first, *(name for name in names if name != first)]
        for options, end in (([], b"\n"), (["-0"], b"\0")):
            stream = io.BufferedReader(Pipe(end.join(os.fsencode(name) for name in listed) + end))
            monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stream))
            assert main(["judge", "-", *options, "--judge", "r", "--json"]) == 1
            rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
            assert [row["image"]["path"] for row in rows] == listed


def test_a_missing_file_is_said_before_the_judge_is_loaded(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(*_: object, **__: object) -> ColourJudge:
        assert "arbiter: in/bb.png: no such file (did you mean 'in/b.png'?)" in capsys.readouterr().err
        return ColourJudge()

    monkeypatch.setattr(judge, "load_classifier", load, raising=False)
    assert main(["judge", "in/a.png", "in/bb.png", "--judge", "r"]) == 3
    assert "unjudged" in capsys.readouterr().out
    monkeypatch.setattr(judge, "load_classifier", lambda *_, **__: pytest.fail("loaded"), raising=False)
    assert main(["judge", "in/bb.png", "--judge", "r"]) == 2


def test_a_reader_that_leaves_stops_the_command_quietly(pictures: Path) -> None:
    code = (
        "import sys; sys.path[:0] = [sys.argv[1], sys.argv[1] + '/tests']\n"
        "import judge, test_cli_outputs\nfrom judge.serve.cli import main\n"
        "judge.load_classifier = lambda *_, **__: test_cli_outputs.ColourJudge()\n"
        "sys.exit(main(['judge', *['in/b.png'] * 5000, '--judge', 'r', '--json', '--html', 'x.html', '-q']))"
    )
    program = subprocess.Popen(
        [sys.executable, "-c", code, str(ROOT)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert program.stdout is not None
    assert program.stderr is not None
    with program, program.stdout, program.stderr:
        assert json.loads(program.stdout.readline())["status"] == "unsafe"
        program.stdout.close()
        assert program.stderr.read() == b""
        assert program.wait() == 141
    assert "Stopped early" in Path("x.html").read_text("utf-8")
