"""The recipes that ride along: list them, run one, copy one out to change it."""

import ast
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from judge.errors import ConfigError
from prompts.names import nearest
from prompts.printable import printable

_DATA = {".py", ".yaml", ".yml", ".json"}
_NAMED = re.compile(r"(?<![\w./-])recipes/(?P<file>[\w/-]+\.(?:py|yaml|yml|json))(?!\w)")
"""A file of the recipes as texts name it: from the folder that holds `recipes`."""

_RUN = """\
import os, runpy, sys
from judge.serve.exit_codes import run_to_exit_code
del sys.argv[0]
sys.path[0] = os.path.dirname(sys.argv[0])
def script():
    runpy.run_path(sys.argv[0], run_name="__main__")
sys.exit(run_to_exit_code(script, debug="--debug" in sys.argv))
"""
"""What `python SCRIPT` does, but for the exit code of exceptions."""


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
    """Each recipe's name and the first line of its text, without running it."""
    names = {}
    for path in sorted(recipes_folder().glob("*.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        names[path.stem] = text.split("\n", 1)[0]
    return names


def run_recipe(name: str, arguments: Sequence[str]) -> int:
    """Run a recipe in a Python of its own, as its docstring says, and give its exit code.

    Whatever stops it is `EXIT_ERROR`, also where it cannot import what it needs, which Python itself ends with 1.
    """
    script = str(recipes_folder() / f"{name}.py")
    return subprocess.call([sys.executable, "-c", _RUN, script, *arguments])


def copy_recipe(name: str, destination: Path) -> list[Path]:
    """Copy a recipe and the configurations, which it finds beside itself, into a folder.

    Commands in the copies' texts and files that they name are those of the copies; other recipes are named where they
    are installed. A file that is already there with the same content is left alone. If one differs, nothing is written.

    Returns:
        The files written.

    Raises:
        ConfigError: no such recipe, it would overwrite something, or a folder whose name no text can hold.
    """
    source = recipes_folder()
    names = recipe_names()
    if printable(destination) != str(destination):  # a line break would end a comment, and begin an option
        raise ConfigError(f"{destination} has control characters in its name; copy into another folder.")
    if name.removesuffix(".py") not in names:
        raise ConfigError(f"No recipe {name!r}{nearest(name, names)}. There are: {', '.join(names)}.")
    wanted = [source / f"{name.removesuffix('.py')}.py"]
    wanted += sorted(p for p in (source / "configs").rglob("*") if p.suffix in _DATA)
    targets = {path: destination / path.relative_to(source) for path in wanted}
    texts = {target: _renamed(path, source, targets) for path, target in targets.items()}
    folders = (source.resolve(), destination.resolve())
    taken = [
        target for target, text in texts.items() if target.exists() and not _holds(target, text, folders)
    ]
    if taken:
        raise ConfigError(
            f"Would overwrite {', '.join(map(str, taken))}; nothing was copied. Give another folder."
        )
    written = [target for target in targets.values() if not target.exists()]
    for target in written:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(texts[target], encoding="utf-8")
    return written


def _renamed(path: Path, source: Path, targets: Mapping[Path, Path]) -> str:
    """The text of a file, in which each file of the recipes is named by where its copy will be, or where it is."""

    def place(match: re.Match[str]) -> str:
        named = source / match["file"]
        if not named.is_file():
            return match[0]
        where = str(targets.get(named, named).resolve())
        line = match.string[match.string.rfind("\n", 0, match.start()) + 1 : match.start()]
        # A value of a YAML is read as it stands; everything else is a command, or speaks of one.
        value = path.suffix != ".py" and "#" not in line
        return json.dumps(where, ensure_ascii=False) if value else shlex.quote(where)

    text = _NAMED.sub(place, path.read_text(encoding="utf-8"))
    if path.suffix == ".py":
        try:
            ast.parse(text)
        except SyntaxError:
            raise ConfigError(
                f"The folder's name would break the text of {path.name}; give one without quotes and backslashes."
            ) from None
    return text


def _holds(path: Path, text: str, folders: Sequence[Path]) -> bool:
    """Whether a file holds this text, wherever it says that recipes are: beside an earlier copy, others were meant."""
    anywhere = "|".join(re.escape(str(folder)) for folder in folders)
    named = re.compile(rf"""['"]?(?:{anywhere})/([\w/.-]+)['"]?""")
    return path.is_file() and named.sub(r"\1", path.read_text(encoding="utf-8")) == named.sub(r"\1", text)
