"""A folder of images with a table: which rows become examples, and which are skipped with their reason."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from judge import check_splits, load_examples
from prompts import Category, ExampleError, Taxonomy
from prompts.example import UNSPECIFIED

PETS = Taxonomy(
    "pets",
    "1",
    (
        Category("Cats", "cats of every kind", aliases=("Felines",), code="P1"),
        Category("Dogs", "dogs of every kind", key="dog"),
    ),
)


def png(seed: int) -> bytes:
    file = BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


def folder(root: Path, rows: list[dict[str, Any]], *, table: str = "labels.jsonl") -> Path:
    """A folder with an image for each row's path that does not exist yet, and a table of the rows."""
    root.mkdir(parents=True, exist_ok=True)
    for seed, row in enumerate(rows):
        path = row.get("path")
        if isinstance(path, str) and path and ".." not in path and not Path(path).is_absolute():
            file = root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            if not file.exists():
                file.write_bytes(png(seed))
    (root / table).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return root


def skipped(load: Any) -> dict[str, tuple[str, str]]:
    return {row.id: (row.status, row.reason) for row in load.skipped}


def test_folder_with_json_lines(tmp_path: Path) -> None:
    rows = [
        {"path": "a/1.png", "label": "safe", "prompt": "a house", "split": "train"},
        {
            "path": "2.png",
            "label": "UNSAFE",
            "categories": ["cats", "DOG"],
            "source": "Lexica",
            "split": "train",
        },
        {"path": "3.png", "label": 1, "categories": "Felines; Dogs", "id": 7, "split": "train"},
        {"path": "4.png", "label": True, "split": "train"},
        {"path": "5.png", "label": False, "split": "val"},
    ]
    loaded = load_examples(f"folder:{folder(tmp_path, rows)}", split="train", taxonomy=PETS)
    first, second, third, fourth = loaded.examples
    assert (first.id, first.prompt, first.violates, first.source) == (
        "a/1.png",
        "a house",
        frozenset(),
        "real",
    )
    assert first.image == (tmp_path / "a" / "1.png").resolve()
    assert (second.violates, second.source) == ({"Cats", "dog"}, "generated")
    assert (third.id, third.violates) == ("7", {"Cats", "dog"})
    assert (fourth.violates, fourth.unknown) == ({UNSPECIFIED}, {"Cats", "dog"})
    assert [e.id for e in load_examples(tmp_path, split="validation", taxonomy=PETS).examples] == ["5.png"]
    with pytest.raises(ExampleError, match="there are: train, validation, all"):
        load_examples(tmp_path, split="test", taxonomy=PETS)


def test_folder_with_csv(tmp_path: Path) -> None:
    folder(tmp_path, [{"path": "a.png"}, {"path": "b.png"}], table="ignored.jsonl")
    (tmp_path / "ignored.jsonl").unlink()
    (tmp_path / "labels.csv").write_text(
        '﻿path,label,prompt,categories\na.png,unsafe,"a cat, and a dog",P1;Dogs\nb.png,0,,\n', encoding="utf-8"
    )
    first, second = load_examples(tmp_path / "labels.csv", split="all", taxonomy=PETS).examples
    assert (first.prompt, first.violates) == ("a cat, and a dog", {"Cats", "dog"})
    assert (second.prompt, second.violates) == (None, frozenset())


def test_unusable_rows_of_a_folder_are_listed_with_reasons(tmp_path: Path) -> None:
    (tmp_path / "outside.png").write_bytes(png(1))
    root = tmp_path / "set"
    rows: list[dict[str, Any]] = [
        {"path": "good.png", "label": "safe"},
        {"path": "good.png", "label": "safe"},
        {"path": "no-label.png", "label": None},
        {"path": "odd-label.png", "label": "perhaps"},
        {"path": "odd-category.png", "label": "unsafe", "categories": ["Cat"]},
        {"path": "odd-categories.png", "label": "unsafe", "categories": {"Cats": 1}},
        {"path": "contradiction.png", "label": "safe", "categories": "Cats"},
        {"path": "../outside.png", "label": "safe"},
        {"path": str(tmp_path / "outside.png"), "label": "safe"},
        {"path": "link.png", "label": "safe"},
        {"path": "", "label": "safe"},
        {"path": "inside/../good2.png", "label": "safe"},
    ]
    folder(root, rows)
    (root / "link.png").unlink()
    (root / "link.png").symlink_to(tmp_path / "outside.png")
    (root / "gone.png").touch()
    with (root / "labels.jsonl").open("a") as table:
        table.write(
            '{"path": "missing.png", "label": "safe"}\n{"path": "gone.png", "label": 0}\n{oops\n[1]\n'
        )
    loaded = load_examples(root, split="all", taxonomy=PETS, max_failures=1)
    assert [example.id for example in loaded.examples] == ["good.png"]
    assert {row: status for row, (status, _) in skipped(loaded).items()} == {
        "good.png": "duplicate_id",
        "no-label.png": "no_label",
        "odd-label.png": "bad_label",
        "odd-category.png": "unknown_category",
        "odd-categories.png": "bad_row",
        "contradiction.png": "contradictory_label",
        "../outside.png": "outside_folder",
        str(tmp_path / "outside.png"): "outside_folder",
        "link.png": "outside_folder",
        "labels.jsonl:11": "bad_row",
        "inside/../good2.png": "missing",
        "missing.png": "missing",
        "gone.png": "not_an_image",
        "labels.jsonl:15": "bad_row",
        "labels.jsonl:16": "bad_row",
    }
    assert "did you mean 'Cats'" in skipped(loaded)["odd-category.png"][1]
    loaded.write_skipped(tmp_path / "skipped.jsonl")
    assert len((tmp_path / "skipped.jsonl").read_text().splitlines()) == 15


