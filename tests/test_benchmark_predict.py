"""Asking a classifier about a benchmark's images: crashes, silence, kills, and which policy each image is asked under."""

import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.benchmark.coverage import covered_keys, select_keys
from eval.benchmark.effectiveness import measure
from eval.benchmark.parts import PartFolder
from eval.benchmark.predict import IN_A_ROW, ClassifierFailedError, collected_for, is_complete, predict
from eval.benchmark.predictions import About
from judge.errors import ConfigError
from judge.protocol import HasFixedCategories, Scores
from prompts import load_taxonomy
from prompts.example import UNSPECIFIED, Example
from prompts.taxonomy import Category

DIGITS = load_taxonomy("digits").select(["zero", "one", "two"])
ABOUT = About("fake", "fake", "other", DIGITS, DIGITS.keys, "made up", ("test",))


def examples(count, **fields):
    """Pictures whose red says which they are; every third violates one category."""
    return [
        Example(
            f"image {number}",
            Image.new("RGB", (8, 8), (number, 0, 0)),
            violates=frozenset([DIGITS.keys[number % 3]] if number % 3 == 0 else []),
            **fields,
        )
        for number in range(count)
    ]


class Fake:
    """Scores by the picture's number; what `crash` and `silence` name crashes it or gets no answer."""

    name = "fake"

    def __init__(self, crash=(), silence=(), **given):
        self.crash, self.silence, self.given, self.asked = crash, silence, given, []

    def score(self, images, prompts, taxonomy):
        numbers = [image.getpixel((0, 0))[0] for image in images]
        self.asked += [(number, taxonomy.keys) for number in numbers]
        for number in numbers:
            if number in self.crash:
                raise self.crash[number]
        silent = tuple(number in self.silence for number in numbers)
        found = np.array([[0.01 * number] * len(taxonomy) for number in numbers])
        found[list(silent)] = np.nan
        values = {
            "unsafe": found.max(axis=1),
            "categories": found,
            "reasons": tuple("no answer" if one else None for one in silent),
            "unanswered": silent if any(silent) else None,
        }
        return Scores(**values | {key: value(len(images)) for key, value in self.given.items()})


def ask(classifier, some, tmp_path, about=ABOUT, **options):
    parts = PartFolder(tmp_path / "parts", about)
    return predict(classifier, some, about, parts, **{"batch_size": 4} | options), parts


def test_every_image_is_asked_under_all_that_is_covered(tmp_path):
    some = examples(10, prompt="a text", source="generated", severity=2, collected_for="two")
    fake, seen = Fake(), []
    about = replace(ABOUT, covers=("zero", "two"))
    found, parts = ask(fake, some, tmp_path, about, progress=seen.append)
    assert [number for number, _ in fake.asked] == list(range(10))
    assert {keys for _, keys in fake.asked} == {("zero", "two")}
    assert [row.id for row in found.rows] == [example.id for example in some]
    row = found.rows[3]
    assert (row.unsafe, row.violates, row.asked) == (0.03, {"zero"}, {"zero", "two"})
    assert row.categories[0] == row.categories[2] == 0.03
    assert math.isnan(row.categories[1])
    assert (row.source, row.collected_for, row.severity, row.truth) == ("generated", "two", 2, True)
    assert 0 <= row.seconds < 10
    assert seen == [0, 4, 8, 10]
    assert is_complete(found, parts)


def test_labels_are_those_of_the_taxonomy_that_is_asked(tmp_path):
    low = Category("low", "zero or one", key="low", members=("zero", "one"))
    taxonomy = replace(DIGITS, categories=(low, DIGITS.categories[2]))
    about = replace(ABOUT, taxonomy=taxonomy, covers=taxonomy.keys)
    some = [
        replace(one, violates=violates, unknown=unknown, collected_for="one")
        for one, violates, unknown in zip(
            examples(5),
            ({"one"}, {UNSPECIFIED}, {UNSPECIFIED}, {"seven"}, set()),
            (set(), {"zero", "one", "two"}, {"zero", "one", "two", "nine"}, set(), {"two"}),
            strict=True,
        )
    ]
    found, _ = ask(Fake(), some, tmp_path, about)
    # Unsafe without a name is unsafe under all that the data set was labelled for, and unknown under a part of it.
    assert [row.violates for row in found.rows] == [{"low"}, {UNSPECIFIED}, set(), set(), set()]
    assert [row.unknown for row in found.rows] == [set(), {"low", "two"}, {"low", "two"}, set(), {"two"}]
    assert [row.truth for row in found.rows] == [True, True, None, False, None]
    record = measure([found])["classifiers"][ABOUT.label]
    assert record["overall"]["all"]["unsafe_rows"] == 2
    assert record["cells"]["two"]["all"]["unsafe_rows"] == 0
    low_only = replace(found, rows=tuple(replace(row, asked=frozenset({"low"})) for row in found.rows))
    assert [row.truth for row in low_only.rows] == [True, None, None, False, False]
    assert {row.collected_for for row in found.rows} == {"low"}


