"""The recipes inside the package: list them, run one, copy one to change it."""

import ast
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

from judge.errors import ConfigError
from prompts.names import nearest
from prompts.printable import printable

_COPIED_SUFFIXES = {".py", ".yaml", ".yml", ".json"}
_RECIPE_PATH = re.compile(r"(?<![\w./-])recipes/(?P<file>[\w/-]+\.(?:py|yaml|yml|json))(?!\w)")
"""A path to a file of the recipes, as their docstrings and configurations write it."""

_RUN_SCRIPT = """\
import logging, os, runpy, sys
from judge.serve.exit_codes import run_to_exit_code
del sys.argv[0]
sys.path[0] = os.path.dirname(sys.argv[0])
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
def script():
    runpy.run_path(sys.argv[0], run_name="__main__")
sys.exit(run_to_exit_code(script, debug="--debug" in sys.argv))
"""
"""What `python SCRIPT` does, except that an exception is `EXIT_ERROR` instead of 1.

When it is imported, bitsandbytes warns of a faster kernel that it could load from the hub; nobody asked for 4 bits.
"""


def recipes_folder() -> Path:
    """The installed recipes (`judge/_recipes` in a wheel), or those of the checkout.

    Raises:
        ConfigError: neither is there.
    """
    package = Path(str(files("judge")))
    for folder in (package / "_recipes", package.parent / "recipes"):
        if folder.is_dir():
            return folder
    raise ConfigError(f"No recipes beside {package}; install arbiter-vision again.")


def recipe_names() -> dict[str, str]:
    """Name -> first line of the docstring, for each recipe; none is run."""
    paths = sorted(recipes_folder().glob("*.py"))
    return {path.stem: _first_line(path.read_text(encoding="utf-8")) for path in paths}


@cache
def _first_line(program: str) -> str:
    text = ast.get_docstring(ast.parse(program)) or ""
    return text.split("\n", 1)[0]


def run_recipe(name: str, arguments: Sequence[str]) -> int:
    """Run a recipe in a Python process of its own and return its exit code.

    Any exception is `EXIT_ERROR`, a failed import too: Python itself would exit with 1.
    """
    script = str(recipes_folder() / f"{name}.py")
    return subprocess.call([sys.executable, "-c", _RUN_SCRIPT, script, *arguments])


def copy_recipe(name: str, destination: Path) -> list[Path]:
    """Copy a recipe and all configurations into a folder.

    Paths inside the copied files are rewritten: to the copy where there is one, else to the installed file. A file that
    is already there with the same content is left as it is. If one differs, nothing is written.

    Returns:
        The files written.

    Raises:
        ConfigError: no such recipe, a file would be overwritten, or the name of the folder would break a file that
            it is written into.
    """
    source = recipes_folder()
    names = recipe_names()
    if printable(destination) != str(
        destination
    ):  # a line break would end a comment, and start a YAML option
        raise ConfigError(f"{destination} has control characters in its name; copy into another folder.")
    if name.removesuffix(".py") not in names:
        raise ConfigError(f"No recipe {name!r}{nearest(name, names)}. There are: {', '.join(names)}.")
    wanted = [source / f"{name.removesuffix('.py')}.py"]
    wanted += sorted(p for p in (source / "configs").rglob("*") if p.suffix in _COPIED_SUFFIXES)
    targets = {path: destination / path.relative_to(source) for path in wanted}
    texts = {target: _rewrite_paths(path, source, targets) for path, target in targets.items()}
    folders = (source.resolve(), destination.resolve())
    changed = [
        target for target, text in texts.items() if target.exists() and not _has_text(target, text, folders)
    ]
    if changed:
        raise ConfigError(
            f"Would overwrite {', '.join(map(str, changed))}; nothing was copied. Give another folder."
        )
    written = [target for target in targets.values() if not target.exists()]
    for target in written:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(texts[target], encoding="utf-8")
    return written


def _rewrite_paths(path: Path, source: Path, targets: Mapping[Path, Path]) -> str:
    """The text of a file, with absolute paths to recipe files: to the copy, else to the installed file."""

    def absolute(match: re.Match[str]) -> str:
        installed = source / match["file"]
        if not installed.is_file():
            return match[0]
        new = str(targets.get(installed, installed).resolve())
        line = match.string[match.string.rfind("\n", 0, match.start()) + 1 : match.start()]
        # A YAML value needs YAML quotes, which JSON's are; anything else is a shell command or prose about one.
        value = path.suffix != ".py" and "#" not in line
        return json.dumps(new, ensure_ascii=False) if value else shlex.quote(new)

    text = _RECIPE_PATH.sub(absolute, path.read_text(encoding="utf-8"))
    if path.suffix == ".py":
        try:
            ast.parse(text)
        except SyntaxError:
            raise ConfigError(
                f"The folder's name would break the text of {path.name}; give one without quotes and backslashes."
            ) from None
    return text


def _has_text(path: Path, text: str, folders: Sequence[Path]) -> bool:
    """Whether a file has this text, apart from the folders in its paths.

    The paths of a file that was copied together with another recipe may lead elsewhere.
    """
    anywhere = "|".join(re.escape(str(folder)) for folder in folders)
    paths = re.compile(rf"""['"]?(?:{anywhere})/([\w/.-]+)['"]?""")
    return path.is_file() and paths.sub(r"\1", path.read_text(encoding="utf-8")) == paths.sub(r"\1", text)
