"""What a shell completes: taxonomies, runs, recipes, choices. Where nothing is proposed, shells complete file names."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import typer

VARIABLE = "_ARBITER_COMPLETE"
"""The environment variable with which the shell's script asks for proposals."""


def complete(command: Any, instruction: str) -> int:
    """Print the proposals that a shell asks for, as `complete_bash` and the like in `VARIABLE`; returns 0, or not."""
    from typer.completion import shell_complete

    return int(shell_complete(command, {}, "arbiter", VARIABLE, instruction))


def complete_taxonomy(incomplete: str) -> list[str]:
    """Taxonomies that ship, and YAML files."""
    from prompts.taxonomy_file import shipped_taxonomies

    files = (str(path) for path in _beside(incomplete) if path.suffix in (".yaml", ".yml"))
    return _starting((*shipped_taxonomies(), *files), incomplete)


def complete_run(incomplete: str) -> list[str]:
    """Run folders here and in runs/, or beside what is typed; exported students; runs that ship."""
    from judge.runs.folder import MANIFEST
    from judge.standins.shipped import SHIPPED_RUNS

    found = [*_beside(incomplete), *([] if "/" in incomplete else _entries(Path("runs")))]
    runs = (str(path) for path in found if path.suffix == ".onnx" or (path / MANIFEST).is_file())
    return _starting((*runs, *SHIPPED_RUNS), incomplete)


def complete_recipe(incomplete: str) -> list[str]:
    """Names of recipes."""
    from .recipe_files import recipe_names

    return _starting(recipe_names(), incomplete)


def complete_categories(context: typer.Context, incomplete: str) -> list[str]:
    """Categories of the taxonomy that was typed before, after the last comma; those without spaces."""
    from prompts.errors import ArbiterError
    from prompts.taxonomy_file import load_taxonomy

    try:
        taxonomy = load_taxonomy(str(context.params.get("taxonomy")))
    except ArbiterError:
        return []
    before = incomplete[: incomplete.rfind(",") + 1]
    return _starting((f"{before}{name}" for name in taxonomy.names if " " not in name), incomplete)


def complete_order(incomplete: str) -> list[str]:
    """What verdicts are sorted by."""
    from .verdict_output import SORTED_BY

    return _starting(SORTED_BY, incomplete)


def complete_prompt_mode(incomplete: str) -> list[str]:
    """How a judge reads prompts."""
    from typing import get_args

    from prompts.reading import PromptMode

    return _starting(get_args(PromptMode), incomplete)


def _starting(names: Iterable[str], start: str) -> list[str]:
    return sorted({name for name in names if name.startswith(start)})


def _beside(incomplete: str) -> list[Path]:
    """The entries of the folder that a path leads to so far."""
    return _entries(Path(incomplete if incomplete.endswith("/") else Path(incomplete).parent))


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []
