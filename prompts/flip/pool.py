"""A pool of images to draw from, the least used first."""

from collections.abc import Callable, Iterable, Sequence
from heapq import heapify, heappop, heappush
from random import Random

from prompts.errors import ExampleError
from prompts.example import Example


class Bucket:
    """Images with the same violated and the same unknown keys, so that they share every label."""

    def __init__(self, example: Example) -> None:
        self.example = example
        """Represents all of them where only labels matter."""
        self.heap: list[tuple[int, float, int]] = []
        """(times used, tie-break, index of the image)."""


class Pool:
    """Yields every image about equally often, ties at random, and none twice before they are put back.

    Raises:
        ExampleError: two examples share an id.
    """

    def __init__(self, examples: Sequence[Example], excluded: Iterable[str], rng: Random) -> None:
        without = frozenset(excluded)
        self.examples = [example for example in examples if not example.violates & without]
        self._rng = rng
        self._taken: list[tuple[Bucket, int, int]] = []
        buckets: dict[tuple[frozenset[str], frozenset[str]], Bucket] = {}
        seen: set[str] = set()
        for index, example in enumerate(self.examples):
            if example.id in seen:
                raise ExampleError(
                    f"Two examples have the id {example.id!r}; ids must be unique in a data set."
                )
            seen.add(example.id)
            bucket = buckets.setdefault((example.violates, example.unknown), Bucket(example))
            bucket.heap.append((0, rng.random(), index))
        self.buckets = list(buckets.values())
        for bucket in self.buckets:
            heapify(bucket.heap)

    def take(self, buckets: Iterable[Bucket]) -> Example | None:
        """The least used image of these buckets; None when all of them are taken."""
        filled = [bucket for bucket in buckets if bucket.heap]
        if not filled:
            return None
        # The first of a heap is its least used image, ties in random order.
        bucket = min(filled, key=lambda candidate: candidate.heap[0])
        # Taken images stay out of the heap until `put_back`, so a group has no image twice.
        uses, _, index = heappop(bucket.heap)
        self._taken.append((bucket, uses, index))
        return self.examples[index]

    def put_back(self, *, used: bool) -> None:
        """Put the images taken since the last call back, counted as used or as if never taken."""
        for bucket, uses, index in self._taken:
            heappush(bucket.heap, (uses + used, self._rng.random(), index))
        self._taken.clear()

    def count(self, holds: Callable[[Example], bool]) -> int:
        """How many images this is true of; it may depend on labels only, as whole buckets are counted."""
        return sum(len(bucket.heap) for bucket in self.buckets if holds(bucket.example))

    def violating(self, key: str) -> int:
        """How many images violate this key."""
        return self.count(lambda example: key in example.violates)
