"""Stages of a corpus that need no model: pictures made of their seeds, labels made of their pictures."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from judge.corpus.pictures import encode_picture
from judge.corpus.plan import Drawing, Plan, Prompt, plan_pictures
from judge.corpus.rows import CorpusRow, Variant, with_id
from judge.corpus.stages import Result, Stages, Task
from judge.data.images import open_image
from prompts import Category, Taxonomy

TREES = Taxonomy(
    "trees",
    "1",
    [Category("Oak", "shows an oak", key="oak"), Category("Birch", "shows a birch", key="birch")],
)
DRAWING = Drawing("stub", "sha256:0", "NoScheduler", steps=2, guidance=1.0)


class StubPictures:
    """Draws 16 x 16 pixels of a row's seed; every row whose seed is divisible by `fails` comes out black."""

    name = "pictures"

    def __init__(self, fails: int = 7) -> None:
        self.fails = fails
        self.about = {"model": "stub", "fails": fails}

    def __call__(self, task: Task) -> Result:
        rows, pictures = [], {}
        for row in task.rows:
            pixels = np.random.default_rng(row.seed).random((16, 16, 3), dtype=np.float32)
            if row.seed is not None and row.seed % self.fails == 0:
                pixels[:] = 0
            filled, picture = encode_picture(row, pixels)
            rows.append(filled)
            if picture is not None:
                pictures[row.id] = picture
        return Result(task.chunk, tuple(rows), pictures)


class StubLabels:
    """Scores by the mean of red and green; every row whose red is over 0.6 is unjudged."""

    name = "labels"
    about = {"classifier": "stub"}  # noqa: RUF012

    def __call__(self, task: Task) -> Result:
        rows = []
        for row in task.rows:
            red, green, _ = (np.asarray(open_image(task.pictures[row.id])).mean((0, 1)) / 255).tolist()
            if red > 0.55:
                rows.append(row.failed("labels", "unjudged", "too red"))
            else:
                scores = {"oak": red, "birch": green}
                rows.append(replace(row, scores=scores, unsafe=max(scores.values()), labelled_by="stub"))
        return Result(task.chunk, tuple(rows))


class StubVariants:
    """Of every third row the picture upside down, and a prompt in capitals to draw."""

    name = "variants"
    about = {"kind": "flip"}  # noqa: RUF012

    def __call__(self, task: Task) -> Result:
        rows, pictures = [], {}
        for row in task.rows[::3]:
            flipped = np.asarray(open_image(task.pictures[row.id]))[::-1].astype(np.float32) / 255
            base = with_id(replace(_bare(row), variant=Variant("flip", "stub", {"turns": 1}, row.id)))
            filled, picture = encode_picture(base, flipped)
            rows.append(filled)
            if picture is not None:
                pictures[base.id] = picture
            capitals = replace(_bare(row), prompt=str(row.prompt).upper())
            rows.append(with_id(replace(capitals, variant=Variant("capitals", "stub", {}, row.id))))
        return Result(task.chunk, tuple(rows), pictures)


class StubSplit:
    """Every fourth prompt is for testing; of two rows with one prompt length, the second is a duplicate."""

    name = "split"
    about = {"share": 4}  # noqa: RUF012

    def __call__(self, rows, read):
        for row in rows:
            first = hashlib.sha256(str(row.prompt).encode()).digest()[0]
            assert read(row).startswith(b"\x89PNG")
            duplicate = rows[0].id if row.id != rows[0].id and first % 11 == 0 else None
            yield replace(
                row, cluster=first % 8, split="test" if first % 4 == 0 else "train", duplicate_of=duplicate
            )


def _bare(row: CorpusRow) -> CorpusRow:
    return replace(row, sha256=None, phash=None, labelled_by=None, scores={}, unsafe=None)


def stub_stages(*, variants: bool = True) -> Stages:
    return Stages(StubPictures(), StubLabels(), StubVariants() if variants else None, (StubSplit(),))


def stub_plan(prompts: int = 10, seeds: int = 2, **options) -> Plan:
    texts = [Prompt(f"tree number {number}", ("oak",) if number % 2 else ()) for number in range(prompts)]
    options = {"chunk_size": 4, "shard_rows": 5, "max_failures": 1.0} | options
    return Plan(plan_pictures(texts, DRAWING, seeds=seeds, seed=options.pop("seed", 0)), TREES, **options)


@pytest.fixture(scope="module")
def no_waiting_for_disks():
    """`fsync` and SQLite's own are about power cuts; a killed process leaves what it wrote without them."""
    import os

    from judge.corpus import ledger

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        patch.setattr(ledger, "SYNCHRONOUS", "OFF")
        yield


@pytest.fixture
def corpus_stubs(no_waiting_for_disks):
    """`stages()` and `plan()` of a corpus about trees, without a model."""
    from types import SimpleNamespace

    return SimpleNamespace(stages=stub_stages, plan=stub_plan)