def test_the_paper_asks_about_the_category_that_an_image_was_collected_for(tmp_path):
    about = replace(ABOUT, protocol="paper", covers=("zero", "two"))
    some = examples(40)
    fake = Fake()
    found, _ = ask(fake, some, tmp_path, about)
    by_id = {row.id: row for row in found.rows}
    # Every third violates zero; of the others, those drawn for one have no row.
    assert all(by_id[f"image {number}"].asked == {"zero"} for number in range(0, 40, 3))
    drawn = {collected_for(example, DIGITS) for example in some if not example.violates}
    assert drawn == {"zero", "one", "two"}
    assert set(by_id) == {one.id for one in some if collected_for(one, DIGITS) in about.covers}
    assert all(len(keys) == 1 for _, keys in fake.asked)
    assert all(sum(not math.isnan(p) for p in row.categories) == 1 for row in found.rows)
    declared = [replace(one, collected_for="two") for one in some]
    assert {row.asked for row in ask(Fake(), declared, tmp_path / "b", about)[0].rows} == {frozenset({"two"})}
    elsewhere = [replace(one, collected_for="nine") for one in some]
    assert ask(Fake(), elsewhere, tmp_path / "c", about)[0].rows == ()


def test_a_crash_on_one_image_costs_that_image_alone(tmp_path):
    fake = Fake(crash={5: RuntimeError("out of\nmemory"), 6: ValueError("")})
    found, parts = ask(fake, examples(12), tmp_path)
    unjudged = {row.id: row.reason for row in found.rows if math.isnan(row.unsafe)}
    assert unjudged == {
        "image 5": "the classifier crashed: RuntimeError: out of",
        "image 6": "the classifier crashed: ValueError: ValueError",
    }
    assert len(found.rows) == 12
    again = Fake()
    assert predict(again, examples(12), ABOUT, PartFolder(parts.path, ABOUT)) == found
    assert again.asked == []


def test_a_picture_that_cannot_be_opened_is_no_crash(tmp_path):
    some = [replace(one, image=b"no picture") for one in examples(IN_A_ROW + 5)] + examples(40)[30:]
    fake = Fake(crash={39: RuntimeError("x")})
    found, _ = ask(fake, some, tmp_path)
    assert sum(math.isnan(row.unsafe) for row in found.rows) == IN_A_ROW + 6
    assert found.rows[0].reason.startswith("not_an_image")
    assert len({number for number, _ in fake.asked}) == 10


@pytest.mark.parametrize("count", [3, 60])
def test_a_classifier_that_always_crashes_is_given_up_and_asked_again_later(tmp_path, count):
    fake = Fake(crash=dict.fromkeys(range(60), RuntimeError("no such kernel")))
    with pytest.raises(ClassifierFailedError, match=r"RuntimeError: no such kernel.*--resume true"):
        ask(fake, examples(count), tmp_path)
    assert len({number for number, _ in fake.asked}) <= IN_A_ROW + 3
    mended, parts = ask(Fake(), examples(count), tmp_path)
    assert not any(math.isnan(row.unsafe) for row in mended.rows)
    assert len(parts.done()) == count


def test_crashes_and_silence_between_judged_images_give_nobody_up(tmp_path):
    every_second = range(0, 3 * IN_A_ROW, 2)
    fake = Fake(crash=dict.fromkeys(every_second, RuntimeError("odd")))
    found, _ = ask(fake, examples(3 * IN_A_ROW), tmp_path)
    assert [place for place, row in enumerate(found.rows) if row.reason] == list(every_second)
    found, _ = ask(Fake(silence=every_second), examples(3 * IN_A_ROW), tmp_path / "b")
    assert [place for place, row in enumerate(found.rows) if row.reason] == list(every_second)


def test_a_classifier_that_breaks_for_good_on_the_way_keeps_what_it_judged(tmp_path):
    fake = Fake(crash=dict.fromkeys(range(30, 90), RuntimeError("the GPU fell off the bus")))
    with pytest.raises(ClassifierFailedError, match=f"crashed on {IN_A_ROW} images in a row"):
        ask(fake, examples(90), tmp_path)
    assert PartFolder(tmp_path / "parts", ABOUT).done() == {f"image {number}" for number in range(30)}


def test_what_a_service_did_not_answer_is_asked_again(tmp_path):
    fake = Fake(silence={2, 3, 7})
    found, parts = ask(fake, examples(9), tmp_path)
    assert [row.id for row in found.rows if row.reason == "no answer"] == ["image 2", "image 3", "image 7"]
    assert not is_complete(found, parts)
    again = Fake(silence={7})
    found, parts = ask(again, examples(9), tmp_path)
    assert [number for number, _ in again.asked] == [2, 3, 7]
    assert [row.id for row in found.rows if math.isnan(row.unsafe)] == ["image 7"]
    assert is_complete(ask(Fake(), examples(9), tmp_path)[0], PartFolder(tmp_path / "parts", ABOUT))


