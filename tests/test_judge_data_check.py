"""`arbiter data check`: what is wrong with labelled images, each with what to do about it."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from judge.data.check import DataCheck, check_data, stopping_problems
from judge.data.folders import OTHER_TITLES
from judge.data.giveaways import clue
from judge.data.sources import COLUMNS
from judge.serve import cli
from prompts import Category, FlipOptions, Taxonomy

SHAPES = Taxonomy("shapes", "1", (Category("round", "a circle"), Category("square", "four equal sides")))
KINDS = ("safe,", "unsafe,round", "safe,", "unsafe,square")
Rows = list[list[str]]


def picture(seed: int, side: int = 32) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 different pictures, and one that is broken."""
    root = tmp_path_factory.mktemp("images")
    for place in range(60):
        picture(place).save(root / f"{place}.png")
    (root / "broken.png").write_bytes((root / "0.png").read_bytes()[:60])
    picture(7).save(root / "again.bmp")
    picture(8, 40).save(root / "larger.png")
    return root


@pytest.fixture
def check(images: Path, tmp_path: Path) -> Callable[..., DataCheck]:
    """`check(change)`: the 60 images with a table that `change` changes."""

    def run(
        change: Callable[[Rows], object] = lambda rows: None,
        titles: str = "path,label,categories",
        **options: object,
    ) -> DataCheck:
        rows = [[f"{place}.png", *KINDS[place % 4].split(",")] for place in range(60)]
        change(rows)
        table = tmp_path / "labels.csv"
        table.write_text("\n".join([titles, *(",".join(row) for row in rows)]) + "\n")
        taxonomy = options.pop("taxonomy", SHAPES)
        return check_data(f"folder:{table}::{images}", taxonomy, **options)  # type: ignore[arg-type]

    return run


def said(found: DataCheck, level: str = "") -> str:
    return "\n".join(f"{p.level}: {p.what} | {p.fix}" for p in found.problems if level in ("", p.level))


def test_what_is_in_order_has_no_errors(check: Callable[..., DataCheck]) -> None:
    found = check()
    assert not found.errors
    assert (found.rows, sum(count.images for count in found.splits.values())) == (60, 60)
    assert list(found.splits) == ["train", "validation", "test"]
    assert sum(count.safe for count in found.splits.values()) == 30
    assert sum(count.categories["square"] for count in found.splits.values()) == 15
    text = found.to_text()
    assert re.search(r"images +4\d +\d+ +\d+\n", text)
    assert "60 rows name no split, so splits were drawn by category" in text
    assert text.endswith("No errors: a training can start.")
    assert json.loads(json.dumps(found.to_dict()))["splits"]["train"]["images"] > 40
    # What to change where there is little.
    assert re.search(r"an epoch is 11 policies of 8 rows.*Set --groups_per_epoch 64 or more", said(found))
    assert re.search(
        r"\d+ test images: a score of 0\.9 on them is known to about ± 0\.[12]\d.*100 or more", said(found)
    )
    assert "an epoch is" not in said(check(groups_per_epoch=200))
    assert "an epoch is" not in said(check(least_groups=200))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda rows: [row.__setitem__(2, "sqare") for row in rows if row[2] == "square"],
            r"15 rows with a category that the taxonomy does not have: 'sqare' \(did you mean 'square'\?\) \(15\)"
            r" \| Rename them in the table, or add the name to the taxonomy",
        ),
        (
            lambda rows: [row.__setitem__(1, "yes") for row in rows[:5]],
            "5 rows with a label that is neither safe nor unsafe: 'yes' .5. . Write safe or unsafe",
        ),
        (lambda rows: [row.__setitem__(1, "") for row in rows[:4]], "4 rows with no label"),
        (
            lambda rows: [row.__setitem__(0, row[0].replace("png", "PNG")) for row in rows],
            "60 rows name a file that is not there: 0.PNG: .*For 0.PNG there is '0.png' in /",
        ),
        (
            lambda rows: [row.__setitem__(0, f"pictures/{row[0]}") for row in rows],
            "60 rows name a file that is not there.*For pictures/0.png there is '0.png' in /.*folder:TABLE::IMAGES names",
        ),
        (
            lambda rows: [row.__setitem__(0, rf"images\{row[0]}") for row in rows],
            r"60 rows name a file that is not there.*For images\\0.png there is '0.png' in /",
        ),
        (
            lambda rows: [row.__setitem__(0, f"/data/{row[0]}") for row in rows[:3]],
            "3 rows lead out of the folder.*is absolute; write relative to /.*Write paths relative",
        ),
        (
            lambda rows: [rows.append(list(row)) for row in rows[1:3]],
            "2 rows have the id or path of an earlier row.*Several categories of one image stand in one row",
        ),
        (
            lambda rows: [row.__setitem__(1, "safe") for row in rows[1:6]],
            "are called safe and name a category",
        ),
        (lambda rows: rows.extend([["broken.png", "safe", ""]] * 1), "broken.png"),
        (lambda rows: rows.clear(), "the data set has no rows"),
    ],
)
def test_rows_that_cannot_be_used(
    check: Callable[..., DataCheck], change: Callable[[Rows], object], message: str
) -> None:
    assert re.search(f"error: .*{message}", said(check(change, max_failures=0.0)), re.DOTALL)


