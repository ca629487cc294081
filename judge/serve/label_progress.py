"""How far a labelling run is: on one line in a terminal, on a line every half minute in a log."""

import time
from collections import deque
from collections.abc import Mapping

from judge.labelling.rows import Scored
from judge.labelling.run import Tally

from .terminal import Bar, Terminal

LOG_SECONDS = 30
"""Seconds between two lines in a log."""
_WINDOW = 60
"""Seconds over which the rate is measured."""


class LabelProgress:
    """Takes every block, and says how many rows there are, at what rate, and how long the rest will take."""

    def __init__(self, terminal: Terminal, bar: Bar, sizes: Mapping[int, int]) -> None:
        """Make one for a plan of these shards (number -> bytes)."""
        self._terminal, self._bar, self._sizes = terminal, bar, sizes
        self._places: dict[int, float] = {}
        self._bytes = 0.0
        self._total: int | None = None
        self._begun = self._told = time.monotonic()
        self._marks = deque([(self._begun, 0)])

    def __call__(self, tally: Tally, scored: Scored) -> None:
        """Take a block."""
        before = self._places.get(scored.shard, 0.0)
        place = max(before, scored.place)
        self._places[scored.shard] = place
        self._bytes += (place - before) * self._size(scored.shard)
        if self._total is None:
            self._total = sum(self._size(shard) for shard in tally.todo)
        now = time.monotonic()
        self._marks.append((now, tally.rows))
        # One mark from before the window stays: a slow judge may take longer than that for a block.
        while now - self._marks[1][0] > _WINDOW:
            self._marks.popleft()
        self._bar.describe(self.line(tally, now))
        if not self._terminal.draws_progress and now - self._told >= LOG_SECONDS:
            self._told = now
            self._terminal.notice(self.line(tally, now))

    def _size(self, shard: int) -> int:
        return max(1, self._sizes[shard])  # all files may be empty

    def line(self, tally: Tally, now: float) -> str:
        """How far it is at a time of `time.monotonic`."""
        then, rows = self._marks[0]
        rate = (tally.rows - rows) / max(now - then, 1e-9)
        share = min(self._bytes / self._total, 1.0) if self._total else 1.0
        words = [f"{tally.before + tally.rows:,} rows", f"{rate:,.0f}/s", f"{share:.1%} of what was missing"]
        if share:
            words.append(f"{duration((now - self._begun) * (1 - share) / share)} left")
        failed = [
            f"{count:,} {status}" for status, count in sorted(tally.counts.statuses.items()) if status != "ok"
        ]
        return ", ".join(words) + (f"; without a verdict: {', '.join(failed)}" if failed else "")


def duration(seconds: float) -> str:
    """Seconds in the two largest units: `2 d 3 h`, `4 min 10 s`, `7 s`."""
    whole = round(seconds)
    for name, size, below, smaller in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // smaller} {below}"
    return f"{whole} s"
