"""One scoring thread: which images share a batch, what a failing classifier costs, who is dropped."""

import asyncio
import math
import threading
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from fixtures_server import PATIENCE
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from judge.protocol import Scores, rows_of
from judge.server.batching import Batcher
from prompts import Category, Taxonomy

A, B = (Taxonomy(name, "1", (Category(name, f"About {name}."),)) for name in ("Apes", "Bees"))


def images(*numbers: int) -> list[Image.Image]:
    """An image for each number, which is its red."""
    return [Image.new("RGB", (1, 1), (number, 0, 0)) for number in numbers]


class Counting:
    """Scores an image by its number, as hundredths; the first call waits until the test opens the gate."""

    name = "counting"

    def __init__(self, broken: Sequence[int] = ()) -> None:
        self.batches: list[tuple[str, list[int], list[str | None]]] = []
        self.gate, self.entered = threading.Event(), threading.Event()
        self.broken = set(broken)

    def score(
        self, images: Sequence[Image.Image], prompts: Sequence[str | None] | None, taxonomy: Taxonomy
    ) -> Scores:
        numbers = [int(image.getpixel((0, 0))[0]) for image in images]  # type: ignore[index]
        self.batches.append((taxonomy.name, numbers, list(prompts or ())))
        self.entered.set()
        assert self.gate.wait(PATIENCE)
        if self.broken & set(numbers):
            raise ValueError("broken")
        found = np.array(numbers) / 100
        return Scores(found, found[:, None], (None,) * len(numbers), ("judge",) * len(numbers))


@contextmanager
def batcher_of(classifier: Counting, size: int) -> Iterator[Batcher]:
    batcher = Batcher(classifier, size)
    try:
        yield batcher
    finally:
        classifier.gate.set()
        batcher.close()


async def queued(batcher: Batcher, classifier: Counting, *works: Coroutine[Any, Any, Any]) -> list[Any]:
    """Tasks of these works, queued in this order behind an image that is being scored already."""
    first = asyncio.ensure_future(batcher.score(images(0), None, A))
    while not classifier.entered.is_set():
        await asyncio.sleep(0)
    tasks = [first, *(asyncio.ensure_future(work) for work in works)]
    await asyncio.sleep(0)
    return tasks


def test_what_is_queued_under_the_oldest_taxonomy_shares_a_batch() -> None:
    classifier = Counting()

    async def run(batcher: Batcher) -> list[Scores]:
        tasks = await queued(
            batcher,
            classifier,
            batcher.score(images(1), "one", A),
            batcher.score(images(2), None, B),
            batcher.score(images(3, 4), "two", A),
            batcher.score(images(5), None, B),
            batcher.score(images(6), None, Taxonomy("another name", "2", A.categories)),
        )
        assert batcher.length == 6
        classifier.gate.set()
        found: list[Scores] = await asyncio.gather(*tasks)
        return found

    with batcher_of(classifier, 8) as batcher:
        results = asyncio.run(run(batcher))
    assert classifier.batches[1:] == [
        ("Apes", [1, 3, 4, 6], ["one", "two", "two", None]),
        ("Bees", [2, 5], [None, None]),
    ]
    assert [(result.unsafe * 100).tolist() for result in results] == [[0], [1], [2], [3, 4], [5], [6]]


def test_an_animation_larger_than_a_batch_keeps_its_frames_together() -> None:
    classifier = Counting()

    async def run(batcher: Batcher) -> list[Scores]:
        tasks = await queued(
            batcher,
            classifier,
            batcher.score(images(1, 2, 3, 4, 5), None, A),
            batcher.score(images(9), None, A),
        )
        classifier.gate.set()
        found: list[Scores] = await asyncio.gather(*tasks)
        return found

    with batcher_of(classifier, 2) as batcher:
        _, many, one = asyncio.run(run(batcher))
    assert [numbers for _, numbers, _ in classifier.batches] == [[0], [1, 2], [3, 4], [5, 9]]
    assert many.unsafe.tolist() == [0.01, 0.02, 0.03, 0.04, 0.05]
    assert many.decided_by == ("judge",) * 5
    assert one.unsafe.tolist() == [0.09]


