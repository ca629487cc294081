"""Write the command reference: what `--help` says of every command, and the options of every recipe, as Markdown.

python scripts/command_reference.py            # to standard output; `make docs` puts it into the site
"""

import contextlib
import io
import os
import runpy
from collections.abc import Callable, Iterator
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, get_origin

import typer
from typer.testing import CliRunner

from eval.recipe import parse_options
from judge.serve.commands import _RECIPE_COMMANDS, app

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
INTRODUCTION = """\
# Commands and recipes

What `--help` says on the day these pages are built. `arbiter COMMAND --help` says the same in a terminal; of recipes,
`python recipes/NAME.py --help` lists transformers' own training options too.

## Commands
"""
RECIPES_INTRODUCTION = """\
## Recipes

One job a file. Each option can stand on the command line, in a YAML given as `--config FILE`, or in the recipe's own
YAML, and is taken from the first of these that has it. The tables show what holds when nothing is given.
"""
TRAINING = """\
It takes all of transformers' `TrainingArguments` too, such as `--learning_rate`, `--num_train_epochs`, `--max_steps`,
`--per_device_train_batch_size`, `--seed` and `--report_to`.
"""


def main() -> None:
    """Print the page."""
    print(command_reference())


def command_reference() -> str:
    """The whole page, as Markdown."""
    os.environ["COLUMNS"] = "100"
    commands = "\n".join(_command(words) for words in _commands(app))
    recipes = "\n".join(_recipe(path) for path in sorted(RECIPES.glob("*.py")))
    return "\n".join([INTRODUCTION, commands, RECIPES_INTRODUCTION, recipes])


def _commands(group: typer.Typer, *above: str) -> Iterator[tuple[str, ...]]:
    """The words of every command below a group, as it lists them."""
    for command in group.registered_commands:
        assert command.callback is not None
        yield (*above, command.name or command.callback.__name__.replace("_", "-"))
    for found in group.registered_groups:
        assert found.typer_instance is not None
        yield from _commands(found.typer_instance, *above, str(found.name))


def _command(words: tuple[str, ...]) -> str:
    heading = f"### arbiter {' '.join(words)}\n"
    if words[0] in _RECIPE_COMMANDS:
        recipe, option, about = _RECIPE_COMMANDS[words[0]]
        return (
            f"{heading}\n{about} Runs the recipe [{recipe}](#{recipe}); words before the first option are values of "
            f"`{option}`.\n"
        )
    shown = CliRunner().invoke(app, [*words, "--help"], prog_name="arbiter")
    if shown.exit_code:
        raise SystemExit(
            f"error: arbiter {' '.join(words)} --help ended with {shown.exit_code}: {shown.output}"
        )
    return f"{heading}\n```text\n{shown.output.strip()}\n```\n"


def _recipe(path: Path) -> str:
    names = runpy.run_path(str(path))
    about = f"### {path.stem}\n\n```text\n{(names['__doc__'] or '').strip()}\n```\n"
    if "OPTIONS" not in names:
        return f"{about}\n```text\n{_help(names['read_arguments'])}\n```\n"
    config = names.get("own_config") or names["CONFIG"]
    values: dict[str, Any] = {}
    for options in parse_options(names["OPTIONS"], config, []):
        values |= vars(options)
    rows = [_row(one, values[one.name], about) for one, about in _own_fields(names["OPTIONS"])]
    training = any(issubclass(group, _training_arguments()) for group in names["OPTIONS"])
    parts = [
        about,
        "| option | default | meaning |\n|---|---|---|",
        *rows,
        "",
        TRAINING if training else "",
    ]
    return "\n".join(parts)


def _help(read: Callable[[list[str]], Any]) -> str:
    """What a recipe with a parser of its own says of its options."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        read(["--help"])
    return printed.getvalue().strip()


def _training_arguments() -> type:
    from transformers import TrainingArguments

    return TrainingArguments


def _own_fields(groups: tuple[type, ...]) -> Iterator[tuple["Field[Any]", str]]:
    """The options that are ours, with what they mean; not those of transformers."""
    theirs = {one.name for one in fields(_training_arguments())}
    for group in groups:
        for one in fields(group):
            own = not issubclass(group, _training_arguments()) or one.name not in theirs
            if one.init and (own or one.name == "output_dir"):
                yield one, str(one.metadata.get("help", ""))


def _row(one: "Field[Any]", value: Any, about: str) -> str:
    name = one.name if get_origin(one.type) is dict else f"--{one.name}"  # a mapping stands in a YAML only
    return f"| `{name}` | {_cell(_shown(value))} | {_cell(about)} |"


def _shown(value: Any) -> str:
    if value is None or value == "" or value == [] or value == {}:
        return ""
    return f"`{', '.join(map(str, value)) if isinstance(value, list) else value}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    main()
