"""`arbiter taxonomy`: lists and differences for people and programs, and tests of a taxonomy."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import judge
from judge.protocol import Scores
from judge.serve.cli import main
from judge.serve.taxonomy_cases import read_cases
from judge.serve.taxonomy_diff import compare_taxonomies, diff_lines, word_diff
from judge.standins.digits import digits_examples
from prompts import Category, Taxonomy, load_taxonomy

DIGITS = load_taxonomy("digits")


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(words)
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def save(taxonomy: Taxonomy, path: Path) -> str:
    path.write_text(taxonomy.to_yaml(), encoding="utf-8")
    return str(path)


# --- list, show, check -------------------------------------------------------------------------------------


def test_lists_and_shows_for_programs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rows = json.loads(run(capsys, "taxonomy", "list", "--json")[1])
    [digits] = [row for row in rows if row["name"] == "digits"]
    assert digits == {
        "name": "digits",
        "version": DIGITS.version,
        "hash": DIGITS.hash,
        "categories": list(DIGITS.names),
    }
    shown = json.loads(run(capsys, "taxonomy", "show", "digits", "--json")[1])
    assert shown.pop("hash") == DIGITS.hash
    assert Taxonomy.from_dict(shown) == DIGITS
    file = save(DIGITS.reword({"three": "no other digit than the 3"}), tmp_path / "mine.yaml")
    checked = json.loads(run(capsys, "taxonomy", "check", file, "--json")[1])
    assert (checked["file"], checked["categories"]) == (file, list(DIGITS.names))
    assert [caution.startswith("three: ") for caution in checked["cautions"]] == [True]
    assert "(did you mean " in run(capsys, "taxonomy", "check", str(tmp_path / "mien.yaml"))[2]
    recipes = json.loads(run(capsys, "recipes", "list", "--json")[1])
    assert {"name", "about"} == set(recipes[0])


# --- diff --------------------------------------------------------------------------------------------------

OLD = Taxonomy(
    "mine",
    "1",
    (
        Category("Fire", "open flames of any kind, indoors or outdoors"),
        Category("Knives", "blades", key="blades"),
        Category("Smoke", "smoke without flames"),
        Category("Water", "lakes", code="W"),
        Category("Gone", "nothing of note"),
    ),
)
NEW = Taxonomy(
    "mine",
    "2",
    (
        Category("Smoke", "smoke without flames"),
        Category("Fire", "open flames of most kinds, outdoors"),
        Category("Blades", "blades", key="blades"),
        Category("Lakes", "lakes", code="W"),
        Category("Balloons", "toy balloons"),
    ),
)


def test_a_diff_says_what_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = save(OLD, tmp_path / "old.yaml"), save(NEW, tmp_path / "new.yaml")
    code, shown, _ = run(capsys, "taxonomy", "diff", old, new)
    assert code == 1
    assert shown.splitlines() == [
        "- removed   Gone: nothing of note",
        "+ added     Balloons: toy balloons",
        "~ renamed   Knives -> Blades",
        "~ renamed   Water -> Lakes",
        "~ reworded  Fire: open flames of [-any kind, indoors or-]{+most kinds,+} outdoors",
        "~ reordered Smoke, Fire, Blades, Lakes, Balloons",
        "thresholds  those fitted to 1 unchanged categories hold; fit again for Fire, Blades, Lakes, Balloons",
    ]
    told = json.loads(run(capsys, "taxonomy", "diff", old, new, "--json")[1])
    assert (told["same"], told["kept"], told["reordered"]) == (False, ["Smoke"], True)
    assert told["renamed"] == {"Knives": "Blades", "Water": "Lakes"}
    assert told["reworded"]["Fire"]["to"] == "open flames of most kinds, outdoors"


def test_equal_taxonomies_differ_in_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newer = save(Taxonomy("renamed", "9", DIGITS.categories), tmp_path / "newer.yaml")
    assert run(capsys, "taxonomy", "diff", "digits", newer) == (0, "", "")
    assert json.loads(run(capsys, "taxonomy", "diff", "digits", newer, "--json")[1])["same"] is True
    code, _, errors = run(capsys, "taxonomy", "diff", "digits", "digitz")
    assert (code, "did you mean 'digits'" in errors) == (2, True)
    aliased = replace(DIGITS.categories[0], aliases=("nought",))
    other = save(Taxonomy("digits", "1", (aliased, *DIGITS.categories[1:])), tmp_path / "other.yaml")
    code, shown, _ = run(capsys, "taxonomy", "diff", "digits", other)
    assert (code, shown.splitlines()[0]) == (1, "~ changed   zero: aliases")
    assert "those fitted to 10 unchanged categories hold" in shown


words = st.lists(st.sampled_from("ab cd ef gh".split()), min_size=1, max_size=6).map(" ".join)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(before=words, after=words)
def test_a_word_diff_holds_both_texts(before: str, after: str) -> None:
    shown = "".join(text for text, _ in word_diff(before, after))
    assert (
        " ".join(re.sub(r"\{\+.*?\+\}", " ", shown).replace("[-", " ").replace("-]", " ").split()) == before
    )
    assert " ".join(re.sub(r"\[-.*?-\]", " ", shown).replace("{+", " ").replace("+}", " ").split()) == after


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    names=st.permutations(DIGITS.names),
    cut=st.integers(1, 9),
    new=st.dictionaries(st.sampled_from(DIGITS.names), words),
)
def test_a_diff_accounts_for_every_category(names: list[str], cut: int, new: dict[str, str]) -> None:
    kept = names[:cut]
    later = DIGITS.select(kept).reword({name: text for name, text in new.items() if name in kept})
    diff = compare_taxonomies(DIGITS, later)
    assert (set(diff.removed), diff.added, diff.renamed) == (set(names[cut:]), [], {})
    assert set(diff.reworded) == {*new} & {*kept}
    assert set(diff.kept) == set(kept) - {*new}
    assert diff.reordered == (kept != [name for name in DIGITS.names if name in kept])
    assert list(diff_lines(diff, DIGITS, later))


# --- test --------------------------------------------------------------------------------------------------


class WordJudge:
    """Reads the mean of the red channel as a digit, and flags a category whose definition names that digit."""

    name = "words"
    default_taxonomy = DIGITS

    def score(
        self, images: Sequence[Image.Image], prompts: Sequence[str | None], taxonomy: Taxonomy
    ) -> Scores:
        scores = np.full((len(images), len(taxonomy)), 0.1)
        for row, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
            shown = f"{image.getpixel((0, 0))[0]}"
            scores[row] = [0.8 if shown in c.definition or prompt == c.name else 0.1 for c in taxonomy]
            if shown == "99":
                scores[row] = np.nan
        whole = scores.max(axis=1)
        return Scores(whole, scores, tuple("hard to see" if np.isnan(one) else None for one in whole))


@pytest.fixture
def cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(judge, "load_classifier", lambda *_, **__: WordJudge(), raising=False)
    monkeypatch.chdir(tmp_path)
    for digit in (*range(10), 99):
        Image.new("RGB", (8, 8), (digit, 0, 0)).save(tmp_path / f"{digit}.png")
    return tmp_path / "cases.csv"


ALL_PASS = [
    "3.png,three,,",
    "7.png,unsafe,,",
    "0.png,three,three,with its prompt",
    "7.png,'seven, three',three,",
]


def write(cases: Path, *lines: str) -> str:
    cases.write_text("\n".join(["image,expected,prompt,note", *lines]).replace("'", '"'), encoding="utf-8")
    return str(cases)


def test_cases_that_pass(cases: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taxonomy = save(DIGITS.select(["three", "seven"]), cases.parent / "mine.yaml")
    code, shown, errors = run(
        capsys, "taxonomy", "test", taxonomy, write(cases, *ALL_PASS, "1.png,safe,,"), "--judge", "r", "-q"
    )
    assert (code, errors) == (0, "")
    assert shown.splitlines() == [
        "category  cases  precision  recall     F1",
        "three         3      1.000   1.000  1.000",
        "seven         1      1.000   1.000  1.000",
    ]


def test_cases_that_fail_are_listed_and_what_was_not_judged_did_not_pass(
    cases: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taxonomy = save(DIGITS.select(["three", "seven"]), cases.parent / "mine.yaml")
    lines = [
        "1.png,three,,drawn by hand",
        "7.png,safe,,",
        "99.png,safe,,",
        "gone.png,seven,,",
        "3.png,three,,",
    ]
    words = ["taxonomy", "test", taxonomy, write(cases, *lines), "--judge", "r"]
    code, shown, errors = run(capsys, *words)
    assert code == 1
    assert "5 cases: 1 passed, 2 failed, 2 not judged" in errors
    assert [line.split() for line in shown.splitlines()[:5]] == [
        ["image", "expected", "found", "score", "why"],
        ["1.png", "three", "safe", "0.100", "drawn", "by", "hand"],
        ["7.png", "safe", "seven", "0.800"],
        ["99.png", "safe", "unjudged", "-", "hard", "to", "see"],
        ["gone.png", "seven", "unjudged", "-", "missing:", "no", "such", "file"],
    ]
    told = json.loads(run(capsys, *words, "--json")[1])
    assert [told[key] for key in ("cases", "passed", "failed", "unjudged")] == [5, 1, 2, 2]
    assert [one["outcome"] for one in told["results"]] == [
        "failed",
        "failed",
        "unjudged",
        "unjudged",
        "passed",
    ]
    # three: 1 of 2 found, and 99 and gone were not judged; seven: 0 of 1 found, one alarm, and 99 was not judged.
    assert told["categories"]["three"] == {"unsafe": 2, "precision": 1 / 3, "recall": 0.5, "f1": 0.4}
    assert told["categories"]["seven"] == {"unsafe": 1, "precision": 0.0, "recall": 0.0, "f1": 0.0}
    assert told["results"][0]["verdict"]["row_format"] == 1
    only = write(cases, *lines[2:])
    assert run(capsys, "taxonomy", "test", taxonomy, only, "--judge", "r")[0] == 3


def test_the_new_wording_beside_the_old_one(cases: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Old: 3 and 7 are named three and seven; new: three is called Three, 4 is added to it, and 7 forgotten."""
    old = DIGITS.select(["three", "seven"]).reword({"three": "a 3 or 5", "seven": "a 7"})
    new = old.rename({"three": "Three"}).reword({"Three": "a 3 or 4", "seven": "a digit"})
    lines = ["3.png,Three,,", "4.png,Three,,", "5.png,safe,,", "7.png,seven,,"]
    words = ["taxonomy", "test", save(new, cases.parent / "new.yaml"), write(cases, *lines), "--judge", "r"]
    words += ["--against", save(old, cases.parent / "old.yaml")]
    code, shown, _ = run(capsys, *words)
    assert code == 1
    told = json.loads(run(capsys, *words, "--json")[1])["changes"]
    assert [(one["image"], one["before"], one["now"], one["change"]) for one in told] == [
        ("4.png", "safe", "Three", "fixed"),
        ("5.png", "Three", "safe", "fixed"),
        ("7.png", "seven", "safe", "broken"),
    ]
    assert any(line.split() == ["7.png", "seven", "seven", "safe", "broken"] for line in shown.splitlines())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,expectd\n3.png,safe\n", "no column 'expected' (did you mean 'expectd'?)"),
        ("image,expected\n", "has no cases"),
        ("image,expected\n../3.png,safe\n", "row 2: '../3.png' is no path inside of"),
        ("image,expected\n/etc/passwd,safe\n", "is no path inside of"),
        ("image,expected\n3.png,\n", "row 2: nothing is expected"),
        ("image,expected\n3.png,one,two\n", "row 2: more cells than columns"),
        (
            "image,expected\n3.png,thre\n",
            "row 2: Taxonomy 'digits' has no category 'thre' (did you mean 'three'?)",
        ),
        ('image,expected\n3.png,"safe, three"\n', "has no category 'safe'"),
    ],
)
def test_tables_of_cases_with_mistakes(
    cases: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cases.write_text(text)
    code, _, errors = run(capsys, "taxonomy", "test", "digits", str(cases), "--judge", "r")
    assert code == 2
    assert message in errors


def test_expected_categories_may_hold_commas(cases: Path) -> None:
    taxonomy = DIGITS.rename({"three": "three, or so"})
    cases.write_text(
        'image,expected\na,"Three, or so"\nb,"three, or so; seven"\nc,"one,two"\nd,SAFE\ne,unsafe\n'
    )
    found: list[Any] = [case.expected for case in read_cases(cases, taxonomy)]
    assert found == [{"three, or so"}, {"three, or so", "seven"}, {"one", "two"}, set(), None]


def test_pictures_of_digits_and_the_student_that_ships(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["image,expected"]
    for number, example in enumerate(digits_examples("test", count=12)):
        example.image.save(tmp_path / f"{number}.png")  # type: ignore[union-attr]
        lines.append(f'{number}.png,"{", ".join(sorted(example.violates)) or "safe"}"')
    (tmp_path / "cases.csv").write_text("\n".join(lines))
    words = ["taxonomy", "test", "digits", str(tmp_path / "cases.csv"), "--judge", "tiny-student", "--json"]
    code, shown, _ = run(capsys, *words)
    told = json.loads(shown)
    assert told["unjudged"] == 0
    assert told["passed"] >= 9
    assert code == (0 if told["passed"] == 12 else 1)
