"""Where a command prints: plain lines into pipes and files; colours, tables and progress into a terminal.

Results go to standard output, all else to standard error. rich draws, and is imported only where something is drawn; it
obeys NO_COLOR.
"""

import os
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

from prompts.printable import printable

from .exit_codes import print_stderr

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

T = TypeVar("T")
STATUS_STYLES = {"unsafe": "bold red", "safe": "green", "unjudged": "yellow"}
Segments = Sequence[tuple[str, str]]
"""Texts of a line, each with rich's name of its style; an empty one for none."""


class Bar:
    """The progress that is drawn, if any."""

    def __init__(self, progress: "Progress | None" = None) -> None:
        self._progress = progress
        self._task = None if progress is None else progress.add_task("", total=None)

    def describe(self, text: str, total: int | None = None) -> None:
        """Start over with another text, and with how many steps there will be, if that is known."""
        if self._progress is not None and self._task is not None:
            self._progress.reset(self._task, description=printable(text), total=total)

    def advance(self, steps: int = 1) -> None:
        """So many steps are done."""
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task, steps)

    def count(self, steps: Iterable[T]) -> Iterator[T]:
        """The steps, each of them counted when it is done."""
        for step in steps:
            self.advance()
            yield step


class Terminal:
    """Standard output and standard error of a command; `quiet` leaves out all that is neither a result nor an error."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.draws_results = _is_terminal(sys.stdout)
        # What reads a pipe, such as `head`, mostly writes to the same terminal, and a bar would erase its lines.
        self.draws_progress = _is_terminal(sys.stderr) and not quiet and not _is_pipe(sys.stdout)

    def notice(self, text: str) -> None:
        """Print a remark on standard error, unless quiet."""
        if not self.quiet:
            print_stderr(text)

    def line(self, segments: Segments) -> None:
        """Print a line of results."""
        if not self.draws_results:
            print("".join(printable(text) for text, _ in segments))
            return
        from rich.text import Text

        shown = Text.assemble(*((printable(text), style) for text, style in segments))
        self._results.print(shown, soft_wrap=True)

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[Any]],
        *,
        header: bool = True,
        styles: Sequence[str] | None = None,
    ) -> None:
        """Print a table of results: drawn in a terminal, aligned in a pipe; numbers to the right.

        Args:
            columns: their titles.
            rows: cells, one for each column.
            header: print the titles in a pipe too; a terminal always has them.
            styles: rich's style of each row.
        """
        texts = [[_cell(cell) for cell in row] for row in rows]
        right = [
            any(isinstance(row[n], int | float) and not isinstance(row[n], bool) for row in rows)
            for n in range(len(columns))
        ]
        if not self.draws_results:
            shown = [list(columns), *texts] if header else texts
            widths = [max(len(row[n]) for row in shown) for n in range(len(columns))] if shown else []
            for row in shown:
                cells = zip(row, widths, right, strict=True)
                print("  ".join(f"{c:>{w}}" if r else f"{c:<{w}}" for c, w, r in cells).rstrip())
            return
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, header_style="bold")
        for title, number in zip(columns, right, strict=True):
            table.add_column(Text(title), justify="right" if number else "left", overflow="fold")
        for place, row in enumerate(texts):
            table.add_row(*map(Text, row), style=styles[place] if styles else None)
        self._results.print(table)

    def gap(self) -> None:
        """Separate two tables; drawn ones have space of their own."""
        if not self.draws_results:
            print()

    @contextmanager
    def progress(self) -> Iterator[Bar]:
        """Draw progress on standard error, if that is a terminal: count, rate, and the time left where it is known."""
        if not self.draws_progress:
            yield Bar()
            return
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

        with Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            _counts(),
            TimeRemainingColumn(compact=True),
            # With one console for both, lines of results are printed above the bar and not through it.
            console=self._results if self.draws_results else self._remarks,
            redirect_stdout=self.draws_results,
            transient=True,
        ) as progress:
            yield Bar(progress)

    @cached_property
    def _results(self) -> "Console":
        from rich.console import Console

        return Console(highlight=False)

    @cached_property
    def _remarks(self) -> "Console":
        from rich.console import Console

        return Console(stderr=True, highlight=False)


def _counts() -> Any:
    """A column with the steps that are done, of how many, and how many a second."""
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    class Counts(ProgressColumn):
        def render(self, task: Task) -> Text:
            if not task.completed:
                return Text("")
            total = "" if task.total is None else f" of {task.total:.0f}"
            rate = "" if not task.speed else f", {task.speed:.3g}/s"
            return Text(f"{task.completed:.0f}{total}{rate}")

    return Counts()


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else printable(value)


def _is_terminal(stream: Any) -> bool:
    """Whether a stream can be drawn on; never without rich, which comes with Typer but can be left out."""
    try:
        return stream is not None and bool(stream.isatty()) and find_spec("rich") is not None
    except ValueError:  # closed
        return False


def _is_pipe(stream: Any) -> bool:
    try:
        mode = os.fstat(stream.fileno()).st_mode
    except (OSError, ValueError, AttributeError):  # closed, or no file of the system
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
