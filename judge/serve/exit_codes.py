"""How a command ends: exit codes that mean one thing each, and one line for whatever went wrong."""

import os
import sys
from collections.abc import Callable
from typing import TextIO

from prompts.errors import ArbiterError
from prompts.printable import error_line, printable_lines

EXIT_SAFE, EXIT_FLAGGED, EXIT_ERROR, EXIT_UNJUDGED = 0, 1, 2, 3
EXIT_INTERRUPTED = 130


def run_to_exit_code(
    command: Callable[[], int | None],
    *,
    debug: bool = False,
    name: str = "arbiter",
    ours: tuple[type[Exception], ...] = (ArbiterError,),
) -> int:
    """Run a command and give its exit code; any exception is `EXIT_ERROR` with one line on standard error.

    Python itself would end with 1, which means "flagged" here.

    Args:
        command: gives an exit code of its own, or nothing for 0; `SystemExit`, argparse's way out, passes through.
        debug: print the traceback before the line.
        name: who speaks in the line.
        ours: errors that explain themselves; others are told with their kind, and that `--debug` helps.
    """
    try:
        if hasattr(sys.stdout, "reconfigure"):
            # A name that the terminal's encoding lacks is no reason to stop.
            sys.stdout.reconfigure(errors="backslashreplace")
        code = command() or 0
        if sys.stdout is None:
            raise OSError("standard output is closed, so nobody was told")
        sys.stdout.flush()  # a reader that is gone is found out here, where it can still be said
        return code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `arbiter judge ... | head`
        _to_nowhere(sys.stdout)
        return EXIT_ERROR
    except Exception as error:
        if debug:
            import traceback

            say(traceback.format_exc().rstrip())
        told = error_line(error) if isinstance(error, ours) else _foreign(error)
        hint = "" if debug or isinstance(error, ours) else " (--debug shows where)"
        say(f"{name}: {told}{hint}")
        _flush(sys.stdout)
        return EXIT_ERROR


def say(text: str) -> None:
    """Printable lines on standard error; where that is full or closed nothing is said, and no exit code changes."""
    if sys.stderr is None:
        return
    try:
        print(printable_lines(text), file=sys.stderr, flush=True)
    except OSError:
        _to_nowhere(sys.stderr)


def _flush(stream: TextIO | None) -> None:
    if stream is None:
        return
    try:
        stream.flush()
    except OSError:
        _to_nowhere(stream)


def _to_nowhere(stream: TextIO) -> None:
    """What Python still holds of a stream goes nowhere: if it failed to write that at exit, it would exit with 120."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _foreign(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:  # libraries that load lazily leave the name out
        missing = error.name.partition(".")[0]
        return (
            f"{missing} is not installed, and this needs it: pip install arbiter-vision brings it. Exported students "
            "(student.onnx) are judged with without torch."
        )
    kind, line = type(error).__name__, error_line(error)
    return kind if line == kind else f"{kind}: {line}"
