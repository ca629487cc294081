"""Tables as people write them: separators, encodings, suffixes, titles, and what the errors say."""

import json
from pathlib import Path

import pytest
from PIL import Image

from judge import load_examples
from judge.data.folders import FolderReader, find_image
from judge.data.tables import read_records, read_table
from judge.errors import ConfigError
from prompts import Category, ExampleError, Taxonomy
from prompts.example import UNSPECIFIED

PETS = Taxonomy(
    "pets", "1", (Category("Cats", "cats"), Category("Dogs", "dogs"), Category("Fish, fresh", "fish"))
)
TABLE = "path,label,categories\na.png,unsafe,Cats\nsub/b.png,safe,\n"


def folder(root: Path, content: str | bytes, name: str = "labels.csv") -> Path:
    (root / "sub").mkdir(parents=True, exist_ok=True)
    for place, path in enumerate(("a.png", "sub/b.png")):
        Image.new("RGB", (8, 8), (place * 90, 40, 40)).save(root / path)
    data = content.encode() if isinstance(content, str) else content
    (root / name).write_bytes(data)
    return root


def loaded(where: Path | str, taxonomy: Taxonomy = PETS) -> list[tuple[str, frozenset[str]]]:
    found = load_examples(f"folder:{where}", split="all", taxonomy=taxonomy)
    return [(example.id, example.violates) for example in found.examples]


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (TABLE, "labels.csv"),
        (TABLE, "Labels.CSV"),
        (TABLE.replace(",", ";"), "labels.csv"),
        (TABLE.replace(",", "\t"), "labels.tsv"),
        (TABLE.replace(",", "\t"), "labels.csv"),
        (TABLE.replace(",", "|"), "labels.csv"),
        ("sep=;\r\n" + TABLE.replace(",", ";").replace("\n", "\r\n"), "labels.csv"),
        ('"sep=\t"\n' + TABLE.replace(",", "\t"), "labels.csv"),
        (b"\xef\xbb\xbf" + TABLE.encode(), "labels.csv"),
        (TABLE.replace(",", "\t").encode("utf-16"), "labels.csv"),  # Excel's "Unicode Text"
        (TABLE.encode("utf-16-le"), "labels.csv"),
        (TABLE.encode("utf-16-be"), "labels.csv"),
        ("\n\n" + TABLE, "labels.csv"),  # empty lines before the titles
        (",path,label,categories\n0,a.png,unsafe,Cats\n1,sub/b.png,safe,\n", "labels.csv"),  # of pandas
        (TABLE.replace(",", ", ").replace("png,", "png ,"), "labels.csv"),
        (TABLE.replace("\n", ",,\n"), "labels.csv"),  # empty columns at the end, as spreadsheets leave them
        ('Path ,LABEL,"Categories"\na.png,Unsafe,Cats\nsub\\b.png,SAFE,none\n', "labels.csv"),
        ('"path";"label";"categories"\n"a.png";"1,0";"Cats"\n"sub/b.png";"0,0";""\n', "labels.csv"),
        ("path,label,categories\na.png,WAHR,Cats\nsub/b.png,FALSCH,\n", "labels.csv"),
        ("path,label\na.png,Cats\nsub/b.png,safe\n", "labels.csv"),
        ("path,label,categories\na.png,unsafe,\"['Cats']\"\nsub/b.png,safe,[]\n", "labels.csv"),
        ("path,is_unsafe,categories\na.png,yes,Cats\nsub/b.png,No,\n", "labels.csv"),
        ("image,class\na.png,cats\nsub/b.png,safe\n", "labels.csv"),
    ],
)
def test_a_table_is_read_as_it_was_meant(tmp_path: Path, content: str | bytes, name: str) -> None:
    folder(tmp_path, content, name)
    [(_, cats), (_, none)] = loaded(tmp_path)
    assert (cats, none) == ({"Cats"}, frozenset())


@pytest.mark.parametrize(
    ("cell", "violates"),
    [
        ("Cats, Dogs", {"Cats", "Dogs"}),
        ("cats|dogs", {"Cats", "Dogs"}),
        ("Cats;Dogs", {"Cats", "Dogs"}),
        ("Fish, fresh", {"Fish, fresh"}),
        ("Fish, fresh; Dogs", {"Fish, fresh", "Dogs"}),
        ('["Cats", "Dogs"]', {"Cats", "Dogs"}),
    ],
)
def test_several_categories_in_a_cell(tmp_path: Path, cell: str, violates: set[str]) -> None:
    quoted = cell.replace('"', '""')
    folder(tmp_path, f'path,label,categories\na.png,unsafe,"{quoted}"\n')
    assert loaded(tmp_path) == [("a.png", violates)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            'a.png,unsafe,"Cats, Dgos"',
            r"'Cats, Dgos'.*known: Cats, Dogs, Fish, fresh; several are separated by ';'",
        ),
        ("a.png,unsafe,Dgos", r"unknown_category, 'Dgos' \(did you mean 'Dogs'\?\); known"),
        ("a.png,yes,", "'yes'; write unsafe or safe .*or the name of a category: nobody knows whether"),
        ("a.png,nsfw,", "'nsfw'; write unsafe or safe .*: probably unsafe"),
        ("a.png,Catz,", r"'Catz'; write unsafe or safe .*\(did you mean 'Cats'\?\)"),
        ("a.png,unsafe", "fewer values than columns"),
        ("a.png,unsafe,Cats,Dogs", "more values than columns; put texts with a comma in quotes"),
        (r"C:\pictures\a.png,safe,", "it is absolute; write relative to /"),
        (r"..\a.png,safe,", "leads out of the table's folder"),
    ],
)
def test_what_cannot_be_understood_says_what_to_write(tmp_path: Path, row: str, message: str) -> None:
    folder(tmp_path, f"path,label,categories\n{row}\n")
    with pytest.raises(ExampleError, match=message):
        loaded(tmp_path)


