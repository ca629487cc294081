"""The engine of one machine: worker processes open blocks, this process scores them."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from .opening import BlockReader, Opening
from .rows import Engine, Scored, Task
from .scoring import Scorer


def one_machine(opening: Opening, scorer: Scorer) -> Engine:
    """An engine whose blocks come in the order of the tasks.

    Decoding is ahead of scoring by a few blocks, and the rows of a block are made while the next one is scored.
    """

    def engine(tasks: Iterable[Task]) -> Iterator[Scored]:
        pending: deque[Future[Scored]] = deque()
        with BlockReader(opening) as reader, ThreadPoolExecutor(1, "arbiter-rows") as rows:
            for block in reader.blocks(tasks):
                pending.append(rows.submit(scorer.rows, block, *scorer.score(block)))
                while len(pending) > 1:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()

    return engine
