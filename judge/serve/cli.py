"""`arbiter`: the words of the command line -> an exit code.

The commands are imported inside `_run`: a missing package is then exit code 2, like any other error.
"""

import os
import sys
from collections.abc import Sequence

from judge.errors import ConfigError

from .exit_codes import EXIT_ERROR, EXIT_SAFE, run_to_exit_code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; errors go to standard error, on one line."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    # `--debug` may stand before or after the command, and is moved to the front, where `arbiter` itself reads it.
    # After `--` it is a file of that name.
    end = words.index("--") if "--" in words else len(words)
    debug = "--debug" in words[:end]
    words = [word for word in words[:end] if word != "--debug"] + words[end:]
    return run_to_exit_code(lambda: _run(["--debug", *words] if debug else words), debug=debug)


def _run(words: list[str]) -> int:
    """Parse the words and run their command.

    Not by `app(words)`, which exits with 1 on a broken pipe: that means "flagged" here.

    Raises:
        ConfigError: no such command or option, or a value it cannot take.
    """
    import typer

    from .commands import app
    from .completion import VARIABLE, complete

    command = typer.main.get_command(app)
    if asked := os.environ.get(VARIABLE):
        return EXIT_ERROR if complete(command, asked) else EXIT_SAFE
    try:
        with command.make_context("arbiter", words) as context:
            return int(command.invoke(context) or EXIT_SAFE)
    except typer.Exit as done:  # --help, --version; Typer's 1, for an unknown shell, would mean "flagged"
        return EXIT_ERROR if done.exit_code else EXIT_SAFE
    except typer.TyperException as error:
        path = getattr(getattr(error, "ctx", None), "command_path", "arbiter")
        raise ConfigError(f"{error.format_message()} (see {path} --help)") from error


if __name__ == "__main__":
    sys.exit(main())
