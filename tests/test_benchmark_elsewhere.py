"""Predictions that were made elsewhere: what a file may hold, and what it is told otherwise."""

import math

import pytest

from eval.benchmark.elsewhere import judge_elsewhere, read_elsewhere
from eval.benchmark.predictions import About, PredictionsError, read_predictions, write_predictions
from prompts import load_taxonomy
from prompts.example import Example

DIGITS = load_taxonomy("digits").select(["zero", "one", "two"])
EXAMPLES = [Example(f"test/{n}", None, violates=frozenset(["one"] if n == 1 else [])) for n in range(4)]


@pytest.fixture
def judged(tmp_path):
    """`judged(text)` -> Predictions of a file with this text."""

    def judge(text, **about):
        path = tmp_path / "gpt.csv"
        path.write_text(text, encoding="utf-8-sig")
        found = read_elsewhere(path, DIGITS)
        about = {"covers": found.covers} | about
        return judge_elsewhere(
            found, EXAMPLES, About("gpt", "gpt", "other", DIGITS, dataset="d", splits=("test",), **about)
        )

    return judge


def test_scores_of_categories_cover_these(judged, tmp_path):
    found = judged(
        "id,two,ONE,unsafe,reason\ntest/1,0.1,0.9,0.9,\ntest/0,,,,the service\trefused\ntest/2,0,1,1,\n"
    )
    assert found.about.covers == ("one", "two")
    assert [row.id for row in found.rows] == [f"test/{n}" for n in range(4)]
    assert found.rows[1].unsafe == 0.9
    assert found.rows[1].categories[1:] == (0.9, 0.1)
    assert math.isnan(found.rows[1].categories[0])
    assert found.rows[1].asked == {"one", "two"}
    assert [row.truth for row in found.rows] == [False, True, False, False]
    assert [row.reason for row in found.rows] == [
        "the service refused",
        None,
        None,
        "gpt.csv has no row of this image",
    ]
    write_predictions(tmp_path / "a.parquet", found)
    assert read_predictions(tmp_path / "a.parquet").about == found.about


def test_one_score_covers_everything(judged):
    found = judged("id,unsafe\ntest/1,1\ntest/0,0.25\ntest/2,\n")
    assert found.about.covers == DIGITS.keys
    assert [row.categories for row in found.rows[:2]] == [(0.25,) * 3, (1.0,) * 3]
    assert found.rows[2].reason == "gpt.csv gives no score and no reason"
    assert math.isnan(found.rows[2].unsafe)


def test_under_the_papers_protocol_each_image_has_one_category(judged):
    found = judged("id,unsafe,one\ntest/1,0.9,0.9\ntest/0,0.1,0.1\n", protocol="paper")
    assert {row.asked for row in found.rows} == {frozenset(["one"])}
    assert found.rows[0].id in ("test/0", "test/1")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no column 'id'; it has: none"),
        ("id,score\n", "no column 'unsafe'; it has: id, score"),
        ("id,unsafe,tow\n", r"column 'tow' is no category \(did you mean 'two'\?\); known: id, unsafe, reason, zero"),
        ("id,unsafe,two,Two\n", "'Two' stands for a category that has a column already"),
        ("id,unsafe,unsafe\n", "two columns 'unsafe'"),
        ("id,unsafe\ntest/1,1.2\n", r"line 2: unsafe is '1\.2'; give a probability"),
        ("id,unsafe\ntest/1,nan\n", "unsafe is 'nan'"),
        ("id,unsafe\ntest/0,\ntest/1,yes\n", "line 3: unsafe is 'yes'"),
        ("id,unsafe,two\ntest/1,1,-0.1\n", r"two is '-0\.1'"),
        ("id,unsafe\ntest/1,1\ntest/1,1\n", "line 3: the image 'test/1' has a row already"),
        ("id,unsafe\ntest/1,1,2\n", "line 2 has not as many values"),
        ("id,unsafe\ntest/1\n", "line 2 has not as many values"),
        ("id,unsafe\ntest/1,1\nTest/2,1\na,1\nb,0\nc,0\n", r"names 4 images that are not among the 4 .*'Test/2', 'a', 'b' \.\.\."),
        ('id,unsafe\n"test/1,1\n', "cannot be read as CSV"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_said(judged, text, says):
    with pytest.raises(PredictionsError, match=says):
        judged(text)


def test_a_file_that_is_not_there(tmp_path):
    (tmp_path / "gpt.csv").write_text("id,unsafe\n")
    with pytest.raises(PredictionsError, match=r"no file .*gpt4\.csv \(did you mean .*gpt\.csv"):
        read_elsewhere(tmp_path / "gpt4.csv", DIGITS)
    (tmp_path / "latin.csv").write_bytes(b"id,unsafe\n\xff,1\n")
    with pytest.raises(PredictionsError, match="cannot be read as CSV in UTF-8"):
        read_elsewhere(tmp_path / "latin.csv", DIGITS)
