"""What `arbiter label` says of how far it is."""

from judge.labelling.rows import Scored
from judge.labelling.run import Tally
from judge.serve import label_progress
from judge.serve.label_progress import LabelProgress


class Lines:
    """A terminal that is a log, and its bar."""

    draws_progress = False

    def __init__(self):
        self.notices, self.line = [], ""

    def notice(self, text):
        self.notices.append(text)

    def describe(self, text):
        self.line = text


def watch(monkeypatch, seconds, rows, blocks, sizes):
    """The last line, and the lines of the log, of blocks of so many rows that take so many seconds each."""
    now = [0.0]
    monkeypatch.setattr(label_progress.time, "monotonic", lambda: now[0])
    lines, tally = Lines(), Tally(todo=frozenset(sizes), before=100)
    progress = LabelProgress(lines, lines, sizes)
    for number in range(blocks):
        now[0] += seconds
        tally.rows += rows
        progress(tally, Scored(0, 0, number * rows, False, None, place=(number + 1) / 20))
    return lines


def test_rate_and_time_left(monkeypatch):
    lines = watch(monkeypatch, 2.0, 64, 10, {0: 10_000})
    assert lines.line == "740 rows, 32/s, 50.0% of what was missing, 20 s left"
    assert not lines.notices


def test_a_judge_that_takes_minutes_for_a_block_has_a_rate(monkeypatch):
    lines = watch(monkeypatch, 64.0, 128, 5, {0: 10_000, 1: 10_000})
    assert lines.line == "740 rows, 2/s, 12.5% of what was missing, 37 min 20 s left"
    assert len(lines.notices) == 5


def test_empty_files_count(monkeypatch):
    assert "50.0% of what was missing, 20 s left" in watch(monkeypatch, 2.0, 64, 10, {0: 0}).line
