"""How a recipe starts: what can be checked before anything is loaded or written, and a failed start's folder."""

import warnings
from collections.abc import Callable, Sequence

from judge.errors import ConfigError, MissingExtraError
from judge.runs.folder import RunDir
from prompts.names import nearest

_opened: list[RunDir] = []
"""Runs that this process has begun."""


def hide_known_warnings() -> None:
    """Hide what users cannot change: peft asks transformers 5 for an attribute by a name that version 6 will drop."""
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)


def begins(run: RunDir) -> None:
    """Remember a run, so that `clean_start` can take its folder away again."""
    _opened.append(run)


def clean_start(main: Callable[[], None]) -> Callable[[], None]:
    """`main` as a script runs it: the folder of a run that failed before anything was saved in it is taken away again.

    So the same command can be typed again once its options, base or data are repaired.
    """

    def begin() -> None:
        hide_known_warnings()
        _opened.clear()
        try:
            main()
        except BaseException:  # Ctrl-C too
            for run in _opened:
                if run.path.is_dir():
                    run.withdraw()
            raise

    return begin


def check_trackers(names: Sequence[str]) -> None:
    """Check that the packages behind `--report_to` are here: transformers looks when training begins, which is late.

    Raises:
        ConfigError: a name that transformers does not know.
        MissingExtraError: its package is not installed.
    """
    if not names:
        return
    from transformers.integrations.integration_utils import (  # a second to import
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )

    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            known = sorted(INTEGRATION_TO_CALLBACK)
            raise ConfigError(
                f"report_to has no tracker {name!r}{nearest(name, known)}; allowed: none, {', '.join(known)}."
            )
        if name not in get_available_reporting_integrations():
            package = name.replace("_", "-")
            raise MissingExtraError(
                f"--report_to {name} needs a package that is not installed: pip install {package}, or --report_to none."
            )