@given(
    st.lists(st.tuples(st.sampled_from([A, B]), st.integers(1, 4)), min_size=1, max_size=12),
    st.integers(1, 5),
)
def test_any_queue(works: list[tuple[Taxonomy, int]], size: int) -> None:
    """Every image is scored once, in the order of its taxonomy, and every batch has the oldest that is left."""
    classifier = Counting()
    numbers = iter(range(1, 100))
    wanted = [(taxonomy, [next(numbers) for _ in range(count)]) for taxonomy, count in works]

    async def run(batcher: Batcher) -> list[Scores]:
        tasks = await queued(
            batcher,
            classifier,
            *(batcher.score(images(*numbers), None, taxonomy) for taxonomy, numbers in wanted),
        )
        classifier.gate.set()
        found: list[Scores] = await asyncio.gather(*tasks)
        return found

    with batcher_of(classifier, size) as batcher:
        results = asyncio.run(run(batcher))
    assert [np.rint(result.unsafe * 100).astype(int).tolist() for result in results[1:]] == [
        n for _, n in wanted
    ]
    left = [(taxonomy.name, number) for taxonomy, some in wanted for number in some]
    for name, some, _ in classifier.batches[1:]:
        assert left[0] == (name, some[0])
        fitting = [number for of, number in left if of == name]
        assert some == fitting[:size]
        left = [entry for entry in left if entry[1] not in some]
    assert left == []


class Mixing(Counting):
    """Scores images under a taxonomy each."""

    def score_mixed(
        self, images: Sequence[Image.Image], prompts: Sequence[str | None], taxonomies: Sequence[Taxonomy]
    ) -> list[Scores]:
        names = Taxonomy(",".join(taxonomy.name for taxonomy in taxonomies), "1", A.categories)
        found = self.score(images, prompts, names)
        return [rows_of(found, row, row + 1) for row in range(len(images))]


@pytest.mark.parametrize("broken", [None, 3])
def test_a_classifier_that_can_takes_images_of_every_taxonomy(broken: int | None) -> None:
    classifier = Mixing([] if broken is None else [broken])

    async def run(batcher: Batcher) -> list[Scores]:
        tasks = await queued(
            batcher,
            classifier,
            batcher.score(images(1), None, A),
            batcher.score(images(2, 3), "two", B),
            batcher.score(images(4, 5), None, A),
        )
        classifier.gate.set()
        found: list[Scores] = await asyncio.gather(*tasks)
        return found

    with batcher_of(classifier, 4) as batcher:
        results = asyncio.run(run(batcher))
    assert classifier.batches[1] == ("Apes,Bees,Bees,Apes", [1, 2, 3, 4], [None, "two", "two", None])
    scores = [[None if math.isnan(score) else score for score in result.unsafe] for result in results]
    assert scores == [[0], [0.01], [0.02, None if broken else 0.03], [0.04, 0.05]]


def test_a_failing_image_costs_itself_alone() -> None:
    classifier = Counting(broken=[2])
    classifier.gate.set()

    async def run(batcher: Batcher) -> list[Scores]:
        return [await batcher.score(images(1, 2, 3), None, A), await batcher.score(images(4), None, A)]

    with batcher_of(classifier, 8) as batcher:
        three, after = asyncio.run(run(batcher))
    assert [math.isnan(score) for score in three.unsafe] == [False, True, False]
    assert three.reasons == (None, "the classifier failed on this image (ValueError)", None)
    assert after.unsafe.tolist() == [0.04]
    assert [numbers for _, numbers, _ in classifier.batches] == [[1, 2, 3], [1], [2], [3], [4]]