def test_csv_rows_of_the_wrong_length_are_listed(tmp_path: Path) -> None:
    folder(tmp_path, [{"path": "a.png"}], table="x.jsonl")
    (tmp_path / "x.jsonl").unlink()
    (tmp_path / "x.csv").write_text("path,label,prompt\na.png,safe,one\nb.png,safe,one, two\nc.png,safe\n")
    loaded = load_examples(tmp_path, split="all", taxonomy=PETS, max_failures=1)
    assert {row: status for row, (status, _) in skipped(loaded).items()} == {
        "x.csv:3": "bad_row",
        "x.csv:4": "bad_row",
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,prompt\na.png,x\n", "no column 'label'"),
        (
            "where,label\na.png,x\n",
            "no column 'path'; it has: label, where. Rename the one that holds the file",
        ),
        ("path,label,catagories\na.png,safe,\n", "unknown column 'catagories' .did you mean 'categories'"),
        ('path,label\n"a.png,safe\n', "cannot be read as CSV"),
        ("path,label,label\na.png,unsafe,safe\n", "two columns 'label'"),  # the last one alone would count
        ("path,label\n", "has no rows"),
        ("", "has no rows"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "labels.csv").write_text(content)
    with pytest.raises(ExampleError, match=message):
        load_examples(tmp_path, split="all", taxonomy=PETS)


def test_a_table_in_another_encoding_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes("path,label\nbär.png,safe\n".encode("latin-1"))
    with pytest.raises(ExampleError, match="UTF-8"):
        load_examples(tmp_path, split="all", taxonomy=PETS)


def test_a_folder_must_have_one_table(tmp_path: Path) -> None:
    with pytest.raises(ExampleError, match=r"must hold one table .* found: none"):
        load_examples(f"folder:{tmp_path}", split="all", taxonomy=PETS)
    (tmp_path / "a.csv").touch()
    (tmp_path / "b.jsonl").touch()
    with pytest.raises(ExampleError, match=r"found: a\.csv, b\.jsonl"):
        load_examples(tmp_path, split="all", taxonomy=PETS)


def test_rows_without_a_split_are_shared_out_by_content(tmp_path: Path) -> None:
    rows = [{"path": f"{index}.png", "label": index % 2} for index in range(100)]
    folder(tmp_path, rows)
    parts = [load_examples(tmp_path, split=s, taxonomy=PETS) for s in ("train", "validation", "test")]
    check_splits(*parts)
    sizes = [len(part.examples) for part in parts]
    assert sum(sizes) == 100
    assert 65 <= sizes[0] <= 92
    assert min(sizes[1:]) >= 2


@pytest.mark.parametrize(("given", "severity"), [(2, 2), ("-1", -1), (3.0, 3), ("", None), (None, None)])
def test_severity_is_a_whole_number(tmp_path: Path, given: object, severity: int | None) -> None:
    folder(tmp_path, [{"path": "a.png", "label": "unsafe", "severity": given}])
    [example] = load_examples(tmp_path, split="all", taxonomy=PETS).examples
    assert example.severity == severity


@pytest.mark.parametrize("given", ["high", 1.5, True, [1], "inf", "1e999"])
def test_a_severity_that_is_no_whole_number_is_listed(tmp_path: Path, given: object) -> None:
    rows = [{"path": "a.png", "label": "safe"}, {"path": "b.png", "label": "unsafe", "severity": given}]
    loaded = load_examples(folder(tmp_path, rows), split="all", taxonomy=PETS, max_failures=1)
    assert [example.id for example in loaded.examples] == ["a.png"]
    assert skipped(loaded)["b.png"][0] == "bad_severity"


def test_limit_stops_early(tmp_path: Path) -> None:
    folder(tmp_path, [{"path": f"{index}.png", "label": 0} for index in range(6)])
    (tmp_path / "5.png").write_bytes(b"broken, and never looked at")
    assert [e.id for e in load_examples(tmp_path, split="all", taxonomy=PETS, limit=2).examples] == [
        "0.png",
        "1.png",
    ]
