"""Answers to outcomes: majorities, contradictions, and that nothing is lost on the way."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from judge.annotation.answers import LABELS, Answer, Label, read_answers
from judge.annotation.dataset import LISTS, merge_answers, without_names
from judge.annotation.images import Folder, Picture
from judge.annotation.statistics import by_category, by_source, markdown, statistics
from judge.annotation.tasks import assign_third
from judge.annotation.votes import STATES, Outcome, collect_votes, decide, disagreements
from judge.data.tables import read_table
from judge.errors import ConfigError
from prompts import Category, Taxonomy

FIRE = Taxonomy(
    "fire",
    "1",
    (
        Category("Fire", "open flames", aliases=("blaze",), code="F1"),
        Category("Smoke", "smoke"),
        Category("-Ash", "ash"),
    ),
)


def said(text: str, picture: str = "a.png") -> list[Answer]:
    """`anna safe, ben unsafe Fire+Smoke, cem - Fire` -> answers."""
    answers = []
    for number, part in enumerate(text.split(","), start=1):
        name, label, *categories = part.split()
        known: dict[str, Label | None] = {**{word: word for word in LABELS}, "-": None}
        named = tuple(categories[0].split("+")) if categories else ()
        answers.append(Answer(Picture(picture), name, known[label], named, f"row {number}"))
    return answers


def outcome(text: str, *, with_categories: bool = True) -> Outcome:
    ballots, _ = collect_votes(said(text))
    [ballot] = ballots
    return decide(ballot, with_categories=with_categories)


@pytest.mark.parametrize(
    ("text", "state", "categories"),
    [
        ("anna safe, ben safe", "safe", ()),
        ("anna na, ben na", "not_applicable", ()),
        ("anna safe, ben unsafe, cem safe", "safe", ()),
        ("anna safe, ben unsafe Fire, cem unsafe Fire", "unsafe", ("Fire",)),
        ("anna unsafe Fire, ben unsafe", "uncategorised", ()),  # one annotator alone is no majority
        ("anna unsafe Fire+Smoke, ben unsafe Smoke", "unsafe", ("Smoke",)),
        ("anna unsafe Fire+Smoke, ben unsafe Fire+Smoke", "unsafe", ("Fire", "Smoke")),
        ("anna unsafe Fire, ben unsafe Smoke", "uncategorised", ()),
        ("anna unsafe, ben unsafe", "uncategorised", ()),
        # Whoever was outvoted may still say which category it is, in the second round.
        ("anna safe, ben unsafe, cem unsafe, anna - Fire, ben - Fire, cem - Smoke", "unsafe", ("Fire",)),
        ("anna safe", "unresolved", ()),
        ("anna unsafe Fire", "unresolved", ()),
        ("anna -, ben -", "unresolved", ()),
        ("anna - Fire, ben - Fire", "unresolved", ()),
        ("anna safe, ben unsafe", "unresolved", ()),
        ("anna safe, ben unsafe, cem na", "unresolved", ()),
        ("anna safe, ben unsafe, cem safe, dora unsafe", "unresolved", ()),
        # The same answer twice is one answer.
        ("anna safe, anna safe", "unresolved", ()),
    ],
)
def test_what_the_majority_says(text: str, state: str, categories: tuple[str, ...]) -> None:
    found = outcome(text)
    assert (found.state, found.categories) == (state, categories)
    assert bool(found.reason) == (state in ("unresolved", "uncategorised"))


def test_categories_can_be_left_open() -> None:
    found = outcome("anna unsafe Fire, ben unsafe Smoke", with_categories=False)
    assert (found.state, found.categories) == ("unsafe", ())
    assert outcome("anna safe, ben unsafe", with_categories=False).state == "unresolved"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("anna safe, ben safe, anna unsafe", "row 3: anna says unsafe of 'a.png', and safe in row 1"),
        (
            "anna unsafe Fire, anna unsafe Smoke",
            "row 2: anna says unsafe Smoke of 'a.png', and unsafe Fire in row 1",
        ),
        ("anna unsafe Fire, anna - Smoke", "row 2: anna says Smoke of 'a.png', and unsafe Fire in row 1"),
    ],
)
def test_two_answers_of_one_annotator(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        collect_votes(said(text))


def test_rows_complete_what_is_known_of_an_image_and_never_contradict_it() -> None:
    one, two = said("anna safe, ben safe")
    told = replace(two, picture=Picture("a.png", "Lexica", "Fire"))
    [ballot], _ = collect_votes([one, told])
    assert ballot.picture == told.picture
    with pytest.raises(ConfigError, match=r"'a\.png' has source 'LAION', and 'Lexica' in row 2"):
        collect_votes([told, replace(one, picture=Picture("a.png", "LAION"))])


def test_rows_that_say_nothing_new_are_told() -> None:
    _, uses = collect_votes(said("anna unsafe, ben -, anna unsafe, anna unsafe Fire, anna - Fire"))
    assert uses == ["counted", "unanswered", "repeated", "counted", "repeated"]


def test_whoever_has_fewest_tasks_and_no_vote_yet_decides() -> None:
    ballots, _ = collect_votes(
        [answer for name in "abcd" for answer in said("anna safe, ben unsafe", name)]
        + said("cem safe, dora unsafe", "e")
    )
    tasks, left = assign_third(ballots, ["anna", "cem", "dora"])
    assert [task.annotators for task in tasks] == [("cem",), ("dora",), ("cem",), ("dora",), ("anna",)]
    assert left == []
    _, left = assign_third(ballots, ["anna", "ben"])
    assert [ballot.picture.name for ballot in left] == ["a", "b", "c", "d"]


@given(st.permutations(["anna safe", "ben unsafe Fire", "cem unsafe Fire", "dora na", "eva unsafe Smoke"]))
def test_the_order_of_answers_changes_no_outcome(parts: list[str]) -> None:
    found = outcome(", ".join(parts))
    assert (found.state, found.categories) == ("unsafe", ("Fire",))


@given(st.lists(st.sampled_from(LABELS), min_size=1, max_size=6))
def test_a_label_stands_only_with_more_than_half(labels: list[Label]) -> None:
    found = outcome(", ".join(f"r{n} {label}" for n, label in enumerate(labels)), with_categories=False)
    [(label, count)] = Counter(labels).most_common(1)
    decided = 2 * count > len(labels) >= 2
    assert found.state == ({"na": "not_applicable"}.get(label, label) if decided else "unresolved")


def test_disagreements_are_the_images_that_a_third_can_decide() -> None:
    texts = {
        "agree": "anna safe, ben safe",
        "differ": "anna safe, ben unsafe",
        "alone": "anna safe",
        "solved": "anna safe, ben unsafe, cem safe",
        "three": "anna safe, ben unsafe, cem na",
    }
    ballots, _ = collect_votes([answer for name, text in texts.items() for answer in said(text, name)])
    assert [ballot.picture.name for ballot in disagreements(ballots)] == ["differ", "three"]


# --- reading and writing -----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    pictures = tmp_path / "pictures"
    (pictures / "more").mkdir(parents=True)
    for name in ("a.png", "b.png", "=c.png", "more/d.png", "more/b.png"):
        (pictures / name).write_bytes(b"never opened")
    (tmp_path / "outside.png").write_bytes(b"x")
    (pictures / "link.png").symlink_to(tmp_path / "outside.png")
    return Folder(pictures)


def write(folder: Folder, text: str) -> Path:
    path = folder.path.parent / "answers.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_reads_what_people_write(folder: Folder) -> None:
    path = write(
        folder,
        "\ufeffpath,Notes,annotator,label,categories,source,collected_for\n"
        "./more/../a.png,,Anna, Unsafe ,blaze; SMOKE;f1,Lexica,fire\n"
        "more/d.png,x,anna,N/A,,,\n"
        "./=c.png,,ben,,,,\n",
    )
    first, second, third = read_answers([path], FIRE, folder)
    assert first.picture == Picture("a.png", "Lexica", "Fire")
    assert (first.annotator, first.label, first.categories) == ("anna", "unsafe", ("Fire", "Smoke"))
    assert (second.picture.name, second.label) == ("more/d.png", "na")
    assert (third.picture.name, third.label, third.where) == ("=c.png", None, "answers.csv, row 4")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a.png,anna,safe,Fire", "row 2: anna calls 'a.png' safe, yet in category 'Fire'"),
        ("a.png,anna,na,Fire", "calls 'a.png' na, yet in category"),
        ("a.png,anna,unsafe,Fier", r"row 2: no category 'Fier' \(did you mean 'Fire'\?\)"),
        ("a.png,anna,unsave,", r"row 2: no label 'unsave' \(did you mean 'unsafe'\?\)"),
        ("a.png,,safe,", "row 2: nobody is named"),
        ("a.png,=anna,safe,", "row 2: '=anna' cannot be an annotator"),
        (",anna,safe,", "row 2: no image"),
        ("../outside.png,anna,safe,", "row 2: '../outside.png' leads out of"),
        ("link.png,anna,safe,", "'link.png' leads out of"),
        ("/etc/passwd,anna,safe,", "leads out of"),
        ("more,anna,safe,", "no file 'more'"),
        ("aa.png,anna,safe,", r"no file 'aa.png' in .*did you mean"),
        ("a\u202e.png,anna,safe,", "characters that tables cannot hold"),
        ("a.png,anna,safe,,more", "row 2: more cells than columns"),
    ],
)
def test_wrong_rows_are_named(folder: Folder, row: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_answers([write(folder, f"image,annotator,label,categories\n{row}\n")], FIRE, folder)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.csv", "image,annotator\na.png,anna\n", "no column 'label'"),
        ("x.csv", "image,annotator,label,label\na.png,anna,unsafe,safe\n", "two columns 'label'"),
        ("x.csv", "image,annotator,label\n", "there are no answers"),
        ("x.txt", "", "read from .csv, or from .json"),
        ("x.json", "{}", "expected a list of tasks"),
        ("x.json", "[1]", "expected a list of tasks"),
        ("x.json", "[" * 100_000, "cannot be read as JSON"),
        ("x.json", '[{"data": {"path": "a.png"}}]', "task 1: expected `data` and a list of `annotations`"),
        ("x.json", '[{"data": {}, "annotations": [{"result": 3}]}]', "annotation 1: `result` is no list"),
    ],
)
def test_files_that_are_none(folder: Folder, name: str, text: str, message: str) -> None:
    path = folder.path.parent / name
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_answers([path], FIRE, folder)


@pytest.mark.parametrize("name", ["x.csv", "x.json"])
def test_files_that_are_missing(folder: Folder, name: str) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_answers([folder.path / name], FIRE, folder)


@pytest.mark.parametrize(
    "category", [Category("a; b", "x"), Category("both", "x", members=("Fire", "Smoke"))]
)
def test_categories_that_no_table_can_name(category: Category, folder: Folder) -> None:
    with pytest.raises(ConfigError, match="cannot stand in tables"):
        read_answers([write(folder, "image,annotator,label\n")], FIRE.extend([category]), folder)


NAMES = ("a.png", "b.png", "=c.png", "more/d.png", "more/b.png")
rows = st.lists(
    st.tuples(
        st.sampled_from(NAMES),
        st.sampled_from(["anna", "ben", "cem", "dora"]),
        st.sampled_from(["safe", "unsafe", "na", ""]),
        st.sampled_from(["", "Fire", "Smoke;-Ash", "-Ash"]),
    ),
    min_size=1,
    max_size=25,
    unique_by=lambda row: row[:2],
)


@given(rows)
@settings(max_examples=15)
def test_nothing_is_lost(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, ...]]) -> None:
    """Each row is in votes.csv once, each image in one list; and what was written reads back."""
    root = tmp_path_factory.mktemp("merge")
    for name in NAMES:
        (root / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "pictures" / name).write_bytes(name.encode())
    folder = Folder(root / "pictures")
    answers = [
        Answer(
            Picture(name),
            annotator,
            (label or None),  # type: ignore[arg-type]
            tuple(filter(None, categories.split(";"))) if label in ("unsafe", "") else (),
            f"=a.csv, row {number}",
        )
        for number, (name, annotator, label, categories) in enumerate(rows)
    ]
    found = merge_answers(answers, FIRE, folder, root / "out")
    votes = read_table(root / "out" / "annotation" / "votes.csv", ("row", "use", "outcome"), "votes")
    assert [str(vote["row"]).strip() for vote in votes] == [answer.where for answer in answers]
    lists = {
        state: read_table(root / "out" / "annotation" / f"{state}.csv", ("image",), "images")
        for state in LISTS
    }
    labels = read_table(root / "out" / "labels.csv", ("path", "label"), "labels")
    listed = [Path(str(row["image"])) for found_rows in lists.values() for row in found_rows]
    listed += [Path(str(row["path"])).relative_to("images") for row in labels]
    assert sorted(map(str, listed)) == sorted({name for name, *_ in rows})
    assert all((root / "out" / str(row["path"])).read_bytes() for row in labels)
    assert found["all"]["all"] == len(listed) == sum(found["all"][state] for state in STATES)
    # No spreadsheet computes a cell.
    written = list((root / "out").rglob("*.csv"))
    cells = [cell for file in written for row in read_table(file, (), "anything") for cell in row.values()]
    assert not [cell for cell in cells if str(cell).startswith(("=", "-", "+", "@"))]
    # The file of votes is itself a file of answers, from which the same data set follows.
    again = read_answers([root / "out" / "annotation" / "votes.csv"], FIRE, folder)
    assert [(a.picture, a.annotator, a.label, a.categories) for a in again] == [
        (a.picture, a.annotator, a.label, a.categories) for a in answers
    ]


def test_anonymous_votes_name_nobody(folder: Folder, tmp_path: Path) -> None:
    path = write(
        folder, "image,annotator,label\na.png,ben,safe\na.png,anna,safe\nb.png,anna,safe\nb.png,ben,na\n"
    )
    path = path.rename(path.with_name("answers-anna.csv"))
    answers = read_answers([path], FIRE, folder)
    merge_answers(answers, FIRE, folder, tmp_path / "out", anonymous=True)
    written = [
        file.read_text() for file in (tmp_path / "out").rglob("*") if file.suffix in (".csv", ".json", ".md")
    ]
    assert len(written) == 7
    assert not any("anna" in text or "ben" in text for text in written)
    assert "annotator-2: safe" in (tmp_path / "out" / "annotation" / "unresolved.csv").read_text()
    numbers = [one.annotator[-1] for one in without_names(answers)]
    assert numbers == ["1", "2", "2", "1"]


def test_statistics_are_the_tables_of_the_paper() -> None:
    votes = {
        ("1", "LAION", "Fire"): "anna safe, ben safe",
        ("2", "LAION", "Fire"): "anna unsafe Fire+Smoke, ben unsafe Fire+Smoke",
        ("3", "Lexica", ""): "anna na, ben na",
        ("4", "Lexica", ""): "anna safe, ben safe",
        ("5", "", ""): "anna safe, ben unsafe",
        ("6", "Lexica", ""): "anna unsafe, ben unsafe",
    }
    outcomes = []
    for (name, source, category), text in votes.items():
        [ballot], _ = collect_votes(said(text, name))
        outcomes.append(decide(replace(ballot, picture=Picture(name, source, category))))
    found = statistics(outcomes, FIRE)
    assert {name: line["all"] for name, line in found["sources"].items()} == {
        "LAION": 2,
        "Lexica": 3,
        "not recorded": 1,
    }
    assert by_source(found)[1] == ["LAION", "2", "1", "1", "0", "0", "0", "1.00", "1.00 to 1.00", "1.00"]
    assert by_source(found)[-1][:7] == ["all", "6", "2", "1", "1", "1", "1"]
    assert by_source(found)[3][7:] == ["-1.00", "-1.00 to -1.00", "-1.00"]
    # An image of two categories counts in both, and once as an image.
    assert by_category(found)[:3] == [
        ["source", "label", "Fire", "Smoke", "-Ash", "not recorded", "images"],
        ["LAION", "safe", "1", "0", "0", "0", "1"],
        ["LAION", "unsafe", "1", "1", "0", "0", "1"],
    ]
    open_ones = [decide(one.ballot, with_categories=False) for one in outcomes]
    assert by_category(statistics(open_ones, FIRE))[4] == ["Lexica", "unsafe", "0", "0", "0", "1", "1"]
    assert "| Lexica | safe | 0 | 0 | 0 | 1 | 1 |" in markdown(found)
