"""A user's own classifier: `FILE.py:FUNCTION` or `python:MODULE:FUNCTION`, a function that gives one back.

Unlike weights, which are data, this is code that runs: name only what you would run yourself.
"""

import importlib
import importlib.util
import inspect
import math
import os
import re
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from judge.errors import ConfigError, first_line
from judge.runs.files import nearest_path
from prompts.errors import ArbiterError
from prompts.names import nearest

if TYPE_CHECKING:
    from types import ModuleType

    from judge.protocol import Classifier

PYTHON = "python:"
_FILE = re.compile(r"(?!.*://).+\.py:\w+")
_FORM = f"write FILE.py:FUNCTION or {PYTHON}MODULE:FUNCTION"


def is_own(name: str) -> bool:
    """Whether a name is of this form: `python:...`, or `FILE.py:FUNCTION`."""
    return name.startswith(PYTHON) or _FILE.fullmatch(name) is not None


def find_function(spec: str) -> "Callable[..., Classifier]":
    """The function or class that a name stands for, checked as far as that goes without calling it.

    Called, it checks what it gives back.

    Args:
        spec: `python:MODULE:FUNCTION`, the module as `python -m` would find it from here; or `FILE.py:FUNCTION`,
            with or without `python:` before it.

    Raises:
        ConfigError: no such file, module or function; or the module cannot be imported.
    """
    home, _, name = spec.removeprefix(PYTHON).rpartition(":")
    if not home or not name:
        raise ConfigError(f"{spec!r} names no function; {_FORM}.")
    module = _module(spec, home)
    made = getattr(module, name, None)
    if not callable(made):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        what = "is no function" if hasattr(module, name) else f"does not exist{nearest(name, known)}"
        raise ConfigError(
            f"{spec}: {name!r} {what}; give a function or class that makes a classifier (judge.protocol)."
        )
    return _checking(spec, made)


def source_file(spec: str) -> Path | None:
    """The file of the module that a name stands for, where it has one."""
    function = find_function(spec)
    try:
        found = inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:  # no function or class, such as a `partial`: the file that holds it
        home = spec.removeprefix(PYTHON).rpartition(":")[0]
        found = home if home.endswith(".py") else getattr(sys.modules[home], "__file__", None)
    return None if found is None else Path(found)


def _module(spec: str, home: str) -> "ModuleType":
    try:
        if not home.endswith(".py"):
            _look_in(os.getcwd())
            return importlib.import_module(home)
        path = Path(home)
        if not path.is_file():
            raise ConfigError(f"{spec}: there is no file {home}{nearest_path(home)}.")
        _look_in(str(path.resolve().parent))
        found = importlib.util.spec_from_file_location(f"_own_{path.stem}", path)
        if found is None or found.loader is None:
            raise ConfigError(f"{spec}: {home} cannot be imported.")
        module = importlib.util.module_from_spec(found)
        sys.modules[found.name] = module  # dataclasses look their module up
        found.loader.exec_module(module)
        return module
    except ArbiterError:
        raise
    except (
        Exception,
        SystemExit,
    ) as error:  # whatever a user's module does when it is imported; also to leave
        raise ConfigError(
            f"{spec}: {home} cannot be imported: {type(error).__name__}: {first_line(error)}; {_FORM}."
        ) from error


def _look_in(folder: str) -> None:
    """Import from a folder too, as `python -m` does from the current one and `python FILE` from the file's."""
    if folder not in sys.path:
        sys.path.insert(0, folder)


def _checking(spec: str, made: Callable[..., Any]) -> "Callable[..., Classifier]":
    @wraps(made)
    def make(*arguments: Any, **options: Any) -> "Classifier":
        try:
            classifier = made(*arguments, **options)
        except ArbiterError:
            raise
        except (Exception, SystemExit) as error:  # whatever a user's function does
            raise ConfigError(f"{spec} failed: {type(error).__name__}: {first_line(error)}") from error
        if not callable(getattr(classifier, "score", None)):
            raise ConfigError(
                f"{spec} gave back a {type(classifier).__name__}; expected a classifier: an object with "
                "`score(images, prompts, taxonomy) -> judge.protocol.Scores`."
            )
        if not isinstance(getattr(classifier, "name", None), str):
            _name(classifier, spec)
        return classifier  # type: ignore[no-any-return]

    return make


def _name(classifier: Any, spec: str) -> None:
    """Give a classifier without a `name` that of its function.

    Raises:
        ConfigError: it takes no attributes.
    """
    try:
        classifier.name = spec.rpartition(":")[2]
    except AttributeError:
        raise ConfigError(
            f"{spec} gave back a {type(classifier).__name__} without `name`, and it takes none; give it one."
        ) from None


def check_scores(scores: Any, rows: int, categories: int) -> None:
    """Check what a classifier gave back, which may be a user's own: shapes, and probabilities.

    Raises:
        ValueError: it is not what was asked for.
    """
    if not all(hasattr(scores, name) for name in ("unsafe", "categories", "reasons")):
        raise ValueError(f"a {type(scores).__name__}, expected judge.protocol.Scores")
    import numpy as np  # names of classifiers are listed without it

    unsafe, found = np.asarray(scores.unsafe), np.asarray(scores.categories)
    if unsafe.shape != (rows,) or found.shape != (rows, categories) or len(scores.reasons) != rows:
        raise ValueError(
            f"scores of shapes {unsafe.shape} and {found.shape} with {len(scores.reasons)} reasons, expected "
            f"({rows},) and ({rows}, {categories}) with {rows}"
        )
    for value in (*unsafe, *found.ravel()):
        if not (math.isnan(value) or 0 <= value <= 1):
            raise ValueError(f"the score {value}, which is no probability")
