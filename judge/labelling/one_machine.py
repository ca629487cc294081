"""The engine of one machine: worker processes open blocks, this process scores them."""

from collections.abc import Iterable, Iterator

from .opening import BlockReader, Opening
from .rows import Engine, Scored, Task
from .scoring import Scorer


def one_machine(opening: Opening, scorer: Scorer) -> Engine:
    """An engine whose blocks come in the order of the tasks; decoding is ahead of scoring by a few blocks."""

    def engine(tasks: Iterable[Task]) -> Iterator[Scored]:
        with BlockReader(opening) as reader:
            for block in reader.blocks(tasks):
                yield scorer(block)

    return engine
