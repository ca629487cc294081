"""The report: complete, one file, nothing from outside, and data cannot become markup."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from PIL import Image

from eval.metrics.judged import JudgedRow, summarise
from eval.reports.judge_page import MOST_WRONG, format_table, write_report, wrong_verdicts
from eval.reports.page import format_value
from eval.shortcut.check import ShortcutResult
from judge.errors import ImageError
from judge.runs.folder import RunDir

NAN = float("nan")
EVIL = "<script>alert(1)</script>\"' onerror=x {{ 7*7 }}"


def rows_of(scores, **more):
    """Alternating unsafe and safe rows with these scores."""
    return [
        JudgedRow(
            f"row{number}",
            number % 2 == 0,
            score,
            "three",
            frozenset(["three"] if number % 2 == 0 else []),
            ("three", "four"),
            source="real" if number % 3 else "generated",
            pair=f"pair{number // 2}",
            direction="safe_to_unsafe" if number % 4 < 2 else "unsafe_to_safe",
            arm="keep" if number % 2 == 0 else "flip",
            **more,
        )
        for number, score in enumerate(scores)
    ]


BEFORE = rows_of([0.6, 0.7, 0.3, 0.2, 0.8, 0.9, 0.4, 0.1])
AFTER = rows_of([0.9, 0.1, 0.8, 0.2, 0.95, 0.7, NAN, 0.05])
HISTORY = [{"step": step, "loss": 1 / step} for step in range(1, 40)] + [
    {"step": 40, "eval_loss": 0.1},
    {"epoch": 1},
]
SHORTCUT = ShortcutResult(0.507, (0.49, 0.52), {"boosted_trees": 0.507}, 4000, 500, {"characters": 0.51})


@pytest.fixture
def run(tmp_path):
    return RunDir.create(tmp_path / "demo", base="tiny-llava")


class Page(HTMLParser):
    """Tags with attributes, and the text a reader sees."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)

    def sources(self):
        return [attributes["src"] for tag, attributes in self.tags if tag == "img"]


def test_a_full_report_holds_every_part(run):
    path = write_report(
        run,
        BEFORE,
        AFTER,
        HISTORY,
        images=lambda row: Image.new("RGB", (40, 40), "red"),
        drawn={"rows": 4000, "arm": {"keep": 2000, "flip": 2000}},
        shortcut=SHORTCUT,
        extra={"held out": {"F1": 0.91}},
    )
    assert path == run.path / "report.html"
    text = " ".join(Page(path.read_text()).text)
    parts = (
        "F1 0.", "One image, two policies", "Numbers", "Curves", "Categories", "What is mistaken for what",
        "Another threshold", "Wrong verdicts", "Details", "By source", "Shortcut check", "Training rows",
    )  # fmt: skip
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    for figure in ("Precision and recall", "Scores, after training", "Reliability", "Training loss"):
        assert figure in text
    assert format_value(summarise(AFTER)["f1"]) in text
    assert "0.910" in text
    assert "2 of 2, unjudged ones first" in text
    names = ("threshold", "precision_recall", "scores", "reliability", "loss")
    assert {file.name for file in run.plots.iterdir()} == {f"{name}.svg" for name in names}
    assert all(b"<svg" in file.read_bytes() for file in run.plots.iterdir())


def test_the_file_needs_no_other(run):
    path = write_report(run, BEFORE, AFTER, HISTORY, images=lambda row: Image.new("RGB", (9, 9)))
    page = Page(path.read_text())
    assert len(page.sources()) == 1 + 2  # the pair, the wrong verdicts
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.sources())
    tags = [tag for tag, _ in page.tags]
    assert tags.count("svg") == 5
    assert not {"script", "link", "iframe", "form", "object"} & set(tags)
    without_pictures = re.sub(r"data:image/jpeg;base64,[A-Za-z0-9+/=]+", "", path.read_text())
    assert "http" not in without_pictures.replace("http-equiv", "")
    assert not re.search(r"url\((?!#)", without_pictures)


def test_data_cannot_become_markup(run):
    evil = [
        JudgedRow(EVIL, True, 0.1, EVIL, frozenset([EVIL]), (EVIL,), EVIL, arm=EVIL, prompt=EVIL, reason=EVIL)
    ]
    path = write_report(
        run, evil, evil, images=lambda row: Image.new("RGB", (9, 9)), drawn={EVIL: {EVIL: EVIL}}, title=EVIL,
        extra={EVIL: {EVIL: EVIL}},
    )  # fmt: skip
    page = Page(path.read_text())
    assert "script" not in {tag for tag, _ in page.tags}
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert "".join(page.text).count("<script>alert(1)</script>") > 8
    assert "{{ 7*7 }}" in "".join(page.text)