def test_a_service_that_is_down_is_not_asked_about_every_image(tmp_path):
    fake = Fake(silence=range(5, 90))
    with pytest.raises(ClassifierFailedError, match=r"got no answer about .* images in a row.*no answer"):
        ask(fake, examples(90), tmp_path)
    assert len(fake.asked) <= 5 + IN_A_ROW + 4
    assert len(PartFolder(tmp_path / "parts", ABOUT).done()) == 5


def test_wrong_options_are_an_error_and_no_crash(tmp_path):
    with pytest.raises(ConfigError, match="refuses the key"):
        ask(Fake(crash={6: ConfigError("the server refuses the key")}), examples(9), tmp_path)
    assert len(PartFolder(tmp_path / "parts", ABOUT).done()) == 4


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"unsafe": lambda rows: np.full(rows, 1.5)}, r"the score 1\.5, which is no probability"),
        ({"categories": lambda rows: np.zeros((rows, 2))}, r"shapes \(1,\) and \(1, 2\)"),
        ({"unsafe": lambda rows: np.zeros(rows + 1)}, r"shapes \(2,\)"),
        ({"reasons": lambda rows: ()}, "with 0 reasons"),
    ],
)
def test_scores_that_are_none_count_as_a_crash(tmp_path, given, says):
    with pytest.raises(ClassifierFailedError, match=says):
        ask(Fake(**given), examples(5), tmp_path)


def test_where_the_whole_alone_is_known_no_category_is_more(tmp_path):
    def left_open(rows):
        return np.full((rows, 3), np.nan)

    found, _ = ask(Fake(categories=left_open), examples(2), tmp_path)
    assert [row.categories for row in found.rows] == [(0.0,) * 3, (0.01,) * 3]
    found, _ = ask(
        Fake(categories=left_open, unsafe=lambda rows: np.full(rows, np.nan)), examples(1), tmp_path / "b"
    )
    assert found.rows[0].reason == "the classifier gave no score and no reason"


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_benchmark_predict as tests
class Killed(tests.Fake):
    def score(self, images, prompts, taxonomy):
        found = super().score(images, prompts, taxonomy)
        if len(self.asked) > 12:
            os.kill(os.getpid(), signal.SIGKILL)
        return found
tests.ask(Killed(), tests.examples(30), Path(sys.argv[2]))
"""


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_kill_loses_the_batch_in_flight_and_nothing_else(tmp_path):
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(here), str(tmp_path)], cwd=here.parent, timeout=60, check=False
    )
    assert done.returncode == -signal.SIGKILL
    again = Fake()
    found, _ = ask(again, examples(30), tmp_path)
    assert [number for number, _ in again.asked] == list(range(12, 30))
    assert [row.unsafe for row in found.rows] == [0.01 * number for number in range(30)]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"options": {"size": 2}}, r"options \{\}, not \{'size': 2\}"),
        ({"protocol": "paper"}, "protocol 'default', not 'paper'"),
        ({"fingerprint": "b"}, "fingerprint None, not 'b'"),
        ({"taxonomy": load_taxonomy("digits")}, r"taxonomy 'digits \(.*, not 'digits \("),
    ],
)
def test_parts_of_something_else_are_refused(tmp_path, changed, says):
    ask(Fake(), examples(3), tmp_path)
    with pytest.raises(ConfigError, match=says):
        PartFolder(tmp_path / "parts", replace(ABOUT, **changed))
    PartFolder(tmp_path / "parts", replace(ABOUT, machine="another", price_per_1000=3.0))


def test_parts_forget_and_go(tmp_path):
    found, parts = ask(Fake(), examples(9), tmp_path)
    parts.forget({"image 1", "image 8", "never seen"})
    left = {row.id for row in found.rows} - {"image 1", "image 8"}
    assert PartFolder(parts.path, ABOUT).done() == parts.done() == left
    parts.append([found.rows[8]])
    assert PartFolder(parts.path, ABOUT).done() == left | {"image 8"}
    parts.remove()
    assert not parts.path.exists()
    assert parts.done() == set()


class Fixed(Fake):
    match = "members"
    default_taxonomy = load_taxonomy("digits").select(["two", "one", "nine"])
    scores_categories = True


def test_fixed_heads_cover_what_their_categories_do_and_others_everything():
    fixed = Fixed()
    assert isinstance(fixed, HasFixedCategories)
    assert covered_keys(fixed, DIGITS) == ("one", "two")
    assert covered_keys(fixed, DIGITS.select(["zero"])) == ()
    fixed.scores_categories = False
    assert covered_keys(fixed, DIGITS) == DIGITS.keys
    assert covered_keys(Fake(), DIGITS) == DIGITS.keys
    assert select_keys(DIGITS, ["two", "zero"]).keys == ("zero", "two")
