"""The recipes that ride along: list them, run one, copy one out to change it."""

import ast
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from judge.errors import ConfigError
from prompts.taxonomy import nearest

_DATA = {".py", ".yaml", ".yml", ".json"}


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
    """Run a recipe in a Python of its own, as its docstring says, and give its exit code."""
    return subprocess.call([sys.executable, str(recipes_folder() / f"{name}.py"), *arguments])


def copy_recipe(name: str, destination: Path) -> list[Path]:
    """Copy a recipe and the configurations, which it finds beside itself, into a folder.

    A file that is already there with the same content is left alone. If one differs, nothing is written.

    Returns:
        The files written.

    Raises:
        ConfigError: no such recipe, or it would overwrite something.
    """
    source = recipes_folder()
    names = recipe_names()
    if name.removesuffix(".py") not in names:
        raise ConfigError(f"No recipe {name!r}{nearest(name, names)}. There are: {', '.join(names)}.")
    wanted = [source / f"{name.removesuffix('.py')}.py"]
    wanted += sorted(p for p in (source / "configs").rglob("*") if p.suffix in _DATA)
    targets = {path: destination / path.relative_to(source) for path in wanted}
    taken = [t for path, t in targets.items() if t.exists() and not _same(path, t)]
    if taken:
        raise ConfigError(
            f"Would overwrite {', '.join(map(str, taken))}; nothing was copied. Give another folder."
        )
    written = [target for target in targets.values() if not target.exists()]
    for path, target in targets.items():
        if target in written:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    return written


def _same(one: Path, other: Path) -> bool:
    return other.is_file() and one.read_bytes() == other.read_bytes()