def test_others_of_a_failed_batch_keep_what_decided_them() -> None:
    classifier = Counting(broken=[2])

    async def run(batcher: Batcher) -> list[Scores]:
        tasks = await queued(
            batcher, classifier, batcher.score(images(1), None, A), batcher.score(images(2), None, A)
        )
        classifier.gate.set()
        found: list[Scores] = await asyncio.gather(*tasks)
        return found

    with batcher_of(classifier, 8) as batcher:
        _, good, bad = asyncio.run(run(batcher))
    assert (good.decided_by, good.reasons) == (("judge",), (None,))
    assert bad.reasons[0]


class Short(Counting):
    """Forgets a row."""

    def score(self, images: Any, prompts: Any, taxonomy: Taxonomy) -> Scores:
        found = super().score(images, prompts, taxonomy)
        return rows_of(found, 0, len(images) - 1)


def test_scores_of_another_shape_are_no_scores() -> None:
    classifier = Short()
    classifier.gate.set()
    with batcher_of(classifier, 8) as batcher:
        found = asyncio.run(batcher.score(images(1, 2), None, A))
    assert np.isnan(found.unsafe).all()
    assert all(found.reasons)


def test_who_goes_away_is_dropped_before_it_starts() -> None:
    classifier = Counting()

    async def run(batcher: Batcher) -> None:
        first, gone, stays = await queued(
            batcher, classifier, batcher.score(images(1, 2), None, A), batcher.score(images(3), None, A)
        )
        gone.cancel()
        await asyncio.sleep(0)
        assert batcher.length == 1
        classifier.gate.set()
        assert (await stays).unsafe.tolist() == [0.03]
        await first
        assert gone.cancelled()

    with batcher_of(classifier, 8) as batcher:
        asyncio.run(run(batcher))
    assert [numbers for _, numbers, _ in classifier.batches] == [[0], [3]]


def test_who_goes_away_while_being_scored_disturbs_nobody() -> None:
    classifier = Counting()

    async def run(batcher: Batcher) -> Scores:
        [first] = await queued(batcher, classifier)
        first.cancel()
        await asyncio.sleep(0)
        classifier.gate.set()
        return await batcher.score(images(7), None, A)

    with batcher_of(classifier, 8) as batcher:
        assert asyncio.run(run(batcher)).unsafe.tolist() == [0.07]


def test_functions_are_called_in_turn_and_in_the_scoring_thread() -> None:
    classifier = Counting()

    def broken() -> None:
        raise KeyError("no")

    async def run(batcher: Batcher) -> None:
        _, _, name, wrong, _ = await queued(
            batcher,
            classifier,
            batcher.score(images(1), None, A),
            batcher.call(lambda: (threading.current_thread().name, len(classifier.batches))),
            batcher.call(broken),
            batcher.score(images(2), None, B),
        )
        classifier.gate.set()
        assert await name == ("arbiter-scoring", 2)
        with pytest.raises(KeyError):
            await wrong

    with batcher_of(classifier, 8) as batcher:
        asyncio.run(run(batcher))


def test_a_mistake_beside_the_classifier_ends_no_thread() -> None:
    class Broken:
        def scored(self, images: int, waited: Sequence[float], seconds: float) -> None:
            if images == 2:
                raise KeyError("no")

    classifier = Counting()
    classifier.gate.set()

    async def run() -> None:
        batcher = Batcher(classifier, 8, Broken())
        with pytest.raises(KeyError):
            await asyncio.wait_for(batcher.score(images(1, 2), None, A), PATIENCE)
        assert (await asyncio.wait_for(batcher.score(images(3), None, A), PATIENCE)).unsafe.tolist() == [0.03]
        batcher.close()

    asyncio.run(run())


def test_closing_answers_whoever_waits() -> None:
    classifier = Counting()

    async def run(batcher: Batcher) -> None:
        first, second = await queued(batcher, classifier, batcher.score(images(1), None, A))
        batcher.close()
        with pytest.raises(RuntimeError, match="closed"):
            await second
        classifier.gate.set()
        assert (await first).unsafe.tolist() == [0]
        with pytest.raises(RuntimeError, match="closed"):
            await batcher.score(images(1), None, A)

    with batcher_of(classifier, 8) as batcher:
        asyncio.run(run(batcher))