@pytest.mark.parametrize(
    ("titles", "message"),
    [
        (
            "image,file_name,label",
            "no column 'path', and 'image' and 'file_name' could each be it; rename one",
        ),
        ("path,is_ok", "no column 'label'; .*Rename the one that holds safe or unsafe to 'label'"),
        ("path,label,text,caption", "no column 'prompt', and 'text' and 'caption' could each be it"),
        ("path,label,catagories", r"unknown column 'catagories' \(did you mean 'categories'\?\); rename it"),
    ],
)
def test_titles_that_say_nothing_or_too_much(tmp_path: Path, titles: str, message: str) -> None:
    folder(tmp_path, f"{titles}\na.png,safe,x,y\n".replace(",x,y", ",x" * (titles.count(",") - 1)))
    with pytest.raises(ExampleError, match=message):
        loaded(tmp_path)


def test_titles_that_were_understood_are_said(tmp_path: Path) -> None:
    folder(tmp_path, "File Name,Class,Caption,mood\na.png,safe,a house,calm\n")
    reader = FolderReader(tmp_path)
    assert reader.notes == (
        "labels.csv: column 'File Name' is read as 'path'",
        "labels.csv: column 'Caption' is read as 'prompt'",
        "labels.csv: column 'Class' is read as 'label'",
    )


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda root: (root / "labels.xlsx").touch(), "labels.xlsx is a spreadsheet: save it as 'CSV UTF-8'"),
        (lambda root: None, "must hold one table .*found: none.* or if it is elsewhere: folder:TABLE::"),
        (lambda root: (root / "a.csv").touch() or (root / "b.TSV").touch(), "found: a.csv, b.TSV"),
    ],
)
def test_a_folder_without_its_one_table(tmp_path: Path, write: object, message: str) -> None:
    write(tmp_path)  # type: ignore[operator]
    with pytest.raises(ExampleError, match=message):
        loaded(tmp_path)


def test_a_table_in_another_encoding_says_where_and_what_to_do(tmp_path: Path) -> None:
    folder(tmp_path, "path,label\na.png,safe\nbär.png,safe\n".encode("cp1252"))
    with pytest.raises(ExampleError, match=r"not in UTF-8 \(line 3, byte 0xe4\). Save it as UTF-8: in Excel"):
        loaded(tmp_path)
    with pytest.raises(ConfigError, match=r"not in UTF-8 \(line 3"):
        read_table(tmp_path / "labels.csv", ("path",), "labels")


def test_a_table_may_stand_elsewhere(tmp_path: Path) -> None:
    images = folder(tmp_path / "images", "path,label\nnothing.png,safe\n")
    table = tmp_path / "labels.txt"
    table.write_text("path,label\na.png,safe\nsub\\b.png,unsafe\n../labels.txt,safe\n")
    found = load_examples(f"folder:{table}::{images}", split="all", taxonomy=PETS, max_failures=1)
    assert [(example.id, example.violates) for example in found.examples] == [
        ("a.png", frozenset()),
        ("sub\\b.png", {UNSPECIFIED}),
    ]
    assert [row.status for row in found.skipped] == ["outside_folder"]
    with pytest.raises(ExampleError, match="is no folder of images"):
        loaded(f"{table}::{tmp_path / 'pictures'}")


def test_backslashes_lead_nowhere_else(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", TABLE).resolve()
    (tmp_path / "secret.png").touch()
    (root / "odd\\name.png").touch()
    assert find_image(root, "sub\\b.png") == root / "sub" / "b.png"
    assert find_image(root, "odd\\name.png") == root / "odd\\name.png"
    assert find_image(root, "..\\secret.png") is None
    assert find_image(root, "c:\\set\\a.png") is None
    assert find_image(root, "sub\\gone.png") == root / "sub\\gone.png"


def test_an_absolute_path_says_how_to_write_it(tmp_path: Path) -> None:
    root = folder(tmp_path, f"path,label\n{tmp_path.resolve() / 'sub' / 'b.png'},safe\n")
    with pytest.raises(ExampleError, match=r"it is absolute; write 'sub/b\.png'"):
        loaded(root)


def test_json_lines_in_utf16(tmp_path: Path) -> None:
    rows = [{"path": "a.png", "label": "safe"}, {"path": "ü.png", "label": "unsafe"}]
    for encoding in ("utf-8-sig", "utf-16", "utf-16-le"):
        (tmp_path / "a.JSONL").write_bytes(
            "\n".join(json.dumps(r, ensure_ascii=False) for r in rows).encode(encoding)
        )
        assert [record for _, record in read_records(tmp_path / "a.JSONL")] == rows


def test_one_category_is_what_unsafe_means(tmp_path: Path) -> None:
    folder(tmp_path, "path,label\na.png,unsafe\nsub/b.png,safe\n")
    assert loaded(tmp_path, PETS.select(["Dogs"])) == [("a.png", {"Dogs"}), ("sub/b.png", frozenset())]
    assert loaded(tmp_path) == [("a.png", {UNSPECIFIED}), ("sub/b.png", frozenset())]
