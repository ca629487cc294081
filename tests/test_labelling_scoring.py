"""Blocks through a classifier that fails: an image costs its own row, a broken classifier stops the run."""

import pickle

import numpy as np
import pytest
from PIL import Image

from judge.errors import ImageError
from judge.labelling.rows import Block, Opened
from judge.labelling.scoring import MAX_FAILURES, ClassifierFailedError, Scorer
from judge.protocol import Scores
from judge.verdicts.rows import Judging
from prompts.taxonomy import Taxonomy

TAXONOMIES = [
    Taxonomy.from_dict(
        {
            "name": name,
            "version": "1",
            "categories": [{"name": one, "definition": f"about {one}"} for one in names],
        },
        "test",
    )
    for name, names in (("pair", "AB"), ("single", "C"))
]
JUDGINGS = [Judging(taxonomy, 0.5, "fake") for taxonomy in TAXONOMIES]


class Fake:
    """The brightness of an image is its score; it cannot take what is darker than `least`."""

    name = "fake"

    def __init__(self, least=-1, always=False):
        self.least, self.always, self.sizes = least, always, []

    def score(self, images, prompts, taxonomy):
        self.sizes.append(len(images))
        levels = np.array([np.asarray(image).mean() for image in images])
        if self.always or (levels < self.least).any():
            raise RuntimeError("CUDA error: something about /secret/path")
        unsafe = np.where(levels == 7, np.nan, levels / 255)
        categories = np.tile(unsafe[:, None], (1, len(taxonomy)))
        return Scores(unsafe, categories, tuple("seven" if level == 7 else None for level in levels))


def block(levels, problems=()):
    rows = [
        Opened(f"{n}", "a.tar", "words", "0" * 64, problem=ImageError("truncated", "cut"))
        if n in problems
        else Opened(f"{n}", "a.tar", "words", "0" * 64, views=1)
        for n in range(len(levels))
    ]
    images = [Image.new("RGB", (8, 8), (level,) * 3) for n, level in enumerate(levels) if n not in problems]
    return Block(3, 1, 64, tuple(rows), images, True, {"read": 1.0, "decode": 2.0}, 99, 1.0)


def test_rows_of_a_block_under_two_taxonomies():
    classifier = Fake()
    scored = Scorer(classifier, JUDGINGS, batch_size=2)(block([255, 51, 7, 0, 102], problems=[1]))
    assert classifier.sizes == [2, 2] * 2
    assert (scored.shard, scored.part, scored.offset, scored.last, scored.size) == (3, 1, 64, True, 99)
    assert scored.seconds["decode"] == 2
    rows = scored.table.to_pylist()
    assert [row["id"] for row in rows] == list("01234")
    assert [row["status"] for row in rows] == ["ok", "unreadable", "model_error", "ok", "ok"]
    assert [row["reason"] for row in rows] == [None, "truncated: cut", "seven", None, None]
    assert [row["verdicts"]["pair"]["status"] for row in rows] == [
        "unsafe",
        "unjudged",
        "unjudged",
        "safe",
        "safe",
    ]
    assert rows[0]["verdicts"]["single"]["scores"] == {"C": 1.0}
    assert rows[2]["verdicts"]["pair"]["scores"] == {"A": None, "B": None}


def test_an_image_that_the_classifier_cannot_take_costs_itself():
    scored = Scorer(Fake(least=10), JUDGINGS, batch_size=4)(block([255, 3, 100, 200, 0, 50]))
    rows = scored.table.to_pylist()
    assert [row["status"] for row in rows] == ["ok", "model_error", "ok", "ok", "model_error", "ok"]
    assert rows[1]["reason"] == "the classifier failed on this image: RuntimeError"
    assert rows[1]["verdicts"]["single"]["unsafe"] is None
    assert rows[5]["verdicts"]["single"]["unsafe"] == pytest.approx(50 / 255)


def test_many_such_images_do_not_stop_a_run_but_a_broken_classifier_does():
    dark = block([0] * MAX_FAILURES)
    scored = Scorer(Fake(least=10), JUDGINGS)(dark)
    assert set(scored.table["status"].to_pylist()) == {"model_error"}
    with pytest.raises(ClassifierFailedError, match=r"fake failed on 64 images in a row, and on a grey one"):
        Scorer(Fake(always=True), JUDGINGS)(dark)


def test_a_block_without_images_asks_nobody():
    classifier = Fake(always=True)
    for levels in ([], [0, 0]):
        scored = Scorer(classifier, JUDGINGS)(block(levels, problems=range(len(levels))))
        assert scored.table["status"].to_pylist() == ["unreadable"] * len(levels)
        assert [column.name for column in scored.table.schema.field("verdicts").type] == ["pair", "single"]
    assert not classifier.sizes


def test_rows_pass_from_process_to_process_as_they_are():
    scored = Scorer(Fake(), JUDGINGS)(block([255, 51, 7, 0], problems=[1]))
    again = pickle.loads(pickle.dumps(scored))
    assert again == scored
    assert again.table.schema.equals(scored.table.schema, check_metadata=True)
    empty = Scorer(Fake(), JUDGINGS)(block([]))
    assert pickle.loads(pickle.dumps(empty)) == empty


class Service(Fake):
    """A server that answers about the first images only."""

    def __init__(self, answers):
        super().__init__()
        self.left = answers

    def score(self, images, prompts, taxonomy):
        answered = [number < self.left for number in range(len(images))]
        self.left -= len(images)
        scores = super().score(images, prompts, taxonomy)
        if all(answered):
            return scores
        return Scores(
            np.where(answered, scores.unsafe, np.nan),
            np.where(np.array(answered)[:, None], scores.categories, np.nan),
            tuple(None if one else "the connection failed" for one in answered),
            unanswered=tuple(not one for one in answered),
        )


def test_a_service_that_is_gone_stops_the_run():
    """Its silence is no error of an image: a million rows without a verdict would follow."""
    scorer = Scorer(Service(70), JUDGINGS[:1])
    assert scorer(block([9] * 64)).table["status"].to_pylist() == ["ok"] * 64
    assert scorer(block([9] * 16)).table["status"].to_pylist() == ["ok"] * 6 + ["model_error"] * 10
    with pytest.raises(
        ClassifierFailedError, match=r"64 images in a row, and on a grey one: the connection failed\. Mend"
    ):
        scorer(block([9] * 64))