def test_few_unusable_rows_are_a_warning(check: Callable[..., DataCheck]) -> None:
    found = check(lambda rows: rows.append(["broken.png", "safe", ""]), max_failures=0.05)
    assert not found.errors
    assert re.search("warning: 1 row .*broken.png", said(found))


def with_split(rows: Rows, names: tuple[str, ...] = ("train", "train", "train", "val", "test")) -> None:
    for place, row in enumerate(rows):
        row.append(names[place // 4 % len(names)])


TITLES = "path,label,categories,split"


def test_copies_in_two_splits(check: Callable[..., DataCheck]) -> None:
    def change(rows: Rows) -> None:
        with_split(rows)
        split = {row[0]: row[3] for row in rows}
        other = {"train": "test", "test": "train", "validation": "train", "val": "train"}
        rows.append(["again.bmp", *KINDS[7 % 4].split(","), other[split["7.png"]]])
        rows.append(["larger.png", *KINDS[1].split(","), other[split["8.png"]]])

    found = check(change, TITLES)
    assert re.search(r"error: 1 picture is in two splits.*7\.png .*Remove one row of each", said(found))
    assert re.search(r"warning: 1 group of nearly equal pictures in two splits: .*8\.png", said(found))

    def drawn(rows: Rows) -> None:
        rows.append(["again.bmp", "safe", ""])
        rows.append(["larger.png", "safe", ""])

    found = check(drawn)
    assert not found.errors
    assert "in two splits" not in said(found)
    assert re.search(r"warning: 1 picture has two different labels: 7\.png", said(found))
    assert "2 copies stay with what they copy" in said(found)


def test_splits_without_rows(check: Callable[..., DataCheck]) -> None:
    found = check(lambda rows: with_split(rows, ("train", "val")), TITLES)
    assert (
        "error: no row is in the split 'test'; there are: train, validation | Write 'test' in the column"
        in said(found)
    )
    assert not check(
        lambda rows: with_split(rows, ("train", "train", "test")), TITLES
    ).errors  # validation is drawn


def test_categories_without_images(check: Callable[..., DataCheck]) -> None:
    larger = SHAPES.extend({"star": "five points"})
    found = check(taxonomy=larger)
    assert "error: train: No image violates star" in said(found)
    assert "hold the category out, or select the others" in said(found)
    assert not check(taxonomy=larger, held_out=["star"]).errors
    assert "'rund'" in said(check(held_out=["rund"]), "error")

    def only_in_training(rows: Rows) -> None:
        for row in rows:
            row.append(
                "train" if row[2] == "square" else ("train", "test", "validation")[int(row[0][:-4]) % 3]
            )

    assert "error: test: No image violates square" in said(check(only_in_training, TITLES))


def test_labels_without_categories(check: Callable[..., DataCheck]) -> None:
    found = check(lambda rows: [row.__setitem__(2, "") for row in rows])
    assert not found.errors
    assert (
        "30 of 30 unsafe rows name no category; they are asked about under all 2 categories together only"
        in said(found)
    )
    assert "nor that another policy changes the verdict, and no pair score can be measured" in said(found)
    assert re.search("unsafe, no category named +2", found.to_text())
    found = check(lambda rows: [row.__setitem__(2, "") for row in rows], taxonomy=SHAPES.select(["round"]))
    assert not found.errors
    assert "the taxonomy has one category, so unsafe means that one" in said(found)
    assert sum(count.categories["round"] for count in found.splits.values()) == 30
    found = check(lambda rows: [row.__setitem__(2, "") for row in rows[:8]])
    assert "4 of 30 unsafe rows name no category" in said(found)
    assert "pair score" not in said(found)


def test_what_gives_labels_away(check: Callable[..., DataCheck], tmp_path: Path) -> None:
    def prompts(rows: Rows) -> None:
        for place, row in enumerate(rows):
            row.append(
                f"a horrible scene number {place}" if row[1] == "unsafe" else f"a garden in May {place}"
            )

    found = check(prompts, "path,label,categories,prompt")
    assert re.search(r"warning: the prompts alone tell safe from unsafe \(AUC 1\.00", said(found))
    assert "file names" not in said(found)

    def same(rows: Rows) -> None:
        for place, row in enumerate(rows):
            row.append(f"a garden in {('May', 'June', 'July')[place % 3]}")

    assert "prompts alone" not in said(check(same, "path,label,categories,prompt"))

    root = tmp_path / "sorted"
    for place in range(48):
        kind = "bad" if place % 2 else "good"
        (root / kind).mkdir(parents=True, exist_ok=True)
        picture(place, 24 if place % 2 else 36).save(
            root / kind / f"{place}.{'png' if place % 2 else 'webp'}"
        )
    rows = [
        f"{p.relative_to(root)},{'unsafe' if p.parent.name == 'bad' else 'safe'}"
        for p in sorted(root.rglob("*.*"))
    ]
    (root / "labels.csv").write_text("\n".join(["path,label", *rows]))
    found = check_data(f"folder:{root}", SHAPES)
    assert re.search(r"warning: size, format or source .*unsafe ones are mostly 24 x 24, PNG", said(found))
    assert "note: file names alone tell safe from unsafe" in said(found)


def test_chance_is_no_clue() -> None:
    rng = np.random.default_rng(0)
    unsafe = np.arange(40) % 2 == 0
    values = list(range(40))
    assert clue(unsafe, lambda train, labels, test: rng.random(len(test)), values) is None
    assert (
        clue(unsafe, lambda train, labels, test: np.array([one % 2 == 0 for one in test], float), values)
        == 1.0
    )


def test_the_cheap_part_opens_no_image(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "judge.data.perceptual_hash.open_image", lambda *_: pytest.fail("an image was opened")
    )
    table = tmp_path / "labels.csv"
    rows = [f"{place}.png,{KINDS[place % 4]}" for place in range(60)]
    table.write_text("\n".join(["path,label,categories", *rows]))
    dataset = f"folder:{table}::{images}"
    assert stopping_problems(dataset, SHAPES) == ()
    table.write_text("\n".join(["path,label,categories", *rows, "gone.png,safe,", "gone2.png,unsafe,sqare"]))
    problems = [f"{problem.what} {problem.fix}" for problem in stopping_problems(dataset, SHAPES)]
    assert len(problems) == 2
    assert any("gone.png" in text for text in problems)
    assert any("did you mean 'square'" in text for text in problems)
    table.write_text("\n".join(["path,label,categories,split", *(f"{row},train" for row in rows)]))
    [problem] = stopping_problems(dataset, SHAPES)
    assert problem.what == "no row is in the split 'test'; there are: train"
    names = ("train", "train", "validation", "test")
    splits = [(row, names[place // 4 % 4]) for place, row in enumerate(rows)]
    splits = [(row, split) for row, split in splits if split != "test" or "unsafe" in row]
    [problem] = stopping_problems(f"folder:{tmp_path / 'none'}", SHAPES)
    assert "is no folder and no table" in problem.what
    table.write_text("\n".join(["path,label,categories,split", *(f"{row},{split}" for row, split in splits)]))
    flip = FlipOptions(min_categories=2, max_categories=2)
    [problem] = stopping_problems(dataset, SHAPES, flip=flip)
    assert problem.what.startswith("test: A policy of 2 of the 2 categories leaves 0 safe images")


def test_the_command(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "shapes.yaml").write_text(SHAPES.to_yaml())
    table = tmp_path / "labels.csv"
    rows = [f"{place}.png;{KINDS[place % 4].replace(',', ';')}" for place in range(60)]
    table.write_text("\n".join(["Image;Label;Categories", *rows]))
    command = ["data", "check", f"folder:{table}::{images}", "--taxonomy", str(tmp_path / "shapes.yaml")]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert "note: labels.csv: column 'Image' is read as 'path'" in printed
    assert "'Label' is read" not in printed
    assert "an epoch is" not in printed  # own_data.yaml asks for more policies than that
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"groups_per_epoch": 9, "flip": {"group_size": 4}}))
    assert cli.main([*command, "--config", str(tmp_path / "mine.yaml"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert any("an epoch is 9 policies of 4 rows" in problem["what"] for problem in found["problems"])
    table.write_text("\n".join(["Image;Label;Categories", *(row.replace("round", "rond") for row in rows)]))
    assert cli.main(command) == 1
    assert "'rond' (did you mean 'round'?)" in capsys.readouterr().out
    (tmp_path / "mine.yaml").write_text("flip: {groupsize: 4}")
    assert cli.main([*command, "--config", str(tmp_path / "mine.yaml")]) == 2
    assert "groupsize" in capsys.readouterr().err
    assert cli.main([*command, "--config", str(tmp_path / "mime.yaml")]) == 2
    assert "did you mean" in capsys.readouterr().err


def test_what_is_no_folder_is_checked_too() -> None:
    found = check_data(
        "digits:40", Taxonomy("few", "1", (Category("three", "a 3"), Category("seven", "a 7")))
    )
    assert [count.images for count in found.splits.values()] == [40, 40, 40]
    assert found.rows == 120


def test_the_documented_columns_are_those_that_are_read() -> None:
    page = (Path(__file__).parents[1] / "docs" / "tables.md").read_text(encoding="utf-8")
    documented = re.findall(r"^\| `(\w+)` \| (.*?) \|", page, re.MULTILINE)
    assert tuple(name for name, _ in documented) == COLUMNS
    titles = {name: tuple(re.findall(r"`(\w+)`", others)) for name, others in documented}
    assert {name: found for name, found in titles.items() if found} == dict(OTHER_TITLES)