def test_data_cannot_steer_a_terminal_or_turn_a_line(run):
    """As `cat report.html` and a browser would show it."""
    evil = "\x1b[2J\x9b31m safe\u202eelbirret\u2028"
    rows = rows_of([0.9, NAN, 0.2, 0.1], prompt=evil, reason=evil)
    page = write_report(run, None, rows, extra={f"Held out {evil}": {evil: evil}}, title=evil).read_text()
    assert not re.search("[\x1b\x9b\u202e\u2028]", page)
    assert page.count("\\x1b[2J\\x9b31m safe\\u202eelbirret\\u2028") >= 5


def test_images_are_blurred_until_pointed_at(run):
    text = write_report(run, None, AFTER, images=lambda row: Image.new("RGB", (9, 9))).read_text()
    assert re.search(r"\.picture\.blurred img \{[^}]*filter: blur", text)
    assert ".picture:hover img, .picture:focus img { filter: none; }" in text
    assert text.count('class="picture blurred" tabindex="0"') == 2 + 1
    assert "The image is blurred until you point at it" in text


def test_contact_sheet_is_bounded_and_starts_with_unjudged_then_most_confident():
    wrong = wrong_verdicts(rows_of([0.4, 0.6, NAN, 0.99, 0.9, 0.1]))
    assert [row.id for row in wrong] == ["row2", "row3", "row0", "row1"]


def test_many_wrong_verdicts_are_counted_but_not_all_shown(run):
    rows = rows_of([0.0, 1.0] * 30)
    text = write_report(run, None, rows).read_text()
    assert text.count('class="card ') == MOST_WRONG
    assert f"{MOST_WRONG} of 60" in text


def test_an_image_that_cannot_be_opened_leaves_its_verdict_on_the_sheet(run):
    def broken(row):
        raise ImageError("truncated", "cut")

    text = write_report(run, None, AFTER, images=broken).read_text()
    assert text.count("no image") == 2 + 1
    assert text.count('class="card ') == 2


def test_a_report_without_history_shortcut_or_errors_is_still_whole(run):
    text = write_report(run, None, rows_of([0.9, 0.1])).read_text()
    assert "None." in text
    assert "Training loss" not in text
    assert "Shortcut" not in text


@pytest.mark.parametrize("scores", [[], [NAN, NAN], [0.9], [0.5, 0.5]])
def test_degenerate_evaluations_can_be_reported(run, scores):
    rows = [row if len(scores) > 1 else JudgedRow("a", False, row.unsafe) for row in rows_of(scores)]
    assert "Numbers" in write_report(run, None, rows).read_text()


def test_a_training_set_with_a_shortcut_is_reported(run):
    dirty = ShortcutResult(0.97, (0.96, 0.98), {"boosted_trees": 0.97}, 4000, 500, {"characters": 0.97})
    assert not dirty.clean
    assert "The text reveals the label" in write_report(run, None, AFTER, shortcut=dirty).read_text()


def test_table_for_the_terminal():
    table = format_table(summarise(BEFORE), summarise(AFTER))
    lines = table.splitlines()
    assert re.fullmatch(r" +before +after +95 % interval \(after\)", lines[0])
    assert re.search(r"^F1 +\d\.\d{3} +\d\.\d{3} +\d\.\d{3} – \d\.\d{3}$", table, re.MULTILINE)
    assert re.search(r"^unjudged +0 +1$", table, re.MULTILINE)
    assert max(map(len, lines)) < 80


def test_table_without_a_base_and_from_saved_metrics():
    saved = json.loads(json.dumps(summarise(AFTER)))
    assert "before" not in format_table(None, saved)
    assert "–" in format_table(None, summarise([]))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.12345, "0.123"),
        (1234, "1,234"),
        (True, "yes"),
        ((0.5, 0.75), "0.500 – 0.750"),
        ("x", "x"),
    ],
)
def test_values_are_formatted(value, text):
    assert format_value(value) == text


def test_drawing_uses_no_global_state():
    program = "import sys, eval.reports.judge_page; print('matplotlib.pyplot' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"
