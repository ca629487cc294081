"""`arbiter annotate`: from pictures of digits and three noisy annotators to a data set that training reads."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from fixtures_chat_server import completion
from PIL import Image

from judge.data.examples import load_examples
from judge.data.tables import read_table
from judge.serve.cli import main
from judge.standins.digits import digits_examples
from prompts import load_taxonomy

POLICY = load_taxonomy("digits").select(["three", "seven"])
PEOPLE = ("anna", "ben", "cem")


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    code = main(list(map(str, words)))
    shown = capsys.readouterr()
    return code, shown.out, shown.err


@pytest.fixture
def truth(tmp_path: Path) -> dict[str, frozenset[str]]:
    """Pictures of digits in `pictures`, and the categories of each; with a policy of two digits beside them."""
    (tmp_path / "policy.yaml").write_text(POLICY.to_yaml(), encoding="utf-8")
    found = {}
    for number, example in enumerate(digits_examples("test", count=60)):
        name = f"{example.source}/{number:02}.png"
        (tmp_path / "pictures" / example.source).mkdir(parents=True, exist_ok=True)
        example.image.save(tmp_path / "pictures" / name)
        found[name] = example.violates & set(POLICY.names)
    return found


def answer(
    tasks: Path, truth: dict[str, frozenset[str]], noise: float, *, second_round: bool = False
) -> Path:
    """Fill in a CSV of tasks, with mistakes; in the second round nobody makes any."""
    rng = np.random.default_rng(sum(tasks.name.encode()))
    rows = read_table(tasks, ("image", "annotator", "label", "categories"), "tasks")
    for row in rows:
        violated = truth[str(row["image"])]
        row["label"] = "unsafe" if violated else "safe"
        if rng.random() < noise:
            row["label"] = str(rng.choice(["safe", "unsafe", "na"]))
        if second_round:
            row["label"], row["categories"] = "", ";".join(sorted(violated)) or "three"
    with tasks.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return tasks


Annotate = Callable[..., tuple[int, str, str]]


@pytest.fixture
def annotate(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Annotate:
    """`annotate("tasks", ...)` in the folder of `truth`, with its policy where a command takes one."""
    monkeypatch.chdir(tmp_path)

    def call(command: str, *words: str | Path) -> tuple[int, str, str]:
        policy = ("--taxonomy", "policy.yaml") if command in ("tasks", "third", "merge") else ()
        return run(capsys, "annotate", command, *words, *policy)

    return call


def test_three_noisy_annotators_make_a_data_set(
    truth: dict[str, frozenset[str]], annotate: Annotate, tmp_path: Path
) -> None:
    pictures = ("--images", "pictures")
    for source in ("real", "generated"):
        code, told, _ = annotate(
            *("tasks", f"pictures/{source}", *pictures, "--source", source, "--out", f"{source}.csv"),
            *("--annotators", "Anna,ben,cem", *(("--collected-for", "THREE") if source == "real" else ())),
        )
        assert code == 0
        assert told.count("Wrote") == 3
    first = [
        answer(tmp_path / f"{s}-{who}.csv", truth, 0.25) for s in ("real", "generated") for who in PEOPLE
    ]
    # Three people in turn: two for each image.
    assert sum(len(read_table(path, (), "tasks")) for path in first) == 2 * len(truth)
    code, told, errors = annotate(
        "third", *first, *pictures, "--annotators", "anna,ben,cem", "--out", "third.csv"
    )
    assert (code, errors) == (0, "")
    third = [answer(path, truth, 0.1) for path in sorted(tmp_path.glob("third-*.csv"))]
    asked = sum(len(read_table(path, (), "tasks")) for path in third)
    assert f"60 images, {asked} of them without a majority" in told
    assert 5 < asked < 40

    code, told, _ = annotate("merge", *first, *third, *pictures, "--out", "round1")
    assert code == 0
    open_ones = read_table(tmp_path / "round1/annotation/uncategorised.csv", ("image",), "images")
    assert len(open_ones) > 5
    assert f"{len(open_ones)} uncategorised" in told
    table = tmp_path / "round1/annotation/uncategorised.csv"
    assert (
        annotate(
            "tasks", table, *pictures, "--round", "2", "--annotators", "anna,ben", "--out", "round2.csv"
        )[0]
        == 0
    )
    second = [answer(tmp_path / f"round2-{who}.csv", truth, 0, second_round=True) for who in ("anna", "ben")]
    code, told, _ = annotate("merge", *first, *third, *second, *pictures, "--out", "dataset", "--json")
    assert code == 0
    found = json.loads(told)
    assert found == json.loads((tmp_path / "dataset/annotation/statistics.json").read_text())
    assert {source: line["all"] for source, line in found["sources"].items()} == {
        source: sum(name.startswith(source) for name in truth) for source in ("generated", "real")
    }
    assert 0.2 < found["all"]["agreement"]["first_two"] < found["all"]["agreement"]["all_votes"] < 1
    assert found["all"]["uncategorised"] == 0

    loaded = load_examples("folder:dataset", split="all", taxonomy=POLICY)
    assert len(loaded.examples) == found["all"]["safe"] + found["all"]["unsafe"] > 45
    assert loaded.skipped == ()
    right = [example.violates == truth[example.id] for example in loaded.examples]
    assert np.mean(right) > 0.9
    assert {(example.source, example.collected_for) for example in loaded.examples} == {
        ("real", "three"),
        ("generated", None),
    }
    with (
        Image.open(loaded.examples[0].image) as copy,
        Image.open(f"pictures/{loaded.examples[0].id}") as original,
    ):
        assert copy.tobytes() == original.tobytes()


def test_label_studio_and_back(truth: dict[str, frozenset[str]], annotate: Annotate, tmp_path: Path) -> None:
    rows = [f"{name},{name.split('/')[0]},{'seven' if name.endswith('1.png') else ''}" for name in truth]
    (tmp_path / "images.csv").write_text("\n".join(["image,source,collected_for", *rows]) + "\n")
    words = (
        "tasks",
        "images.csv",
        "--images",
        "pictures",
        "--annotators",
        "anna,ben",
        "--out",
        "tasks.json",
        "--address",
        "https://example.org/",
    )
    assert annotate(*words)[0] == 0
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    assert tasks[0]["data"]["image"] == "https://example.org/" + tasks[0]["data"]["path"]
    label, categories = ElementTree.parse(tmp_path / "tasks.xml").iter("Choices")
    exported = []
    for number, task in enumerate(tasks):
        violated = sorted(truth[task["data"]["path"]])
        results = [{"from_name": label.get("name"), "value": {"choices": ["unsafe" if violated else "safe"]}}]
        results += [{"from_name": categories.get("name"), "value": {"choices": violated}}] if violated else []
        annotations: list[dict[str, Any]] = [
            {"completed_by": 1, "was_cancelled": False, "result": results},
            {
                "completed_by": {"id": 2, "email": "b@example.org"},
                "was_cancelled": number == 0,
                "result": results,
            },
        ]
        exported.append(task | {"id": number, "annotations": annotations})
    (tmp_path / "export.json").write_text(json.dumps(exported))
    code, told, errors = annotate("third", "export.json", "--images", "pictures", "--annotators", "cem")
    assert (code, told) == (0, "60 images, 0 of them without a majority\n")
    assert "1 images without two labels yet: " in errors
    assert not (tmp_path / "third.csv").exists()
    # In the folder of the images itself, no image is copied.
    code, told, _ = annotate("merge", "export.json", "--images", "pictures", "--out", "pictures")
    assert code == 0
    assert "59 labelled images; left out: 1 unresolved" in told
    assert not (tmp_path / "pictures/images").exists()
    loaded = load_examples("folder:pictures", split="all", taxonomy=POLICY)
    assert {one.id: (one.violates, one.source, one.collected_for) for one in loaded.examples} == {
        name: (truth[name], name.split("/")[0], "seven" if name.endswith("1.png") else None)
        for name in [task["data"]["path"] for task in tasks[1:]]
    }
    assert (
        "labels.csv exists"
        in annotate("merge", "export.json", "--images", "pictures", "--out", "pictures")[2]
    )


def test_dedupe_lists_what_to_annotate(
    truth: dict[str, frozenset[str]], annotate: Annotate, tmp_path: Path
) -> None:
    name = next(iter(truth))
    with Image.open(tmp_path / "pictures" / name) as image:
        image.resize((120, 120)).save(tmp_path / "pictures" / "=large.png")
    (tmp_path / "pictures" / "broken.png").write_bytes(b"nothing")
    (tmp_path / "pictures" / "notes.txt").write_text("nothing")
    code, told, errors = annotate("dedupe", "pictures", "--out", "unique", "--source", "web")
    assert (code, told) == (0, "62 images: 60 kept, 1 copies, 1 unreadable; lists in unique\n")
    assert "1 file is no image" in errors
    [copy] = read_table(tmp_path / "unique/copies.csv", ("image",), "copies")
    assert (copy["image"], copy["copy_of"], copy["source"], copy["exact"]) == (
        name,
        "./=large.png",
        "web",
        "no",
    )
    assert (tmp_path / "pictures" / name).exists()
    code, told, _ = annotate(
        *(
            "tasks",
            "unique/kept.csv",
            "--images",
            "pictures",
            "--annotators",
            "anna,ben",
            "--out",
            "round1.csv",
        )
    )
    assert told == "Wrote round1-anna.csv: 60 images\nWrote round1-ben.csv: 60 images\n"
    rows = read_table(tmp_path / "round1-ben.csv", (), "tasks")
    assert ("./=large.png", "ben", "", "web") in {
        (r["image"], r["annotator"], r["label"], r["source"]) for r in rows
    }


def test_terms_as_csv_and_json(annotate: Annotate, tmp_path: Path, stub: Any, truth: object) -> None:
    code, told, _ = annotate("terms", "policy.yaml")
    assert code == 0
    assert told.splitlines()[:3] == ["category,term,where", "three,three,name", "three,digit 3,definition"]
    stub.answer = lambda request: completion('["a numbered door", "THREE", "=1+1"]')
    code, told, errors = annotate(
        "terms", "policy.yaml", "--server", stub.url, "--out", "terms.json", "--examples", "3"
    )
    assert code == 0
    rows = json.loads((tmp_path / "terms.json").read_text())
    assert [row for row in rows if row["where"] == "model m"] == [
        {"category": "three", "term": "a numbered door", "where": "model m"},
        {"category": "seven", "term": "a numbered door", "where": "model m"},
        {"category": "seven", "term": "THREE", "where": "model m"},
    ]
    assert "arbiter: three: 1 entries of the answer are no search terms" in errors
    assert json.loads(annotate("terms", "policy.yaml", "--json")[1])[0] == {
        "category": "three",
        "term": "three",
        "where": "name",
    }
    stub.answer = lambda request: completion("I cannot help with that.")
    code, told, errors = annotate("terms", "policy.yaml", "--server", stub.url)
    assert (code, told) == (2, "")
    assert "named no example of any category" in errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["terms", "digitz"], "did you mean 'digits'"),
        (["terms", "digits", "--out", "terms.txt"], "ends in .csv or .json"),
        (["terms", "digits", "--server", "nowhere"], "Not the URL of a server"),
        (["dedupe", "picture", "--out", "x"], "neither a folder nor a .csv (did you mean 'pictures'?)"),
        (["dedupe", "pictures", "--out", "policy.yaml"], "policy.yaml is a file"),
        (["dedupe", "empty", "--out", "x"], "holds no images"),
        (["dedupe", "pictures", "--out", "x", "--source", "=a"], "'=a' cannot be a source"),
        (["tasks", "pictures", "--annotators", "anna"], "give at least 2, each once"),
        (["tasks", "pictures", "--annotators", "anna,ANNA"], "give at least 2, each once"),
        (["tasks", "pictures", "--annotators", "a/b,c"], "Annotator 'a/b'"),
        (["tasks", "pictures", "--annotators", "a,b", "--out", "x.xml"], "ends in .csv, or in .json"),
        (["tasks", "pictures", "--annotators", "a,b", "--out", "no/x.csv"], "there is no folder no"),
        (
            ["tasks", "pictures", "--annotators", "a,b", "--out", "old.json"],
            "old.json exists, and answers may be",
        ),
        (["tasks", "pictures", "--annotators", "a,b", "--collected-for", "thre"], "did you mean 'three'"),
        (["tasks", "links", "--annotators", "a,b"], "leads out of links"),
        (
            ["tasks", "bad.csv", "--images", "pictures", "--annotators", "a,b"],
            "row 2: '../policy.yaml' leads out of",
        ),
        (
            ["tasks", "twice.csv", "--images", "pictures", "--annotators", "a,b"],
            "row 3: 'real/00.png' has another source",
        ),
        (["third", "none.csv", "--images", "pictures", "--annotators", "a"], "no such file"),
        (
            ["merge", "none.csv", "--images", "picture", "--out", "x"],
            "picture is no folder of images (did you mean",
        ),
        (
            ["merge", "answers.csv", "--images", "pictures", "--out", "links"],
            "links exists and is no empty folder",
        ),
        (["merge", "answers.csv", "--images", "pictures"], "Missing option '--out'"),
        (["mrege"], "No such command 'mrege'"),
    ],
)
def test_errors_are_one_line_and_two(
    annotate: Annotate, tmp_path: Path, words: Sequence[str], message: str
) -> None:
    for folder in ("pictures", "pictures/real", "links", "empty"):
        (tmp_path / folder).mkdir()
    (tmp_path / "policy.yaml").write_text(POLICY.to_yaml(), encoding="utf-8")
    (tmp_path / "pictures" / "real" / "00.png").touch()
    (tmp_path / "links" / "out.png").symlink_to(tmp_path / "pictures" / "real" / "00.png")
    (tmp_path / "old.json").touch()
    (tmp_path / "bad.csv").write_text("image\n../policy.yaml\n")
    (tmp_path / "twice.csv").write_text("image,source\nreal/00.png,web\nreal/00.png,book\n")
    (tmp_path / "answers.csv").write_text("image,annotator,label\nreal/00.png,anna,safe\n")
    before = sorted(tmp_path.rglob("*"))
    code, told, errors = annotate(words[0], *words[1:])
    assert (code, told) == (2, "")
    assert errors.startswith("arbiter: ")
    assert errors.count("\n") == 1
    assert message in errors
    assert sorted(tmp_path.rglob("*")) == before


def test_a_tie_of_three_is_told_and_left(
    truth: dict[str, frozenset[str]], annotate: Annotate, tmp_path: Path
) -> None:
    one, two, *_ = truth
    rows = [f"{one},anna,safe", f"{one},ben,na", f"{one},cem,unsafe", f"{two},anna,safe", f"{two},cem,na"]
    (tmp_path / "answers.csv").write_text("\n".join(["image,annotator,label", *rows]) + "\n")
    code, told, errors = annotate(
        "third", "answers.csv", "--images", "pictures", "--annotators", "anna,ben,cem"
    )
    assert code == 0
    assert told == "2 images, 2 of them without a majority\nWrote third-ben.csv: 1 images\n"
    assert f"1 images labelled by all of anna,ben,cem already, without a majority: {one}" in errors
