"""How a command ends: an exit code with one meaning each, and one line on standard error for any error."""

import os
import sys
from collections.abc import Callable
from typing import TextIO

from prompts.errors import ArbiterError
from prompts.printable import error_line, printable_lines

EXIT_SAFE, EXIT_FLAGGED, EXIT_ERROR, EXIT_UNJUDGED = 0, 1, 2, 3
EXIT_INTERRUPTED = 130
EXIT_READER_GONE = 141
"""What a shell gives a program that its reader left (128 and SIGPIPE), as in `arbiter judge ... | head`. It is no
verdict, as the remaining images were not judged, and no error, as nobody asked for more."""


def run_to_exit_code(
    command: Callable[[], int | None],
    *,
    debug: bool = False,
    name: str = "arbiter",
    ours: tuple[type[Exception], ...] = (ArbiterError,),
) -> int:
    """Run a command and return its exit code; any exception is `EXIT_ERROR` with one line on standard error.

    A reader that closes standard output is `EXIT_READER_GONE`, without a line.

    Python itself would exit with 1 after an exception, and 1 means "flagged" here.

    Args:
        command: returns its exit code, or None for 0; `SystemExit` (argparse in a recipe) is not caught.
        debug: print the traceback before the line.
        name: of the program, at the start of the line.
        ours: errors whose message is enough; of others the class is printed too, and that `--debug` helps.
    """
    try:
        if hasattr(sys.stdout, "reconfigure"):
            # A file name that the terminal's encoding cannot show must not stop the command.
            sys.stdout.reconfigure(errors="backslashreplace")
        code = command() or 0
        if sys.stdout is None:
            raise OSError("standard output is closed, so no result was printed")
        sys.stdout.flush()  # a closed pipe or a full disk is found here, where the exit code can still say so
        return code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `arbiter judge ... | head`
        _redirect_to_devnull(sys.stdout)
        return EXIT_READER_GONE
    except Exception as error:
        if debug:
            import traceback

            print_stderr(traceback.format_exc().rstrip())
        message = error_line(error) if isinstance(error, ours) else _describe_unexpected(error)
        hint = "" if debug or isinstance(error, ours) else " (--debug shows where)"
        print_stderr(f"{name}: {message}{hint}")
        _flush(sys.stdout)
        return EXIT_ERROR


def print_stderr(text: str) -> None:
    """Print lines on standard error, control characters escaped.

    If standard error is closed or full, nothing is printed and the exit code stays as it is.
    """
    if sys.stderr is None:
        return
    try:
        print(printable_lines(text), file=sys.stderr, flush=True)
    except OSError:
        _redirect_to_devnull(sys.stderr)


def _flush(stream: TextIO | None) -> None:
    if stream is None:
        return
    try:
        stream.flush()
    except OSError:
        _redirect_to_devnull(stream)


def _redirect_to_devnull(stream: TextIO) -> None:
    """Discard what the stream still buffers: Python writes it at exit, and would exit with 120 if that failed."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _describe_unexpected(error: Exception) -> str:
    """An error that is not ours on one line: a missing package by its name, any other with its class."""
    if isinstance(error, ModuleNotFoundError) and error.name:  # lazily loading libraries leave the name out
        missing = error.name.partition(".")[0]
        return (
            f"{missing} is not installed, and this needs it: pip install arbiter-vision brings it. Exported students "
            "(student.onnx) are judged with without torch."
        )
    kind, line = type(error).__name__, error_line(error)
    return kind if line == kind else f"{kind}: {line}"
